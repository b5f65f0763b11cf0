"""The redo journal: whole-block images, committed in groups, brought home behind.

Below: the device; recovery.py, which reads what this module writes.  Above: transaction.py and filesystem.py.

    journal.open                              the batch that operations join
    await journal.commit_through(seq)         returns when that batch is durable; many callers, one record
    await journal.checkpoint()                committed images go home; their room in the ring is free again

A commit is four steps, and the third is the real one:
    freeze      changed inodes into the tree, blocks copied and sealed; the next batch opens
    flush       the data that the batch maps is durable (skipped when the drive has nothing unflushed)
    write       the record, with FUA: durable = committed
    release     data blocks it freed may be used again, or are discarded first (discards.py); waiters return

Why a failure is final: once a record could not be written, memory and disk differ for good. The filesystem
then refuses changes and stays readable; what was not committed is lost, as in a crash, and nothing else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable

import trio

from driver import crc32c, trace
from nvmefs.allocator import Allocator
from nvmefs.cache import Block, BlockMiss, Cache
from nvmefs.device import Device
from nvmefs.discards import Discards
from nvmefs.errors import Corrupted, FsError, ReadOnly
from nvmefs.layout import (
    BLOCK_BYTES,
    STATE_BLOCK,
    TAGS_PER_HEADER,
    ErrorRecord,
    JournalSuper,
    RecordHeader,
    State,
    StateFlag,
    Superblock,
    record_blocks,
    seal_metadata,
    superblock_places,
)
from nvmefs.recovery import Replay, newest_images
from nvmefs.transaction import Batch

log = logging.getLogger("nvmefs.journal")

MAX_BATCH_BLOCKS = 4096
LEAST_BATCH_BLOCKS, LEAST_IMAGES = 64, 128  # however small the cache
MAX_IMAGES = 8192  # 32 MiB of images not home yet; then a checkpoint begins
RECOVERED_AT_ONCE = 512  # images in memory while a mount brings home what it finds in the journal


class Journal:
    """The journal of a mounted filesystem. Sequences count batches from the one before the oldest needed."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        state: State,
        allocator: Allocator,
        journal_super: JournalSuper,
        replay: Replay,
        *,
        read_only: bool = False,
        discard: bool = False,
    ) -> None:
        self.device = device
        self.superblock = superblock
        self.state = state
        self.allocator = allocator
        self.read_only = read_only
        self.discards = Discards(device, allocator) if discard else None
        self.failure: str | None = None
        self.halted: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_commit: Callable[[int], None] = lambda _: None
        self.super = journal_super
        self.images: dict[int, bytes] = {}
        self.replayed = replay.places
        self.open = Batch(replay.next_seq)
        self.committed_seq = replay.next_seq - 1
        self.head = replay.head_block
        self.records: deque[tuple[int, int]] = deque()  # (seq, blocks) not checkpointed
        self.used_blocks = 0
        self.freed_nodes: deque[tuple[int, list[int]]] = deque()  # (seq, blocks)
        length = superblock.journal_blocks
        self.batch_limit_blocks = min(MAX_BATCH_BLOCKS, length // 4)
        self.max_images = MAX_IMAGES
        self.cache: Cache | None = None
        self.write_inodes: Callable[[Batch], None] | None = None
        self._committing: trio.Event | None = None
        self._checkpointing: trio.Event | None = None
        self._dirty = trio.Event()
        self.commits = 0
        self.checkpoints = 0

    def bound_memory(self, cache_blocks: int) -> None:
        """What is held for the journal is to be no more than what the cache may hold: a quarter of it in the
        open batch, half of it images that are not home.
        """
        self.batch_limit_blocks = min(
            self.batch_limit_blocks, max(cache_blocks // 4, LEAST_BATCH_BLOCKS)
        )
        self.max_images = min(MAX_IMAGES, max(cache_blocks // 2, LEAST_IMAGES))

    @property
    def refusal(self) -> str | None:
        """Why the filesystem accepts no changes; None where it does."""
        return self.failure or self.halted or ("mounted read-only" if self.read_only else None)

    @property
    def writable(self) -> bool:
        return self.refusal is None

    def statistics(self) -> dict[str, int]:
        """Counters since the mount, and what waits now."""
        return {
            "blocks": self.superblock.journal_blocks,
            "used_blocks": self.used_blocks,
            "images_not_home": len(self.images) + len(self.replayed),
            "committed_seq": self.committed_seq,
            "open_operations": self.open.operations,
            "commits": self.commits,
            "checkpoints": self.checkpoints,
            "discarded_blocks": self.discards.discarded_blocks if self.discards else 0,
        }

    # --- for the operations -------------------------------------------------------------------------

    def wake(self) -> None:
        """The open batch holds something: the commit timer starts."""
        if not self.open.empty:
            self._dirty.set()

    async def commit_every(self, seconds: float) -> None:
        """Commit what is open `seconds` after its first change, for ever. Sleeps while nothing changes."""
        while True:
            await self._dirty.wait()
            await trio.sleep(seconds)
            if self.failure is not None:
                await trio.sleep_forever()
            try:
                await self.commit_through(self.open.seq)
            except FsError as error:
                log.error("commit failed: %s", error)

    async def commit_through(self, seq: int) -> None:
        """Return when batch `seq` and all before it are durable. Raises ReadOnly after a failure.

        One commit runs at a time. Who comes while one runs waits for it, then one of those waiting commits
        all that has come together meanwhile: a group commit.
        """
        while self.committed_seq < seq:
            if self.failure is not None:
                raise ReadOnly(self.failure)
            if self._committing is not None:
                await self._committing.wait()
                continue
            if self.open.empty:
                return
            self._committing = trio.Event()
            try:
                with trio.CancelScope(shield=True):
                    await self._commit()
            except BaseException as error:  # a fault of ours too: what the batch held is lost
                self.fail(str(error) or repr(error))
                raise
            finally:
                self._committing.set()
                self._committing = None

    def fail(self, why: str) -> None:
        """From now on nothing is written. The first reason is kept, and logged."""
        if self.failure is None:
            self.failure = f"the filesystem turned read-only: {why}"
            log.critical("%s", self.failure)
            self.on_failure()

    def halt(self, why: str) -> None:
        """From now on no operation changes anything; what has returned is still committed."""
        if self.writable:
            self.halted = f"the filesystem turned read-only: {why}"
            log.critical("%s", self.halted)
            self.on_failure()

    def note_error(self, error: Corrupted, *, halt: bool) -> None:
        """Say in the state block that an error was met: the first, and the last of so many."""
        if not self.writable:
            return
        state = self.state
        state.flags |= StateFlag.ERRORS
        state.last_error = ErrorRecord(
            int(time.time()),
            max(error.block, 0),
            error.errno,
            min(state.last_error.count + 1, 2**32 - 1),
            error.what.encode()[:48],
        )
        if not state.first_error.count:
            state.first_error = state.last_error
        self.force()
        if halt:
            self.halt(f"{error} (errors=remount-ro)")

    async def release_freed(self) -> None:
        """Make blocks that were freed allocatable: commit, and checkpoint where tree nodes wait."""
        await self.commit_through(self.open.seq)
        upto = self.committed_seq
        while self.freed_nodes and self.freed_nodes[0][0] <= upto:
            await self.checkpoint()  # perhaps one that began before that commit
        if self.discards is not None:
            await self.discards.drain()

    # --- commit -------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        batch, images = await self._freeze()
        if trace.enabled:
            trace.hop("journal.commit", seq=batch.seq, images=len(images))
        needed = record_blocks(len(images))
        room = self.superblock.journal_blocks - 1
        if needed > room:
            raise Corrupted(-1, f"a transaction of {needed} blocks, the journal has {room}")
        while self.used_blocks + needed > room:
            await self.checkpoint()  # perhaps one that began too early to give room enough
        await self.device.flush()
        await self._write_record(batch.seq, images)
        self.images.update(images)
        self._settle(batch)
        self.records.append((batch.seq, needed))
        self.used_blocks += needed
        self.committed_seq = batch.seq
        self.on_commit(batch.seq)
        self.commits += 1
        self._release(batch)
        if (
            len(self.images) > self.max_images
            or self.used_blocks > self.superblock.journal_blocks // 2
        ):
            await self.checkpoint()

    async def _freeze(self) -> tuple[Batch, list[tuple[int, bytes]]]:
        """Close the open batch: its blocks as they are now, sealed. No await from the first copy on."""
        assert self.cache is not None
        assert self.write_inodes is not None
        while True:
            try:
                self.write_inodes(self.open)
                break
            except BlockMiss as miss:
                number, kind = miss.number, miss.kind
            await self.cache.load(number, kind, evict=False)
        batch = self.open
        self.open = Batch(batch.seq + 1)
        self._dirty = trio.Event()
        self.state.write_time_s = int(time.time())
        images = [(STATE_BLOCK, bytes(self.state.encode(self.superblock, batch.seq)))]
        for number, block in sorted(batch.blocks.items()):
            images.append((number, self._seal(block, batch.seq)))
        if batch.superblock:
            places = superblock_places(self.superblock.block_count)
            images += [(place, bytes(self.superblock.encode(place))) for place in places]
        return batch, images

    def _settle(self, batch: Batch) -> None:
        """What the record holds may leave memory now, unless the open batch has changed it again.

        Not before: a block read back while its record is written would be an older one, and an inode
        would no longer know that an fsync of it has to wait.
        """
        for number, block in batch.blocks.items():
            if self.open.blocks.get(number) is not block:
                block.dirty = False
        for number, inode in batch.inodes.items():
            if number not in self.open.inodes:
                inode.dirty = False
        assert self.cache is not None
        self.cache.make_room(0)

    def _seal(self, block: Block, seq: int) -> bytes:
        """A copy of a cached block with its header complete."""
        seal_metadata(block.data, block.type, block.number, self.superblock, seq)
        return bytes(block.data)

    async def _write_record(self, seq: int, images: list[tuple[int, bytes]]) -> None:
        """Headers and images, at the ring's head. Durable on return: this is the commit."""
        blocks = record_blocks(len(images))
        headers = blocks - len(images)
        record = bytearray(blocks * BLOCK_BYTES)
        view = memoryview(record)
        at = 0
        for index in range(headers):
            part = images[index * TAGS_PER_HEADER : (index + 1) * TAGS_PER_HEADER]
            place = self.superblock.journal_place(self.head + at)
            tags = [(home, crc32c(image)) for home, image in part]
            header = RecordHeader(self.super.epoch, seq, index, headers, len(images), tags)
            header.encode_into(view[at * BLOCK_BYTES :][:BLOCK_BYTES], place, self.superblock)
            at += 1
            for _, image in part:
                view[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] = image
                at += 1
        at = 0
        for block, count in self.superblock.journal_runs(self.head, blocks):
            piece = view[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES]
            await self.device.write(block, piece, fua=True)
            at += count
        self.head = (self.head + blocks) % self.superblock.journal_blocks

    def _release(self, batch: Batch) -> None:
        """Data blocks are free for use once their freeing is committed; tree nodes after a checkpoint."""
        self._release_blocks(batch.freed_data)
        for number in batch.freed_nodes:
            self.images.pop(number, None)
        if batch.freed_nodes:
            self.freed_nodes.append((batch.seq, batch.freed_nodes))

    def _release_blocks(self, runs: list[tuple[int, int]]) -> None:
        if self.discards is not None:
            self.discards.add(runs)
        else:
            self.allocator.release_freed(runs)

    # --- checkpoint ---------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Write committed images home, flush, and only then move the tail of the journal past them.

        Raises ReadOnly or DeviceFailed. One runs at a time; a second caller waits for it.
        """
        if self._checkpointing is not None:
            await self._checkpointing.wait()
            return
        if self.failure is not None:
            raise ReadOnly(self.failure)
        self._checkpointing = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                await self._checkpoint()
        except BaseException as error:
            self.fail(str(error) or repr(error))
            raise
        finally:
            self._checkpointing.set()
            self._checkpointing = None

    async def _checkpoint(self) -> None:
        upto, position = self.committed_seq, self.head
        images = dict(self.images)
        await self._write_home(images)
        await self.device.flush()
        await self._move_tail(upto + 1, position)
        for number, image in images.items():
            if self.images.get(number) is image:
                del self.images[number]
        while self.records and self.records[0][0] <= upto:
            self.used_blocks -= self.records.popleft()[1]
        while self.freed_nodes and self.freed_nodes[0][0] <= upto:
            self._release_blocks([(number, 1) for number in self.freed_nodes.popleft()[1]])
        self.checkpoints += 1

    async def _write_home(self, images: dict[int, bytes]) -> None:
        """The images in ascending order, neighbours in one write. Superblocks one by one, each durable before
        the next: however the power goes, one of them can be read.
        """
        run: list[bytes] = []
        first = 0
        places = [p for p in superblock_places(self.superblock.block_count) if p in images]
        for number in sorted(images.keys() - places):
            if run and number == first + len(run) and len(run) < 256:
                run.append(images[number])
                continue
            if run:
                await self.device.write(first, b"".join(run))
            first, run = number, [images[number]]
        if run:
            await self.device.write(first, b"".join(run))
        for place in reversed(places):
            await self.device.write(place, images[place], fua=True)

    async def _move_tail(self, seq: int, position: int, epoch: int | None = None) -> None:
        """Say in the other journal superblock that replay starts at `seq`."""
        self.super = JournalSuper(
            self.super.generation + 1, seq, position, epoch or self.super.epoch
        )
        place, block = self.super.encode(self.superblock)
        await self.device.write(place, block, fua=True)

    async def recover(self) -> None:
        """At mount, writable: bring replayed images home and start a new epoch, so that no record of the
        old one can count again. May itself be interrupted: until the tail has moved, all is as before.
        """
        last = set(superblock_places(self.superblock.block_count))
        homes = sorted(self.replayed, key=lambda home: (home in last, home))
        for at in range(0, len(homes), RECOVERED_AT_ONCE):
            some = homes[at : at + RECOVERED_AT_ONCE]
            await self._write_home(await newest_images(self.device, self.replayed, some))
        await self.device.flush()
        await self._move_tail(self.open.seq, self.head, secrets.randbits(63) | 1)
        self.replayed.clear()

    def force(self) -> None:
        """The open batch is to be committed even if the state block is all that it changes."""
        self.open.forced = True
        self._dirty.set()

    async def commit_state(self) -> None:
        """Make the state block durable, with whatever else is open."""
        self.force()
        await self.commit_through(self.open.seq)
