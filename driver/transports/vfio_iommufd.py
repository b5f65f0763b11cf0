"""VFIO by the device's own node and iommufd: /dev/vfio/devices/vfioN and /dev/iommu (Linux 6.6).

    bind the device to the iommufd, make an I/O address space, attach the device to it,
    ask what IOVAs it has, map and unmap

Below: the kernel. Above: vfio.py.
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

_FIRST_RANGES, _MAX_RANGES = 64, 4096


class IommufdSpace(MappedSpace):
    """An I/O address space (IOAS) of an iommufd of our own."""

    way = "iommufd"

    def __init__(self, kernel: Kernel, iommufd: int, where: str) -> None:
        super().__init__(kernel.machine, where)
        self._kernel = kernel
        self._fd = iommufd
        self._ioas = 0

    def attach(self, device_fd: int, function: PciFunction, node: Path) -> None:
        """Binds the device and learns the IOVAs. Raises DeviceBusy, TransportError."""
        bind = abi.BindIommufd(ctypes.sizeof(abi.BindIommufd), 0, self._fd, 0)
        try:
            self._kernel.ioctl(device_fd, abi.DEVICE_BIND_IOMMUFD, bind)
        except OSError as error:
            raise self._refusal(error, function, node) from error
        with explained(self.where, "cannot make an I/O address space"):
            alloc = abi.IoasAlloc(ctypes.sizeof(abi.IoasAlloc), 0, 0)
            self._kernel.ioctl(self._fd, abi.IOAS_ALLOC, alloc)
            self._ioas = int(alloc.out_ioas_id)
        cures = {
            errno.EPERM: UNSAFE_INTERRUPTS
            + "echo Y > /sys/module/iommufd/parameters/allow_unsafe_interrupts",
        }
        with explained(self.where, "cannot attach it to an I/O address space", cures):
            attach = abi.AttachIommufdPt(ctypes.sizeof(abi.AttachIommufdPt), 0, self._ioas)
            self._kernel.ioctl(device_fd, abi.DEVICE_ATTACH_IOMMUFD_PT, attach)
        self.iova_ranges = usable_ranges(self._ranges(), self.where)

    def _refusal(
        self, error: OSError, function: PciFunction, node: Path
    ) -> DeviceBusy | TransportError:
        """Why the device does not bind. EINVAL: it is open twice; EBUSY, EPERM: its group is."""
        if error.errno in (errno.EINVAL, errno.EBUSY, errno.EPERM):
            group = function.iommu_group()
            if group is not None and group.blockers():
                return TransportError(f"{self.where}: {not_viable(function)}")
            for path, ours in ((node, 1), (function.vfio_group_node(), 0)):
                if path is not None and self._kernel.holder(path, ours) is not None:
                    return DeviceBusy(f"{self.where}: {self._kernel.busy(path, ours)}")
            if error.errno == errno.EBUSY:
                return DeviceBusy(f"{self.where}: {self._kernel.busy(node, 1)}")
        return TransportError(f"{self.where}: cannot bind it to an iommufd: {error.strerror}")

    def _ranges(self) -> list[tuple[int, int]]:
        room = _FIRST_RANGES
        while True:
            ranges = (abi.IovaRange * room)()
            query = abi.IoasIovaRanges(
                ctypes.sizeof(abi.IoasIovaRanges), self._ioas, room, 0, ctypes.addressof(ranges), 0
            )
            with explained(self.where, "cannot learn its IOVA ranges"):
                try:
                    self._kernel.ioctl(self._fd, abi.IOAS_IOVA_RANGES, query)
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
            count = int(query.num_iovas)
            if count <= room:
                return [(each.start, each.last) for each in ranges[:count]]
            if count > _MAX_RANGES:
                raise TransportError(f"{self.where}: the kernel has {count} IOVA ranges")
            room = count

    def _map(self, address: int, length: int, iova: int) -> None:
        flags = abi.IOAS_MAP_FIXED_IOVA | abi.IOAS_MAP_READABLE | abi.IOAS_MAP_WRITEABLE
        request = abi.IoasMap(
            ctypes.sizeof(abi.IoasMap), flags, self._ioas, 0, address, length, iova
        )
        self._kernel.ioctl(self._fd, abi.IOAS_MAP, request)

    def _unmap(self, iova: int, length: int) -> int:
        request = abi.IoasUnmap(ctypes.sizeof(abi.IoasUnmap), self._ioas, iova, length)
        self._kernel.ioctl(self._fd, abi.IOAS_UNMAP, request)
        return int(request.length)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_cdev(
    kernel: Kernel, function: PciFunction, node: Path, iommu: Path
) -> tuple[int, IommufdSpace]:
    """(device descriptor, its address space). Raises DeviceBusy, TransportError."""
    where = function.bdf
    space = IommufdSpace(kernel, kernel.open_node(iommu, where), where)
    device_fd = -1
    try:
        device_fd = kernel.open_node(node, where)
        space.attach(device_fd, function, node)
    except BaseException:
        if device_fd >= 0:
            os.close(device_fd)
        space.close()
        raise
    return device_fd, space
