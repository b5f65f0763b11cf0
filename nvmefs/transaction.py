"""Operations on metadata: all or nothing, and never waiting in their midst.

Below: cache (blocks), allocator (bitmaps), journal (commit).  Above: filesystem.py, file.py.

An operation is a plain function. It runs without an await from its first line to its last, so no other
operation sees it half done. What it needs and is not in memory it learns by BlockMiss: then everything it
has changed is put back, the block is read, and it starts again. An error puts everything back likewise.

    def create(tx: Transaction) -> Inode:            changes blocks through tx.modify / tx.new_node
        ...
    inode = await transactions.run(create)

`run` returns when the operation is applied in memory; it is durable when the journal has committed
`transactions.open.seq` of that moment. Operations must not keep state outside of blocks, unless they tell
`tx.on_undo` how to put it back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nvmefs.cache import Block, BlockMiss, Cache
from nvmefs.errors import NoSpace, ReadOnly
from nvmefs.layout import BLOCK_BYTES, BlockType, State

if TYPE_CHECKING:
    from nvmefs.allocator import Allocator
    from nvmefs.inodes import Inode
    from nvmefs.journal import Journal

T = TypeVar("T")
SUPERBLOCKS = 3  # with its copies


class Batch:
    """The journal transaction that is open: what all operations since the last freeze have changed."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.blocks: dict[int, Block] = {}
        self.inodes: dict[int, Inode] = {}
        self.freed_data: list[tuple[int, int]] = []
        self.freed_nodes: list[int] = []
        self.superblock = False  # it has changed
        self.operations = 0
        self.forced = False

    @property
    def empty(self) -> bool:
        return not (self.operations or self.forced)

    @property
    def size_blocks(self) -> int:
        """At most how many blocks the record will hold (each changed inode may change one leaf more)."""
        return len(self.blocks) + len(self.inodes) + 1 + (SUPERBLOCKS if self.superblock else 0)


class Transaction:
    """The operation that is running; the store that the tree and the allocator work on."""

    def __init__(self, cache: Cache, allocator: Allocator, state: State) -> None:
        self.cache = cache
        self.allocator = allocator
        self.state = state
        self.get = cache.get
        self.before: dict[Block, bytes | None] = {}
        self.undo: list[Callable[[], None]] = []
        self.inodes: dict[int, Inode] = {}
        self.freed_data: list[tuple[int, int]] = []
        self.freed_nodes: list[int] = []
        self.superblock = False
        self.may_use_reserve = False
        self.privileged = True
        self.counters = (0, 0, 0)
        self.on_change: Callable[[Inode], None] = lambda _: None

    def begin(self, privileged: bool) -> None:
        state = self.state
        self.counters = (state.next_inode, state.free_blocks, state.inode_count)
        self.may_use_reserve = False
        self.privileged = privileged

    def modify(self, block: Block) -> None:
        """Call before the first change of a block's bytes; again is harmless."""
        if block not in self.before:
            self.before[block] = bytes(block.data)

    def on_undo(self, restore: Callable[[], None]) -> None:
        """`restore` is called, in reverse order, should the operation be taken back."""
        self.undo.append(restore)

    def new_node(self, tree_id: int, level: int, goal: int) -> Block:
        """A fresh tree node near block `goal`. Raises NoSpace."""
        number = self.allocator.take_one(self, goal)
        block = self.cache.add(number, BlockType.NODE)
        self.before[block] = None
        data = block.data
        data[11] = level
        data[40:48] = tree_id.to_bytes(8, "little")
        data[58:60] = BLOCK_BYTES.to_bytes(2, "little")
        return block

    def free_node(self, block: Block) -> None:
        """Give a tree node back; its place is used again when the journal no longer holds its image."""
        self.modify(block)
        self.allocator.free_later(self, block.number, 1)
        self.freed_nodes.append(block.number)

    def free_data(self, start: int, count: int) -> None:
        """Give data blocks back; they are used again when this transaction is committed."""
        self.allocator.free_later(self, start, count)
        self.freed_data.append((start, count))

    def change_superblock(self, **fields: Any) -> None:
        """Change fields of the superblock: it and its copies are written with this transaction."""
        superblock = self.cache.superblock
        before = {name: getattr(superblock, name) for name in fields}

        def put(values: dict[str, Any]) -> None:
            for name, value in values.items():
                setattr(superblock, name, value)

        self.on_undo(partial(put, before))
        put(fields)
        self.superblock = True

    def touch(self, inode: Inode) -> None:
        """Call before changing a field of `inode`: its record is written with this transaction."""
        if inode.number not in self.inodes:
            self.inodes[inode.number] = inode
            snapshot = inode.snapshot()
            self.undo.append(lambda: inode.restore(snapshot))

    def roll_back(self) -> None:
        """Put everything back to where it was before the operation."""
        for restore in reversed(self.undo):
            restore()
        for block, data in self.before.items():
            if data is None:
                self.cache.drop(block.number)
            else:
                block.data[:] = data
        state = self.state
        state.next_inode, state.free_blocks, state.inode_count = self.counters
        self._clear()

    def join(self, batch: Batch) -> None:
        """The operation is done: its changes become part of `batch`."""
        if self.before or self.inodes or self.superblock:
            batch.operations += 1
        batch.superblock |= self.superblock
        for block in self.before:
            block.dirty = True
            batch.blocks[block.number] = block
        for inode in self.inodes.values():
            inode.seq = batch.seq
            inode.dirty = True
            inode.unsaved = True
            if inode.published:
                self.on_change(inode)  # before anybody is told: fsync of it has to wait from now on
        batch.inodes.update(self.inodes)
        for number in self.freed_nodes:
            batch.blocks.pop(number, None)
            self.cache.drop(number)
        batch.freed_data += self.freed_data
        batch.freed_nodes += self.freed_nodes
        self._clear()

    def _clear(self) -> None:
        self.before = {}
        self.inodes = {}
        self.undo.clear()
        self.freed_data = []
        self.freed_nodes = []
        self.superblock = False


