"""Which blocks the tree claims: a bitmap for each group in which something is used, as an integer.

Below: layout.py.  Above: scan.py, which claims; verify.py, which compares with the bitmaps on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvmefs.layout import GROUP_BLOCKS, Superblock, fixed_bits, group_of


@dataclass(slots=True, frozen=True)
class Double:
    """Blocks that were claimed before: by the extent of `inode` at `file_block`, or (-1) by a tree node."""

    start: int
    count: int
    inode: int = -1
    file_block: int = -1

    def covers(self, other: Double) -> bool:
        """Whether `other` is a part of this use."""
        return (
            self.inode == other.inode
            and self.file_block <= other.file_block < self.file_block + self.count
        )

    def __str__(self) -> str:
        if self.inode < 0:
            return "a tree node"
        return f"inode {self.inode} at file block {self.file_block}"


class Space:
    """Claimed blocks. About 4 KiB of memory for each group that is used at all."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self.claimed: dict[int, int] = {}
        self.claimed_blocks = 0

    def claim(self, start: int, count: int) -> list[tuple[int, int]]:
        """Claim blocks of one group; the runs (start, count) among them that were claimed before."""
        group = group_of(start)
        mask = ((1 << count) - 1) << (start - group * GROUP_BLOCKS)
        before = self.claimed.get(group, 0)
        self.claimed[group] = before | mask
        twice = before & mask
        self.claimed_blocks += count
        if not twice:
            return []
        self.claimed_blocks -= twice.bit_count()
        return [(group * GROUP_BLOCKS + first, length) for first, length in runs(twice)]

    def used_bits(self, group: int) -> int:
        """What the bitmap of `group` must be: claimed, the format's own, or behind the end."""
        return self.claimed.get(group, 0) | fixed_bits(group, self.superblock)


def runs(bits: int) -> Iterator[tuple[int, int]]:
    """(first, length) of each run of ones."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        length = (~bits & bits + 1).bit_length() - 1
        yield at + skip, length
        bits >>= length
        at += skip + length


def show_run(start: int, count: int) -> str:
    """'block 7', 'blocks 7-9'."""
    return f"block {start}" if count == 1 else f"blocks {start}-{start + count - 1}"
