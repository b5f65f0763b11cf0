"""VFIO by container and group: /dev/vfio/vfio and /dev/vfio/N, for kernels without iommufd.

    group viable? -> into the container -> the container gets its IOMMU -> device descriptor,
    IOVA ranges, map and unmap (type1v2)

Without an IOMMU (vfio_noiommu.py) the way to the device is the same, but there is nothing to map.

Below: the kernel. Above: vfio.py, vfio_noiommu.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ..errors import DeviceBusy, TransportError
from ..pci.sysfs import PciFunction
from . import vfio_abi as abi
from .vfio_kernel import UNSAFE_INTERRUPTS, Kernel, explained, not_viable
from .vfio_space import MappedSpace, usable_ranges


class Group:
    """An open group inside a container of its own: descriptors, and what both can be asked."""

    def __init__(self, kernel: Kernel, function: PciFunction, node: Path, where: str) -> None:
        self._kernel = kernel
        self._where = where
        self._fds: list[int] = []
        self.container = self._open(kernel.machine.dev / "vfio/vfio")
        try:
            self._check_version()
            self.group = self._open(node)
            self._check_viable(function)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> int:
        fd = self._kernel.open_node(path, self._where)
        self._fds.append(fd)
        return fd

    def _check_version(self) -> None:
        with explained(self._where, "/dev/vfio/vfio does not tell its version"):
            version = self._kernel.ioctl(self.container, abi.GET_API_VERSION)
        if version != abi.API_VERSION:
            raise TransportError(
                f"{self._where}: the kernel speaks version {version} of VFIO, "
                f"{abi.API_VERSION} is needed"
            )

    def _check_viable(self, function: PciFunction) -> None:
        status = abi.GroupStatus(ctypes.sizeof(abi.GroupStatus), 0)
        with explained(self._where, "its group does not tell its status"):
            self._kernel.ioctl(self.group, abi.GROUP_GET_STATUS, status)
        if status.flags & abi.GROUP_FLAGS_VIABLE:
            return
        raise TransportError(f"{self._where}: {not_viable(function)}")

    def open_device(self, bdf: str, iommu_type: int) -> int:
        """Gives the container its IOMMU; the device's descriptor. Raises TransportError."""
        kernel, where = self._kernel, self._where
        kind = "no-IOMMU mode" if iommu_type == abi.NOIOMMU_IOMMU else "a type1 (v2) IOMMU"
        with explained(where, f"VFIO does not tell whether it offers {kind}"):
            offered = kernel.ioctl(self.container, abi.CHECK_EXTENSION, iommu_type)
        if not offered:
            raise TransportError(
                f"{where}: this kernel's VFIO does not offer {kind}: modprobe vfio_iommu_type1"
            )
        with explained(where, "its group does not enter a container"):
            fd = bytearray(self.container.to_bytes(4, "little", signed=True))
            kernel.ioctl(self.group, abi.GROUP_SET_CONTAINER, fd)
        cures = {
            errno.EPERM: UNSAFE_INTERRUPTS
            + "echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        }
        with explained(where, "its IOMMU cannot be used", cures):
            kernel.ioctl(self.container, abi.SET_IOMMU, iommu_type)
        try:
            return kernel.ioctl(
                self.group, abi.GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0")
            )
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceBusy(f"{where}: the device is open already") from error
            raise TransportError(f"{where}: cannot open the device: {error.strerror}") from error

    def close(self) -> None:
        """After the device has been closed. Idempotent."""
        for fd in reversed(self._fds):
            os.close(fd)
        self._fds.clear()


class ContainerSpace(MappedSpace):
    """The container's IOMMU, type1v2."""

    way = "group"

    def __init__(self, kernel: Kernel, group: Group, where: str) -> None:
        super().__init__(kernel.machine, where)
        self._kernel = kernel
        self._group = group

    def learn(self) -> None:
        """IOVA ranges and the number of mappings. Raises TransportError."""
        with explained(self.where, "its IOMMU does not tell what it can do"):
            answer = self._kernel.info(
                self._group.container, abi.IOMMU_GET_INFO, abi.Type1Info(), self.where
            )
        self.iova_ranges, available = type1_limits(answer, self.where)
        self.limit_text = (
            f"{available} mappings are allowed: raise dma_entry_limit of vfio_iommu_type1"
        )

    def _map(self, address: int, length: int, iova: int) -> None:
        flags = abi.DMA_MAP_FLAG_READ | abi.DMA_MAP_FLAG_WRITE
        request = abi.DmaMap(ctypes.sizeof(abi.DmaMap), flags, address, iova, length)
        self._kernel.ioctl(self._group.container, abi.IOMMU_MAP_DMA, request)

    def _unmap(self, iova: int, length: int) -> int:
        request = abi.DmaUnmap(ctypes.sizeof(abi.DmaUnmap), 0, iova, length)
        self._kernel.ioctl(self._group.container, abi.IOMMU_UNMAP_DMA, request)
        return int(request.size)

    def _close(self) -> None:
        self._group.close()


# Kernels before 5.4 tell no ranges: below 4 GiB x86 keeps a window for interrupts.
_RANGES_BY_DEFAULT = [(4 << 30, (1 << 39) - 1)]
_DMA_ENTRIES_BY_DEFAULT = 65535


def type1_limits(answer: bytes, where: str) -> tuple[list[tuple[int, int]], int]:
    """(IOVA ranges, mappings allowed) of an answer to IOMMU_GET_INFO.

    Raises TransportError when the answer's capabilities are malformed.
    """
    info = abi.Type1Info.from_buffer_copy(answer)
    ranges, available = _RANGES_BY_DEFAULT, _DMA_ENTRIES_BY_DEFAULT
    if info.flags & abi.IOMMU_INFO_CAPS:
        for identity, at in abi.capabilities(answer, info.cap_offset, where):
            if identity == abi.TYPE1_INFO_CAP_IOVA_RANGE:
                ranges = abi.pairs(answer, at, where)
            elif identity == abi.TYPE1_INFO_DMA_AVAIL:
                available = abi.number(answer, at, where)
    return usable_ranges(ranges, where), available


def open_in_group(
    kernel: Kernel, function: PciFunction, node: Path, where: str
) -> tuple[int, ContainerSpace]:
    """(device descriptor, its address space). Raises DeviceBusy, TransportError."""
    group = Group(kernel, function, node, where)
    device_fd = -1
    try:
        space = ContainerSpace(kernel, group, where)
        device_fd = group.open_device(function.bdf, abi.TYPE1V2_IOMMU)
        space.learn()
    except BaseException:
        if device_fd >= 0:
            os.close(device_fd)
        group.close()
        raise
    return device_fd, space
