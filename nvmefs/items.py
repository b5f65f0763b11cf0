"""The values of the tree's items: inodes, names, extended attributes, back references, extents.

Below: layout.py (keys and limits).  Above: inodes, directories, xattrs, extents, and fsck.
This module does no I/O and holds no state; each decode checks what it reads and raises Corrupted.

    value = record.encode()                       an item's value
    record = InodeRecord.decode(number, value)    raises Corrupted, naming the field
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from nvmefs.errors import Corrupted
from nvmefs.layout import (
    MAX_BLOCKS,
    MAX_FILE_BYTES,
    MAX_INODE,
    MAX_LINKS,
    MAX_NAME_BYTES,
    MAX_VALUE_BYTES,
    MAX_XATTR_BYTES,
    Buffer,
)

NO_BLOCK = -1  # for Corrupted: the fault is in an item, not in a known block

# --- inodes ----------------------------------------------------------------------------------------

INODE_IMMUTABLE = 0x10  # the FS_*_FL values of <linux/fs.h>
INODE_APPEND = 0x20
INODE_INLINE = 1 << 31  # the data is in INLINE items, not in extents

FILE_TYPES = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)

_INODE = struct.Struct("<IIIIQQqqqqIIIIIIQIIQQ")
INODE_BYTES = _INODE.size


@dataclass(slots=True)
class InodeRecord:
    """An INODE item: what stat(2) tells, and what only we need.

    Times are (seconds since 1970, signed; nanoseconds). `size_bytes` is the length of a file or symlink
    target and 0 otherwise; `blocks` the 4 KiB blocks its extents take; `parent` the directory that holds
    a directory (0 for other files); `entries` the number of names in a directory; `change` counts changes.
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    size_bytes: int = 0
    blocks: int = 0
    atime_s: int = 0
    mtime_s: int = 0
    ctime_s: int = 0
    btime_s: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    flags: int = 0
    rdev: int = 0
    parent: int = 0
    projid: int = 0
    change: int = 0
    entries: int = 0

    def encode(self) -> bytes:
        return _INODE.pack(
            self.mode, self.nlink, self.uid, self.gid, self.size_bytes, self.blocks,
            self.atime_s, self.mtime_s, self.ctime_s, self.btime_s,
            self.atime_ns, self.mtime_ns, self.ctime_ns, self.btime_ns,
            self.flags, self.rdev, self.parent, self.projid, 0, self.change, self.entries,
        )  # fmt: skip

    @classmethod
    def unchecked(cls, value: Buffer) -> InodeRecord:
        """The record in 120 bytes, be it possible or not: for repairs."""
        fields = _INODE.unpack(value)
        return cls(*fields[:18], *fields[19:])

    @classmethod
    def decode(cls, inode: int, value: Buffer) -> InodeRecord:
        """The record in an INODE item of `inode`. Raises Corrupted."""
        if len(value) != INODE_BYTES:
            raise Corrupted(NO_BLOCK, f"inode {inode}: record of {len(value)} bytes")
        result = cls.unchecked(value)
        nanoseconds = max(result.atime_ns, result.mtime_ns, result.ctime_ns, result.btime_ns)
        rules = [
            (stat.S_IFMT(result.mode) in FILE_TYPES, f"mode {result.mode:#o}"),
            (result.mode <= 0o177777, f"mode {result.mode:#o}"),
            (result.nlink <= MAX_LINKS, f"link count {result.nlink}"),
            (result.size_bytes <= MAX_FILE_BYTES, f"size {result.size_bytes}"),
            (nanoseconds < 10**9, f"nanoseconds {nanoseconds}"),
            (result.parent <= MAX_INODE, f"parent {result.parent}"),
            (result.blocks <= MAX_BLOCKS, f"number of blocks {result.blocks}"),
            (result.entries <= MAX_INODE, f"number of names {result.entries}"),
        ]
        for holds, what in rules:
            if not holds:
                raise Corrupted(NO_BLOCK, f"inode {inode}: impossible {what}")
        return result


