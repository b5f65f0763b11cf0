"""The messages of vfio-user, version 0.1: what is on the wire, byte for byte.

    raw = DmaMap(DmaMap.SIZE, READ | WRITE, offset, address, size).pack()
    request = DmaMap.parse(payload)              ProtocolError unless all of it is there

A structure says what its fields are, not what they may be in a situation: the bounds of a region
belong to who has the region. Whatever can be judged by the message alone is judged here: lengths,
counts that name more than there is, capability lists that leave the message or do not end, text
that is no JSON. All integers are little-endian.
"""

from __future__ import annotations

import enum
import errno
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

HEADER_BYTES = 16
DEFAULT_TRANSFER_BYTES = 1 << 20
MAX_VERSION_BYTES = 4096
MAX_MESSAGE_FDS = 253  # SCM_MAX_FD: more the kernel does not pass at once

FLAG_TYPE_MASK, FLAG_REPLY, FLAG_NO_REPLY, FLAG_ERROR = 0xF, 0x1, 0x10, 0x20

REGION_BAR0, REGION_CONFIG, REGION_COUNT = 0, 7, 9
IRQ_MSIX, IRQ_COUNT = 2, 5
DEVICE_RESETS, DEVICE_PCI = 1, 2
REGION_READ, REGION_WRITE, REGION_MMAP, REGION_CAPS = 1, 2, 4, 8
CAP_SPARSE_MMAP = 1
DMA_READABLE, DMA_WRITEABLE = 1, 2
UNMAP_ALL = 2
IRQ_EVENTFD, IRQ_MASKABLE = 1, 2
IRQ_DATA_NONE, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_MASK = 1, 2, 4, 7
IRQ_MASK, IRQ_UNMASK, IRQ_TRIGGER, IRQ_ACTION_MASK = 8, 16, 32, 0x38
IO_FD_EVENTFD = 0


class Command(enum.IntEnum):
    """Command numbers. DMA_READ and DMA_WRITE go from the server to the client."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    GET_INFO = 4
    GET_REGION_INFO = 5
    GET_REGION_IO_FDS = 6
    GET_IRQ_INFO = 7
    SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    RESET = 13
    REGION_WRITE_MULTI = 15


def command_name(number: int) -> str:
    """REGION_READ, or the number of a command that has no name here."""
    try:
        return Command(number).name
    except ValueError:
        return f"command {number}"


class ProtocolError(Exception):
    """A message that makes no sense; `errno` is what an error reply says about it."""

    def __init__(self, text: str, code: int = errno.EINVAL) -> None:
        super().__init__(text)
        self.errno = code


_T = TypeVar("_T", bound="Structure")


@dataclass(frozen=True)
class Structure:
    """Fields in the order of the wire."""

    LAYOUT: ClassVar[struct.Struct]
    SIZE: ClassVar[int]

    def __init_subclass__(cls, *, layout: str) -> None:
        cls.LAYOUT = struct.Struct("<" + layout)
        cls.SIZE = cls.LAYOUT.size

    def pack(self) -> bytes:
        """The bytes."""
        return self.LAYOUT.pack(*vars(self).values())

    @classmethod
    def parse(cls: type[_T], raw: bytes, offset: int = 0) -> _T:
        """From the bytes at offset; what follows is not looked at. Raises ProtocolError."""
        if len(raw) - offset < cls.SIZE:
            raise ProtocolError(
                f"{cls.__name__} of {max(len(raw) - offset, 0)} bytes: it has {cls.SIZE}"
            )
        return cls(*cls.LAYOUT.unpack_from(raw, offset))


@dataclass(frozen=True)
class Header(Structure, layout="HHIII"):
    """In front of every message; `size` counts it too, `error` is an errno."""

    id: int
    command: int
    size: int
    flags: int
    error: int = 0

    @property
    def is_reply(self) -> bool:
        return self.flags & FLAG_TYPE_MASK == FLAG_REPLY

    @property
    def is_command(self) -> bool:
        return self.flags & FLAG_TYPE_MASK == 0

    @property
    def wants_reply(self) -> bool:
        return not self.flags & FLAG_NO_REPLY

    @property
    def failed(self) -> bool:
        return bool(self.flags & FLAG_ERROR)


@dataclass(frozen=True)
class DmaMap(Structure, layout="IIQQQ"):
    """`offset` in the file that comes along; `address` is the device's (IOVA)."""

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True)
class DmaUnmap(Structure, layout="IIQQ"):
    """The reply repeats it."""

    argsz: int
    flags: int
    address: int
    size: int


