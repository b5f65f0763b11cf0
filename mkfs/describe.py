"""Blocks and items as plain values, the wrong ones too: each says what is wrong with it under "fault".

Below: layout.py, items.py.  Above: subjects.py.  No I/O; no input raises anything.

    values = block_values(number, data, superblock)
    kind, values = item_values(place, value, superblock)

What cannot be believed is shown all the same, field by field: somebody has to find out why.
"""

from __future__ import annotations

import stat
import struct
import time
import uuid as uuids
from collections.abc import Iterator
from typing import Any

from mkfs.settings import feature_names
from nvmefs._core import ffi, lib
from nvmefs.errors import Corrupted
from nvmefs.items import (
    EXTENT_UNWRITTEN,
    INODE_APPEND,
    INODE_IMMUTABLE,
    INODE_INLINE,
    OVERFLOWED,
    InodeRecord,
    decode_dirents,
    decode_extent,
    decode_parents,
    decode_xattrs,
)
from nvmefs.layout import (
    BITMAP_AT,
    BLOCK_BYTES,
    FIRST_BITMAP,
    GROUP_BLOCKS,
    HEADER_BYTES,
    JOURNAL_START,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    MAGIC,
    OFFSET_MASK,
    SLOT_BYTES,
    SLOTS_PER_NODE,
    STATE_BLOCK,
    BlockType,
    ErrorPolicy,
    ErrorRecord,
    JournalSuper,
    Key,
    Kind,
    RecordHeader,
    State,
    StateFlag,
    Superblock,
    describe,
    superblock_places,
    verify,
)
from nvmefs.node import node_error

Values = dict[str, Any]

_HEADER = struct.Struct("<IIHBBI16sQQQHHI")
_SLOT = struct.Struct("<QQHHI")
_CHILD = struct.Struct("<QQQ")
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
SHOWN_BYTES = 32  # of a value, as text


def text_of(data: bytes) -> str:
    """Bytes as a person reads them; what is no text is escaped."""
    return data.decode(errors="backslashreplace")


def moment(seconds: int, nanoseconds: int = 0) -> str:
    """A time in UTC; the number itself where a calendar has none."""
    try:
        shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds}.{nanoseconds:09d}"
    return f"{shown}.{nanoseconds:09d}" if nanoseconds else shown


# --- superblock, state, journal -----------------------------------------------------------------------


def superblock_values(superblock: Superblock) -> Values:
    """Every field."""
    policies = {int(policy): policy.name.lower() for policy in ErrorPolicy}
    return {
        "label": text_of(superblock.label),
        "uuid": str(uuids.UUID(bytes=superblock.uuid)),
        "meta_uuid": superblock.meta_uuid.hex(),
        "blocks": superblock.block_count,
        "groups": superblock.group_count,
        "journal_start": superblock.journal_start,
        "journal_blocks": superblock.journal_blocks,
        "reserved_blocks": superblock.reserved_blocks,
        "errors": policies.get(superblock.on_error, str(superblock.on_error)),
        "features": feature_names(superblock),
        "hash_seed": superblock.hash_seed.hex(),
        "checksum_seed": f"{superblock.checksum_seed:#010x}",
        "lba_bytes": superblock.lba_bytes,
        "alignment_blocks": superblock.alignment_blocks,
        "root_inode": superblock.root_inode,
        "creator": text_of(superblock.creator),
        "created": moment(superblock.created_s, superblock.created_ns),
    }


def state_values(state: State) -> Values:
    """Every field."""
    return {
        "flags": flags(state.flags, {int(flag): str(flag.name).lower() for flag in StateFlag}),
        "next_inode": state.next_inode,
        "free_blocks": state.free_blocks,
        "inodes": state.inode_count,
        "roots": [f"tree {r.id}: block {r.block}, level {r.level}" for r in state.roots],
        "mounted": moment(state.mount_time_s),
        "written": moment(state.write_time_s),
        "checked": moment(state.check_time_s),
        "mounts": state.mount_count,
        "first_error": error_text(state.first_error),
        "last_error": error_text(state.last_error),
    }


def error_text(error: ErrorRecord) -> str:
    if not error.count:
        return "none"
    return (
        f"{text_of(error.what)} (block {error.block}, errno {error.errno}, number {error.count}, "
        f"{moment(error.time_s)})"
    )


def flags(bits: int, names: dict[int, str]) -> list[str]:
    """The names of the bits that are set; those without a name as a number."""
    known = [name for bit, name in names.items() if bits & bit]
    rest = bits & ~sum(names)
    return [*known, *([f"{rest:#x}"] if rest else [])]


