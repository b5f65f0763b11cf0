"""What the kernel answers is believed only where it makes sense: any bytes, errors, never a crash."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import TransportError
from driver.transports import vfio_abi as abi
from driver.transports.vfio_device import parse_region
from driver.transports.vfio_group import type1_limits
from driver.transports.vfio_space import usable_ranges

from .conftest import Open, no_iommufd
from .fake_vfio import FakeKernel, capability, pairs

WHERE = "0000:01:00.0"
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def type1(chain: bytes, first: int = 24, flags: int = 3) -> bytes:
    return struct.pack("<IIQI4x", 24 + len(chain), flags, 0x1000, first) + chain


def region(chain: bytes, first: int = 32, size: int = 0x4000) -> bytes:
    return struct.pack("<IIIIQQ", 32 + len(chain), 0xF, 0, first, size, 0) + chain


def test_a_chain_in_any_order() -> None:
    available = capability(abi.TYPE1_INFO_DMA_AVAIL, 0, struct.pack("<I", 99))  # at 24
    unknown = capability(77, 52, b"\0" * 8)  # at 36
    ranges = capability(abi.TYPE1_INFO_CAP_IOVA_RANGE, 24, pairs((0x1000, 0x1FFF), (0, 0xFFF)))
    answer = type1(available + unknown + ranges, first=36)
    assert list(abi.capabilities(answer, 36, WHERE)) == [(77, 36), (1, 52), (3, 24)]
    assert type1_limits(answer, WHERE) == ([(0, 0xFFF), (0x1000, 0x1FFF)], 99)


def test_a_kernel_that_tells_no_ranges() -> None:
    ranges, available = type1_limits(type1(b"", 0, flags=1), WHERE)
    assert ranges[0][0] >= 1 << 32, "below it lies the window for interrupts"
    assert available == 65535


@pytest.mark.parametrize(
    ("chain", "first", "words"),
    [
        (b"", 24, "points at byte 24 of 24"),
        (b"\0" * 7, 24, "points at byte 24 of 31"),
        (capability(9, 0, b""), U32 - 3, f"points at byte {U32 - 3} of 32"),
        (capability(9, 0, b""), 25, "points at byte 25 of 32"),
        (capability(9, 24, b""), 24, "points at byte 24 of 32 again"),
        (capability(9, 32, b"") + capability(9, 24, b""), 24, "points at byte 24 of 40 again"),
        (capability(1, 0, b""), 24, "-1 entries"),
        (capability(1, 0, struct.pack("<II", 1, 0)), 24, "has 1 entries in 40 bytes"),
        (capability(1, 0, struct.pack("<II", U32, 0)), 24, f"has {U32} entries in 40 bytes"),
        (capability(1, 0, pairs()), 24, "no address below"),
        (capability(1, 0, pairs((0x2000, 0x1000))), 24, "IOVA range 0x2000..0x1000"),
        (capability(1, 0, pairs((1 << 48, U64))), 24, "no address below"),
        (capability(1, 0, pairs((1, 0xFFE))), 24, "no address below"),
        (capability(3, 0, b"\0\0"), 24, "cut off at byte 24"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_chains(chain: bytes, first: int, words: str) -> None:
    with pytest.raises(TransportError, match=words):
        type1_limits(type1(chain, first), WHERE)


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (capability(1, 0, pairs((0x1000, 0x4000))), "wants 16384 of it mapped from 4096 on"),
        (capability(1, 0, pairs((U64, 1))), "mapped from"),
        (capability(1, 0, struct.pack("<II", 9, 0)), "has 9 entries"),
        (capability(1, 32, pairs()), "again"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_regions(chain: bytes, words: str) -> None:
    with pytest.raises(TransportError, match=words):
        parse_region(region(chain), WHERE)


@given(st.binary(max_size=200), st.integers(0, 240) | st.integers(0, U32))
def test_any_answer_is_an_error_or_makes_sense(chain: bytes, first: int) -> None:
    try:
        ranges, _ = type1_limits(type1(chain, first), WHERE)
    except TransportError:
        pass
    else:
        assert all(a <= b < 1 << 48 for a, b in ranges)
    try:
        found = parse_region(region(chain, first), WHERE)
    except TransportError:
        pass
    else:
        assert all(offset + nbytes <= found.size for offset, nbytes in found.areas)


heads = st.tuples(st.sampled_from([1, 3, 9]), st.sampled_from([0, 24, 32, 40, 56, U32]))


@given(st.lists(st.tuples(heads, st.binary(max_size=40)), max_size=6), st.sampled_from([24, 32]))
def test_any_chain_of_headers_ends(parts: list[tuple[tuple[int, int], bytes]], first: int) -> None:
    chain = b"".join(capability(identity, to, body) for (identity, to), body in parts)
    try:
        links = list(abi.capabilities(type1(chain), first, WHERE))
    except TransportError:
        return
    assert len(links) == len({at for _, at in links})


def test_ranges_are_whole_pages_below_2_to_48() -> None:
    assert usable_ranges([(0xFEF00000, U64), (1, 0xFEDF_FFFE)], WHERE) == [
        (0x1000, 0xFEDF_EFFF),
        (0xFEF00000, (1 << 48) - 1),
    ]


def test_an_answer_without_end(kernel: FakeKernel, opened: Open) -> None:
    no_iommufd(kernel.machine)
    kernel.iommu_info = lambda: struct.pack("<I", 1 << 20) + b"\0" * 100  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="wants 1048576 bytes for an answer"):
        opened()


def test_ranges_without_end(kernel: FakeKernel, opened: Open) -> None:
    kernel.ranges = [(i << 24, i << 24) for i in range(5000)]
    with pytest.raises(TransportError, match="the kernel has 5000 IOVA ranges"):
        opened()
