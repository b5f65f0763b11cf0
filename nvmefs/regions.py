"""Regions of files: allocate, punch, zero, find data and holes, copy.

Below: file.py (ranges, the front end, partial blocks), extents.py.  Above: filesystem.py.

    await regions.fallocate(number, mode, offset, length)       as fallocate(2)
    offset = await regions.seek(number, offset, SEEK_DATA)      as lseek(2)
    copied = await regions.copy(source, 0, target, 0, length)   as copy_file_range(2)

A region is held exclusively, and the front end has let go of the file, for as long as its map changes; the
change itself is a series of operations, each small enough for the journal. What is allocated is unwritten: it
reads as zeroes, and becomes data when it is written. A crash in the midst leaves some of the steps done.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial

import trio

from nvmefs.allocator import Allocator
from nvmefs.clock import now
from nvmefs.errors import FsError, NoSpace
from nvmefs.extents import Extents
from nvmefs.file import UNMAP_EXTENTS, Files
from nvmefs.inline import read_inline, write_inline
from nvmefs.inodes import Inode
from nvmefs.items import EXTENT_UNWRITTEN, INODE_APPEND, INODE_IMMUTABLE, INODE_INLINE, Extent
from nvmefs.layout import BLOCK_BYTES, MAX_FILE_BYTES
from nvmefs.ranges import END
from nvmefs.transaction import Transaction, Transactions

KEEP_SIZE = 0x01  # <linux/falloc.h>
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)

STEP_BLOCKS = 8192  # that one operation allocates; in the worst free space as many extents
STEP_EXTENTS = 64  # that one operation converts
SEEK_EXTENTS = 512  # that are looked at before starting the look anew could be dear
PIECE_BYTES = 1 << 20
COPY_BYTES = 64 << 20  # a copy stops here: the caller goes on, and can be interrupted


class Regions:
    """What programs do to parts of regular files beside reading and writing them."""

    def __init__(
        self, files: Files, extents: Extents, allocator: Allocator, transactions: Transactions
    ) -> None:
        self.files = files
        self.extents = extents
        self.allocator = allocator
        self.transactions = transactions

    async def _regular(self, number: int) -> Inode:
        inode = await self.transactions.read(lambda tx: self.files.inodes.get(tx, number))
        if inode.is_dir:
            raise FsError(errno.EISDIR, f"inode {number} is a directory")
        if not stat.S_ISREG(inode.mode):
            raise FsError(errno.ENODEV, f"inode {number} is not a regular file")
        return inode

    # --- fallocate ----------------------------------------------------------------------------------

    async def fallocate(
        self, number: int, mode: int, offset: int, length: int, *, privileged: bool = True
    ) -> None:
        """Allocate, punch or zero a region; mtime and ctime change, and the size unless KEEP_SIZE is set.

        Raises FsError(EINVAL, EOPNOTSUPP, EFBIG, EPERM, EISDIR, ENODEV), and NoSpace having changed nothing.
        """
        if offset < 0 or length <= 0:
            raise FsError(errno.EINVAL, f"a region of {length} bytes at {offset}")
        if mode not in MODES:
            raise FsError(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
        end = offset + length
        if end > MAX_FILE_BYTES:
            raise FsError(errno.EFBIG, f"a file of {end} bytes is too large")
        inode = await self._regular(number)
        if inode.flags & INODE_IMMUTABLE or (inode.flags & INODE_APPEND and mode & ~KEEP_SIZE):
            raise FsError(errno.EPERM, f"inode {number} is immutable or append-only")
        first, last = await self._lock(inode, offset, end)
        try:
            await self.files.withdraw(inode)
            if mode & PUNCH_HOLE:
                await self._punch(inode, offset, end)
            else:
                await self._fill(inode, offset, end, mode, privileged)
        finally:
            inode.ranges.release(first, last, exclusive=True)

    async def _lock(self, inode: Inode, offset: int, end: int) -> tuple[int, int]:
        """Hold the blocks of the region, and the file's last block if the region begins behind it."""
        last = (end - 1) // BLOCK_BYTES
        while True:
            first = self._first_to_hold(inode, offset)
            await inode.ranges.acquire(first, last, exclusive=True)
            if first <= self._first_to_hold(inode, offset):
                return first, last
            inode.ranges.release(first, last, exclusive=True)  # it shrank while we waited

    def _first_to_hold(self, inode: Inode, offset: int) -> int:
        if inode.flags & INODE_INLINE or not inode.blocks:
            return 0
        return min(offset, inode.size_bytes) // BLOCK_BYTES

    async def _fill(self, inode: Inode, offset: int, end: int, mode: int, privileged: bool) -> None:
        """Mode 0 and ZERO_RANGE: every block of the region is the file's."""
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        size = inode.size_bytes if mode & KEEP_SIZE else max(end, inode.size_bytes)
        count = last - first + 1
        space = partial(self._require_space, inode, count)
        await self.transactions.run(space, privileged=privileged)
        if inode.flags & INODE_INLINE or size > inode.size_bytes:
            await self.files.fill_last_block(inode, size, privileged=privileged)
        await self._allocate(inode, first, last, privileged)
        if mode & ZERO_RANGE:
            await self._zero(inode, offset, end)

        def finish(tx: Transaction) -> None:
            tx.touch(inode)
            if size > inode.size_bytes:
                inode.size_bytes = size
                inode.data_seq = self.transactions.open.seq
            inode.changed(now(), content=True)

        await self.transactions.run(finish)

    def _require_space(self, inode: Inode, count: int, tx: Transaction) -> None:
        """Operation: refuse at once what cannot be had, however many of the blocks are mapped already."""
        if count - inode.blocks > self.allocator.available(tx):
            raise NoSpace

    async def _allocate(self, inode: Inode, first: int, last: int, privileged: bool) -> None:
        """Map the holes in first..last to unwritten blocks; all of them, or none."""
        added: list[tuple[int, int]] = []
        at = first
        try:
            while at <= last:
                end = min(last, at + STEP_BLOCKS - 1)
                step = partial(self._allocate_step, inode, at, end)
                added += await self.transactions.run(step, privileged=privileged)
                at += STEP_BLOCKS
                await trio.lowlevel.checkpoint()
        except BaseException:
            with trio.CancelScope(shield=True):
                for begin, end in added:
                    while not await self.transactions.run(self._unmap_step(inode, begin, end)):
                        pass
            raise

    def _allocate_step(
        self, inode: Inode, first: int, last: int, tx: Transaction
    ) -> list[tuple[int, int]]:
        """Operation: map the holes in first..last; (first, last) of each run. Raises NoSpace."""
        holes, at = [], first
        for extent in self.extents.map_range(tx, inode.number, first, last - first + 1):
            if extent.file_block > at:
                holes.append((at, extent.file_block - at))
            at = extent.end
        if at <= last:
            holes.append((at, last + 1 - at))
        runs: list[Extent] = []
        for at, count in holes:
            goal = self.extents.goal(tx, inode.number, at)
            while count:
                for start, length in self.allocator.reserve(tx, count, goal, inode.group):
                    runs.append(Extent(at, start, length, EXTENT_UNWRITTEN))
                    at, count, goal = at + length, count - length, start + length
        tx.may_use_reserve = True  # the blocks are granted: their place in the tree is too
        for run in runs:
            self.allocator.claim(tx, run.start, run.count)
            self.extents.map_write(tx, inode, run)
        if runs:
            inode.data_seq = self.transactions.open.seq
        return [(run.file_block, run.end - 1) for run in runs]

    # --- punch and zero -----------------------------------------------------------------------------

    async def _punch(self, inode: Inode, offset: int, end: int) -> None:
        """The region is a hole afterwards; parts of blocks are zeroed."""
        if inode.flags & INODE_INLINE:
            await self.transactions.run(partial(self._zero_inline, inode, offset, end))
            return
        await self._zero_edges(inode, offset, end)
        first, last = _whole_blocks(inode, offset, end)
        if first <= last:
            while not await self.transactions.run(self._unmap_step(inode, first, last)):
                await trio.lowlevel.checkpoint()

        def finish(tx: Transaction) -> None:
            tx.touch(inode)
            inode.changed(now(), content=True)

        await self.transactions.run(finish)

    def _zero_inline(self, inode: Inode, offset: int, end: int, tx: Transaction) -> None:
        """Operation: zeroes in a file that lives in the tree."""
        data = read_inline(self.files.tree, tx, inode.number, inode.size_bytes)
        zeroes = bytes(max(min(end, len(data)) - offset, 0))
        if zeroes:
            data = data[:offset] + zeroes + data[offset + len(zeroes) :]
            write_inline(self.files.tree, tx, inode.number, data)
        tx.touch(inode)
        inode.data_seq = self.transactions.open.seq
        inode.changed(now(), content=True)

    def _unmap_step(self, inode: Inode, first: int, last: int) -> partial[bool]:
        return partial(self._unmap, inode, first, last)

    def _unmap(self, inode: Inode, first: int, last: int, tx: Transaction) -> bool:
        """Operation: unmap some extents of first..last; True when none is left."""
        tx.may_use_reserve = True
        before = inode.blocks
        done = self.extents.unmap(tx, inode, first, last, UNMAP_EXTENTS)
        if inode.blocks != before:
            inode.data_seq = self.transactions.open.seq
        return done

    async def _zero(self, inode: Inode, offset: int, end: int) -> None:
        """The region, all of it mapped, reads as zeroes afterwards, and stays mapped.

        Where data was, nothing is written before this is committed (shrunk_seq): a crash may bring it back.
        """
        await self._zero_edges(inode, offset, end)
        at, last = _whole_blocks(inode, offset, end)
        while at <= last:
            at = await self.transactions.run(partial(self._unwrite_step, inode, at, last))
            await trio.lowlevel.checkpoint()

    def _unwrite_step(self, inode: Inode, first: int, last: int, tx: Transaction) -> int:
        """Operation: some extents of first..last are unwritten from now on; the block to go on with."""
        tx.may_use_reserve = True
        at, changed = self.extents.mark_unwritten(tx, inode, first, last, STEP_EXTENTS)
        if changed:
            inode.shrunk_seq = inode.data_seq = self.transactions.open.seq
        return at

    async def _zero_edges(self, inode: Inode, offset: int, end: int) -> None:
        """Zeroes in the blocks that the region covers in part; what is behind the file's end is none."""
        size = inode.size_bytes
        live_end = min(end, size)
        if offset >= live_end:
            return
        boundary = -(-offset // BLOCK_BYTES) * BLOCK_BYTES
        if offset < boundary:
            await self._zero_part(inode, offset, min(boundary, live_end))
        tail = end // BLOCK_BYTES * BLOCK_BYTES
        if end < size and tail < end and tail >= boundary:
            await self._zero_part(inode, tail, end)

    async def _zero_part(self, inode: Inode, start: int, end: int) -> None:
        """Zeroes from byte `start` to `end` of one block, if the file has data there."""
        mapped = await self.files.map(inode, start // BLOCK_BYTES, 1)
        if mapped and not mapped[0].flags & EXTENT_UNWRITTEN:
            await self.files.write_blocks(inode, start, bytes(end - start), False, inode.size_bytes)

    # --- seek ---------------------------------------------------------------------------------------

    async def seek(self, number: int, offset: int, whence: int) -> int:
        """The next byte of data (SEEK_DATA) or of a hole (SEEK_HOLE) from `offset` on.

        Unwritten blocks are holes, and so is what is behind the end. Raises FsError(ENXIO, EINVAL).
        """
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL, f"lseek whence {whence}")
        inode = await self._regular(number)
        size = inode.size_bytes
        if not 0 <= offset < size:
            raise FsError(errno.ENXIO, f"offset {offset} in a file of {size} bytes")
        if inode.flags & INODE_INLINE:
            return offset if whence == os.SEEK_DATA else size
        look = self._data_from if whence == os.SEEK_DATA else self._hole_from
        at, found = offset // BLOCK_BYTES, False
        while not found and at * BLOCK_BYTES < size:
            at, found = await self.transactions.read(partial(look, inode, at))
        result = max(offset, at * BLOCK_BYTES)
        if whence == os.SEEK_HOLE:
            return min(result, size)
        if result >= size:
            raise FsError(errno.ENXIO, f"no data from offset {offset} on")
        return result

    def _data_from(self, inode: Inode, at: int, tx: Transaction) -> tuple[int, bool]:
        """Operation: (block, True) of the first data from block `at` on; (block, False): go on there."""
        extents = self.extents.first_from(tx, inode.number, at, SEEK_EXTENTS)
        for extent in extents:
            if not extent.flags & EXTENT_UNWRITTEN:
                return max(at, extent.file_block), True
            at = extent.end
        return (at, False) if extents else (END, True)

    def _hole_from(self, inode: Inode, at: int, tx: Transaction) -> tuple[int, bool]:
        """Operation: (block, True) of the first hole from block `at` on; (block, False): go on there."""
        before = at
        for extent in self.extents.first_from(tx, inode.number, at, SEEK_EXTENTS):
            if extent.file_block > at or extent.flags & EXTENT_UNWRITTEN:
                return at, True
            at = extent.end
        return at, at == before

    # --- copy ---------------------------------------------------------------------------------------

    async def copy(
        self,
        source: int,
        source_offset: int,
        target: int,
        target_offset: int,
        length: int,
        *,
        privileged: bool = True,
    ) -> int:
        """Copy up to `length` bytes; how many it were. Fewer at the source's end, and of long copies.

        Holes stay holes where whole blocks of them meet. In one file the regions must not overlap.
        """
        origin = await self._regular(source)
        goal = await self._regular(target)
        if min(source_offset, target_offset, length) < 0:
            raise FsError(errno.EINVAL, f"a copy from {source_offset} to {target_offset}")
        if goal.flags & (INODE_IMMUTABLE | INODE_APPEND):
            raise FsError(errno.EPERM, f"inode {target} is immutable or append-only")
        if target_offset + length > MAX_FILE_BYTES:
            raise FsError(errno.EFBIG, f"a file of {target_offset + length} bytes is too large")
        length = min(length, COPY_BYTES, origin.size_bytes - source_offset)  # as it is now
        copied = 0
        try:
            while copied < length:
                done = await self._copy_piece(
                    origin,
                    source_offset + copied,
                    goal,
                    target_offset + copied,
                    length - copied,
                    privileged,
                )
                if not done:
                    break
                copied += done
        except FsError:
            if not copied:
                raise
        return copied

    async def _copy_piece(
        self,
        source: Inode,
        source_offset: int,
        target: Inode,
        target_offset: int,
        length: int,
        privileged: bool,
    ) -> int:
        """Copy the data or the hole that begins there, or a part of it; how many bytes, 0 at the end."""
        length = min(length, source.size_bytes - source_offset)
        if length <= 0:
            return 0
        hole = await self._run_of(os.SEEK_DATA, source, source_offset, length)
        if hole >= BLOCK_BYTES or hole == length:
            await self.fallocate(target.number, PUNCH_HOLE | KEEP_SIZE, target_offset, hole)
            if target_offset + hole > target.size_bytes:
                size = target_offset + hole
                await self.files.truncate(target.number, size, privileged=privileged)
            return hole
        if not hole:
            length = await self._run_of(os.SEEK_HOLE, source, source_offset, length)
        # Up to a block's boundary in the target, so that no block is written twice.
        piece = min(length, PIECE_BYTES - target_offset % BLOCK_BYTES)
        data = await self.files.read(source.number, source_offset, piece)
        if not data:
            return 0
        return await self.files.write(target.number, target_offset, data, privileged=privileged)

    async def _run_of(self, whence: int, inode: Inode, offset: int, length: int) -> int:
        """How many of `length` bytes from `offset` on come before the next data, or the next hole."""
        try:
            end = await self.seek(inode.number, offset, whence)
        except FsError as error:
            if error.errno != errno.ENXIO:
                raise
            return length
        return min(end - offset, length)


def _whole_blocks(inode: Inode, offset: int, end: int) -> tuple[int, int]:
    """(first, last) block that lies in the region with every byte that the file has of it."""
    first = -(-offset // BLOCK_BYTES)
    behind = end // BLOCK_BYTES if end < inode.size_bytes else -(-end // BLOCK_BYTES)
    return first, behind - 1