def journal_values(journal: JournalSuper) -> Values:
    return {
        "generation": journal.generation,
        "tail_seq": journal.tail_seq,
        "tail_position": journal.tail_block,
        "epoch": f"{journal.epoch:#x}",
    }


# --- items --------------------------------------------------------------------------------------------


def item_values(place: Key, value: bytes, superblock: Superblock) -> tuple[str, Values]:
    """(kind, values) of an item of the tree."""
    number, kind, offset = place[0], place[1] >> 56, place[1] & OFFSET_MASK
    name = Kind(kind).name.lower() if kind in Kind._value2member_map_ else f"kind {kind}"
    values: Values = {"inode": number, "offset": offset}
    try:
        values |= _item(kind, number, offset, value, superblock)
    except Corrupted as error:
        values |= {"fault": error.what, "hex": value.hex()}
    return name, values


def _item(kind: int, number: int, offset: int, value: bytes, superblock: Superblock) -> Values:
    """What stands in it. Raises Corrupted."""
    if kind == Kind.INODE:
        return inode_values(InodeRecord.decode(number, value))
    if kind == Kind.INLINE:
        return {"bytes": len(value), "text": text_of(value[:SHOWN_BYTES])}
    if kind == Kind.EXTENT:
        extent = decode_extent(number, offset, value, superblock.block_count)
        state = "unwritten" if extent.flags & EXTENT_UNWRITTEN else "written"
        return {"start": extent.start, "count": extent.count, "state": state}
    if kind == Kind.DIRENT:
        bits, entries = decode_dirents(number, value)
        names = [
            {"name": text_of(e.name), "inode": e.inode, "type": _TYPES[e.type << 12], "index": e.index}
            for e in entries
        ]  # fmt: skip
        return _listed(bits, names)
    if kind == Kind.PARENT:
        bits, links = decode_parents(number, value)
        return _listed(bits, [{"directory": d, "name": text_of(name)} for d, name in links])
    if kind == Kind.XATTR:
        bits, attributes = decode_xattrs(number, value)
        held = [
            {
                "name": text_of(each.name),
                "bytes": each.length,
                **(
                    {"value": text_of(each.value[:SHOWN_BYTES])}
                    if each.value is not None
                    else {"holder": each.value_inode}
                ),
            }
            for each in attributes
        ]
        return _listed(bits, held)
    if kind == Kind.ORPHAN:
        return {"fault": f"{len(value)} bytes, none are due", "hex": value.hex()} if value else {}
    return {"fault": "there is no such kind", "hex": value.hex()}


def _listed(bits: int, entries: list[Values]) -> Values:
    return {"overflowed": True, "entries": entries} if bits & OVERFLOWED else {"entries": entries}


def inode_values(record: InodeRecord) -> Values:
    """Every field of an INODE item."""
    names = {INODE_IMMUTABLE: "immutable", INODE_APPEND: "append-only", INODE_INLINE: "inline"}
    return {
        "type": _TYPES[stat.S_IFMT(record.mode)],
        "mode": f"{stat.S_IMODE(record.mode):04o}",
        "links": record.nlink,
        "uid": record.uid,
        "gid": record.gid,
        "size_bytes": record.size_bytes,
        "blocks": record.blocks,
        "flags": flags(record.flags, names),
        "atime": moment(record.atime_s, record.atime_ns),
        "mtime": moment(record.mtime_s, record.mtime_ns),
        "ctime": moment(record.ctime_s, record.ctime_ns),
        "btime": moment(record.btime_s, record.btime_ns),
        "rdev": f"{record.rdev:#x}",
        "parent": record.parent,
        "projid": record.projid,
        "change": record.change,
        "entries": record.entries,
    }


# --- whole blocks -------------------------------------------------------------------------------------


def place_of(number: int, superblock: Superblock) -> tuple[str, BlockType | None]:
    """What a block is by its place, and the type it must have."""
    if number == 0:
        return "partition table", None
    if number in superblock_places(superblock.block_count):
        return "superblock", BlockType.SUPERBLOCK
    if number == STATE_BLOCK:
        return "state", BlockType.STATE
    if number in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        return "journal superblock", BlockType.JOURNAL_SUPER
    if number == FIRST_BITMAP or (number and number % GROUP_BLOCKS == 0):
        return "bitmap", BlockType.BITMAP
    if number < JOURNAL_START:
        return "unused", None
    if not superblock.is_allocatable(number, 1):
        return "journal", None
    return "tree node, file data or free", None


