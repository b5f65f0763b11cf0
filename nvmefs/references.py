"""What the kernel knows of inodes, and what follows when it does not any more.

Below: filesystem.py, lookups.py.  Above: operations.py.

    await references.forget(17, 1)          one reference less; an inode without names goes with the last
    await references.reap_unused(inode)     a name was removed: the inode goes if nobody knows it
    stale.add(17)                           the kernel is told, a moment later, that its attributes are old
"""

from __future__ import annotations

import logging

import trio

from nvmefs.answers import forget_attributes
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem
from nvmefs.inodes import Inode
from nvmefs.lookups import Lookups
from nvmefs.requests import Complaints

log = logging.getLogger("nvmefs.operations")

STALE_S = 1.0


class References:
    """Lookup counts going down, and the inodes that are deleted when they reach zero.

    A look at the count and what follows from it have no await between them.
    """

    def __init__(self, filesystem: Filesystem, lookups: Lookups, complaints: Complaints) -> None:
        self.fs = filesystem
        self.lookups = lookups
        self.complaints = complaints

    async def forget(self, number: int, count: int) -> None:
        """The kernel drops `count` references."""
        left = self.lookups.get(number, 0) - count
        if left > 0:
            self.lookups[number] = left
            return
        self.lookups.pop(number, None)
        await self._release(number)

    async def reap_unused(self, inode: Inode | None) -> None:
        """An inode has lost a name: without names and references it is deleted."""
        if inode is not None and not inode.nlink and inode.number not in self.lookups:
            await self._release(inode.number)

    async def _release(self, number: int) -> None:
        """The kernel has no use for the inode: it is deleted if it has no name."""
        inode = self.fs.inodes.known.get(number)  # without names it is always in memory
        if inode is None or (inode.nlink and not inode.published):
            return
        if inode.nlink:
            await self.fs.forgotten(number)
        else:
            await self._reap(number)

    async def _reap(self, number: int) -> None:
        """Delete an inode that nobody uses; should that fail, the next mount does it."""
        try:
            await self.fs.reap(number)
        except FsError as error:
            self.complaints.about("operations.forget", error)
        except Exception:
            log.exception("inode %d could not be deleted; the next mount will try again", number)


class StaleAttributes:
    """Inodes of which the kernel holds attributes that have changed without its knowledge."""

    def __init__(self) -> None:
        self._inodes: set[int] = set()
        self._any = trio.Event()

    def add(self, number: int) -> None:
        self._inodes.add(number)
        self._any.set()

    async def run(self) -> None:
        """Tell the kernel to ask anew, once a second at most, for ever."""
        while True:
            await self._any.wait()
            await trio.sleep(STALE_S)
            self._any = trio.Event()
            while self._inodes:
                forget_attributes(self._inodes.pop())