@dataclass(frozen=True)
class DeviceInfo(Structure, layout="IIII"):
    """Request and reply. argsz: of the reply, at most; in the reply, needed."""

    argsz: int
    flags: int = 0
    regions: int = 0
    irqs: int = 0


@dataclass(frozen=True)
class RegionInfo(Structure, layout="IIIIQQ"):
    """Request and reply; capabilities follow at cap_offset, counted from here."""

    argsz: int
    flags: int
    index: int
    cap_offset: int = 0
    size: int = 0
    offset: int = 0


@dataclass(frozen=True)
class _CapabilityHeader(Structure, layout="HHI"):
    id: int
    version: int
    next: int


@dataclass(frozen=True)
class _SparseHeader(Structure, layout="HHIII"):
    id: int
    version: int
    next: int
    areas: int
    reserved: int = 0


@dataclass(frozen=True)
class SparseArea(Structure, layout="QQ"):
    """A part of a region that may be mapped."""

    offset: int
    size: int


@dataclass(frozen=True)
class RegionIoFds(Structure, layout="IIII"):
    """Request and reply; IoEventFd entries follow in the reply."""

    argsz: int
    flags: int
    index: int
    count: int = 0


@dataclass(frozen=True)
class IoEventFd(Structure, layout="QQIIIIQ"):
    """The eventfd that announces stores to a part of a region."""

    offset: int
    size: int
    fd_index: int
    type: int = IO_FD_EVENTFD
    flags: int = 0
    padding: int = 0
    datamatch: int = 0


@dataclass(frozen=True)
class IrqInfo(Structure, layout="IIII"):
    """Request and reply."""

    argsz: int
    flags: int
    index: int
    count: int = 0


@dataclass(frozen=True)
class IrqSet(Structure, layout="IIIII"):
    """A byte for each vector follows with IRQ_DATA_BOOL."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int


@dataclass(frozen=True)
class RegionAccess(Structure, layout="QII"):
    """REGION_READ and REGION_WRITE, requests and replies; data follows where it has to."""

    offset: int
    region: int
    count: int


@dataclass(frozen=True)
class DmaAccess(Structure, layout="QQ"):
    """DMA_READ and DMA_WRITE, requests and replies; data follows where it has to."""

    address: int
    count: int


@dataclass(frozen=True)
class WriteMulti(Structure, layout="Q"):
    """`count` SmallWrite entries follow in the request."""

    count: int


@dataclass(frozen=True)
class SmallWrite(Structure, layout="QII8s"):
    """A REGION_WRITE of at most 8 bytes."""

    offset: int
    region: int
    count: int
    data: bytes


@dataclass(frozen=True)
class _VersionNumbers(Structure, layout="HH"):
    major: int
    minor: int


# ---- what has a variable part --------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """VERSION, either way. `capabilities` are those of the JSON text, as they came."""

    major: int
    minor: int
    capabilities: dict[str, Any]

    def pack(self) -> bytes:
        text = json.dumps({"capabilities": self.capabilities}, separators=(",", ":"))
        return _VersionNumbers(self.major, self.minor).pack() + text.encode() + b"\0"

    @classmethod
    def parse(cls, raw: bytes) -> Version:
        numbers = _VersionNumbers.parse(raw)
        text = raw[_VersionNumbers.SIZE :]
        if len(text) > MAX_VERSION_BYTES:
            raise ProtocolError(f"{len(text)} bytes of version data: at most {MAX_VERSION_BYTES}")
        return cls(numbers.major, numbers.minor, _capabilities(text))

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A capability that is a number, `high` if it is larger. Raises ProtocolError."""
        value = self.capabilities.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ProtocolError(f"capability {name} is {value!r}: a number from {low} on")
        return min(value, high)


