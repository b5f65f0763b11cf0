"""driver.logs: the fields of log pages, and that no byte of one is an error."""

from __future__ import annotations

import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from driver import logs
from driver.tools import show


def test_smart_fields() -> None:
    raw = bytearray(512)
    raw[0] = 0b100101
    struct.pack_into("<HBBB", raw, 1, 300, 90, 10, 255)
    for i, (_, first) in enumerate(logs._COUNTERS):
        raw[first : first + 16] = ((1 << 100) + i).to_bytes(16, "little")
    struct.pack_into("<IIHH", raw, 192, 7, 8, 310, 0)
    values = logs.smart(bytes(raw))
    assert values["critical_warnings"] == [
        "spare below threshold",
        "reliability degraded",
        "persistent memory region unreliable",
    ]
    assert (values["temperature_c"], values["used_percent"]) == (27, 255)
    assert [values[name] - (1 << 100) for name, _ in logs._COUNTERS] == list(range(10))
    assert (values["warning_temperature_minutes"], values["critical_temperature_minutes"]) == (7, 8)
    assert values["sensors_c"] == [37]


def test_error_entries_that_were_used() -> None:
    raw = bytearray(64 * 4)
    struct.pack_into("<QHHHHQI", raw, 64, 9, 3, 0x1234, 0x281 << 1 | 1, 0x28, 77, 1)
    assert logs.errors(bytes(raw)) == [
        {
            "count": 9,
            "queue": 3,
            "command_id": 0x1234,
            "status": 0x281,
            "status_name": "Unrecovered Read Error",
            "parameter_location": 0x28,
            "lba": 77,
            "nsid": 1,
        }
    ]


@given(st.binary(min_size=512, max_size=512), st.binary(max_size=1024))
def test_anything_is_shown(smart: bytes, errors: bytes) -> None:
    values = {"smart": logs.smart(smart), "entries": logs.errors(errors)}
    json.dumps(values)
    assert show.text(values)
