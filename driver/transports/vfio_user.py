"""Transport to an NVMe controller in another process, over vfio-user (a UNIX socket).

    transport = open_vfio_user("/run/x/cntrl")

Registers are a message each. Doorbells are mapped where the server lets them be; else the driver
uses shadow doorbells, or messages. DMA memory is passed as file descriptors, interrupts are
eventfds: no message is on the way of a command.

What a server may be like is in docs/driver.md; the descriptor that tells of its end is `lost_fd`.

Below: driver.vfio_user. Above: driver.controller, which sees a Transport like any other.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import stat
from collections.abc import Iterator, Sequence

from .._core import ffi, lib
from ..errors import TransportError
from ..vfio_user import config_space as pci
from ..vfio_user import messages as m
from ..vfio_user.channel import Message
from ..vfio_user.client import Refused, Session
from ..vfio_user.messages import Command, ProtocolError
from . import Doorbells

__all__ = ["VfioUserTransport", "open_vfio_user"]

_log = logging.getLogger("nvmefs.driver")

_DOORBELLS = 0x1000
_MOST_DOORBELL_BYTES = 1 << 20
_MOST_REPLY_BYTES = 1 << 16
_FIRST_ARGSZ = 256
_FDS_PER_MESSAGE = 8  # more are refused by some servers that promise more
_MOST_VECTORS = 2048
_DISABLE = m.IRQ_DATA_NONE | m.IRQ_TRIGGER
_ASSIGN = m.IRQ_DATA_EVENTFD | m.IRQ_TRIGGER


def open_vfio_user(path: str, *, address: str | None = None) -> VfioUserTransport:
    """Connects to a server and looks at what it serves. `address`: what messages call it.

    Raises TransportError (no server, no vfio-user, no NVMe controller), DeviceBusy (it serves
    another client).
    """
    return VfioUserTransport(path, address or f"vfio-user:{path}")


class _Regions:
    """What was mapped: by IOVA, with a descriptor of our own for a server that asks by message."""

    def __init__(self) -> None:
        self._regions: dict[int, tuple[int, int, int]] = {}  # IOVA -> fd, offset, length

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, iova: int, fd: int, offset: int, length: int) -> None:
        self._regions[iova] = (os.dup(fd), offset, length)

    def remove(self, iova: int) -> None:
        fd, _, _ = self._regions.pop(iova, (-1, 0, 0))
        if fd >= 0:
            os.close(fd)

    def clear(self) -> None:
        for iova in list(self._regions):
            self.remove(iova)

    def _find(self, address: int, count: int) -> tuple[int, int]:
        for iova, (fd, offset, length) in self._regions.items():
            if iova <= address and address + count <= iova + length:
                return fd, offset + address - iova
        raise KeyError(address)

    def load(self, address: int, count: int) -> bytes:
        fd, offset = self._find(address, count)
        return os.pread(fd, count, offset)

    def store(self, address: int, data: bytes) -> None:
        fd, offset = self._find(address, len(data))
        os.pwrite(fd, data, offset)


class VfioUserTransport:
    """A controller behind a vfio-user socket. Its methods may be called from any thread."""

    name = "vfio-user"
    # The server translates as we say: any address does. Page zero stays out, as elsewhere.
    iova_ranges: Sequence[tuple[int, int]] = ((0x10000, (1 << 48) - 1),)

    def __init__(self, path: str, address: str) -> None:
        self.address = address
        self.doorbells: Doorbells | None = None
        self._kept: object = None
        self._kick_fd = -1
        self._regions = _Regions()
        self._session = Session(path, address, self._regions)
        try:
            with self._parsing():
                self._check_device()
                self._check_class()
                self._msix = self._find_msix()
                self._look_at_bar()
                self.vectors = self._count_vectors()
                bits = pci.MEMORY_SPACE | pci.BUS_MASTER | pci.INTX_DISABLE
                self._set_config(pci.COMMAND, bits, 0)
        except BaseException:
            self.close()
            raise

    @property
    def lost_fd(self) -> int:
        """Readable from the moment when the server is gone (or has sent a command of its own)."""
        return self._session.lost_fd

    @contextlib.contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            raise TransportError(
                f"{self.address}: {self._session.server} breaks the protocol: {error}"
            ) from error

    def _ask(self, command: Command, payload: bytes, fds: Sequence[int] = ()) -> bytes:
        """A request whose reply brings no descriptors."""
        message = self._session.request(command, payload, fds)
        message.close()
        return message.payload

    # ---- what it is ----------------------------------------------------------------------------

    def _check_device(self) -> None:
        raw = self._ask(Command.GET_INFO, m.DeviceInfo(m.DeviceInfo.SIZE).pack())
        info = m.DeviceInfo.parse(raw)
        if (
            not info.flags & m.DEVICE_PCI
            or info.regions <= m.REGION_CONFIG
            or info.irqs <= m.IRQ_MSIX
        ):
            raise TransportError(
                f"{self.address}: {self._session.server} serves no PCI device "
                f"(flags {info.flags:#x}, {info.regions} regions): give the socket of a controller"
            )

    def _check_class(self) -> None:
        found = self._read(m.REGION_CONFIG, 8, 4) >> 8
        if found != pci.CLASS_NVME:
            raise TransportError(
                f"{self.address}: {self._session.server} serves a PCI device of class "
                f"{found:06x}: an NVMe controller has {pci.CLASS_NVME:06x}"
            )

    def _find_msix(self) -> int:
        """Where the MSI-X capability is, 0 if there is none."""
        at = self._read(m.REGION_CONFIG, pci.CAPABILITIES, 1) & 0xFC
        for _ in range(48):  # as many as fit: a loop in the list must not be one here
            if not at:
                break
            head = self._read(m.REGION_CONFIG, at, 2)
            if head & 0xFF == pci.CAP_MSIX:
                return at
            at = head >> 8 & 0xFC
        return 0

    def _count_vectors(self) -> int:
        request = m.IrqInfo(m.IrqInfo.SIZE, 0, m.IRQ_MSIX)
        info = m.IrqInfo.parse(self._ask(Command.GET_IRQ_INFO, request.pack()))
        usable = self._msix and info.flags & m.IRQ_EVENTFD
        return min(info.count, _MOST_VECTORS) if usable else 0

    def _look_at_bar(self) -> None:
        message = self._information(Command.GET_REGION_INFO, m.RegionInfo)
        try:
            info, areas = m.parse_region_info(message.payload)
            self._bar_bytes = info.size
            if info.size < _DOORBELLS + 8:
                raise TransportError(
                    f"{self.address}: BAR0 of {info.size} bytes has no room for doorbells: "
                    "this is no NVMe controller"
                )
            if not info.flags & m.REGION_MMAP or not message.fds:
                return
            whole = [m.SparseArea(0, info.size)]
            for area in whole if areas is None else areas:
                if area.offset <= _DOORBELLS < min(area.offset + area.size, info.size):
                    end = min(area.offset + area.size, info.size)
                    self._map_doorbells(message.fds[0], info.offset + _DOORBELLS, end - _DOORBELLS)
                    break
        finally:
            message.close()

    def _information(
        self, command: Command, kind: type[m.RegionInfo] | type[m.RegionIoFds]
    ) -> Message:
        """A reply about BAR0, asked for again with as much room as it wants. To be closed."""
        argsz = _FIRST_ARGSZ
        while True:
            request = kind(argsz, 0, m.REGION_BAR0)
            message = self._session.request(command, request.pack())
            wanted = int.from_bytes(message.payload[:4], "little")
            if wanted <= argsz:
                return message
            message.close()
            if wanted > _MOST_REPLY_BYTES:
                raise ProtocolError(f"{command.name} wants to reply with {wanted} bytes")
            argsz = wanted

    def _map_doorbells(self, fd: int, offset: int, nbytes: int) -> None:
        """Maps what the server offers, if it is there; else doorbells are messages."""
        nbytes = min(nbytes, _MOST_DOORBELL_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
        status = os.fstat(fd)
        short = stat.S_ISREG(status.st_mode) and status.st_size < offset + nbytes
        if not nbytes or offset % mmap.PAGESIZE or short:
            _log.warning("%s: its doorbells cannot be mapped: they are not there", self.address)
            return
        place = lib.nv_bar_map(fd, offset, nbytes)
        if not place:
            reason = os.strerror(ffi.errno)
            _log.warning("%s: its doorbells cannot be mapped: %s", self.address, reason)
            return
        # Unmapped when nobody can have the address any more: a thread may still ring.
        pointer = ffi.cast("char *", place)
        self._kept = ffi.gc(pointer, lambda _place: lib.nv_bar_unmap(place, nbytes))
        covered = self._find_kick(nbytes)
        self.doorbells = Doorbells(place, covered, self._kick_fd)

    def _find_kick(self, nbytes: int) -> int:
        """Takes the eventfd that announces all doorbells, if there is one; returns how many bytes
        of them can be stored to: with an eventfd, those that it is for.
        """
        try:
            message = self._information(Command.GET_REGION_IO_FDS, m.RegionIoFds)
        except Refused:
            return nbytes
        try:
            entries = m.parse_io_fds(message.payload, len(message.fds))
            covered = _DOORBELLS
            for entry in sorted(entries, key=lambda entry: entry.offset):
                plain = entry.type == m.IO_FD_EVENTFD and not entry.flags
                if not plain or entry.fd_index or entry.offset != covered or entry.size % 4:
                    return nbytes  # more than one, or a part of the values: looking has to do
                covered += entry.size
            if covered > _DOORBELLS:
                self._kick_fd = message.take_fds()[0] if len(message.fds) == 1 else -1
                return min(covered - _DOORBELLS, nbytes)
            return nbytes
        finally:
            message.close()

    # ---- registers -----------------------------------------------------------------------------

    def _read(self, region: int, offset: int, count: int) -> int:
        request = m.RegionAccess(offset, region, count)
        raw = self._ask(Command.REGION_READ, request.pack())
        reply = m.RegionAccess.parse(raw)
        data = m.parse_data(raw, reply)
        if len(data) != count:
            raise ProtocolError(f"{len(data)} bytes of a register of {count}")
        return int.from_bytes(data, "little")

    def _write(self, region: int, offset: int, value: int, count: int) -> None:
        request = m.RegionAccess(offset, region, count)
        data = value.to_bytes(count, "little")
        self._ask(Command.REGION_WRITE, request.pack() + data)

    def _set_config(self, offset: int, on: int, off: int) -> None:
        value = self._read(m.REGION_CONFIG, offset, 2)
        self._write(m.REGION_CONFIG, offset, (value | on) & ~off, 2)

    def read32(self, offset: int) -> int:
        """32-bit register at BAR0 + offset."""
        with self._parsing():
            return self._read(m.REGION_BAR0, offset, 4)

    def read64(self, offset: int) -> int:
        """64-bit register at BAR0 + offset."""
        with self._parsing():
            return self._read(m.REGION_BAR0, offset, 8)

    def write32(self, offset: int, value: int) -> None:
        """Writes a 32-bit register; returns when the server has taken it."""
        self._write(m.REGION_BAR0, offset, value, 4)

    def write64(self, offset: int, value: int) -> None:
        """Writes a 64-bit register."""
        self._write(m.REGION_BAR0, offset, value, 8)

    # ---- memory --------------------------------------------------------------------------------

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Makes [offset, offset + length) of `fd` DMA memory at `iova`; all page aligned."""
        if len(self._regions) >= self._session.max_maps:
            raise TransportError(
                f"{self.address}: it takes {self._session.max_maps} DMA regions and has them: "
                "lower dma_bytes"
            )
        if offset + length > os.fstat(fd).st_size:  # there are servers that do not survive it
            raise TransportError(
                f"{self.address}: {length} bytes at {offset} are beyond the end of the memory"
            )
        flags = m.DMA_READABLE | m.DMA_WRITEABLE
        request = m.DmaMap(m.DmaMap.SIZE, flags, offset, iova, length)
        self._ask(Command.DMA_MAP, request.pack(), (fd,))
        self._regions.add(iova, fd, offset, length)

    def unmap(self, iova: int, length: int) -> None:
        """Takes one region back, exactly as it was mapped; the server is out of it on return."""
        self._ask(Command.DMA_UNMAP, m.DmaUnmap(m.DmaUnmap.SIZE, 0, iova, length).pack())
        self._regions.remove(iova)

    # ---- interrupts ----------------------------------------------------------------------------

    def enable_interrupts(self, eventfds: Sequence[int]) -> None:
        """Vector i signals eventfds[i] from now on; some messages, as each takes few of them."""
        if len(eventfds) > self.vectors:
            raise TransportError(f"{self.address}: {len(eventfds)} of {self.vectors} vectors")
        step = min(self._session.max_fds, _FDS_PER_MESSAGE)
        for start in range(0, len(eventfds), step):
            part = list(eventfds[start : start + step])
            request = m.IrqSet(m.IrqSet.SIZE, _ASSIGN, m.IRQ_MSIX, start, len(part))
            self._ask(Command.SET_IRQS, request.pack(), part)
        if eventfds:
            with self._parsing():
                self._set_config(self._msix + 2, pci.MSIX_ENABLE, 0)

    def disable_interrupts(self) -> None:
        """No vector signals anything any more."""
        if not self.vectors:
            return
        request = m.IrqSet(m.IrqSet.SIZE, _DISABLE, m.IRQ_MSIX, 0, 0)
        self._ask(Command.SET_IRQS, request.pack())
        with self._parsing():
            self._set_config(self._msix + 2, 0, pci.MSIX_ENABLE)

    def close(self) -> None:
        """Ends the connection: the server takes memory and interrupts back. Idempotent."""
        self._session.close()
        self._regions.clear()
        if self._kick_fd >= 0:
            os.close(self._kick_fd)
            self._kick_fd = -1
