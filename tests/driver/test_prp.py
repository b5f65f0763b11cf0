"""driver/core/prp.h against an oracle written from the specification's words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver._core import ffi, lib

PAGE = 4096
LIST = 0x7000_0000


def build(
    segments: list[tuple[int, int]], list_pages: int = 64
) -> tuple[int, list[int], list[int]]:
    memory = ffi.new("uint64_t[]", list_pages * PAGE // 8)
    prp = ffi.new("uint64_t[2]")
    array: Any = ffi.new("struct nv_segment[]", segments)
    n = lib.nv_prp_build(array, len(segments), PAGE, memory, LIST, list_pages, prp)
    return n, list(prp), list(memory)


def pages_of(segments: list[tuple[int, int]]) -> list[int]:
    """The address in each page touched, in order."""
    out = []
    for iova, nbytes in segments:
        end = iova + nbytes
        while iova < end:
            out.append(iova)
            iova = (iova // PAGE + 1) * PAGE
    return out


def walk(count: int, prp: list[int], memory: list[int]) -> list[int]:
    """What a controller reads, with chains followed."""
    if count == 1:
        return prp[:1]
    if count == 2:
        return prp
    out, at = prp[:1], prp[1]
    while len(out) < count:
        index = (at - LIST) // 8
        if at % PAGE == PAGE - 8 and count - len(out) > 1:
            at = memory[index]
            assert at % PAGE == 0
            continue
        out.append(memory[index])
        at += 8
    return out


@pytest.mark.parametrize("offset", [0, 4, 512, 4092])
@pytest.mark.parametrize(
    "nbytes",
    [
        4,
        512,
        4095,
        4096,
        4097,
        8192,
        8196,
        12288,
        511 * PAGE,
        512 * PAGE,
        513 * PAGE,
        514 * PAGE,
        1023 * PAGE,
        1024 * PAGE,
        1025 * PAGE,
        8 << 20,
    ],
)
def test_one_segment(offset: int, nbytes: int) -> None:
    segments = [(0x10_0000 + offset, nbytes)]
    n, prp, memory = build(segments)
    want = pages_of(segments)
    assert n == len(want)
    assert walk(n, prp, memory) == want
    if n < 3:
        assert not any(memory)


@st.composite
def scatter(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Segments whose seams are on page boundaries."""
    count = draw(st.integers(1, 6))
    out = []
    for i in range(count):
        base = draw(st.integers(1, 1 << 20)) * PAGE
        pages = draw(st.integers(1, 400))
        head = draw(st.integers(0, PAGE // 4 - 1)) * 4 if i == 0 else 0
        cut = draw(st.integers(0, PAGE - 1)) if i == count - 1 else 0
        out.append((base + head, max(pages * PAGE - head - cut, 1)))
    return out


@given(scatter())
def test_scattered(segments: list[tuple[int, int]]) -> None:
    want = pages_of(segments)
    n, prp, memory = build(segments)
    assert n == len(want)
    assert walk(n, prp, memory) == want


def test_a_list_that_fits_a_page_is_not_chained() -> None:
    n, _prp, memory = build([(PAGE, 513 * PAGE)], list_pages=2)
    assert n == 513
    assert memory[511] == 513 * PAGE  # data, not a chain
    assert memory[512] == 0


@pytest.mark.parametrize(
    ("segments", "code"),
    [
        ([(4098, 4)], lib.NV_PRP_UNALIGNED),
        ([(4096, 100), (8192, 4096)], lib.NV_PRP_UNALIGNED),
        ([(4096, 4096), (8196, 4)], lib.NV_PRP_UNALIGNED),
        ([(4096, 0)], lib.NV_PRP_EMPTY),
        ([], lib.NV_PRP_EMPTY),
        ([(4096, 514 * PAGE)], lib.NV_PRP_TOO_LONG),
    ],
)
def test_refused(segments: list[tuple[int, int]], code: int) -> None:
    assert build(segments, list_pages=1)[0] == code


@pytest.mark.parametrize("entries", [1, 512, 513, 1023, 1024, 1534, 1535])
def test_list_pages_is_enough_and_not_too_much(entries: int) -> None:
    pages = lib.nv_prp_list_pages(entries, 512)
    assert build([(PAGE, (entries + 1) * PAGE)], list_pages=pages)[0] == entries + 1
    if pages > 1:
        assert build([(PAGE, (entries + 1) * PAGE)], pages - 1)[0] == lib.NV_PRP_TOO_LONG
