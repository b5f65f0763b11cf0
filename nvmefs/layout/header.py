"""The 64 bytes that every metadata block begins with, and its checksum.

Below: the checksum in `driver`.  Above: every block of the format.

    seal(block, header, seed)                     fills the header and its checksum
    header = verify(block, number, BlockType.NODE, seed=seed)      raises Corrupted
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from driver import crc32c
from nvmefs.errors import Corrupted
from nvmefs.layout.places import BLOCK_BYTES

if TYPE_CHECKING:
    from nvmefs.layout.superblock import Superblock

Buffer = bytes | bytearray | memoryview

MAGIC = 0x6E764653  # "SFvn" on disk: nvFS
FORMAT_VERSION = 1


class BlockType(IntEnum):
    """What a metadata block is; its `type` field."""

    SUPERBLOCK = 1
    STATE = 2
    JOURNAL_SUPER = 3
    JOURNAL_RECORD = 4
    BITMAP = 5
    NODE = 6


HEADER_BYTES = 64
_HEADER = struct.Struct("<IIHBBI16sQQQHHI")
assert _HEADER.size == HEADER_BYTES


@dataclass(slots=True)
class Header:
    """The first 64 bytes of a metadata block.

    `owner` is the tree's id (NODE), the group (BITMAP) or the epoch (JOURNAL_RECORD); `seq` the journal
    sequence that wrote the block; `items` and `heap` are counts whose meaning depends on the type.
    """

    type: BlockType
    block: int
    uuid: bytes
    level: int = 0
    flags: int = 0
    owner: int = 0
    seq: int = 0
    items: int = 0
    heap: int = 0


def seal(block: bytearray | memoryview, header: Header, seed: int) -> None:
    """Write `header` into the first 64 bytes of `block` and the checksum over the other 4,092 bytes."""
    _HEADER.pack_into(
        block, 0, 0, MAGIC, header.type, FORMAT_VERSION, header.level, header.flags, header.uuid,
        header.block, header.owner, header.seq, header.items, header.heap, 0,
    )  # fmt: skip
    reseal(block, seed)


def seal_metadata(
    block: bytearray, kind: BlockType, number: int, superblock: Superblock, seq: int
) -> None:
    """Complete the header of a cached tree node or bitmap, whose level, owner, items and heap are kept."""
    struct.pack_into("<IHB", block, 4, MAGIC, kind, FORMAT_VERSION)
    block[16:32] = superblock.meta_uuid
    struct.pack_into("<Q", block, 32, number)
    struct.pack_into("<Q", block, 48, seq)
    reseal(block, superblock.checksum_seed)


def reseal(block: bytearray | memoryview, seed: int) -> None:
    """Mend the checksum of a block whose bytes have changed."""
    struct.pack_into("<I", block, 0, crc32c(memoryview(block)[4:], seed))


def verify(
    block: Buffer, number: int, kind: BlockType, *, seed: int, uuid: bytes | None = None
) -> Header:
    """The header of a block just read, after its checksum, magic, type, version, address and owner uuid.

    Raises Corrupted with what differs. The checksum comes first: no other field is believed before it.
    """
    if len(block) != BLOCK_BYTES:
        raise Corrupted(number, f"{len(block)} bytes instead of {BLOCK_BYTES}")
    (stored, magic, type_, version, level, flags, block_uuid, own, owner, seq, items, heap, _) = (
        _HEADER.unpack_from(block)
    )
    if magic != MAGIC:
        raise Corrupted(number, f"magic is {magic:#010x}, not {MAGIC:#010x}: no nvmefs block")
    computed = crc32c(memoryview(block)[4:], seed)
    if stored != computed:
        raise Corrupted(number, f"checksum is {computed:#010x}, the block says {stored:#010x}")
    if version != FORMAT_VERSION:
        raise Corrupted(number, f"format version {version}, this program knows {FORMAT_VERSION}")
    if type_ != kind:
        raise Corrupted(number, f"block of type {type_} where {kind.name} ({kind}) must be")
    if own != number:
        raise Corrupted(number, f"the block says it belongs at {own} (a misdirected write)")
    if uuid is not None and block_uuid != uuid:
        raise Corrupted(number, f"block of another filesystem (uuid {block_uuid.hex()})")
    return Header(BlockType(type_), own, block_uuid, level, flags, owner, seq, items, heap)
