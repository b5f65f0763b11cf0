"""Log pages, from bytes to plain values: errors, SMART / Health, firmware slots, changed namespaces,
commands and their effects, and the statistics of EBS volumes.

The bytes come from the device. What would be an index, a length or a count is checked
(ControllerError); the rest is only shown.

NVM Express base specification 2.0, sections 5.16.1.2 to 5.16.1.6; for EBS the layout that AWS
publishes with its ebsnvme tool.
"""

from __future__ import annotations

import struct
from typing import Any

from .commands import Admin, Io
from .errors import ControllerError, status_name

SMART_BYTES = 512
ERROR_ENTRY_BYTES = 64
FIRMWARE_BYTES = 512
CHANGED_BYTES = 4096
EFFECTS_BYTES = 4096
EBS_BYTES = 4096
TOO_MANY_CHANGED = 0xFFFFFFFF
_KELVIN = 273
_EBS_MAGIC = 0x3C23B510
_EBS_COUNTERS = (
    "total_read_ops",
    "total_write_ops",
    "total_read_bytes",
    "total_write_bytes",
    "total_read_time",
    "total_write_time",
    "ebs_volume_performance_exceeded_iops",
    "ebs_volume_performance_exceeded_tp",
    "ec2_instance_ebs_performance_exceeded_iops",
    "ec2_instance_ebs_performance_exceeded_tp",
    "volume_queue_length",
)
_EBS_HISTOGRAMS = (("read_io_latency_histogram", 512), ("write_io_latency_histogram", 2056))
_EBS_BINS = 64
_BIN = struct.Struct("<QQII")
_EFFECTS = (
    "supported",
    "changes user data",
    "changes what namespaces can do",
    "changes which namespaces there are",
    "changes what the controller can do",
)
_WARNINGS = (
    "spare below threshold",
    "temperature",
    "reliability degraded",
    "read only",
    "volatile memory backup failed",
    "persistent memory region unreliable",
)
_COUNTERS = (
    ("data_units_read", 32),
    ("data_units_written", 48),
    ("host_reads", 64),
    ("host_writes", 80),
    ("controller_busy_minutes", 96),
    ("power_cycles", 112),
    ("power_on_hours", 128),
    ("unsafe_shutdowns", 144),
    ("media_errors", 160),
    ("error_log_entries", 176),
)


def _number(raw: bytes, first: int, length: int) -> int:
    return int.from_bytes(raw[first : first + length], "little")


def smart(raw: bytes) -> dict[str, Any]:
    """512 bytes of log page 02h. Temperatures in degrees Celsius, shares in percent, data units of
    512,000 bytes.
    """
    warning = raw[0]
    values: dict[str, Any] = {
        "critical_warning": warning,
        "critical_warnings": [name for bit, name in enumerate(_WARNINGS) if warning >> bit & 1],
        "temperature_c": _number(raw, 1, 2) - _KELVIN,
        "available_spare_percent": raw[3],
        "available_spare_threshold_percent": raw[4],
        "used_percent": raw[5],
    }
    values |= {name: _number(raw, first, 16) for name, first in _COUNTERS}
    values["warning_temperature_minutes"] = _number(raw, 192, 4)
    values["critical_temperature_minutes"] = _number(raw, 196, 4)
    sensors = [_number(raw, 200 + 2 * i, 2) for i in range(8)]
    values["sensors_c"] = [kelvin - _KELVIN for kelvin in sensors if kelvin]
    return values


def errors(raw: bytes) -> list[dict[str, Any]]:
    """Entries of log page 01h, newest first; entries that were never used (count 0) are left out."""
    found = []
    for first in range(0, len(raw) - ERROR_ENTRY_BYTES + 1, ERROR_ENTRY_BYTES):
        entry = raw[first : first + ERROR_ENTRY_BYTES]
        count = _number(entry, 0, 8)
        if not count:
            continue
        status = _number(entry, 12, 2) >> 1
        found.append(
            {
                "count": count,
                "queue": _number(entry, 8, 2),
                "command_id": _number(entry, 10, 2),
                "status": status,
                "status_name": status_name(status),
                "parameter_location": _number(entry, 14, 2),
                "lba": _number(entry, 16, 8),
                "nsid": _number(entry, 24, 4),
            }
        )
    return found


def firmware(raw: bytes) -> dict[str, Any]:
    """512 bytes of log page 03h: the active slot, the one after the next reset (0: the same), and the
    revision in each slot that has one.
    """
    slots = {}
    for slot in range(1, 8):
        text = raw[8 * slot : 8 * slot + 8].split(b"\0")[0].decode("latin-1").strip()
        if text:
            slots[str(slot)] = "".join(c if " " <= c <= "~" else "?" for c in text)
    return {"active_slot": raw[0] & 7, "next_slot": raw[0] >> 4 & 7, "slots": slots}


def changed(raw: bytes) -> list[int]:
    """4,096 bytes of log page 04h: ids; TOO_MANY_CHANGED alone stands for more than 1,024."""
    ids: list[int] = []
    for (nsid,) in struct.iter_unpack("<I", raw):
        if nsid == 0:
            break
        ids.append(nsid)
    return ids


def effects(raw: bytes) -> dict[str, Any]:
    """4,096 bytes of log page 05h: for each supported command what it changes, by name."""
    found: dict[str, Any] = {}
    for title, first, names in (("admin", 0, Admin), ("io", 1024, Io)):
        commands: dict[str, list[str]] = {}
        for opcode in range(256):
            entry = _number(raw, first + 4 * opcode, 4)
            if entry & 1:
                known = opcode in names._value2member_map_
                name = names(opcode).name.lower() if known else f"{opcode:#04x}"
                commands[name] = [
                    text for bit, text in enumerate(_EFFECTS) if bit and entry >> bit & 1
                ]
        found[title] = commands
    return found


def ebs(raw: bytes, where: str) -> dict[str, Any]:
    """4,096 bytes of log page D0h of an EBS volume, names as AWS has them: operations, bytes, times and
    latencies in microseconds.

    Raises ControllerError when it is not such a page.
    """
    magic = _number(raw, 0, 4)
    if magic != _EBS_MAGIC:
        raise ControllerError(
            f"{where}: log page 0xd0 begins with {magic:#x}: not the statistics of an EBS volume"
        )
    values: dict[str, Any] = {
        name: _number(raw, 8 + 8 * i, 8) for i, name in enumerate(_EBS_COUNTERS)
    }
    for name, first in _EBS_HISTOGRAMS:
        count = _number(raw, first, 8)
        if count > _EBS_BINS:
            raise ControllerError(
                f"{where}: log page 0xd0: {name} claims {count} bins: at most {_EBS_BINS} fit"
            )
        bins = [_BIN.unpack_from(raw, first + 8 + _BIN.size * i) for i in range(count)]
        values[name] = [{"lower": low, "upper": high, "count": n} for low, high, n, _ in bins]
    return values
