"""driver.identify: good bytes become objects, bad bytes an error that names the field."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver import ControllerError, IdentifyController, IdentifyNamespace
from driver.identify import (
    CommandSetLimits,
    parse_controller_list,
    parse_namespace_list,
)
from driver.identify_namespace import NamespaceDescriptors, parse_formats

from .fake import identify_controller, identify_namespace


def test_controller() -> None:
    raw = identify_controller(mdts=5, oncs=0x18D, oacs=0x100)
    struct.pack_into("<I", raw, 88, 3_000_000)
    struct.pack_into("<HHH", raw, 128, 1, 2, 3)
    who = IdentifyController.parse(bytes(raw), "x")
    assert (who.serial, who.model, who.firmware) == ("S1", "fake", "1")
    assert who.max_transfer_bytes == 128 << 10
    assert who.retry_delays_ms == (100, 200, 300)
    assert who.shutdown_timeout_us == 3_000_000
    assert who.compare
    assert who.dataset_management
    assert who.write_zeroes
    assert who.verify
    assert who.copy
    assert who.doorbell_buffers
    assert who.volatile_write_cache
    assert IdentifyController.parse(bytes(raw), "x", 8192).max_transfer_bytes == 256 << 10


def test_no_transfer_limit() -> None:
    raw = bytes(identify_controller(mdts=0))
    assert IdentifyController.parse(raw, "x").max_transfer_bytes == 0


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda raw: raw.__setitem__(slice(0, 4096), bytes(4096)), "all zeroes"),
        (lambda raw: raw.__setitem__(77, 40), "MDTS is 40"),
        (lambda raw: raw.__setitem__(77, 255), "MDTS is 255"),
        (lambda raw: raw.__setitem__(512, 0x77), "SQES"),
        (lambda raw: raw.__setitem__(513, 0), "CQES"),
        (lambda raw: raw.__setitem__(slice(516, 520), bytes(4)), "NN is 0"),
    ],
)
def test_controller_refused(spoil: Callable[[bytearray], None], word: str) -> None:
    raw = identify_controller()
    spoil(raw)
    with pytest.raises(ControllerError, match=rf"^dev: .*{word}"):
        IdentifyController.parse(bytes(raw), "dev")


def test_namespace() -> None:
    raw = identify_namespace(blocks=1000, shift=12, noiob=256)
    raw[24] = 0x10
    struct.pack_into("<HHHHH", raw, 64, 7, 7, 255, 255, 31)
    raw[33], raw[99] = 9, 1
    raw[120:128] = bytes(range(8))
    it = IdentifyNamespace.parse(bytes(raw), "x")
    assert (it.lba_count, it.lba_bytes, it.boundary_blocks) == (1000, 4096, 256)
    assert (it.write_granularity_blocks, it.deallocate_granularity_blocks) == (8, 256)
    assert it.optimal_write_blocks == 32
    assert it.reads_zeroes_after_deallocate
    assert it.write_protected
    assert it.eui64 == bytes(range(8))


def test_hints_only_when_announced() -> None:
    it = IdentifyNamespace.parse(bytes(identify_namespace()), "x")
    assert it.write_granularity_blocks == it.optimal_write_blocks == 0


def test_a_boundary_of_less_than_a_page_is_left_alone() -> None:
    assert IdentifyNamespace.parse(bytes(identify_namespace(noiob=7)), "x").boundary_blocks == 0


@pytest.mark.parametrize(
    ("at", "value", "word"),
    [
        (slice(0, 4096), bytes(4096), "all zeroes"),
        (slice(0, 8), bytes(8), "NSZE is 0"),
        (slice(0, 8), b"\xff" * 8, "NSZE is 18446744073709551615"),
        (25, 64, "NLBAF is 64"),
        (26, 3, "FLBAS names format 3"),
        (130, 0, "LBADS of format 0 is: blocks of 1 bytes"),
        (130, 8, "LBADS of format 0 is: blocks of 256 bytes"),
        (130, 17, "LBADS of format 0 is: blocks of 131072 bytes"),
        (130, 63, "LBADS of format 0 is: blocks of 9223372036854775808 bytes"),
        (130, 64, "LBADS of format 0 is: blocks of 0 bytes"),
        (130, 255, "LBADS of format 0 is: blocks of 0 bytes"),
        (128, 8, "8 bytes of metadata"),
        (29, 1, "DPS is 0x01"),
    ],
)
def test_namespace_refused(at: int | slice, value: object, word: str) -> None:
    raw = identify_namespace()
    raw[at] = value  # type: ignore[call-overload]
    with pytest.raises(ControllerError, match=rf"^dev: .*{word}"):
        IdentifyNamespace.parse(bytes(raw), "dev")


def test_more_than_sixteen_formats() -> None:
    raw = identify_namespace()
    raw[25], raw[26] = 20, 0x21  # format 17
    struct.pack_into("<I", raw, 128 + 4 * 17, 12 << 16)
    assert IdentifyNamespace.parse(bytes(raw), "x").lba_bytes == 4096


def test_hints_that_make_no_sense_are_ignored_and_said() -> None:
    raw = identify_namespace(blocks=1000, noiob=65535)
    raw[24] = 0x10
    struct.pack_into("<QQ", raw, 8, 1001, 1 << 60)
    struct.pack_into("<HHHHH", raw, 64, 7, 0xFFFF, 1000, 999, 0xFFFF)
    it = IdentifyNamespace.parse(bytes(raw), "x")
    assert (it.capacity_blocks, it.used_blocks, it.boundary_blocks) == (1000, 1000, 0)
    assert (it.write_granularity_blocks, it.deallocate_alignment_blocks) == (8, 1000)
    assert it.write_alignment_blocks == it.deallocate_granularity_blocks == 0
    named = [hint.split(":")[0] for hint in it.ignored]
    assert sorted(named) == ["NCAP", "NOIOB", "NOWS", "NPDG", "NPWA", "NUSE"]


def test_a_shutdown_that_would_take_an_hour() -> None:
    raw = identify_controller()
    struct.pack_into("<I", raw, 88, 0xFFFFFFFF)
    who = IdentifyController.parse(bytes(raw), "x")
    assert who.shutdown_timeout_us == 0
    assert "RTD3E" in who.ignored[0]


@pytest.mark.parametrize("namespaces", [1, 0xFFFFFFFF])
def test_any_number_of_namespaces(namespaces: int) -> None:
    raw = identify_controller()
    struct.pack_into("<I", raw, 516, namespaces)
    assert IdentifyController.parse(bytes(raw), "x").namespaces == namespaces


def test_formats() -> None:
    raw = identify_namespace(shift=12)
    raw[25], raw[26] = 2, 2
    struct.pack_into("<III", raw, 128, 9 << 16, 12 << 16 | 8 | 2 << 24, 12 << 16)
    formats, index = parse_formats(bytes(raw), "x")
    assert index == 2
    assert [(f.lba_bytes, f.metadata_bytes, f.performance) for f in formats] == [
        (512, 0, "best"),
        (4096, 8, "good"),
        (4096, 0, "best"),
    ]


def test_lists_of_controllers() -> None:
    raw = struct.pack("<HHHH", 3, 1, 5, 9).ljust(4096, b"\0")
    assert parse_controller_list(raw, "x") == [1, 5, 9]
    for wrong in (struct.pack("<HHH", 2, 5, 5), struct.pack("<H", 2048)):
        with pytest.raises(ControllerError, match="list of controllers"):
            parse_controller_list(wrong.ljust(4096, b"\0"), "x")


def test_limits_of_the_command_set() -> None:
    raw = struct.pack("<BBBBIQ", 1, 2, 0, 3, 4, 5).ljust(4096, b"\0")
    assert CommandSetLimits.parse(raw, "x") == CommandSetLimits(8192, 16384, 3, 4, 5)
    for at, name in ((0, "VSL"), (1, "WZSL")):
        wrong = bytearray(4096)
        wrong[at] = 255
        with pytest.raises(ControllerError, match=f"{name} is 255"):
            CommandSetLimits.parse(bytes(wrong), "x")


PARSERS: list[Callable[[bytes], object]] = [
    lambda raw: IdentifyController.parse(raw, "x"),
    lambda raw: IdentifyNamespace.parse(raw, "x"),
    lambda raw: NamespaceDescriptors.parse(raw, "x"),
    lambda raw: CommandSetLimits.parse(raw, "x"),
    lambda raw: parse_namespace_list(raw, "x"),
    lambda raw: parse_controller_list(raw, "x"),
    lambda raw: parse_formats(raw, "x"),
]


@given(
    st.integers(0, len(PARSERS) - 1),
    st.integers(0, 1 << 32),
    st.sampled_from([4096] * 5 + [0, 4095, 8192]),
)
def test_garbage_is_refused_or_parsed(parser: int, seed: int, length: int) -> None:
    raw = random.Random(seed).randbytes(length)
    try:
        PARSERS[parser](raw)
    except ControllerError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


@given(st.dictionaries(st.integers(0, 600), st.integers(0, 255), max_size=12))
def test_a_few_wrong_bytes(spoilt: dict[int, int]) -> None:
    for raw, parser in (
        (identify_controller(), PARSERS[0]),
        (identify_namespace(), PARSERS[1]),
        (bytearray(4096), PARSERS[2]),
        (bytearray(4096), PARSERS[4]),
    ):
        for at, value in spoilt.items():
            raw[at] = value
        try:
            found = parser(bytes(raw))
        except ControllerError:
            continue
        if isinstance(found, IdentifyNamespace):
            assert 512 <= found.lba_bytes <= 65536
            assert 0 < found.lba_count * found.lba_bytes <= 1 << 63


def test_namespace_list() -> None:
    raw = struct.pack("<IIII", 1, 2, 9, 0).ljust(4096, b"\0")
    assert parse_namespace_list(raw, "x") == [1, 2, 9]
    with pytest.raises(ControllerError, match="not ascending"):
        parse_namespace_list(struct.pack("<II", 2, 1).ljust(4096, b"\0"), "x")
    with pytest.raises(ControllerError, match="not ascending"):
        parse_namespace_list(struct.pack("<I", 7).ljust(4096, b"\0"), "x", after=7)


def test_names_from_the_descriptors_where_identify_has_none() -> None:
    raw = identify_namespace()
    raw[120:128] = bytes(range(8))
    it = IdentifyNamespace.parse(bytes(raw), "x")
    names = NamespaceDescriptors(uuid=b"u" * 16, nguid=b"n" * 16, eui64=b"e" * 8)
    named = it.named(names)
    assert (named.uuid, named.nguid, named.eui64) == (b"u" * 16, b"n" * 16, bytes(range(8)))
    assert it.named(NamespaceDescriptors()) == it


def test_descriptors() -> None:
    raw = b"\x03\x10\0\0" + bytes(range(16)) + b"\x04\x01\0\0\x02"
    found = NamespaceDescriptors.parse(raw.ljust(4096, b"\0"), "x")
    assert (found.uuid, found.csi) == (bytes(range(16)), 2)
    with pytest.raises(ControllerError, match="type 3 at byte 0 has length 200"):
        NamespaceDescriptors.parse(b"\x03\xc8".ljust(4096, b"\0"), "x")
