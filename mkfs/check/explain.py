"""Details for findings, looked up again only when something is wrong: names of links, owners of blocks.

Below: scan.Walk.  Above: verify.py, and repair/, which needs to know which extents lie over tree nodes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable

from mkfs.check.inventory import Names, digest
from mkfs.check.load import Source
from mkfs.check.scan import Walk
from mkfs.check.space import Double
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.items import decode_dirents, decode_extent, decode_parents
from nvmefs.layout import OFFSET_MASK, Key, Kind, Root, key
from nvmefs.node import leaf_items

Link = tuple[int, bytes]
OWNERS_PER_RUN = 8


class Claimers:
    """A visitor that notes who uses some blocks. `wanted`: runs (start, count)."""

    def __init__(self, source: Source, wanted: Collection[tuple[int, int]]) -> None:
        self.source = source
        self.starts = sorted({start for start, _ in wanted})
        self.longest = max((count for _, count in wanted), default=0)
        self.counts = dict(sorted(wanted))  # of runs with one start the longest
        self.owners: dict[int, list[Double]] = {start: [] for start in self.starts}

    def note(self, user: Double) -> None:
        """One of the users, if it has a block of a run."""
        at = bisect_right(self.starts, user.start + user.count - 1) - 1
        while at >= 0 and self.starts[at] > user.start - self.longest:
            start = self.starts[at]
            if user.start < start + self.counts[start] and len(self.owners[start]) < OWNERS_PER_RUN:
                self.owners[start].append(user)
            at -= 1

    def lost(self, low: Key, high: Key) -> None:
        """The scan has reported it."""

    def node(self, block: int, level: int) -> None:
        self.note(Double(block, 1))

    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None:
        for (number, rest), value in items:
            if rest >> 56 != Kind.EXTENT:
                continue
            at = rest & OFFSET_MASK
            try:
                extent = decode_extent(number, at, value, self.source.superblock.block_count)
            except Corrupted:
                continue  # the scan has reported it
            self.note(Double(extent.start, extent.count, number, at))


async def owners_of(
    source: Source, root: Root, wanted: Collection[tuple[int, int]]
) -> dict[int, list[Double]]:
    """Who uses each of the runs (start, count), by their starts."""
    claimers = Claimers(source, wanted)
    await Walk(source, root, claimers, quiet=True).run()
    return claimers.owners


class BackLinks:
    """A visitor that collects an inode's back references."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.links: list[Link] = []

    def node(self, block: int, level: int) -> None:
        """Only leaves are of interest."""

    def lost(self, low: Key, high: Key) -> None:
        """The scan has reported it."""

    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None:
        for (number, rest), value in items:
            if number == self.number and rest >> 56 == Kind.PARENT:
                try:
                    self.links += decode_parents(number, value)[1]
                except Corrupted:
                    continue  # the scan has reported it


async def back_links(source: Source, root: Root, number: int) -> list[Link]:
    """(directory, name) of each back reference of an inode."""
    visitor = BackLinks(number)
    walk = Walk(source, root, visitor, quiet=True)
    await walk.run(key(number, Kind.PARENT), key(number, Kind.PARENT, OFFSET_MASK))
    return visitor.links


async def name_of(source: Source, names: Names, row: int) -> bytes | None:
    """The name in a row of the inventory, read again from its leaf; None if that is unreadable now."""
    directory, target = names.directory[row], names.target[row]
    try:
        data = await source.read(names.leaf[row])
    except DeviceFailed:
        return None
    for (number, rest), value in leaf_items(data):
        if number == directory and rest >> 56 == Kind.DIRENT:
            try:
                entries = decode_dirents(number, value)[1]
            except Corrupted:
                continue  # the scan has reported it
            for entry in entries:
                if entry.inode != target:
                    continue
                if digest(target, directory, entry.name) == names.digest[row]:
                    return entry.name
    return None
