"""What is on the disk: every structure's bytes, and the checks they pass before they are believed.

Below: the checksum in `driver`.  Above: all that reads or writes a block, the offline tools too.
What stands inside the items of the tree is in items.py.
This module does no I/O and holds no state. docs/format.md says the same in prose.

    block = bytearray(BLOCK_BYTES)
    superblock.encode_into(block)                 fills the fields
    seal(block, header, seed)                     fills the 64-byte header and its checksum
    header = verify(block, number, BlockType.SUPERBLOCK, seed=0)   raises Corrupted
    superblock = Superblock.decode(block)         raises Corrupted
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from driver import crc32c
from nvmefs.errors import Corrupted

Buffer = bytes | bytearray | memoryview

BLOCK_BYTES = 4096
MAGIC = 0x6E764653  # "SFvn" on disk: nvFS
FORMAT_VERSION = 1

# --- places --------------------------------------------------------------------------------------

GROUP_BLOCKS = 32256  # (4096 - 64) * 8 bits: what one bitmap block describes, 126 MiB
SUPERBLOCK = 16
STATE_BLOCK = 17
JOURNAL_SUPER_A = 18
JOURNAL_SUPER_B = 19
FIRST_BITMAP = 20
JOURNAL_START = 21
SUPERBLOCK_COPY = GROUP_BLOCKS + 1  # in group 1, after its bitmap; another is the last block
MIN_LAST_GROUP_BLOCKS = 64  # a shorter tail of the device is left unused
MIN_JOURNAL_BLOCKS = 1024
SHORT_JOURNAL_BLOCKS = GROUP_BLOCKS - 64  # the most that group 0 holds; a longer one is a feature
MAX_JOURNAL_BLOCKS = 262144  # 1 GiB
MIN_BLOCKS = 4096  # 16 MiB
MAX_BLOCKS = 2**48

MAX_FILE_BYTES = 2**63 - 1
MAX_LINKS = 2**31 - 1
MAX_NAME_BYTES = 255
MAX_SYMLINK_BYTES = 4095
MAX_XATTR_BYTES = 65536
ROOT_INODE = 1
FIRST_FREE_INODE = 16
MAX_INODE = 2**56 - 1


def group_of(block: int) -> int:
    """The number of the group that holds `block`."""
    return block // GROUP_BLOCKS


def bitmap_block(group: int) -> int:
    """The block that holds the bitmap of `group`."""
    return FIRST_BITMAP if group == 0 else group * GROUP_BLOCKS


def group_count(block_count: int) -> int:
    """How many groups a filesystem of `block_count` blocks has."""
    return -(-block_count // GROUP_BLOCKS)


def usable_blocks(device_blocks: int) -> int:
    """The blocks of a device that a filesystem uses: a last group too short to serve is left out."""
    tail = device_blocks % GROUP_BLOCKS
    if device_blocks > GROUP_BLOCKS and 0 < tail < MIN_LAST_GROUP_BLOCKS:
        return device_blocks - tail
    return device_blocks


def superblock_places(block_count: int) -> list[int]:
    """The superblock and its copies, in the order in which they are tried."""
    places = [SUPERBLOCK]
    if block_count > SUPERBLOCK_COPY + 1:
        places.append(SUPERBLOCK_COPY)
    places.append(block_count - 1)
    return places


def longest_journal(block_count: int, incompat: int) -> int:
    """The most blocks that the journal of such a filesystem may have."""
    if incompat & INCOMPAT_LONG_JOURNAL:
        return min(block_count // 2, MAX_JOURNAL_BLOCKS)
    return min(block_count - 64, SHORT_JOURNAL_BLOCKS)


def journal_block(position: int) -> int:
    """The block of a position in the journal, counted from 0, which steps over the fixed blocks of groups."""
    if position < GROUP_BLOCKS - JOURNAL_START:
        return JOURNAL_START + position
    position -= GROUP_BLOCKS - JOURNAL_START
    if position < GROUP_BLOCKS - 2:  # of group 1 without its bitmap and the superblock's copy
        return SUPERBLOCK_COPY + 1 + position
    group, index = divmod(position - (GROUP_BLOCKS - 2), GROUP_BLOCKS - 1)
    return (group + 2) * GROUP_BLOCKS + 1 + index


def fixed_blocks(group: int, superblock: Superblock) -> Iterator[tuple[int, int]]:
    """The runs (block, count) of `group` that belong to the format itself and are never allocated."""
    if group == 0:
        yield 0, JOURNAL_START
    else:
        yield bitmap_block(group), 1
    if group * GROUP_BLOCKS < superblock.journal_end:
        for block, count in superblock.journal_runs(0, superblock.journal_blocks):
            if group_of(block) == group:
                yield block, count
    for place in superblock_places(superblock.block_count)[1:]:
        if group_of(place) == group:
            yield place, 1


# --- the header of every metadata block ------------------------------------------------------------


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


# --- superblock ------------------------------------------------------------------------------------

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


# --- state block -----------------------------------------------------------------------------------

_STATE = struct.Struct("<IIQQQQqqqII")
_ROOT = struct.Struct("<IIQ")
_ERROR = struct.Struct("<qQII48s")
ROOTS = 8
TREE_MAIN = 1  # the id of the item tree
MAX_LEVEL = 12


class StateFlag(IntFlag):
    """Flags of the state block."""

    CLEAN = 1  # unmounted in order: nothing to replay, no orphan left
    ERRORS = 2  # an error was found: fsck should look


@dataclass(slots=True)
class Root:
    """Where a tree starts: its id, the level of its root node (0 = a leaf) and the node's block."""

    id: int
    level: int
    block: int


