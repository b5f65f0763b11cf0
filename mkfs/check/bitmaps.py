"""The fourth pass: the bitmaps against what the tree claims.

Below: load.Source, space.Space.  Above: fsck.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import trio

from mkfs.check.load import Source
from mkfs.check.space import runs, show_run
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.layout import (
    BITMAP_AT,
    BLOCK_BYTES,
    GROUP_BLOCKS,
    BlockType,
    bitmap_block,
    fixed_bits,
    longest_free_run,
    verify,
)

READERS = 16
ZERO = bytes(BLOCK_BYTES)


async def check_bitmaps(
    source: Source, progress: Callable[[int], None] = lambda groups: None
) -> int:
    """Every group: used in the bitmap if and only if claimed, its counts right; then the sum.

    How many blocks are free by what the tree claims.
    """
    free = FreeCount(progress)
    groups = iter(range(source.superblock.group_count))
    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(check_groups, source, groups, free)
    state = source.state
    assert state is not None
    if state.free_blocks != free.blocks:
        source.findings.add(
            "state-free",
            f"the state says {state.free_blocks} free blocks, {free.blocks} are",
            found=state.free_blocks,
            expected=free.blocks,
        )
    return free.blocks


class FreeCount:
    """The free blocks of all groups, by what the tree claims."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.blocks = 0
        self.groups = 0
        self.progress = progress

    def add(self, blocks: int) -> None:
        """Those of one group more."""
        self.blocks += blocks
        self.groups += 1
        self.progress(self.groups)


async def check_groups(source: Source, groups: Iterator[int], free: FreeCount) -> None:
    """One of several readers that share `groups`."""
    for group in groups:
        number = bitmap_block(group)
        right = source.space.used_bits(group)
        free.add(GROUP_BLOCKS - right.bit_count())
        try:
            data = await source.read(number)
            if data == ZERO:  # never written (decision 0001)
                compare(source, group, fixed_bits(group, source.superblock), right)
            else:
                check_bitmap(source, group, data, right)
        except (Corrupted, DeviceFailed) as error:
            source.findings.add("bitmap-damaged", f"group {group}: {error}", group=group)


def check_bitmap(source: Source, group: int, data: bytes, right: int) -> None:
    """A bitmap that was written. Raises Corrupted if it is none."""
    superblock, report = source.superblock, partial(source.findings.add, group=group)
    header = verify(
        data,
        bitmap_block(group),
        BlockType.BITMAP,
        seed=superblock.checksum_seed,
        uuid=superblock.meta_uuid,
    )
    bits = int.from_bytes(data[BITMAP_AT:], "little")
    if header.owner != group:
        report("bitmap-damaged", f"group {group}: the bitmap says it is of group {header.owner}")
    free = GROUP_BLOCKS - bits.bit_count()
    if header.items != free:
        report(
            "bitmap-count",
            f"group {group}: the header counts {header.items} free blocks, not {free}",
            found=header.items,
            expected=free,
        )
    longest = longest_free_run(bits)
    if header.heap < longest:
        report(
            "bitmap-hint",
            f"group {group}: the longest free run has {longest} blocks, the header says at most "
            f"{header.heap}",
            found=header.heap,
            expected=longest,
        )
    compare(source, group, bits, right)


def compare(source: Source, group: int, bits: int, right: int) -> None:
    """Report where a bitmap differs from what is claimed."""
    first = group * GROUP_BLOCKS
    for start, count in runs(bits & ~right):
        source.findings.add(
            "bitmap-leak",
            f"group {group}: {show_run(first + start, count)} marked used, belonging to nothing",
            group=group,
            start=first + start,
            count=count,
        )
    for start, count in runs(right & ~bits):
        source.findings.add(
            "bitmap-missing",
            f"group {group}: {show_run(first + start, count)} used, marked free",
            group=group,
            start=first + start,
            count=count,
        )
