"""What is asked of a controller by admin commands: Identify in all its forms, log pages, features.

Below: the admin queue pair, commands.py, identify.py. Above: controller.py, events.py, namespace.py.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from . import commands
from .commands import Cns, Feature
from .errors import CommandError, ControllerError, InvalidRequest
from .identify import (
    EBS_VENDOR,
    LIST_ENTRIES,
    CommandSetLimits,
    IdentifyController,
    parse_controller_list,
    parse_namespace_list,
)
from .identify_namespace import IdentifyNamespace, NamespaceDescriptors

if TYPE_CHECKING:
    from .bringup import Hardware
    from .memory import DmaPool
    from .queues import QueuePair

_log = logging.getLogger("nvmefs.driver")

_NAP_S = 0.5
_MAX_NSID = 0xFFFFFFFE
_ACTIVE_LIST_SINCE = 0x10100
_DESCRIPTORS_SINCE = 0x10300
_LIMITS_SINCE = 0x10400  # some controllers of 1.4 have them, QEMU's among them
_MOST_NAMESPACES = 1 << 20


class Queries:
    """Questions to one controller. All raise CommandError, and ControllerError on absurd answers."""

    def __init__(
        self, queue: QueuePair, pool: DmaPool, hardware: Hardware, patience_s: float
    ) -> None:
        self._queue = queue
        self._pool = pool
        self._hardware = hardware
        self._patience_s = patience_s
        self._where = hardware.where
        self._page_bytes = hardware.page_bytes
        self._vendor = EBS_VENDOR  # until it is known: a fresh volume answers with zeroes
        self._namespaces = 0

    async def read(self, command: bytes, nbytes: int) -> bytes:
        """An admin command that returns data: the first nbytes (at most a list page of pages)."""
        with await self._pool.allocate_wait(nbytes) as buffer:
            buffer.view[:] = bytes(nbytes)
            await self._queue.submit(command, buffer.iova, nbytes, (buffer,))
            return bytes(buffer.view)

    async def identify(self, cns: int, nsid: int = 0) -> bytes:
        """The 4,096 bytes of one Identify data structure."""
        return await self.read(commands.identify(cns, nsid), commands.IDENTIFY_BYTES)

    async def _patiently(self, cns: int, nsid: int = 0) -> bytes:
        """Identify; fresh EBS volumes answer with zeroes for a while: asked again."""
        end = trio.current_time() + self._patience_s
        while True:
            raw = await self.identify(cns, nsid)
            if any(raw) or self._vendor != EBS_VENDOR or trio.current_time() >= end:
                return raw
            await trio.sleep(_NAP_S)

    async def controller(self) -> IdentifyController:
        """Identify Controller."""
        raw = await self._patiently(Cns.CONTROLLER)
        found = IdentifyController.parse(raw, self._where, self._page_bytes)
        self._vendor, self._namespaces = found.vendor_id, found.namespaces
        return found

    async def active_namespaces(self) -> list[int]:
        """All ids in ascending order: each list has 1,024, the next begins after its last one."""
        if self._hardware.version < _ACTIVE_LIST_SINCE:
            return list(range(1, min(self._namespaces, LIST_ENTRIES) + 1))
        return await self._namespace_ids(Cns.ACTIVE_NAMESPACES)

    async def allocated_namespaces(self) -> list[int]:
        """The ids of all namespaces of the subsystem, attached to this controller or not."""
        return await self._namespace_ids(Cns.ALLOCATED_NAMESPACES)

    async def _namespace_ids(self, cns: int) -> list[int]:
        ids: list[int] = []
        while len(ids) <= _MOST_NAMESPACES:
            last = ids[-1] if ids else 0
            more = parse_namespace_list(await self.identify(cns, last), self._where, last)
            ids += more
            if len(more) < LIST_ENTRIES or ids[-1] == _MAX_NSID:
                return ids
        raise ControllerError(f"{self._where}: more than {_MOST_NAMESPACES} namespaces: absurd")

    async def controllers(self, nsid: int | None = None) -> list[int]:
        """Ids of the controllers of the subsystem, or of those that a namespace is attached to."""
        if nsid is None:
            return parse_controller_list(await self.identify(Cns.CONTROLLERS), self._where)
        raw = await self.identify(Cns.CONTROLLERS_OF_NAMESPACE, nsid)
        return parse_controller_list(raw, self._where)

    async def namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace, after a look at its command set.

        Raises InvalidRequest for an id that cannot exist.
        """
        where = f"{self._where}: namespace {nsid}"
        if not 1 <= nsid <= min(self._namespaces, _MAX_NSID):
            raise InvalidRequest(f"{where}: no such namespace: ids go from 1 to {self._namespaces}")
        names = await self.descriptors(nsid)
        if names.csi:
            raise ControllerError(
                f"{where}: uses I/O command set {names.csi} (2 is zoned); only 0 (NVM) is supported"
            )
        raw = await self._patiently(Cns.NAMESPACE, nsid)
        return IdentifyNamespace.parse(raw, where).named(names)

    async def descriptors(self, nsid: int) -> NamespaceDescriptors:
        """Its names: UUID, NGUID, EUI-64, and its command set; none before NVMe 1.3."""
        where = f"{self._where}: namespace {nsid}"
        if self._hardware.version < _DESCRIPTORS_SINCE:
            return NamespaceDescriptors()
        try:
            raw = await self.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
        except CommandError as error:
            # An inactive id is refused here; Identify Namespace then says so in words.
            _log.debug("%s: no descriptors: %s", where, error)
            return NamespaceDescriptors()
        return NamespaceDescriptors.parse(raw, where)

    async def limits(self) -> CommandSetLimits:
        """Limits of the NVM command set beyond MDTS; none before NVMe 1.4."""
        if self._hardware.version < _LIMITS_SINCE:
            return CommandSetLimits()
        try:
            raw = await self.identify(Cns.COMMAND_SET_CONTROLLER)
        except CommandError as error:
            _log.debug("%s: no command set specific Identify: %s", self._where, error)
            return CommandSetLimits()
        return CommandSetLimits.parse(raw, self._where, self._page_bytes)

    async def write_cache(self) -> bool:
        """Whether the volatile write cache, which the controller must have, is on."""
        try:
            command = commands.get_features(Feature.VOLATILE_WRITE_CACHE)
            return bool(await self._queue.submit(command) & 1)
        except CommandError as error:
            _log.warning("%s: taking the write cache as on: %s", self._where, error)
            return True

    async def feature(self, feature: int, nsid: int = 0) -> int:
        """The current value of a feature: dword 0 of Get Features, for those that are no more."""
        return await self._queue.submit(commands.get_features(feature, nsid))

    async def log_page(self, log: int, nbytes: int) -> bytes:
        """Get Log Page: the first nbytes (a multiple of 4) of it."""
        if nbytes < 4 or nbytes % 4:
            raise InvalidRequest(
                f"{self._where}: a log page of {nbytes} bytes: not a multiple of 4"
            )
        return await self.read(commands.get_log_page(log, nbytes), nbytes)
