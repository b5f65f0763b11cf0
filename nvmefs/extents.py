"""Which device blocks hold which blocks of a file.

Below: the item tree, the allocator.  Above: file.py.

    for extent in extents.map_range(tx, inode, first, count): ...     what is mapped; the gaps are holes
    extents.map_write(tx, inode, Extent(file_block, start, count))    map, merging with the neighbours
    done = extents.unmap(tx, inode, first, last, limit)               unmap and free

All counts are in 4,096-byte blocks. `inode.blocks` follows every change.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from driver import trace
from nvmefs.allocator import Allocator
from nvmefs.errors import Corrupted
from nvmefs.inodes import Inode
from nvmefs.items import EXTENT_UNWRITTEN, Extent, decode_extent
from nvmefs.layout import OFFSET_MASK, Kind, Superblock, group_of, key
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree


class Extents:
    """The block maps of all files."""

    def __init__(self, tree: Tree, superblock: Superblock, allocator: Allocator) -> None:
        self.tree = tree
        self.superblock = superblock
        self.allocator = allocator

    def _decode(self, number: int, file_block: int, value: bytes) -> Extent:
        extent = decode_extent(number, file_block, value, self.superblock.block_count)
        if not self.superblock.is_allocatable(extent.start, extent.count):
            raise Corrupted(
                -1,
                f"inode {number}: extent at file block {file_block} lies over the format's own "
                f"blocks ({extent.start}+{extent.count})",
            )
        return extent

    def _at_or_before(self, tx: Transaction, number: int, file_block: int) -> Extent | None:
        """The last extent that begins at `file_block` or before it."""
        found = self.tree.floor(tx, key(number, Kind.EXTENT, file_block))
        if found is None:
            return None
        (inode, rest), value = found
        if inode != number or rest >> 56 != Kind.EXTENT:
            return None
        return self._decode(number, rest & OFFSET_MASK, value)

    def _overlapping(self, tx: Transaction, number: int, first: int, last: int) -> Iterator[Extent]:
        """Whole extents that share a block with first..last, in order."""
        before = self._at_or_before(tx, number, first)
        begin = first
        if before is not None and before.end > first:
            yield before
            begin = before.end
        if begin > last:
            return
        end = before.end if before is not None else 0
        for place, value in self.tree.scan(
            tx, key(number, Kind.EXTENT, begin), key(number, Kind.EXTENT, last)
        ):
            extent = self._decode(number, place[1] & OFFSET_MASK, value)
            if extent.file_block < end:
                raise Corrupted(-1, f"inode {number}: extents overlap at file block {end - 1}")
            end = extent.end
            yield extent

    def map_range(self, tx: Transaction, number: int, first: int, count: int) -> list[Extent]:
        """What is mapped of the `count` blocks from `first` on, cut to that range, in order."""
        last = first + count - 1
        return [_cut(extent, first, last) for extent in self._overlapping(tx, number, first, last)]

    def first_from(self, tx: Transaction, number: int, first: int, limit: int) -> list[Extent]:
        """The first `limit` whole extents that end behind file block `first`, in order."""
        return list(islice(self._overlapping(tx, number, first, OFFSET_MASK), limit))

    def each(self, tx: Transaction, number: int) -> Iterator[Extent]:
        """All extents of a file, in order, one by one: there may be millions."""
        return self._overlapping(tx, number, 0, OFFSET_MASK)

    def goal(self, tx: Transaction, number: int, file_block: int) -> int:
        """Where a block of the file best goes: behind the extent before it; 0 if there is none."""
        before = self._at_or_before(tx, number, file_block)
        if before is None:
            return 0
        return before.start + min(before.count, file_block - before.file_block)

    def map_write(self, tx: Transaction, inode: Inode, new: Extent) -> None:
        """Map blocks that are not mapped yet; they must be marked used. Merges with both neighbours."""
        if trace.enabled:
            trace.hop("extents.map_write", inode=inode.number, at=new.file_block, blocks=new.count)
        number = inode.number
        left = self._at_or_before(tx, number, new.file_block)
        if left is not None and left.end > new.file_block:
            raise Corrupted(-1, f"inode {number}: file block {new.file_block} is mapped already")
        tx.touch(inode)
        inode.blocks += new.count
        if left is not None and _adjoin(left, new):
            new = Extent(left.file_block, left.start, left.count + new.count, left.flags)
        after = key(number, Kind.EXTENT, new.end)
        value = self.tree.get(tx, after)
        if value is not None:
            right = self._decode(number, new.end, value)
            if _adjoin(new, right):
                self.tree.delete(tx, after)
                new = Extent(new.file_block, new.start, new.count + right.count, new.flags)
        self._put(tx, number, new)

    def mark_written(self, tx: Transaction, inode: Inode, first: int, count: int) -> None:
        """The blocks, all mapped, hold data now: unwritten no longer."""
        last = first + count - 1
        for extent in list(self._overlapping(tx, inode.number, first, last)):
            if not extent.flags & EXTENT_UNWRITTEN:
                continue
            self._take_out(tx, inode.number, extent, first, last)
            inside = _cut(extent, first, last)
            inode.blocks -= inside.count
            self.map_write(tx, inode, Extent(inside.file_block, inside.start, inside.count))

    def mark_unwritten(
        self, tx: Transaction, inode: Inode, first: int, last: int, limit: int
    ) -> tuple[int, bool]:
        """What is mapped of first..last reads as zeroes from now on; of at most `limit` extents.

        (block to go on with, behind `last` when done; whether anything changed).
        """
        at, changed = first, False
        extents = list(islice(self._overlapping(tx, inode.number, first, last), limit))
        for extent in extents:
            at = min(extent.end, last + 1)
            if extent.flags & EXTENT_UNWRITTEN:
                continue
            changed = True
            inside = _cut(extent, first, last)
            self._take_out(tx, inode.number, extent, first, last)
            tx.touch(inode)
            inode.blocks -= inside.count
            self.map_write(
                tx, inode, Extent(inside.file_block, inside.start, inside.count, EXTENT_UNWRITTEN)
            )
        return at if len(extents) == limit else last + 1, changed

    def unmap(self, tx: Transaction, inode: Inode, first: int, last: int, limit: int) -> bool:
        """Unmap and free what is mapped in first..last, of at most `limit` extents from the end.

        True when nothing is left there.
        """
        tx.touch(inode)
        for _ in range(limit):
            extent = self._at_or_before(tx, inode.number, last)
            if extent is None or extent.end <= first:
                return True
            inside = _cut(extent, first, last)
            self._take_out(tx, inode.number, extent, first, last)
            tx.free_data(inside.start, inside.count)
            if inside.count > inode.blocks:
                raise Corrupted(-1, f"inode {inode.number}: more blocks are mapped than it counts")
            inode.blocks -= inside.count
        rest = self._at_or_before(tx, inode.number, last)
        return rest is None or rest.end <= first

    def _take_out(
        self, tx: Transaction, number: int, extent: Extent, first: int, last: int
    ) -> None:
        """Remove the part of `extent` inside of first..last from the map; what is outside stays."""
        if extent.file_block < first:
            kept = first - extent.file_block
            self._put(tx, number, Extent(extent.file_block, extent.start, kept, extent.flags))
        else:
            self.tree.delete(tx, key(number, Kind.EXTENT, extent.file_block))
        if extent.end > last + 1:
            skipped = last + 1 - extent.file_block
            rest = Extent(last + 1, extent.start + skipped, extent.count - skipped, extent.flags)
            self._put(tx, number, rest)

    def _put(self, tx: Transaction, number: int, extent: Extent) -> None:
        self.tree.put(tx, key(number, Kind.EXTENT, extent.file_block), extent.encode())


def _cut(extent: Extent, first: int, last: int) -> Extent:
    """The part of `extent` inside of first..last."""
    begin, end = max(extent.file_block, first), min(extent.end, last + 1)
    if (begin, end) == (extent.file_block, extent.end):
        return extent
    return Extent(begin, extent.start + begin - extent.file_block, end - begin, extent.flags)


def _adjoin(left: Extent, right: Extent) -> bool:
    """Whether the two are one: next to each other in the file and on the device, alike, in one group."""
    return (
        left.end == right.file_block
        and left.start + left.count == right.start
        and left.flags == right.flags
        and group_of(left.start) == group_of(right.start)
    )