@dataclass(slots=True)
class ErrorRecord:
    """The first or the last error met: when (s), errno, how many so far, the block and a short text."""

    time_s: int = 0
    block: int = 0
    errno: int = 0
    count: int = 0
    what: bytes = b""


@dataclass(slots=True)
class State:
    """What changes with every transaction: counters and tree roots. Journaled as block 17."""

    next_inode: int
    free_blocks: int
    inode_count: int
    roots: list[Root]
    flags: int = 0
    mount_time_s: int = 0
    write_time_s: int = 0
    check_time_s: int = 0
    mount_count: int = 0
    first_error: ErrorRecord = field(default_factory=ErrorRecord)
    last_error: ErrorRecord = field(default_factory=ErrorRecord)

    def encode(self, superblock: Superblock, seq: int) -> bytearray:
        """The sealed state block as written by transaction `seq`."""
        block = bytearray(BLOCK_BYTES)
        _STATE.pack_into(
            block, HEADER_BYTES, self.flags, len(self.roots), self.next_inode, self.free_blocks,
            self.inode_count, superblock.group_count, self.mount_time_s, self.write_time_s,
            self.check_time_s, self.mount_count, 0,
        )  # fmt: skip
        at = HEADER_BYTES + _STATE.size
        for root in self.roots:
            _ROOT.pack_into(block, at, root.id, root.level, root.block)
            at += _ROOT.size
        at = HEADER_BYTES + _STATE.size + ROOTS * _ROOT.size
        for error in (self.first_error, self.last_error):
            _ERROR.pack_into(
                block, at, error.time_s, error.block, error.errno, error.count, error.what
            )
            at += _ERROR.size
        header = Header(BlockType.STATE, STATE_BLOCK, superblock.meta_uuid, seq=seq)
        seal(block, header, superblock.checksum_seed)
        return block

    @classmethod
    def decode(cls, block: Buffer, superblock: Superblock) -> State:
        """The state in `block`, checked against the superblock. Raises Corrupted."""
        verify(
            block, STATE_BLOCK, BlockType.STATE,
            seed=superblock.checksum_seed, uuid=superblock.meta_uuid,
        )  # fmt: skip
        (
            flags, roots_len, next_inode, free, inodes, groups, mounted_s, written_s, checked_s,
            mounts, _,
        ) = _STATE.unpack_from(block, HEADER_BYTES)  # fmt: skip
        if not 1 <= roots_len <= ROOTS:
            raise Corrupted(STATE_BLOCK, f"state: impossible number of tree roots {roots_len}")
        if groups != superblock.group_count:
            raise Corrupted(
                STATE_BLOCK, f"state: {groups} groups, the superblock says {superblock.group_count}"
            )
        if not FIRST_FREE_INODE <= next_inode <= MAX_INODE:
            raise Corrupted(STATE_BLOCK, f"state: impossible next inode {next_inode}")
        if inodes > MAX_INODE:
            raise Corrupted(STATE_BLOCK, f"state: impossible number of inodes {inodes}")
        if free > superblock.block_count:
            raise Corrupted(STATE_BLOCK, f"state: impossible number of free blocks {free}")
        at = HEADER_BYTES + _STATE.size
        roots = []
        for index in range(roots_len):
            root = Root(*_ROOT.unpack_from(block, at + index * _ROOT.size))
            if root.level > MAX_LEVEL or not JOURNAL_START <= root.block < superblock.block_count:
                raise Corrupted(
                    STATE_BLOCK, f"state: root {root.id} at block {root.block}, level {root.level}"
                )
            roots.append(root)
        if roots[0].id != TREE_MAIN:
            raise Corrupted(STATE_BLOCK, f"state: the first tree has id {roots[0].id}")
        at += ROOTS * _ROOT.size
        errors = []
        for index in range(2):
            time_s, where, number, count, what = _ERROR.unpack_from(block, at + index * _ERROR.size)
            errors.append(ErrorRecord(time_s, where, number, count, what.rstrip(b"\0")))
        return cls(
            next_inode, free, inodes, roots, flags, mounted_s, written_s, checked_s, mounts, *errors
        )


