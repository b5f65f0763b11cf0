"""Which blocks are free: one bitmap a group, searched from a goal on.

Below: bitmap blocks through the running transaction; the search itself is C (core/bitmap.c).
Above: transaction.py (tree nodes), extents.py and file.py (data).

Two kinds of blocks are free on the disk and still must not be handed out; both are `held`, in memory only:
  * freed ones, until the commit (data) or the checkpoint (tree nodes) after which a crash cannot bring
    their old owner back;
  * reserved ones: data is written first and mapped after, so that no crash can expose what was there.

    runs = allocator.reserve(tx, 100, goal)      hold up to 100 free blocks: [(start, count)]
    ... write the data ...
    allocator.claim(tx, start, count)            mark them used, in the operation that maps them
    allocator.release(start, count)              or give them back, if it came to nothing

Data that continues what is there goes behind it (`goal`). Other data goes where its directory's data went
last (`group`), so that trees written at the same time stay apart; large runs of it begin where the drive
prefers writes to begin (NPWG, NPWA, NOIOB: the superblock's alignment), small ones are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from nvmefs._core import ffi, lib
from nvmefs.cache import Block
from nvmefs.errors import Corrupted, NoSpace
from nvmefs.layout import (
    BITMAP_AT,
    BITMAP_BITS,
    GROUP_ALIGNMENT,
    GROUP_BLOCKS,
    BlockType,
    State,
    Superblock,
    bitmap_block,
    group_of,
)
from nvmefs.transaction import Transaction

BITS_BYTES = BITMAP_BITS // 8
LARGE_BLOCKS = 256  # what is to be aligned at any rate: as much as one request brings


@dataclass(frozen=True)
class Usage:
    """What statfs(2) tells, in blocks of 4,096 bytes."""

    blocks: int
    free_blocks: int
    available_blocks: int
    inodes: int
    free_inodes: int


class Allocator:
    """Free space by group. Counts are in blocks."""

    def __init__(self, superblock: Superblock, state: State) -> None:
        self.superblock = superblock
        self.state = state
        self.resized()
        self.held: dict[int, Any] = {}
        self.held_count: dict[int, int] = {}
        self.held_blocks = 0
        self.held_freed_blocks = 0
        self.full: set[int] = set()
        self.cursor = superblock.journal_end
        self.cursors: dict[int, int] = {}  # by group: behind what was reserved there last
        self._start = ffi.new("uint32_t *")

    def resized(self) -> None:
        """The superblock says how many blocks there are."""
        self.group_count = self.superblock.group_count
        self.metadata_reserve_blocks = min(self.superblock.block_count // 64, 4096) + 32

    @property
    def alignment_blocks(self) -> int:
        """Where large runs begin; 1 where the drive prefers nothing, or nothing that groups can meet."""
        wanted = self.superblock.alignment_blocks
        possible = 1 <= wanted <= GROUP_ALIGNMENT and not wanted & (wanted - 1)
        return wanted if possible else 1

    def group_for(self, directory: int) -> int:
        """The group for what is below a directory of the root: any, but always the same."""
        return (directory * 0x9E3779B97F4A7C15 >> 32 & 0xFFFFFFFF) % self.group_count

    # --- taking -----------------------------------------------------------------------------------

    def available(self, tx: Transaction) -> int:
        """Blocks that the running operation could still get: there is a reserve for what must not fail,
        and one for root.
        """
        free = self.state.free_blocks - self.held_blocks
        if tx.may_use_reserve:
            return free
        for_root = 0 if tx.privileged else self.superblock.reserved_blocks
        return free - self.metadata_reserve_blocks - for_root

    def usage(self) -> Usage:
        """What is used and free. Inodes have no limit of their own: as many are free as blocks."""
        superblock = self.superblock
        free = self.state.free_blocks - self.held_blocks + self.held_freed_blocks
        kept = self.metadata_reserve_blocks + superblock.reserved_blocks
        total = superblock.block_count - superblock.journal_blocks
        return Usage(total, free, max(free - kept, 0), self.state.inode_count + free, free)

    def take_one(self, tx: Transaction, goal: int) -> int:
        """Mark one block near `goal` used, for a tree node. Nodes may use the metadata reserve."""
        if self.state.free_blocks - self.held_blocks <= 0:
            raise NoSpace()
        if not tx.may_use_reserve and self.available(tx) <= 0:
            raise NoSpace()
        for start, _count in self._search(tx, goal or self.cursor, 1):
            self.use(tx, start, 1)
            return start
        raise NoSpace()

    def reserve(
        self, tx: Transaction, count: int, goal: int = 0, group: int = -1
    ) -> list[tuple[int, int]]:
        """Hold `count` free blocks, in as few runs as there are; fewer when space is short.

        From `goal` on, which continues other data; without one, in `group`, or behind what was reserved last.
        Raises NoSpace when not one is left. Changes nothing on the disk.
        """
        wanted = min(count, self.available(tx))
        runs: list[tuple[int, int]] = []

        def undo() -> None:
            for start, length in runs:
                self.release(start, length)

        tx.on_undo(undo)
        at = goal or self._cursor_of(group)
        while wanted > 0:
            for start, length in self._search(tx, at, wanted, continues=bool(goal)):
                self.hold(start, length)
                runs.append((start, length))
                wanted -= length
                at = goal = start + length
                self.cursor = self.cursors[group_of(start)] = at
                break
            else:
                break
        if not runs:
            raise NoSpace()
        return runs

    def _cursor_of(self, group: int) -> int:
        if group < 0 or group >= self.group_count:
            return self.cursor
        first = max(group * GROUP_BLOCKS, self.superblock.journal_end)
        return self.cursors.get(group, first)

    def _search(
        self, tx: Transaction, goal: int, count: int, *, continues: bool = True
    ) -> Iterator[tuple[int, int]]:
        """Free runs of at most `count` blocks, best first: in the goal's group, then in those after it."""
        if not 0 < goal < self.superblock.block_count:
            goal = self.cursor
        first = min(group_of(goal), self.group_count - 1)
        for step in range(self.group_count):
            group = (first + step) % self.group_count
            if group in self.full:
                continue
            begin = goal - group * GROUP_BLOCKS if step == 0 else 0
            start, length = self._find(tx, group, begin, count, continues and not step)
            if length:
                yield group * GROUP_BLOCKS + start, length
            else:
                self.full.add(group)
                tx.on_undo(partial(self.full.discard, group))

    def _find(
        self, tx: Transaction, group: int, begin: int, count: int, continues: bool
    ) -> tuple[int, int]:
        """(first bit, length) of the best free run in a group; length 0 if nothing is free there."""
        bits = tx.get(bitmap_block(group), BlockType.BITMAP).ptr + BITMAP_AT
        held = self.held.get(group, ffi.NULL)

        def find(alignment: int) -> tuple[int, int]:
            length = lib.bitmap_find_run(
                bits, held, BITMAP_BITS, begin, 1, min(count, BITMAP_BITS), alignment, self._start
            )
            return self._start[0], length

        start, length = find(1)
        alignment = self.alignment_blocks
        if alignment == 1 or count < min(alignment, LARGE_BLOCKS):
            return start, length
        if continues and start == begin:
            return start, length
        aligned = find(alignment)
        return aligned if aligned[1] == length else (start, length)

    # --- marking ----------------------------------------------------------------------------------

    def use(self, tx: Transaction, start: int, count: int) -> None:
        """Mark `count` blocks from `start` on used, in the bitmap. Raises Corrupted if one already is."""
        self._mark(tx, start, count, lib.bitmap_set_run, -count)

    def claim(self, tx: Transaction, start: int, count: int) -> None:
        """Mark reserved blocks used; they are held no longer, unless the operation is taken back."""
        self.use(tx, start, count)
        self.release(start, count)
        tx.on_undo(lambda: self.hold(start, count))

    def free(self, tx: Transaction, start: int, count: int) -> None:
        """Mark `count` blocks from `start` on free, in the bitmap. Raises Corrupted if one already is."""
        self._mark(tx, start, count, lib.bitmap_clear_run, count)

    def _mark(
        self, tx: Transaction, start: int, count: int, change: Callable[..., int], delta: int
    ) -> None:
        if not self.superblock.is_allocatable(start, count):
            raise Corrupted(-1, f"blocks {start}+{count} are the format's own, or not of one group")
        group = group_of(start)
        first = start - group * GROUP_BLOCKS
        block = tx.get(bitmap_block(group), BlockType.BITMAP)
        tx.modify(block)
        if change(block.ptr + BITMAP_AT, BITMAP_BITS, first, count):
            state = "free" if delta > 0 else "used"
            raise Corrupted(
                block.number, f"bitmap: of blocks {start}+{count} some are {state} already"
            )
        set_free_count(block, delta)
        self.state.free_blocks += delta

    # --- holding ----------------------------------------------------------------------------------

    def hold(self, start: int, count: int) -> None:
        """Blocks that must not be handed out, though the bitmap says they are free."""
        group = group_of(start)
        bits = self.held.get(group)
        if bits is None:
            bits = self.held[group] = ffi.new("uint8_t[]", BITS_BYTES)
            self.held_count[group] = 0
        if lib.bitmap_set_run(bits, BITMAP_BITS, start - group * GROUP_BLOCKS, count):
            raise Corrupted(-1, f"blocks {start}+{count} are held twice")
        self.held_count[group] += count
        self.held_blocks += count

    def release(self, start: int, count: int) -> None:
        """The end of `hold`."""
        group = group_of(start)
        if lib.bitmap_clear_run(self.held[group], BITMAP_BITS, start - group * GROUP_BLOCKS, count):
            raise Corrupted(-1, f"blocks {start}+{count} are released, but not held")
        self.held_count[group] -= count
        self.held_blocks -= count
        self.full.discard(group)
        if not self.held_count[group]:
            del self.held[group], self.held_count[group]

    def free_later(self, tx: Transaction, start: int, count: int) -> None:
        """Free in the bitmap now, but handed out again only after `release_freed`."""
        self.free(tx, start, count)
        self.hold_freed(tx, start, count)

    def hold_freed(self, tx: Transaction, start: int, count: int) -> None:
        """Blocks that the running operation has freed; handed out again only after `release_freed`."""
        self.hold(start, count)
        self.held_freed_blocks += count
        tx.on_undo(lambda: self.release_freed([(start, count)]))

    def release_freed(self, runs: Iterable[tuple[int, int]]) -> None:
        """Blocks freed by a transaction that no crash can take back."""
        for start, count in runs:
            self.release(start, count)
            self.held_freed_blocks -= count


def set_free_count(block: Block, delta: int) -> None:
    """Add `delta` to the free count in a bitmap's header; the longest-run hint stays an upper bound."""
    data = block.data
    free = int.from_bytes(data[56:58], "little") + delta
    data[56:58] = free.to_bytes(2, "little")
    longest = int.from_bytes(data[58:60], "little")
    if delta > 0 or longest > free:
        data[58:60] = free.to_bytes(2, "little")
