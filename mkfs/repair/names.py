"""Repairs of names, back references and orphans; lost+found.

Below: items.py (records), writer.py.  Above: fixes.py.

A name is kept twice, so one half brings back the other. What no name leads to afterwards gets one in
/lost+found: '#' and its number. Link counts and parents of directories are left to the next round.
"""

from __future__ import annotations

import stat

from mkfs.check.findings import Finding
from mkfs.repair.items import drop_kind, new_record, put_record, read_record
from mkfs.repair.writer import Writer
from nvmefs.errors import Corrupted
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.items import INODE_INLINE, Dirent
from nvmefs.layout import MAX_INODE, ROOT_INODE, Kind, key
from nvmefs.transaction import Transaction

LOST_AND_FOUND = b"lost+found"
CANDIDATES = 100  # names tried where one is taken


# --- single names -------------------------------------------------------------------------------------


def leads_to(writer: Writer, tx: Transaction, directory: int, name: bytes, number: int) -> bool:
    """Whether this name leads to that inode."""
    entry = writer.filesystem.directories.find(tx, directory, name)
    return entry is not None and entry.inode == number


def links_of(writer: Writer, tx: Transaction, number: int) -> list[tuple[int, bytes]]:
    """The names of an inode that are there both ways."""
    links = list(writer.filesystem.directories.links(tx, number))
    return [link for link in links if leads_to(writer, tx, *link, number)]


def unname(writer: Writer, tx: Transaction, directory: int, name: bytes, number: int) -> None:
    """Remove a name that leads to `number`, and its back reference, where they are."""
    directories = writer.filesystem.directories
    found = directories.names.find(
        tx,
        directory,
        name_hash(directories.seed, name),
        lambda entry: entry.name == name and entry.inode == number,
    )
    if found is not None:
        directories.names.remove(tx, directory, found)
    forget(writer, tx, directory, name, number)


def forget(writer: Writer, tx: Transaction, directory: int, name: bytes, number: int) -> None:
    """Remove the back reference of a name, if it is there."""
    directories = writer.filesystem.directories
    link = directory, name
    place = parent_hash(directories.seed, directory, name)
    found = directories.parents.find(tx, number, place, lambda entry: entry == link)
    if found is not None:
        directories.parents.remove(tx, number, found)


async def drop_name(writer: Writer, finding: Finding) -> None:
    """A name that leads to nothing, or to the root."""
    directory, name, number = _link(finding)
    await writer.run(lambda tx: unname(writer, tx, directory, name, number))


def _link(finding: Finding) -> tuple[int, bytes, int]:
    return finding.number("directory"), finding.bytes("name"), finding.number("inode")


async def fix_type(writer: Writer, finding: Finding) -> None:
    """A name says of which type its inode is: the inode knows better."""
    directory, name, number = _link(finding)
    names = writer.filesystem.directories.names
    place = name_hash(writer.superblock.hash_seed, name)

    def apply(tx: Transaction) -> None:
        found = names.find(tx, directory, place, lambda entry: entry.name == name)
        record = read_record(writer, tx, number)
        if found is not None and record is not None and found.entry.inode == number:
            entry = Dirent(number, record.mode >> 12, found.entry.index, name)
            names.replace(tx, directory, found, entry)

    await writer.run(apply)


# --- back references ----------------------------------------------------------------------------------


async def add_back_reference(writer: Writer, finding: Finding) -> None:
    """A name without its back reference."""
    directory, name, number = _link(finding)
    directories = writer.filesystem.directories
    place = parent_hash(directories.seed, directory, name)

    def apply(tx: Transaction) -> None:
        if not leads_to(writer, tx, directory, name, number):
            return
        if directories.parents.find(tx, number, place, lambda e: e == (directory, name)) is None:
            directories.parents.add(tx, number, place, (directory, name))

    await writer.run(apply)


async def fix_stale_reference(writer: Writer, finding: Finding) -> None:
    """A back reference without its name: if the name was lost it comes back, else the reference goes."""
    directory, name, number = _link(finding)

    def apply(tx: Transaction) -> None:
        if leads_to(writer, tx, directory, name, number):
            return
        forget(writer, tx, directory, name, number)
        record, holder = (
            read_record(writer, tx, number),
            read_record(writer, tx, directory),
        )
        if record is None or holder is None or not finding.where["lost"]:
            return
        if not stat.S_ISDIR(holder.mode) or number == ROOT_INODE:
            return
        if stat.S_ISDIR(record.mode) and links_of(writer, tx, number):
            return
        directories = writer.filesystem.directories
        if directories.find(tx, directory, name) is None:
            directories.add(tx, directory, name, number, record.mode >> 12)

    await writer.run(apply)


# --- directories --------------------------------------------------------------------------------------


