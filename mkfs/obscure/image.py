"""An image of the metadata without names and contents, block by block as it is after replay.

Below: items.py, check/run.py, repair/salvage.py.  Above: metadata_image.py.

    blocks = await obscure(device, descriptor, secret)

Nothing is copied but what this module understands. The tree is written anew, packed, into the blocks of the old
one: names stand under new hashes, so every leaf has other items. Superblocks and state are encoded from their
fields, the journal is empty. A block that is not what it must be stays so in the copy, without its bytes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise

from mkfs.check.load import Source
from mkfs.check.run import check
from mkfs.check.scan import LOWEST, Walk
from mkfs.cli import ToolError
from mkfs.nodes import Child, Item, encode_internal, encode_leaf
from mkfs.obscure.items import Obscurer
from mkfs.repair.salvage import used_bits
from mkfs.repair.structure import free_in
from nvmefs.device import Device
from nvmefs.errors import Corrupted, DeviceFailed, NoSpace
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    HEADER_BYTES,
    SLOT_BYTES,
    SLOTS_PER_NODE,
    STATE_BLOCK,
    TREE_MAIN,
    BlockType,
    JournalSuper,
    Key,
    Root,
    State,
    Superblock,
    bitmap_block,
    encode_bitmap,
    group_of,
    superblock_places,
    verify,
)

DAMAGED = b"\xff" * HEADER_BYTES  # begins a block that is none of ours, as the one in the original
LEAF_ROOM = BLOCK_BYTES - HEADER_BYTES  # for slots and values
PARTITION_TABLE = slice(446, 512)  # boot code may stand before it


@dataclass
class Output:
    """The file that is written: blocks, each once."""

    descriptor: int
    blocks: int = 0

    def put(self, number: int, data: bytes | bytearray) -> None:
        os.pwrite(self.descriptor, data, number * BLOCK_BYTES)
        self.blocks += 1


async def obscure(device: Device, descriptor: int, secret: bytes) -> int:
    """Write all of it; how many blocks. Raises ToolError, Unusable, FsError, OSError."""
    report = await check(device)
    source, state = report.source, report.source.state
    if state is None or not report.complete:
        raise ToolError(
            "a part of the tree cannot be read, and an obscured one has to be written as a whole: "
            "repair a copy first, or leave --obscure out"
        )
    out = Output(descriptor)
    head = await device.read(0)
    if any(head[PARTITION_TABLE]):
        out.put(0, bytes(PARTITION_TABLE.start) + head[PARTITION_TABLE])
    tree = Tree(source, out, Obscurer(source.superblock, secret))
    root = await tree.run(state.roots[0])
    await put_superblocks(source, out)
    await put_journal(source, out)
    put_state(source, out, state, root, tree)
    taken, released = by_group(tree.taken), by_group(tree.old)
    for group in range(source.superblock.group_count):
        await put_bitmap(source, out, group, taken.get(group, 0), released.get(group, 0))
    return out.blocks


class Tree:
    """A visitor that writes the tree anew while the old one is walked, an inode at a time."""

    def __init__(self, source: Source, out: Output, obscurer: Obscurer) -> None:
        self.source = source
        self.out = out
        self.obscurer = obscurer
        self.inode: list[Item] = []  # of the inode that is passing by
        self.leaf_items: list[Item] = []
        self.room = LEAF_ROOM
        self.waiting: deque[list[Item]] = deque()  # leaves for which there is no block yet
        self.old: deque[int] = deque()  # blocks of the old tree that the new one has not used (yet)
        self.children: list[Child] = []
        self.taken: set[int] = set()

    async def run(self, root: Root) -> Root:
        """The whole tree; the new root. Raises NoSpace, DeviceFailed, OSError."""
        await Walk(self.source, root, self, quiet=True).run()
        self.end_inode()
        if self.leaf_items or not (self.children or self.waiting):
            self.end_leaf()
        level = 0
        async with aclosing(self.free_blocks()) as free:
            while self.waiting:
                self.put_leaf(await self.block(free))
            self.children[0] = LOWEST, self.children[0][1]
            while len(self.children) > 1:
                level += 1
                self.children = [
                    self.internal(await self.block(free), level, part)
                    for part in evenly(self.children)
                ]
        return Root(root.id, level, self.children[0][1])

    # --- visiting -----------------------------------------------------------------------------

    def node(self, block: int, level: int) -> None:
        """A node of the old tree: its block is free for the new one."""
        self.old.append(block)

    def lost(self, low: Key, high: Key) -> None:
        """The check has read all of it a moment ago."""
        raise DeviceFailed(f"the tree between {low} and {high} could be read once, and not again")

    def leaf(self, block: int, low: Key, items: Iterable[Item]) -> None:
        for item in items:
            if self.inode and item[0][0] != self.inode[0][0][0]:
                self.end_inode()
            self.inode.append(item)

    def end_inode(self) -> None:
        """All items of one inode are there."""
        if not self.inode:
            return
        for item in self.obscurer.inode(self.inode):
            needed = SLOT_BYTES + len(item[1])
            if needed > self.room:
                self.end_leaf()
            self.room -= needed
            self.leaf_items.append(item)
        self.inode = []

    # --- writing ------------------------------------------------------------------------------

    def end_leaf(self) -> None:
        """A leaf is full."""
        self.waiting.append(self.leaf_items)
        self.leaf_items, self.room = [], LEAF_ROOM
        while self.waiting and self.old:
            self.put_leaf(self.old.popleft())

    def put_leaf(self, block: int) -> None:
        items = self.waiting.popleft()
        seq, superblock = self.source.newest_seq, self.source.superblock
        self.out.put(block, encode_leaf(block, items, superblock, owner=TREE_MAIN, seq=seq))
        self.children.append((items[0][0] if items else LOWEST, block))

    def internal(self, block: int, level: int, part: list[Child]) -> Child:
        seq, superblock = self.source.newest_seq, self.source.superblock
        self.out.put(
            block, encode_internal(block, level, part, superblock, owner=TREE_MAIN, seq=seq)
        )
        return part[0][0], block

    async def block(self, free: AsyncGenerator[int, None]) -> int:
        """A block of the old tree; or a free one, as full leaves may be packed less well. Raises NoSpace."""
        if self.old:
            return self.old.popleft()
        async for block in free:
            self.taken.add(block)
            return block
        raise NoSpace("no block is free for a node of the obscured tree")

    async def free_blocks(self) -> AsyncGenerator[int, None]:
        """Blocks that nothing claims and that are marked free."""
        source = self.source
        for group in range(source.superblock.group_count):
            bits = source.space.used_bits(group) | await used_bits(source, group)
            for block in reversed(free_in(group, bits)):
                yield block


def evenly(children: list[Child]) -> list[list[Child]]:
    """As few parts as nodes can hold, and each about as long."""
    count = -(-len(children) // SLOTS_PER_NODE)
    bounds = [len(children) * index // count for index in range(count + 1)]
    return [children[low:high] for low, high in pairwise(bounds)]


# --- the other blocks --------------------------------------------------------------------------


async def put_superblocks(source: Source, out: Output) -> None:
    """Each copy by its own fields, without the label; one that is damaged is a hole."""
    for place in superblock_places(source.superblock.block_count):
        try:
            found = Superblock.decode(await source.read(place), place)
        except (Corrupted, DeviceFailed):
            continue
        out.put(place, replace(found, label=b"").encode(place))


async def put_journal(source: Source, out: Output) -> None:
    """An empty journal that goes on behind the records that were replayed."""
    newest, replay = source.journal_super, source.replay
    if newest is None:
        return
    for generation in (newest.generation, abs(newest.generation - 1)):
        empty = JournalSuper(generation, replay.next_seq, replay.head_block, newest.epoch)
        place, block = empty.encode(source.superblock)
        if await is_journal_super(source, place):
            out.put(place, block)


async def is_journal_super(source: Source, place: int) -> bool:
    """One that is damaged is a hole in the copy."""
    try:
        JournalSuper.decode(await source.device.read(place), place, source.superblock)
    except (Corrupted, DeviceFailed):
        return False
    return True


def put_state(source: Source, out: Output, state: State, root: Root, tree: Tree) -> None:
    """The state with the new root. What an error said is left out: it may name a file."""
    free = state.free_blocks + len(tree.old) - len(tree.taken)
    changed = replace(
        state,
        roots=[root, *state.roots[1:]],
        free_blocks=min(max(0, free), source.superblock.block_count),
        first_error=replace(state.first_error, what=b""),
        last_error=replace(state.last_error, what=b""),
    )
    out.put(STATE_BLOCK, changed.encode(source.superblock, source.newest_seq))


async def put_bitmap(source: Source, out: Output, group: int, taken: int, released: int) -> None:
    """The bitmap of a group, with the blocks that the new tree has more or less."""
    superblock, number = source.superblock, bitmap_block(group)
    try:
        data = await source.read(number)
        if not any(data) and not taken | released:
            return  # never written
        if any(data):
            seed, uuid = superblock.checksum_seed, superblock.meta_uuid
            verify(data, number, BlockType.BITMAP, seed=seed, uuid=uuid)
    except (Corrupted, DeviceFailed):
        out.put(number, DAMAGED)
        return
    if taken | released:
        bits = (await used_bits(source, group) | taken) & ~released
        data = bytes(encode_bitmap(group, bits, superblock, source.newest_seq))
    out.put(number, data)


def by_group(blocks: Iterable[int]) -> dict[int, int]:
    """Blocks as bits of the bitmaps of their groups."""
    bits: dict[int, int] = {}
    for block in blocks:
        group = group_of(block)
        bits[group] = bits.get(group, 0) | 1 << block - group * GROUP_BLOCKS
    return bits