# --- names: DIRENT and PARENT ------------------------------------------------------------------------
# Both values start with one byte of flags. OVERFLOWED says that a name with this hash stands under the next
# hash, because this item was full; the flag stays for good, and so does the item.

OVERFLOWED = 1
MAX_NAME_INDEX = 127
_DIRENT = struct.Struct("<QBBB")
_PARENT = struct.Struct("<QB")


@dataclass(slots=True)
class Dirent:
    """One name in a directory. `type` is the file type (mode >> 12); `index` (0..127) tells apart names of
    one hash and makes the readdir cookie, hash << 7 | index, stable while other names come and go.
    """

    inode: int
    type: int
    index: int
    name: bytes


def encode_dirents(flags: int, entries: Sequence[Dirent]) -> bytes:
    """A DIRENT item's value."""
    parts = [bytes((flags,))]
    for entry in entries:
        parts.append(_DIRENT.pack(entry.inode, entry.type, entry.index, len(entry.name)))
        parts.append(entry.name)
    return b"".join(parts)


def decode_dirents(inode: int, value: Buffer) -> tuple[int, list[Dirent]]:
    """(flags, entries) of a DIRENT item of directory `inode`. Raises Corrupted."""
    data = bytes(value)
    entries = []
    at = 1
    while at < len(data):
        if at + _DIRENT.size > len(data):
            raise Corrupted(NO_BLOCK, f"directory {inode}: an entry is cut short")
        target, type_, index, length = _DIRENT.unpack_from(data, at)
        at += _DIRENT.size
        name = data[at : at + length]
        at += length
        check_name(inode, name, length)
        if not 0 < target <= MAX_INODE or type_ << 12 not in FILE_TYPES or index > MAX_NAME_INDEX:
            raise Corrupted(
                NO_BLOCK, f"directory {inode}: entry {name!r} has inode {target}, type {type_}"
            )
        entries.append(Dirent(target, type_, index, name))
    if not data or data[0] > OVERFLOWED:
        raise Corrupted(NO_BLOCK, f"directory {inode}: entry list with unknown flags")
    return data[0], entries


def check_name(inode: int, name: bytes, length: int) -> None:
    """Raise Corrupted unless `name`, read for directory `inode`, is a possible file name of `length` bytes."""
    if len(name) != length or not 0 < length <= MAX_NAME_BYTES:
        raise Corrupted(NO_BLOCK, f"directory {inode}: a name of {length} bytes")
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise Corrupted(NO_BLOCK, f"directory {inode}: impossible name {name!r}")


def encode_parents(flags: int, links: Sequence[tuple[int, bytes]]) -> bytes:
    """A PARENT item's value from (directory, name) pairs."""
    parts = [bytes((flags,))]
    for directory, name in links:
        parts.append(_PARENT.pack(directory, len(name)))
        parts.append(name)
    return b"".join(parts)


def decode_parents(inode: int, value: Buffer) -> tuple[int, list[tuple[int, bytes]]]:
    """(flags, [(directory, name)]) of a PARENT item of `inode`. Raises Corrupted."""
    data = bytes(value)
    links = []
    at = 1
    while at < len(data):
        if at + _PARENT.size > len(data):
            raise Corrupted(NO_BLOCK, f"inode {inode}: a back reference is cut short")
        directory, length = _PARENT.unpack_from(data, at)
        at += _PARENT.size
        name = data[at : at + length]
        at += length
        check_name(directory, name, length)
        links.append((directory, name))
    if not data or data[0] > OVERFLOWED:
        raise Corrupted(NO_BLOCK, f"inode {inode}: back references with unknown flags")
    return data[0], links


# --- extended attributes -----------------------------------------------------------------------------
# A value that fits stands in the item; a longer one is cut into INLINE items under a number of its own,
# taken from the inode counter (decision 0002).

