"""The items of one inode without names and contents: same kinds, same lengths, same faults in their records.

Below: names.py, nvmefs.items.  Above: image.py.

    obscurer = Obscurer(superblock, secret)
    obscurer.inode(items)                   items of one inode, in order of their keys; so is what it returns

Names go through the permutation, and stand under the hashes of what they became. Targets of links go through it
part by part. Access lists and file capabilities stay: they hold numbers only, and say what a file's mode means.
All other values, and the contents of files, become zero bytes. So does an item that cannot be decoded.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from mkfs.nodes import Item
from mkfs.obscure.names import NAME_BYTES, Permutation
from nvmefs import acl
from nvmefs.errors import Corrupted, FsError
from nvmefs.hashed import next_hash
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.items import (
    MAX_NAME_INDEX,
    OVERFLOWED,
    Dirent,
    InodeRecord,
    Xattr,
    decode_dirents,
    decode_extent,
    decode_parents,
    decode_xattrs,
    encode_dirents,
    encode_parents,
    encode_xattrs,
)
from nvmefs.layout import MAX_VALUE_BYTES, OFFSET_MASK, Kind, Superblock, key

CAPABILITY = b"security.capability"
CAPABILITY_BYTES = {b"\1": 12, b"\2": 20, b"\3": 24}  # by revision, <linux/capability.h>
KEPT = (acl.ACCESS, acl.DEFAULT, CAPABILITY)
NAMESPACES = (
    b"user.",
    b"trusted.",
    b"security.",
    b"system.",
    b"",
)  # the last: of a name without any
E = TypeVar("E")
Encode = Callable[[int, Sequence[E]], bytes]


class Obscurer:
    """The items of a filesystem, inode after inode in ascending order; `secret` decides what names become."""

    def __init__(self, superblock: Superblock, secret: bytes) -> None:
        self.superblock = superblock
        self.seed = superblock.hash_seed
        self.names = Permutation(secret + b"name", NAME_BYTES, (b".", b".."))
        self.attributes = {
            prefix: Permutation(secret + prefix, NAME_BYTES, kept_in(prefix))
            for prefix in NAMESPACES
        }
        digest = hashlib.shake_256(secret + b"place").digest(7)
        self.mask = int.from_bytes(digest, "little")
        self.holders: dict[
            int, bytes
        ] = {}  # long values that may be kept, by number: the attribute

    def inode(self, items: Sequence[Item]) -> list[Item]:
        """All items of one inode."""
        result: dict[tuple[int, int], bytes] = {}
        number = items[0][0][0]
        by_kind: dict[int, list[tuple[int, bytes]]] = {}
        for (_, rest), value in items:
            by_kind.setdefault(rest >> 56, []).append((rest & OFFSET_MASK, value))
        pieces = by_kind.pop(Kind.INLINE, [])
        record = self.record(number, by_kind.get(Kind.INODE, []))
        result.update(self.pieces(number, record, pieces))
        for kind, found in by_kind.items():
            result.update(self.of_kind(number, kind, found))
        return sorted(result.items())

    def of_kind(self, number: int, kind: int, found: list[tuple[int, bytes]]) -> Iterator[Item]:
        """Items of one kind; those that cannot be decoded keep their lengths."""
        handlers: dict[int, Callable[[int, list[tuple[int, bytes]]], Iterator[Item]]] = {
            Kind.DIRENT: self.dirents,
            Kind.PARENT: self.parents,
            Kind.XATTR: self.xattrs,
        }
        if kind in handlers:
            yield from handlers[kind](number, found)
            return
        for offset, value in found:
            yield (number, kind << 56 | offset), self.plain(number, kind, offset, value)

    # --- records ------------------------------------------------------------------------------

    @staticmethod
    def record(number: int, found: list[tuple[int, bytes]]) -> InodeRecord | None:
        """The inode's record, if it has one that can be."""
        try:
            return InodeRecord.decode(number, found[0][1]) if found else None
        except Corrupted:
            return None

    def plain(self, number: int, kind: int, offset: int, value: bytes) -> bytes:
        """A value that holds numbers only, written anew from them."""
        try:
            if kind == Kind.INODE:
                return InodeRecord.decode(number, value).encode()
            if kind == Kind.EXTENT:
                return decode_extent(number, offset, value, self.superblock.block_count).encode()
        except Corrupted:
            pass  # as bytes of which nobody knows what they say
        return bytes(len(value))

    # --- names --------------------------------------------------------------------------------

    def dirents(self, number: int, found: list[tuple[int, bytes]]) -> Iterator[Item]:
        def renamed(entry: Dirent) -> tuple[int, Dirent]:
            name = self.names(entry.name)
            return name_hash(self.seed, name), replace(entry, name=name)

        entries, others = decoded(number, found, decode_dirents)
        lists = hashed(map(renamed, entries), encode_dirents)
        for at, (flags, listed) in lists.items():
            for index, entry in enumerate(listed):
                entry.index = min(index, MAX_NAME_INDEX)  # tells names of one hash apart
            yield key(number, Kind.DIRENT, at), encode_dirents(flags, listed)
        yield from self.unreadable(number, Kind.DIRENT, others)

    def parents(self, number: int, found: list[tuple[int, bytes]]) -> Iterator[Item]:
        def renamed(link: tuple[int, bytes]) -> tuple[int, tuple[int, bytes]]:
            directory, name = link[0], self.names(link[1])
            return parent_hash(self.seed, directory, name), (directory, name)

        links, others = decoded(number, found, decode_parents)
        for at, (flags, listed) in hashed(map(renamed, links), encode_parents).items():
            yield key(number, Kind.PARENT, at), encode_parents(flags, listed)
        yield from self.unreadable(number, Kind.PARENT, others)

    def unreadable(self, number: int, kind: Kind, found: list[tuple[int, bytes]]) -> Iterator[Item]:
        """Lists that could not be decoded; the old hash would tell of a name that somebody guesses."""
        for offset, value in found:
            yield key(number, kind, offset ^ self.mask), bytes(len(value))

    # --- attributes ---------------------------------------------------------------------------

    def xattrs(self, number: int, found: list[tuple[int, bytes]]) -> Iterator[Item]:
        def renamed(entry: Xattr) -> tuple[int, Xattr]:
            name, value = self.attribute(entry.name), entry.value
            if value is not None:
                value = kept_or_zero(entry.name, value)
            elif entry.name in KEPT:
                self.holders[entry.value_inode] = entry.name
            return name_hash(self.seed, name), replace(entry, name=name, value=value)

        entries, others = decoded(number, found, decode_xattrs)
        for at, (flags, listed) in hashed(map(renamed, entries), encode_xattrs).items():
            yield key(number, Kind.XATTR, at), encode_xattrs(flags, listed)
        yield from self.unreadable(number, Kind.XATTR, others)

    def attribute(self, name: bytes) -> bytes:
        """An attribute's name, obscured behind its namespace."""
        if name in KEPT:
            return name
        prefix = next(each for each in NAMESPACES if name.startswith(each))
        rest = name[len(prefix) :]
        if b"/" in rest or b"\0" in rest:
            return prefix + self.path(rest)
        return prefix + self.attributes[prefix](rest)

    # --- contents -----------------------------------------------------------------------------

    def pieces(
        self, number: int, record: InodeRecord | None, found: list[tuple[int, bytes]]
    ) -> Iterator[Item]:
        """Inline data: of a link its target, of a long attribute its value, else what is in a file."""
        data = b"".join(value for _, value in found)
        if record is not None and stat.S_ISLNK(record.mode):
            data = self.path(data)
        else:
            holder = self.holders.pop(number, None) if record is None else None
            data = kept_or_zero(holder, data)
        at = 0
        for offset, value in found:
            yield key(number, Kind.INLINE, offset), data[at : at + len(value)]
            at += len(value)

    def path(self, data: bytes) -> bytes:
        """Where a link leads, each part as the name that it may be."""
        parts = data.split(b"/")
        return b"/".join(blank(part) if b"\0" in part else self.names(part) for part in parts)


