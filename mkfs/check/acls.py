"""Access control lists: each makes sense, and a default list belongs to a directory.

Below: findings.py, nvmefs.acl.  Above: items.py, which shows it the attributes and inline pieces it comes by.

A list of more than some sixty entries stands in inline pieces under a number that is higher than its file's, as
it was taken later; so the pieces are met afterwards.
"""

from __future__ import annotations

import stat

from mkfs.check.findings import Findings
from nvmefs import acl
from nvmefs.errors import FsError
from nvmefs.items import InodeRecord, Xattr

LISTS = (acl.ACCESS, acl.DEFAULT)


class AclCheck:
    """All lists of a filesystem."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.holders: dict[int, tuple[int, bytes]] = {}
        self.number = 0
        self.pieces = b""

    def attribute(self, inode: int, record: InodeRecord | None, attribute: Xattr) -> None:
        """An attribute of `inode`."""
        if attribute.name not in LISTS:
            return
        if attribute.name == acl.DEFAULT and record and not stat.S_ISDIR(record.mode):
            self.report(inode, attribute.name, "of a file that is no directory")
        elif attribute.value is not None:
            self.look(inode, attribute.name, attribute.value)
        else:
            self.holders[attribute.value_inode] = inode, attribute.name

    def piece(self, number: int, data: bytes) -> None:
        """A piece of inline data; those of one number come together."""
        if number in self.holders:
            self.pieces = self.pieces + data if number == self.number else data
            self.number = number

    def end(self, number: int) -> None:
        """All pieces of `number` have been seen."""
        if number in self.holders and number == self.number:
            self.look(*self.holders.pop(number), self.pieces)

    def look(self, inode: int, name: bytes, value: bytes) -> None:
        try:
            acl.decode(value)
        except FsError as error:
            self.report(inode, name, str(error))

    def report(self, inode: int, name: bytes, fault: str) -> None:
        self.findings.add(
            "xattr-acl", f"inode {inode}: {name.decode()}: {fault}", inode=inode, name=name
        )