def _capabilities(text: bytes) -> dict[str, Any]:
    if not text:
        return {}
    if text[-1:] != b"\0":
        raise ProtocolError("version data without the NUL at its end")
    try:
        parsed = json.loads(text[:-1])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"version data is not JSON: {error}") from error
    found = parsed.get("capabilities", {}) if isinstance(parsed, dict) else None
    if not isinstance(found, dict):
        raise ProtocolError("version data without an object of capabilities")
    return found


def pack_region_info(info: RegionInfo, areas: Sequence[SparseArea]) -> bytes:
    """A reply with one sparse mmap capability behind it."""
    header = _SparseHeader(CAP_SPARSE_MMAP, 1, 0, len(areas))
    return info.pack() + header.pack() + b"".join(area.pack() for area in areas)


def region_info_bytes(areas: int) -> int:
    """The size of what pack_region_info() makes."""
    return RegionInfo.SIZE + _SparseHeader.SIZE + areas * SparseArea.SIZE


def parse_region_info(raw: bytes) -> tuple[RegionInfo, list[SparseArea] | None]:
    """A reply, with its sparse areas (None: it does not limit what may be mapped).

    Raises ProtocolError on a capability list that leaves the message or does not end.
    """
    info = RegionInfo.parse(raw)
    areas: list[SparseArea] | None = None
    at = info.cap_offset if info.flags & REGION_CAPS else 0
    seen: set[int] = set()
    while at:
        if at in seen or at < RegionInfo.SIZE:
            raise ProtocolError(f"region {info.index}: a capability at {at}: the list does not end")
        seen.add(at)
        capability = _CapabilityHeader.parse(raw, at)
        if capability.id == CAP_SPARSE_MMAP:
            count = _SparseHeader.parse(raw, at).areas
            first = at + _SparseHeader.SIZE
            if count > (len(raw) - first) // SparseArea.SIZE:
                raise ProtocolError(f"region {info.index}: {count} sparse areas are not there")
            places = range(first, first + count * SparseArea.SIZE, SparseArea.SIZE)
            areas = [SparseArea.parse(raw, place) for place in places]
        at = capability.next
    return info, areas


def pack_io_fds(index: int, entries: Iterable[IoEventFd]) -> bytes:
    """A reply to GET_REGION_IO_FDS."""
    packed = [entry.pack() for entry in entries]
    argsz = RegionIoFds.SIZE + len(packed) * IoEventFd.SIZE
    return RegionIoFds(argsz, 0, index, len(packed)).pack() + b"".join(packed)


def parse_io_fds(raw: bytes, fds: int) -> list[IoEventFd]:
    """The entries of a reply that came with so many descriptors. Raises ProtocolError."""
    head = RegionIoFds.parse(raw)
    if head.count > (len(raw) - RegionIoFds.SIZE) // IoEventFd.SIZE:
        raise ProtocolError(f"{head.count} I/O descriptors are not there")
    places = (RegionIoFds.SIZE + i * IoEventFd.SIZE for i in range(head.count))
    entries = [IoEventFd.parse(raw, place) for place in places]
    for entry in entries:
        if entry.fd_index >= fds:
            raise ProtocolError(f"I/O descriptor {entry.fd_index} of {fds}")
    return entries


def parse_data(raw: bytes, head: RegionAccess | DmaAccess) -> bytes:
    """The data behind an access: exactly as much as it says. Raises ProtocolError."""
    data = raw[head.SIZE :]
    if len(data) != head.count:
        raise ProtocolError(f"{len(data)} bytes of data, {head.count} are announced")
    return data


def parse_small_writes(raw: bytes) -> list[SmallWrite]:
    """The entries of REGION_WRITE_MULTI. Raises ProtocolError."""
    count = WriteMulti.parse(raw).count
    if count * SmallWrite.SIZE != len(raw) - WriteMulti.SIZE:
        raise ProtocolError(f"{count} writes in {len(raw)} bytes")
    places = range(WriteMulti.SIZE, len(raw), SmallWrite.SIZE)
    writes = [SmallWrite.parse(raw, place) for place in places]
    for write in writes:
        if write.count > len(write.data):
            raise ProtocolError(f"a write of {write.count} bytes, of which 8 are there")
    return writes
