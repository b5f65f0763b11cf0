"""Details for findings, looked up again only when something is wrong: names of links, owners of blocks.

Below: scan.Walk.  Above: verify.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from mkfs.check.load import Source
from mkfs.check.scan import Walk
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.items import decode_dirents, decode_extent, decode_parents
from nvmefs.layout import OFFSET_MASK, Key, Kind, Root, key
from nvmefs.node import leaf_items

Link = tuple[int, bytes]


class Claimers:
    """A visitor that notes who uses some blocks."""

    def __init__(self, source: Source, wanted: list[tuple[int, int]]) -> None:
        self.source = source
        self.owners: dict[tuple[int, int], list[str]] = {run: [] for run in wanted}

    def note(self, start: int, count: int, owner: str) -> None:
        for (first, length), owners in self.owners.items():
            if start < first + length and first < start + count and len(owners) < 8:
                owners.append(owner)

    def lost(self, low: Key, high: Key) -> None:
        """The scan has reported it."""

    def node(self, block: int, level: int) -> None:
        self.note(block, 1, f"a tree node of level {level}")

    def leaf(self, block: int, items: Iterable[tuple[Key, bytes]]) -> None:
        for (number, rest), value in items:
            if rest >> 56 != Kind.EXTENT:
                continue
            file_block = rest & OFFSET_MASK
            try:
                extent = decode_extent(
                    number, file_block, value, self.source.superblock.block_count
                )
            except Corrupted:
                continue  # the scan has reported it
            self.note(extent.start, extent.count, f"inode {number} at file block {file_block}")


async def owners_of(
    source: Source, root: Root, wanted: list[tuple[int, int]]
) -> dict[tuple[int, int], list[str]]:
    """Who uses each of the runs (start, count), in words."""
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

    def leaf(self, block: int, items: Iterable[tuple[Key, bytes]]) -> None:
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


async def names_in_leaf(source: Source, leaf: int, directory: int, target: int) -> list[bytes]:
    """The names in a leaf, of `directory`, that lead to inode `target`."""
    found: list[bytes] = []
    try:
        data = await source.read(leaf)
    except DeviceFailed:
        return found
    for (number, rest), value in leaf_items(data):
        if number == directory and rest >> 56 == Kind.DIRENT:
            try:
                entries = decode_dirents(number, value)[1]
            except Corrupted:
                continue  # the scan has reported it
            found += [entry.name for entry in entries if entry.inode == target]
    return found
