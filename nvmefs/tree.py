"""The item tree: a B+tree of (key, value) items in 4 KiB nodes.

Below: the running operation as a store of blocks (transaction.py); core/node.c inside of a node.
Above: inodes, directories, xattrs, extents.

    tree = Tree(root)                   layout.Root, which the tree changes as it grows and shrinks
    value = tree.get(store, key)        None if there is no such item
    tree.put(store, key, value)
    for key, value in tree.scan(store, first, last): ...

A descent asks the store for one block a level and checks each against what its parent promised: its
level, its tree, its keys. So a loop or a misplaced node ends in Corrupted. Any step may raise
BlockMiss; then the whole operation is taken back and tried again, so that nothing here need care
for changes left half done.

Invariants, beside those that node_check knows:
  * all leaves are at level 0; the children of a node are one level below it;
  * the first key of an internal node is the key under which it hangs, (0, 0) on the leftmost path;
  * only the root may be an empty leaf; an internal root has more than one child, unless another
    program left it so.
Nodes are merged when one is under a quarter full and the result leaves an eighth free: a node that
was just merged is not split by the next insert.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from nvmefs._core import ffi, lib
from nvmefs.errors import Corrupted, FsError
from nvmefs.layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    MAX_LEVEL,
    MAX_VALUE_BYTES,
    BlockType,
    Key,
    Root,
    describe,
)
from nvmefs.node import leaf_items, node_error, node_items, node_level, slot_key

if TYPE_CHECKING:
    from nvmefs.cache import Block

NODE_BYTES = BLOCK_BYTES - HEADER_BYTES
SPARSE_BYTES = NODE_BYTES // 4
MERGED_BYTES = NODE_BYTES * 7 // 8
UNBOUNDED = (2**64 - 1, 2**64 - 1)  # no item has this key

_NODE = BlockType.NODE
_ABSENT: int = lib.NODE_ABSENT


class Store(Protocol):
    """Blocks, as the one operation that is running sees them."""

    def get(self, number: int, kind: BlockType, /) -> Block:
        """The block, checked by itself. Raises BlockMiss."""

    def modify(self, block: Block, /) -> None:
        """To be called before the first change of a block's bytes."""

    def new_node(self, tree_id: int, level: int, goal: int, /) -> Block:
        """An empty node near block `goal`. Raises NoSpace."""

    def free_node(self, block: Block, /) -> None:
        """Give a node back."""

    def on_undo(self, restore: Callable[[], None], /) -> None:
        """`restore` is called should the operation be taken back."""


