"""Bugs put in on purpose. Each is one mistake in the order of things that no test without a crash would see.

    with planted("no flush before the record"): ...

The campaign must catch every one of them; a campaign that finds nothing has then looked well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from driver import DmaBuffer
from nvmefs import recovery
from nvmefs.dataplane import DataPlane
from nvmefs.device import Device
from nvmefs.discards import Discards
from nvmefs.file import Files
from nvmefs.filesystem import Filesystem
from nvmefs.inodes import Inode
from nvmefs.journal import Journal
from nvmefs.layout import Buffer, Kind
from nvmefs.transaction import Batch, Transaction
from nvmefs.tree import Tree

Plant = Callable[[pytest.MonkeyPatch], None]


class _EqualToAll(int):
    """A checksum that every other one agrees with."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def no_image_checksum(patch: pytest.MonkeyPatch) -> None:
    """A record counts when its header is whole, whatever became of its images."""
    patch.setattr(recovery, "crc32c", lambda image: _EqualToAll(0))


def _without_flush_in(patch: pytest.MonkeyPatch, caller: str) -> None:
    original, flush = getattr(Journal, caller), Device.flush

    async def work(self: Journal, *args: Any) -> Any:
        async def nothing() -> None:
            return None

        patch.setattr(self.device, "flush", nothing, raising=False)
        try:
            return await original(self, *args)
        finally:
            patch.setattr(self.device, "flush", lambda: flush(self.device))

    patch.setattr(Journal, caller, work)


def no_flush_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """The record that maps new data is durable before the data."""
    _without_flush_in(patch, "_commit")


def tail_before_home(patch: pytest.MonkeyPatch) -> None:
    """The tail passes images whose home writes are still in the drive's cache."""
    _without_flush_in(patch, "_checkpoint")


def tail_before_home_at_mount(patch: pytest.MonkeyPatch) -> None:
    """The same at the end of a replay."""
    _without_flush_in(patch, "recover")


def data_reused_before_commit(patch: pytest.MonkeyPatch) -> None:
    """Freed data blocks are handed out again while a crash can still bring their file back."""

    def free_data(self: Transaction, start: int, count: int) -> None:
        self.allocator.free(self, start, count)

    patch.setattr(Transaction, "free_data", free_data)


def node_reused_before_tail(patch: pytest.MonkeyPatch) -> None:
    """Freed tree nodes are handed out at the commit, while the journal still holds their images."""

    def release(self: Journal, batch: Batch) -> None:
        batch.freed_data += [(number, 1) for number in batch.freed_nodes]
        batch.freed_nodes = []
        original(self, batch)

    original = Journal._release
    patch.setattr(Journal, "_release", release)


def discarded_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The drive is told what a transaction has freed before its record is written."""

    async def freeze(self: Journal) -> tuple[Batch, list[tuple[int, bytes]]]:
        batch, images = await original(self)
        if self.discards is not None and batch.freed_data:
            await self.device.discard(batch.freed_data)
        return batch, images

    original = Journal._freeze
    patch.setattr(Journal, "_freeze", freeze)


def discarded_in_use(patch: pytest.MonkeyPatch) -> None:
    """Blocks are handed out while their discard is under way, or is still to come."""

    def add(self: Discards, runs: list[tuple[int, int]]) -> None:
        original(self, runs)
        self.allocator.release_freed(runs)

    original = Discards.add
    patch.setattr(Discards, "add", add)
    patch.setattr(Discards, "_release", lambda self, runs: None)


def orphan_not_recorded(patch: pytest.MonkeyPatch) -> None:
    """A file without names that was open at the crash is lost, and its blocks with it."""

    def put(self: Tree, store: Any, key: tuple[int, int], value: bytes) -> None:
        if key[1] >> 56 != Kind.ORPHAN:
            original(self, store, key, value)

    original = Tree.put
    patch.setattr(Tree, "put", put)


def record_without_fua(patch: pytest.MonkeyPatch) -> None:
    """fsync returns while the record is in the drive's cache."""

    async def write(self: Device, block: int, data: Buffer | Any, *, fua: bool = False) -> None:
        await original(self, block, data)

    original = Device.write
    patch.setattr(Device, "write", write)


def shrink_not_awaited(patch: pytest.MonkeyPatch) -> None:
    """The last block of a file is written in place while a crash can still bring its longer self back."""
    patch.setattr(Inode, "shrunk_seq", property(lambda self: 0, lambda self, value: None))


