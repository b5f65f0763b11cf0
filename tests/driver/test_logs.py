"""driver.logs: the fields of log pages, and that no byte of one is an error."""

from __future__ import annotations

import contextlib
import json
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver import ControllerError, logs
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


def test_firmware_slots() -> None:
    raw = bytearray(512)
    raw[0] = 2 | 3 << 4
    raw[16:24], raw[24:32] = b"1.0     ", b"2\x01\0junk "
    assert logs.firmware(bytes(raw)) == {
        "active_slot": 2,
        "next_slot": 3,
        "slots": {"2": "1.0", "3": "2?"},
    }


def test_changed_namespaces() -> None:
    raw = struct.pack("<III", 3, 1, 0).ljust(4096, b"\7")
    assert logs.changed(raw) == [3, 1]
    assert len(logs.changed(b"\1" * 4096)) == 1024


def test_effects() -> None:
    raw = bytearray(4096)
    struct.pack_into("<I", raw, 0x80 * 4, 0b01011)
    struct.pack_into("<I", raw, 0xC5 * 4, 1)
    struct.pack_into("<I", raw, 1024 + 4, 3)
    struct.pack_into("<I", raw, 1024 + 8, 2)  # not supported: bit 0
    assert logs.effects(bytes(raw)) == {
        "admin": {
            "format_nvm": ["changes user data", "changes which namespaces there are"],
            "0xc5": [],
        },
        "io": {"write": ["changes user data"]},
    }


def ebs_page(bins: int = 2) -> bytearray:
    raw = bytearray(4096)
    struct.pack_into("<I4x11Q", raw, 0, 0x3C23B510, *range(100, 111))
    for first in (512, 2056):
        struct.pack_into("<Q", raw, first, bins)
        for i in range(min(bins, 64)):
            struct.pack_into("<QQII", raw, first + 8 + 24 * i, i, i + 1, 7 * first + i, 0xFFFF)
    return raw


def test_statistics_of_an_ebs_volume() -> None:
    values = logs.ebs(bytes(ebs_page()), "x")
    assert values["total_read_ops"] == 100
    assert values["ec2_instance_ebs_performance_exceeded_tp"] == 109
    assert values["volume_queue_length"] == 110
    assert values["read_io_latency_histogram"] == [
        {"lower": 0, "upper": 1, "count": 3584},
        {"lower": 1, "upper": 2, "count": 3585},
    ]
    assert values["write_io_latency_histogram"][1]["count"] == 7 * 2056 + 1
    assert len(logs.ebs(bytes(ebs_page(64)), "x")["write_io_latency_histogram"]) == 64


def test_what_is_not_such_a_page() -> None:
    with pytest.raises(ControllerError, match=r"^x: .*begins with 0x0: not the statistics"):
        logs.ebs(bytes(4096), "x")
    with pytest.raises(ControllerError, match="claims 65 bins: at most 64"):
        logs.ebs(bytes(ebs_page(65)), "x")


@given(st.integers(0, 1 << 32), st.dictionaries(st.integers(0, 4095), st.integers(0, 255)))
def test_any_page_is_shown_or_refused(seed: int, spoilt: dict[int, int]) -> None:
    raw = random.Random(seed).randbytes(4096)
    json.dumps([logs.firmware(raw[:512]), logs.changed(raw), logs.effects(raw)])
    page = ebs_page()
    for at, value in spoilt.items():
        page[at] = value
    if page[:4] == ebs_page()[:4] and page[512] <= 64 and not any(page[513:520]):
        with contextlib.suppress(ControllerError):  # the other histogram
            json.dumps(logs.ebs(bytes(page), "x"))
    else:
        with pytest.raises(ControllerError, match=r"^x: log page 0xd0"):
            logs.ebs(bytes(page), "x")
