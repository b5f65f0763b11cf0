"""Tree nodes written whole, in plain Python; the mounted tree changes them in place.

Below: layout.py.  Above: mkfs (the first root), tests (nodes with faults).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nvmefs.layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    SLOT_BYTES,
    SLOTS_PER_NODE,
    BlockType,
    Header,
    Key,
    Superblock,
    seal,
)

LEAF_SLOT = struct.Struct("<QQHHI")
CHILD_SLOT = struct.Struct("<QQQ")
Item = tuple[Key, bytes]
Child = tuple[Key, int]


def encode_leaf(
    block: int, items: Sequence[Item], superblock: Superblock, *, owner: int, seq: int = 0
) -> bytearray:
    """The sealed leaf for `block`. Raises ValueError if the items do not fit."""
    data = bytearray(BLOCK_BYTES)
    heap = BLOCK_BYTES
    for index, ((inode, rest), value) in enumerate(items):
        heap -= len(value)
        if heap < HEADER_BYTES + (index + 1) * SLOT_BYTES:
            raise ValueError(f"{len(items)} items do not fit into a leaf")
        data[heap : heap + len(value)] = value
        at = HEADER_BYTES + index * SLOT_BYTES
        LEAF_SLOT.pack_into(data, at, inode, rest, heap, len(value), 0)
    header = Header(
        BlockType.NODE, block, superblock.meta_uuid,
        owner=owner, seq=seq, items=len(items), heap=heap,
    )  # fmt: skip
    seal(data, header, superblock.checksum_seed)
    return data


def encode_internal(
    block: int,
    level: int,
    children: Sequence[Child],
    superblock: Superblock,
    *,
    owner: int,
    seq: int = 0,
) -> bytearray:
    """The sealed internal node for `block`. Raises ValueError if the children do not fit."""
    if len(children) > SLOTS_PER_NODE:
        raise ValueError(f"{len(children)} children do not fit into a node")
    data = bytearray(BLOCK_BYTES)
    for index, ((inode, rest), child) in enumerate(children):
        CHILD_SLOT.pack_into(data, HEADER_BYTES + index * SLOT_BYTES, inode, rest, child)
    header = Header(
        BlockType.NODE, block, superblock.meta_uuid, level=level,
        owner=owner, seq=seq, items=len(children), heap=BLOCK_BYTES,
    )  # fmt: skip
    seal(data, header, superblock.checksum_seed)
    return data
