"""Every invariant of the format that one pass in memory can check; a second opinion beside fsck.

    faults = check(namespace.blocks)              [] if the image, with its journal applied, is sound

Written for small images and for speed (milliseconds), so that each crash image of a campaign can be checked.
It shares with nvmefs what decodes single items, and nothing that decides.
"""

from __future__ import annotations

import stat
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from nvmefs.errors import Corrupted
from nvmefs.hashed import next_hash
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.inline import MAX_PIECES
from nvmefs.items import (
    EXTENT_UNWRITTEN,
    INODE_INLINE,
    OVERFLOWED,
    Dirent,
    Extent,
    InodeRecord,
    Xattr,
    decode_dirents,
    decode_extent,
    decode_parents,
    decode_xattrs,
)
from nvmefs.layout import (
    BITMAP_AT,
    BLOCK_BYTES,
    FIRST_FREE_INODE,
    GROUP_BLOCKS,
    INLINE_BYTES,
    OFFSET_MASK,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    BlockType,
    Key,
    Kind,
    State,
    Superblock,
    bitmap_block,
    fixed_bits,
    fresh_bitmap,
    verify,
)
from nvmefs.node import children, leaf_items, node_level

ZERO = bytes(BLOCK_BYTES)


@dataclass
class _Owner:
    """All items of one inode number."""

    record: InodeRecord | None = None
    inline: list[bytes] = field(default_factory=list)
    inline_at: list[int] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    dirents: dict[int, tuple[int, list[Dirent]]] = field(default_factory=dict)
    parents: dict[int, tuple[int, list[tuple[int, bytes]]]] = field(default_factory=dict)
    xattrs: dict[int, tuple[int, list[Xattr]]] = field(default_factory=dict)


