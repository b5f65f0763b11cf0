"""The handshakes over the controller's registers: disable, enable, shut down.

Each wait polls CSTS at growing intervals, because no interrupt announces these changes, and is
bounded by what the controller names (CAP.TO, CRTO, RTD3E). All-ones from a register means that
there is no controller any more.

NVM Express base specification 2.0, sections 3.1.3, 3.5 (initialization) and 3.6 (shutdown).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from . import registers as reg
from .errors import ControllerError, ControllerFailed, ControllerGone

if TYPE_CHECKING:
    from .queues import QueuePair
    from .transports import Transport

_FIRST_NAP_S = 50e-6
_LONGEST_NAP_S = 0.01
MAX_PAGE_BYTES = 65536


class Hardware:
    """The register side of one controller."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.where = transport.address
        raw = transport.read64(reg.CAP)
        if raw == reg.ALL_ONES_64:
            raise self._gone()
        self.capabilities = reg.Capabilities.parse(raw)
        self.version = transport.read32(reg.VS)
        self.page_bytes = self.capabilities.min_page_bytes
        self.enabled = False
        self._check()

    def _check(self) -> None:
        cap = self.capabilities
        if cap.raw == 0:
            raise ControllerError(f"{self.where}: CAP reads 0: this is not an NVMe controller")
        if cap.min_page_bytes > MAX_PAGE_BYTES or cap.min_page_bytes > cap.max_page_bytes:
            raise ControllerError(
                f"{self.where}: CAP.MPSMIN is {cap.min_page_bytes} bytes and MPSMAX "
                f"{cap.max_page_bytes}: pages from 4096 to {MAX_PAGE_BYTES} are supported"
            )
        if cap.max_queue_entries < 2:
            raise ControllerError(f"{self.where}: CAP.MQES allows 1 entry: a queue needs 2")
        # Bit 7 ("no I/O command set") is not looked at: QEMU sets it beside the others.
        if not (cap.nvm_command_set or cap.all_command_sets):
            raise ControllerError(
                f"{self.where}: CAP.CSS is {cap.raw >> 37 & 0xFF:#04x}: this controller does not "
                "offer the NVM command set"
            )

    def _gone(self) -> ControllerGone:
        return ControllerGone(
            f"{self.where}: registers read all-ones: the controller is gone (unplugged, off)"
        )

    def status(self) -> int:
        """CSTS. Raises ControllerGone on all-ones."""
        csts = self.transport.read32(reg.CSTS)
        if csts == reg.ALL_ONES_32:
            raise self._gone()
        return csts

    def check_alive(self) -> None:
        """Raises ControllerGone, or ControllerFailed when the controller says that it failed."""
        if self.status() & reg.CSTS_CFS:
            raise ControllerFailed(
                f"{self.where}: CSTS.CFS is set: the controller reports a fatal error; reset it"
            )

    async def watch_loss(self, lost_fd: int) -> None:
        """Returns never, or raises ControllerGone as soon as the transport has lost it.

        Less may have come, such as a question of a vfio-user server: then the look answers it.
        """
        while True:
            await trio.lowlevel.wait_readable(lost_fd)
            self.check_alive()

    def sound(self) -> bool:
        """Whether it reports no fatal error. Raises ControllerGone."""
        return not self.status() & reg.CSTS_CFS

    @property
    def ready_timeout_ms(self) -> int:
        """The longest that RDY may take to follow EN."""
        timeout_ms = self.capabilities.timeout_ms
        if self.capabilities.ready_timeouts:
            timeout_ms = max(timeout_ms, (self.transport.read32(reg.CRTO) & 0xFFFF) * 500)
        return timeout_ms

    async def _until(self, mask: int, value: int, timeout_ms: float, what: str) -> bool:
        """Waits for CSTS & mask == value. False when the time is over."""
        nap_s = _FIRST_NAP_S
        end = trio.current_time() + timeout_ms / 1000
        while True:
            csts = self.status()
            if csts & mask == value:
                return True
            if csts & reg.CSTS_CFS and value & reg.CSTS_RDY:
                raise ControllerError(f"{self.where}: CSTS.CFS came up during {what}: fatal error")
            if trio.current_time() >= end:
                return False
            await trio.sleep(nap_s)
            nap_s = min(nap_s * 1.5, _LONGEST_NAP_S)

    async def disable(self) -> None:
        """CC.EN = 0 and CSTS.RDY = 0: afterwards the controller touches no memory.

        Raises ControllerError when it does not follow within CAP.TO.
        """
        self.enabled = False
        timeout_ms = self.ready_timeout_ms
        cc, csts = self.transport.read32(reg.CC), self.status()
        if cc & reg.CC_EN:
            if not csts & (reg.CSTS_RDY | reg.CSTS_CFS):
                # Caught while it is starting: EN may be cleared only after RDY has come.
                await self._until(reg.CSTS_RDY, reg.CSTS_RDY, timeout_ms, "an earlier enable")
            self.transport.write32(reg.CC, cc & ~reg.CC_EN & ~reg.CC_SHN_MASK)
        if not await self._until(reg.CSTS_RDY, 0, timeout_ms, "disable"):
            raise ControllerError(
                f"{self.where}: CSTS.RDY stays 1 after CC.EN = 0 for {timeout_ms} ms (CAP.TO): "
                "the controller does not stop; power-cycle it"
            )

    async def enable(self, admin: QueuePair) -> None:
        """Programs the admin queue and sets CC.EN. Raises ControllerError when RDY does not
        come.
        """
        entries = admin.depth - 1
        self.transport.write32(reg.AQA, entries << 16 | entries)
        self.transport.write64(reg.ASQ, admin.sq_iova)
        self.transport.write64(reg.ACQ, admin.cq_iova)
        css = reg.CC_CSS_NVM if self.capabilities.nvm_command_set else reg.CC_CSS_ALL
        mps = self.page_bytes.bit_length() - 13
        cc = reg.CC_IOSQES | reg.CC_IOCQES | css | mps << 7
        self.transport.write32(reg.CC, cc)
        self.transport.write32(reg.CC, cc | reg.CC_EN)
        timeout_ms = self.ready_timeout_ms
        if not await self._until(reg.CSTS_RDY, reg.CSTS_RDY, timeout_ms, "enable"):
            raise ControllerError(
                f"{self.where}: CSTS.RDY stays 0 after CC.EN = 1 for {timeout_ms} ms (CAP.TO): "
                "the controller does not start"
            )
        self.enabled = True

    async def shutdown(self, timeout_ms: float, *, abrupt: bool = False) -> bool:
        """CC.SHN, and CSTS.SHST until it says complete. False when it does not in time."""
        cc = self.transport.read32(reg.CC) & ~reg.CC_SHN_MASK
        self.transport.write32(reg.CC, cc | (reg.CC_SHN_ABRUPT if abrupt else reg.CC_SHN_NORMAL))
        return await self._until(reg.CSTS_SHST_MASK, reg.CSTS_SHST_COMPLETE, timeout_ms, "shutdown")