_XATTR = struct.Struct("<BBIQ")
XATTR_IN_ITEM_BYTES = 512


@dataclass(slots=True)
class Xattr:
    """One extended attribute. `value` is None where the bytes stand in the INLINE items of `value_inode`."""

    name: bytes
    value: bytes | None
    length: int
    value_inode: int = 0


def encode_xattrs(flags: int, attributes: Sequence[Xattr]) -> bytes:
    """An XATTR item's value."""
    parts = [bytes((flags,))]
    for attribute in attributes:
        inside = attribute.value is not None
        parts.append(
            _XATTR.pack(inside, len(attribute.name), attribute.length, attribute.value_inode)
        )
        parts.append(attribute.name)
        if attribute.value is not None:
            parts.append(attribute.value)
    return b"".join(parts)


def decode_xattrs(inode: int, value: Buffer) -> tuple[int, list[Xattr]]:
    """(flags, attributes) of an XATTR item of `inode`. Raises Corrupted."""
    data = bytes(value)
    attributes = []
    at = 1
    while at < len(data):
        if at + _XATTR.size > len(data):
            raise Corrupted(NO_BLOCK, f"inode {inode}: an extended attribute is cut short")
        inside, name_length, length, value_inode = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        name = data[at : at + name_length]
        at += name_length
        sound = 0 < len(name) == name_length and b"\0" not in name
        if inside > 1 or length > MAX_XATTR_BYTES or not sound:
            raise Corrupted(NO_BLOCK, f"inode {inode}: impossible extended attribute {name!r}")
        if inside == (value_inode != 0):
            raise Corrupted(NO_BLOCK, f"inode {inode}: attribute {name!r} stands in two places")
        stored = data[at : at + length] if inside else None
        if stored is not None:
            at += length
            if len(stored) != length:
                raise Corrupted(NO_BLOCK, f"inode {inode}: attribute {name!r} is cut short")
        attributes.append(Xattr(name, stored, length, value_inode))
    if not data or data[0] > OVERFLOWED:
        raise Corrupted(NO_BLOCK, f"inode {inode}: attribute list with unknown flags")
    return data[0], attributes


# --- extents -----------------------------------------------------------------------------------------

EXTENT_UNWRITTEN = 1  # allocated, reads as zeroes
EXTENT_SHARED = 2  # kept for reflinks; not written by this version
_EXTENT = struct.Struct("<QI")


@dataclass(slots=True, frozen=True)
class Extent:
    """`count` blocks of a file from file block `file_block` on, at device blocks from `start` on."""

    file_block: int
    start: int
    count: int
    flags: int = 0

    @property
    def end(self) -> int:
        """The file block after the last."""
        return self.file_block + self.count

    def encode(self) -> bytes:
        return _EXTENT.pack(self.start | self.flags << 48, self.count)


def decode_extent(inode: int, file_block: int, value: Buffer, block_count: int) -> Extent:
    """The extent in an EXTENT item. Raises Corrupted when it leaves the device or makes no sense."""
    if len(value) != _EXTENT.size:
        raise Corrupted(NO_BLOCK, f"inode {inode}: extent record of {len(value)} bytes")
    packed, count = _EXTENT.unpack(value)
    start, flags = packed & 2**48 - 1, packed >> 48
    if not count or start + count > block_count or flags > EXTENT_UNWRITTEN:
        raise Corrupted(
            NO_BLOCK,
            f"inode {inode}: extent at file block {file_block} says blocks {start}+{count}, "
            f"flags {flags:#x}",
        )
    return Extent(file_block, start, count, flags)


assert 1 + 3 * (_DIRENT.size + MAX_NAME_BYTES) <= MAX_VALUE_BYTES
assert 1 + _XATTR.size + MAX_NAME_BYTES + XATTR_IN_ITEM_BYTES <= MAX_VALUE_BYTES
