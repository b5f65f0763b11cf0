"""What the controller can reach: mappings of IOVAs to our memory, the same for every way to VFIO.

An AddressSpace is made by vfio_iommufd.py, vfio_group.py or vfio_noiommu.py. To the first two a
MappedSpace leaves three things to do: map one range of virtual addresses, unmap it, close. Memory is
mapped into this process here, once for each region and until it is unmapped, because the kernel takes
virtual addresses. Pinned memory counts against RLIMIT_MEMLOCK, so the limit is looked at before the
kernel refuses.
"""

from __future__ import annotations

import errno
import mmap
import resource
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from .._core import ffi
from ..errors import TransportError
from ..pci.sysfs import Machine
from .vfio_kernel import explained

_CAP_IPC_LOCK = 14
# What every NVMe controller in use can address, and then some can address no more (AWS EBS).
_ADDRESS_BITS = 48


def usable_ranges(
    ranges: Sequence[tuple[int, int]], where: str, page_bytes: int = mmap.PAGESIZE
) -> list[tuple[int, int]]:
    """The kernel's IOVA ranges as inclusive (first, last), ascending, of whole pages, below 2^48.

    Raises TransportError when nothing is left, or a range ends before it begins.
    """
    usable = []
    for first, last in sorted(ranges):
        if first > last:
            raise TransportError(f"{where}: the kernel gives an IOVA range {first:#x}..{last:#x}")
        first = -(-first // page_bytes) * page_bytes
        last = min(last, (1 << _ADDRESS_BITS) - 1)
        last = (last + 1) // page_bytes * page_bytes - 1
        if first <= last:
            usable.append((first, last))
    if not usable:
        raise TransportError(f"{where}: the IOMMU leaves no address below 2^{_ADDRESS_BITS}")
    return usable


def _status(machine: Machine) -> Mapping[str, str]:
    text = (machine.proc / "self/status").read_text(encoding="ascii", errors="replace")
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }


def locked_bytes(machine: Machine) -> int:
    """What counts against RLIMIT_MEMLOCK already."""
    return int(_status(machine).get("VmLck", "0 kB").split()[0]) * 1024


def check_memlock(machine: Machine, needed_bytes: int, where: str) -> None:
    """Raises TransportError when this process may not lock that much memory in all.

    Processes with CAP_IPC_LOCK (root) have no limit.
    """
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or needed_bytes <= limit:
        return
    if int(_status(machine).get("CapEff", "0"), 16) >> _CAP_IPC_LOCK & 1:
        return
    raise TransportError(f"{where}: {_memlock_cure(needed_bytes, limit)}")


def _memlock_cure(needed_bytes: int, limit: int) -> str:
    needed_kib = -(-needed_bytes // 1024)
    return (
        f"DMA memory needs {needed_kib} KiB of locked memory, {limit // 1024} KiB are allowed "
        f"(RLIMIT_MEMLOCK); raise the limit: ulimit -l {needed_kib}, a memlock line in "
        f"/etc/security/limits.conf, or LimitMEMLOCK={needed_kib}K in the systemd unit"
    )


class AddressSpace(ABC):
    """What one controller can reach."""

    way: ClassVar[str]
    """How the device was opened: "iommufd", "group" or "noiommu"."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.iova_ranges: list[tuple[int, int]] = []

    @abstractmethod
    def reserve(self, nbytes: int) -> None:
        """Raises TransportError when so much can never be mapped."""

    @abstractmethod
    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Makes a part of a file DMA memory. Raises TransportError."""

    @abstractmethod
    def unmap(self, iova: int, length: int) -> None:
        """Takes one region back, exactly as it was mapped. Raises TransportError."""

    @abstractmethod
    def close(self) -> None:
        """Ends all mappings. After the device has been closed. Idempotent."""


class MappedSpace(AddressSpace):
    """Memory of this process, mapped by an IOMMU: _map, _unmap and _close are the kernel's."""

    def __init__(self, machine: Machine, where: str) -> None:
        super().__init__(where)
        self.limit_text = ""
        """What to say when the kernel has no room for another mapping."""
        self._machine = machine
        self._locked_before = locked_bytes(machine)
        self._memory: dict[int, mmap.mmap] = {}

    @abstractmethod
    def _map(self, address: int, length: int, iova: int) -> None:
        """Raises OSError."""

    @abstractmethod
    def _unmap(self, iova: int, length: int) -> int:
        """Returns the bytes that were unmapped. Raises OSError."""

    @abstractmethod
    def _close(self) -> None:
        """Idempotent."""

    def reserve(self, nbytes: int) -> None:
        """Raises TransportError when RLIMIT_MEMLOCK is too low for it."""
        check_memlock(self._machine, self._locked_before + nbytes, self.where)

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Makes a part of a file DMA memory. Raises TransportError."""
        needed = self._locked_before + sum(map(len, self._memory.values())) + length
        check_memlock(self._machine, needed, self.where)
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        what = f"cannot map {length} bytes at IOVA {iova:#x}"
        cures = {
            # Others of this user have locked memory too, or root here is none outside.
            errno.ENOMEM: _memlock_cure(needed, limit)
            if limit != resource.RLIM_INFINITY
            else "the machine has no memory left",
            errno.ENOSPC: self.limit_text,
            errno.EEXIST: "something is mapped there already",
        }
        with explained(self.where, what, cures):
            memory = mmap.mmap(fd, length, offset=offset)
            try:
                memory.madvise(mmap.MADV_DONTFORK)
                address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
                self._map(address, length, iova)
            except BaseException:
                memory.close()
                raise
        self._memory[iova] = memory

    def unmap(self, iova: int, length: int) -> None:
        """Takes one region back, exactly as it was mapped. Raises TransportError."""
        memory = self._memory.get(iova)
        if memory is None or len(memory) != length:
            raise TransportError(
                f"{self.where}: {length} bytes at IOVA {iova:#x} were never mapped as one region"
            )
        with explained(self.where, f"cannot unmap {length} bytes at IOVA {iova:#x}"):
            undone = self._unmap(iova, length)
        if undone != length:
            raise TransportError(
                f"{self.where}: {undone} of {length} bytes at IOVA {iova:#x} were unmapped"
            )
        del self._memory[iova]
        memory.close()

    def close(self) -> None:
        """Ends all mappings. After the device has been closed. Idempotent."""
        self._close()
        for memory in self._memory.values():
            memory.close()
        self._memory.clear()
