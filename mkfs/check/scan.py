"""The second pass: every node of the tree, in the order of keys, each checked before it is believed.

Below: load.Source, nvmefs.node.  Above: fsck.py; items.py is the visitor that takes the items.

A node is damaged by itself (checksum, address, slots: verify and node_check), or wrong at its place (level,
tree, keys, blocks that it may not use or that another uses). What hangs below a bad node is not seen; then
`source.whole` is False and the passes that need all of it say so instead of accusing the innocent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mkfs.check.load import Block, Source
from mkfs.check.space import Double
from nvmefs._core import ffi, lib
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.layout import BlockType, Header, Key, Root, describe, verify
from nvmefs.node import children, leaf_items, node_error

LOWEST: Key = (0, 0)
HIGHEST: Key = (2**64 - 1, 2**64 - 1)


class Visitor(Protocol):
    """Who wants to see the tree. `low` is the key under which a leaf hangs."""

    def node(self, block: int, level: int) -> None: ...
    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None: ...
    def lost(self, low: Key, high: Key) -> None: ...  # keys of low..high-1 could not be read


class Walk:
    """One walk. `quiet`: a second walk, for details, that repeats no finding and claims no block.

    `elsewhere` tells afterwards that what was lost may stand in nodes that were not reached.
    """

    def __init__(
        self, source: Source, root: Root, visitor: Visitor, *, quiet: bool = False
    ) -> None:
        self.source = source
        self.root = root
        self.visitor = visitor
        self.quiet = quiet
        self.seen: set[int] = set()
        self.double: list[Double] = []
        self.elsewhere = False
        self.nodes = 0

    async def run(self, low: Key = LOWEST, high: Key = HIGHEST) -> None:
        """Visit all nodes that may hold keys of low..high (inclusive)."""
        self.wanted = (low, high)
        block = self.root.block
        if not self.enter(block, "the tree's root"):
            self.visitor.lost(LOWEST, HIGHEST)
            return
        data = (await self.source.read_many([block]))[block]
        await self.visit(block, self.root.level, LOWEST, HIGHEST, data)

    async def visit(self, block: int, level: int, low: Key, high: Key, data: Block) -> None:
        """A node that must have this level and keys of low..high-1, and all below it."""
        header = self.check_itself(block, data)
        if header is None or not self.check_place(header, level):
            self.elsewhere |= level > 0 or header is not None
            self.visitor.lost(low, high)
            return
        assert isinstance(data, bytes)
        self.nodes += 1
        if level:
            self.visitor.node(block, level)
            await self.visit_children(header, data, low, high)
            return
        items = list(leaf_items(data))
        if items and (items[0][0] < low or items[-1][0] >= high):
            self.report(
                "node-keys",
                block,
                f"leaf {block} holds {describe(items[0][0])} to {describe(items[-1][0])}, its parent "
                f"gives it {describe(low)} up to before {describe(high)}",
            )
            self.elsewhere = True
            self.visitor.lost(low, high)
            return
        self.visitor.node(block, level)
        if not items and block != self.root.block:
            self.report("node-empty", block, f"leaf {block} is empty and is not the root")
        self.visitor.leaf(block, low, items)

    async def visit_children(self, header: Header, data: bytes, low: Key, high: Key) -> None:
        """All children of a checked internal node; leaves are read together."""
        slots = children(data)
        block, level = header.block, header.level
        if not slots or slots[0][0] != low or slots[-1][0] >= high:
            shown = f"{describe(slots[0][0])} to {describe(slots[-1][0])}" if slots else "nothing"
            self.report(
                "node-keys",
                block,
                f"node {block} holds {shown}, its parent gives it {describe(low)} up to before "
                f"{describe(high)}",
            )
            self.elsewhere = True
            self.visitor.lost(low, high)
            return
        ends = [*(key for key, _ in slots[1:]), high]
        wanted_low, wanted_high = self.wanted
        chosen = [
            (key, child, end, self.enter(child, f"node {block}"))
            for (key, child), end in zip(slots, ends, strict=True)
            if key <= wanted_high and end > wanted_low
        ]
        ahead: dict[int, Block] = {}
        if level == 1:
            ahead = await self.source.read_many(
                [child for _, child, _, entered in chosen if entered]
            )
        for key, child, end, entered in chosen:
            if not entered:
                self.visitor.lost(key, end)
                continue
            if level > 1:
                ahead = await self.source.read_many([child])
            await self.visit(child, level - 1, key, end, ahead.pop(child))

    # --- checks -------------------------------------------------------------------------------

    def enter(self, block: int, parent: str) -> bool:
        """Whether a node may stand in `block`, and was not seen yet: so a loop ends."""
        source = self.source
        if not source.superblock.is_allocatable(block, 1):
            self.report(
                "node-forbidden", block, f"{parent} points to block {block}, where no node can be"
            )
            self.elsewhere = True
            return False
        if block in self.seen:
            self.report(
                "node-shared", block, f"{parent} points to node {block}, which hangs elsewhere too"
            )
            self.elsewhere = True
            return False
        self.seen.add(block)
        if not self.quiet and source.space.claim(block, 1):
            self.double.append(Double(block, 1))
        return True

    def check_itself(self, block: int, data: Block) -> Header | None:
        """The header of a node that is sound in itself."""
        if isinstance(data, DeviceFailed):
            self.report("node-unreadable", block, str(data))
            return None
        superblock = self.source.superblock
        try:
            header = verify(
                data,
                block,
                BlockType.NODE,
                seed=superblock.checksum_seed,
                uuid=superblock.meta_uuid,
            )
        except Corrupted as error:
            self.report("node-damaged", block, str(error))
            return None
        self.source.newest_seq = max(self.source.newest_seq, header.seq)
        fault = lib.node_check(ffi.from_buffer("uint8_t[]", data))
        if fault:
            self.report("node-damaged", block, f"block {block}: tree node: {node_error(fault)}")
            return None
        return header

    def check_place(self, header: Header, level: int) -> bool:
        """Whether a sound node is the one that its parent means."""
        if header.level != level:
            self.report(
                "node-level",
                header.block,
                f"node {header.block} has level {header.level} where {level} must be",
            )
            return False
        if header.owner != self.root.id:
            self.report(
                "node-owner",
                header.block,
                f"node {header.block} belongs to tree {header.owner}, not to {self.root.id}",
            )
            return False
        return True

    def report(self, name: str, block: int, text: str) -> None:
        """A finding about the node in `block`, by which a part of the tree is lost, or must be made anew."""
        if not self.quiet:
            self.source.findings.add(name, text, block=block)
            self.source.whole = False
