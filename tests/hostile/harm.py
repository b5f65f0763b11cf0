"""Damage by somebody who knows the format: every checksum is right, every structure is in itself.

    image = mutated(base, seed)                  a namespace of its own; the same seed does the same

What is in mutations.py, and: circles of nodes and of directories, extents over metadata and over each other,
counts and lengths at which programs break, bitmaps that lie, copies of the superblock that differ, records of
the journal with impossible shapes, devices that end too early.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import fields, replace

from mkfs.nodes import encode_leaf
from nvmefs.errors import Corrupted
from nvmefs.items import (
    Dirent,
    Extent,
    InodeRecord,
    Xattr,
    decode_dirents,
    decode_extent,
    decode_parents,
    decode_xattrs,
    encode_dirents,
    encode_parents,
    encode_xattrs,
)
from nvmefs.layout import (
    BITMAP_AT,
    GROUP_BLOCKS,
    HEADER_BYTES,
    MAX_LEVEL,
    OFFSET_MASK,
    ROOT_INODE,
    SLOT_BYTES,
    STATE_BLOCK,
    TREE_MAIN,
    Key,
    Kind,
    State,
    bitmap_block,
    encode_bitmap,
    reseal,
    superblock_places,
)
from nvmefs.node import children, leaf_items, node_level
from tests.hostile.images import Base
from tests.hostile.mutations import Mutator
from tests.support.ram import ZERO, RamNamespace

BROKEN = (
    Corrupted,
    struct.error,
    ValueError,
    IndexError,
    OverflowError,
)  # by a change that was made before
NAMES = (b".", b"..", b"a/b", b"a\0", b"", b"\n", b"\xff" * 255, b"big", b"sub", b"lost+found")


class Items:
    """All items of an image, by leaf; those that are changed go back into the leaf whose range they are in."""

    def __init__(self, harm: Harm) -> None:
        self.harm = harm
        self.leaves: dict[int, dict[Key, bytes]] = {}
        for number in harm.base.leaves:
            try:
                self.leaves[number] = dict(leaf_items(harm.get(number)))
            except BROKEN:
                continue
        order = sorted((min(items), number) for number, items in self.leaves.items() if items)
        self.lows = [low for low, _ in order]
        self.numbers = [number for _, number in order]
        self.changed: set[int] = set()

    def of(self, kind: Kind) -> list[tuple[Key, bytes]]:
        return [
            (place, value)
            for items in self.leaves.values()
            for place, value in items.items()
            if place[1] >> 56 == kind
        ]

    def leaf_of(self, place: Key) -> int:
        return self.numbers[max(bisect_right(self.lows, place) - 1, 0)]

    def set(self, place: Key, value: bytes) -> None:
        number = self.leaf_of(place)
        self.leaves[number][place] = value
        self.changed.add(number)

    def remove(self, place: Key) -> None:
        number = self.leaf_of(place)
        if self.leaves[number].pop(place, None) is not None:
            self.changed.add(number)

    def write(self) -> None:
        """Raises ValueError when a leaf has become too full."""
        superblock = self.harm.base.superblock
        for number in sorted(self.changed):
            seq = int.from_bytes(self.harm.get(number)[48:56], "little")
            items = sorted(self.leaves[number].items())
            leaf = encode_leaf(number, items, superblock, owner=TREE_MAIN, seq=seq)
            self.harm.put(number, leaf, mend=True)


class Harm(Mutator):
    """The ways of a Mutator, and those that need to understand what they change."""

    def __init__(self, base: Base, seed: int) -> None:
        super().__init__(base, seed)
        aimed: list[tuple[int, Callable[[], None]]] = [
            (3, self.tie_nodes),
            (2, self.state_root),
            (5, self.move_extent),
            (6, self.absurd_inode),
            (5, self.change_name),
            (3, self.tie_directories),
            (3, self.change_attribute),
            (2, self.add_orphan),
            (3, self.lying_bitmap),
            (2, self.differing_superblocks),
            (3, self.absurd_record),
            (2, self.journal_a_superblock),
            (2, self.cut_short),
        ]
        self.ways += [(weight, self.guarded(way)) for weight, way in aimed]

    def guarded(self, way: Callable[[], None]) -> Callable[[], None]:
        """What was broken by an earlier change cannot be changed with understanding again."""

        def run() -> None:
            try:
                way()
            except BROKEN:
                self.flip_bits()

        return run

    # --- tree ---------------------------------------------------------------------------------

    def tie_nodes(self) -> None:
        """A node hangs below itself, its child or its neighbour; its level is made to fit or not."""
        rng = self.rng
        parents = [number for number in self.base.nodes if number not in self.base.leaves]
        if not parents:
            self.state_root()
            return
        number = rng.choice(parents)
        data = self.get(number)
        slots = children(data)
        target = rng.choice(
            [number, rng.choice(self.base.nodes), rng.choice(slots)[1], self.base.nodes[0]]
        )
        at = HEADER_BYTES + rng.randrange(len(slots)) * SLOT_BYTES
        struct.pack_into("<Q", data, at + 16, target)
        if rng.random() < 0.3:
            data[11] = rng.choice((0, 1, 2, node_level(data) + 1, MAX_LEVEL, 255))
        self.put(number, data, mend=True)

    def state_root(self) -> None:
        """The root is another node, or of another level; the counters are absurd."""
        rng = self.rng
        state = State.decode(self.get(STATE_BLOCK), self.base.superblock)
        root = state.roots[0]
        way = rng.randrange(4)
        if way == 0:
            state.roots[0] = replace(root, block=rng.choice(self.base.metadata))
        elif way == 1:
            state.roots[0] = replace(root, level=rng.choice((0, 1, root.level + 1, MAX_LEVEL)))
        elif way == 2:
            name = rng.choice(("next_inode", "free_blocks", "inode_count"))
            setattr(state, name, self.some_number(64))
        else:
            state.flags = self.some_number(32)
            state.mount_count = self.some_number(32)
        self.put(STATE_BLOCK, state.encode(self.base.superblock, 0), mend=True)

    # --- files --------------------------------------------------------------------------------

    def move_extent(self) -> None:
        """An extent over metadata, over another extent, over the end of the device; or far too long."""
        rng, items = self.rng, Items(self)
        place, value = rng.choice(items.of(Kind.EXTENT))
        count = self.namespace.block_count
        old = decode_extent(place[0], place[1] & OFFSET_MASK, value, count)
        _, other = rng.choice(items.of(Kind.EXTENT))
        start = rng.choice(
            (
                rng.choice(self.base.metadata), rng.randrange(count), count - 1, 0, old.start,
                decode_extent(0, 0, other, count).start, self.base.superblock.journal_start,
            )
        )  # fmt: skip
        length = rng.choice((old.count, old.count, 1, 2, 40, count - start, 2**32 - 1))
        flags = rng.choice((old.flags, old.flags, 1, 2, 3, 0xFFFF))
        moved = Extent(old.file_block, start, max(1, length), flags)
        at = rng.choice(
            (old.file_block, old.file_block, old.file_block + 1, 2**51 - 1, 2**51, OFFSET_MASK)
        )
        items.set((place[0], Kind.EXTENT << 56 | at), moved.encode())
        items.write()

    def absurd_inode(self) -> None:
        """One field of an inode at a number at which programs break."""
        items = Items(self)
        place, value = self.rng.choice(items.of(Kind.INODE))
        record = InodeRecord.unchecked(value)
        name = self.rng.choice([each.name for each in fields(record)])
        for bits in (64, 32, 31):  # what the field can hold
            changed = replace(record, **{name: self.some_number(bits)})
            try:
                items.set(place, changed.encode())
            except struct.error:
                continue
            items.write()
            break

    def add_orphan(self) -> None:
        """A file that has names, or none that exists, is to be deleted at the next mount; or was, by halves."""
        items = Items(self)
        place, value = self.rng.choice(items.of(Kind.INODE))
        number = self.rng.choice((place[0], place[0], ROOT_INODE, self.some_number(56)))
        items.set((0, Kind.ORPHAN << 56 | number), b"")
        if self.rng.random() < 0.5:
            record = InodeRecord.unchecked(value)
            items.set(place, replace(record, nlink=self.rng.choice((0, 1))).encode())
        items.write()

    def change_attribute(self) -> None:
        """An attribute whose value is that of another, of a file, of nobody, or has another length."""
        rng, items = self.rng, Items(self)
        place, value = rng.choice(items.of(Kind.XATTR))
        flags, attributes = decode_xattrs(place[0], value)
        inodes = [other[0] for other, _ in items.of(Kind.INODE)]
        index = rng.randrange(len(attributes))
        old = attributes[index]
        numbers = (rng.choice(inodes), place[0], old.value_inode or 5, self.some_number(56) or 1)
        way = rng.randrange(4)
        if way == 0:
            attributes[index] = Xattr(old.name, None, old.length, rng.choice(numbers))
        elif way == 1 and old.value is None:
            attributes[index] = replace(old, length=rng.choice((0, 1, 901, 65536, old.length + 1)))
        elif way == 2:
            attributes.append(old)
        else:
            attributes[index] = replace(old, name=rng.choice(NAMES) or b"system.x")
        items.set(place, encode_xattrs(rng.choice((flags, 1)), attributes))
        items.write()

    # --- names --------------------------------------------------------------------------------

    def change_name(self) -> None:
        """A name that cannot be, is there twice, or leads to a directory above, to nothing, to another type."""
        rng, items = self.rng, Items(self)
        place, value = rng.choice(items.of(Kind.DIRENT))
        flags, entries = decode_dirents(place[0], value)
        inodes = [other[0] for other, _ in items.of(Kind.INODE)]
        index = rng.randrange(len(entries))
        old = entries[index]
        way = rng.randrange(5)
        if way == 0:
            target = rng.choice((rng.choice(inodes), place[0], ROOT_INODE, self.some_number(56)))
            entries[index] = replace(old, inode=target)
        elif way == 1:
            entries[index] = replace(old, name=rng.choice(NAMES))
        elif way == 2:
            entries[index] = replace(old, type=rng.choice((0, 1, 2, 4, 6, 8, 10, 12, 15)))
        elif way == 3:
            entries.append(Dirent(rng.choice(inodes), old.type, old.index ^ 1, old.name))
        else:
            entries[index] = replace(old, index=rng.choice((0, 127, 255)))
        items.set(place, encode_dirents(rng.choice((flags, flags, 1, 2)), entries))
        items.write()

    def tie_directories(self) -> None:
        """A directory, with all that refers to it, hangs below itself or below one that is inside of it."""
        rng, items = self.rng, Items(self)
        names = [
            (place, value, entry)
            for place, value in items.of(Kind.DIRENT)
            for entry in decode_dirents(place[0], value)[1]
            if entry.type == 4
        ]
        place, value, entry = rng.choice(names)
        inside = rng.choice([each.inode for _, _, each in names])
        below = rng.choice((entry.inode, inside))
        flags, entries = decode_dirents(place[0], value)
        rest = [each for each in entries if each.name != entry.name]
        if rest:
            items.set(place, encode_dirents(flags, rest))
        else:
            items.remove(place)
        items.set((below, place[1]), encode_dirents(0, [entry]))
        for other, links in items.of(Kind.PARENT):
            if other[0] == entry.inode:
                kept, _ = decode_parents(other[0], links)
                items.set(other, encode_parents(kept, [(below, entry.name)]))
        for other, record in items.of(Kind.INODE):
            if other[0] == entry.inode:
                items.set(other, replace(InodeRecord.unchecked(record), parent=below).encode())
        items.write()

    # --- space, superblocks, journal ----------------------------------------------------------

    def lying_bitmap(self) -> None:
        """Used blocks that are free, free ones that are used; with the counts right, or at their bounds."""
        rng, superblock = self.rng, self.base.superblock
        group = rng.randrange(superblock.group_count)
        number = bitmap_block(group)
        bits = int.from_bytes(self.get(number)[BITMAP_AT:], "little")
        for _ in range(rng.choice((1, 3))):
            first = rng.choice(
                (rng.choice(self.base.metadata), rng.randrange(superblock.block_count))
            )
            mask = ((1 << rng.choice((1, 8, 100, 30000))) - 1) << first
            bits = (bits | mask if rng.random() < 0.5 else bits & ~mask) & (1 << GROUP_BLOCKS) - 1
        data = encode_bitmap(group, bits, superblock)
        if rng.random() < 0.4:
            struct.pack_into("<H", data, 56 + 2 * rng.randrange(2), self.some_number(16))
        self.put(number, data, mend=True)

    def differing_superblocks(self) -> None:
        """Each copy says something else, or none is left but one that lies."""
        places = superblock_places(self.base.superblock.block_count)
        for number in self.rng.sample(places, self.rng.randrange(1, len(places) + 1)):
            data = self.get(number)
            if self.rng.random() < 0.3:
                data = bytearray(ZERO)
            else:
                struct.pack_into("<Q", data, self.rng.randrange(8, 40) * 8, self.some_number(64))
            self.put(number, data, mend=True)

    def absurd_record(self) -> None:
        """A record of the journal, its own numbers changed: how many images, headers, tags; homes; order."""
        if not self.base.headers:
            self.add_record()
            return
        number = self.rng.choice(self.base.headers)
        data = self.get(number)
        code, at, bits = self.rng.choice(
            (
                ("<H", 56, 16), ("<I", HEADER_BYTES, 32), ("<H", HEADER_BYTES + 4, 16),
                ("<H", HEADER_BYTES + 6, 16), ("<Q", HEADER_BYTES + 16, 64), ("<Q", 40, 64),
                ("<Q", 48, 64), ("<I", HEADER_BYTES + 24, 32),
            )
        )  # fmt: skip
        value = self.some_number(bits)
        if at == HEADER_BYTES + 16 and self.often():
            value = self.rng.choice(self.base.metadata)
        struct.pack_into(code, data, at, value)
        reseal(data, self.base.superblock.checksum_seed)
        self.blocks[number] = bytes(data)

    def journal_a_superblock(self) -> None:
        """A committed transaction that makes the filesystem another: larger, smaller, with other places."""
        rng, old = self.rng, self.base.superblock
        name = rng.choice(
            ("block_count", "journal_start", "journal_blocks", "checksum_seed", "incompat",
             "ro_compat", "lba_bytes", "alignment_blocks", "reserved_blocks", "root_inode")
        )  # fmt: skip
        changed = replace(old)
        if rng.random() < 0.5:
            changed.block_count += rng.choice((1, 63, 64, 100, 40000, 2**40))
        else:
            setattr(changed, name, self.some_number(31 if name.endswith(("d", "s")) else 64))
        places = superblock_places(rng.choice((old, changed)).block_count)
        chosen = places if self.often() else rng.sample(places, 1)
        self.commit([(place, bytes(changed.encode(place))) for place in chosen])

    def cut_short(self) -> None:
        """The end of the device is gone, or reads as zeroes."""
        rng, count = self.rng, self.namespace.block_count
        end = rng.choice((1, 16, 17, 21, 22, 64, 100, count // 3, count - 2, rng.randrange(count)))
        kept = {number: data for number, data in self.blocks.items() if number < end}
        self.namespace = RamNamespace(max(end, 1) if rng.random() < 0.6 else count, kept)
        self.blocks = self.namespace.blocks


def mutated(base: Base, seed: int) -> RamNamespace:
    """The image that `seed` makes of `base`."""
    return Harm(base, seed).run()
