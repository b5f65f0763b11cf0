"""Identify Controller and the lists, from bytes to typed objects; identify_namespace.py has the rest.

Every byte comes from the device. What is used later as an index, a length or a count is checked
here, and ControllerError names the field, its value and where it was read. Sizes are in bytes and
counts are counts, whatever the wire has (0-based numbers, powers of two). What is only a hint and
makes no sense is left aside; `ignored` says so in words.

NVM Express base specification 2.0, section 5.17.2; NVM command set 1.0, section 4.1.5.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from .commands import IDENTIFY_BYTES
from .errors import ControllerError

_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from

LIST_ENTRIES = IDENTIFY_BYTES // 4
_ABSURD_SHUTDOWN_US = 600_000_000
EBS_VENDOR = 0x1D0F


def _text(raw: bytes, first: int, length: int) -> str:
    """ASCII fields are padded with spaces; anything unprintable becomes '?'."""
    text = raw[first : first + length].split(b"\0")[0].decode("latin-1").strip()
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def check_size(raw: bytes, where: str, what: str) -> None:
    if len(raw) != IDENTIFY_BYTES:
        raise ControllerError(
            f"{where}: Identify {what} returned {len(raw)} bytes, not {IDENTIFY_BYTES}"
        )


@dataclass(frozen=True)
class IdentifyController:
    """What the controller says about itself.

    max_transfer_bytes 0: no limit. *_us, *_ms 0: not reported. Counts are counts.
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
    effects_log: bool
    firmware_activation_ms: int
    keep_alive_granularity_ms: int
    namespaces: int
    max_attached: int
    capacity_bytes: int
    unallocated_bytes: int
    max_commands: int
    subsystem_name: str
    namespace_management: bool
    format_nvm: bool
    format_is_for_all: bool
    erase_is_for_all: bool
    crypto_erase: bool
    doorbell_buffers: bool
    compare: bool
    dataset_management: bool
    write_zeroes: bool
    verify: bool
    copy: bool
    copy_formats: int
    volatile_write_cache: bool
    sgls: int
    ebs_device: str
    ignored: tuple[str, ...] = ()

    @property
    def is_ebs(self) -> bool:
        """An EBS volume; the same vendor's instance storage is an ordinary drive."""
        return self.vendor_id == EBS_VENDOR and "Instance Storage" not in self.model

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
        check_size(raw, where, "Controller")
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
        vendor, shutdown_us = _U16(raw, 0)[0], _U32(raw, 88)[0]
        ignored: tuple[str, ...] = ()
        if shutdown_us > _ABSURD_SHUTDOWN_US:
            ignored = (f"RTD3E: {shutdown_us} us for a shutdown",)
            shutdown_us = 0
        return cls(
            vendor_id=vendor,
            serial=_text(raw, 4, 20),
            model=_text(raw, 24, 40),
            firmware=_text(raw, 64, 8),
            max_transfer_bytes=page_bytes << mdts if mdts else 0,
            controller_id=_U16(raw, 78)[0],
            version=_U32(raw, 80)[0],
            shutdown_timeout_us=shutdown_us,
            retry_delays_ms=(
                _U16(raw, 128)[0] * 100,
                _U16(raw, 130)[0] * 100,
                _U16(raw, 132)[0] * 100,
            ),
            optional_events=_U32(raw, 92)[0],
            aborts_at_once=raw[258] + 1,
            async_events=raw[259] + 1,
            error_log_entries=raw[262] + 1,
            effects_log=bool(raw[261] & 2),
            firmware_activation_ms=_U16(raw, 106)[0] * 100,
            keep_alive_granularity_ms=_U16(raw, 320)[0] * 100,
            namespaces=namespaces,
            max_attached=_U32(raw, 540)[0],
            capacity_bytes=int.from_bytes(raw[280:296], "little"),
            unallocated_bytes=int.from_bytes(raw[296:312], "little"),
            max_commands=_U16(raw, 514)[0],
            subsystem_name=_text(raw, 768, 256),
            namespace_management=bool(oacs & 8),
            format_nvm=bool(oacs & 2),
            format_is_for_all=bool(raw[524] & 1),
            erase_is_for_all=bool(raw[524] & 2),
            crypto_erase=bool(raw[524] & 4),
            doorbell_buffers=bool(oacs & 0x100),
            compare=bool(oncs & 1),
            dataset_management=bool(oncs & 4),
            write_zeroes=bool(oncs & 8),
            verify=bool(oncs & 0x80),
            copy=bool(oncs & 0x100),
            copy_formats=_U16(raw, 534)[0],
            volatile_write_cache=bool(raw[525] & 1),
            sgls=_U32(raw, 536)[0],
            ebs_device=_text(raw, 3072, 32) if vendor == EBS_VENDOR else "",
            ignored=ignored,
        )


def parse_namespace_list(raw: bytes, where: str, after: int = 0) -> list[int]:
    """Namespace ids (CNS 02h, 10h): above `after`, ascending, ended by 0. Raises ControllerError."""
    check_size(raw, where, "Active Namespace List")
    ids: list[int] = []
    for (nsid,) in struct.iter_unpack("<I", raw):
        if nsid == 0:
            break
        if nsid >= 0xFFFFFFFF or nsid <= (ids[-1] if ids else after):
            raise ControllerError(f"{where}: the list of namespaces is not ascending at {nsid:#x}")
        ids.append(nsid)
    return ids


def parse_controller_list(raw: bytes, where: str) -> list[int]:
    """Controller ids (CNS 12h, 13h): a count, then ascending ids. Raises ControllerError."""
    check_size(raw, where, "Controller List")
    count = int(_U16(raw, 0)[0])
    if count > IDENTIFY_BYTES // 2 - 1:
        raise ControllerError(f"{where}: the list of controllers claims {count} entries")
    ids = list(struct.unpack_from(f"<{count}H", raw, 2))
    if any(a >= b for a, b in itertools.pairwise(ids)):
        raise ControllerError(f"{where}: the list of controllers is not ascending")
    return ids


@dataclass(frozen=True)
class CommandSetLimits:
    """I/O command set specific Identify Controller (CNS 06h, CSI 0); 0: no limit reported."""

    max_verify_bytes: int = 0
    max_write_zeroes_bytes: int = 0
    max_ranges: int = 0
    max_range_blocks: int = 0
    max_deallocate_blocks: int = 0

    @classmethod
    def parse(cls, raw: bytes, where: str, page_bytes: int = 4096) -> CommandSetLimits:
        """Raises ControllerError."""
        check_size(raw, where, "NVM Command Set Controller")
        vsl, wzsl = raw[0], raw[1]
        for name, shift in (("VSL", vsl), ("WZSL", wzsl)):
            if shift > 30:
                raise ControllerError(
                    f"{where}: Identify {name} is {shift}: 2^{shift} pages is absurd"
                )
        return cls(
            max_verify_bytes=page_bytes << vsl if vsl else 0,
            max_write_zeroes_bytes=page_bytes << wzsl if wzsl else 0,
            max_ranges=raw[3],
            max_range_blocks=_U32(raw, 4)[0],
            max_deallocate_blocks=_U64(raw, 8)[0],
        )