async def fix_root(writer: Writer, finding: Finding) -> None:
    """The root is a directory that is its own parent."""

    def apply(tx: Transaction) -> None:
        record = read_record(writer, tx, ROOT_INODE) or new_record(stat.S_IFDIR | 0o755, 2)
        if not stat.S_ISDIR(record.mode):
            record.mode = stat.S_IFDIR | stat.S_IMODE(record.mode) | 0o700
        record.size_bytes, record.flags = 0, record.flags & ~INODE_INLINE
        record.parent = ROOT_INODE
        put_record(writer, tx, ROOT_INODE, record)

    await writer.run(apply)
    for kind in (Kind.INLINE, Kind.EXTENT):
        await drop_kind(writer, ROOT_INODE, kind)


async def fix_directory_links(writer: Writer, finding: Finding) -> None:
    """A directory keeps one name: the one in what it says is its parent, if there is one there."""
    number = finding.number("inode")

    def apply(tx: Transaction) -> None:
        record = read_record(writer, tx, number)
        links = links_of(writer, tx, number)
        if record is None or not links:
            return
        kept = next((link for link in links if link[0] == record.parent), links[0])
        for link in links:
            if link != kept:
                unname(writer, tx, *link, number)

    await writer.run(apply)


async def break_cycle(writer: Writer, finding: Finding) -> None:
    """A directory that is below itself moves to lost+found, and all the others of the circle with it."""
    number = finding.number("inode")

    def apply(tx: Transaction) -> None:
        for link in links_of(writer, tx, number):
            unname(writer, tx, *link, number)
        _attach(writer, tx, number)

    await writer.run(apply)


# --- without a name -----------------------------------------------------------------------------------


async def attach(writer: Writer, finding: Finding) -> None:
    """An inode without a name gets one in lost+found."""
    number = finding.number("inode")

    def apply(tx: Transaction) -> None:
        if not links_of(writer, tx, number):
            _attach(writer, tx, number)

    await writer.run(apply)


def _attach(writer: Writer, tx: Transaction, number: int) -> None:
    record = read_record(writer, tx, number)
    if record is None or number == ROOT_INODE:
        return
    directories = writer.filesystem.directories
    place = _lost_and_found(writer, tx, number)
    for attempt in range(CANDIDATES):
        name = b"#%d" % number if not attempt else b"#%d-%d" % (number, attempt)
        if directories.find(tx, place, name) is None:
            directories.add(tx, place, name, number, record.mode >> 12)
            return
    raise Corrupted(-1, f"lost+found has {CANDIDATES} names for inode {number}")


def _lost_and_found(writer: Writer, tx: Transaction, lost: int) -> int:
    """The directory lost+found in the root, made where it is missing; not the one that is lost itself."""
    directories = writer.filesystem.directories
    for attempt in range(CANDIDATES):
        name = LOST_AND_FOUND if not attempt else LOST_AND_FOUND + b"-%d" % attempt
        entry = directories.find(tx, ROOT_INODE, name)
        if entry is None:
            if writer.state.next_inode >= MAX_INODE:
                return ROOT_INODE  # no number is left for a directory of its own
            number = writer.filesystem.inodes.take_number()
            record = new_record(stat.S_IFDIR | 0o700, 2)
            record.parent = ROOT_INODE
            put_record(writer, tx, number, record)
            directories.add(tx, ROOT_INODE, name, number, stat.S_IFDIR >> 12)
            return number
        found = read_record(writer, tx, entry.inode)
        if found is not None and stat.S_ISDIR(found.mode) and entry.inode != lost:
            return entry.inode
    raise Corrupted(-1, "every name that lost+found could have is taken by another file")


def _list_orphan(writer: Writer, tx: Transaction, number: int) -> None:
    writer.tree.put(tx, key(0, Kind.ORPHAN, number), b"")


def _unlist_orphan(writer: Writer, tx: Transaction, number: int) -> None:
    writer.tree.delete(tx, key(0, Kind.ORPHAN, number))


async def list_orphan(writer: Writer, finding: Finding) -> None:
    """An inode with link count 0 that is not on the list: it is deleted at the end, as the others."""
    number = finding.number("inode")

    def apply(tx: Transaction) -> None:
        if not links_of(writer, tx, number):
            _list_orphan(writer, tx, number)

    await writer.run(apply)


async def unlist_orphan(writer: Writer, finding: Finding) -> None:
    """The list of orphans names what does not exist."""
    number = finding.number("inode")
    await writer.run(lambda tx: _unlist_orphan(writer, tx, number))


async def keep_orphan(writer: Writer, finding: Finding) -> None:
    """A removed directory with names in it: nobody removed those, so it stays, in lost+found."""
    number = finding.number("inode")

    def apply(tx: Transaction) -> None:
        _unlist_orphan(writer, tx, number)
        if not links_of(writer, tx, number):
            _attach(writer, tx, number)

    await writer.run(apply)
