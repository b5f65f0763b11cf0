"""A kernel for the VFIO transport: nodes that are files, a device that is memory, ioctls in Python.

    kernel = FakeKernel(machine)          machine: tests.driver.pci.fake.FakeMachine
    kernel.calls                          the requests so far, by the names of vfio_abi
    kernel.fails["SET_IOMMU"] = EPERM     this request fails
    kernel.registers(0x1c, 4)             what the device has there

BAR 0 and configuration space lie on one memfd at the offsets that vfio-pci uses, so that mapping,
pread and pwrite are real. Structures are taken apart with struct, not with what is tested.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from driver.transports import vfio_abi as abi
from driver.transports.vfio_kernel import HUGE_PAGE_BYTES, Kernel
from tests.driver.pci.fake import FakeMachine

BAR_BYTES = 0x4000
CONFIG = abi.PCI_CONFIG_REGION_INDEX << 40
NAMES = {
    value: name
    for name, value in vars(abi).items()
    if name.isupper() and isinstance(value, int) and value >> 8 == ord(";")
}
MSI, MSIX, ERR, REQ = 1, 2, 3, 4
EVENTFD_FLAG = 1


def capability(identity: int, following: int, body: bytes) -> bytes:
    return struct.pack("<HHI", identity, 1, following) + body


def pairs(*entries: tuple[int, int]) -> bytes:
    return struct.pack("<II", len(entries), 0) + b"".join(struct.pack("<QQ", *e) for e in entries)


@dataclass
class FakeKernel(Kernel):
    """See the top of the file."""

    machine: FakeMachine
    vectors: dict[int, int] = field(default_factory=lambda: {MSI: 1, MSIX: 8, ERR: 1, REQ: 1})
    granted: int = 1 << 16
    ranges: list[tuple[int, int]] = field(
        default_factory=lambda: [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 57) - 1)]
    )
    viable: bool = True
    bar_flags: int = 0xF
    bar_areas: list[tuple[int, int]] | None = None
    bar_bytes: int = BAR_BYTES
    version: int = 0
    extensions: set[int] = field(default_factory=lambda: {abi.TYPE1V2_IOMMU, abi.NOIOMMU_IOMMU})
    pages: list[int] | None = None

    def __post_init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}
        self.open_fails: dict[str, int] = {}
        self.forbidden: set[Path] = set()
        self.mappings: dict[int, tuple[int, int]] = {}  # iova -> address, bytes
        self.eventfds: dict[int, list[int]] = {}
        self.unmapped_bytes: int | None = None
        self.device = os.memfd_create("device", os.MFD_CLOEXEC)
        os.ftruncate(self.device, 8 << 40)
        os.pwrite(self.device, (0x20).to_bytes(4, "little"), 0x14)
        os.pwrite(self.device, (0x10400).to_bytes(4, "little"), 8)
        os.pwrite(self.device, (0x0010).to_bytes(2, "little"), CONFIG + 4)

    def close(self) -> None:
        os.close(self.device)

    def registers(self, offset: int, nbytes: int) -> int:
        return int.from_bytes(os.pread(self.device, nbytes, offset), "little")

    def set_register(self, offset: int, value: int, nbytes: int = 4) -> None:
        os.pwrite(self.device, value.to_bytes(nbytes, "little"), offset)

    @property
    def command(self) -> int:
        return int.from_bytes(os.pread(self.device, 2, CONFIG + 4), "little")

    def notice(self, index: int) -> None:
        """The kernel signals REQ or ERR."""
        (fd,) = self.eventfds[index]
        os.eventfd_write(fd, 1)

    # ---- what is replaced ------------------------------------------------------------------------

    def open(self, path: Path) -> int:
        reason = self.open_fails.get(path.name)
        if reason:
            raise OSError(reason, os.strerror(reason))
        if path.parent.name == "devices":
            return self._device()
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def _device(self) -> int:
        return os.open(f"/proc/self/fd/{self.device}", os.O_RDWR | os.O_CLOEXEC)

    def may_use(self, *paths: Path) -> bool:
        return all(path.exists() and path not in self.forbidden for path in paths)

    def huge_memory(self, nbytes: int) -> int:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        return fd

    def physical(self, addresses: list[int]) -> list[int]:
        pages = self.pages
        if pages is None:
            pages = [(1 << 30) + i * HUGE_PAGE_BYTES for i in range(len(addresses))]
        return pages[: len(addresses)]

    def ioctl(self, fd: int, request: int, argument: int | bytearray | ctypes.Structure = 0) -> int:
        os.fstat(fd)  # EBADF for one that has been closed
        name = NAMES[request]
        self.calls.append(name)
        reason = self.fails.get(name)
        if reason:
            raise OSError(reason, os.strerror(reason))
        handler: Callable[..., int] = getattr(self, "_" + name.lower())
        if isinstance(argument, int):
            return handler(argument)
        memory = (ctypes.c_char * (len(bytes(argument)))).from_buffer(argument)
        said = bytearray(bytes(memory))
        try:
            return handler(said)
        finally:  # the kernel writes back even where it fails (EMSGSIZE)
            memory.raw = bytes(said)

    # ---- container and group ---------------------------------------------------------------------

    def _get_api_version(self, _none: int) -> int:
        return self.version

    def _check_extension(self, kind: int) -> int:
        return int(kind in self.extensions)

    def _group_get_status(self, said: bytearray) -> int:
        struct.pack_into("<I", said, 4, int(self.viable))
        return 0

    def _group_set_container(self, said: bytearray) -> int:
        os.fstat(struct.unpack("<i", said)[0])
        return 0

    def _set_iommu(self, kind: int) -> int:
        assert "GROUP_SET_CONTAINER" in self.calls
        assert kind in self.extensions
        return 0

    def _group_get_device_fd(self, said: bytearray) -> int:
        assert said.endswith(b"\0")
        assert "SET_IOMMU" in self.calls
        return self._device()

    def iommu_info(self) -> bytes:
        """The whole answer to IOMMU_GET_INFO; tests put others in its place."""
        first = capability(abi.TYPE1_INFO_CAP_IOVA_RANGE, 24 + 16 + 16 * len(self.ranges), b"")
        chain = first + pairs(*self.ranges)
        chain += capability(abi.TYPE1_INFO_DMA_AVAIL, 0, struct.pack("<I", 65535))
        return struct.pack("<IIQI4x", 24 + len(chain), 3, 0x1000, 24) + chain

    def _answer(self, said: bytearray, whole: bytes) -> int:
        """As the kernel does: capabilities only where there is room for all of them."""
        if len(whole) <= len(said):
            said[: len(whole)] = whole
        else:
            said[:] = whole[: len(said)]
        return 0

    def _iommu_get_info(self, said: bytearray) -> int:
        assert "SET_IOMMU" in self.calls
        return self._answer(said, self.iommu_info())

    def _iommu_map_dma(self, said: bytearray) -> int:
        argsz, flags, address, iova, size = struct.unpack("<IIQQQ", said)
        assert (argsz, flags) == (32, 3)
        return self._insert(iova, address, size)

    def _insert(self, iova: int, address: int, size: int) -> int:
        if iova in self.mappings:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.mappings[iova] = (address, size)
        return 0

    def _iommu_unmap_dma(self, said: bytearray) -> int:
        argsz, flags, iova, size = struct.unpack("<IIQQ", said)
        assert (argsz, flags) == (24, 0)
        assert self.mappings.pop(iova)[1] == size
        struct.pack_into(
            "<Q", said, 16, size if self.unmapped_bytes is None else self.unmapped_bytes
        )
        return 0

    # ---- iommufd ---------------------------------------------------------------------------------

    def _device_bind_iommufd(self, said: bytearray) -> int:
        argsz, flags, iommufd = struct.unpack_from("<IIi", said)
        assert (argsz, flags) == (16, 0)
        os.fstat(iommufd)
        return 0

    def _ioas_alloc(self, said: bytearray) -> int:
        assert struct.unpack("<III", said)[:2] == (12, 0)
        struct.pack_into("<I", said, 8, 42)
        return 0

    def _device_attach_iommufd_pt(self, said: bytearray) -> int:
        assert "DEVICE_BIND_IOMMUFD" in self.calls
        assert struct.unpack("<III", said) == (12, 0, 42)
        return 0

    def _ioas_iova_ranges(self, said: bytearray) -> int:
        size, ioas, room, _reserved, where = struct.unpack_from("<IIIIQ", said)
        assert (size, ioas) == (32, 42)
        assert "DEVICE_ATTACH_IOMMUFD_PT" in self.calls
        struct.pack_into("<I", said, 8, len(self.ranges))
        for i, entry in enumerate(self.ranges[:room]):
            ctypes.memmove(where + 16 * i, struct.pack("<QQ", *entry), 16)
        if len(self.ranges) > room:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return 0

    def _ioas_map(self, said: bytearray) -> int:
        size, flags, ioas, _reserved, address, length, iova = struct.unpack("<IIIIQQQ", said)
        assert (size, flags, ioas) == (40, 7, 42)
        return self._insert(iova, address, length)

    def _ioas_unmap(self, said: bytearray) -> int:
        size, ioas, iova, length = struct.unpack("<IIQQ", said)
        assert (size, ioas) == (24, 42)
        assert self.mappings.pop(iova)[1] == length
        return 0

    # ---- device ----------------------------------------------------------------------------------

    def _device_get_info(self, said: bytearray) -> int:
        struct.pack_into("<III", said, 4, 2, 9, 5)
        return 0

    def region_info(self, index: int) -> bytes:
        """The whole answer to DEVICE_GET_REGION_INFO."""
        if index == abi.PCI_CONFIG_REGION_INDEX:
            return struct.pack("<IIIIQQ", 32, 3, index, 0, 4096, CONFIG)
        if self.bar_areas is None:
            msix_mappable = capability(3, 0, b"")
            head = struct.pack("<IIIIQQ", 40, self.bar_flags, 0, 32, self.bar_bytes, 0)
            return head + msix_mappable
        sparse = capability(abi.REGION_INFO_CAP_SPARSE_MMAP, 0, pairs(*self.bar_areas))
        head = struct.pack("<IIIIQQ", 32 + len(sparse), self.bar_flags, 0, 32, self.bar_bytes, 0)
        return head + sparse

    def _device_get_region_info(self, said: bytearray) -> int:
        return self._answer(said, self.region_info(struct.unpack_from("<I", said, 8)[0]))

    def _device_get_irq_info(self, said: bytearray) -> int:
        index = struct.unpack_from("<I", said, 8)[0]
        if index not in self.vectors:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        struct.pack_into("<I", said, 4, EVENTFD_FLAG)
        struct.pack_into("<I", said, 12, self.vectors[index])
        return 0

    def _device_set_irqs(self, said: bytearray) -> int:
        argsz, flags, index, start, count = struct.unpack_from("<IIIII", said)
        assert (argsz, start) == (len(said), 0)
        if flags == 1 | 32:
            assert count == 0
            self.eventfds.pop(index, None)
            return 0
        assert flags == 4 | 32
        assert 0 < count <= self.vectors[index]
        if count > self.granted:
            return self.granted
        self.eventfds[index] = list(struct.unpack_from(f"<{count}i", said, 20))
        return 0
