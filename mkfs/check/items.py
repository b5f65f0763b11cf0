"""The visitor of the scan: each inode's own items against each other, and an inventory of the rest.

Below: nvmefs.items (each value's own checks), inventory.py.  Above: fsck.py.

Items come in key order, so all of one inode come together: INODE, INLINE, XATTR, PARENT, DIRENT, EXTENT.
`Current` collects them; when the next inode begins, `finish` compares.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from mkfs.check.acls import AclCheck
from mkfs.check.findings import Findings
from mkfs.check.inventory import MASK64, Inventory, digest
from mkfs.check.space import Double, Space
from nvmefs.errors import Corrupted
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.inline import MAX_PIECES
from nvmefs.items import (
    EXTENT_UNWRITTEN,
    INODE_INLINE,
    OVERFLOWED,
    InodeRecord,
    decode_dirents,
    decode_extent,
    decode_parents,
    decode_xattrs,
)
from nvmefs.layout import (
    BLOCK_BYTES,
    INLINE_BYTES,
    MAX_FILE_BYTES,
    MAX_INODE,
    MAX_SYMLINK_BYTES,
    OFFSET_MASK,
    Key,
    Kind,
    Superblock,
    describe,
)

MOST_DOUBLES = 100_000  # blocks of two owners that are told; the others are found in the next round
WRAP = 256  # hashes this close to the last may go on from the first


@dataclass(slots=True)
class Chain:
    """Consecutive items of hashed names, each but the last overflowed: a name may stand in any of them
    from its own hash on. `names` are those met in it.
    """

    kind: int = 0
    first: int = -1
    last: int = -1
    open: bool = False
    names: set[object] = field(default_factory=set)


@dataclass(slots=True)
class Current:
    """What was met of the inode whose items are passing by."""

    number: int = -1
    partial: bool = False  # some items could not be read
    record: InodeRecord | None = None
    items: int = 0
    kinds: int = 0  # a bit for each kind met
    inline_pieces: int = 0
    inline_bytes: int = 0
    blocks: int = 0
    extent_end: int = 0
    written_end: int = 0
    names: int = 0
    back_digest: int = 0
    back_count: int = 0
    chain: Chain = field(default_factory=Chain)


class ItemCheck:
    """The visitor. Call `finish` after the walk."""

    def __init__(
        self,
        superblock: Superblock,
        space: Space,
        findings: Findings,
        progress: Callable[[int], None] = lambda inodes: None,
    ) -> None:
        self.progress = progress
        self.superblock = superblock
        self.seed = superblock.hash_seed
        self.space = space
        self.findings = findings
        self.inventory = Inventory()
        self.acls = AclCheck(findings)
        self.listed: set[int] = set()  # orphans
        self.double: list[Double] = []
        self.current = Current()
        self.leaf_block = 0
        self.partial_number = -1
        self.handlers = {
            Kind.INODE: self.take_inode,
            Kind.INLINE: self.take_inline,
            Kind.XATTR: self.take_xattrs,
            Kind.PARENT: self.take_parents,
            Kind.DIRENT: self.take_dirents,
            Kind.EXTENT: self.take_extent,
            Kind.ORPHAN: self.take_orphan,
        }

    # --- visiting -----------------------------------------------------------------------------

    def node(self, block: int, level: int) -> None:
        """Nothing to do: the walk has claimed the block."""

    def lost(self, low: Key, high: Key) -> None:
        """The inodes at both ends of the gap are not compared: their items may be in it."""
        self.current.partial |= low[0] == self.current.number
        self.partial_number = high[0]

    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None:
        self.leaf_block = block
        self.progress(len(self.inventory.inodes))
        for place, value in items:
            number, rest = place
            if number != self.current.number:
                self.finish()
                self.current = Current(number, number == self.partial_number)
            handler = self.handlers.get(rest >> 56)  # type: ignore[call-overload]
            if handler is None:
                self.findings.add(
                    "item-kind", f"{describe(place)}: no such kind of item", inode=number, item=rest
                )
            elif (number == 0) != (rest >> 56 == Kind.ORPHAN) or number >= MAX_INODE:
                self.findings.add(
                    "item-place",
                    f"{describe(place)}: not under this inode",
                    inode=number,
                    item=rest,
                )
            else:
                self.current.items += 1
                self.current.kinds |= 1 << (rest >> 56)
                try:
                    handler(number, rest & OFFSET_MASK, value)
                except Corrupted as error:
                    self.findings.add(
                        "item-value", f"{describe(place)}: {error}", inode=number, item=rest
                    )

    def take_inode(self, number: int, offset: int, value: bytes) -> None:
        if offset:
            raise Corrupted(-1, "an inode's record is at offset 0 only")
        self.current.record = InodeRecord.decode(number, value)

    def take_inline(self, number: int, offset: int, value: bytes) -> None:
        here = self.current
        if offset != here.inline_pieces or here.inline_bytes != offset * INLINE_BYTES:
            self.findings.add(
                "inline-pieces",
                f"inode {number}: piece {offset} follows {here.inline_pieces} pieces of "
                f"{here.inline_bytes} bytes",
                inode=number,
            )
        elif offset >= MAX_PIECES:
            self.findings.add(
                "inline-pieces", f"inode {number}: more than {MAX_PIECES} pieces", inode=number
            )
        if not 0 < len(value) <= INLINE_BYTES:
            raise Corrupted(-1, f"a piece of {len(value)} bytes")
        here.inline_pieces += 1
        here.inline_bytes += len(value)
        self.acls.piece(number, value)

    def take_xattrs(self, number: int, hash56: int, value: bytes) -> None:
        flags, attributes = decode_xattrs(number, value)
        self.follow_chain(Kind.XATTR, hash56, flags, bool(attributes))
        values = self.inventory.values
        for attribute in attributes:
            own = name_hash(self.seed, attribute.name)
            self.check_hash("xattr", hash56, own, attribute.name, name=attribute.name)
            self.acls.attribute(number, self.current.record, attribute)
            if attribute.value is None:
                values.claimed.append(attribute.value_inode)
                values.claimed_bytes.append(attribute.length)
                values.claimed_by.append(number)

    def take_parents(self, number: int, hash56: int, value: bytes) -> None:
        flags, links = decode_parents(number, value)
        self.follow_chain(Kind.PARENT, hash56, flags, bool(links))
        here = self.current
        for directory, name in links:
            own = parent_hash(self.seed, directory, name)
            self.check_hash(
                "parent", hash56, own, (directory, name), name=name, directory=directory
            )
            here.back_digest = here.back_digest + digest(number, directory, name) & MASK64
            here.back_count += 1

    def take_dirents(self, number: int, hash56: int, value: bytes) -> None:
        flags, entries = decode_dirents(number, value)
        self.follow_chain(Kind.DIRENT, hash56, flags, bool(entries))
        if len({entry.index for entry in entries}) != len(entries):
            self.findings.add(
                "dirent-index",
                f"directory {number}: two names of hash {hash56:#x} share a cookie",
                inode=number,
                hash=hash56,
            )
        names = self.inventory.names
        for entry in entries:
            own = name_hash(self.seed, entry.name)
            self.check_hash("dirent", hash56, own, entry.name, name=entry.name)
            names.target.append(entry.inode)
            names.directory.append(number)
            names.type.append(entry.type)
            names.digest.append(digest(entry.inode, number, entry.name))
            names.leaf.append(self.leaf_block)
            self.current.names += 1

    def take_extent(self, number: int, file_block: int, value: bytes) -> None:
        extent = decode_extent(number, file_block, value, self.superblock.block_count)
        here = self.current
        if file_block < here.extent_end:
            self.findings.add(
                "extent-overlap",
                f"inode {number}: extent at file block {file_block}+{extent.count} begins before "
                f"the one before it ends, at {here.extent_end}",
                found=file_block,
                expected=here.extent_end,
                inode=number,
                item=Kind.EXTENT << 56 | file_block,
            )
        here.extent_end = max(here.extent_end, extent.end)
        here.blocks += extent.count
        if extent.end > -(-MAX_FILE_BYTES // BLOCK_BYTES):
            raise Corrupted(-1, f"extent up to file block {extent.end}: beyond the largest file")
        if not self.superblock.is_allocatable(extent.start, extent.count):
            self.findings.add(
                "extent-forbidden",
                f"inode {number}: extent at file block {file_block} lies in blocks "
                f"{extent.start}+{extent.count}: the format's own, or of two groups",
                inode=number,
                item=Kind.EXTENT << 56 | file_block,
            )
            return
        if not extent.flags & EXTENT_UNWRITTEN:
            here.written_end = extent.end
        for start, count in self.space.claim(extent.start, extent.count):
            if len(self.double) < MOST_DOUBLES:
                at = file_block + start - extent.start
                self.double.append(Double(start, count, number, at))

    def take_orphan(self, number: int, inode: int, value: bytes) -> None:
        self.inventory.orphans.append(inode)
        self.listed.add(inode)

    # --- names and their hashes ---------------------------------------------------------------

    def follow_chain(self, kind: Kind, hash56: int, flags: int, filled: bool) -> None:
        """Note that an item of hashed names was met."""
        chain = self.current.chain
        if chain.kind != kind or not chain.open or hash56 != chain.last + 1:
            chain.kind, chain.first = kind, hash56
            chain.names.clear()
        chain.last = hash56
        chain.open = bool(flags & OVERFLOWED)
        if not filled and not chain.open:
            self.findings.add(
                "list-empty",
                f"inode {self.current.number}: {kind.name} {hash56:#x} holds nothing",
                inode=self.current.number,
                item=kind << 56 | hash56,
            )

    def check_hash(
        self,
        what: str,
        hash56: int,
        own: int,
        identity: object,
        name: bytes,
        directory: int | None = None,
    ) -> None:
        """A name stands under its hash, or behind it in an overflowed chain; and only once there."""
        chain, number = self.current.chain, self.current.number
        wrapped = chain.first == 1 and own > OFFSET_MASK - WRAP
        if not (chain.first <= own <= hash56 or wrapped):
            self.findings.add(
                f"{what}-hash",
                f"inode {number}: {name!r} stands under {hash56:#x}, its hash is {own:#x}",
                found=hash56,
                expected=own,
                inode=number,
                hash=hash56,
                name=name,
                directory=directory,
            )
        if identity in chain.names:
            self.findings.add(
                f"{what}-twice",
                f"inode {number}: {name!r} stands there twice",
                inode=number,
                hash=hash56,
                name=name,
                directory=directory,
            )
        chain.names.add(identity)

    # --- one inode as a whole -----------------------------------------------------------------

    def finish(self) -> None:
        """All items of the current inode have been met."""
        here = self.current
        if not 0 < here.number < MAX_INODE or here.partial:
            return
        self.inventory.highest = max(self.inventory.highest, here.number)
        if here.record is None:
            self.finish_without_record()
            return
        self.check_record(here, here.record)
        record, inodes = here.record, self.inventory.inodes
        inodes.number.append(here.number)
        inodes.type.append(record.mode >> 12)
        inodes.nlink.append(record.nlink)
        inodes.parent.append(record.parent)
        inodes.entries.append(record.entries)
        inodes.own_names.append(here.names)
        inodes.back_digest.append(here.back_digest)
        inodes.back_count.append(here.back_count)

    def finish_without_record(self) -> None:
        """Only the holder of a long attribute value has no record, and it has nothing but INLINE items."""
        here = self.current
        if here.kinds == 1 << Kind.INLINE:
            self.inventory.values.holder.append(here.number)
            self.inventory.values.holder_bytes.append(here.inline_bytes)
            self.acls.end(here.number)
        elif here.items:
            kinds = ", ".join(kind.name for kind in Kind if here.kinds >> kind & 1)
            self.findings.add(
                "inode-missing",
                f"inode {here.number} has {here.items} items ({kinds}) and no record",
                inode=here.number,
            )

    def check_record(self, here: Current, record: InodeRecord) -> None:
        """The record against the items of the same inode."""
        number, is_inline = here.number, bool(record.flags & INODE_INLINE)
        report = partial(self.findings.add, inode=number)
        if here.blocks != record.blocks:
            report(
                "inode-blocks",
                f"inode {number} counts {record.blocks} blocks, its extents have {here.blocks}",
                found=record.blocks,
                expected=here.blocks,
            )
        if here.inline_pieces and not is_inline:
            report("inline-flag", f"inode {number} has inline data, and no flag that says so")
        if is_inline and here.inline_bytes != record.size_bytes:
            report(
                "inode-size",
                f"inode {number} has {record.size_bytes} bytes, inline are {here.inline_bytes}",
                found=record.size_bytes,
                expected=here.inline_bytes,
            )
        if is_inline and here.blocks:
            report("inline-flag", f"inode {number} is marked inline, and has extents")
        end = here.written_end * BLOCK_BYTES
        if stat.S_ISREG(record.mode) and end - BLOCK_BYTES >= record.size_bytes:
            self.check_behind(here, record, end)
        self.check_type(here, record, is_inline)

    def check_behind(self, here: Current, record: InodeRecord, end: int) -> None:
        """Behind the end of a file there is space kept for it, but no data; unless it is being truncated."""
        if record.flags & INODE_INLINE or here.number in self.listed:
            return
        self.findings.add(
            "extent-behind",
            f"inode {here.number} has {record.size_bytes} bytes, and data up to byte {end}",
            found=record.size_bytes,
            expected=min(end, MAX_FILE_BYTES),
            inode=here.number,
        )

    def check_type(self, here: Current, record: InodeRecord, is_inline: bool) -> None:
        """What an inode of its type may have."""
        number, mode = here.number, record.mode
        report = partial(self.findings.add, inode=number)
        has_data = stat.S_ISREG(mode) or stat.S_ISLNK(mode)
        if not has_data and (record.size_bytes or is_inline or here.blocks):
            report("inode-type", f"inode {number} of mode {mode:#o} has a size or data")
        if stat.S_ISLNK(mode) and not (is_inline and 0 < record.size_bytes <= MAX_SYMLINK_BYTES):
            report("inode-type", f"inode {number}, a symbolic link, has no inline target")
        if not stat.S_ISDIR(mode):
            if here.names or record.entries:
                report("inode-type", f"inode {number} is no directory, and has names in it")
            if record.parent:
                report("inode-type", f"inode {number} is no directory, and has a parent")
        elif here.names != record.entries:
            report(
                "directory-entries",
                f"directory {number} counts {record.entries} names, {here.names} are in it",
                found=record.entries,
                expected=here.names,
            )
