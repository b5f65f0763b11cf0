"""Names in directories, and the way back from an inode to its names.

Below: hashed.py.  Above: filesystem.py, which checks what is allowed and keeps times and link counts.

    entry = directories.find(tx, directory, b"name")           Dirent or None
    directories.add(tx, directory, b"name", inode)
    directories.remove(tx, directory, b"name")
    for cookie, entry in directories.entries(tx, directory, after): ...

Each name is kept twice: as DIRENT under its directory, as PARENT under its inode. Cookies follow the hash
order, so they stay true while other names come and go; 1 and 2 are '.' and '..'.
"""

from __future__ import annotations

from collections.abc import Iterator

from nvmefs.errors import Corrupted
from nvmefs.hashed import HashedItems
from nvmefs.hashing import name_hash, parent_hash
from nvmefs.items import (
    MAX_NAME_INDEX,
    Dirent,
    decode_dirents,
    decode_parents,
    encode_dirents,
    encode_parents,
)
from nvmefs.layout import OFFSET_MASK, Kind, key
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree

COOKIE_DOT = 1
COOKIE_DOTDOT = 2
INDEX_BITS = 7


def free_index(entry: Dirent, others: list[Dirent]) -> bool:
    """Give `entry` the lowest index that `others` leave free; False if there is none."""
    taken = {other.index for other in others}
    for index in range(MAX_NAME_INDEX + 1):
        if index not in taken:
            entry.index = index
            return True
    return False


class Directories:
    """All names of the filesystem. Inodes are given and returned by number."""

    def __init__(self, tree: Tree, hash_seed: bytes) -> None:
        self.tree = tree
        self.seed = hash_seed
        self.names = HashedItems(tree, Kind.DIRENT, encode_dirents, decode_dirents)
        self.parents = HashedItems(tree, Kind.PARENT, encode_parents, decode_parents)

    def find(self, tx: Transaction, directory: int, name: bytes) -> Dirent | None:
        """The entry `name` of `directory`, or None."""
        found = self.names.find(
            tx, directory, name_hash(self.seed, name), lambda entry: entry.name == name
        )
        return None if found is None else found.entry

    def add(self, tx: Transaction, directory: int, name: bytes, inode: int, type_: int) -> None:
        """Add `name`, which is not there yet, for `inode` of file type `type_`. Raises NoSpace."""
        entry = Dirent(inode, type_, 0, name)
        self.names.add(tx, directory, name_hash(self.seed, name), entry, free_index)
        self._add_parent(tx, inode, directory, name)

    def remove(self, tx: Transaction, directory: int, name: bytes) -> Dirent:
        """Remove `name`, which is there; its entry."""
        found = self.names.find(
            tx, directory, name_hash(self.seed, name), lambda entry: entry.name == name
        )
        if found is None:
            raise Corrupted(-1, f"directory {directory}: {name!r} vanished")
        self.names.remove(tx, directory, found)
        self._remove_parent(tx, found.entry.inode, directory, name)
        return found.entry

    def redirect(
        self, tx: Transaction, directory: int, name: bytes, inode: int, type_: int
    ) -> Dirent:
        """Let the existing `name` stand for another inode; the entry as it was. Its cookie stays."""
        found = self.names.find(
            tx, directory, name_hash(self.seed, name), lambda entry: entry.name == name
        )
        if found is None:
            raise Corrupted(-1, f"directory {directory}: {name!r} vanished")
        old = found.entry
        self.names.replace(tx, directory, found, Dirent(inode, type_, old.index, name))
        self._remove_parent(tx, old.inode, directory, name)
        self._add_parent(tx, inode, directory, name)
        return old

    def entries(self, tx: Transaction, directory: int, after: int) -> Iterator[tuple[int, Dirent]]:
        """(cookie, entry) of all names with a cookie above `after`, ascending; '.' and '..' are not here."""
        first = key(directory, Kind.DIRENT, max(after, 0) >> INDEX_BITS)
        last = key(directory, Kind.DIRENT, OFFSET_MASK)
        for place, value in self.tree.scan(tx, first, last):
            hash56 = place[1] & OFFSET_MASK
            _, entries = decode_dirents(directory, value)
            entries.sort(key=lambda entry: entry.index)
            told = -1
            for entry in entries:
                cookie = hash56 << INDEX_BITS | entry.index
                if cookie == told:
                    raise Corrupted(-1, f"directory {directory}: two names have cookie {cookie}")
                told = cookie
                if cookie > after:
                    yield cookie, entry

    def links(self, tx: Transaction, inode: int) -> Iterator[tuple[int, bytes]]:
        """(directory, name) of every name of `inode`."""
        first, last = key(inode, Kind.PARENT), key(inode, Kind.PARENT, OFFSET_MASK)
        for _, value in self.tree.scan(tx, first, last):
            yield from decode_parents(inode, value)[1]

    def _add_parent(self, tx: Transaction, inode: int, directory: int, name: bytes) -> None:
        place = parent_hash(self.seed, directory, name)
        self.parents.add(tx, inode, place, (directory, name))

    def _remove_parent(self, tx: Transaction, inode: int, directory: int, name: bytes) -> None:
        link = (directory, name)
        place = parent_hash(self.seed, directory, name)
        found = self.parents.find(tx, inode, place, lambda entry: entry == link)
        if found is None:
            raise Corrupted(-1, f"inode {inode}: no back reference to {name!r} in {directory}")
        self.parents.remove(tx, inode, found)