class _Check:
    def __init__(self, blocks: Mapping[int, bytes], images: Mapping[int, bytes]) -> None:
        self.blocks = blocks
        self.images = images
        self.faults: list[str] = []
        self.used: dict[int, int] = defaultdict(int)  # bits by group
        self.owners: dict[int, _Owner] = defaultdict(_Owner)
        self.orphans: set[int] = set()
        self.leaves: list[int] = []

    def block(self, number: int) -> bytes:
        image = self.images.get(number)
        return image if image is not None else self.blocks.get(number, ZERO)

    def say(self, what: str) -> None:
        self.faults.append(what)

    def take(self, start: int, count: int, who: str) -> None:
        if not self.superblock.is_allocatable(start, count):
            self.say(f"{who}: blocks {start}+{count} are not its to have")
            return
        group, first = divmod(start, GROUP_BLOCKS)
        bits = ((1 << count) - 1) << first
        if self.used[group] & bits:
            self.say(f"{who}: blocks {start}+{count} have another owner too")
        self.used[group] |= bits

    def run(self) -> list[str]:
        try:
            self.superblock = Superblock.decode(self.block(SUPERBLOCK), SUPERBLOCK)
            self.state = State.decode(self.block(STATE_BLOCK), self.superblock)
            root = self.state.roots[0]
            self.node(root.block, root.level, (0, 0), (2**64 - 1, 2**64 - 1), root.id)
            self.bitmaps()
            self.inodes()
        except Corrupted as error:
            self.say(str(error))
        return self.faults

    # --- tree -----------------------------------------------------------------------------------

    def node(self, number: int, level: int, low: Key, high: Key, owner: int) -> None:
        self.take(number, 1, "tree node")
        data = self.block(number)
        superblock = self.superblock
        header = verify(
            data, number, BlockType.NODE, seed=superblock.checksum_seed, uuid=superblock.meta_uuid
        )
        if (header.owner, node_level(data)) != (owner, level):
            self.say(f"node {number}: owner {header.owner}, level {header.level}, not {level}")
            return
        if level:
            below = children(data)
            keys = [item for item, _ in below]
            if keys[0] != low:
                self.say(f"node {number}: first key {keys[0]}, its parent says {low}")
            for index, (item, child) in enumerate(below):
                end = keys[index + 1] if index + 1 < len(keys) else high
                self.node(child, level - 1, item, end, owner)
        else:
            items = list(leaf_items(data))
            keys = [item for item, _ in items]
            if not keys and number != self.state.roots[0].block:
                self.say(f"node {number}: an empty leaf")
            for item, value in items:
                self.item(item, value)
        if keys != sorted(set(keys)) or (keys and not low <= keys[0] <= keys[-1] < high):
            self.say(f"node {number}: keys out of order, or not those of its parent")

    def item(self, place: Key, value: bytes) -> None:
        number, kind, offset = place[0], Kind(place[1] >> 56), place[1] & OFFSET_MASK
        if kind is Kind.ORPHAN:
            if number or value:
                self.say(f"orphan item {place} with {value!r}")
            self.orphans.add(offset)
            return
        owner = self.owners[number]
        if kind is Kind.INODE:
            owner.record = InodeRecord.decode(number, value)
        elif kind is Kind.INLINE:
            owner.inline.append(value)
            owner.inline_at.append(offset)
        elif kind is Kind.EXTENT:
            owner.extents.append(decode_extent(number, offset, value, self.superblock.block_count))
        elif kind is Kind.DIRENT:
            owner.dirents[offset] = decode_dirents(number, value)
        elif kind is Kind.PARENT:
            owner.parents[offset] = decode_parents(number, value)
        else:
            owner.xattrs[offset] = decode_xattrs(number, value)

    # --- space ----------------------------------------------------------------------------------

    def bitmaps(self) -> None:
        """After the tree: used are the blocks of the format, nodes, and (here) extents."""
        for number, owner in self.owners.items():
            for extent in owner.extents:
                self.take(extent.start, extent.count, f"inode {number}")
        superblock = self.superblock
        free = 0
        for group in range(superblock.group_count):
            place = bitmap_block(group)
            data = self.block(place)
            if not any(data):
                data = bytes(fresh_bitmap(group, superblock))
            header = verify(
                data, place, BlockType.BITMAP,
                seed=superblock.checksum_seed, uuid=superblock.meta_uuid,
            )  # fmt: skip
            bits = int.from_bytes(data[BITMAP_AT:], "little")
            expected = self.used[group] | fixed_bits(group, superblock)
            if bits != expected:
                lost, wrong = bits & ~expected, expected & ~bits
                self.say(
                    f"bitmap {group}: {lost.bit_count()} blocks used by nobody (from "
                    f"{group * GROUP_BLOCKS + (lost & -lost).bit_length() - 1}), "
                    f"{wrong.bit_count()} used ones free (from "
                    f"{group * GROUP_BLOCKS + (wrong & -wrong).bit_length() - 1})"
                )
            group_free = GROUP_BLOCKS - bits.bit_count()
            if header.items != group_free:
                self.say(f"bitmap {group}: says {header.items} free, {group_free} are")
            free += group_free
        if self.state.free_blocks != free:
            self.say(f"state: {self.state.free_blocks} free blocks, the bitmaps say {free}")

    # --- inodes ---------------------------------------------------------------------------------

    def inodes(self) -> None:
        names: dict[int, Counter[tuple[int, bytes]]] = defaultdict(Counter)
        self.values: Counter[int] = Counter()
        for number, owner in self.owners.items():
            for hash56, (_, entries) in owner.dirents.items():
                for entry in entries:
                    names[entry.inode][number, entry.name] += 1
                    self.name(number, owner, hash56, entry)
            for hash56, (_, attributes) in owner.xattrs.items():
                self.attributes(number, owner, hash56, attributes)
        live = {n: owner for n, owner in self.owners.items() if owner.record is not None}
        for number, owner in self.owners.items():
            if owner.record is None:
                self.no_inode(number, owner)
            else:
                self.inode(number, owner, owner.record, names.pop(number, Counter()))
        if names:
            self.say(f"names of inodes that do not exist: {dict(names)}")
        if self.state.inode_count != len(live):
            self.say(f"state: {self.state.inode_count} inodes, there are {len(live)}")
        highest = max([FIRST_FREE_INODE - 1, *self.owners])
        if self.state.next_inode <= highest:
            self.say(f"state: next inode {self.state.next_inode}, the highest is {highest}")
        for number in self.orphans - set(live):
            self.say(f"orphan {number} does not exist")

    def name(self, number: int, owner: _Owner, hash56: int, entry: Dirent) -> None:
        at = name_hash(self.superblock.hash_seed, entry.name)
        self.reachable(f"directory {number}: {entry.name!r}", at, hash56, owner.dirents)
        target = self.owners[entry.inode].record if entry.inode in self.owners else None
        if target is not None and target.mode >> 12 != entry.type:
            self.say(f"directory {number}: {entry.name!r} has type {entry.type}")
        if sum(other.index == entry.index for other in owner.dirents[hash56][1]) != 1:
            self.say(f"directory {number}: index {entry.index} of {entry.name!r} is not its own")

    def reachable(
        self, who: str, at: int, hash56: int, items: Mapping[int, tuple[int, object]]
    ) -> None:
        """A search that begins at hash `at` must come to `hash56`."""
        while at != hash56:
            if at not in items or not items[at][0] & OVERFLOWED:
                self.say(f"{who} stands under hash {hash56:#x}, where it is not found")
                return
            at = next_hash(at)

    def attributes(self, number: int, owner: _Owner, hash56: int, attributes: list[Xattr]) -> None:
        for attribute in attributes:
            at = name_hash(self.superblock.hash_seed, attribute.name)
            self.reachable(f"inode {number}: {attribute.name!r}", at, hash56, owner.xattrs)
            if attribute.value is None:
                self.values[attribute.value_inode] += 1
                value = (
                    self.owners[attribute.value_inode]
                    if (attribute.value_inode in self.owners)
                    else _Owner()
                )
                if sum(map(len, value.inline)) != attribute.length:
                    self.say(f"inode {number}: the value of {attribute.name!r} is not whole")

    def no_inode(self, number: int, owner: _Owner) -> None:
        if self.values[number] != 1 or owner.extents or owner.dirents or owner.parents:
            self.say(f"items of inode {number}, which does not exist")
        self.pieces(number, owner)

    def pieces(self, number: int, owner: _Owner) -> None:
        if owner.inline_at != list(range(len(owner.inline))) or len(owner.inline) > MAX_PIECES:
            self.say(f"inode {number}: pieces {owner.inline_at} of inline data")
        if any(len(piece) != INLINE_BYTES for piece in owner.inline[:-1]):
            self.say(f"inode {number}: a short piece of inline data")

    def inode(
        self, number: int, owner: _Owner, record: InodeRecord, names: Counter[tuple[int, bytes]]
    ) -> None:
        links: Counter[tuple[int, bytes]] = Counter()
        for hash56, (_, entries) in owner.parents.items():
            links.update(entries)
            for directory, name in entries:
                at = parent_hash(self.superblock.hash_seed, directory, name)
                self.reachable(f"inode {number}: back reference", at, hash56, owner.parents)
        if names != links:
            self.say(f"inode {number}: names {dict(names)}, back references {dict(links)}")
        if (number in self.orphans) < (not record.nlink):
            self.say(f"inode {number}: no link, and no orphan item")
        self.data(number, owner, record)
        if stat.S_ISDIR(record.mode):
            self.directory(number, owner, record, names)
        elif record.nlink != names.total():
            self.say(f"inode {number}: link count {record.nlink}, names {dict(names)}")
        elif owner.dirents or record.entries or record.parent:
            self.say(f"inode {number}: no directory, but with names in it")

    def directory(
        self, number: int, owner: _Owner, record: InodeRecord, names: Counter[tuple[int, bytes]]
    ) -> None:
        entries = [entry for _, found in owner.dirents.values() for entry in found]
        if record.entries != len(entries):
            self.say(f"directory {number}: counts {record.entries} entries, has {len(entries)}")
        if number == ROOT_INODE:
            if names or record.parent != ROOT_INODE:
                self.say(f"the root has names {dict(names)}, parent {record.parent}")
        elif not record.nlink:
            if names or entries:
                self.say(f"directory {number}: removed, but has names")
            return
        elif list(names.values()) != [1] or [record.parent] != [place for place, _ in names]:
            self.say(f"directory {number}: parent {record.parent}, names {dict(names)}")
        subdirectories = sum(entry.type << 12 == stat.S_IFDIR for entry in entries)
        if record.nlink != 2 + subdirectories:
            self.say(f"directory {number}: link count {record.nlink}, not {2 + subdirectories}")

    def data(self, number: int, owner: _Owner, record: InodeRecord) -> None:
        self.pieces(number, owner)
        if record.flags & INODE_INLINE:
            if sum(map(len, owner.inline)) != record.size_bytes or owner.extents:
                self.say(f"inode {number}: inline data of another size, or beside extents")
        elif owner.inline:
            self.say(f"inode {number}: inline data and no flag")
        end = written = 0
        for extent in owner.extents:
            if extent.file_block < end:
                self.say(f"inode {number}: extents overlap at file block {extent.file_block}")
            end = extent.end
            if not extent.flags & EXTENT_UNWRITTEN:
                written = end
        # Behind the end there may be what fallocate has kept for the file, and nothing else.
        if written > -(-record.size_bytes // BLOCK_BYTES) and number not in self.orphans:
            self.say(f"inode {number}: data to block {written}, size {record.size_bytes}")
        if record.blocks != sum(extent.count for extent in owner.extents):
            self.say(f"inode {number}: counts {record.blocks} blocks")


def check(blocks: Mapping[int, bytes], images: Mapping[int, bytes] | None = None) -> list[str]:
    """What is wrong with an image; `images` are blocks that its journal holds (recovery.Replay)."""
    return _Check(blocks, images or {}).run()
