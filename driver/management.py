"""What changes a drive for good: formatting a namespace, creating, deleting, attaching and detaching one.

    await controller.manage.format(1, lba_format=1)
    namespace = await controller.namespace(1)       # its blocks have another size now

Nothing here asks whether the data is still wanted: that is the business of the callers (tools/manage.py
looks at the disk first). Namespace objects of before are given up: each further request raises
InvalidRequest, and Controller.namespace() makes a new one.

NVM Express base specification 2.0, sections 5.14 (Format NVM), 5.22 and 5.23 (namespaces).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from . import commands
from .commands import ALL_NAMESPACES, IDENTIFY_BYTES, Cns
from .errors import InvalidRequest, Unsupported
from .identify_namespace import LbaFormat, parse_formats, why_not

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .controller import Controller

ERASE_NOTHING, ERASE_DATA, ERASE_KEY = 0, 1, 2
FORMAT_TIMEOUT_S = 3600  # a drive may write itself full


class Management:
    """The changes of one controller. All raise CommandError, and Unsupported for what it does not
    offer (OACS); nothing was sent then.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def formats(self, nsid: int) -> tuple[tuple[LbaFormat, ...], int]:
        """The formats of a namespace and the index of the present one, also where it is not usable."""
        where = f"{self._controller.where}: namespace {nsid}"
        return parse_formats(await self._controller.query.identify(Cns.NAMESPACE, nsid), where)

    async def format(
        self, nsid: int, lba_format: int | None = None, *, erase: int = ERASE_NOTHING
    ) -> None:
        """Format NVM: all data is lost. lba_format None: as it is; erase: nothing in particular, user
        data, or the key it is encrypted with.

        Raises InvalidRequest for a format that is not there or that this driver could not use, and
        where the controller would format other namespaces with it.
        """
        controller, who = self._controller, self._controller.identify
        where = f"{controller.where}: namespace {nsid}"
        if not who.format_nvm:
            raise Unsupported(f"{where}: the controller has no Format NVM command (OACS)")
        if not ERASE_NOTHING <= erase <= ERASE_KEY:
            raise InvalidRequest(f"{where}: erase is {erase}: from {ERASE_NOTHING} to {ERASE_KEY}")
        if erase == ERASE_KEY and not who.crypto_erase:
            raise Unsupported(f"{where}: the controller cannot erase by its key (FNA)")
        formats, present = await self.formats(nsid)
        chosen = present if lba_format is None else lba_format
        if not 0 <= chosen < len(formats):
            raise InvalidRequest(f"{where}: no format {chosen}: there are 0 to {len(formats) - 1}")
        reason = why_not(formats[chosen])
        if reason:
            raise InvalidRequest(f"{where}: format {chosen}: {reason}")
        if who.erase_is_for_all if erase else who.format_is_for_all:
            others = [other for other in await controller.namespaces() if other != nsid]
            if others:
                raise InvalidRequest(
                    f"{where}: this controller formats all namespaces at once (FNA), and there are "
                    f"others: {', '.join(map(str, others[:8]))}"
                )
        command = commands.format_nvm(nsid, chosen, erase)
        await controller.admin.submit(command, timeout_ns=int(FORMAT_TIMEOUT_S * 1e9))
        self._forget(nsid, "it was formatted")

    async def create(self, blocks: int, lba_format: int = 0) -> int:
        """Creates a namespace of so many blocks, attached to no controller; its id."""
        where = self._check_management()
        formats, _ = await self.formats(ALL_NAMESPACES)  # what all namespaces have in common
        if not 0 <= lba_format < len(formats):
            raise InvalidRequest(
                f"{where}: no format {lba_format}: there are 0 to {len(formats) - 1}"
            )
        reason = why_not(formats[lba_format])
        if reason or blocks < 1:
            raise InvalidRequest(f"{where}: format {lba_format}: {reason or f'{blocks} blocks'}")
        raw = bytearray(IDENTIFY_BYTES)
        struct.pack_into("<QQ", raw, 0, blocks, blocks)
        raw[26] = lba_format & 15 | (lba_format >> 4 & 3) << 5
        return await self._send(commands.create_namespace(), raw)

    async def delete(self, nsid: int) -> None:
        """Deletes a namespace: its data is lost."""
        self._check_management()
        await self._controller.admin.submit(commands.delete_namespace(nsid))
        self._forget(nsid, "it was deleted")

    async def attach(self, nsid: int, controllers: Sequence[int] | None = None) -> None:
        """Attaches a namespace to these controllers of the subsystem; None: to this one."""
        await self._attachment(nsid, controllers, attach=True)

    async def detach(self, nsid: int, controllers: Sequence[int] | None = None) -> None:
        """Takes a namespace from these controllers of the subsystem; None: from this one."""
        ours = self._controller.identify.controller_id
        await self._attachment(nsid, controllers, attach=False)
        if controllers is None or ours in controllers:
            self._forget(nsid, "it was detached")

    async def _attachment(
        self, nsid: int, controllers: Sequence[int] | None, *, attach: bool
    ) -> None:
        where = self._check_management()
        ids = sorted(
            {self._controller.identify.controller_id} if controllers is None else controllers
        )
        if not ids or len(ids) > IDENTIFY_BYTES // 2 - 1:
            raise InvalidRequest(f"{where}: a list of {len(ids)} controllers")
        raw = bytearray(IDENTIFY_BYTES)
        struct.pack_into(f"<{len(ids) + 1}H", raw, 0, len(ids), *ids)
        await self._send(commands.attach_namespace(nsid, attach=attach), raw)

    def _check_management(self) -> str:
        where = self._controller.where
        if not self._controller.identify.namespace_management:
            raise Unsupported(f"{where}: the controller does not manage namespaces (OACS)")
        return where

    async def _send(self, command: bytes, raw: bytearray) -> int:
        with await self._controller.dma.allocate_wait(len(raw)) as buffer:
            buffer.view[:] = raw
            return await self._controller.admin.submit(command, buffer.iova, len(raw), (buffer,))

    def _forget(self, nsid: int, reason: str) -> None:
        namespace = self._controller.opened.pop(nsid, None)
        if namespace is not None:
            namespace.lose(reason)
