"""The superblock: what a filesystem is, and which features it uses.

Below: header.py, places.py.  Above: the blocks that are checked against it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from nvmefs.errors import Corrupted
from nvmefs.layout.header import (
    FORMAT_VERSION,
    HEADER_BYTES,
    BlockType,
    Buffer,
    Header,
    seal,
    verify,
)
from nvmefs.layout.places import (
    BLOCK_BYTES,
    FIRST_BITMAP,
    GROUP_BLOCKS,
    JOURNAL_START,
    MAX_BLOCKS,
    MAX_JOURNAL_BLOCKS,
    MIN_BLOCKS,
    MIN_JOURNAL_BLOCKS,
    ROOT_INODE,
    SHORT_JOURNAL_BLOCKS,
    STATE_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    group_count,
    group_of,
    journal_block,
)

# Features this program knows, by set. An unknown compat bit is ignored; an unknown ro_compat bit allows a
# read-only mount; an unknown incompat bit refuses; an unknown incompat_log bit refuses while the journal
# holds records.
COMPAT_KNOWN: dict[int, str] = {}
RO_COMPAT_KNOWN: dict[int, str] = {}
INCOMPAT_LONG_JOURNAL = 1  # it may have more than SHORT_JOURNAL_BLOCKS, and go on in group 1
INCOMPAT_KNOWN: dict[int, str] = {INCOMPAT_LONG_JOURNAL: "long_journal"}
INCOMPAT_LOG_KNOWN: dict[int, str] = {}


def unknown_features(bits: int, known: dict[int, str]) -> list[int]:
    """The numbers of the bits set in `bits` that `known` (bit value → name) does not name."""
    return [bit for bit in range(64) if bits >> bit & 1 and 1 << bit not in known]


def longest_journal(block_count: int, incompat: int) -> int:
    """The most blocks that the journal of such a filesystem may have."""
    if incompat & INCOMPAT_LONG_JOURNAL:
        return min(block_count // 2, MAX_JOURNAL_BLOCKS)
    return min(block_count - 64, SHORT_JOURNAL_BLOCKS)


_SUPER = struct.Struct("<IIQQQQQIIQ16s64s16sIIQQIIQQ32sqI")


class ErrorPolicy(IntEnum):
    """What a mount does when it meets a block that is not what it must be."""

    CONTINUE = 0
    REMOUNT_RO = 1


ERROR_POLICIES = {"continue": ErrorPolicy.CONTINUE, "remount-ro": ErrorPolicy.REMOUNT_RO}


@dataclass(slots=True)
class Superblock:
    """What a filesystem is, written by mkfs (last of all) and changed through the journal, as a whole.

    `meta_uuid` is in every block's header and never changes, nor do the seeds and the journal's place; `uuid`
    is the one users see. Places and sizes are in blocks, `lba_bytes` and `alignment_blocks` are what the
    namespace said at mkfs. `reserved_blocks` are for root alone; `on_error` is an ErrorPolicy.
    """

    block_count: int
    uuid: bytes
    meta_uuid: bytes
    hash_seed: bytes
    checksum_seed: int
    journal_start: int
    journal_blocks: int
    label: bytes = b""
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    incompat_log: int = 0
    lba_bytes: int = 512
    alignment_blocks: int = 1
    reserved_blocks: int = 0
    root_inode: int = ROOT_INODE
    creator: bytes = b""
    created_s: int = 0
    created_ns: int = 0
    on_error: int = ErrorPolicy.CONTINUE

    @property
    def group_count(self) -> int:
        return group_count(self.block_count)

    def may_become(self, later: Superblock) -> bool:
        """Whether `later` can be this filesystem after a change: blocks verify as before, none is cut off."""
        constant = all(
            getattr(self, name) == getattr(later, name)
            for name in (
                "meta_uuid",
                "hash_seed",
                "checksum_seed",
                "journal_start",
                "journal_blocks",
            )
        )
        return constant and later.block_count >= self.block_count

    @property
    def journal_end(self) -> int:
        """The first block behind the journal."""
        return journal_block(self.journal_blocks - 1) + 1

    def journal_place(self, position: int) -> int:
        """The block of a position, which may exceed the length: the journal is a ring."""
        return journal_block(position % self.journal_blocks)

    def journal_runs(self, position: int, count: int) -> Iterator[tuple[int, int]]:
        """The runs (block, count) in which `count` positions of the ring lie, from `position` on."""
        while count > 0:
            position %= self.journal_blocks
            block = journal_block(position)
            in_group = (group_of(block) + 1) * GROUP_BLOCKS - block
            length = min(count, in_group, self.journal_blocks - position)
            yield block, length
            position += length
            count -= length

    def is_allocatable(self, start: int, count: int) -> bool:
        """Whether the blocks are inside of one group and none belongs to the format itself."""
        end = start + count
        group = group_of(start)
        if start < self.journal_end or end > self.block_count:
            return False
        if end > (group + 1) * GROUP_BLOCKS or start == group * GROUP_BLOCKS:
            return False
        return not any(start <= place < end for place in (SUPERBLOCK_COPY, self.block_count - 1))

    def is_journaled(self, block: int) -> bool:
        """Whether the block changes by way of the journal: the superblock and its copies, the state, a bitmap,
        or what can be a tree node.
        """
        if block in (SUPERBLOCK, STATE_BLOCK, FIRST_BITMAP, SUPERBLOCK_COPY, self.block_count - 1):
            return block < self.block_count
        if block % GROUP_BLOCKS == 0:
            return 0 < block < self.block_count
        return self.is_allocatable(block, 1)

    def encode(self, place: int) -> bytearray:
        """The sealed block for `place`. Its own checksum has seed 0, as the seed is inside."""
        block = bytearray(BLOCK_BYTES)
        _SUPER.pack_into(
            block, HEADER_BYTES, FORMAT_VERSION, BLOCK_BYTES, self.compat, self.ro_compat, self.incompat,
            self.incompat_log, self.block_count, GROUP_BLOCKS, self.checksum_seed, self.group_count,
            self.uuid, self.label, self.hash_seed, self.lba_bytes, self.alignment_blocks,
            self.journal_start, self.journal_blocks, self.on_error, 0, self.root_inode, self.reserved_blocks,
            self.creator, self.created_s, self.created_ns,
        )  # fmt: skip
        seal(block, Header(BlockType.SUPERBLOCK, place, self.meta_uuid), seed=0)
        return block

    @classmethod
    def decode(cls, block: Buffer, place: int) -> Superblock:
        """The superblock in `block`, read from `place`. Raises Corrupted, naming the field."""
        header = verify(block, place, BlockType.SUPERBLOCK, seed=0)
        (
            version, block_bytes, compat, ro_compat, incompat, incompat_log, block_count, group_blocks,
            checksum_seed, groups, uuid, label, hash_seed, lba_bytes, alignment, journal_start,
            journal_blocks, on_error, _, root_inode, reserved, creator, created_s, created_ns,
        ) = _SUPER.unpack_from(block, HEADER_BYTES)  # fmt: skip
        result = cls(
            block_count, uuid, header.uuid, hash_seed, checksum_seed, journal_start, journal_blocks,
            label.rstrip(b"\0"), compat, ro_compat, incompat, incompat_log, lba_bytes, alignment,
            reserved, root_inode, creator.rstrip(b"\0"), created_s, created_ns, on_error,
        )  # fmt: skip
        rules = [
            (version == FORMAT_VERSION, f"format version {version}"),
            (block_bytes == BLOCK_BYTES, f"block size {block_bytes}"),
            (group_blocks == GROUP_BLOCKS, f"group size {group_blocks}"),
            (MIN_BLOCKS <= block_count <= MAX_BLOCKS, f"block count {block_count}"),
            (groups == group_count(block_count), f"group count {groups}"),
            (lba_bytes in (512, 4096), f"LBA size {lba_bytes}"),
            (root_inode == ROOT_INODE, f"root inode {root_inode}"),
            (journal_start == JOURNAL_START, f"journal start {journal_start}"),
            (
                MIN_JOURNAL_BLOCKS <= journal_blocks <= longest_journal(block_count, incompat),
                f"journal size {journal_blocks}",
            ),
            (reserved < block_count, f"reserved blocks {reserved}"),
            (on_error in set(ErrorPolicy), f"errors policy {on_error}"),
        ]
        for holds, what in rules:
            if not holds:
                raise Corrupted(place, f"superblock: impossible {what}")
        return result