class Tree:
    """One tree. It holds no state but `root` and, within one call, the cursor of a descent."""

    __slots__ = ("_at", "root")

    def __init__(self, root: Root) -> None:
        self.root = root
        self._at: Any = ffi.new("node_cursor *")

    # --- reading ----------------------------------------------------------------------------------

    def get(self, store: Store, key: Key) -> bytes | None:
        """The value of `key`, None if there is none. Raises Corrupted, BlockMiss."""
        leaf = self._leaf(store, key)
        place = lib.node_find(self._at, leaf.ptr)
        if place < 0:
            if place == _ABSENT:
                return None
            raise self._fault(leaf, place)
        offset = place >> 16 & 0xFFFF
        return bytes(leaf.data[offset : offset + (place & 0xFFFF)])

    def floor(self, store: Store, key: Key) -> tuple[Key, bytes] | None:
        """The last item whose key is <= `key`, or None. Raises Corrupted, BlockMiss."""
        item = self._floor_in_leaf(store, key)
        low = self._at.low_inode, self._at.low_rest
        if item is not None or low == (0, 0):
            return item
        # All keys of this leaf are above: it is the last item of the leaf before, which has one.
        return self._floor_in_leaf(store, _before(low))

    def _floor_in_leaf(self, store: Store, key: Key) -> tuple[Key, bytes] | None:
        leaf, slot = self._seek(store, key)
        item = next(leaf_items(leaf.data, slot), None)
        if item is not None and item[0] == key:
            return item
        return next(leaf_items(leaf.data, slot - 1)) if slot else None

    def scan(self, store: Store, first: Key, last: Key) -> Iterator[tuple[Key, bytes]]:
        """The items from `first` to `last`, both included, in order. Raises Corrupted, BlockMiss.

        Leaves are read as the iteration comes to them. The tree must not change meanwhile.
        """
        key = first
        while key <= last:
            leaf, slot = self._seek(store, key)
            key = self._at.high_inode, self._at.high_rest
            for item in leaf_items(leaf.data, slot):
                if item[0] > last:
                    return
                yield item
            if key == UNBOUNDED:
                return

    # --- changing ---------------------------------------------------------------------------------

    def insert(self, store: Store, key: Key, value: bytes) -> None:
        """Add an item. Raises FsError (EEXIST) if there is one, NoSpace, Corrupted, BlockMiss."""
        self._write(store, key, value, replace=False)

    def put(self, store: Store, key: Key, value: bytes) -> None:
        """Add an item or replace its value. Raises NoSpace, Corrupted, BlockMiss."""
        self._write(store, key, value, replace=True)

    def delete(self, store: Store, key: Key) -> bool:
        """Remove an item; False if there was none. Raises Corrupted, BlockMiss."""
        leaf = self._leaf(store, key)
        place = lib.node_find(self._at, leaf.ptr)
        if place < 0:
            if place == _ABSENT:
                return False
            raise self._fault(leaf, place)
        store.modify(leaf)
        used = lib.node_remove(leaf.ptr, place >> 32, 1)
        if used < SPARSE_BYTES and self.root.level:
            self._rebalance(store, key)
        return True

    def delete_range(
        self, store: Store, first: Key, last: Key, limit: int
    ) -> list[tuple[Key, bytes]]:
        """Remove the first items, at most `limit`, from `first` to `last`, both included.

        Returns them in order; fewer than `limit` means that none is left.
        Raises Corrupted, BlockMiss.
        """
        removed: list[tuple[Key, bytes]] = []
        key = first
        while key <= last and len(removed) < limit:
            leaf, slot = self._seek(store, key)
            high = self._at.high_inode, self._at.high_rest
            found: list[tuple[Key, bytes]] = []
            for item in leaf_items(leaf.data, slot):
                if item[0] > last or len(removed) + len(found) == limit:
                    break
                found.append(item)
            if found:
                store.modify(leaf)
                used = self._done(leaf, lib.node_remove(leaf.ptr, slot, len(found)))
                if used < SPARSE_BYTES and self.root.level:
                    self._rebalance(store, key)
                removed += found
            if high == UNBOUNDED:
                break
            key = high
        return removed

    # --- descents ---------------------------------------------------------------------------------

    def _leaf(self, store: Store, key: Key) -> Block:
        """The leaf where `key` belongs; the leaf itself is checked by what is called on it next."""
        root = self.root
        level = root.level
        number = root.block
        at = self._at
        lib.node_seek(at, root.id, level, key[0], key[1])
        while level:
            node = store.get(number, _NODE)
            number = lib.node_descend(at, node.ptr)
            if number < 0:
                raise self._fault(node, number)
            level -= 1
        return store.get(number, _NODE)

    def _seek(self, store: Store, key: Key) -> tuple[Block, int]:
        """The leaf where `key` belongs, and its first slot that is not before the key."""
        leaf = self._leaf(store, key)
        return leaf, self._done(leaf, lib.node_lower(self._at, leaf.ptr))

    def _node(self, store: Store, key: Key, level: int) -> Block:
        """The node of `level` on the way to `key`, checked."""
        root = self.root
        number = root.block
        at = self._at
        lib.node_seek(at, root.id, root.level, key[0], key[1])
        for _ in range(root.level - level):
            node = store.get(number, _NODE)
            number = self._done(node, lib.node_descend(at, node.ptr))
        node = store.get(number, _NODE)
        self._done(node, lib.node_arrive(at, node.ptr))
        return node

    def _path(self, store: Store, key: Key) -> list[tuple[Block, int]]:
        """The nodes from the root to the leaf of `key`, each with the slot of the next."""
        root = self.root
        number = root.block
        at = self._at
        path = []
        lib.node_seek(at, root.id, root.level, key[0], key[1])
        for _ in range(root.level):
            node = store.get(number, _NODE)
            number = self._done(node, lib.node_descend(at, node.ptr))
            path.append((node, at.slot))
        path.append((store.get(number, _NODE), 0))
        return path

    # --- growing ----------------------------------------------------------------------------------

    def _write(self, store: Store, key: Key, value: bytes, *, replace: bool) -> None:
        if len(value) > MAX_VALUE_BYTES or key >= UNBOUNDED:
            raise ValueError(f"{describe(key)} with {len(value)} bytes is no item of a tree")
        leaf = self._leaf(store, key)
        store.modify(leaf)
        result = lib.node_put(self._at, leaf.ptr, value, len(value), replace)
        if result >= 0:
            return
        if result == lib.NODE_FULL:
            self._split(store, key, value)
        elif result == lib.NODE_EXISTS:
            raise FsError(errno.EEXIST, f"tree {self.root.id}: {describe(key)} is there already")
        else:
            raise self._fault(leaf, result)

    def _split(self, store: Store, key: Key, value: bytes) -> None:
        """Put an item into a leaf that has no room: split the leaf, and its parents as needed."""
        path = self._path(store, key)
        node, _ = path.pop()
        right = self._sibling(store, node)
        self._done(node, lib.node_split_put(node.ptr, right.ptr, *key, value, len(value)))
        while path:
            parent, _ = path.pop()
            separator = slot_key(right.data, 0)
            store.modify(parent)
            result = lib.node_add(parent.ptr, *separator, right.number)
            if result != lib.NODE_FULL:
                self._done(parent, result)
                return
            child, node = right, parent
            right = self._sibling(store, node)
            self._done(node, lib.node_split_add(node.ptr, right.ptr, *separator, child.number))
        self._new_root(store, node, right)

    def _sibling(self, store: Store, node: Block) -> Block:
        """A new node beside `node`, and both ready to be changed."""
        right = store.new_node(self.root.id, node_level(node.data), node.number + 1)
        store.modify(node)
        store.modify(right)
        return right

    def _new_root(self, store: Store, left: Block, right: Block) -> None:
        """The root was split into two: put a node above them."""
        level = self.root.level + 1
        if level > MAX_LEVEL:
            raise Corrupted(left.number, f"tree {self.root.id}: more than {MAX_LEVEL} levels")
        top = store.new_node(self.root.id, level, right.number + 1)
        store.modify(top)
        self._done(top, lib.node_add(top.ptr, 0, 0, left.number))
        self._done(top, lib.node_add(top.ptr, *slot_key(right.data, 0), right.number))
        self._set_root(store, level, top.number)

    def _set_root(self, store: Store, level: int, block: int) -> None:
        root = self.root
        store.on_undo(partial(self._restore_root, root.level, root.block))
        root.level, root.block = level, block

    def _restore_root(self, level: int, block: int) -> None:
        self.root.level, self.root.block = level, block

    # --- shrinking --------------------------------------------------------------------------------

    def _rebalance(self, store: Store, key: Key) -> None:
        """The leaf of `key` has become sparse: free or merge it, and its parents as needed."""
        self._collapse(store)  # from here on the root has two children or is a leaf
        path = self._path(store, key)
        node, _ = path.pop()
        while path:
            parent, slot = path.pop()
            used = lib.node_used(node.ptr)
            if used >= SPARSE_BYTES:
                break
            if not used:
                self._unlink(store, parent, slot, node)
            elif not self._merge(store, parent, slot, node):
                break
            node = parent
        self._collapse(store)

    def _unlink(self, store: Store, parent: Block, slot: int, node: Block) -> None:
        """Free an empty node, child `slot` of `parent`; the child before it covers its keys.

        The first child has none before it: then the second becomes the first, under the same key,
        and so do the first keys below it.
        """
        store.modify(parent)
        self._done(parent, lib.node_remove(parent.ptr, slot, 1))
        store.free_node(node)
        if slot or not node_items(parent.data):
            return
        low = slot_key(parent.data, 0)
        for _ in range(node_level(parent.data) - 1):
            child = store.get(self._done(parent, lib.node_child(parent.ptr, 0)), _NODE)
            store.modify(child)
            self._done(child, lib.node_lower_first(child.ptr, *low))
            parent = child

    def _merge(self, store: Store, parent: Block, slot: int, node: Block) -> bool:
        """Join `node`, child `slot` of `parent`, with a neighbour; False if none has room."""
        level = node_level(node.data)
        for other in (slot - 1, slot + 1):
            if not 0 <= other < node_items(parent.data):
                continue
            sibling = self._node(store, slot_key(parent.data, other), level)
            if lib.node_used(node.ptr) + lib.node_used(sibling.ptr) > MERGED_BYTES:
                continue
            left, right = (sibling, node) if other < slot else (node, sibling)
            store.modify(left)
            store.modify(parent)
            self._done(left, lib.node_merge(left.ptr, right.ptr))
            self._done(parent, lib.node_remove(parent.ptr, max(slot, other), 1))
            store.free_node(right)
            return True
        return False

    def _collapse(self, store: Store) -> None:
        """While the root has a single child, that is the root."""
        root = self.root
        while root.level:
            top = store.get(root.block, _NODE)
            if node_items(top.data) != 1:
                return
            self._set_root(store, root.level - 1, self._done(top, lib.node_child(top.ptr, 0)))
            store.free_node(top)

    # --- faults -----------------------------------------------------------------------------------

    def _done(self, node: Block, answer: int) -> int:
        """`answer` of a node function that can only fail on a corrupted tree. Raises Corrupted."""
        if answer < 0:
            raise self._fault(node, answer)
        return answer

    def _fault(self, node: Block, code: int) -> Corrupted:
        return Corrupted(node.number, f"node of tree {self.root.id}: {node_error(code)}")


def _before(key: Key) -> Key:
    """The highest key below `key`, which is not (0, 0)."""
    inode, rest = key
    return (inode, rest - 1) if rest else (inode - 1, 2**64 - 1)
