"""Which files the front end serves without Python: publishing their block maps, and taking them back.

Below: core/datamap.c.  Above: file.py, which says when a map is true and when it is about to change.

    plane.offer(inode, extents)            the map is true: the front end may read and overwrite
    await plane.withdraw(inode)            returns when no request uses the map any more

A published file is served without its range lock. So whoever changes its map, its size or a part of a block
holds the range exclusively and withdraws first; a file is offered only while nobody holds a range of it
exclusively. What the front end writes counts in the device's ledger (core/ledger.h). What it reads it marks;
access times follow when somebody asks for attributes, and when the file is withdrawn.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from nvmefs._core import ffi, lib
from nvmefs.errors import DeviceFailed
from nvmefs.items import EXTENT_UNWRITTEN, Extent

if TYPE_CHECKING:
    from nvmefs.inodes import Inode

log = logging.getLogger("nvmefs.dataplane")

MAX_FILES = 4096
MAX_EXTENTS = 65536  # of one file
CAPACITY_EXTENTS = 1 << 18  # of all files, unless told otherwise
EXTENT_BYTES = ffi.sizeof("struct dm_extent")
OFFER_EXTENTS = 16  # extents that are looked at in the time that one request takes
OFFER_AFTER = 4  # requests that Python has served; a file read once from end to end is not worth it


class DataPlane:
    """The published maps. `drain` must run in the background while there are any.

    `capacity_extents` bounds what all maps take together; those published first go. `before_waking` is called
    whenever requests have let go of files, before those who waited go on.
    """

    def __init__(self, capacity_extents: int = CAPACITY_EXTENTS) -> None:
        self.capacity_extents = capacity_extents
        self.most_extents = min(MAX_EXTENTS, capacity_extents)
        self.extents = 0  # published
        self.drain_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.map: Any = lib.dm_new(self.drain_fd)
        if self.map == ffi.NULL:
            raise MemoryError("no memory for the table of published files")
        self.enabled = True
        self.ended = False
        self.before_waking: Callable[[], None] = lambda: None
        self.on_read: Callable[[int, int], object] = lambda number, ns: None
        self._published: dict[int, tuple[Inode, int]] = {}  # and extents; the first one comes first
        self._draining = trio.lowlevel.ParkingLot()

    def may_offer(self, inode: Inode) -> bool:
        """Whether the file may be offered now, before its extents are looked at."""
        return self.enabled and not inode.published and not inode.ranges.exclusive

    def _fits(self, extents: int) -> bool:
        files = int(lib.dm_count(self.map))
        return files < MAX_FILES and self.extents + extents <= self.capacity_extents

    def _make_room(self, extents: int) -> bool:
        """Whether there is room for one more file, when such as nobody is using have gone."""
        if self._fits(extents):
            return True
        for inode, _ in list(self._published.values()):
            if lib.dm_evict(self.map, inode.number):
                self._forget(inode)
                if self._fits(extents):
                    return True
        return False

    def _forget(self, inode: Inode) -> None:
        """The front end has let go of the file."""
        _, extents = self._published.pop(inode.number, (inode, 0))
        self.extents -= extents
        inode.published = False
        inode.requests = min(inode.requests, 0)
        inode.written = -1  # the front end may have written: flush all
        self._collect_departed()

    def take_read(self, inode: Inode) -> int:
        """When the front end last read a published file, in ns; 0: not since this was asked last."""
        return int(lib.dm_take_read(self.map, inode.number))

    def collect(self) -> None:
        """Tell `on_read` of all files that were read; they are published no more. The threads have ended."""
        self.disable()
        self._collect_departed()

    def _collect_departed(self) -> None:
        number, ns = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        while lib.dm_next_departed(self.map, number, ns):
            self.on_read(number[0], ns[0])

    def offer(self, inode: Inode, extents: Sequence[Extent]) -> None:
        """Publish a file, all of whose extents are given, unless there is a reason not to: too many of them
        are one, which is looked at seldom.
        """
        if len(extents) > self.most_extents:
            inode.requests = -len(extents)
            return
        inode.requests = -(len(extents) // OFFER_EXTENTS)
        written = [extent for extent in extents if not extent.flags & EXTENT_UNWRITTEN]
        if not self.may_offer(inode) or not self._make_room(len(written)):
            return
        table = ffi.new("struct dm_extent[]", max(len(written), 1))
        for row, extent in zip(table, written, strict=False):
            row.file_block, row.start, row.count = extent.file_block, extent.start, extent.count
        if not lib.dm_publish(self.map, inode.number, inode.size_bytes, table, len(written)):
            inode.published = True
            self._published[inode.number] = inode, len(written)
            self.extents += len(written)
            self.changed(inode)

    def changed(self, inode: Inode) -> None:
        """A batch that is not committed yet has changed a published file: its fsync is ours until then."""
        lib.dm_change(self.map, inode.number, inode.seq, inode.data_seq)

    def committed(self, seq: int) -> None:
        """All batches up to this one are durable."""
        lib.dm_commit(self.map, seq)

    async def withdraw(self, inode: Inode) -> None:
        """Return when the front end neither uses the file's map nor will.

        Raises DeviceFailed if it has ended with commands under way: who knows what they still do.
        """
        if not inode.published:
            return
        # Asked again each time: while one waits another may have published the file anew.
        while lib.dm_withdraw(self.map, inode.number):
            if self.ended:
                raise DeviceFailed(f"inode {inode.number}: commands for it never completed")
            await self._draining.park()
        self._forget(inode)

    def disable(self) -> None:
        """Publish nothing any more; what is published is used no more. Does not wait."""
        self.enabled = False
        lib.dm_withdraw_all(self.map)

    def end(self) -> None:
        """The threads have ended: nobody will let go of anything any more."""
        self.ended = True
        self.disable()
        self._draining.unpark_all()

    async def drain(self) -> None:
        """Wake those who wait in withdraw; runs until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.drain_fd)
            os.eventfd_read(self.drain_fd)
            self.before_waking()
            self._draining.unpark_all()

    def close(self) -> None:
        """The front end has ended."""
        lib.dm_free(self.map)
        os.close(self.drain_fd)
