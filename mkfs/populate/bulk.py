"""A journal for a filesystem that nobody can find yet: batches go home without a record.

Below: nvmefs.journal.  Above: fill.py.

While mkfs fills a filesystem there is no superblock, so that a crash leaves nothing to recover, and nothing
needs writing twice. What is kept of the journal is its other half: changed blocks wait in memory, are written
in order, and what was freed is free after that.
"""

from __future__ import annotations

from nvmefs.allocator import Allocator
from nvmefs.device import Device
from nvmefs.journal import MAX_BATCH_BLOCKS, MAX_IMAGES, Journal
from nvmefs.layout import STATE_BLOCK, JournalSuper, State, Superblock
from nvmefs.recovery import Replay


class Unlogged(Journal):
    """The journal of a filesystem that is being made; all that it writes is as old as `born_s`."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        state: State,
        allocator: Allocator,
        born_s: int,
    ) -> None:
        first = JournalSuper(2, 1, 0, epoch=0)
        super().__init__(device, superblock, state, allocator, first, Replay(superblock, 1, 0))
        self.born_s = born_s
        self.batch_limit_blocks = MAX_BATCH_BLOCKS

    def fail(self, why: str) -> None:
        """mkfs says itself what went wrong."""
        self.failure = self.failure or why

    async def _commit(self) -> None:
        batch, images = await self._freeze()
        self.state.write_time_s = self.born_s
        images[0] = (STATE_BLOCK, bytes(self.state.encode(self.superblock, batch.seq)))
        self.images.update(images)
        self._settle(batch)
        self.committed_seq = batch.seq
        self.commits += 1
        self._release(batch)
        if len(self.images) > MAX_IMAGES:
            await self.checkpoint()

    async def _move_tail(self, seq: int, position: int, epoch: int | None = None) -> None:
        """Nothing to replay, and nowhere to say so: mkfs writes the journal superblocks itself."""
