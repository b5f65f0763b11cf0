"""The bytes of files: read, write, truncate.

Below: extents.py and inline.py (where the bytes are), device.py (the bytes).  Above: filesystem.py.

A write of new blocks goes in this order, so that a crash shows either the old file or the new data, never
what the blocks held before:
    reserve blocks (in memory) -> write the data -> one operation marks them used, maps them, sets the size
Blocks already mapped are overwritten in place. A small file lives in the tree (inline) until it grows.

What stands in the last block behind the end of a file is not defined; it is zeroed when the file grows over
it. Zeroing it when the file shrinks would destroy data that a crash may bring back; for the same reason the
block of a file that has shrunk is written again only when the shrinking is committed, and so are blocks that
were zeroed by making them unwritten (regions.py).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial

from driver import DmaBuffer, trace
from nvmefs.allocator import Allocator
from nvmefs.cache import BlockMiss
from nvmefs.clock import now
from nvmefs.dataplane import OFFER_AFTER, OFFER_EXTENTS, DataPlane
from nvmefs.device import Data, Device
from nvmefs.errors import DeviceFailed, FsError, NoSpace
from nvmefs.extents import Extents
from nvmefs.inline import delete_inline, read_inline, write_inline
from nvmefs.inodes import Inode, Inodes
from nvmefs.items import EXTENT_UNWRITTEN, INODE_IMMUTABLE, INODE_INLINE, Extent
from nvmefs.journal import Journal
from nvmefs.layout import BLOCK_BYTES, INLINE_BYTES, MAX_FILE_BYTES, Buffer, Kind, key
from nvmefs.ranges import END
from nvmefs.transaction import Transaction, Transactions
from nvmefs.tree import Tree

OFFER_RETRY = 64  # requests until a file whose map was not all in memory is looked at again
UNMAP_EXTENTS = 64  # extents that one operation unmaps; a larger file takes several


@dataclass(slots=True)
class _Plan:
    """Where the blocks of a write go: `old` are mapped and written, `unwritten` mapped only, `new` reserved."""

    old: list[Extent]
    unwritten: list[Extent]
    new: list[Extent]


class Files:
    """Reading and writing regular files."""

    def __init__(
        self,
        device: Device,
        tree: Tree,
        inodes: Inodes,
        extents: Extents,
        allocator: Allocator,
        transactions: Transactions,
        journal: Journal,
    ) -> None:
        self.device = device
        self.tree = tree
        self.inodes = inodes
        self.extents = extents
        self.allocator = allocator
        self.transactions = transactions
        self.journal = journal
        self.plane: DataPlane | None = None

    # --- read ---------------------------------------------------------------------------------------

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        inode = await self.transactions.read(lambda tx: self.inodes.get(tx, number))
        if trace.enabled:
            trace.hop("file.read", inode=number, offset=offset, bytes=size)
        end = min(offset + size, inode.size_bytes)
        if end <= offset:
            return b""
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        await inode.ranges.acquire(first, last, exclusive=False)
        try:
            end = min(end, inode.size_bytes)  # no further than what is held, should it have grown
            if end <= offset:
                return b""
            if inode.flags & INODE_INLINE:
                data = await self._inline(inode)
                return data[offset:end]
            return await self._read_blocks(inode, offset, end)
        finally:
            inode.ranges.release(first, last, exclusive=False)

    async def _inline(self, inode: Inode) -> bytes:
        return await self.transactions.read(
            lambda tx: read_inline(self.tree, tx, inode.number, inode.size_bytes)
        )

    async def _read_blocks(self, inode: Inode, offset: int, end: int) -> bytes:
        first = offset // BLOCK_BYTES
        count = (end - 1) // BLOCK_BYTES + 1 - first
        mapped = await self.transactions.read(
            lambda tx: self.extents.map_range(tx, inode.number, first, count)
        )
        self._offer(inode)
        skip = offset - first * BLOCK_BYTES
        if len(mapped) == 1 and mapped[0].count == count and not mapped[0].flags:
            return await self.device.read(mapped[0].start, count, skip, end - offset)
        data = bytearray(count * BLOCK_BYTES)
        for extent in mapped:
            if not extent.flags & EXTENT_UNWRITTEN:
                at = (extent.file_block - first) * BLOCK_BYTES
                data[at : at + extent.count * BLOCK_BYTES] = await self.device.read(
                    extent.start, extent.count
                )
        return bytes(memoryview(data)[skip : skip + end - offset])

    # --- the front end ------------------------------------------------------------------------------

    def _offer(self, inode: Inode) -> None:
        """A request that the front end could have served: after some such it gets the file's map."""
        inode.requests += 1
        if self.plane is None or inode.requests < OFFER_AFTER or not self.plane.may_offer(inode):
            return
        if not self.journal.writable or self.journal.committed_seq < inode.shrunk_seq:
            return
        if inode.flags & INODE_IMMUTABLE:
            return
        extents: list[Extent] = []
        try:
            for extent in self.extents.each(self.transactions.transaction, inode.number):
                extents.append(extent)
                if len(extents) > self.plane.most_extents:
                    break
        except BlockMiss:  # not worth a read: tried again later
            inode.requests = -max(OFFER_RETRY, len(extents) // OFFER_EXTENTS)
            return
        self.plane.offer(inode, extents)

    async def withdraw(self, inode: Inode) -> None:
        """Before the map, the size or a part of a block changes: the front end lets go of the file."""
        if self.plane is not None:
            await self.plane.withdraw(inode)

    # --- write --------------------------------------------------------------------------------------

    async def write(
        self,
        number: int,
        offset: int,
        data: Data,
        *,
        update_times: bool = True,
        privileged: bool = True,
    ) -> int:
        """Write `data` at `offset`; all of it, or an error. Raises NoSpace, ReadOnly, FsError(EFBIG).

        `update_times` sets mtime and ctime; off where the kernel keeps them (writeback cache).
        `privileged`: may use the space that is reserved for root.
        """
        if trace.enabled:
            trace.hop("file.write", inode=number, offset=offset, bytes=len(data))
        end = offset + len(data)
        if end > MAX_FILE_BYTES:
            raise FsError(errno.EFBIG, f"a file of {end} bytes is too large")
        if not data:
            return 0
        inode = await self.transactions.read(lambda tx: self.inodes.get(tx, number))
        if inode.flags & INODE_IMMUTABLE:
            raise FsError(errno.EPERM, f"inode {number} is immutable")
        first, last = await self._lock_for_write(inode, offset, end)
        inode.unsynced += 1
        mapped = inode.blocks
        in_place = end <= inode.size_bytes and not (offset | end) % BLOCK_BYTES
        try:
            if not in_place:
                await self.withdraw(inode)
            if self._stays_inline(inode, end):
                plain = _bytes_of(data)
                await self._write_inline(inode, offset, plain, update_times, privileged)
            elif inode.flags & INODE_INLINE and offset < BLOCK_BYTES:
                # In one block with what was inline: both go there in one write, or none does.
                before = (await self._inline(inode))[:offset].ljust(offset, b"\0")
                await self.write_blocks(
                    inode,
                    0,
                    b"".join((before, _bytes_of(data))),
                    update_times,
                    privileged=privileged,
                )
            else:
                if offset > inode.size_bytes or inode.flags & INODE_INLINE:
                    await self.fill_last_block(inode, offset, privileged=privileged)
                await self.write_blocks(inode, offset, data, update_times, privileged=privileged)
        finally:
            inode.ranges.release(first, last, exclusive=True)
        if in_place and inode.blocks == mapped:
            self._offer(inode)  # not while the range is held exclusively
        return len(data)

    async def _lock_for_write(self, inode: Inode, offset: int, end: int) -> tuple[int, int]:
        """Hold the blocks of the write, and the old last block if the write begins behind it."""
        last = (end - 1) // BLOCK_BYTES
        while True:
            first = min(offset, inode.size_bytes) // BLOCK_BYTES
            if inode.flags & INODE_INLINE or not inode.blocks:
                first = 0
            await inode.ranges.acquire(first, last, exclusive=True)
            if first <= min(offset, inode.size_bytes) // BLOCK_BYTES:
                return first, last
            inode.ranges.release(first, last, exclusive=True)  # it shrank while we waited

    def _stays_inline(self, inode: Inode, end: int) -> bool:
        if end > INLINE_BYTES or inode.size_bytes > INLINE_BYTES or inode.blocks:
            return False
        return bool(inode.flags & INODE_INLINE) or not inode.size_bytes

    async def _write_inline(
        self, inode: Inode, offset: int, data: Buffer, update_times: bool, privileged: bool
    ) -> None:
        def apply(tx: Transaction) -> None:
            old = b""
            if inode.flags & INODE_INLINE:
                old = read_inline(self.tree, tx, inode.number, inode.size_bytes)
            new = b"".join((old[:offset].ljust(offset, b"\0"), data, old[offset + len(data) :]))
            write_inline(self.tree, tx, inode.number, new)
            tx.touch(inode)
            inode.flags |= INODE_INLINE
            self._grown(inode, len(new), update_times)

        await self.transactions.run(apply, privileged=privileged)

    async def fill_last_block(self, inode: Inode, size: int, *, privileged: bool = True) -> None:
        """Before the file grows to `size` or beyond: its last block gets zeroes behind the old end.

        Inline data moves into a block of its own. The caller holds that block.
        """
        end = inode.size_bytes
        if inode.flags & INODE_INLINE:
            data = await self._inline(inode)
            padded = data.ljust(BLOCK_BYTES, b"\0")
            await self.write_blocks(inode, 0, padded, False, end, privileged=privileged)
            return
        used = end % BLOCK_BYTES
        if not used or size <= end:
            return
        block = end // BLOCK_BYTES
        mapped = await self.map(inode, block, 1)
        if mapped and not mapped[0].flags & EXTENT_UNWRITTEN:
            await self.journal.commit_through(inode.shrunk_seq)
            old = await self.device.read(mapped[0].start)
            await self._put(inode, mapped[0].start, old[:used].ljust(BLOCK_BYTES, b"\0"))

    async def map(self, inode: Inode, first: int, count: int) -> list[Extent]:
        return await self.transactions.read(
            lambda tx: self.extents.map_range(tx, inode.number, first, count)
        )

    async def _put(self, inode: Inode, start: int, data: Data) -> None:
        """Data on its way to the device. A failure here ends writing for good: the drive is not sound."""
        if refusal := self.journal.refusal:
            raise FsError(errno.EROFS, refusal)
        try:
            await self.device.write(
                start, data, fua=self.device.fua and inode.expects_sync(len(data))
            )
        except DeviceFailed as error:
            self.journal.fail(str(error))
            raise
        finally:
            inode.written = self.device.written

    async def write_blocks(
        self,
        inode: Inode,
        offset: int,
        data: Data,
        update_times: bool,
        size: int | None = None,
        *,
        privileged: bool = True,
    ) -> None:
        """Write through the block map. `size` overrides the file's new least size (offset + len(data))."""
        end = offset + len(data) if size is None else size
        first = offset // BLOCK_BYTES
        payload = await self._whole_blocks(inode, offset, data)
        count = len(payload) // BLOCK_BYTES
        plan = await self.transactions.run(
            lambda tx: self._plan(tx, inode, first, count), privileged=privileged
        )
        try:
            if plan.new or plan.unwritten:
                await self.withdraw(inode)
            if plan.old or plan.unwritten:
                await self.journal.commit_through(inode.shrunk_seq)
            view = payload if isinstance(payload, DmaBuffer) else memoryview(payload)
            for extent in (*plan.old, *plan.unwritten, *plan.new):
                at = (extent.file_block - first) * BLOCK_BYTES
                await self._put(inode, extent.start, view[at : at + extent.count * BLOCK_BYTES])
            if plan.new or plan.unwritten or end > inode.size_bytes or update_times:
                await self.transactions.run(
                    lambda tx: self._apply(tx, inode, plan, end, update_times)
                )
                plan.new.clear()
        finally:
            for extent in plan.new:
                self.allocator.release(extent.start, extent.count)

    async def _whole_blocks(self, inode: Inode, offset: int, data: Data) -> Data:
        """`data` widened to whole blocks with what the file holds around it."""
        end = offset + len(data)
        head, tail = offset % BLOCK_BYTES, -end % BLOCK_BYTES
        if not head and not tail:
            return data
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        before = (await self._old_block(inode, first))[:head] if head else b""
        after = b""
        if tail:
            after = bytes(tail)
            if end < inode.size_bytes:
                after = (await self._old_block(inode, last))[BLOCK_BYTES - tail :]
        return b"".join((before, _bytes_of(data), after))

    async def _old_block(self, inode: Inode, block: int) -> bytes:
        """What the file holds in `block`; zeroes in holes and behind the end."""
        live = min(max(inode.size_bytes - block * BLOCK_BYTES, 0), BLOCK_BYTES)
        mapped = await self.map(inode, block, 1) if live else []
        if not mapped or mapped[0].flags & EXTENT_UNWRITTEN:
            return bytes(BLOCK_BYTES)
        data = await self.device.read(mapped[0].start)
        return data[:live].ljust(BLOCK_BYTES, b"\0")

    def _plan(self, tx: Transaction, inode: Inode, first: int, count: int) -> _Plan:
        """Operation: see what is mapped, reserve what is not. Raises NoSpace if not all can be had."""
        plan = _Plan([], [], [])
        at = first
        for extent in self.extents.map_range(tx, inode.number, first, count):
            self._reserve(tx, inode, at, extent.file_block - at, plan)
            (plan.unwritten if extent.flags & EXTENT_UNWRITTEN else plan.old).append(extent)
            at = extent.end
        self._reserve(tx, inode, at, first + count - at, plan)
        return plan

    def _reserve(
        self, tx: Transaction, inode: Inode, file_block: int, count: int, plan: _Plan
    ) -> None:
        if not count:
            return
        goal = self.extents.goal(tx, inode.number, file_block)
        for start, length in self.allocator.reserve(tx, count, goal, inode.group):
            plan.new.append(Extent(file_block, start, length))
            file_block += length
            count -= length
        if count:
            raise NoSpace

    def _apply(
        self, tx: Transaction, inode: Inode, plan: _Plan, end: int, update_times: bool
    ) -> None:
        """Operation: the data is on the device; now it becomes part of the file."""
        tx.may_use_reserve = True  # the space was granted when the blocks were reserved
        tx.touch(inode)
        for extent in plan.new:
            self.allocator.claim(tx, extent.start, extent.count)
            self.extents.map_write(tx, inode, extent)
        for extent in plan.unwritten:
            self.extents.mark_written(tx, inode, extent.file_block, extent.count)
        if inode.flags & INODE_INLINE:
            delete_inline(self.tree, tx, inode.number)
            inode.flags &= ~INODE_INLINE
        if plan.new or plan.unwritten:
            inode.data_seq = self.transactions.open.seq
        self._grown(inode, end, update_times)

    def _grown(self, inode: Inode, end: int, update_times: bool) -> None:
        """Size and times after a write; a changed size counts for fdatasync."""
        if end > inode.size_bytes:
            inode.size_bytes = end
            inode.data_seq = self.transactions.open.seq
        if inode.flags & INODE_INLINE:
            inode.data_seq = self.transactions.open.seq
        if update_times:
            inode.changed(now(), content=True)

    # --- truncate -----------------------------------------------------------------------------------

    async def truncate(self, number: int, size: int, *, privileged: bool = True) -> None:
        """Set the size of a regular file, and mtime and ctime. Raises FsError(EFBIG), NoSpace, ReadOnly."""
        if size > MAX_FILE_BYTES:
            raise FsError(errno.EFBIG, f"a file of {size} bytes is too large")
        inode = await self.transactions.read(lambda tx: self.inodes.get(tx, number))
        first, last = await self._lock_for_truncate(inode, size)
        try:
            await self.withdraw(inode)
            if size > (INLINE_BYTES if inode.flags & INODE_INLINE else inode.size_bytes):
                await self.fill_last_block(inode, size, privileged=privileged)
            done = await self.transactions.run(
                lambda tx: self._set_size(tx, inode, size), privileged=privileged
            )
            if not done:
                await self._unmap_behind_end(inode)
        finally:
            inode.ranges.release(first, last, exclusive=True)

    async def _lock_for_truncate(self, inode: Inode, size: int) -> tuple[int, int]:
        while True:
            first = min(size, inode.size_bytes) // BLOCK_BYTES
            await inode.ranges.acquire(first, END, exclusive=True)
            if first <= min(size, inode.size_bytes) // BLOCK_BYTES:
                return first, END
            inode.ranges.release(first, END, exclusive=True)

    def _set_size(self, tx: Transaction, inode: Inode, size: int) -> bool:
        """Operation: the new size; unmaps what is behind it. False if more is left to unmap."""
        tx.may_use_reserve = size < inode.size_bytes
        tx.touch(inode)
        if inode.flags & INODE_INLINE:
            data = read_inline(self.tree, tx, inode.number, inode.size_bytes)
            write_inline(self.tree, tx, inode.number, data[:size].ljust(size, b"\0"))
            if not size:
                delete_inline(self.tree, tx, inode.number)
                inode.flags &= ~INODE_INLINE
        done = True
        if size < inode.size_bytes:
            done = self.extents.unmap(tx, inode, first_behind(size), END, UNMAP_EXTENTS)
            if not done:
                self.tree.put(tx, key(0, Kind.ORPHAN, inode.number), b"")
                inode.truncating = True
                tx.on_undo(partial(setattr, inode, "truncating", False))
            if size % BLOCK_BYTES:
                inode.shrunk_seq = self.transactions.open.seq
        inode.size_bytes = size
        inode.data_seq = self.transactions.open.seq
        inode.changed(now(), content=True)
        return done

    async def _unmap_behind_end(self, inode: Inode) -> None:
        """Go on unmapping what lies behind the size, in bounded steps; the ORPHAN item then goes."""
        while not await self.transactions.run(lambda tx: self.unmap_step(tx, inode)):
            pass

    def unmap_step(self, tx: Transaction, inode: Inode) -> bool:
        """Operation: unmap some extents behind the end; True when all are gone and the ORPHAN item too."""
        tx.may_use_reserve = True
        if not self.extents.unmap(tx, inode, first_behind(inode.size_bytes), END, UNMAP_EXTENTS):
            return False
        if inode.nlink:  # otherwise the item stands for the name it has lost, until it is reaped
            self.tree.delete(tx, key(0, Kind.ORPHAN, inode.number))
        tx.on_undo(partial(setattr, inode, "truncating", inode.truncating))
        inode.truncating = False
        return True


def first_behind(size: int) -> int:
    """The first block that holds no byte of a file of `size` bytes."""
    return -(-size // BLOCK_BYTES)


def _bytes_of(data: Data) -> Buffer:
    return data.view if isinstance(data, DmaBuffer) else data