def kept_in(prefix: bytes) -> list[bytes]:
    """What stands behind `prefix` in the names of attributes that are kept."""
    return [name[len(prefix) :] for name in KEPT if name.startswith(prefix)]


def kept_or_zero(name: bytes | None, value: bytes) -> bytes:
    """The value of an attribute, or as many zero bytes."""
    if name in (acl.ACCESS, acl.DEFAULT) and is_acl(value):
        return value
    if name == CAPABILITY and CAPABILITY_BYTES.get(value[3:4]) == len(value):
        return value
    return bytes(len(value))


def is_acl(value: bytes) -> bool:
    try:
        acl.decode(value)
    except FsError:
        return False
    return True


def blank(text: bytes) -> bytes:
    """For bytes that cannot be a name."""
    return b"?" * len(text)


def decoded(
    number: int,
    found: Iterable[tuple[int, bytes]],
    decode: Callable[[int, bytes], tuple[int, list[E]]],
) -> tuple[list[E], list[tuple[int, bytes]]]:
    """The entries of all lists, and the lists that are none."""
    entries: list[E] = []
    others = []
    for offset, value in found:
        try:
            entries += decode(number, value)[1]
        except Corrupted:
            others.append((offset, value))
    return entries, others


def hashed(entries: Iterable[tuple[int, E]], encode: Encode[E]) -> dict[int, tuple[int, list[E]]]:
    """Entries by the hash under which they stand, as (flags, list): a full list goes on under the next hash."""
    lists: dict[int, tuple[int, list[E]]] = {}
    for own, entry in entries:
        at = own
        while True:
            flags, listed = lists.get(at, (0, []))
            if len(encode(flags, [*listed, entry])) <= MAX_VALUE_BYTES:
                lists[at] = flags, [*listed, entry]
                break
            lists[at] = flags | OVERFLOWED, listed
            at = next_hash(at)
    return lists
