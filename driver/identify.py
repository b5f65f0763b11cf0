"""Identify data structures, from bytes to typed objects.

Every byte comes from the device. What is used later as an index, a length or a count is checked
here, and ControllerError names the field, its value and where it was read. Sizes are in bytes and
counts are counts, whatever the wire has (0-based numbers, powers of two).

NVM Express base specification 2.0, section 5.17.2; NVM command set 1.0, section 4.1.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .commands import IDENTIFY_BYTES
from .errors import ControllerError

_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from

MIN_LBA_SHIFT = 9
MAX_LBA_SHIFT = 16
_MIN_BOUNDARY_BYTES = 4096


def _text(raw: bytes, first: int, length: int) -> str:
    """ASCII fields are padded with spaces; anything unprintable becomes '?'."""
    text = raw[first : first + length].split(b"\0")[0].decode("latin-1").strip()
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _check_size(raw: bytes, where: str, what: str) -> None:
    if len(raw) != IDENTIFY_BYTES:
        raise ControllerError(
            f"{where}: Identify {what} returned {len(raw)} bytes, not {IDENTIFY_BYTES}"
        )


@dataclass(frozen=True)
class IdentifyController:
    """What the controller says about itself.

    max_transfer_bytes 0: no limit. *_us 0: not reported. Counts are counts.
    """

    vendor_id: int
    serial: str
    model: str
    firmware: str
    max_transfer_bytes: int
    controller_id: int
    version: int
    shutdown_timeout_us: int
    retry_delays_ms: tuple[int, int, int]
    optional_events: int
    aborts_at_once: int
    async_events: int
    error_log_entries: int
    keep_alive_granularity_ms: int
    namespaces: int
    max_commands: int
    subsystem_name: str
    namespace_management: bool
    format_nvm: bool
    doorbell_buffers: bool
    compare: bool
    dataset_management: bool
    write_zeroes: bool
    verify: bool
    copy: bool
    volatile_write_cache: bool
    sgls: int

    @property
    def sgl_mode(self) -> int:
        """SGLs in commands of the NVM command set: 0 not supported, 1 any, 2 of whole dwords."""
        mode = self.sgls & 3
        return mode if mode < 3 else 0

    @classmethod
    def parse(cls, raw: bytes, where: str, page_bytes: int = 4096) -> IdentifyController:
        """From the 4,096 bytes of CNS 01h; page_bytes is the smallest page (CAP.MPSMIN).

        Raises ControllerError.
        """
        _check_size(raw, where, "Controller")
        if not any(raw):
            raise ControllerError(
                f"{where}: Identify Controller is all zeroes: not ready; try again later"
            )
        mdts, sqes, cqes = raw[77], raw[512], raw[513]
        namespaces = _U32(raw, 516)[0]
        if mdts > 20:
            raise ControllerError(
                f"{where}: Identify Controller MDTS is {mdts}, which is 2^{mdts} pages: absurd"
            )
        if not (sqes & 15) <= 6 <= (sqes >> 4):
            raise ControllerError(
                f"{where}: Identify Controller SQES is {sqes:#04x}: 64-byte entries are not allowed"
            )
        if not (cqes & 15) <= 4 <= (cqes >> 4):
            raise ControllerError(
                f"{where}: Identify Controller CQES is {cqes:#04x}: 16-byte entries are not allowed"
            )
        if namespaces == 0:
            raise ControllerError(f"{where}: Identify Controller NN is 0: no namespaces at all")
        oacs, oncs = _U16(raw, 256)[0], _U16(raw, 520)[0]
        return cls(
            vendor_id=_U16(raw, 0)[0],
            serial=_text(raw, 4, 20),
            model=_text(raw, 24, 40),
            firmware=_text(raw, 64, 8),
            max_transfer_bytes=page_bytes << mdts if mdts else 0,
            controller_id=_U16(raw, 78)[0],
            version=_U32(raw, 80)[0],
            shutdown_timeout_us=_U32(raw, 88)[0],
            retry_delays_ms=(
                _U16(raw, 128)[0] * 100,
                _U16(raw, 130)[0] * 100,
                _U16(raw, 132)[0] * 100,
            ),
            optional_events=_U32(raw, 92)[0],
            aborts_at_once=raw[258] + 1,
            async_events=raw[259] + 1,
            error_log_entries=raw[262] + 1,
            keep_alive_granularity_ms=_U16(raw, 320)[0] * 100,
            namespaces=namespaces,
            max_commands=_U16(raw, 514)[0],
            subsystem_name=_text(raw, 768, 256),
            namespace_management=bool(oacs & 8),
            format_nvm=bool(oacs & 2),
            doorbell_buffers=bool(oacs & 0x100),
            compare=bool(oncs & 1),
            dataset_management=bool(oncs & 4),
            write_zeroes=bool(oncs & 8),
            verify=bool(oncs & 0x80),
            copy=bool(oncs & 0x100),
            volatile_write_cache=bool(raw[525] & 1),
            sgls=_U32(raw, 536)[0],
        )


@dataclass(frozen=True)
class IdentifyNamespace:
    """What the controller says about one namespace.

    lba_count: size in logical blocks. *_blocks: as counts; 0 where nothing is reported.
    """

    lba_count: int
    capacity_blocks: int
    used_blocks: int
    lba_bytes: int
    thin: bool
    reads_zeroes_after_deallocate: bool
    write_protected: bool
    boundary_blocks: int
    write_granularity_blocks: int
    write_alignment_blocks: int
    deallocate_granularity_blocks: int
    deallocate_alignment_blocks: int
    optimal_write_blocks: int
    nguid: bytes
    eui64: bytes

    @classmethod
    def parse(cls, raw: bytes, where: str) -> IdentifyNamespace:
        """From the 4,096 bytes of CNS 00h. Raises ControllerError.

        A namespace that is not active answers with zeroes: NSZE 0.
        """
        _check_size(raw, where, "Namespace")
        if not any(raw):
            raise ControllerError(
                f"{where}: Identify Namespace is all zeroes: no such namespace, or it is not ready"
            )
        lba_count = _U64(raw, 0)[0]
        if lba_count == 0:
            raise ControllerError(f"{where}: Identify Namespace NSZE is 0: it has no blocks")
        lba_bytes = cls._lba_bytes(raw, where)
        if lba_count > (1 << 63) // lba_bytes:
            raise ControllerError(f"{where}: Identify Namespace NSZE is {lba_count} blocks: absurd")
        nsfeat = raw[24]
        hints = bool(nsfeat & 0x10)  # OPTPERF: NPWG and the rest are there

        def hint(at: int) -> int:
            return int(_U16(raw, at)[0]) + 1 if hints else 0

        boundary = _U16(raw, 46)[0]
        return cls(
            lba_count=lba_count,
            capacity_blocks=_U64(raw, 8)[0],
            used_blocks=_U64(raw, 16)[0],
            lba_bytes=lba_bytes,
            thin=bool(nsfeat & 1),
            reads_zeroes_after_deallocate=raw[33] & 7 == 1,
            write_protected=bool(raw[99] & 1),
            # Below 4 KiB it would cut every request to pieces; it is a hint, so it may be left.
            boundary_blocks=boundary if boundary * lba_bytes >= _MIN_BOUNDARY_BYTES else 0,
            write_granularity_blocks=hint(64),
            write_alignment_blocks=hint(66),
            deallocate_granularity_blocks=hint(68),
            deallocate_alignment_blocks=hint(70),
            optimal_write_blocks=hint(72),
            nguid=bytes(raw[104:120]),
            eui64=bytes(raw[120:128]),
        )

    @staticmethod
    def _lba_bytes(raw: bytes, where: str) -> int:
        formats = raw[25] + 1
        flbas = raw[26]
        index = flbas & 15 | (flbas >> 5 & 3) << 4 if formats > 16 else flbas & 15
        if formats > 64:
            raise ControllerError(
                f"{where}: Identify Namespace NLBAF is {raw[25]}: at most 63 is possible"
            )
        if index >= formats:
            raise ControllerError(
                f"{where}: Identify Namespace FLBAS names format {index}, but there are {formats}"
            )
        lbaf = int(_U32(raw, 128 + 4 * index)[0])
        metadata_bytes, shift = lbaf & 0xFFFF, lbaf >> 16 & 0xFF
        if not MIN_LBA_SHIFT <= shift <= MAX_LBA_SHIFT:
            raise ControllerError(
                f"{where}: Identify Namespace LBADS of format {index} is {shift}: "
                f"blocks of 2^{MIN_LBA_SHIFT} to 2^{MAX_LBA_SHIFT} bytes are supported"
            )
        if metadata_bytes:
            raise ControllerError(
                f"{where}: format {index} has {metadata_bytes} bytes of metadata per block: "
                "not supported; format the namespace without (nvme format -l)"
            )
        if raw[29] & 7:
            raise ControllerError(
                f"{where}: Identify Namespace DPS is {raw[29]:#04x}: protection information is not "
                "supported"
            )
        return 1 << shift


def parse_namespace_list(raw: bytes, where: str) -> list[int]:
    """Active namespace ids (CNS 02h): ascending, ended by 0. Raises ControllerError."""
    _check_size(raw, where, "Active Namespace List")
    ids: list[int] = []
    for (nsid,) in struct.iter_unpack("<I", raw):
        if nsid == 0:
            break
        if nsid >= 0xFFFFFFFF or (ids and nsid <= ids[-1]):
            raise ControllerError(
                f"{where}: the list of active namespaces is not ascending at {nsid:#x}"
            )
        ids.append(nsid)
    return ids


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
        _check_size(raw, where, "Namespace Descriptors")
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


@dataclass(frozen=True)
class CommandSetLimits:
    """I/O command set specific Identify Controller (CNS 06h, CSI 0); 0: no limit reported."""

    max_write_zeroes_bytes: int = 0
    max_ranges: int = 0
    max_range_blocks: int = 0
    max_deallocate_blocks: int = 0

    @classmethod
    def parse(cls, raw: bytes, where: str, page_bytes: int = 4096) -> CommandSetLimits:
        """Raises ControllerError."""
        _check_size(raw, where, "NVM Command Set Controller")
        wzsl = raw[1]
        if wzsl > 30:
            raise ControllerError(f"{where}: Identify WZSL is {wzsl}: 2^{wzsl} pages is absurd")
        return cls(
            max_write_zeroes_bytes=page_bytes << wzsl if wzsl else 0,
            max_ranges=raw[3],
            max_range_blocks=_U32(raw, 4)[0],
            max_deallocate_blocks=_U64(raw, 8)[0],
        )
