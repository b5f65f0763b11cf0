"""The C functions once more, in Python and by other means: what the tests of core/ compare with.

Nodes are rebuilt as plain lists, bitmaps as integers. `MemoryStore` is a store of blocks that holds
the tree to its contract: nothing is changed before `modify`, nothing is used after `free_node`.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

from nvmefs._core import lib
from nvmefs.cache import Block
from nvmefs.errors import Corrupted, NoSpace
from nvmefs.layout import BlockType, Key, Root
from nvmefs.tree import Tree

Item = tuple[Key, bytes]
ROOM_BYTES = 4032
TREE_ID = 1

# --- nodes ---------------------------------------------------------------------------------------


def build_node(level: int = 0, owner: int = TREE_ID, number: int = 100) -> Block:
    """An empty node, as a store makes it."""
    data = bytearray(4096)
    data[11] = level
    struct.pack_into("<Q", data, 40, owner)
    struct.pack_into("<H", data, 58, 4096)
    return Block(number, BlockType.NODE, data)


def read_leaf(data: bytes | bytearray) -> list[Item]:
    """The items of a leaf, read field by field."""
    result = []
    for slot in range(struct.unpack_from("<H", data, 56)[0]):
        inode, rest, offset, length = struct.unpack_from("<QQHH", data, 64 + 24 * slot)
        result.append(((inode, rest), bytes(data[offset : offset + length])))
    return result


def read_children(data: bytes | bytearray) -> list[tuple[Key, int]]:
    """The children of an internal node."""
    result = []
    for slot in range(struct.unpack_from("<H", data, 56)[0]):
        inode, rest, child = struct.unpack_from("<QQQ", data, 64 + 24 * slot)
        result.append(((inode, rest), child))
    return result


def size_of(items: list[Item]) -> int:
    """The bytes that items take in a leaf."""
    return sum(24 + len(value) for _, value in items)


def is_node(data: bytes | bytearray) -> bool:
    """What node_check decides, by sets of bytes instead of bit masks."""
    level, (count, heap) = data[11], struct.unpack_from("<HH", data, 56)
    if level > 12 or count > 168:
        return False
    keys = [struct.unpack_from("<QQ", data, 64 + 24 * slot) for slot in range(count)]
    if any(a >= b for a, b in itertools.pairwise(keys)):
        return False
    if (2**64 - 1, 2**64 - 1) in keys:
        return False
    if level:
        children = [child for _, child in read_children(data)]
        return count > 0 and heap == 4096 and all(0 < child < 2**48 for child in children)
    taken: set[int] = set()
    total = 0
    for slot in range(count):
        offset, length, zero = struct.unpack_from("<HHI", data, 64 + 24 * slot + 16)
        if zero or length > 1000 or offset < heap or offset + length > 4096:
            return False
        taken.update(range(offset, offset + length))
        total += length
    return 64 + 24 * count <= heap <= 4096 and len(taken) == total


# --- a store of nodes ------------------------------------------------------------------------------


class MemoryStore:
    """Nodes in a dict. `limit` bounds how many there may be: then NoSpace, as on a full disk."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.blocks: dict[int, Block] = {}
        self.next = 100
        self.limit = limit
        self.before: dict[int, bytes | None] = {}
        self.freed: dict[int, Block] = {}
        self.undo: list[Callable[[], None]] = []
        self.gets = 0

    def get(self, number: int, kind: BlockType) -> Block:
        assert kind is BlockType.NODE
        self.gets += 1
        if number not in self.blocks:
            raise Corrupted(number, "no such block")
        return self.blocks[number]

    def modify(self, block: Block) -> None:
        assert self.blocks[block.number] is block
        self.before.setdefault(block.number, bytes(block.data))

    def new_node(self, tree_id: int, level: int, goal: int) -> Block:
        if len(self.blocks) >= self.limit:
            raise NoSpace()
        assert goal > 0
        self.next += 1
        block = self.blocks[self.next] = build_node(level, tree_id, self.next)
        self.before[self.next] = None
        return block

    def free_node(self, block: Block) -> None:
        self.modify(block)
        self.freed[block.number] = self.blocks.pop(block.number)

    def on_undo(self, restore: Callable[[], None]) -> None:
        self.undo.append(restore)

    def commit(self) -> None:
        """The end of an operation that went well."""
        self.before, self.freed, self.undo = {}, {}, []

    def roll_back(self) -> None:
        """The end of one that did not."""
        for restore in reversed(self.undo):
            restore()
        self.blocks |= self.freed
        for number, data in self.before.items():
            if data is None:
                del self.blocks[number]
            else:
                self.blocks[number].data[:] = data
        self.commit()

    def images(self) -> dict[int, bytes]:
        """All bytes there are, to compare with later."""
        return {number: bytes(block.data) for number, block in self.blocks.items()}


