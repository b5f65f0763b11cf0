"""Lists of named entries under a hash: how directories, back references and attributes find a name.

Below: the item tree.  Above: directories.py, xattrs.py.

An item's key carries the hash of the name, its value the list of all entries with that hash. A list that is
full gets the flag OVERFLOWED for good, and the entry goes to the next hash; so a search goes on to the next
hash only where the flag is set. With a keyed 56-bit hash neither happens unless somebody tries hard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nvmefs.items import OVERFLOWED
from nvmefs.layout import MAX_VALUE_BYTES, OFFSET_MASK, Buffer, Kind, key
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree

E = TypeVar("E")


@dataclass(slots=True)
class Found(Generic[E]):
    """Where an entry stands: the hash of its item, the item's flags and entries, and its place in them."""

    hash: int
    flags: int
    entries: list[E]
    position: int

    @property
    def entry(self) -> E:
        return self.entries[self.position]


class HashedItems(Generic[E]):
    """The items of one kind. `encode(flags, entries)` and `decode(owner, value)` are those of items.py."""

    def __init__(
        self,
        tree: Tree,
        kind: Kind,
        encode: Callable[[int, Sequence[E]], bytes],
        decode: Callable[[int, Buffer], tuple[int, list[E]]],
    ) -> None:
        self.tree = tree
        self.kind = kind
        self.encode = encode
        self.decode = decode

    def find(
        self, tx: Transaction, owner: int, hash56: int, match: Callable[[E], bool]
    ) -> Found[E] | None:
        """The entry of inode `owner` for which `match` holds."""
        while True:
            value = self.tree.get(tx, key(owner, self.kind, hash56))
            if value is None:
                return None
            flags, entries = self.decode(owner, value)
            for position, entry in enumerate(entries):
                if match(entry):
                    return Found(hash56, flags, entries, position)
            if not flags & OVERFLOWED:
                return None
            hash56 = next_hash(hash56)

    def add(
        self,
        tx: Transaction,
        owner: int,
        hash56: int,
        entry: E,
        prepare: Callable[[E, list[E]], bool] = lambda entry, others: True,
    ) -> None:
        """Add an entry that is not there yet. `prepare(entry, others)` may adapt it to the entries it will
        stand with, or refuse them: then it goes to the next hash. Raises NoSpace.
        """
        while True:
            place = key(owner, self.kind, hash56)
            value = self.tree.get(tx, place)
            flags, entries = (0, []) if value is None else self.decode(owner, value)
            if prepare(entry, entries):
                packed = self.encode(flags, [*entries, entry])
                if len(packed) <= MAX_VALUE_BYTES:
                    self.tree.put(tx, place, packed)
                    return
            if not flags & OVERFLOWED:
                self.tree.put(tx, place, self.encode(flags | OVERFLOWED, entries))
            hash56 = next_hash(hash56)

    def replace(self, tx: Transaction, owner: int, found: Found[E], entry: E) -> bool:
        """Put `entry` in the place of the one found. False, and nothing done, if the item is too small."""
        entries = list(found.entries)
        entries[found.position] = entry
        packed = self.encode(found.flags, entries)
        if len(packed) > MAX_VALUE_BYTES:
            return False
        self.tree.put(tx, key(owner, self.kind, found.hash), packed)
        return True

    def remove(self, tx: Transaction, owner: int, found: Found[E]) -> None:
        """Remove the entry found."""
        place = key(owner, self.kind, found.hash)
        entries = [*found.entries[: found.position], *found.entries[found.position + 1 :]]
        if entries or found.flags & OVERFLOWED:
            self.tree.put(tx, place, self.encode(found.flags, entries))
        else:
            self.tree.delete(tx, place)


def next_hash(hash56: int) -> int:
    """Where a name goes on whose item is full. Zero is skipped: its cookies belong to '.' and '..'."""
    return hash56 + 1 & OFFSET_MASK or 1
