"""Inodes in memory: records read from the tree, changed here, and written back when their batch commits.

Below: the item tree through the running transaction.  Above: directories, file, xattrs, filesystem.

    inode = inodes.get(tx, number)           from memory, or decoded from the tree
    tx.touch(inode)                          before the first change of a field
    inode.size_bytes = ...
    inode.changed(now())                     mtime/ctime as the operation demands

An inode that is dirty, locked or without names stays in memory; of the others the oldest go.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Any

from nvmefs._core import lib
from nvmefs.clock import Timestamp
from nvmefs.errors import Corrupted, FsError
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE, InodeRecord
from nvmefs.layout import MAX_INODE, Kind, State, key
from nvmefs.ranges import RangeLock
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree

_FIELDS = tuple(field.name for field in fields(InodeRecord))
_SNAPSHOT = attrgetter(*_FIELDS, "seq", "data_seq", "dirty", "unsaved", "deleted")
_RESTORED = (*_FIELDS, "seq", "data_seq", "dirty", "unsaved", "deleted")


class Inode(InodeRecord):
    """A record with its number and what memory alone knows.

    `seq` and `data_seq` are the batches that last changed anything of it, and its size or block map;
    `shrunk_seq` the one that last cut its last block;
    `written` the device's write ticket of its last data. `ranges` keeps reads, writes and truncations of
    overlapping blocks apart. `published` and `requests` belong to the data plane (dataplane.py). `linkable`:
    link(2) may give it a name though it has none (O_TMPFILE). `group`: where its first data best goes, or of a
    directory that of the files in it; -1: anywhere. `truncating`: its ORPHAN item stands for blocks
    behind its end that are still to be freed.
    """

    __slots__ = (
        "data_seq",
        "deleted",
        "dirty",
        "group",
        "linkable",
        "number",
        "published",
        "ranges",
        "requests",
        "seq",
        "shrunk_seq",
        "streak",
        "tree",
        "truncating",
        "unsaved",
        "unsynced",
        "written",
    )

    def __init__(self, number: int, tree: Tree, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = number
        self.tree = tree
        self.seq = 0
        self.data_seq = 0
        self.shrunk_seq = 0
        self.unsynced = 0  # writes since the last fsync
        self.streak = 0  # fsyncs in succession with one write before each
        self.written = -1  # unknown: data may be unflushed from before it was forgotten
        self.dirty = False
        self.unsaved = False
        self.deleted = False
        self.ranges = RangeLock()
        self.published = False
        self.requests = 0
        self.linkable = False
        self.group = -1
        self.truncating = False

    @property
    def type(self) -> int:
        """The file type as in a directory entry (mode >> 12)."""
        return self.mode >> 12

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def user_flags(self) -> int:
        """The flags that chattr(1) sets."""
        return self.flags & (INODE_APPEND | INODE_IMMUTABLE)

    @property
    def in_use(self) -> bool:
        """Whether somebody works on its data just now, or may without asking."""
        return self.published or self.ranges.busy

    def expects_sync(self, length: int) -> bool:
        """Whether an fsync will follow a write of `length` bytes at once, as it did lately (decision 0022)."""
        return bool(self.streak >= lib.FE_FUA_STREAK and length <= lib.FE_FUA_BYTES)

    def note_sync(self) -> None:
        """Every write is followed by an fsync, or not."""
        if self.unsynced:
            self.streak = self.streak + 1 if self.unsynced == 1 else 0
        self.unsynced = 0

    def snapshot(self) -> tuple[Any, ...]:
        """All that an operation may change, for `restore`."""
        return _SNAPSHOT(self)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        for name, value in zip(_RESTORED, snapshot, strict=True):
            setattr(self, name, value)

    def save(self, tx: Transaction) -> None:
        """Write the record into the tree."""
        if not self.deleted:
            self.tree.put(tx, key(self.number, Kind.INODE), self.encode())

    def changed(self, when: Timestamp, *, content: bool = False) -> None:
        """Set ctime, and mtime if the content changed too; count the change."""
        self.ctime_s, self.ctime_ns = when
        if content:
            self.mtime_s, self.mtime_ns = when
        self.change = self.change + 1 & 2**64 - 1


class Inodes:
    """The inodes in memory, by number."""

    def __init__(self, tree: Tree, state: State, capacity: int = 16384) -> None:
        self.tree = tree
        self.state = state
        self.capacity = capacity
        self.trim_at = capacity
        self.known: dict[int, Inode] = {}

    def get(self, tx: Transaction, number: int) -> Inode:
        """The inode `number`. Raises FsError(ESTALE) if there is none, Corrupted if its record is wrong."""
        inode = self.known.get(number)
        if inode is None:
            value = self.tree.get(tx, key(number, Kind.INODE))
            if value is None:
                raise FsError(errno.ESTALE, f"there is no inode {number}")
            record = InodeRecord.decode(number, value)
            inode = Inode(number, self.tree, *(getattr(record, name) for name in _FIELDS))
            self._remember(inode)
        return inode

    def directory(self, tx: Transaction, number: int) -> Inode:
        """The directory `number`. Raises FsError(ENOTDIR)."""
        inode = self.get(tx, number)
        if not inode.is_dir:
            raise FsError(errno.ENOTDIR, f"inode {number} is not a directory")
        return inode

    def create(self, tx: Transaction, mode: int, uid: int, gid: int, when: Timestamp) -> Inode:
        """A new inode, all its times `when`, with no link yet. Raises NoSpace."""
        number = self.take_number()
        inode = Inode(number, self.tree, mode, 0, uid, gid)
        for name in ("atime", "mtime", "ctime", "btime"):
            setattr(inode, f"{name}_s", when[0])
            setattr(inode, f"{name}_ns", when[1])
        self.tree.insert(tx, key(number, Kind.INODE), inode.encode())
        self.state.inode_count += 1
        self._remember(inode)
        tx.on_undo(lambda: self._forget(number))
        tx.touch(inode)
        return inode

    def take_number(self) -> int:
        """The next unused number; it is never used again. The operation's undo covers the counter."""
        number = self.state.next_inode
        if number >= MAX_INODE:
            raise FsError(errno.ENOSPC, "no inode number is left")
        self.state.next_inode = number + 1
        return number

    def delete(self, tx: Transaction, inode: Inode) -> None:
        """Remove the record; names, data and attributes are gone already."""
        if not self.tree.delete(tx, key(inode.number, Kind.INODE)):
            raise Corrupted(-1, f"inode {inode.number} has no record to delete")
        if not self.state.inode_count:
            raise Corrupted(-1, f"inode {inode.number} exists, and the state counts no inodes")
        tx.touch(inode)
        inode.deleted = True
        self.state.inode_count -= 1
        del self.known[inode.number]
        tx.on_undo(partial(self.known.__setitem__, inode.number, inode))

    def _remember(self, inode: Inode) -> None:
        self.known[inode.number] = inode

    def _forget(self, number: int) -> None:
        self.known.pop(number, None)

    def trim(self) -> None:
        """Between operations: drop the eldest inodes that nothing keeps, down to the capacity.

        Never within one: an operation would change an object that the next `get` no longer finds.
        """
        if len(self.known) <= self.trim_at:
            return
        excess = len(self.known) - self.capacity * 7 // 8
        for number, inode in list(self.known.items()):
            if inode.dirty or inode.unsaved or inode.in_use or not inode.nlink:
                continue
            del self.known[number]
            excess -= 1
            if not excess:
                break
        # Where nothing could go, the next look waits until there is more to look at.
        self.trim_at = max(self.capacity, len(self.known) + self.capacity // 8)