def block_values(number: int, data: bytes, superblock: Superblock) -> Values:
    """A block: by its place, by its header, and what is wrong with it."""
    place, due = place_of(number, superblock)
    values: Values = {"block": number, "place": place}
    if not any(data):
        values["content"] = (
            "zeroes: a bitmap that was never written" if place == "bitmap" else "zeroes"
        )
        return values
    fields = _HEADER.unpack_from(data)
    looks = fields[1] == MAGIC
    if not looks and due is None:
        values["content"] = "no metadata"
        return values
    known = fields[2] in BlockType._value2member_map_
    kind = BlockType(fields[2]) if known else due
    values["header"] = {
        "type": f"{fields[2]} ({BlockType(fields[2]).name.lower()})" if known else fields[2],
        "version": fields[3], "level": fields[4], "flags": fields[5], "meta_uuid": fields[6].hex(),
        "own_number": fields[7], "owner": fields[8], "seq": fields[9], "items": fields[10],
        "heap": fields[11], "checksum": f"{fields[0]:#010x}",
    }  # fmt: skip
    faults = list(_faults(number, data, due or kind, superblock))
    if faults:
        return {**values, "faults": faults}
    return values | _content(kind, number, data, superblock)


def _content(kind: BlockType | None, number: int, data: bytes, superblock: Superblock) -> Values:
    """The fields of a block in which nothing is wrong; of nodes and bitmaps there is more than fits here."""
    if kind is BlockType.SUPERBLOCK:
        return superblock_values(Superblock.decode(data, number))
    if kind is BlockType.STATE:
        return state_values(State.decode(data, superblock))
    if kind is BlockType.JOURNAL_SUPER:
        return journal_values(JournalSuper.decode(data, number, superblock))
    if kind is BlockType.JOURNAL_RECORD:
        record = RecordHeader.decode(data, number, superblock)
        return {
            "images": record.images,
            "part": f"{record.index + 1} of {record.headers}",
            "homes": [home for home, _ in record.tags],
        }
    return {}


def _faults(
    number: int, data: bytes, kind: BlockType | None, superblock: Superblock
) -> Iterator[str]:
    """What is wrong with it, as far as one block can tell."""
    if kind is None:
        yield "the type is none that there is"
        return
    own = kind is BlockType.SUPERBLOCK
    seed, uuid = (0, None) if own else (superblock.checksum_seed, superblock.meta_uuid)
    try:
        header = verify(data, number, kind, seed=seed, uuid=uuid)
        if own:
            Superblock.decode(data, number)
        elif kind is BlockType.STATE:
            State.decode(data, superblock)
        elif kind is BlockType.JOURNAL_SUPER:
            JournalSuper.decode(data, number, superblock)
        elif kind is BlockType.JOURNAL_RECORD:
            RecordHeader.decode(data, number, superblock)
        elif kind is BlockType.BITMAP:
            free = GROUP_BLOCKS - int.from_bytes(data[BITMAP_AT:], "little").bit_count()
            if header.items != free:
                yield f"the header counts {header.items} free blocks, {free} are"
    except Corrupted as error:
        yield error.what
    if kind is BlockType.NODE:
        code = lib.node_check(ffi.from_buffer("uint8_t[]", data))
        if code:
            yield f"tree node: {node_error(code)}"


def slot_values(data: bytes, superblock: Superblock) -> Iterator[tuple[str, Values]]:
    """(kind, values) of each slot of what may be a tree node, whatever is wrong with it."""
    level, items = data[11], int.from_bytes(data[56:58], "little")
    for index in range(min(items, SLOTS_PER_NODE)):
        at = HEADER_BYTES + index * SLOT_BYTES
        if level:
            inode, rest, child = _CHILD.unpack_from(data, at)
            yield "child", {"key": describe((inode, rest)), "block": child}
            continue
        inode, rest, offset, length, _ = _SLOT.unpack_from(data, at)
        if not HEADER_BYTES <= offset <= offset + length <= BLOCK_BYTES:
            shown = f"a value of {length} bytes at byte {offset} of the block"
            yield "item", {"key": describe((inode, rest)), "fault": shown}
            continue
        yield item_values((inode, rest), data[offset : offset + length], superblock)


def hex_lines(data: bytes) -> Iterator[str]:
    """As hexdump -C; lines that repeat are left out."""
    before, starred = b"", False
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        if part == before:
            if not starred:
                yield "*"
            starred = True
            continue
        before, starred = part, False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{at:04x}  {part.hex(' ', 1):47}  {text}"
