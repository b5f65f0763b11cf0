"""A filesystem opened for repairs: its journal, bitmaps and tree, without a mount.

Below: nvmefs.filesystem, whose transactions do the work; check.run.Report.  Above: engine.py and the repairs.

    writer = await Writer.open(report)              the journal's records are home; the state says "in use"
    await writer.run(operation)                     a transaction
    await writer.close()                            all of it is home

The allocator believes the bitmaps; so those are put right before anything else is repaired (engine.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from mkfs.check.run import Report
from nvmefs.allocator import Allocator
from nvmefs.filesystem import Filesystem, Options
from nvmefs.journal import Journal
from nvmefs.layout import (
    BLOCK_BYTES,
    FIRST_FREE_INODE,
    JOURNAL_START,
    MAX_INODE,
    MAX_SEQUENCE,
    TREE_MAIN,
    BlockType,
    ErrorRecord,
    JournalSuper,
    Root,
    State,
    StateFlag,
    bitmap_block,
    encode_bitmap,
)
from nvmefs.recovery import Replay
from nvmefs.transaction import Transaction

T = TypeVar("T")
SPARE_NUMBERS = 1 << 20  # inode numbers that repairs may need


class Writer:
    """The filesystem of a report, writable."""

    def __init__(self, report: Report, filesystem: Filesystem) -> None:
        self.report = report
        self.filesystem = filesystem
        self.device = filesystem.device
        self.superblock = filesystem.superblock
        self.state = filesystem.state
        self.tree = filesystem.tree
        self.goal = 0

    @classmethod
    async def open(cls, report: Report) -> Writer:
        """Bring the journal's records home and begin to write. Raises FsError."""
        source = report.source
        state = source.state or empty_state()
        journal_super, replay = source.journal_super, source.replay
        if journal_super is None:
            journal_super = await new_journal(report)
            replay = Replay(source.superblock, journal_super.tail_seq, journal_super.tail_block)
        allocator = Allocator(source.superblock, state)
        journal = Journal(source.device, source.superblock, state, allocator, journal_super, replay)
        writer = cls(
            report, Filesystem(source.device, source.superblock, state, journal, Options())
        )
        await journal.recover()
        state.flags &= ~StateFlag.CLEAN
        if report.complete:
            writer.correct_counters()
        if source.state is not None:
            await journal.commit_state()
        return writer

    def correct_counters(self) -> None:
        """What the check has counted replaces what the state says."""
        state, report = self.state, self.report
        state.free_blocks = report.free_blocks
        state.inode_count = report.inodes
        lowest = max(report.highest_inode + 1, FIRST_FREE_INODE)
        if not lowest <= state.next_inode <= MAX_INODE - SPARE_NUMBERS:
            state.next_inode = lowest

    async def run(self, operation: Callable[[Transaction], T]) -> T:
        """One transaction; it may use the space that is reserved for metadata. Raises FsError."""

        def apply(tx: Transaction) -> T:
            tx.may_use_reserve = True
            return operation(tx)

        return await self.filesystem.transactions.run(apply)

    async def commit(self) -> None:
        """Make every repair that has returned durable."""
        await self.filesystem.transactions.commit()

    async def close(self) -> None:
        """Everything is home; the filesystem is still marked as in use. Raises FsError."""
        await self.filesystem.journal.commit_state()
        await self.filesystem.journal.checkpoint()

    async def finish(self) -> None:
        """The last step: finish orphans, forget errors, mark the filesystem clean. Raises FsError."""
        self.clear_errors()
        self.state.check_time_s = int(time.time())
        await self.filesystem.close()

    def clear_errors(self) -> None:
        """What mounts have met is repaired, or was not found again."""
        self.state.flags &= ~StateFlag.ERRORS
        self.state.first_error, self.state.last_error = ErrorRecord(), ErrorRecord()

    async def put_bitmap(self, group: int, bits: int) -> None:
        """Replace a bitmap, whatever stands in its place."""
        filesystem = self.filesystem

        def apply(tx: Transaction) -> None:
            number = bitmap_block(group)
            filesystem.cache.drop(number)
            block = filesystem.cache.add(number, BlockType.BITMAP)
            block.data[:] = encode_bitmap(group, bits, self.superblock)
            tx.before[block] = None
            filesystem.allocator.full.discard(group)

        await self.run(apply)

    async def reserve(self, count: int) -> tuple[int, int]:
        """Hold one run of at most `count` free blocks: (start, count). Raises NoSpace."""
        allocator = self.filesystem.allocator
        (start, length), *others = await self.run(
            lambda tx: allocator.reserve(tx, count, self.goal)
        )
        for other in others:
            allocator.release(*other)
        self.goal = start + length
        return start, length


def empty_state() -> State:
    """In place of a state block that is lost; the tree's root is to be found."""
    return State(
        next_inode=FIRST_FREE_INODE,
        free_blocks=0,
        inode_count=0,
        roots=[Root(TREE_MAIN, 0, JOURNAL_START)],
        write_time_s=int(time.time()),
    )


async def new_journal(report: Report) -> JournalSuper:
    """Both superblocks of a journal that holds nothing, in place of two that are lost."""
    source = report.source
    seq = source.newest_seq + 1
    if seq > MAX_SEQUENCE:
        seq = 1
    epoch = secrets.randbits(63) | 1
    await source.device.write(JOURNAL_START, bytes(BLOCK_BYTES))
    journal_super = JournalSuper(0, seq, 0, epoch)
    for generation in (1, 2):
        journal_super = JournalSuper(generation, seq, 0, epoch)
        place, block = journal_super.encode(source.superblock)
        await source.device.write(place, block, fua=True)
    return journal_super
