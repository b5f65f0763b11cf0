"""The bitmap of a group: which of its blocks are used.

Below: header.py, places.py, superblock.py.  Above: the allocator, mkfs and fsck.

One bit a block from byte 64 on, least significant bit first, 1 = used. In the header, `items` is the
number of free blocks of the group and `heap` an upper bound of its longest free run (a hint).
A bitmap block that is all zeroes was never written: fresh_bitmap() stands for it (decision 0001).
"""

from __future__ import annotations

from collections.abc import Iterator

from nvmefs.layout.header import HEADER_BYTES, BlockType, Header, seal
from nvmefs.layout.places import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    JOURNAL_START,
    bitmap_block,
    group_of,
    superblock_places,
)
from nvmefs.layout.superblock import Superblock

BITMAP_AT = HEADER_BYTES
BITMAP_BITS = GROUP_BLOCKS


def fixed_blocks(group: int, superblock: Superblock) -> Iterator[tuple[int, int]]:
    """The runs (block, count) of `group` that belong to the format itself and are never allocated."""
    if group == 0:
        yield 0, JOURNAL_START
    else:
        yield bitmap_block(group), 1
    if group * GROUP_BLOCKS < superblock.journal_end:
        for block, count in superblock.journal_runs(0, superblock.journal_blocks):
            if group_of(block) == group:
                yield block, count
    for place in superblock_places(superblock.block_count)[1:]:
        if group_of(place) == group:
            yield place, 1


def fixed_bits(group: int, superblock: Superblock) -> int:
    """The bitmap of a group in which nothing is allocated, as an integer: bit i is block i of the group.

    Set are the blocks of the format itself and, in the last group, all behind the end of the filesystem.
    """
    first = group * GROUP_BLOCKS
    bits = 0
    for block, count in fixed_blocks(group, superblock):
        bits |= ((1 << count) - 1) << (block - first)
    present = min(GROUP_BLOCKS, superblock.block_count - first)
    return bits | ((1 << GROUP_BLOCKS) - (1 << present))


def free_blocks_when_fresh(superblock: Superblock) -> int:
    """The blocks that belong neither to the format itself nor lie behind the end.

    All groups but the first two, those of a long journal, and the last hold the same: a bitmap.
    """
    count = superblock.group_count
    special = {0, min(1, count - 1), group_of(superblock.block_count - 1)}
    special |= set(range(group_of(superblock.journal_end - 1) + 1))
    free = sum(GROUP_BLOCKS - fixed_bits(group, superblock).bit_count() for group in special)
    return free + (count - len(special)) * (GROUP_BLOCKS - 1)


def longest_free_run(bits: int) -> int:
    """The length of the longest run of free blocks in a group's bitmap, given as an integer."""
    starts = [~bits & (1 << GROUP_BLOCKS) - 1]  # bit b of starts[i]: 2**i blocks from b on are free
    while starts[-1]:
        starts.append(starts[-1] & starts[-1] >> (1 << len(starts) - 1))
    longest, here = 0, -1
    for power in range(len(starts) - 1, -1, -1):
        longer = here & starts[power] >> longest
        if longer:
            longest, here = longest + (1 << power), longer
    return longest


def encode_bitmap(group: int, bits: int, superblock: Superblock, seq: int = 0) -> bytearray:
    """The sealed bitmap block of `group` from its bits as an integer; both counts are exact."""
    block = bytearray(BLOCK_BYTES)
    block[BITMAP_AT:] = bits.to_bytes(BITMAP_BITS // 8, "little")
    header = Header(
        BlockType.BITMAP, bitmap_block(group), superblock.meta_uuid, owner=group, seq=seq,
        items=GROUP_BLOCKS - bin(bits).count("1"), heap=longest_free_run(bits),
    )  # fmt: skip
    seal(block, header, superblock.checksum_seed)
    return block


def fresh_bitmap(group: int, superblock: Superblock) -> bytearray:
    """The sealed bitmap of a group in which nothing but the format's own blocks is used.

    Bits beyond the end of the filesystem, in a short last group, are set.
    """
    return encode_bitmap(group, fixed_bits(group, superblock), superblock)
