"""Inodes that have lost their last name, and files half truncated: deleting them in bounded steps.

Below: the tree, extents.py, xattrs.py, file.py.  Above: filesystem.py.

    await orphans.reap(number)       nobody uses the nameless inode any more
    await orphans.finish()           at mount and unmount: all that an ORPHAN item stands for

Each step is one operation, so that no transaction outgrows the journal; should the power go between two of
them, the ORPHAN item is still there, and the next mount goes on.
"""

from __future__ import annotations

import errno
import logging
from functools import partial

from nvmefs.errors import Corrupted, FsError
from nvmefs.extents import Extents
from nvmefs.file import Files
from nvmefs.inline import delete_inline
from nvmefs.inodes import Inodes
from nvmefs.layout import OFFSET_MASK, Kind, key
from nvmefs.ranges import END
from nvmefs.transaction import Transaction, Transactions
from nvmefs.tree import Tree
from nvmefs.xattrs import Xattrs

log = logging.getLogger("nvmefs")

# How much one operation deletes of an inode; so no transaction outgrows the journal.
REAP_EXTENTS = 64
REAP_XATTRS = 4
REAP_LISTS = 64


class Orphans:
    """What is left of files that are gone."""

    def __init__(
        self,
        tree: Tree,
        inodes: Inodes,
        xattrs: Xattrs,
        extents: Extents,
        files: Files,
        transactions: Transactions,
    ) -> None:
        self.tree = tree
        self.inodes = inodes
        self.xattrs = xattrs
        self.extents = extents
        self.files = files
        self.transactions = transactions

    async def finish(self) -> None:
        """Files that were unlinked but open, or half truncated, when the last mount ended."""
        first, last = key(0, Kind.ORPHAN), key(0, Kind.ORPHAN, OFFSET_MASK)
        orphans = await self.transactions.read(
            lambda tx: [place[1] & OFFSET_MASK for place, _ in self.tree.scan(tx, first, last)]
        )
        for number in orphans:
            step = self._reap_step if await self._is_nameless(number) else self._truncate_step
            while not await self.transactions.run(partial(step, number=number)):
                pass
        if orphans:
            log.info("finished %d orphans", len(orphans))

    async def _is_nameless(self, number: int) -> bool:
        try:
            inode = await self.transactions.read(lambda tx: self.inodes.get(tx, number))
            return not inode.nlink
        except FsError as error:
            if error.errno != errno.ESTALE:
                raise
            raise Corrupted(
                -1, f"inode {number} is listed as an orphan and does not exist: run fsck.nvmefs"
            ) from error

    def _truncate_step(self, tx: Transaction, number: int) -> bool:
        return self.files.unmap_step(tx, self.inodes.get(tx, number))

    async def reap(self, number: int) -> None:
        """Delete an inode that has no name left."""
        while not await self.transactions.run(partial(self._reap_step, number=number)):
            pass

    def _reap_step(self, tx: Transaction, number: int) -> bool:
        """Operation: free some of it; True when nothing is left."""
        tx.may_use_reserve = True
        inode = self.inodes.get(tx, number)
        if inode.nlink:
            return True
        if not self.extents.unmap(tx, inode, 0, END, REAP_EXTENTS):
            return False
        if not self.xattrs.clear(tx, number, REAP_XATTRS):
            return False
        for kind in (Kind.PARENT, Kind.DIRENT):  # what overflowed lists have left, empty
            first, last = key(number, kind), key(number, kind, OFFSET_MASK)
            if len(self.tree.delete_range(tx, first, last, REAP_LISTS)) == REAP_LISTS:
                return False
        delete_inline(self.tree, tx, number)
        self.inodes.delete(tx, inode)
        self.tree.delete(tx, key(0, Kind.ORPHAN, number))
        return True