class Transactions:
    """Runs operations and collects them into the open batch, which the journal commits."""

    def __init__(self, cache: Cache, allocator: Allocator, state: State, journal: Journal) -> None:
        self.cache = cache
        self.journal = journal
        self.state = state
        self.transaction = Transaction(cache, allocator, state)
        self.allocator = allocator
        self.running = False
        self.between: Callable[[], None] = lambda: (
            None
        )  # called before an operation, never within one

    @property
    def open(self) -> Batch:
        return self.journal.open

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation that changes nothing."""
        self.between()
        misses = 0
        while True:
            try:
                return operation(self.transaction)
            except BlockMiss as miss:
                number, kind = miss.number, miss.kind
            misses += 1
            await self._load(number, kind, misses)

    async def run(self, operation: Callable[[Transaction], T], *, privileged: bool = True) -> T:
        """Run an operation that may change the filesystem. Raises ReadOnly, NoSpace, and what it raises.

        `privileged`: it may use the space that is reserved for root. When space is short while freed blocks
        wait for a commit, it commits and tries once more.
        """
        retried = False
        misses = 0
        self.between()
        while True:
            if refusal := self.journal.refusal:
                raise ReadOnly(refusal)
            if self.open.size_blocks >= self.journal.batch_limit_blocks:
                await self.journal.commit_through(self.open.seq)
                continue
            try:
                return self._attempt(operation, privileged)
            except BlockMiss as miss:
                number, kind = miss.number, miss.kind
            except NoSpace:
                if retried or not self.allocator.held_freed_blocks:
                    raise
                retried = True
                await self.journal.release_freed()
                continue
            misses += 1
            await self._load(number, kind, misses)

    def run_now(self, operation: Callable[[Transaction], object]) -> bool:
        """Run an operation that nobody waits for, unless it would have to wait itself: then False."""
        if self.journal.refusal or self.open.size_blocks >= self.journal.batch_limit_blocks:
            return False
        try:
            self._attempt(operation)
        except BlockMiss:
            return False
        return True

    async def _load(self, number: int, kind: BlockType, misses: int) -> None:
        """Read a block that an operation misses. One that misses many could push out what it has read
        itself, for ever: from some point on nothing goes for what it needs.
        """
        await self.cache.load(number, kind, evict=misses <= self.cache.capacity_blocks // 4)

    def _attempt(self, operation: Callable[[Transaction], T], privileged: bool = True) -> T:
        tx = self.transaction
        assert not self.running, "operations do not nest"
        self.running = True
        tx.begin(privileged)
        try:
            result = operation(tx)
        except BaseException:
            tx.roll_back()
            raise
        else:
            tx.join(self.open)
            self.journal.wake()
        finally:
            self.running = False
        return result

    def write_inodes(self, batch: Batch) -> None:
        """Write the records of changed inodes into the tree; called when the batch is about to close.

        Each is an operation of its own, so a BlockMiss on the way loses nothing: what was written before
        stays, and the next call goes on from there. A record never changes size: no space is needed.
        """
        for inode in batch.inodes.values():
            if inode.unsaved:
                self._attempt(inode.save)
                inode.unsaved = False

    async def commit(self) -> None:
        """Make every operation that has returned durable."""
        await self.journal.commit_through(self.open.seq)
