"""An open VFIO device, whichever way it was opened: BAR 0, configuration space, interrupts.

Registers are read and written in the mapped part of BAR 0 by single instructions (core/bar.h), and
by read(2) and write(2) on the descriptor where the kernel does not let it be mapped (a page with
the MSI-X table, pages larger than the BAR).

close() gives the device back to the kernel at once, even while others still have the address of a
doorbell: all-ones take the place of the registers.

Below: the kernel. Above: vfio.py.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from .._core import ffi, lib
from ..errors import TransportError
from . import Doorbells
from . import vfio_abi as abi
from .vfio_kernel import Kernel, explained

_log = logging.getLogger("nvmefs.driver")

_DOORBELLS = 0x1000
_COMMAND = 0x04
_COMMAND_MEMORY, _COMMAND_MASTER, _COMMAND_NO_INTX = 1 << 1, 1 << 2, 1 << 10
_ABSENT_16 = 0xFFFF
_DATA_EVENTFD = abi.IRQ_SET_DATA_EVENTFD | abi.IRQ_SET_ACTION_TRIGGER
_DATA_NONE = abi.IRQ_SET_DATA_NONE | abi.IRQ_SET_ACTION_TRIGGER


@dataclass(frozen=True)
class Region:
    """A region of the device: where it is on the descriptor, and what of it can be mapped."""

    offset: int
    size: int
    areas: tuple[tuple[int, int], ...]
    """(first byte, bytes), from the region's start."""


@dataclass(frozen=True)
class Mapping:
    """A mapped part of BAR 0."""

    first: int
    nbytes: int
    address: int


def parse_region(answer: bytes, where: str) -> Region:
    """The answer to DEVICE_GET_REGION_INFO. Raises TransportError when its parts do not fit."""
    info = abi.RegionInfo.from_buffer_copy(answer)
    areas: list[tuple[int, int]] = []
    if info.flags & abi.REGION_INFO_FLAG_MMAP:
        areas = [(0, int(info.size))]
        if info.flags & abi.REGION_INFO_FLAG_CAPS:
            for identity, at in abi.capabilities(answer, info.cap_offset, where):
                if identity == abi.REGION_INFO_CAP_SPARSE_MMAP:
                    areas = abi.pairs(answer, at, where)
    for first, nbytes in areas:
        if first + nbytes > info.size:
            raise TransportError(
                f"{where}: region {info.index} has {info.size} bytes, and the kernel wants "
                f"{nbytes} of it mapped from {first} on"
            )
    return Region(int(info.offset), int(info.size), tuple(areas))


