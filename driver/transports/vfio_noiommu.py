"""VFIO without an IOMMU: the device sees physical memory, all of it, and nothing checks what it does.

For machines that have no IOMMU, by the option `noiommu` alone. There is nothing to map: DMA memory
is huge pages, which the kernel neither swaps nor moves by itself, and its addresses are physical
ones (/proc/self/pagemap, for root). All of it is taken when the device is opened, so that nothing
is missing later.

Below: vfio_group.py. Above: vfio.py.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from pathlib import Path

from .._core import ffi
from ..errors import TransportError
from ..pci.sysfs import Machine, PciFunction
from . import vfio_abi as abi
from .vfio_group import Group
from .vfio_kernel import HUGE_PAGE_BYTES, Kernel, explained
from .vfio_space import AddressSpace

_log = logging.getLogger("nvmefs.driver")

_LAST_ADDRESS = (1 << 48) - 1


def check_allowed(machine: Machine, where: str) -> None:
    """Raises TransportError unless the kernel lets devices be used without an IOMMU."""
    if not machine.noiommu_allowed():
        raise TransportError(
            f"{where}: VFIO does not allow devices without an IOMMU: modprobe vfio "
            "enable_unsafe_noiommu_mode=1 (a kernel built with CONFIG_VFIO_NOIOMMU), then bind it "
            "again"
        )


class PhysicalSpace(AddressSpace):
    """Huge pages by their physical addresses. Not mapped: given out by allocate()."""

    way = "noiommu"

    def __init__(self, kernel: Kernel, group: Group, nbytes: int, where: str) -> None:
        super().__init__(where)
        self.iova_ranges = [(HUGE_PAGE_BYTES, _LAST_ADDRESS)]
        self._group = group
        self._used: dict[int, tuple[int, int]] = {}  # address -> first page, pages
        count = -(-nbytes // HUGE_PAGE_BYTES)
        cure = (
            f"{count} huge pages of 2 MiB are needed: echo {count} > "
            "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
        )
        cures = {errno.ENOMEM: cure, errno.EINVAL: cure, errno.ENOENT: cure}
        with explained(where, f"no {count * 2} MiB of huge pages", cures):
            self._fd = kernel.huge_memory(count * HUGE_PAGE_BYTES)
            try:
                self._view = mmap.mmap(self._fd, count * HUGE_PAGE_BYTES)
            except BaseException:
                os.close(self._fd)
                raise
            try:
                self._pages = self._locate(kernel, count)
            except BaseException:
                self._free_memory()
                raise
        self._free = [True] * count

    def _locate(self, kernel: Kernel, count: int) -> list[int]:
        """Touches each page, which pins it for as long as the file lives; physical addresses."""
        self._view.madvise(mmap.MADV_DONTFORK)
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(self._view)))
        offsets = range(0, count * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES)
        for offset in offsets:
            self._view[offset] = 0
        pages = kernel.physical([start + offset for offset in offsets])
        if not all(pages):
            raise TransportError(
                f"{self.where}: /proc/self/pagemap does not tell physical addresses: noiommu "
                "needs root (CAP_SYS_ADMIN)"
            )
        return pages

    @property
    def largest_bytes(self) -> int:
        """The longest stretch of free memory that is contiguous for the device."""
        return max((count for _, count in self._runs()), default=0) * HUGE_PAGE_BYTES

    def _runs(self) -> list[tuple[int, int]]:
        """(first page, pages) of each free run, contiguous in the file and in physical memory."""
        runs: list[tuple[int, int]] = []
        for i, free in enumerate(self._free):
            if not free:
                continue
            if (
                runs
                and sum(runs[-1]) == i
                and self._pages[i - 1] + HUGE_PAGE_BYTES == self._pages[i]
            ):
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((i, 1))
        return runs

    def allocate(self, nbytes: int) -> tuple[int, int, int]:
        """(fd, offset, address) of contiguous memory. Raises TransportError."""
        wanted = -(-nbytes // HUGE_PAGE_BYTES)
        fitting = sorted((count, first) for first, count in self._runs() if count >= wanted)
        if not fitting:
            raise TransportError(
                f"{self.where}: no {nbytes >> 20} MiB of contiguous physical memory: reserve huge "
                "pages right after boot (hugepages=N on the kernel's command line), or use "
                "shorter queues"
            )
        first = fitting[0][1]  # of the smallest run that is long enough
        self._free[first : first + wanted] = [False] * wanted
        address = self._pages[first]
        self._used[address] = (first, wanted)
        return self._fd, first * HUGE_PAGE_BYTES, address

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Refused: only what allocate() gives can be reached."""
        raise TransportError(
            f"{self.where}: {length} bytes at IOVA {iova:#x} cannot be mapped without an IOMMU"
        )

    def reserve(self, nbytes: int) -> None:
        """Nothing counts against RLIMIT_MEMLOCK: huge pages are not swapped in any case."""

    def unmap(self, iova: int, length: int) -> None:
        """Takes back what allocate() gave."""
        first, count = self._used.get(iova, (0, 0))
        if not count or -(-length // HUGE_PAGE_BYTES) != count:
            raise TransportError(f"{self.where}: no region of {length} bytes at {iova:#x}")
        del self._used[iova]
        self._free[first : first + count] = [True] * count

    def close(self) -> None:
        self._group.close()
        self._free_memory()

    def _free_memory(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._view.close()
            os.close(fd)


def open_without_iommu(
    kernel: Kernel, function: PciFunction, node: Path, dma_bytes: int, where: str
) -> tuple[int, PhysicalSpace]:
    """(device descriptor, memory for it). Raises DeviceBusy, TransportError."""
    group = Group(kernel, function, node, where)
    space: PhysicalSpace | None = None
    try:
        space = PhysicalSpace(kernel, group, dma_bytes, where)
        device_fd = group.open_device(function.bdf, abi.NOIOMMU_IOMMU)
    except BaseException:
        if space is not None:
            space.close()
        group.close()
        raise
    _log.warning(
        "%s: noiommu: nothing keeps the controller from reading and writing any memory of this "
        "machine; the kernel is tainted",
        where,
    )
    return device_fd, space
