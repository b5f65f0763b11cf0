"""One node of the item tree, as Python sees it: what is wrong with it, and what stands in it.

Below: core/node.c, which does the work inside a node.  Above: cache.py, tree.py, fsck.

    code = lib.node_check(ptr)                    a block was read: is it a node?
    if code: raise Corrupted(number, node_error(code))
    for key, value in leaf_items(data): ...
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nvmefs._core import lib
from nvmefs.layout import HEADER_BYTES, SLOT_BYTES, Buffer, Key

LEVEL_AT = 11  # in the header of every block
ITEMS_AT = 56

_LEAF_SLOT = struct.Struct("<QQHHI")
_CHILD_SLOT = struct.Struct("<QQQ")
assert _LEAF_SLOT.size == _CHILD_SLOT.size == SLOT_BYTES

_ERRORS: dict[int, str] = {
    lib.NODE_ABSENT: "no item has this key",
    lib.NODE_FULL: "no room for the item",
    lib.NODE_EXISTS: "an item has this key already",
    lib.NODE_MISUSE: "a node function was called with impossible arguments",
    lib.NODE_BAD_LEVEL: "its level is above the highest there is",
    lib.NODE_BAD_ITEMS: "its number of items is impossible",
    lib.NODE_BAD_HEAP: "the place where its values begin is impossible",
    lib.NODE_BAD_ORDER: "its keys are not in ascending order",
    lib.NODE_BAD_VALUE: "a value is too long or stands outside of the values",
    lib.NODE_BAD_OVERLAP: "two values overlap",
    lib.NODE_BAD_CHILD: "a child has an impossible block number",
    lib.NODE_WRONG_LEVEL: "its level is not the one below its parent's",
    lib.NODE_WRONG_OWNER: "it belongs to another tree",
    lib.NODE_WRONG_KEYS: "its keys are not those that its parent says",
    lib.NODE_EMPTY: "it is empty and is not the root",
}


def node_error(code: int) -> str:
    """What a negative answer of a node function means, in words."""
    return _ERRORS.get(code, f"unknown fault {code}")


def node_items(data: Buffer) -> int:
    """The number of items in a node."""
    return data[ITEMS_AT] | data[ITEMS_AT + 1] << 8


def node_level(data: Buffer) -> int:
    """The level of a node, 0 for a leaf."""
    return data[LEVEL_AT]


def slot_key(data: Buffer, slot: int) -> Key:
    """The key in `slot` of a node that has one."""
    inode, rest, _ = _CHILD_SLOT.unpack_from(data, HEADER_BYTES + slot * SLOT_BYTES)
    return inode, rest


def leaf_items(data: Buffer, first: int = 0) -> Iterator[tuple[Key, bytes]]:
    """(key, value) of a checked leaf, from slot `first` on. The leaf must not change meanwhile."""
    slots = data[HEADER_BYTES + first * SLOT_BYTES : HEADER_BYTES + node_items(data) * SLOT_BYTES]
    for inode, rest, offset, length, _ in _LEAF_SLOT.iter_unpack(slots):
        yield (inode, rest), bytes(data[offset : offset + length])


def children(data: Buffer) -> list[tuple[Key, int]]:
    """(lowest key, block) of each child of a checked internal node."""
    slots = data[HEADER_BYTES : HEADER_BYTES + node_items(data) * SLOT_BYTES]
    return [((inode, rest), child) for inode, rest, child in _CHILD_SLOT.iter_unpack(slots)]
