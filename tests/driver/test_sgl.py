"""driver/core/sgl.h against descriptors that are read back by the words of the specification."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver._core import ffi, lib

LIST_IOVA = 0x5000_0000
PAGE = 4096


def build(
    parts: list[tuple[int, int]], mode: int = lib.NV_SGL_BYTE, most: int = lib.NV_SGL_MOST
) -> tuple[int, bytes, bytes]:
    """(what it returned, the descriptor in the command, the list)."""
    segments = ffi.new("struct nv_segment[]", parts)
    room = ffi.new("struct nv_sgl_descriptor[]", max(most, 1))
    pointer = ffi.new("uint64_t[2]", [0xDEAD, 0xDEAD])
    count = lib.nv_sgl_build(segments, len(parts), mode, room, LIST_IOVA, most, pointer)
    return int(count), bytes(ffi.buffer(pointer)), bytes(ffi.buffer(room))


def read_back(first: bytes, memory: bytes) -> list[tuple[int, int]]:
    """What a controller makes of it: section 4.1.2.1."""
    address, length, kind = struct.unpack("<QIxxxB", first)
    if kind == 0x00:
        return [(address, length)]
    assert (kind, address, length % 16) == (0x30, LIST_IOVA, 0)
    found = []
    for at in range(0, length, 16):
        address, size, kind = struct.unpack_from("<QIxxxB", memory, at)
        assert kind == 0x00
        found.append((address, size))
    return found


pieces = st.lists(
    st.tuples(st.integers(1, 1 << 48), st.integers(1, 1 << 20)), min_size=1, max_size=40
)


@given(pieces)
def test_what_is_described_is_what_was_given(parts: list[tuple[int, int]]) -> None:
    count, first, memory = build(parts)
    assert count == len(parts)
    assert read_back(first, memory) == parts


@given(pieces)
def test_whole_dwords(parts: list[tuple[int, int]]) -> None:
    aligned = all(iova % 4 == nbytes % 4 == 0 for iova, nbytes in parts)
    count, _, _ = build(parts, lib.NV_SGL_DWORD)
    assert count == (len(parts) if aligned else lib.NV_PRP_UNALIGNED)


@pytest.mark.parametrize(
    ("parts", "most", "code"),
    [
        ([], 256, lib.NV_PRP_EMPTY),
        ([(4096, 0)], 256, lib.NV_PRP_EMPTY),
        ([(4096, 1), (8192, 0)], 256, lib.NV_PRP_EMPTY),
        ([(4096, 1)] * 257, 256, lib.NV_PRP_TOO_LONG),
        ([(4096, 1)] * 2, 0, lib.NV_PRP_TOO_LONG),
        ([(4096, 1 << 32)], 256, lib.NV_PRP_TOO_LONG),
    ],
)
def test_refusals(parts: list[tuple[int, int]], most: int, code: int) -> None:
    assert build(parts, most=most)[0] == code


def test_one_block_needs_no_list() -> None:
    count, first, memory = build([(0x12345, 1 << 20)], most=0)
    assert (count, read_back(first, memory)) == (1, [(0x12345, 1 << 20)])


class Ring:
    """A ring with room for lists, and what it puts into its submission queue."""

    def __init__(self, mode: int) -> None:
        self.memory = [ffi.new("char[]", size) for size in (4 * 64, 4 * 16, 3 * PAGE + PAGE)]
        sq, cq, lists = self.memory
        self.ring = lib.nv_ring_new(1, 4, sq, cq, lists, LIST_IOVA, 1, PAGE)
        self.ring.sgl = mode

    def push(self, parts: list[tuple[int, int]]) -> tuple[int, int]:
        """(PSDT, PRP1 or the descriptor's address), or (code, 0) of a refusal."""
        segments = ffi.new("struct nv_segment[]", parts)
        at = int(self.ring.sq_tail)
        cid = lib.nv_ring_push_segments(self.ring, bytes(64), segments, len(parts), 0)
        if cid < 0:
            return cid, 0
        entry = bytes(ffi.buffer(self.memory[0], 256))[64 * at : 64 * at + 64]
        return entry[1] >> 6, struct.unpack_from("<Q", entry, 24)[0]


SEAM = [(0x10000, 100), (0x20000, 412)]


@pytest.mark.parametrize(
    ("mode", "parts", "sgl"),
    [
        (lib.NV_SGL_BYTE, [(0x10000, 4096)], 0),
        (lib.NV_SGL_BYTE, [(0x10800, 4096)], 0),  # two pages: PRP1 and PRP2
        (lib.NV_SGL_BYTE, [(0x10000, 16384)], 0),  # a list of three is not worth it
        (lib.NV_SGL_BYTE, [(0x10000, 32768)], 1),
        (lib.NV_SGL_BYTE, [(0x10000, 32768), (0x40000, 28672)], 0),
        (lib.NV_SGL_BYTE, SEAM, 1),
        (lib.NV_SGL_BYTE, [(0x10001, 512)], 1),
        (lib.NV_SGL_DWORD, SEAM, 1),
        (lib.NV_SGL_DWORD, [(0x10001, 512)], lib.NV_PRP_UNALIGNED),
        (lib.NV_SGL_NONE, SEAM, lib.NV_PRP_UNALIGNED),
        (lib.NV_SGL_NONE, [(0x10000, 32768)], 0),
    ],
)
def test_when_the_ring_uses_one(mode: int, parts: list[tuple[int, int]], sgl: int) -> None:
    assert Ring(mode).push(parts)[0] == sgl


def test_each_slot_has_a_list_of_its_own() -> None:
    ring = Ring(lib.NV_SGL_BYTE)
    places = {ring.push(SEAM)[1] for _ in range(3)}
    assert places == {LIST_IOVA + i * PAGE for i in range(3)}


def test_a_flag_is_not_left_behind() -> None:
    """The entry of the ring that held an SGL holds PRPs the next time."""
    ring = Ring(lib.NV_SGL_BYTE)
    assert ring.push(SEAM)[0] == 1
    lib.nv_ring_reset(ring.ring)
    assert ring.push([(0x10000, 512)]) == (0, 0x10000)