# --- journal ---------------------------------------------------------------------------------------

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


# --- bitmap ----------------------------------------------------------------------------------------
# One bit a block from byte 64 on, least significant bit first, 1 = used. In the header, `items` is the
# number of free blocks of the group and `heap` an upper bound of its longest free run (a hint).
# A bitmap block that is all zeroes was never written: fresh_bitmap() stands for it (decision 0001).

BITMAP_AT = HEADER_BYTES
BITMAP_BITS = GROUP_BLOCKS


def fixed_bits(group: int, superblock: Superblock) -> int:
    """The bitmap of a group in which nothing is allocated, as an integer: bit i is block i of the group.

    Set are the blocks of the format itself and, in the last group, all behind the end of the filesystem.
    """
    first = group * GROUP_BLOCKS
    bits = 0
    for block, count in fixed_blocks(group, superblock):
        bits |= ((1 << count) - 1) << (block - first)
    present = min(GROUP_BLOCKS, superblock.block_count - first)
    return bits | ((1 << GROUP_BLOCKS) - (1 << present))


def free_blocks_when_fresh(superblock: Superblock) -> int:
    """The blocks that belong neither to the format itself nor lie behind the end.

    All groups but the first two, those of a long journal, and the last hold the same: a bitmap.
    """
    count = superblock.group_count
    special = {0, min(1, count - 1), group_of(superblock.block_count - 1)}
    special |= set(range(group_of(superblock.journal_end - 1) + 1))
    free = sum(GROUP_BLOCKS - fixed_bits(group, superblock).bit_count() for group in special)
    return free + (count - len(special)) * (GROUP_BLOCKS - 1)


def longest_free_run(bits: int) -> int:
    """The length of the longest run of free blocks in a group's bitmap, given as an integer."""
    starts = [~bits & (1 << GROUP_BLOCKS) - 1]  # bit b of starts[i]: 2**i blocks from b on are free
    while starts[-1]:
        starts.append(starts[-1] & starts[-1] >> (1 << len(starts) - 1))
    longest, here = 0, -1
    for power in range(len(starts) - 1, -1, -1):
        longer = here & starts[power] >> longest
        if longer:
            longest, here = longest + (1 << power), longer
    return longest


def encode_bitmap(group: int, bits: int, superblock: Superblock, seq: int = 0) -> bytearray:
    """The sealed bitmap block of `group` from its bits as an integer; both counts are exact."""
    block = bytearray(BLOCK_BYTES)
    block[BITMAP_AT:] = bits.to_bytes(BITMAP_BITS // 8, "little")
    header = Header(
        BlockType.BITMAP, bitmap_block(group), superblock.meta_uuid, owner=group, seq=seq,
        items=GROUP_BLOCKS - bin(bits).count("1"), heap=longest_free_run(bits),
    )  # fmt: skip
    seal(block, header, superblock.checksum_seed)
    return block


def fresh_bitmap(group: int, superblock: Superblock) -> bytearray:
    """The sealed bitmap of a group in which nothing but the format's own blocks is used.

    Bits beyond the end of the filesystem, in a short last group, are set.
    """
    return encode_bitmap(group, fixed_bits(group, superblock), superblock)


# --- tree nodes ------------------------------------------------------------------------------------
# A node is an array of 24-byte slots from byte 64 on, in ascending order of key; header.items = slots.
# Leaf slot:     inode u64, kind<<56|offset u64, value offset u16, value length u16, zero u32.
# Internal slot: inode u64, kind<<56|offset u64, child block u64; child i holds keys >= key i, and the
#                leftmost slot of each level of the leftmost path has key (0, 0).
# In a leaf the values are a heap that grows down from byte 4096; header.heap = its lowest used byte.

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
