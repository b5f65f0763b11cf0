"""Tree nodes and the keys of their items.

Below: header.py, places.py.  Above: the tree, whose nodes C reads and changes; fsck.

A node is an array of 24-byte slots from byte 64 on, in ascending order of key; header.items = slots.
Leaf slot:     inode u64, kind<<56|offset u64, value offset u16, value length u16, zero u32.
Internal slot: inode u64, kind<<56|offset u64, child block u64; child i holds keys >= key i, and the
               leftmost slot of each level of the leftmost path has key (0, 0).
In a leaf the values are a heap that grows down from byte 4096; header.heap = its lowest used byte.
"""

from __future__ import annotations

from enum import IntEnum

from nvmefs.layout.header import HEADER_BYTES
from nvmefs.layout.places import BLOCK_BYTES

SLOT_BYTES = 24
SLOTS_PER_NODE = (BLOCK_BYTES - HEADER_BYTES) // SLOT_BYTES
MAX_VALUE_BYTES = 1000
INLINE_BYTES = 900  # the most an INLINE item holds


class Kind(IntEnum):
    """The kinds of items; the byte between inode and offset in a key."""

    INODE = 1
    INLINE = 2
    XATTR = 3
    PARENT = 4
    DIRENT = 5
    EXTENT = 6
    ORPHAN = 7


OFFSET_MASK = 2**56 - 1
Key = tuple[int, int]  # (inode, kind << 56 | offset)


def key(inode: int, kind: Kind, offset: int = 0) -> Key:
    """The key of an item."""
    return inode, kind << 56 | offset


def describe(item: Key) -> str:
    """A key as people read it: 'inode 17 DIRENT 0x1f'."""
    kind = item[1] >> 56
    name = Kind(kind).name if kind in Kind._value2member_map_ else f"kind {kind}"
    return f"inode {item[0]} {name} {item[1] & OFFSET_MASK:#x}"
