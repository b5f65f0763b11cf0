"""Filesystems for the tests of fsck, made item by item through the layout's own encoders.

builder = Builder()
number = builder.file(ROOT_INODE, b"name", blocks=3)
builder.records[number].nlink = 7            break what shall be found
device = builder.build()
edit(device, builder.superblock, 20, change)          or break a block, with its checksum mended
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace

from mkfs.geometry import Plan, Wishes, calculate, make_identity
from mkfs.nodes import Item, encode_internal, encode_leaf
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.items import (
    INODE_INLINE,
    Dirent,
    Extent,
    InodeRecord,
    Xattr,
    encode_dirents,
    encode_parents,
    encode_xattrs,
)
from nvmefs.layout import (
    GROUP_BLOCKS,
    INLINE_BYTES,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    TREE_MAIN,
    JournalSuper,
    Key,
    Kind,
    Root,
    State,
    StateFlag,
    Superblock,
    bitmap_block,
    encode_bitmap,
    fixed_bits,
    free_blocks_when_fresh,
    group_of,
    key,
    reseal,
    superblock_places,
)
from tests.mkfs.ramdevice import RamDevice

BLOCKS = 2 * GROUP_BLOCKS + 500  # three groups, the last of them short
ITEMS_PER_LEAF = 4  # few, so that a handful of files makes a tree of several levels
CHILDREN_PER_NODE = 5


class Builder:
    """A filesystem in the making. What is not set by a test is right."""

    def __init__(self, block_count: int = BLOCKS) -> None:
        self.plan: Plan = calculate(block_count, Wishes(b"built"), make_identity(None, "builder"))
        self.superblock: Superblock = self.plan.superblock
        self.records: dict[int, InodeRecord] = {}
        self.items: dict[Key, bytes] = {}
        self.used: dict[int, int] = {}  # bits by group
        self.next_inode = 16
        self.next_block = self.plan.root_block + 1
        self.state: State | None = None  # filled by build()
        self.flags = StateFlag.CLEAN
        self.journal_epoch = self.plan.identity.epoch
        self.leaves: list[int] = []
        self.nodes: list[int] = []
        self.records[ROOT_INODE] = InodeRecord(stat.S_IFDIR | 0o755, 2, 0, 0, parent=ROOT_INODE)

    # --- content ------------------------------------------------------------------------------

    def take_number(self) -> int:
        self.next_inode += 1
        return self.next_inode - 1

    def take_blocks(self, count: int) -> int:
        """`count` blocks of group 0 in a row, marked used."""
        start, self.next_block = self.next_block, self.next_block + count
        assert group_of(self.next_block) == 0
        self.mark(start, count)
        return start

    def mark(self, start: int, count: int) -> None:
        group = group_of(start)
        bits = ((1 << count) - 1) << (start - group * GROUP_BLOCKS)
        self.used[group] = self.used.get(group, 0) | bits

    def link(self, directory: int, name: bytes, number: int) -> None:
        """A name, its back reference and the directory's count. The link count is the caller's."""
        type_ = self.records[number].mode >> 12
        dirent = encode_dirents(0, [Dirent(number, type_, 0, name)])
        self.items[self.dirent_key(directory, name)] = dirent
        self.items[self.parent_key(number, directory, name)] = encode_parents(
            0, [(directory, name)]
        )
        self.records[directory].entries += 1

    def dirent_key(self, directory: int, name: bytes) -> Key:
        return key(directory, Kind.DIRENT, name_hash(self.superblock.hash_seed, name))

    def parent_key(self, number: int, directory: int, name: bytes) -> Key:
        return key(number, Kind.PARENT, parent_hash(self.superblock.hash_seed, directory, name))

    def file(self, directory: int, name: bytes, *, blocks: int = 0, inline: bytes = b"") -> int:
        """A regular file with one extent, or with inline data, or empty."""
        number = self.take_number()
        record = InodeRecord(stat.S_IFREG | 0o644, 1, 0, 0)
        if blocks:
            self.extent(number, 0, self.take_blocks(blocks), blocks)
            record.blocks, record.size_bytes = blocks, blocks * 4096 - 5
        if inline:
            self.inline(number, inline)
            record.flags, record.size_bytes = INODE_INLINE, len(inline)
        self.records[number] = record
        self.link(directory, name, number)
        return number

    def extent(self, number: int, file_block: int, start: int, count: int, flags: int = 0) -> None:
        extent = Extent(file_block, start, count, flags)
        self.items[key(number, Kind.EXTENT, file_block)] = extent.encode()

    def inline(self, number: int, data: bytes) -> None:
        for index in range(-(-len(data) // INLINE_BYTES)):
            piece = data[index * INLINE_BYTES : (index + 1) * INLINE_BYTES]
            self.items[key(number, Kind.INLINE, index)] = piece

    def directory(self, parent: int, name: bytes) -> int:
        number = self.take_number()
        self.records[number] = InodeRecord(stat.S_IFDIR | 0o755, 2, 0, 0, parent=parent)
        self.link(parent, name, number)
        self.records[parent].nlink += 1
        return number

    def symlink(self, directory: int, name: bytes, target: bytes) -> int:
        number = self.take_number()
        self.records[number] = InodeRecord(
            stat.S_IFLNK | 0o777, 1, 0, 0, size_bytes=len(target), flags=INODE_INLINE
        )
        self.inline(number, target)
        self.link(directory, name, number)
        return number

    def xattr(self, number: int, name: bytes, value: bytes) -> int:
        """An attribute; the number of the value's holder, 0 if the value stands in the item."""
        holder = 0
        stored: bytes | None = value
        if len(value) > 512:
            holder, stored = self.take_number(), None
            self.inline(holder, value)
        place = key(number, Kind.XATTR, name_hash(self.superblock.hash_seed, name))
        self.items[place] = encode_xattrs(0, [Xattr(name, stored, len(value), holder)])
        return holder

    def orphan(self, number: int) -> None:
        self.items[key(0, Kind.ORPHAN, number)] = b""

    # --- the device -----------------------------------------------------------------------------

    def build(self) -> RamDevice:
        """All of it on a new device."""
        device = RamDevice(self.superblock.block_count)
        self.leaves, self.nodes = [], []
        content = dict(self.used), self.next_block
        for number, record in self.records.items():
            self.items.setdefault(key(number, Kind.INODE), record.encode())
        root = self.build_tree(device, sorted(self.items.items()))
        used = sum(bits.bit_count() for bits in self.used.values())
        self.state = State(
            next_inode=self.next_inode,
            free_blocks=free_blocks_when_fresh(self.superblock) - used,
            inode_count=len(self.records),
            roots=[root],
            flags=self.flags,
        )
        self.write_state(device)
        for group in range(self.superblock.group_count):
            bits = fixed_bits(group, self.superblock) | self.used.get(group, 0)
            device.put(bitmap_block(group), bytes(encode_bitmap(group, bits, self.superblock)))
        for generation in (1, 2):
            place, block = JournalSuper(generation, 1, 0, self.journal_epoch).encode(
                self.superblock
            )
            device.put(place, bytes(block))
        for place in superblock_places(self.superblock.block_count):
            device.put(place, bytes(self.superblock.encode(place)))
        self.used, self.next_block = content  # a second build begins where this one did
        return device

    def write_state(self, device: RamDevice, **changes: int) -> None:
        """The state block, with some fields changed."""
        assert self.state is not None
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        device.put(STATE_BLOCK, bytes(self.state.encode(self.superblock, 0)))

    def build_tree(self, device: RamDevice, items: list[Item]) -> Root:
        """Leaves and the nodes over them, each filled a little."""
        parts = [items[at : at + ITEMS_PER_LEAF] for at in range(0, len(items), ITEMS_PER_LEAF)]
        children: list[tuple[Key, int]] = []
        for part in parts:
            block = self.take_blocks(1)
            leaf = encode_leaf(block, part, self.superblock, owner=TREE_MAIN)
            device.put(block, bytes(leaf))
            children.append((part[0][0], block))
            self.leaves.append(block)
        level = 0
        children[0] = ((0, 0), children[0][1])
        while len(children) > 1:
            level += 1
            above = []
            for at in range(0, len(children), CHILDREN_PER_NODE):
                block = self.take_blocks(1)
                group = children[at : at + CHILDREN_PER_NODE]
                node = encode_internal(block, level, group, self.superblock, owner=TREE_MAIN)
                device.put(block, bytes(node))
                above.append((group[0][0], block))
                self.nodes.append(block)
            children = above
        return Root(TREE_MAIN, level, children[0][1])


def small_tree() -> Builder:
    """One of each kind: directories in each other, files of each sort, a hard link, attributes."""
    builder = Builder()
    sub = builder.directory(ROOT_INODE, b"sub")
    builder.directory(sub, b"deeper")
    big = builder.file(ROOT_INODE, b"big", blocks=7)
    builder.file(sub, b"small", inline=b"a few bytes")
    builder.file(sub, b"empty")
    builder.link(sub, b"second name of big", big)
    builder.records[big].nlink = 2
    builder.symlink(ROOT_INODE, b"link", b"x" * 2000)
    builder.xattr(big, b"user.short", b"value")
    builder.xattr(big, b"user.long", b"v" * 5000)
    return builder


def edit(
    device: RamDevice,
    superblock: Superblock,
    number: int,
    change: Callable[[bytearray], None],
) -> None:
    """Change the bytes of a block and mend its checksum."""
    block = bytearray(device.get(number))
    change(block)
    is_super = number in superblock_places(superblock.block_count)
    reseal(block, 0 if is_super or number == SUPERBLOCK else superblock.checksum_seed)
    device.put(number, bytes(block))
