"""A second reader of the format, written from docs/format.md alone: it imports nothing of the project.

    python -m tests.reader disk.img            a JSON object: each path with what it is and holds

It shows that the document suffices, and it is the oracle for images: what the filesystem wrote must be found
by somebody who has only read how. It reads a whole image into memory, item by item, and is in no hurry.

Every "must" of the document that it comes across is checked; what breaks one raises Corrupt, with the place.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

BLOCK = 4096
GROUP_BLOCKS = 32256
MAGIC = 0x6E764653
SUPERBLOCK, STATE, JOURNAL_SUPERBLOCK, RECORD, BITMAP, NODE = range(1, 7)
INODE, INLINE, XATTR, PARENT, DIRENT, EXTENT, ORPHAN = range(1, 8)
INLINE_DATA = 0x80000000
UNWRITTEN = 1
MAX_LEVEL = 12
DIGEST_BYTES = 64 << 20  # longer files are described by their mapped parts
_HEADER = struct.Struct("<IIHBBI16sQQQHHI")
_MASK = 0xFFFFFFFFFFFFFFFF
_INODE = struct.Struct("<IIIIQQqqqqIIIIIIQIIQQ")

Key = tuple[int, int]


class Corrupt(Exception):
    """The image breaks a rule of docs/format.md."""


def must(condition: bool, what: str) -> None:
    """Raises Corrupt unless the condition holds."""
    if not condition:
        raise Corrupt(what)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def crc32c(data: bytes, seed: int = 0) -> int:
    """CRC32C of `data`; the seed is the one of the document's section on checksums."""
    register = seed ^ 0xFFFFFFFF
    for byte in data:
        register = _CRC[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def _sip_rounds(a: int, b: int, c: int, d: int, count: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        a, c = (a + b) & _MASK, (c + d) & _MASK
        b, d = _rotate(b, 13) ^ a, _rotate(d, 16) ^ c
        a = _rotate(a, 32)
        a, c = (a + d) & _MASK, (c + b) & _MASK
        d, b = _rotate(d, 21) ^ a, _rotate(b, 17) ^ c
        c = _rotate(c, 32)
    return a, b, c, d


def siphash(key: bytes, message: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein, 2012), 64 bits."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    a, b = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    c, d = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        a, b, c, d = _sip_rounds(a, b, c, d ^ word, 2)
        a ^= word
    a, b, c, d = _sip_rounds(a, b, c ^ 0xFF, d, 4)
    return a ^ b ^ c ^ d


@dataclass
class Header:
    """The first 64 bytes of a metadata block."""

    checksum: int
    magic: int
    type: int
    version: int
    level: int
    flags: int
    meta_uuid: bytes
    number: int
    owner: int
    sequence: int
    items: int
    heap: int
    reserved: int


@dataclass
class Inode:
    """An INODE record with what belongs to it."""

    number: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    blocks: int
    seconds: tuple[int, int, int, int]
    nanoseconds: tuple[int, int, int, int]
    flags: int
    device: int
    directory: int
    project: int
    changes: int
    names: int
    extents: list[tuple[int, int, int, bool]] = field(default_factory=list)
    """(first file block, blocks, first device block, unwritten), ascending."""
    inline: bytes = b""
    entries: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Directories: name -> (inode, type)."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Image(Protocol):
    """A file, as far as it is needed."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def read(self, size: int = -1, /) -> bytes: ...


class Reader:
    """An image, its journal laid over it, its items in memory. Raises Corrupt."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._newer: dict[int, bytes] = {}
        self._load_superblock()
        self._replay()
        self._load_state()
        self.users: set[int] = set()
        self.items = dict(self._walk(self.root[0], self.root[1], (0, 0), None))
        self._children: dict[int, list[tuple[Key, bytes]]] = {}
        for key, value in self.items.items():
            self._children.setdefault(key[0], []).append((key, value))
        self.inodes = {
            number: self._inode(number, value)
            for (number, second), value in self.items.items()
            if second == INODE << 56
        }
        self._check_names()
        self._check_bitmaps()

    # ---- blocks ------------------------------------------------------------------------------------

    def raw(self, number: int) -> bytes:
        """A block as it is after replay."""
        if number in self._newer:
            return self._newer[number]
        self._image.seek(number * BLOCK)
        data = self._image.read(BLOCK)
        must(len(data) == BLOCK, f"block {number} lies behind the end of the image")
        return data

    def verified(self, number: int, kind: int) -> tuple[Header, bytes]:
        """A metadata block whose header is right in all that must be."""
        data = self.raw(number)
        header = Header(*_HEADER.unpack_from(data))
        place = f"block {number}"
        seed = 0 if kind == SUPERBLOCK else self.checksum_seed
        must(header.checksum == crc32c(data[4:], seed), f"{place}: checksum")
        must(header.magic == MAGIC, f"{place}: magic")
        must(header.type == kind, f"{place}: type {header.type} instead of {kind}")
        must(header.version == 1, f"{place}: version")
        must(header.number == number, f"{place}: says that it is {header.number}")
        must(kind == SUPERBLOCK or header.meta_uuid == self.meta_uuid, f"{place}: meta uuid")
        return header, data

    def is_fixed(self, number: int) -> bool:
        """Whether the block has one of the places that never change."""
        return (
            number <= self.journal_block(self.journal_blocks - 1)
            or number % GROUP_BLOCKS == 0
            or number == GROUP_BLOCKS + 1
            or number == self.blocks - 1
        )

    # ---- superblock, journal, state ----------------------------------------------------------------

    def _load_superblock(self) -> None:
        found: list[tuple[bytes, bytes]] = []
        places = [16, GROUP_BLOCKS + 1, self._image.seek(0, 2) // BLOCK - 1]
        for at in places:
            if at < places[0]:
                continue  # an image of next to nothing
            try:
                header, data = self.verified(at, SUPERBLOCK)
            except Corrupt:
                continue
            found.append((header.meta_uuid, data[64:]))
            last = struct.unpack_from("<Q", data, 104)[0] - 1
            if last not in places:
                places.append(last)
        must(bool(found), "no superblock verifies")
        self.meta_uuid, body = max(found, key=found.count)
        self._take_superblock(bytes(64) + body)

    def _take_superblock(self, data: bytes) -> None:
        """What the superblock says, one from the journal too."""
        version, block = struct.unpack_from("<II", data, 64)
        must((version, block) == (1, BLOCK), f"superblock: version {version}, blocks of {block}")
        features = struct.unpack_from("<4Q", data, 72)
        must(features[2] in (0, 1), f"superblock: unknown incompat features {features[2]:#x}")
        self.unknown_log_features = features[3]
        self.blocks, group, self.checksum_seed, groups = struct.unpack_from("<QIIQ", data, 104)
        must(group == GROUP_BLOCKS, f"superblock: groups of {group} blocks")
        must(4096 <= self.blocks <= 1 << 48, f"superblock: {self.blocks} blocks")
        must(groups == -(-self.blocks // GROUP_BLOCKS), f"superblock: {groups} groups")
        self.uuid, self.label = data[128:144], data[144:208].rstrip(b"\0")
        self.hash_seed = data[208:224]
        first, self.journal_blocks = struct.unpack_from("<QQ", data, 232)
        longest = min(self.blocks, GROUP_BLOCKS) - 64
        if features[2] & 1:
            longest = min(self.blocks // 2, 262144)
        must(first == 21 and 1024 <= self.journal_blocks <= longest, "superblock: journal")
        must(struct.unpack_from("<I", data, 248)[0] <= 1, "superblock: errors policy")
        root, reserved = struct.unpack_from("<QQ", data, 256)
        must(root == 1 and reserved < self.blocks, "superblock: root inode, reserved blocks")

    def journal_block(self, position: int) -> int:
        """The block of a position: counting from 21 on, what belongs to the groups is left out."""
        number = 21
        left: int = position % self.journal_blocks
        while True:
            room = GROUP_BLOCKS - number % GROUP_BLOCKS
            if left < room:
                return number + left
            left -= room
            number += room
            number += 2 if number == GROUP_BLOCKS else 1

    def _replay(self) -> None:
        """Lays the journal's records over the disk."""
        candidates = []
        for number in (18, 19):
            try:
                _, data = self.verified(number, JOURNAL_SUPERBLOCK)
            except Corrupt:
                continue
            candidates.append(struct.unpack_from("<4Q", data, 64))
        must(bool(candidates), "no journal superblock verifies")
        _, sequence, position, epoch = max(candidates)
        images: dict[int, bytes] = {}
        while (record := self._record(sequence, position, epoch)) is not None:
            must(not self.unknown_log_features, "records of an unknown kind in the journal")
            self._newer = {**images, **record[0]}
            if 16 in record[0]:
                self._take_superblock(self.verified(16, SUPERBLOCK)[1])
            images = self._newer
            position, sequence = record[1], sequence + 1
        self._newer = images

    def _record(
        self, sequence: int, position: int, epoch: int
    ) -> tuple[dict[int, bytes], int] | None:
        """(images by home block, position behind it), or None at the end of the journal."""
        images: dict[int, bytes] = {}
        index, parts, total, length = 0, 1, 0, 0
        while index < parts:
            at = self.journal_block(position + length)
            try:
                header, data = self.verified(at, RECORD)
            except Corrupt:
                return None
            told, own, headers = struct.unpack_from("<IHH", data, 64)
            if index == 0:
                parts, total = headers, told
            expected = (epoch, sequence, index, parts, total)
            if (header.owner, header.sequence, own, headers, told) != expected:
                return None
            tags = min(total - 251 * index, 251)
            if header.items != tags or parts != max(1, -(-total // 251)):
                return None
            if length + 1 + tags > self.journal_blocks:
                return None
            for tag in range(tags):
                home, checksum = struct.unpack_from("<QI", data, 80 + 16 * tag)
                image = self.raw(self.journal_block(position + length + 1 + tag))
                if crc32c(image) != checksum:
                    return None
                images[home] = image
            length += 1 + tags
            index += 1
        blocks = self.blocks
        if 16 in images:
            blocks = struct.unpack_from("<Q", images[16], 104)[0]
        if not all(16 <= home < blocks for home in images):
            return None
        if not self._copies_agree(images, blocks):
            return None
        return images, (position + length) % self.journal_blocks

    def _copies_agree(self, images: dict[int, bytes], blocks: int) -> bool:
        """Whether a record has the superblock and all of its copies, saying the same, or none of them."""
        places = {16, blocks - 1} | ({GROUP_BLOCKS + 1} if blocks > GROUP_BLOCKS + 2 else set())
        if not places & images.keys():
            return True
        return places <= images.keys() and len({images[place][64:] for place in places}) == 1

    def _load_state(self) -> None:
        _, data = self.verified(17, STATE)
        self.flags, roots = struct.unpack_from("<II", data, 64)
        self.next_inode, self.free_blocks, self.inode_count, _ = struct.unpack_from("<4Q", data, 72)
        must(1 <= roots <= 8, f"state: {roots} roots")
        tree, level, block = struct.unpack_from("<IIQ", data, 136)
        must(tree == 1 and level <= MAX_LEVEL, f"state: root of tree {tree} at level {level}")
        self.root = block, level

    def _take(self, block: int, count: int, where: str) -> None:
        """Blocks that are neither fixed nor anybody else's."""
        for number in range(block, block + count):
            free = number < self.blocks and not self.is_fixed(number)
            must(free and number not in self.users, f"{where}: block {number}")
            self.users.add(number)

    def _check_bitmaps(self) -> None:
        """Exactly what is fixed or in use is marked so; the counts agree."""
        free = 0
        for first in range(0, self.blocks, GROUP_BLOCKS):
            members = range(first, first + GROUP_BLOCKS)
            used = {n for n in members if n >= self.blocks or self.is_fixed(n) or n in self.users}
            bits = sum(1 << number - first for number in used)
            place = first or 20
            if any(self.raw(place)):
                header, data = self.verified(place, BITMAP)
                must(header.owner == first // GROUP_BLOCKS, f"bitmap {place}: its group")
                must(header.items == GROUP_BLOCKS - len(used), f"bitmap {place}: free blocks")
                marked = int.from_bytes(data[64:], "little")
                must(
                    marked == bits, f"bitmap {place}: {(marked ^ bits).bit_count()} bits are wrong"
                )
            else:
                must(not self.users & used, f"bitmap {place} is fresh, yet the group is in use")
            free += GROUP_BLOCKS - len(used)
        must(free == self.free_blocks, f"state: {self.free_blocks} free blocks, {free} counted")

    # ---- the item tree -----------------------------------------------------------------------------

    def _walk(
        self, number: int, level: int, low: Key, high: Key | None
    ) -> Iterator[tuple[Key, bytes]]:
        """All items below a node, in order."""
        where = f"node {number}"
        self._take(number, 1, where)
        header, data = self.verified(number, NODE)
        must((header.owner, header.level) == (1, level), f"{where}: tree or level")
        end = 64 + 24 * header.items
        must(end <= header.heap <= BLOCK, f"{where}: slots and values overlap")
        is_root = number == self.root[0]
        must(header.items > 0 or (is_root and level == 0), f"{where}: empty")
        slots = [struct.unpack_from("<QQ8s", data, 64 + 24 * i) for i in range(header.items)]
        keys = [(inode, second) for inode, second, _ in slots]
        must(all(a < b for a, b in pairwise(keys)), f"{where}: order")
        must(not keys or keys[0] >= low, f"{where}: a key below its bound")
        must(not keys or high is None or keys[-1] < high, f"{where}: a key beyond its bound")
        if level:
            must(keys[0] == low, f"{where}: does not begin at its bound")
            for i, (_, _, place) in enumerate(slots):
                above = keys[i + 1] if i + 1 < len(keys) else high
                yield from self._walk(int.from_bytes(place, "little"), level - 1, keys[i], above)
            return
        taken: list[tuple[int, int]] = []
        for key, (_, _, place) in zip(keys, slots, strict=True):
            at, length = struct.unpack_from("<HH", place)
            must(length <= 1000 and header.heap <= at and at + length <= BLOCK, f"{where}: value")
            taken.append((at, at + length))
            yield key, data[at : at + length]
        taken = sorted(it for it in taken if it[0] < it[1])
        apart = all(a[1] <= b[0] for a, b in pairwise(taken))
        must(apart, f"{where}: values overlap")

    def _of_kind(self, number: int, kind: int) -> Iterator[tuple[int, bytes]]:
        """(offset, value) of the items of one kind of an inode."""
        for (_, second), value in self._children.get(number, ()):
            if second >> 56 == kind:
                yield second & (1 << 56) - 1, value

    # ---- inodes ------------------------------------------------------------------------------------

    def _inode(self, number: int, value: bytes) -> Inode:
        where = f"inode {number}"
        must(len(value) == 120, f"{where}: a record of {len(value)} bytes")
        fields = _INODE.unpack(value)
        mode, links, uid, gid, size, blocks = fields[:6]
        inode = Inode(
            number,
            mode,
            links,
            uid,
            gid,
            size,
            blocks,
            fields[6:10],
            fields[10:14],
            *fields[14:18],
            *fields[19:],
        )
        must(max(inode.nanoseconds) < 10**9, f"{where}: nanoseconds")
        must(number < self.next_inode, f"{where}: not below the next inode")
        if inode.flags & INLINE_DATA:
            inode.inline = self._inline(number)
            must(len(inode.inline) == inode.size, f"{where}: length of the inline data")
        self._take_extents(inode)
        must(sum(count for _, count, _, _ in inode.extents) == inode.blocks, f"{where}: blocks")
        inode.xattrs = dict(self._xattrs(number))
        inode.entries = dict(self._dirents(number))
        must(len(inode.entries) == inode.names, f"{where}: number of names")
        return inode

    def _inline(self, number: int) -> bytes:
        pieces = list(self._of_kind(number, INLINE))
        must([offset for offset, _ in pieces] == list(range(len(pieces))), f"{number}: pieces")
        must(all(len(piece) == 900 for _, piece in pieces[:-1]), f"{number}: short piece")
        return b"".join(piece for _, piece in pieces)

    def _take_extents(self, inode: Inode) -> None:
        behind = 0
        for first, value in self._of_kind(inode.number, EXTENT):
            where = f"inode {inode.number}, extent at {first}"
            must(len(value) == 12 and not inode.flags & INLINE_DATA, where)
            place, count = struct.unpack("<QI", value)
            block, flags = place & (1 << 48) - 1, place >> 48
            must(count > 0 and first >= behind and flags <= UNWRITTEN, where)
            must(block // GROUP_BLOCKS == (block + count - 1) // GROUP_BLOCKS, f"{where}: groups")
            self._take(block, count, where)
            behind = first + count
            inode.extents.append((first, count, block, bool(flags & UNWRITTEN)))

    def _hash(self, text: bytes) -> int:
        return siphash(self.hash_seed, text) >> 8 or 1

    def _lists(self, number: int, kind: int) -> Iterator[tuple[int, bytes]]:
        """(hash, entries) of the items of a list."""
        for offset, value in self._of_kind(number, kind):
            must(len(value) > 1 or value == b"\x01", f"inode {number}: an empty list")
            must(value[0] <= 1, f"inode {number}: flags of a list")
            yield offset, value[1:]

    def _check_hash(self, number: int, kind: int, text: bytes, offset: int) -> None:
        """The entry stands under its hash, or in the chain of overflowed items behind it."""
        at = self._hash(text)
        while at != offset:
            item = self.items.get((number, kind << 56 | at), b"\0")
            must(item[0] == 1, f"inode {number}: {text!r} is out of its place")
            at = at % ((1 << 56) - 1) + 1

    def _dirents(self, number: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
        seen = set()
        for offset, entries in self._lists(number, DIRENT):
            indices = set()
            while entries:
                child, kind, index, length = struct.unpack_from("<QBBB", entries)
                name, entries = _name(entries, 11, length)
                self._check_hash(number, DIRENT, name, offset)
                must(index < 128 and index not in indices, f"inode {number}: index of {name!r}")
                must(name not in seen, f"inode {number}: {name!r} twice")
                seen.add(name)
                indices.add(index)
                yield name, (child, kind)

    def _xattrs(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        for offset, entries in self._lists(number, XATTR):
            while entries:
                inside, name_bytes, value_bytes, holder = struct.unpack_from("<BBIQ", entries)
                name, entries = entries[14 : 14 + name_bytes], entries[14 + name_bytes :]
                sound = 0 < name_bytes == len(name) and b"\0" not in name
                must(sound, f"inode {number}: the attribute name {name!r}")
                self._check_hash(number, XATTR, name, offset)
                if inside:
                    must(value_bytes <= 512 and not holder, f"inode {number}: value of {name!r}")
                    value, entries = entries[:value_bytes], entries[value_bytes:]
                else:
                    value = self._inline(holder)
                must(len(value) == value_bytes <= 65536, f"inode {number}: value of {name!r}")
                yield name, value

    def _parents(self, number: int) -> Iterator[tuple[int, bytes]]:
        for offset, entries in self._lists(number, PARENT):
            while entries:
                directory, length = struct.unpack_from("<QB", entries)
                name, entries = _name(entries, 9, length)
                self._check_hash(number, PARENT, struct.pack("<Q", directory) + name, offset)
                yield directory, name

    def _check_names(self) -> None:
        """Names and back references agree; so do link counts."""
        must(1 in self.inodes and stat.S_ISDIR(self.inodes[1].mode), "no root directory")
        must(len(self.inodes) == self.inode_count, "state: number of inodes")
        names: dict[int, set[tuple[int, bytes]]] = {}
        subdirectories: dict[int, int] = {}
        for number, inode in self.inodes.items():
            for name, (child, kind) in inode.entries.items():
                must(child in self.inodes, f"inode {number}: {name!r} leads to nothing")
                must(self.inodes[child].mode >> 12 == kind, f"inode {number}: type of {name!r}")
                names.setdefault(child, set()).add((number, name))
                if stat.S_ISDIR(self.inodes[child].mode):
                    subdirectories[number] = subdirectories.get(number, 0) + 1
                    must(self.inodes[child].directory == number, f"inode {child}: its directory")
        orphans = {offset for offset, _ in self._of_kind(0, ORPHAN)}
        for number, inode in self.inodes.items():
            mine = names.get(number, set())
            must(set(self._parents(number)) == mine, f"inode {number}: back references")
            if stat.S_ISDIR(inode.mode):
                must(len(mine) <= 1, f"inode {number}: a directory with two names")
                links = 2 + subdirectories.get(number, 0) if mine or number == 1 else 0
            else:
                links = len(mine)
            must(inode.links == links, f"inode {number}: {inode.links} links, {links} counted")
            must(links > 0 or number in orphans, f"inode {number}: neither named nor an orphan")

    # ---- what users want ---------------------------------------------------------------------------

    def pieces(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """(byte offset, data) of what is mapped and written, in order; the rest reads as zeroes."""
        if inode.flags & INLINE_DATA:
            yield 0, inode.inline
            return
        for first, count, block, unwritten in inode.extents:
            if unwritten:
                continue
            for i in range(count):
                at = (first + i) * BLOCK
                if at < inode.size:
                    yield at, self.raw(block + i)[: inode.size - at]

    def describe(self, inode: Inode) -> dict[str, Any]:
        """What stat, the data and the attributes of an inode say, for JSON."""
        told: dict[str, Any] = {
            "inode": inode.number,
            "mode": f"{inode.mode:o}",
            "links": inode.links,
            "owner": [inode.uid, inode.gid],
            "size": inode.size,
            "mtime": [inode.seconds[1], inode.nanoseconds[1]],
            "flags": inode.flags & ~INLINE_DATA,
        }
        if inode.xattrs:
            told["xattrs"] = {
                name.decode("utf-8", "surrogateescape"): base64.b64encode(value).decode()
                for name, value in sorted(inode.xattrs.items())
            }
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            told["device"] = [inode.device >> 8 & 0xFFF, inode.device & 0xFF | inode.device >> 12]
        if stat.S_ISLNK(inode.mode):
            told["target"] = inode.inline.decode("utf-8", "surrogateescape")
        elif stat.S_ISREG(inode.mode):
            told["sha256"] = self.digest(inode)
        return told

    def digest(self, inode: Inode) -> str:
        """SHA-256 of the data; of long files, of the blocks that are not zero, with their offsets."""
        digest, behind, long = hashlib.sha256(), 0, inode.size > DIGEST_BYTES
        for at, data in self.pieces(inode):
            if long and not any(data):
                continue
            digest.update(struct.pack("<Q", at) if long else bytes(at - behind))
            digest.update(data)
            behind = at + len(data)
        digest.update(b"" if long else bytes(inode.size - behind))
        return digest.hexdigest()

    def tree(self) -> dict[str, dict[str, Any]]:
        """Every path, "/" first, with its description."""
        found: dict[str, dict[str, Any]] = {}
        todo = [("/", self.inodes[1])]
        seen = set()
        while todo:
            path, inode = todo.pop()
            found[path] = self.describe(inode)
            if not stat.S_ISDIR(inode.mode):
                continue
            must(inode.number not in seen, f"inode {inode.number}: a circle of directories")
            seen.add(inode.number)
            for name, (child, _) in sorted(inode.entries.items(), reverse=True):
                text = name.decode("utf-8", "surrogateescape")
                todo.append((f"{path.rstrip('/')}/{text}", self.inodes[child]))
        return found


def _name(entries: bytes, at: int, length: int) -> tuple[bytes, bytes]:
    """The name at `at`, and what follows it."""
    name = entries[at : at + length]
    sound = 0 < length == len(name) and b"/" not in name and b"\0" not in name
    must(sound and name not in (b".", b".."), f"the name {name!r}")
    return name, entries[at + length :]


def main(argv: list[str] | None = None) -> int:
    """Prints an image's tree as JSON. 1: the image is corrupt."""
    parser = argparse.ArgumentParser(prog="python -m tests.reader", description=__doc__)
    parser.add_argument("image", type=Path)
    arguments = parser.parse_args(argv)
    try:
        with open(arguments.image, "rb") as image:
            tree = Reader(image).tree()
    except (Corrupt, OSError, struct.error) as error:
        print(f"{arguments.image}: {error}", file=sys.stderr)
        return 1
    json.dump(tree, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
