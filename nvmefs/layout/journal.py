"""The journal's own superblocks, and the headers of its records.

Below: header.py, places.py, superblock.py.  Above: the journal, and recovery, which reads it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nvmefs.errors import Corrupted
from nvmefs.layout.header import HEADER_BYTES, BlockType, Buffer, Header, seal, verify
from nvmefs.layout.places import BLOCK_BYTES, JOURNAL_SUPER_A, JOURNAL_SUPER_B
from nvmefs.layout.superblock import Superblock

_JOURNAL_SUPER = struct.Struct("<QQQQ")
MAX_SEQUENCE = 2**62  # of a tail: there are always more
_RECORD = struct.Struct("<IHHQ")
_TAG = struct.Struct("<QII")
TAGS_AT = HEADER_BYTES + _RECORD.size
TAGS_PER_HEADER = (BLOCK_BYTES - TAGS_AT) // _TAG.size


@dataclass(slots=True)
class JournalSuper:
    """Where replay starts: the sequence and the place (blocks from the journal's start) of the oldest
    record that is still needed. Two copies, written alternately; the higher `generation` is the newer.
    A record counts only with the same `epoch`.
    """

    generation: int
    tail_seq: int
    tail_block: int
    epoch: int

    def encode(self, superblock: Superblock) -> tuple[int, bytearray]:
        """(place, sealed block): even generations go to A, odd ones to B."""
        place = JOURNAL_SUPER_B if self.generation & 1 else JOURNAL_SUPER_A
        block = bytearray(BLOCK_BYTES)
        _JOURNAL_SUPER.pack_into(
            block, HEADER_BYTES, self.generation, self.tail_seq, self.tail_block, self.epoch
        )
        header = Header(BlockType.JOURNAL_SUPER, place, superblock.meta_uuid, seq=self.tail_seq)
        seal(block, header, superblock.checksum_seed)
        return place, block

    @classmethod
    def decode(cls, block: Buffer, place: int, superblock: Superblock) -> JournalSuper:
        """The journal superblock in `block`, read from `place`. Raises Corrupted."""
        verify(
            block, place, BlockType.JOURNAL_SUPER,
            seed=superblock.checksum_seed, uuid=superblock.meta_uuid,
        )  # fmt: skip
        result = cls(*_JOURNAL_SUPER.unpack_from(block, HEADER_BYTES))
        if max(result.generation, result.tail_seq) > MAX_SEQUENCE:
            raise Corrupted(
                place,
                f"journal: generation {result.generation}, sequence {result.tail_seq} are too high",
            )
        if result.tail_block >= superblock.journal_blocks:
            raise Corrupted(place, f"journal: tail {result.tail_block} is outside of the journal")
        return result


@dataclass(slots=True)
class RecordHeader:
    """One header of a journal record. Its images follow it; then comes the next header of the chain.

    `index` counts the headers of the record from 0, `headers` is their number, `images` the number of
    images of the whole record. `tags` are (home block, crc32c of the 4,096 bytes, seed 0).
    """

    epoch: int
    seq: int
    index: int
    headers: int
    images: int
    tags: list[tuple[int, int]]

    def encode_into(
        self, block: bytearray | memoryview, place: int, superblock: Superblock
    ) -> None:
        """Fill and seal `block` (zeroed, 4,096 bytes) for block number `place`."""
        _RECORD.pack_into(block, HEADER_BYTES, self.images, self.index, self.headers, 0)
        at = TAGS_AT
        for home, checksum in self.tags:
            _TAG.pack_into(block, at, home, checksum, 0)
            at += _TAG.size
        header = Header(
            BlockType.JOURNAL_RECORD, place, superblock.meta_uuid,
            owner=self.epoch, seq=self.seq, items=len(self.tags),
        )  # fmt: skip
        seal(block, header, superblock.checksum_seed)

    @classmethod
    def decode(cls, block: Buffer, place: int, superblock: Superblock) -> RecordHeader:
        """The record header in `block`, read from `place`. Raises Corrupted: no record there.

        Whether its home blocks are possible is known only when the whole record is: it may hold a superblock.
        """
        header = verify(
            block, place, BlockType.JOURNAL_RECORD,
            seed=superblock.checksum_seed, uuid=superblock.meta_uuid,
        )  # fmt: skip
        images, index, headers, _ = _RECORD.unpack_from(block, HEADER_BYTES)
        if header.items > TAGS_PER_HEADER:
            raise Corrupted(place, f"journal record: {header.items} tags in one header")
        tags = []
        for at in range(TAGS_AT, TAGS_AT + header.items * _TAG.size, _TAG.size):
            home, checksum, _ = _TAG.unpack_from(block, at)
            tags.append((home, checksum))
        return cls(header.owner, header.seq, index, headers, images, tags)


def record_blocks(images: int) -> int:
    """Blocks that a record of `images` images takes in the journal, headers included."""
    return images + max(1, -(-images // TAGS_PER_HEADER))
