"""Log pages, from bytes to plain values: SMART / Health, and Error Information.

NVM Express base specification 2.0, sections 5.16.1.2 and 5.16.1.3. The bytes come from the device:
nothing here uses one as an index or a length.
"""

from __future__ import annotations

from typing import Any

from ..errors import status_name

SMART_BYTES = 512
ERROR_ENTRY_BYTES = 64
_KELVIN = 273
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
