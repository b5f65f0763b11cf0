"""Identify Namespace and the namespace's descriptors, from bytes to typed objects.

Every byte comes from the device: see identify.py, whose rules hold here too. What the driver cannot
use (metadata, protection information, blocks of odd sizes) is refused with the reason; a hint that
makes no sense is ignored, and `ignored` says why.

NVM command set 1.0, section 4.1.5; base specification 2.0, section 5.17.2.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from .errors import ControllerError
from .identify import check_size

_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from

MIN_LBA_SHIFT = 9
MAX_LBA_SHIFT = 16
_PAGE_BYTES = 4096
PERFORMANCE = ("best", "better", "good", "degraded")


@dataclass(frozen=True)
class LbaFormat:
    """One format that a namespace can have. lba_bytes 0: not available."""

    lba_bytes: int
    metadata_bytes: int
    performance: str


def parse_formats(raw: bytes, where: str) -> tuple[tuple[LbaFormat, ...], int]:
    """The formats in Identify Namespace, and the index of the present one.

    Raises ControllerError. A format of absurd size is there as "not available".
    """
    check_size(raw, where, "Namespace")
    count = raw[25] + 1
    flbas = raw[26]
    index = flbas & 15 | (flbas >> 5 & 3) << 4 if count > 16 else flbas & 15
    if count > 64:
        raise ControllerError(
            f"{where}: Identify Namespace NLBAF is {raw[25]}: at most 63 is possible"
        )
    if index >= count:
        raise ControllerError(
            f"{where}: Identify Namespace FLBAS names format {index}, but there are {count}"
        )
    formats = []
    for i in range(count):
        lbaf = int(_U32(raw, 128 + 4 * i)[0])
        shift = lbaf >> 16 & 0xFF
        formats.append(
            LbaFormat(
                lba_bytes=1 << shift if shift < 64 else 0,
                metadata_bytes=lbaf & 0xFFFF,
                performance=PERFORMANCE[lbaf >> 24 & 3],
            )
        )
    return tuple(formats), index


def why_not(form: LbaFormat) -> str:
    """Why the driver cannot use blocks of this format, or ""."""
    if not 1 << MIN_LBA_SHIFT <= form.lba_bytes <= 1 << MAX_LBA_SHIFT:
        return (
            f"blocks of {form.lba_bytes} bytes: "
            f"2^{MIN_LBA_SHIFT} to 2^{MAX_LBA_SHIFT} bytes are supported"
        )
    if form.metadata_bytes:
        return f"{form.metadata_bytes} bytes of metadata per block: not supported"
    return ""


def _usable(form: LbaFormat, index: int, protection: int, where: str) -> int:
    """Bytes of a block; ControllerError if the driver cannot use them."""
    reason = why_not(form)
    if reason and form.metadata_bytes:
        raise ControllerError(
            f"{where}: format {index} has {reason}; choose one without: nvmefs format --lbaf"
        )
    if reason:
        raise ControllerError(f"{where}: Identify Namespace LBADS of format {index} is: {reason}")
    if protection & 7:
        raise ControllerError(
            f"{where}: Identify Namespace DPS is {protection:#04x}: end-to-end protection "
            "information is not supported; format the namespace without: nvmefs format"
        )
    return form.lba_bytes


class _Hints:
    """What a namespace prefers, as far as it makes sense."""

    def __init__(self, raw: bytes, lba_count: int, lba_bytes: int) -> None:
        self._raw = raw
        self._lba_count = lba_count
        self._lba_bytes = lba_bytes
        self._given = bool(raw[24] & 0x10)  # OPTPERF: NPWG and the rest are there
        self.ignored: list[str] = []

    def at_most(self, name: str, blocks: int, most: int) -> int:
        if blocks > most:
            self.ignored.append(f"{name}: {blocks} blocks of a namespace of {most}")
        return min(blocks, most)

    def preferred(self, name: str, at: int) -> int:
        blocks = int(_U16(self._raw, at)[0]) + 1 if self._given else 0
        if blocks > self._lba_count:
            self.ignored.append(f"{name}: {blocks} blocks, more than the namespace has")
            return 0
        return blocks

    def boundary(self) -> int:
        """NOIOB. Other than in whole pages it would cut each request of pages to pieces."""
        blocks = int(_U16(self._raw, 46)[0])
        if blocks * self._lba_bytes % _PAGE_BYTES:
            self.ignored.append(
                f"NOIOB: {blocks} blocks of {self._lba_bytes} bytes, not a multiple of {_PAGE_BYTES}"
            )
            return 0
        return blocks


@dataclass(frozen=True)
class IdentifyNamespace:
    """What the controller says about one namespace.

    lba_count: size in logical blocks. *_blocks: as counts; 0 where nothing is reported. formats:
    what Format NVM may choose among; format_index is the present one.
    """

    lba_count: int
    capacity_blocks: int
    used_blocks: int
    lba_bytes: int
    thin: bool
    reads_zeroes_after_deallocate: bool
    write_zeroes_deallocates: bool
    write_protected: bool
    boundary_blocks: int
    write_granularity_blocks: int
    write_alignment_blocks: int
    deallocate_granularity_blocks: int
    deallocate_alignment_blocks: int
    optimal_write_blocks: int
    copy_range_blocks: int
    copy_blocks: int
    copy_ranges: int
    formats: tuple[LbaFormat, ...]
    format_index: int
    nguid: bytes
    eui64: bytes
    uuid: bytes = b""
    ignored: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: bytes, where: str) -> IdentifyNamespace:
        """From the 4,096 bytes of CNS 00h. Raises ControllerError.

        A namespace that is not active answers with zeroes: NSZE 0.
        """
        check_size(raw, where, "Namespace")
        if not any(raw):
            raise ControllerError(
                f"{where}: Identify Namespace is all zeroes: no such namespace, or it is not ready"
            )
        lba_count = _U64(raw, 0)[0]
        if lba_count == 0:
            raise ControllerError(f"{where}: Identify Namespace NSZE is 0: it has no blocks")
        formats, index = parse_formats(raw, where)
        lba_bytes = _usable(formats[index], index, raw[29], where)
        if lba_count > (1 << 63) // lba_bytes:
            raise ControllerError(f"{where}: Identify Namespace NSZE is {lba_count} blocks: absurd")
        hints = _Hints(raw, lba_count, lba_bytes)
        return cls(
            lba_count=lba_count,
            capacity_blocks=hints.at_most("NCAP", _U64(raw, 8)[0], lba_count),
            used_blocks=hints.at_most("NUSE", _U64(raw, 16)[0], lba_count),
            lba_bytes=lba_bytes,
            thin=bool(raw[24] & 1),
            reads_zeroes_after_deallocate=raw[33] & 7 == 1,
            # Only where deallocated blocks read as zeroes does DEAC keep what Write Zeroes promises.
            write_zeroes_deallocates=raw[33] & 0xF == 9,
            write_protected=bool(raw[99] & 1),
            boundary_blocks=hints.boundary(),
            write_granularity_blocks=hints.preferred("NPWG", 64),
            write_alignment_blocks=hints.preferred("NPWA", 66),
            deallocate_granularity_blocks=hints.preferred("NPDG", 68),
            deallocate_alignment_blocks=hints.preferred("NPDA", 70),
            optimal_write_blocks=hints.preferred("NOWS", 72),
            copy_range_blocks=_U16(raw, 74)[0],
            copy_blocks=_U32(raw, 76)[0],
            copy_ranges=raw[80] + 1,
            formats=formats,
            format_index=index,
            nguid=bytes(raw[104:120]),
            eui64=bytes(raw[120:128]),
            ignored=tuple(hints.ignored),
        )

    def named(self, names: NamespaceDescriptors) -> IdentifyNamespace:
        """With its UUID, and with what names the descriptors have and Identify Namespace has not."""
        return replace(
            self,
            uuid=names.uuid,
            nguid=self.nguid if any(self.nguid) else names.nguid or self.nguid,
            eui64=self.eui64 if any(self.eui64) else names.eui64 or self.eui64,
        )


@dataclass(frozen=True)
class NamespaceDescriptors:
    """Namespace Identification Descriptors (CNS 03h): csi 0 is the NVM command set, 2 is zoned."""

    uuid: bytes = b""
    nguid: bytes = b""
    eui64: bytes = b""
    csi: int = 0

    @classmethod
    def parse(cls, raw: bytes, where: str) -> NamespaceDescriptors:
        """Raises ControllerError when a length runs past the end or does not fit its type."""
        check_size(raw, where, "Namespace Descriptors")
        sizes = {1: 8, 2: 16, 3: 16, 4: 1}
        found: dict[int, bytes] = {}
        at = 0
        while at + 4 <= len(raw) and raw[at]:
            kind, length = raw[at], raw[at + 1]
            if length == 0 or at + 4 + length > len(raw) or sizes.get(kind, length) != length:
                raise ControllerError(
                    f"{where}: namespace descriptor of type {kind} at byte {at} has length {length}"
                )
            found[kind] = raw[at + 4 : at + 4 + length]
            at += 4 + length
        return cls(
            eui64=found.get(1, b""),
            nguid=found.get(2, b""),
            uuid=found.get(3, b""),
            csi=found.get(4, b"\0")[0],
        )
