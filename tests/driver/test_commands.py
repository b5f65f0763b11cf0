"""driver.commands: the 64 bytes, field by field as the specification numbers them."""

from __future__ import annotations

import struct

import pytest

from driver import commands
from driver.errors import CommandError, status_name


def dword(command: bytes, index: int) -> int:
    return int(struct.unpack_from("<I", command, 4 * index)[0])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (commands.identify(1), {0: 0x06, 10: 1}),
        (commands.identify(0, 7), {0: 0x06, 1: 7, 10: 0}),
        (commands.create_cq(3, 256, 2), {0: 0x05, 10: 255 << 16 | 3, 11: 2 << 16 | 3}),
        (commands.create_cq(3, 2, None), {0: 0x05, 10: 1 << 16 | 3, 11: 1}),
        (commands.create_sq(3, 256, 4), {0: 0x01, 10: 255 << 16 | 3, 11: 4 << 16 | 5}),
        (commands.delete_sq(9), {0: 0x00, 10: 9}),
        (commands.delete_cq(9), {0: 0x04, 10: 9}),
        (commands.set_features(7, 0x30003), {0: 0x09, 10: 7, 11: 0x30003}),
        (commands.get_features(6), {0: 0x0A, 10: 6}),
        (commands.get_log_page(2, 512), {0: 0x02, 1: 0xFFFFFFFF, 10: 127 << 16 | 2}),
        (commands.get_log_page(2, 1 << 20), {10: 0xFFFF << 16 | 2, 11: 3}),
        (commands.get_log_page(1, 64, retain=True), {10: 15 << 16 | 1 << 15 | 1}),
        (commands.abort(1, 0x1234), {0: 0x08, 10: 0x1234 << 16 | 1}),
        (commands.async_event_request(), {0: 0x0C}),
        (commands.keep_alive(), {0: 0x18}),
        (commands.doorbell_buffer_config(), {0: 0x7C}),
        (commands.flush(5), {0: 0x00, 1: 5}),
        (commands.read(5, 0x123456789A, 65536), {0: 2, 10: 0x3456789A, 11: 0x12, 12: 0xFFFF}),
        (commands.write(5, 1, 1), {0: 1, 1: 5, 10: 1, 11: 0, 12: 0}),
        (commands.write(5, 1, 8, fua=True), {12: 1 << 30 | 7}),
        (commands.compare(5, 1 << 32, 2), {0: 5, 10: 0, 11: 1, 12: 1}),
        (commands.verify(5, 1, 2), {0: 0x0C, 10: 1, 12: 1}),
        (commands.write_zeroes(5, 1, 2, True), {0: 8, 10: 1, 12: 1 << 25 | 1}),
        (commands.write_zeroes(5, 1, 2, False), {12: 1}),
        (commands.dataset_management(5, 256), {0: 9, 10: 255, 11: 4}),
    ],
)
def test_fields(command: bytes, expected: dict[int, int]) -> None:
    assert len(command) == 64
    assert {index: dword(command, index) for index in expected} == expected
    assert not any(command[8:40])  # reserved, metadata and the data pointers that the ring fills in


def test_ranges() -> None:
    raw = commands.pack_ranges([(1 << 40, 5), (7, 0xFFFFFFFF)])
    assert list(struct.iter_unpack("<IIQ", raw)) == [(0, 5, 1 << 40), (0, 0xFFFFFFFF, 7)]


def test_names() -> None:
    assert commands.opcode_name(commands.flush(1), admin=False) == "Flush"
    assert commands.opcode_name(commands.identify(1), admin=True) == "Identify"
    assert commands.opcode_name(b"\x9a", admin=False) == "I/O command 0x9a"


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0x0280, "Write Fault"),
        (0x4281, "Unrecovered Read Error"),
        (0x0080, "LBA Out of Range"),
        (0x01FE, "Command Specific status 0xfe"),
        (0x07C0, "Vendor Specific status 0xc0"),
        (0x04C0, "Reserved status 0xc0"),
    ],
)
def test_status_names(status: int, name: str) -> None:
    assert status_name(status) == name
    error = CommandError(status, "here: Write")
    assert str(error).startswith(f"here: Write: {name} (type ")
    assert error.dnr == bool(status & 0x4000)