def empty_tree(limit: int = 1 << 20) -> tuple[Tree, MemoryStore]:
    """A tree without items, in a store of its own."""
    store = MemoryStore(limit)
    leaf = store.new_node(TREE_ID, 0, 1)
    store.commit()
    return Tree(Root(TREE_ID, 0, leaf.number)), store


def check_tree(tree: Tree, store: MemoryStore) -> list[Item]:
    """The items of a tree, read by another way than its own, after every invariant was asserted."""
    items: list[Item] = []
    seen: set[int] = set()

    def walk(number: int, level: int, low: Key, high: Key) -> None:
        assert number not in seen, f"block {number} hangs in two places"
        seen.add(number)
        data = store.blocks[number].data
        assert is_node(data), f"block {number} is no node"
        assert lib.node_check(store.blocks[number].ptr) == 0
        assert data[11] == level
        assert struct.unpack_from("<Q", data, 40)[0] == TREE_ID
        if level == 0:
            found = read_leaf(data)
            assert found or number == tree.root.block, "an empty leaf below the root"
            assert all(low <= key < high for key, _ in found)
            items.extend(found)
            return
        children = read_children(data)
        assert children[0][0] == low
        assert len(children) > 1 or number != tree.root.block, "a root with one child"
        bounds = [key for key, _ in children[1:]] + [high]
        for (key, child), end in zip(children, bounds, strict=True):
            walk(child, level - 1, key, end)

    walk(tree.root.block, tree.root.level, (0, 0), (2**64 - 1, 2**64 - 1))
    assert seen == set(store.blocks), "blocks that are neither in the tree nor freed"
    return items


# --- bitmaps: bit n of an integer is 1 where block n is used -----------------------------------------


def runs_of(bits: int, nbits: int) -> list[tuple[int, int]]:
    """All free runs (start, end), in order."""
    found = []
    start = None
    for at in range(nbits + 1):
        is_free = at < nbits and not bits >> at & 1
        if is_free and start is None:
            start = at
        elif not is_free and start is not None:
            found.append((start, at))
            start = None
    return found


def find_run(
    bits: int, nbits: int, goal: int, least: int, most: int, align: int
) -> tuple[int, int] | None:
    """(start, length) as bitmap_find_run promises it."""
    goal = min(goal, nbits)
    runs = runs_of(bits, nbits)
    tries = [(max(start, goal), end) for start, end in runs if end > goal]
    tries += [(start, end) for start, end in runs if start < goal]
    best = (0, 0)
    for index, (start, end) in enumerate(tries):
        first = -(-start // align) * align
        wraps = index >= len([run for run in runs if run[1] > goal])
        if first >= end or (wraps and first >= goal):
            continue
        if end - first > best[1]:
            best = (first, end - first)
        if best[1] >= most:
            break
    return (best[0], min(best[1], most)) if best[1] >= least else None


# --- SipHash-2-4 -----------------------------------------------------------------------------------

_MASK = 2**64 - 1


def _rotate(x: int, by: int) -> int:
    return (x << by | x >> (64 - by)) & _MASK


def siphash(key: bytes, data: bytes) -> int:
    """SipHash-2-4 as its paper writes it."""
    k0, k1 = struct.unpack("<QQ", key)
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0, v2 = (v0 + v1) & _MASK, (v2 + v3) & _MASK
            v1, v3 = _rotate(v1, 13) ^ v0, _rotate(v3, 16) ^ v2
            v0 = _rotate(v0, 32)
            v2, v0 = (v2 + v1) & _MASK, (v0 + v3) & _MASK
            v1, v3 = _rotate(v1, 17) ^ v2, _rotate(v3, 21) ^ v0
            v2 = _rotate(v2, 32)

    padded = data + bytes(7 - len(data) % 8) + bytes((len(data) & 0xFF,))
    for (word,) in struct.iter_unpack("<Q", padded):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xFF
    rounds(4)
    result: int = v0 ^ v1 ^ v2 ^ v3
    return result
