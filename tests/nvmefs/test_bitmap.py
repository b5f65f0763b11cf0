"""Bitmaps in C against the same bitmaps as integers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmefs._core import ffi, lib
from tests.nvmefs import twins

GROUP = 32256


@st.composite
def bitmaps(draw: st.DrawFn) -> tuple[int, int]:
    """(bits, nbits): long runs, short ones, and lengths that end within a word or a byte."""
    bits = at = 0
    for length in draw(st.lists(st.integers(1, 150), min_size=1, max_size=12)):
        kind = draw(st.sampled_from(("free", "used", "mixed")))
        if kind != "free":
            ones = (1 << length) - 1
            bits |= (ones if kind == "used" else draw(st.integers(0, ones))) << at
        at += length
    return bits, at


def as_bytes(bits: int, nbits: int) -> Any:
    """`bits` for C; those after the last are ones or zeroes, as it comes: they must not matter."""
    length = (nbits + 7) // 8
    noise = (0xA5 << nbits) & ((1 << 8 * length) - 1)
    return ffi.new("uint8_t[]", (bits | noise).to_bytes(length, "little"))


def as_int(raw: Any, nbits: int) -> int:
    return int.from_bytes(bytes(raw), "little") & ((1 << nbits) - 1)


@given(bitmaps(), st.data())
def test_find_run(bitmap: tuple[int, int], data: st.DataObject) -> None:
    bits, nbits = bitmap
    held = data.draw(st.none() | st.integers(0, (1 << nbits) - 1))
    goal = data.draw(st.integers(0, nbits + 5))
    most = data.draw(st.integers(1, nbits + 5))
    least = data.draw(st.integers(1, most))
    align = data.draw(st.sampled_from((1, 2, 4, 8, 64)))
    start = ffi.new("uint32_t *")
    raw_held = ffi.NULL if held is None else as_bytes(held, nbits)
    length = lib.bitmap_find_run(
        as_bytes(bits, nbits), raw_held, nbits, goal, least, most, align, start
    )
    expected = twins.find_run(bits | (held or 0), nbits, goal, least, most, align)
    assert ((start[0], length) if length else None) == expected


@given(bitmaps(), st.data())
def test_run_at_longest_run_and_count(bitmap: tuple[int, int], data: st.DataObject) -> None:
    bits, nbits = bitmap
    raw = as_bytes(bits, nbits)
    runs = twins.runs_of(bits, nbits)
    assert lib.bitmap_count_free(raw, nbits) == sum(end - start for start, end in runs)
    start = ffi.new("uint32_t *")
    length = lib.bitmap_longest_run(raw, ffi.NULL, nbits, start)
    assert length == max((end - begin for begin, end in runs), default=0)
    if length:
        assert (start[0], start[0] + length) in runs
    at = data.draw(st.integers(0, nbits + 3))
    most = data.draw(st.integers(0, nbits))
    here = next((end - at for begin, end in runs if begin <= at < end), 0)
    assert lib.bitmap_run_at(raw, ffi.NULL, nbits, at, most) == min(here, most)


@given(bitmaps(), st.data())
def test_set_and_clear(bitmap: tuple[int, int], data: st.DataObject) -> None:
    """A run changes as a whole, or not at all when one of its bits has that value already."""
    bits, nbits = bitmap
    raw = as_bytes(bits, nbits)
    start = data.draw(st.integers(0, nbits))
    count = data.draw(st.integers(0, nbits - start))
    mask = ((1 << count) - 1) << start
    if data.draw(st.booleans()):
        answer, wrong, after = lib.bitmap_set_run, bits & mask, bits | mask
    else:
        answer, wrong, after = lib.bitmap_clear_run, ~bits & mask, bits & ~mask
    first_wrong = (wrong & -wrong).bit_length()  # 1 + the lowest bit, 0 if there is none
    assert answer(raw, nbits, start, count) == first_wrong
    assert as_int(raw, nbits) == (bits if wrong else after)


@pytest.mark.parametrize(("start", "count"), [(0, 101), (100, 1), (101, 0), (2**32 - 1, 2)])
def test_a_run_outside_is_refused(start: int, count: int) -> None:
    raw = as_bytes(0, 100)
    assert lib.bitmap_set_run(raw, 100, start, count) == lib.BITMAP_OUTSIDE
    assert lib.bitmap_clear_run(raw, 100, start, count) == lib.BITMAP_OUTSIDE
    assert as_int(raw, 100) == 0


@pytest.mark.parametrize(
    ("least", "most", "align"), [(0, 1, 1), (2, 1, 1), (1, 1, 0), (1, 1, 3), (1, 1, 1 << 31)]
)
def test_senseless_searches_find_nothing(least: int, most: int, align: int) -> None:
    start = ffi.new("uint32_t *")
    assert lib.bitmap_find_run(as_bytes(0, 64), ffi.NULL, 64, 0, least, most, align, start) == 0


def test_a_whole_group() -> None:
    """Every run of a group is found and taken, from a goal in its midst around to it."""
    raw = ffi.new("uint8_t[]", GROUP // 8)
    start = ffi.new("uint32_t *")
    goal, taken = 20000, 0
    while length := lib.bitmap_find_run(raw, ffi.NULL, GROUP, goal, 1, 1000, 1, start):
        assert lib.bitmap_set_run(raw, GROUP, start[0], length) == lib.BITMAP_DONE
        goal, taken = start[0] + length, taken + length
    assert taken == GROUP
    assert lib.bitmap_count_free(raw, GROUP) == 0
