"""The search for leaves of the tree that nothing leads to.

Below: check.load.Source.  Above: structure.py.

A leaf says itself what it is: checksum, filesystem, its own place, its keys, and the sequence that wrote it. An
old leaf whose place was given back looks as good as one in use. So a leaf counts only
  * in a block that its group's bitmap calls used (in all blocks of a group without a valid bitmap);
  * if no extent of a newer leaf covers its block: a file's space, not written yet, may hold an old leaf;
  * for the keys that no newer leaf has.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from mkfs.check.load import Source
from mkfs.check.space import Space, runs
from nvmefs._core import ffi, lib
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.items import decode_extent
from nvmefs.layout import (
    BITMAP_AT,
    BLOCK_BYTES,
    GROUP_BLOCKS,
    HEADER_BYTES,
    MAGIC,
    OFFSET_MASK,
    TREE_MAIN,
    BlockType,
    Key,
    Kind,
    bitmap_block,
    fixed_bits,
    verify,
)
from nvmefs.node import leaf_items, node_items, slot_key

READ_BLOCKS = 256
LOOKS_LIKE_A_NODE = MAGIC.to_bytes(4, "little") + BlockType.NODE.to_bytes(2, "little")
Range = tuple[Key, Key]  # keys of low..high-1


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """The items of the leaf in `block` with keys of low..high-1; `whole`: these are all its items."""

    low: Key
    high: Key
    block: int
    whole: bool


class Leaves:
    """The leaves that were found; row i of each array belongs together."""

    def __init__(self) -> None:
        self.block = array("Q")
        self.seq = array("Q")
        self.stale = bytearray()

    def add(self, block: int, seq: int) -> None:
        self.block.append(block)
        self.seq.append(seq)
        self.stale.append(0)


async def find_leaves(source: Source, reached: Space) -> Leaves:
    """Every leaf in a block that is used and is not `reached`, but for those that lie in newer files' space."""
    leaves = Leaves()
    for group in range(source.superblock.group_count):
        used = await used_bits(source, group) & ~reached.used_bits(group)
        for first, count in runs(used):
            start = group * GROUP_BLOCKS + first
            for at in range(start, start + count, READ_BLOCKS):
                await _look(source, leaves, at, min(READ_BLOCKS, start + count - at))
    await _mark_stale(source, leaves)
    return leaves


async def used_bits(source: Source, group: int) -> int:
    """The blocks of a group that may be in use: by its bitmap if that is valid, else all."""
    superblock, number = source.superblock, bitmap_block(group)
    fixed = fixed_bits(group, superblock)
    try:
        data = await source.read(number)
        if not any(data):
            return fixed
        seed, uuid = superblock.checksum_seed, superblock.meta_uuid
        verify(data, number, BlockType.BITMAP, seed=seed, uuid=uuid)
    except (Corrupted, DeviceFailed):
        return (1 << GROUP_BLOCKS) - 1
    return int.from_bytes(data[BITMAP_AT:], "little") | fixed


async def _look(source: Source, leaves: Leaves, start: int, count: int) -> None:
    """Note the leaves among `count` blocks."""
    found = await source.read_many(range(start, start + count))
    for number in range(start, start + count):
        data = found[number]
        if isinstance(data, DeviceFailed) or data[4:10] != LOOKS_LIKE_A_NODE:
            continue
        seq = leaf_seq(source, number, data)
        if seq is not None:
            leaves.add(number, seq)


def leaf_seq(source: Source, number: int, data: bytes) -> int | None:
    """The sequence that wrote the leaf, None if the block is no leaf of this tree that holds items."""
    superblock = source.superblock
    try:
        header = verify(
            data, number, BlockType.NODE, seed=superblock.checksum_seed, uuid=superblock.meta_uuid
        )
    except Corrupted:
        return None
    if header.level or header.owner != TREE_MAIN or not header.items:
        return None
    if lib.node_check(ffi.from_buffer("uint8_t[]", data)):
        return None
    source.newest_seq = max(source.newest_seq, header.seq)
    return header.seq


async def _mark_stale(source: Source, leaves: Leaves) -> None:
    """A leaf in the space of a file is older than the leaf that says so, or that one is the old one."""
    if not leaves.block:
        return
    for row in range(len(leaves.block)):
        data = await source.read(leaves.block[row])
        for start, count in _extents(source, data):
            at = bisect_left(leaves.block, start)
            while at < len(leaves.block) and leaves.block[at] < start + count:
                loser = at if leaves.seq[at] < leaves.seq[row] else row
                leaves.stale[loser] = 1
                at += 1


def _extents(source: Source, data: bytes) -> Iterator[tuple[int, int]]:
    """(start, count) of the extents in a leaf."""
    for (number, rest), value in leaf_items(data):
        if rest >> 56 == Kind.EXTENT:
            try:
                extent = decode_extent(
                    number, rest & OFFSET_MASK, value, source.superblock.block_count
                )
            except Corrupted:
                continue  # the next check tells
            yield extent.start, extent.count


async def pieces_of(source: Source, leaves: Leaves, lost: list[Range]) -> list[Piece]:
    """What the leaves have of the lost ranges, without overlap, in order; a newer leaf goes before an older."""
    taken: list[Piece] = []
    rows = [row for row in range(len(leaves.block)) if not leaves.stale[row]]
    for row in sorted(rows, key=lambda each: (-leaves.seq[each], leaves.block[each])):
        block = leaves.block[row]
        data = await source.read(block)
        low, last = slot_key(data, 0), slot_key(data, node_items(data) - 1)
        high = last[0], last[1] + 1
        for begin, end in _inside(low, high, lost):
            for part in _free_parts(taken, begin, end):
                insort(taken, Piece(*part, block, whole=part == (low, high)))
    return taken


def _inside(low: Key, high: Key, lost: list[Range]) -> Iterator[Range]:
    """The parts of low..high-1 that lie in the lost ranges, which are in order."""
    at = max(0, bisect_left(lost, (low, low)) - 1)
    while at < len(lost) and lost[at][0] < high:
        begin, end = max(low, lost[at][0]), min(high, lost[at][1])
        if begin < end:
            yield begin, end
        at += 1


def _free_parts(taken: list[Piece], low: Key, high: Key) -> list[Range]:
    """The parts of low..high-1 that no piece has."""
    parts = []
    at = max(0, bisect_left(taken, Piece(low, low, 0, False)) - 1)
    while low < high and at < len(taken) and taken[at].low < high:
        if taken[at].high > low:
            if taken[at].low > low:
                parts.append((low, taken[at].low))
            low = max(low, taken[at].high)
        at += 1
    if low < high:
        parts.append((low, high))
    return parts


def slots_of(data: bytes, low: Key, high: Key) -> list[tuple[Key, bytes]]:
    """The items of a leaf with keys of low..high-1."""
    assert len(data) == BLOCK_BYTES > HEADER_BYTES
    return [item for item in leaf_items(data) if low <= item[0] < high]
