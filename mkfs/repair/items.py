"""Repairs of single items, and of what one inode's own items say about it.

Below: writer.py.  Above: fixes.py.

Counters (blocks of an inode, names in a directory, links) are left to a later round: what depends on all else
is put right last. Blocks are not freed here either: what no extent claims is free in the next round's bitmaps.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mkfs.check.findings import Finding
from mkfs.repair.writer import Writer
from nvmefs.clock import now
from nvmefs.directories import free_index
from nvmefs.errors import Corrupted
from nvmefs.hashed import Found, HashedItems
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.inline import MAX_PIECES
from nvmefs.items import (
    FILE_TYPES,
    INODE_BYTES,
    INODE_INLINE,
    MAX_NAME_INDEX,
    Extent,
    InodeRecord,
    decode_dirents,
    decode_extent,
    decode_xattrs,
    encode_dirents,
)
from nvmefs.layout import (
    BLOCK_BYTES,
    INLINE_BYTES,
    MAX_BLOCKS,
    MAX_FILE_BYTES,
    MAX_INODE,
    MAX_LINKS,
    MAX_SYMLINK_BYTES,
    OFFSET_MASK,
    ROOT_INODE,
    Key,
    Kind,
    key,
)
from nvmefs.transaction import Transaction

STEP_ITEMS = 256  # deleted by one transaction


# --- records ------------------------------------------------------------------------------------------


def read_record(writer: Writer, tx: Transaction, number: int) -> InodeRecord | None:
    """The record of an inode; None if there is none that is possible."""
    value = writer.tree.get(tx, key(number, Kind.INODE))
    try:
        return None if value is None else InodeRecord.decode(number, value)
    except Corrupted:
        return None


def put_record(writer: Writer, tx: Transaction, number: int, record: InodeRecord) -> None:
    writer.tree.put(tx, key(number, Kind.INODE), record.encode())


def has_items(writer: Writer, tx: Transaction, number: int, kind: Kind) -> bool:
    """Whether an inode has items of a kind."""
    first, last = key(number, kind), key(number, kind, OFFSET_MASK)
    return next(writer.tree.scan(tx, first, last), None) is not None


def new_record(mode: int, nlink: int = 1) -> InodeRecord:
    """A record for what has lost its own: of root, closed to others, as old as this moment."""
    seconds, nanoseconds = now()
    record = InodeRecord(mode, nlink, 0, 0)
    for name in ("atime", "mtime", "ctime", "btime"):
        setattr(record, f"{name}_s", seconds)
        setattr(record, f"{name}_ns", nanoseconds)
    return record


def set_field(name: str) -> Callable[[Writer, Finding], Any]:
    """The repair that sets a field of the record to what is expected."""

    async def fix(writer: Writer, finding: Finding) -> None:
        number, value = finding.number("inode"), finding.expected

        def apply(tx: Transaction) -> None:
            record = read_record(writer, tx, number)
            if record is not None:
                setattr(record, name, value)
                put_record(writer, tx, number, record)

        await writer.run(apply)

    return fix


def mended(writer: Writer, tx: Transaction, number: int, value: bytes) -> InodeRecord:
    """The record in 120 bytes with what is impossible in it replaced by what is likely."""
    record = InodeRecord.unchecked(value)
    record.mode &= 0o177777
    if stat.S_IFMT(record.mode) not in FILE_TYPES:
        is_directory = has_items(writer, tx, number, Kind.DIRENT)
        record.mode = (stat.S_IFDIR if is_directory else stat.S_IFREG) | record.mode & 0o777
    if record.size_bytes > MAX_FILE_BYTES:
        record.size_bytes = end_of_extents(writer, tx, number) * BLOCK_BYTES
    for name in ("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"):
        if getattr(record, name) >= 10**9:
            setattr(record, name, 0)
    for name, most in (("nlink", MAX_LINKS), ("parent", MAX_INODE)):
        setattr(record, name, min(getattr(record, name), most))
    for name, most in (("blocks", MAX_BLOCKS), ("entries", MAX_INODE)):
        setattr(record, name, min(getattr(record, name), most))
    return record


def end_of_extents(writer: Writer, tx: Transaction, number: int) -> int:
    """The file block behind the last extent, of a possible file."""
    found = writer.tree.floor(tx, key(number, Kind.EXTENT, OFFSET_MASK))
    if found is None or found[0][0] != number or found[0][1] >> 56 != Kind.EXTENT:
        return 0
    at = found[0][1] & OFFSET_MASK
    try:
        end = decode_extent(number, at, found[1], writer.superblock.block_count).end
    except Corrupted:
        end = at  # its item goes, too
    return min(end, MAX_FILE_BYTES // BLOCK_BYTES)


async def fix_value(writer: Writer, finding: Finding) -> None:
    """An item whose value is impossible: a record is mended, anything else goes."""
    place = finding.number("inode"), finding.number("item")

    def apply(tx: Transaction) -> None:
        value = writer.tree.get(tx, place)
        if value is None:
            return
        if place[1] == Kind.INODE << 56 and len(value) == INODE_BYTES:
            put_record(writer, tx, place[0], mended(writer, tx, place[0], value))
        else:
            writer.tree.delete(tx, place)

    await writer.run(apply)


async def drop_item(writer: Writer, finding: Finding) -> None:
    """An item that must not be."""
    place = finding.number("inode"), finding.number("item")
    await writer.run(lambda tx: writer.tree.delete(tx, place))


async def drop_range(writer: Writer, first: Key, last: Key) -> None:
    """All items of a range, in bounded transactions."""
    step = partial(_drop_step, writer, first, last)
    while await writer.run(step) == STEP_ITEMS:
        pass


def _drop_step(writer: Writer, first: Key, last: Key, tx: Transaction) -> int:
    return len(writer.tree.delete_range(tx, first, last, STEP_ITEMS))


async def drop_kind(writer: Writer, number: int, kind: Kind) -> None:
    """All items of a kind that an inode has."""
    await drop_range(writer, key(number, kind), key(number, kind, OFFSET_MASK))


async def fix_missing_record(writer: Writer, finding: Finding) -> None:
    """Items without their inode: where there is data or names, it gets a new record, else they go."""
    number = finding.number("inode")

    def apply(tx: Transaction) -> bool:
        record = read_record(writer, tx, number)
        if record is not None:
            return True  # mended meanwhile
        if number == ROOT_INODE or has_items(writer, tx, number, Kind.DIRENT):
            record = new_record(stat.S_IFDIR | 0o700, 2)
            if number == ROOT_INODE:
                record.mode, record.parent = stat.S_IFDIR | 0o755, ROOT_INODE
        elif has_items(writer, tx, number, Kind.EXTENT):
            record = new_record(stat.S_IFREG | 0o600)
            record.size_bytes = end_of_extents(writer, tx, number) * BLOCK_BYTES
        elif has_items(writer, tx, number, Kind.INLINE):
            record = new_record(stat.S_IFREG | 0o600)
            record.flags = INODE_INLINE
            record.size_bytes = sum(sound_pieces(writer, tx, number)[0])
        if record is not None:
            put_record(writer, tx, number, record)
        return record is not None

    if not await writer.run(apply):
        await drop_range(writer, (number, 0), (number, 2**64 - 1))


# --- data ---------------------------------------------------------------------------------------------


def sound_pieces(writer: Writer, tx: Transaction, number: int) -> tuple[list[int], bool]:
    """The lengths of the inline pieces that follow each other from the first; whether these are all."""
    lengths: list[int] = []
    for place, value in writer.tree.scan(
        tx, key(number, Kind.INLINE), key(number, Kind.INLINE, OFFSET_MASK)
    ):
        offset = place[1] & OFFSET_MASK
        if offset != len(lengths) or offset >= MAX_PIECES or not 0 < len(value) <= INLINE_BYTES:
            return lengths, False
        if lengths and lengths[-1] != INLINE_BYTES:
            return lengths, False
        lengths.append(len(value))
    return lengths, True


async def settle(writer: Writer, finding: Finding) -> None:
    """What an inode has (inline data, extents, names) and what its record says are made to agree."""
    number = finding.number("inode")
    dropped = await writer.run(partial(_settle_record, writer, number))
    for kind, offset in dropped:
        await drop_range(writer, key(number, kind, offset), key(number, kind, OFFSET_MASK))


def _settle_record(writer: Writer, number: int, tx: Transaction) -> list[tuple[Kind, int]]:
    """Operation: the record as it shall be; the kinds whose items shall go, from which offset on."""
    record = read_record(writer, tx, number)
    lengths, sound = sound_pieces(writer, tx, number)
    if record is None:
        return [(Kind.INLINE, len(lengths))]  # of an attribute value; the attribute goes later
    has_extents = has_items(writer, tx, number, Kind.EXTENT)
    has_names = has_items(writer, tx, number, Kind.DIRENT)
    if has_names and not (stat.S_ISDIR(record.mode) or lengths or has_extents):
        record.mode = stat.S_IFDIR | stat.S_IMODE(record.mode)
    if stat.S_ISDIR(record.mode):
        dropped = _without_data(record)
    else:
        record.parent = record.entries = 0
        if stat.S_ISREG(record.mode):
            dropped = _settle_file(record, lengths, sound, has_extents)
        elif stat.S_ISLNK(record.mode):
            dropped = _settle_symlink(record, lengths, sound)
        else:
            dropped = _without_data(record)
        dropped.append((Kind.DIRENT, 0))
    if record.mode:
        put_record(writer, tx, number, record)
    else:
        writer.tree.delete(tx, key(number, Kind.INODE))
        dropped = [(Kind(kind), 0) for kind in Kind if kind not in (Kind.INODE, Kind.ORPHAN)]
    return dropped


def _without_data(record: InodeRecord) -> list[tuple[Kind, int]]:
    record.size_bytes = 0
    record.flags &= ~INODE_INLINE
    return [(Kind.INLINE, 0), (Kind.EXTENT, 0)]


def _settle_file(
    record: InodeRecord, lengths: list[int], sound: bool, has_extents: bool
) -> list[tuple[Kind, int]]:
    """A regular file: inline data if it is whole or there is no other, else the extents."""
    inline_bytes = sum(lengths)
    whole = sound and record.flags & INODE_INLINE and inline_bytes == record.size_bytes
    if lengths and (whole or not has_extents):
        record.flags |= INODE_INLINE
        record.size_bytes = inline_bytes
        return [(Kind.INLINE, len(lengths)), (Kind.EXTENT, 0)]
    if record.flags & INODE_INLINE and not has_extents:
        record.size_bytes = 0  # nothing is left of it
    record.flags &= ~INODE_INLINE
    return [(Kind.INLINE, 0)]


def _settle_symlink(record: InodeRecord, lengths: list[int], sound: bool) -> list[tuple[Kind, int]]:
    """A symbolic link whose target is cut short is removed: it would lead elsewhere."""
    length = sum(lengths)
    is_short = record.size_bytes > length and length % INLINE_BYTES == 0
    if not sound or is_short or not 0 < length <= MAX_SYMLINK_BYTES:
        record.mode = 0
    record.flags |= INODE_INLINE
    record.size_bytes = length
    return [(Kind.EXTENT, 0)]


async def fix_overlap(writer: Writer, finding: Finding) -> None:
    """An extent that begins before the one before it ends loses its beginning."""
    number, rest, begin = finding.number("inode"), finding.number("item"), finding.expected
    assert isinstance(begin, int)

    def apply(tx: Transaction) -> None:
        value = writer.tree.get(tx, (number, rest))
        if value is None:
            return
        extent = decode_extent(number, rest & OFFSET_MASK, value, writer.superblock.block_count)
        writer.tree.delete(tx, (number, rest))
        behind = key(number, Kind.EXTENT, begin)
        if extent.end > begin and writer.tree.get(tx, behind) is None:
            cut = begin - extent.file_block
            rest_of_it = Extent(begin, extent.start + cut, extent.count - cut, extent.flags)
            writer.tree.put(tx, behind, rest_of_it.encode())

    await writer.run(apply)


# --- lists under hashes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _List:
    """How the entries of a kind of list are known, and where they belong."""

    items: HashedItems[Any]
    is_it: Callable[[Any], bool]
    hash: int
    prepare: Callable[[Any, list[Any]], bool]


def _list_of(writer: Writer, finding: Finding) -> _List:
    filesystem, seed = writer.filesystem, writer.superblock.hash_seed
    kind, name = finding.name.split("-")[0], finding.bytes("name")
    if kind == "parent":
        link = finding.number("directory"), name
        place = parent_hash(seed, *link)
        return _List(
            filesystem.directories.parents,
            lambda entry: bool(entry == link),
            place,
            lambda *_: True,
        )
    place = name_hash(seed, name)
    if kind == "xattr":
        return _List(
            filesystem.xattrs.items, lambda entry: bool(entry.name == name), place, lambda *_: True
        )
    return _List(
        filesystem.directories.names, lambda entry: bool(entry.name == name), place, free_index
    )


async def fix_place(writer: Writer, finding: Finding) -> None:
    """An entry under a hash that is not its own moves; if it stands where it belongs, too, it goes."""
    owner, lists = finding.number("inode"), _list_of(writer, finding)

    def apply(tx: Transaction) -> None:
        entry = _take_out(writer, tx, owner, lists, finding.number("hash"))
        if entry is not None and lists.items.find(tx, owner, lists.hash, lists.is_it) is None:
            lists.items.add(tx, owner, lists.hash, entry, lists.prepare)

    await writer.run(apply)


async def fix_twice(writer: Writer, finding: Finding) -> None:
    """An entry that stands there twice: the second goes."""
    owner, lists = finding.number("inode"), _list_of(writer, finding)
    await writer.run(lambda tx: _take_out(writer, tx, owner, lists, finding.number("hash")))


def _take_out(writer: Writer, tx: Transaction, owner: int, lists: _List, hash56: int) -> Any:
    """Remove the last such entry from the item of `hash56`; the entry, or None."""
    value = writer.tree.get(tx, key(owner, lists.items.kind, hash56))
    if value is None:
        return None
    flags, entries = lists.items.decode(owner, value)
    for position in range(len(entries) - 1, -1, -1):
        if lists.is_it(entries[position]):
            lists.items.remove(tx, owner, Found(hash56, flags, entries, position))
            return entries[position]
    return None


async def fix_index(writer: Writer, finding: Finding) -> None:
    """Entries of one item that share a cookie: the later get the lowest that are free."""
    number, hash56 = finding.number("inode"), finding.number("hash")

    def apply(tx: Transaction) -> None:
        place = key(number, Kind.DIRENT, hash56)
        value = writer.tree.get(tx, place)
        if value is None:
            return
        flags, entries = decode_dirents(number, value)
        taken: set[int] = set()
        for entry in entries:
            if entry.index in taken:
                free = set(range(MAX_NAME_INDEX + 1)) - {each.index for each in entries}
                entry.index = min(free)
            taken.add(entry.index)
        writer.tree.put(tx, place, encode_dirents(flags, entries))

    await writer.run(apply)


# --- attributes ---------------------------------------------------------------------------------------


async def drop_value(writer: Writer, finding: Finding) -> None:
    """The bytes of a long attribute value that no attribute has."""
    number = finding.number("value")
    if not await writer.run(lambda tx: writer.tree.get(tx, key(number, Kind.INODE)) is not None):
        await drop_kind(writer, number, Kind.INLINE)


async def drop_attribute_of_value(writer: Writer, finding: Finding) -> None:
    """The attribute whose long value is not there, not whole, or another's."""
    owner, number = finding.number("inode"), finding.number("value")

    def apply(tx: Transaction) -> None:
        items = writer.filesystem.xattrs.items
        last_found: Found[Any] | None = None
        for place, value in writer.tree.scan(
            tx, key(owner, Kind.XATTR), key(owner, Kind.XATTR, OFFSET_MASK)
        ):
            flags, entries = decode_xattrs(owner, value)
            for position, entry in enumerate(entries):
                if entry.value is None and entry.value_inode == number:
                    last_found = Found(place[1] & OFFSET_MASK, flags, entries, position)
        if last_found is not None:
            items.remove(tx, owner, last_found)

    await writer.run(apply)


async def drop_attribute(writer: Writer, finding: Finding) -> None:
    """An attribute whose value makes no sense, by its name."""
    owner, name = finding.number("inode"), finding.bytes("name")
    await writer.run(lambda tx: writer.filesystem.xattrs.remove(tx, owner, name))
