"""What the scan leaves for the passes after it: a few numbers per inode and per name, in compact arrays.

Below: nothing.  Above: items.py fills it, verify.py reads it.

About 60 bytes an inode and 33 a name, so that a million files fit in 100 MiB. The arrays of one kind run in
parallel: row i of each belongs together. Inodes come in ascending order, so `find` is a binary search.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

MASK64 = 2**64 - 1


class Inodes:
    """One row per INODE record."""

    def __init__(self) -> None:
        self.number = array("Q")
        self.type = array("B")  # mode >> 12
        self.nlink = array("I")
        self.parent = array("Q")  # of directories
        self.entries = array("Q")  # names that the record counts
        self.own_names = array("Q")  # names found in it
        self.back_digest = array("Q")  # of all its back references
        self.back_count = array("I")

    def __len__(self) -> int:
        return len(self.number)

    def find(self, number: int) -> int:
        """The row of inode `number`, or -1."""
        row = bisect_left(self.number, number)
        return row if row < len(self.number) and self.number[row] == number else -1


class Names:
    """One row per directory entry; `leaf` is the node in which it stands."""

    def __init__(self) -> None:
        self.target = array("Q")
        self.directory = array("Q")
        self.type = array("B")
        self.digest = array("Q")
        self.leaf = array("Q")

    def __len__(self) -> int:
        return len(self.target)


class Values:
    """Long attribute values: what attributes claim, and what holders there are."""

    def __init__(self) -> None:
        self.claimed = array("Q")
        self.claimed_bytes = array("I")
        self.claimed_by = array("Q")
        self.holder = array("Q")
        self.holder_bytes = array("I")


class Inventory:
    """All of it."""

    def __init__(self) -> None:
        self.inodes = Inodes()
        self.names = Names()
        self.values = Values()
        self.orphans = array("Q")
        self.highest = 0  # number met anywhere


def digest(target: int, directory: int, name: bytes) -> int:
    """A number for a link, so that sums of them tell whether two sets of links are the same."""
    return hash((target, directory, name)) & MASK64
