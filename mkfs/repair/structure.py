"""What everything else stands on: superblocks, and a tree that leads to every leaf that is sound.

Below: salvage.py, writer.py.  Above: engine.py.

A new tree keeps the leaves where they are and gets new nodes above them, in free blocks, which a crash may
leave behind unused; then one transaction makes the state block point to it. The old nodes, and what could not
be read, are free blocks for the next round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mkfs.check.findings import Finding
from mkfs.check.load import Source
from mkfs.check.scan import HIGHEST, LOWEST, Walk
from mkfs.check.space import Space, runs
from mkfs.nodes import Child, encode_internal, encode_leaf
from mkfs.repair.salvage import Piece, Range, find_leaves, pieces_of, slots_of, used_bits
from mkfs.repair.writer import Writer
from nvmefs.errors import Corrupted, NoSpace
from nvmefs.items import decode_extent
from nvmefs.layout import (
    GROUP_BLOCKS,
    MAX_SEQUENCE,
    OFFSET_MASK,
    SLOTS_PER_NODE,
    TREE_MAIN,
    Key,
    Kind,
    Superblock,
)

FILL = SLOTS_PER_NODE * 7 // 8  # children of a new node: the first inserts shall not split each


async def write_superblocks(source: Source, findings: list[Finding]) -> None:
    """Put the chosen superblock in the place of others, one at a time: the others stay readable."""
    for finding in findings:
        place = finding.number("block")
        await source.device.write(place, source.superblock.encode(place))
        await source.device.flush()


async def rebuild(writer: Writer) -> None:
    """A tree of all sound leaves. Raises FsError."""
    source = writer.report.source
    found = Found(source.superblock)
    elsewhere = True
    if source.state is None:
        found.lost(LOWEST, HIGHEST)
    else:
        walk = Walk(source, source.state.roots[0], found, quiet=True)
        await walk.run()
        elsewhere = walk.elsewhere
    if elsewhere:
        leaves = await find_leaves(source, found.space)
        for piece in await pieces_of(source, leaves, found.gaps):
            await found.adopt(source, piece)
    await Rebuilding(writer, found).run()


class Found:
    """A visitor that collects the leaves that are reached, what they claim, and what is not reached."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self.space = Space(superblock)
        self.children: list[Child] = []
        self.cut: list[Piece] = []
        self.gaps: list[Range] = []

    def node(self, block: int, level: int) -> None:
        self.space.claim(block, 1)

    def lost(self, low: Key, high: Key) -> None:
        self.gaps.append((low, high))

    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None:
        empty = True
        for (number, rest), value in items:
            empty = False
            if rest >> 56 == Kind.EXTENT:
                self.extent(number, rest & OFFSET_MASK, value)
        if not empty:
            self.children.append((low, block))

    def extent(self, number: int, file_block: int, value: bytes) -> None:
        """A file's blocks are not for new nodes."""
        try:
            extent = decode_extent(number, file_block, value, self.superblock.block_count)
        except Corrupted:
            return  # the next check tells
        if self.superblock.is_allocatable(extent.start, extent.count):
            self.space.claim(extent.start, extent.count)

    async def adopt(self, source: Source, piece: Piece) -> None:
        """A leaf that was found elsewhere, or the part of it that is wanted."""
        data = await source.read(piece.block)
        items = slots_of(data, piece.low, piece.high)
        if not items:
            return
        self.space.claim(piece.block, 1)
        if piece.whole:
            self.leaf(piece.block, piece.low, items)
        else:
            self.cut.append(piece)
            for (number, rest), value in items:
                if rest >> 56 == Kind.EXTENT:
                    self.extent(number, rest & OFFSET_MASK, value)


class Rebuilding:
    """The nodes of the new tree, from the leaves up."""

    def __init__(self, writer: Writer, found: Found) -> None:
        self.writer = writer
        self.source = writer.report.source
        self.found = found
        self.free = self.free_blocks()
        self.waiting: list[int] = []
        self.seq = min(self.source.newest_seq + 1, MAX_SEQUENCE)

    async def run(self) -> None:
        """Write it, mark its blocks used, let the state block point to it."""
        writer = self.writer
        children = sorted([*self.found.children, *[await self.cut(p) for p in self.found.cut]])
        if not children:
            children = [(LOWEST, await self.empty_leaf())]
        children[0] = (LOWEST, children[0][1])
        level = 0
        while len(children) > 1:
            level += 1
            parts = [children[at : at + FILL] for at in range(0, len(children), FILL)]
            children = [(part[0][0], await self.node(level, part)) for part in parts]
        await writer.device.flush()
        await self.mark_used()
        root = writer.state.roots[0]
        root.level, root.block = level, children[0][1]
        await writer.filesystem.journal.commit_state()

    async def cut(self, piece: Piece) -> Child:
        """A new leaf with the wanted part of an old one."""
        data = await self.source.read(piece.block)
        items = slots_of(data, piece.low, piece.high)
        block = await self.take()
        leaf = encode_leaf(block, items, self.source.superblock, owner=TREE_MAIN, seq=self.seq)
        await self.writer.device.write(block, leaf)
        return items[0][0], block

    async def empty_leaf(self) -> int:
        block = await self.take()
        leaf = encode_leaf(block, [], self.source.superblock, owner=TREE_MAIN, seq=self.seq)
        await self.writer.device.write(block, leaf)
        return block

    async def node(self, level: int, children: list[Child]) -> int:
        block = await self.take()
        superblock = self.source.superblock
        node = encode_internal(block, level, children, superblock, owner=TREE_MAIN, seq=self.seq)
        await self.writer.device.write(block, node)
        return block

    async def take(self) -> int:
        """A free block. Raises NoSpace."""
        while not self.waiting:
            try:
                group, strict = next(self.free)
            except StopIteration:
                raise NoSpace("no block is free for a new tree") from None
            bits = self.found.space.used_bits(group)
            if strict:
                bits |= await used_bits(self.source, group)
            self.waiting = free_in(group, bits)
        block = self.waiting.pop()
        self.found.space.claim(block, 1)
        return block

    def free_blocks(self) -> Iterator[tuple[int, bool]]:
        """Where to look: first for what the bitmaps call free too, so that what is lost stays readable."""
        for strict in (True, False):
            for group in range(self.source.superblock.group_count):
                yield group, strict

    async def mark_used(self) -> None:
        """No block of the new tree may be handed out; what is marked and not used waits for the next round."""
        for group in sorted(self.found.space.claimed):
            marked = await used_bits(self.source, group)
            right = self.found.space.used_bits(group)
            if right & ~marked:
                await self.writer.put_bitmap(group, marked | right)
        await self.writer.commit()


def free_in(group: int, bits: int) -> list[int]:
    """The blocks of a group whose bits are 0, the lowest at the end."""
    first = group * GROUP_BLOCKS
    free = [
        first + at
        for start, count in runs(~bits & (1 << GROUP_BLOCKS) - 1)
        for at in range(start, start + count)
    ]
    return free[::-1]
