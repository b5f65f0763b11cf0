"""Extended attributes of inodes.

Below: hashed.py, inline.py.  Above: filesystem.py.

A value of up to XATTR_IN_ITEM_BYTES stands in the attribute's item. A longer one is cut into INLINE items
under a number of its own, so that it changes atomically with everything else (docs/decisions/0002).
"""

from __future__ import annotations

from collections.abc import Callable

from nvmefs.hashed import HashedItems
from nvmefs.hashing import name_hash
from nvmefs.inline import delete_inline, read_inline, write_inline
from nvmefs.items import XATTR_IN_ITEM_BYTES, Xattr, decode_xattrs, encode_xattrs
from nvmefs.layout import OFFSET_MASK, Kind, key
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree


class Xattrs:
    """Attributes by inode number and full name (`user.comment`)."""

    def __init__(self, tree: Tree, hash_seed: bytes, take_number: Callable[[], int]) -> None:
        self.tree = tree
        self.seed = hash_seed
        self.take_number = take_number
        self.items = HashedItems(tree, Kind.XATTR, encode_xattrs, decode_xattrs)

    def get(self, tx: Transaction, inode: int, name: bytes) -> bytes | None:
        """The value, or None if there is no such attribute."""
        found = self.items.find(tx, inode, name_hash(self.seed, name), lambda a: a.name == name)
        if found is None:
            return None
        entry = found.entry
        if entry.value is not None:
            return entry.value
        return read_inline(self.tree, tx, entry.value_inode, entry.length)

    def set(self, tx: Transaction, inode: int, name: bytes, value: bytes) -> None:
        """Create or replace an attribute. Raises NoSpace."""
        self.remove(tx, inode, name)
        if len(value) <= XATTR_IN_ITEM_BYTES:
            entry = Xattr(name, value, len(value))
        else:
            entry = Xattr(name, None, len(value), self.take_number())
            write_inline(self.tree, tx, entry.value_inode, value)
        self.items.add(tx, inode, name_hash(self.seed, name), entry)

    def remove(self, tx: Transaction, inode: int, name: bytes) -> bool:
        """Remove an attribute; False if there was none."""
        found = self.items.find(tx, inode, name_hash(self.seed, name), lambda a: a.name == name)
        if found is None:
            return False
        if found.entry.value_inode:
            delete_inline(self.tree, tx, found.entry.value_inode)
        self.items.remove(tx, inode, found)
        return True

    def names(self, tx: Transaction, inode: int) -> list[bytes]:
        """All names, in the order of their hashes."""
        first, last = key(inode, Kind.XATTR), key(inode, Kind.XATTR, OFFSET_MASK)
        return [
            entry.name
            for _, value in self.tree.scan(tx, first, last)
            for entry in decode_xattrs(inode, value)[1]
        ]

    def clear(self, tx: Transaction, inode: int, limit: int) -> bool:
        """Remove up to `limit` items of attributes, of an inode that is being deleted; True if none is left."""
        first, last = key(inode, Kind.XATTR), key(inode, Kind.XATTR, OFFSET_MASK)
        removed = self.tree.delete_range(tx, first, last, limit)
        for _, value in removed:
            for entry in decode_xattrs(inode, value)[1]:
                if entry.value_inode:
                    delete_inline(self.tree, tx, entry.value_inode)
        return len(removed) < limit
