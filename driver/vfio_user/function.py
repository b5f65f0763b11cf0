"""The device side of a session: an NVMe function, and what each command does to it.

    function.begin()
    reply = function.execute(message)      for each command of the client; ProtocolError: refused
    function.end()                         the client is gone: memory back, controller reset

A client that maps the doorbells is not bound to say when it stores there: from the moment that it
is given the page the controller looks by itself (Controller.look_at_doorbells). The eventfd that
GET_REGION_IO_FDS names ends its sleep at once.

Below: the embedded controller (through its transport), config_space, bar, interrupts, dma.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import messages as m
from .bar import DOORBELLS, Bar0
from .channel import Message
from .config_space import CONFIG_BYTES, ConfigSpace
from .dma import MAX_REGIONS, DmaTable
from .interrupts import Vectors
from .messages import Command, ProtocolError

if TYPE_CHECKING:
    from ..transports.embedded import EmbeddedTransport

_log = logging.getLogger("nvmefs.vfio_user")

MAJOR, MINOR = 0, 1
MAX_MSG_FDS = 8  # what monitors take for a sane number; more are accepted
MAX_MESSAGE_BYTES = m.HEADER_BYTES + m.RegionAccess.SIZE + m.DEFAULT_TRANSFER_BYTES
_CAP_HIGH, _CC, _CSTS = 0x04, 0x14, 0x1C
_GONE = 0xFFFFFFFF
_SHUTDOWN_NORMAL, _SHUTDOWN_MASK, _SHUTDOWN_COMPLETE = 1 << 14, 0xC, 0x8
_NAP_S = 0.002


@dataclass(frozen=True)
class Reply:
    """What goes back: the payload, and descriptors that stay ours."""

    payload: bytes = b""
    fds: tuple[int, ...] = ()


class NvmeFunction:
    """An embedded controller as a PCI function; it stays the caller's to close."""

    def __init__(
        self, transport: EmbeddedTransport, *, queues: int, map_doorbells: bool = True
    ) -> None:
        self._controller = transport.controller
        self._controller.serve_others(True)
        self._map_doorbells = map_doorbells
        stride = self._controller.read(_CAP_HIGH, 4) & 0xF
        most = self._controller.doorbell_bytes // 4
        self._doorbell_count = min(2 * (queues + 1) << stride, most)
        self._vectors = Vectors(transport.vectors, self._controller.set_interrupts)
        # A monitor wants to be told of errors on the bus. There are none; so nobody ever is.
        self._irqs = [Vectors(n, lambda _fds: None) for n in (0, 0, 0, 1, 0)]
        self._irqs[m.IRQ_MSIX] = self._vectors
        self._bar = Bar0(self._controller, self._vectors)
        self._config = ConfigSpace(
            transport.vectors, self._bar.size, 0x2000, self._bar.pba, self._controller.reset
        )
        self._dma = DmaTable(self._controller)
        self._negotiated = False
        self._commands: dict[int, Callable[[Message], Reply]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.GET_INFO: self._get_info,
            Command.GET_REGION_INFO: self._get_region_info,
            Command.GET_REGION_IO_FDS: self._get_region_io_fds,
            Command.GET_IRQ_INFO: self._get_irq_info,
            Command.SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.RESET: self._reset,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
        }

    # ---- the session ---------------------------------------------------------------------------

    @property
    def negotiated(self) -> bool:
        """Whether the client has said which version it speaks, and may go on."""
        return self._negotiated

    def begin(self) -> None:
        """A client has come."""
        self._negotiated = False

    def end(self) -> None:
        """The client has gone, whatever it left behind: the next one finds a fresh function."""
        self._controller.reset()  # first: no queue may live in memory that is taken away
        self._dma.clear()
        for vectors in self._irqs:
            vectors.disable()
        self._controller.look_at_doorbells(False)
        self._config.reset()
        self._bar.reset()

    def shut_down(self, bound_s: float) -> bool:
        """Power is about to go: what the drive caches reaches the medium. False: not in time."""
        self._controller.write(_CC, 4, self._controller.read(_CC, 4) | _SHUTDOWN_NORMAL)
        end = time.monotonic() + bound_s
        while time.monotonic() < end:
            status = self._controller.read(_CSTS, 4)
            if status == _GONE or status & _SHUTDOWN_MASK == _SHUTDOWN_COMPLETE:
                return True
            time.sleep(_NAP_S)
        return False

    def execute(self, message: Message) -> Reply:
        """One command. Raises ProtocolError, or OSError from the system; both say an errno."""
        command = message.header.command
        handler = self._commands.get(command)
        if handler is None:
            raise ProtocolError(f"{m.command_name(command)} is not supported", errno.ENOTSUP)
        if self._negotiated == (command == Command.VERSION):
            raise ProtocolError(f"{m.command_name(command)}: VERSION comes first, and once")
        return handler(message)

    def _version(self, message: Message) -> Reply:
        version = m.Version.parse(message.payload)
        if version.major != MAJOR:
            raise ProtocolError(f"version {version.major}.{version.minor}", errno.ENOTSUP)
        ours: dict[str, int | bool] = {
            "max_msg_fds": MAX_MSG_FDS,
            "max_data_xfer_size": m.DEFAULT_TRANSFER_BYTES,
            "max_dma_maps": MAX_REGIONS,
            "pgsizes": 4096,
            "write_multiple": True,
        }
        # A reply names what was proposed and no more; two are there for clients that rely on them.
        always = ("max_msg_fds", "max_data_xfer_size")
        common = {k: v for k, v in ours.items() if k in version.capabilities or k in always}
        self._negotiated = True
        return Reply(m.Version(MAJOR, min(version.minor, MINOR), common).pack())

    # ---- what it is ----------------------------------------------------------------------------

    def _get_info(self, message: Message) -> Reply:
        request = m.DeviceInfo.parse(message.payload)
        if request.argsz < m.DeviceInfo.SIZE:
            raise ProtocolError(f"GET_INFO with argsz {request.argsz}")
        flags = m.DEVICE_RESETS | m.DEVICE_PCI
        return Reply(m.DeviceInfo(m.DeviceInfo.SIZE, flags, m.REGION_COUNT, m.IRQ_COUNT).pack())

    def _region_size(self, index: int) -> int:
        if index >= m.REGION_COUNT:
            raise ProtocolError(f"region {index} of {m.REGION_COUNT}")
        return {m.REGION_BAR0: self._bar.size, m.REGION_CONFIG: CONFIG_BYTES}.get(index, 0)

    def _get_region_info(self, message: Message) -> Reply:
        """A client that leaves no room for capabilities is not told of mapping at all."""
        request = m.RegionInfo.parse(message.payload)
        if request.argsz < m.RegionInfo.SIZE:
            raise ProtocolError(f"GET_REGION_INFO with argsz {request.argsz}")
        size, index = self._region_size(request.index), request.index
        flags = m.REGION_READ | m.REGION_WRITE if size else 0
        if index != m.REGION_BAR0 or not self._map_doorbells:
            return Reply(m.RegionInfo(m.RegionInfo.SIZE, flags, index, size=size).pack())
        needed = m.region_info_bytes(1)
        if request.argsz < needed:
            return Reply(m.RegionInfo(needed, flags, index, size=size).pack())
        flags |= m.REGION_MMAP | m.REGION_CAPS
        info = m.RegionInfo(needed, flags, index, m.RegionInfo.SIZE, size)
        self._controller.look_at_doorbells(True)
        area = m.SparseArea(DOORBELLS, self._controller.doorbell_bytes)
        return Reply(m.pack_region_info(info, [area]), (self._controller.doorbell_fd,))

    def _get_region_io_fds(self, message: Message) -> Reply:
        """Every doorbell has the same eventfd. Without mapped doorbells there is none: an
        eventfd alone does not carry the value that was stored.
        """
        request = m.RegionIoFds.parse(message.payload)
        if request.argsz < m.RegionIoFds.SIZE or request.flags or request.count:
            raise ProtocolError(f"GET_REGION_IO_FDS with argsz {request.argsz}")
        self._region_size(request.index)
        count = 0
        if request.index == m.REGION_BAR0 and self._map_doorbells:
            count = self._doorbell_count
        entries = (m.IoEventFd(DOORBELLS + 4 * i, 4, 0) for i in range(count))
        packed = m.pack_io_fds(request.index, entries)
        if request.argsz < len(packed):
            return Reply(m.RegionIoFds(len(packed), 0, request.index).pack())
        return Reply(packed, (self._controller.kick_fd,) if count else ())

    def _get_irq_info(self, message: Message) -> Reply:
        request = m.IrqInfo.parse(message.payload)
        if request.argsz < m.IrqInfo.SIZE or request.index >= m.IRQ_COUNT:
            raise ProtocolError(f"GET_IRQ_INFO of index {request.index}, argsz {request.argsz}")
        flags, count = m.IRQ_EVENTFD, self._irqs[request.index].count
        if request.index == m.IRQ_MSIX:
            flags |= m.IRQ_MASKABLE
        return Reply(m.IrqInfo(m.IrqInfo.SIZE, flags, request.index, count).pack())

    # ---- what is done to it --------------------------------------------------------------------

    def _set_irqs(self, message: Message) -> Reply:
        request = m.IrqSet.parse(message.payload)
        if request.argsz < m.IrqSet.SIZE or request.index >= m.IRQ_COUNT:
            raise ProtocolError(f"SET_IRQS of index {request.index}, argsz {request.argsz}")
        self._irqs[request.index].configure(request, message.payload[m.IrqSet.SIZE :], message.fds)
        return Reply()

    def _dma_map(self, message: Message) -> Reply:
        self._dma.map(m.DmaMap.parse(message.payload), message.fds)
        return Reply()

    def _dma_unmap(self, message: Message) -> Reply:
        request = m.DmaUnmap.parse(message.payload)
        self._dma.unmap(request)
        return Reply(request.pack())

    def _check_access(self, offset: int, region: int, count: int) -> None:
        size = self._region_size(region)
        if count > m.DEFAULT_TRANSFER_BYTES or offset + count > size:
            raise ProtocolError(f"{count} bytes at {offset:#x} of region {region}: it has {size}")

    def _region_read(self, message: Message) -> Reply:
        request = m.RegionAccess.parse(message.payload)
        self._check_access(request.offset, request.region, request.count)
        where = self._bar if request.region == m.REGION_BAR0 else self._config
        return Reply(request.pack() + where.read(request.offset, request.count))

    def _region_write(self, message: Message) -> Reply:
        request = m.RegionAccess.parse(message.payload)
        data = m.parse_data(message.payload, request)
        self._store(request.offset, request.region, data)
        return Reply(request.pack())

    def _region_write_multi(self, message: Message) -> Reply:
        writes = m.parse_small_writes(message.payload)
        for write in writes:
            self._store(write.offset, write.region, write.data[: write.count])
        return Reply(m.WriteMulti(len(writes)).pack())

    def _store(self, offset: int, region: int, data: bytes) -> None:
        self._check_access(offset, region, len(data))
        if not data:
            return
        where = self._bar if region == m.REGION_BAR0 else self._config
        where.write(offset, data)

    def _reset(self, message: Message) -> Reply:
        """Memory, interrupts and configuration space stay, as with a device that VFIO resets."""
        self._controller.reset()
        return Reply()
