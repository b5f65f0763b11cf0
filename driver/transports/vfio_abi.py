"""The kernel's interfaces for VFIO and iommufd: request numbers, structures, capability chains.

Only what this driver uses of <linux/vfio.h> and <linux/iommufd.h>, under the names there without
their prefix. tests/driver/transports/test_vfio_abi.py compiles a C program against the headers and
compares every number, size and offset.

The kernel writes into these structures what it likes: capabilities() believes no offset in them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from ..errors import TransportError

U16, U32, U64, S32 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32


def _io(number: int) -> int:
    """_IO(';', number): both interfaces say the size in the structure, not in the number."""
    return ord(";") << 8 | number


_VFIO_BASE = 100
API_VERSION = 0
TYPE1V2_IOMMU = 3
NOIOMMU_IOMMU = 8

# ---- container (/dev/vfio/vfio) and group (/dev/vfio/N) --------------------------------------

GET_API_VERSION = _io(_VFIO_BASE)
CHECK_EXTENSION = _io(_VFIO_BASE + 1)
SET_IOMMU = _io(_VFIO_BASE + 2)
GROUP_GET_STATUS = _io(_VFIO_BASE + 3)
GROUP_SET_CONTAINER = _io(_VFIO_BASE + 4)
GROUP_GET_DEVICE_FD = _io(_VFIO_BASE + 6)
IOMMU_GET_INFO = _io(_VFIO_BASE + 12)
IOMMU_MAP_DMA = _io(_VFIO_BASE + 13)
IOMMU_UNMAP_DMA = _io(_VFIO_BASE + 14)

GROUP_FLAGS_VIABLE = 1
IOMMU_INFO_CAPS = 2
TYPE1_INFO_CAP_IOVA_RANGE = 1
TYPE1_INFO_DMA_AVAIL = 3
DMA_MAP_FLAG_READ = 1
DMA_MAP_FLAG_WRITE = 2


class GroupStatus(ctypes.Structure):
    """struct vfio_group_status"""

    _fields_ = (("argsz", U32), ("flags", U32))


class Type1Info(ctypes.Structure):
    """struct vfio_iommu_type1_info"""

    _fields_ = (("argsz", U32), ("flags", U32), ("iova_pgsizes", U64), ("cap_offset", U32))


class DmaMap(ctypes.Structure):
    """struct vfio_iommu_type1_dma_map"""

    _fields_ = (("argsz", U32), ("flags", U32), ("vaddr", U64), ("iova", U64), ("size", U64))


class DmaUnmap(ctypes.Structure):
    """struct vfio_iommu_type1_dma_unmap"""

    _fields_ = (("argsz", U32), ("flags", U32), ("iova", U64), ("size", U64))


# ---- device ----------------------------------------------------------------------------------

DEVICE_GET_INFO = _io(_VFIO_BASE + 7)
DEVICE_GET_REGION_INFO = _io(_VFIO_BASE + 8)
DEVICE_GET_IRQ_INFO = _io(_VFIO_BASE + 9)
DEVICE_SET_IRQS = _io(_VFIO_BASE + 10)
DEVICE_BIND_IOMMUFD = _io(_VFIO_BASE + 18)
DEVICE_ATTACH_IOMMUFD_PT = _io(_VFIO_BASE + 19)

DEVICE_FLAGS_PCI = 2
REGION_INFO_FLAG_READ = 1
REGION_INFO_FLAG_WRITE = 2
REGION_INFO_FLAG_MMAP = 4
REGION_INFO_FLAG_CAPS = 8
REGION_INFO_CAP_SPARSE_MMAP = 1
PCI_BAR0_REGION_INDEX = 0
PCI_CONFIG_REGION_INDEX = 7
PCI_MSI_IRQ_INDEX = 1
PCI_MSIX_IRQ_INDEX = 2
PCI_ERR_IRQ_INDEX = 3
PCI_REQ_IRQ_INDEX = 4
IRQ_INFO_EVENTFD = 1
IRQ_SET_DATA_NONE = 1
IRQ_SET_DATA_EVENTFD = 4
IRQ_SET_ACTION_TRIGGER = 32


class DeviceInfo(ctypes.Structure):
    """struct vfio_device_info, its oldest fields: later kernels have added to it."""

    _fields_ = (("argsz", U32), ("flags", U32), ("num_regions", U32), ("num_irqs", U32))


class RegionInfo(ctypes.Structure):
    """struct vfio_region_info"""

    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("index", U32),
        ("cap_offset", U32),
        ("size", U64),
        ("offset", U64),
    )


class IrqInfo(ctypes.Structure):
    """struct vfio_irq_info"""

    _fields_ = (("argsz", U32), ("flags", U32), ("index", U32), ("count", U32))


class IrqSet(ctypes.Structure):
    """struct vfio_irq_set; `count` eventfds (s32) follow it."""

    _fields_ = (("argsz", U32), ("flags", U32), ("index", U32), ("start", U32), ("count", U32))


class BindIommufd(ctypes.Structure):
    """struct vfio_device_bind_iommufd"""

    _fields_ = (("argsz", U32), ("flags", U32), ("iommufd", S32), ("out_devid", U32))


class AttachIommufdPt(ctypes.Structure):
    """struct vfio_device_attach_iommufd_pt"""

    _fields_ = (("argsz", U32), ("flags", U32), ("pt_id", U32))


# ---- iommufd (/dev/iommu) --------------------------------------------------------------------

IOAS_ALLOC = _io(0x81)
IOAS_IOVA_RANGES = _io(0x84)
IOAS_MAP = _io(0x85)
IOAS_UNMAP = _io(0x86)

IOAS_MAP_FIXED_IOVA = 1
IOAS_MAP_WRITEABLE = 2
IOAS_MAP_READABLE = 4


class IoasAlloc(ctypes.Structure):
    """struct iommu_ioas_alloc"""

    _fields_ = (("size", U32), ("flags", U32), ("out_ioas_id", U32))


class IovaRange(ctypes.Structure):
    """struct iommu_iova_range; `last` is inclusive."""

    _fields_ = (("start", U64), ("last", U64))


class IoasIovaRanges(ctypes.Structure):
    """struct iommu_ioas_iova_ranges"""

    _fields_ = (
        ("size", U32),
        ("ioas_id", U32),
        ("num_iovas", U32),
        ("reserved", U32),
        ("allowed_iovas", U64),
        ("out_iova_alignment", U64),
    )


class IoasMap(ctypes.Structure):
    """struct iommu_ioas_map"""

    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("ioas_id", U32),
        ("reserved", U32),
        ("user_va", U64),
        ("length", U64),
        ("iova", U64),
    )


class IoasUnmap(ctypes.Structure):
    """struct iommu_ioas_unmap"""

    _fields_ = (("size", U32), ("ioas_id", U32), ("iova", U64), ("length", U64))


# ---- capability chains -----------------------------------------------------------------------

_HEADER = struct.Struct("<HHI")  # struct vfio_info_cap_header: id, version, next
_COUNT = struct.Struct("<I4x")
_PAIR = struct.Struct("<QQ")


def capabilities(answer: bytes, first: int, where: str) -> Iterator[tuple[int, int]]:
    """(id, offset of its header) of each capability in the chain of an info structure.

    `first` is the structure's cap_offset; 0 is an empty chain. Raises TransportError when the
    chain leaves the answer, overlaps its own header or goes in a circle.
    """
    seen = set()
    at = first
    while at:
        if at in seen or at % 4 or at + _HEADER.size > len(answer):
            raise TransportError(
                f"{where}: the kernel's capability chain points at byte {at} of {len(answer)}"
                f"{' again' if at in seen else ''}: it cannot be followed"
            )
        seen.add(at)
        identity, _version, following = _HEADER.unpack_from(answer, at)
        yield identity, at
        at = following


def pairs(answer: bytes, at: int, where: str) -> list[tuple[int, int]]:
    """The array of two-u64 entries in a capability: IOVA ranges, or areas that can be mapped.

    Raises TransportError when it does not lie inside the answer.
    """
    body = at + _HEADER.size
    count = _COUNT.unpack_from(answer, body)[0] if body + _COUNT.size <= len(answer) else -1
    end = body + _COUNT.size + count * _PAIR.size
    if count < 0 or end > len(answer):
        raise TransportError(
            f"{where}: a capability of the kernel's has {count} entries in {len(answer)} bytes"
        )
    return list(_PAIR.iter_unpack(answer[body + _COUNT.size : end]))


def number(answer: bytes, at: int, where: str) -> int:
    """The one u32 in a capability. Raises TransportError when it does not lie inside the answer."""
    if at + _HEADER.size + 4 > len(answer):
        raise TransportError(f"{where}: a capability of the kernel's is cut off at byte {at}")
    return int.from_bytes(answer[at + _HEADER.size : at + _HEADER.size + 4], "little")