def map_before_data(patch: pytest.MonkeyPatch, *, lent_alone: bool = False) -> None:
    """New blocks become part of the file before they hold its data."""

    async def put(self: Files, inode: Inode, start: int, data: Any) -> None:
        lent = isinstance(data, DmaBuffer)
        if lent_alone and not lent:
            await original_put(self, inode, start, data)
        else:
            held_back.append((self, inode, start, bytes(data.view if lent else data)))

    async def fsync(self: Filesystem, number: int, *, data_only: bool = False) -> None:
        await catch_up()
        await original_fsync(self, number, data_only=data_only)

    async def commit(self: Journal) -> None:
        await original_commit(self)
        await catch_up()

    async def read(self: Device, *args: Any, **options: Any) -> bytes:
        await catch_up()
        return await original_read(self, *args, **options)

    async def catch_up() -> None:
        while held_back:
            await original_put(*held_back.pop(0))

    held_back: list[tuple[Files, Inode, int, bytes]] = []
    original_put, original_fsync = Files._put, Filesystem.fsync
    original_commit, original_read = Journal._commit, Device.read
    patch.setattr(Files, "_put", put)
    patch.setattr(Filesystem, "fsync", fsync)
    patch.setattr(Journal, "_commit", commit)
    patch.setattr(Device, "read", read)


def lent_data_after_the_map(patch: pytest.MonkeyPatch) -> None:
    """The same of writes alone whose data lies in the memory of a thread in C."""
    map_before_data(patch, lent_alone=True)


def durable_by_itself_is_not(patch: pytest.MonkeyPatch) -> None:
    """Writes that an fsync is expected to follow are sent without FUA, and not flushed either."""

    async def put(self: Files, inode: Inode, start: int, data: Any) -> None:
        if inode.expects_sync(len(data)):
            await self.device.namespace.write(start * self.device.lbas_per_block, data)
        else:
            await original(self, inode, start, data)

    original = Files._put
    patch.setattr(Files, "_put", put)


def fsync_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    """fsync looks at the data alone."""

    async def fsync(self: Filesystem, number: int, *, data_only: bool = False) -> None:
        await self.device.flush()

    patch.setattr(Filesystem, "fsync", fsync)


def rename_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """The target of a rename is removed in a transaction of its own."""

    async def rename(
        self: Filesystem, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> Any:
        replaced = await self.lookup(new_parent, new_name)
        if not flags and replaced is not None and not replaced.is_dir:
            if replaced is await self.lookup(parent, name):
                return None
            await self.unlink(new_parent, new_name)
            await self.transactions.commit()
        return await original(self, parent, name, new_parent, new_name, flags) or replaced

    original = Filesystem.rename
    patch.setattr(Filesystem, "rename", rename)


def committed_too_early(patch: pytest.MonkeyPatch) -> None:
    """The threads in C take what Python has changed for committed, and answer fsync."""
    committed = DataPlane.committed
    patch.setattr(DataPlane, "committed", lambda self, _: committed(self, 2**60))


def map_not_withdrawn(patch: pytest.MonkeyPatch) -> None:
    """The threads in C go on with a map that has changed."""

    async def withdraw(self: DataPlane, inode: Inode) -> None:
        inode.published = False

    patch.setattr(DataPlane, "withdraw", withdraw)


# Each bug with a workload that showed it; should that no longer do, the campaign goes on with others.
BUGS: dict[str, tuple[Plant, str]] = {
    "no image checksum": (no_image_checksum, "ace-1f"),
    "no flush before the record": (no_flush_before_the_record, "ace-1f"),
    "tail before home": (tail_before_home, "ace-1f"),
    "tail before home, at mount": (tail_before_home_at_mount, "ace-1f"),
    "data reused before commit": (data_reused_before_commit, "long-31"),
    "node reused before the tail has passed": (node_reused_before_tail, "long-223"),
    "discarded before commit": (discarded_before_commit, "long-4"),
    "discarded in use": (discarded_in_use, "long-4"),
    "orphan not recorded": (orphan_not_recorded, "long-0"),
    "record without FUA": (record_without_fua, "ace-1f"),
    "shrink not awaited": (shrink_not_awaited, "ace-15n"),
    "map before data": (map_before_data, "ace-3s"),
    "lent data after the map": (lent_data_after_the_map, "front-1"),
    "durable by itself is not": (durable_by_itself_is_not, "front-0"),
    "fsync does not wait": (fsync_does_not_wait, "ace-1f"),
    "committed too early for the front end": (committed_too_early, "front-2"),
    "map not withdrawn": (map_not_withdrawn, "front-2"),
    "rename in two steps": (rename_in_two_steps, "ace-23f"),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The code with one bug in it."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name][0](patch)
        yield
