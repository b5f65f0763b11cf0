"""Messages: the wire's layout against the widest-used implementation's header, and what cannot be parsed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.vfio_user import messages as m
from driver.vfio_user.messages import ProtocolError

# struct name in libvfio-user's vfio-user.h or linux/vfio.h: size, and each field's (offset, bytes), there.
WIRE: dict[type[m.Structure], tuple[int, dict[str, tuple[int, int]]]] = {
    m.Header: (
        16,
        {"id": (0, 2), "command": (2, 2), "size": (4, 4), "flags": (8, 4), "error": (12, 4)},
    ),
    m.DmaMap: (
        32,
        {"argsz": (0, 4), "flags": (4, 4), "offset": (8, 8), "address": (16, 8), "size": (24, 8)},
    ),
    m.DmaUnmap: (24, {"argsz": (0, 4), "flags": (4, 4), "address": (8, 8), "size": (16, 8)}),
    m.DeviceInfo: (16, {"argsz": (0, 4), "flags": (4, 4), "regions": (8, 4), "irqs": (12, 4)}),
    m.RegionInfo: (
        32,
        {
            "argsz": (0, 4),
            "flags": (4, 4),
            "index": (8, 4),
            "cap_offset": (12, 4),
            "size": (16, 8),
            "offset": (24, 8),
        },
    ),
    m.SparseArea: (16, {"offset": (0, 8), "size": (8, 8)}),
    m.RegionIoFds: (16, {"argsz": (0, 4), "flags": (4, 4), "index": (8, 4), "count": (12, 4)}),
    m.IoEventFd: (
        40,
        {
            "offset": (0, 8),
            "size": (8, 8),
            "fd_index": (16, 4),
            "type": (20, 4),
            "flags": (24, 4),
            "padding": (28, 4),
            "datamatch": (32, 8),
        },
    ),
    m.IrqInfo: (16, {"argsz": (0, 4), "flags": (4, 4), "index": (8, 4), "count": (12, 4)}),
    m.IrqSet: (
        20,
        {"argsz": (0, 4), "flags": (4, 4), "index": (8, 4), "start": (12, 4), "count": (16, 4)},
    ),
    m.RegionAccess: (16, {"offset": (0, 8), "region": (8, 4), "count": (12, 4)}),
    m.DmaAccess: (16, {"address": (0, 8), "count": (8, 8)}),
    m.WriteMulti: (8, {"count": (0, 8)}),
}

COMMANDS = {
    "VERSION": 1,
    "DMA_MAP": 2,
    "DMA_UNMAP": 3,
    "GET_INFO": 4,
    "GET_REGION_INFO": 5,
    "GET_REGION_IO_FDS": 6,
    "GET_IRQ_INFO": 7,
    "SET_IRQS": 8,
    "REGION_READ": 9,
    "REGION_WRITE": 10,
    "DMA_READ": 11,
    "DMA_WRITE": 12,
    "RESET": 13,
    "REGION_WRITE_MULTI": 15,
}


@pytest.mark.parametrize("structure", WIRE, ids=lambda s: s.__name__)
def test_layout(structure: type[m.Structure]) -> None:
    """One field at a time is all-ones: its bytes, and no others, are."""
    size, fields = WIRE[structure]
    assert size == structure.SIZE
    assert list(fields) == [field.name for field in dataclasses.fields(structure)]
    for name, (offset, nbytes) in fields.items():
        values = dict.fromkeys(fields, 0) | {name: (1 << 8 * nbytes) - 1}
        raw = structure(**values).pack()
        assert raw == bytes(offset) + b"\xff" * nbytes + bytes(size - offset - nbytes), name
        assert structure.parse(raw) == structure(**values)


def test_numbers() -> None:
    assert {command.name: int(command) for command in m.Command} == COMMANDS
    assert (m.FLAG_REPLY, m.FLAG_NO_REPLY, m.FLAG_ERROR) == (1, 0x10, 0x20)
    assert m.HEADER_BYTES == m.Header.SIZE


@pytest.mark.parametrize("structure", WIRE, ids=lambda s: s.__name__)
def test_each_byte_is_needed(structure: type[m.Structure]) -> None:
    for length in range(structure.SIZE):
        with pytest.raises(ProtocolError, match=f"it has {structure.SIZE}"):
            structure.parse(bytes(length))


def test_version() -> None:
    raw = m.Version(0, 1, {"max_msg_fds": 8}).pack()
    assert raw == b'\x00\x00\x01\x00{"capabilities":{"max_msg_fds":8}}\x00'
    assert m.Version.parse(raw) == m.Version(0, 1, {"max_msg_fds": 8})
    assert m.Version.parse(raw[:4]) == m.Version(0, 1, {})


@pytest.mark.parametrize(
    "text",
    [
        b"{}",  # no NUL
        b"\0",
        b"[]\0",
        b"7\0",
        b"{\0",
        b'{"capabilities":7}\0',
        b"\xff\xfe\0",
        b"[" * 4000 + b"\0",
        b" " * 5000 + b"\0",
        b"{}\0{}\0",
    ],
)
def test_version_data_that_is_none(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.Version.parse(bytes(4) + text)


@pytest.mark.parametrize("value", ["8", None, True, 1.5, 0, -1, [], 1e999])
def test_capability_that_is_no_number(value: object) -> None:
    raw = bytes(4) + json.dumps({"capabilities": {"max_msg_fds": value}}).encode() + b"\0"
    with pytest.raises(ProtocolError, match="max_msg_fds"):
        m.Version.parse(raw).number("max_msg_fds", 1, 1, 253)


def test_capability_number_is_bounded() -> None:
    version = m.Version(0, 1, {"max_msg_fds": 10**30})
    assert version.number("max_msg_fds", 1, 1, 253) == 253
    assert version.number("max_dma_maps", 64, 1, 65535) == 64


AREAS = [m.SparseArea(0x1000, 0x1000), m.SparseArea(0x3000, 0x1000)]


def region_info(argsz: int = 80, cap_offset: int = 32) -> m.RegionInfo:
    flags = m.REGION_READ | m.REGION_WRITE | m.REGION_MMAP | m.REGION_CAPS
    return m.RegionInfo(argsz, flags, 0, cap_offset, 0x4000, 0)


def test_region_info() -> None:
    raw = m.pack_region_info(region_info(), AREAS)
    assert len(raw) == m.region_info_bytes(2) == 80
    assert m.parse_region_info(raw) == (region_info(), AREAS)
    # The header of linux/vfio.h: id 1, version 1, next 0, nr_areas 2, reserved.
    assert raw[32:48].hex() == "01000100000000000200000000000000"


def test_an_unknown_capability_is_stepped_over() -> None:
    sparse = m.pack_region_info(region_info(), AREAS)[32:]
    raw = region_info().pack() + bytes.fromhex("6300010030000000" + "00" * 8) + sparse
    assert m.parse_region_info(raw)[1] == AREAS


@pytest.mark.parametrize(
    ("cap_offset", "capability"),
    [
        (32, "0100010020000000" + "00" * 8),  # its own successor
        (8, ""),  # inside the structure
        (33, "00" * 8),
        (4096, "00" * 16),
        (32, "010001000000000003000000" + "00" * 20),  # three areas, one is there
        (32, "0100010000000000ffffffff" + "00" * 20),
        (32, "0200010008000000" + "00" * 8),
    ],
)
def test_capability_lists_that_lead_astray(cap_offset: int, capability: str) -> None:
    raw = region_info(cap_offset=cap_offset).pack() + bytes.fromhex(capability)
    with pytest.raises(ProtocolError):
        m.parse_region_info(raw)


def test_io_fds() -> None:
    entries = [m.IoEventFd(0x1000, 4, 0), m.IoEventFd(0x1004, 4, 0)]
    raw = m.pack_io_fds(0, entries)
    assert m.parse_io_fds(raw, 1) == entries
    with pytest.raises(ProtocolError, match="0 of 0"):
        m.parse_io_fds(raw, 0)
    with pytest.raises(ProtocolError, match="are not there"):
        m.parse_io_fds(raw[:-1], 1)


def test_data_has_the_length_that_was_announced() -> None:
    access = m.RegionAccess(0, 0, 4)
    assert m.parse_data(access.pack() + b"data", access) == b"data"
    for wrong in (b"dat", b"data!", b""):
        with pytest.raises(ProtocolError, match="4 are announced"):
            m.parse_data(access.pack() + wrong, access)


def test_small_writes() -> None:
    writes = [m.SmallWrite(0x14, 0, 4, b"abcdefgh"), m.SmallWrite(0x28, 0, 8, b"12345678")]
    raw = m.WriteMulti(2).pack() + b"".join(write.pack() for write in writes)
    assert len(raw) == 8 + 2 * 24
    assert m.parse_small_writes(raw) == writes
    for wrong in (
        raw[:-1],
        raw + b"\0",
        m.WriteMulti(3).pack() + raw[8:],
        m.WriteMulti(2**64 - 1).pack(),
    ):
        with pytest.raises(ProtocolError):
            m.parse_small_writes(wrong)
    with pytest.raises(ProtocolError, match="of 9 bytes"):
        m.parse_small_writes(m.WriteMulti(1).pack() + m.SmallWrite(0, 0, 9, bytes(8)).pack())


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_a_protocol_error(raw: bytes) -> None:
    parsers: list[Callable[[bytes], object]] = [
        m.Version.parse,
        m.parse_region_info,
        m.parse_small_writes,
        lambda raw: m.parse_io_fds(raw, 1),
        *(structure.parse for structure in WIRE),
    ]
    for parse in parsers:
        with contextlib.suppress(ProtocolError):
            parse(raw)