class VfioDevice:
    """The device behind one descriptor, which it owns. Raises TransportError."""

    def __init__(self, kernel: Kernel, fd: int, where: str) -> None:
        self.where = where
        self._kernel = kernel
        self._fd = fd
        self._lock = threading.Lock()  # the descriptor must not be closed under a call
        self._enabled: set[int] = set()
        self._mappings: list[Mapping] = []
        self._kept: list[object] = []
        self._check_kind()
        self._config = self._region(abi.PCI_CONFIG_REGION_INDEX)
        self.bar = self._region(abi.PCI_BAR0_REGION_INDEX)
        if self.bar.size < _DOORBELLS + 8:
            raise TransportError(
                f"{where}: BAR 0 has {self.bar.size} bytes: an NVMe controller has at least "
                f"{_DOORBELLS + 8}"
            )
        self._map_bar()
        self.interrupt_index, self.interrupt_count = self._find_interrupts()

    def _check_kind(self) -> None:
        info = abi.DeviceInfo(ctypes.sizeof(abi.DeviceInfo), 0, 0, 0)
        with explained(self.where, "VFIO does not tell what the device is"):
            self._kernel.ioctl(self._fd, abi.DEVICE_GET_INFO, info)
        if not info.flags & abi.DEVICE_FLAGS_PCI:
            raise TransportError(f"{self.where}: VFIO says that this is no PCI device")

    def _region(self, index: int) -> Region:
        wanted = abi.RegionInfo(0, 0, index)
        with explained(self.where, f"VFIO does not tell of region {index}"):
            answer = self._kernel.info(self._fd, abi.DEVICE_GET_REGION_INFO, wanted, self.where)
        return parse_region(answer, self.where)

    # ---- registers -------------------------------------------------------------------------------

    def _map_bar(self) -> None:
        """Maps what can be mapped, in whole pages; the rest is reached by the descriptor."""
        page = mmap.PAGESIZE
        for first, nbytes in self.bar.areas:
            if first % page or nbytes % page or not nbytes:
                continue
            address = lib.nv_bar_map(self._fd, self.bar.offset + first, nbytes)
            if not address:
                _log.warning(
                    "%s: BAR 0 cannot be mapped at %#x (%s): its registers take a system call",
                    self.where,
                    first,
                    os.strerror(ffi.errno),
                )
                continue
            # Unmapped when nobody can have the address any more, not before: see close().
            self._kept.append(
                ffi.gc(
                    ffi.cast("char *", address),
                    lambda _at, address=address, nbytes=nbytes: lib.nv_bar_unmap(address, nbytes),
                )
            )
            self._mappings.append(Mapping(first, nbytes, address))

    @property
    def doorbells(self) -> Doorbells | None:
        """The mapped doorbell registers, None if they are not."""
        for part in self._mappings:
            if part.first <= _DOORBELLS < part.first + part.nbytes:
                skipped = _DOORBELLS - part.first
                return Doorbells(part.address + skipped, part.nbytes - skipped)
        return None

    def _address(self, offset: int, nbytes: int) -> int:
        """Where a register is mapped, 0 if it is not. Raises TransportError: there is none."""
        if offset % 4 or not 0 <= offset <= self.bar.size - nbytes:
            raise TransportError(f"{self.where}: BAR 0 has no register of {nbytes} at {offset:#x}")
        for part in self._mappings:
            if part.first <= offset and offset + nbytes <= part.first + part.nbytes:
                return part.address + offset - part.first
        return 0

    def read32(self, offset: int) -> int:
        """All-ones when there is no device any more. Raises TransportError."""
        address = self._address(offset, 4)
        return int(lib.nv_read32(address)) if address else self._read(offset)

    def read64(self, offset: int) -> int:
        """As two halves, the lower one first."""
        address = self._address(offset, 8)
        if address:
            return int(lib.nv_read64(address))
        low = self._read(offset)
        return low | self._read(offset + 4) << 32

    def write32(self, offset: int, value: int) -> None:
        """Nothing happens when there is no device any more. Raises TransportError."""
        address = self._address(offset, 4)
        if address:
            lib.nv_write32(address, value)
        else:
            self._write(offset, value)

    def write64(self, offset: int, value: int) -> None:
        """As two halves, the lower one first."""
        address = self._address(offset, 8)
        if address:
            lib.nv_write64(address, value)
        else:
            self._write(offset, value & 0xFFFFFFFF)
            self._write(offset + 4, value >> 32)

    def _read(self, offset: int) -> int:
        with self._lock, explained(self.where, f"register {offset:#x} cannot be read"):
            if self._fd < 0:
                return 0xFFFFFFFF
            return int.from_bytes(os.pread(self._fd, 4, self.bar.offset + offset), "little")

    def _write(self, offset: int, value: int) -> None:
        with self._lock, explained(self.where, f"register {offset:#x} cannot be written"):
            if self._fd >= 0:
                os.pwrite(self._fd, value.to_bytes(4, "little"), self.bar.offset + offset)

    # ---- configuration space ---------------------------------------------------------------------

    def enable(self) -> None:
        """Memory decoding and bus mastering on, the legacy interrupt off (PCI command register).

        Raises TransportError when the device does not take it, or is not there.
        """
        wanted = _COMMAND_MEMORY | _COMMAND_MASTER | _COMMAND_NO_INTX
        at = self._config.offset + _COMMAND
        with self._lock, explained(self.where, "its PCI command register cannot be set"):
            before = int.from_bytes(os.pread(self._fd, 2, at), "little")
            os.pwrite(self._fd, (before | wanted).to_bytes(2, "little"), at)
            after = int.from_bytes(os.pread(self._fd, 2, at), "little")
        if before == _ABSENT_16 or after & wanted != wanted:
            raise TransportError(
                f"{self.where}: its PCI command register reads {after:#06x} after {wanted:#06x} "
                "was set: the device does not answer; power-cycle it"
            )

    # ---- interrupts ------------------------------------------------------------------------------

    def _find_interrupts(self) -> tuple[int, int]:
        """(index, vectors) of MSI-X, else MSI; no vectors where the device has neither.

        A pin interrupt, masked by the kernel each time and unmasked by a system call, would be
        slower than looking; every PCI Express device has one of the other two.
        """
        for index in (abi.PCI_MSIX_IRQ_INDEX, abi.PCI_MSI_IRQ_INDEX):
            count = self.interrupts(index)
            if count:
                return index, count
        return abi.PCI_MSIX_IRQ_INDEX, 0

    def interrupts(self, index: int) -> int:
        """How many interrupts of that kind can signal an eventfd; 0 for a kind it has not.

        Raises TransportError.
        """
        info = abi.IrqInfo(ctypes.sizeof(abi.IrqInfo), 0, index, 0)
        try:
            self._kernel.ioctl(self._fd, abi.DEVICE_GET_IRQ_INFO, info)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0  # ERR on a bus without error reporting
            raise TransportError(
                f"{self.where}: VFIO does not tell of interrupts {index}: {error.strerror}"
            ) from error
        return int(info.count) if info.flags & abi.IRQ_INFO_EVENTFD else 0

    def signal(self, index: int, eventfds: Sequence[int]) -> int:
        """Interrupt i of that kind signals eventfds[i], -1: nothing. Returns how many there can
        be: fewer than asked for means that none was enabled. Raises OSError.
        """
        count = len(eventfds)
        fds = struct.pack(f"<{count}i", *eventfds)
        head = abi.IrqSet(ctypes.sizeof(abi.IrqSet) + len(fds), _DATA_EVENTFD, index, 0, count)
        with self._lock:
            granted = self._kernel.ioctl(
                self._fd, abi.DEVICE_SET_IRQS, bytearray(bytes(head) + fds)
            )
            if not granted:
                self._enabled.add(index)
        return granted or count

    def vector_cpus(self, vector: int) -> set[int]:
        """The CPUs that its interrupts go to, as the kernel tells; empty where it does not."""
        kind = "msix" if self.interrupt_index == abi.PCI_MSIX_IRQ_INDEX else "msi"
        name = f"vfio-{kind}[{vector}]({self.where})"
        for interrupt in (self._kernel.machine.proc / "irq").glob("[0-9]*"):
            if (interrupt / name).is_dir():
                return _cpus((interrupt / "effective_affinity_list").read_text(encoding="ascii"))
        return set()

    def silence(self, index: int) -> None:
        """No interrupt of that kind signals anything any more. Raises OSError."""
        with self._lock:
            self._silence(index)

    def _silence(self, index: int) -> None:
        if index in self._enabled and self._fd >= 0:
            head = abi.IrqSet(ctypes.sizeof(abi.IrqSet), _DATA_NONE, index, 0, 0)
            self._kernel.ioctl(self._fd, abi.DEVICE_SET_IRQS, head)
        self._enabled.discard(index)

    # ---- end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """The kernel resets the device and has it back. Idempotent; any thread."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            for part in self._mappings:
                reason = lib.nv_bar_detach(part.address, part.nbytes)
                if reason:  # no memory for a page: the mapping, and the device with it, stays
                    _log.error("%s: BAR 0 stays mapped: %s", self.where, os.strerror(reason))
            os.close(fd)


def _cpus(text: str) -> set[int]:
    """A list of the kernel's, as "0-3,8". Raises ValueError."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
