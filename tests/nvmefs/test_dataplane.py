"""Publishing and withdrawing, with the test as the front end's thread."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs._core import lib
from nvmefs.attributes import AttributeChanges
from nvmefs.clock import now
from nvmefs.dataplane import OFFER_AFTER, DataPlane
from nvmefs.errors import DeviceFailed, FsError
from nvmefs.filesystem import Filesystem
from nvmefs.inodes import Inode
from nvmefs.items import Extent
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE
from nvmefs.operations import Operations
from nvmefs.transaction import Transaction
from tests.support.images import fresh, mounted

FILE = 0o100644
NS = 1_000_000_000
CLOCK_REALTIME_COARSE = 5  # <linux/time.h>


@asynccontextmanager
async def published_file(blocks: int = 8) -> AsyncIterator[tuple[Filesystem, DataPlane, Inode]]:
    """A filesystem with a file that the front end has the map of."""
    async with mounted(await fresh()) as filesystem:
        plane = filesystem.files.plane = DataPlane()
        filesystem.journal.on_failure = plane.disable
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.drain)
            inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
            await filesystem.write(inode.number, 0, b"x" * blocks * BLOCK_BYTES)
            await publish(filesystem, inode)
            yield filesystem, plane, inode
            nursery.cancel_scope.cancel()
        filesystem.files.plane = None
        plane.close()


async def publish(filesystem: Filesystem, inode: Inode) -> None:
    for _ in range(OFFER_AFTER):
        await filesystem.read(inode.number, 0, BLOCK_BYTES)
    assert inode.published


def acquire(plane: DataPlane, inode: Inode) -> Any:
    return lib.dm_acquire(plane.map, inode.number)


async def test_a_change_of_the_map_waits_for_requests_under_way() -> None:
    async with published_file() as (filesystem, plane, inode):
        file = acquire(plane, inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filesystem.files.truncate, inode.number, 0)
            await wait_all_tasks_blocked()
            assert inode.size_bytes == 8 * BLOCK_BYTES
            assert not acquire(plane, inode)
            lib.dm_release(plane.map, file)
        assert inode.size_bytes == 0
        assert not inode.published


async def test_the_file_published_first_makes_room_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one that is being used; and what the front end has written of it counts as unflushed."""
    monkeypatch.setattr("nvmefs.dataplane.MAX_FILES", 2)
    async with published_file() as (filesystem, plane, used):
        file = acquire(plane, used)
        inodes = []
        for name in (b"second", b"third"):
            inode = await filesystem.create(ROOT_INODE, name, FILE, 0, 0)
            await filesystem.write(inode.number, 0, b"x" * 8 * BLOCK_BYTES)
            await publish(filesystem, inode)
            inodes.append(inode)
        assert [inode.published for inode in (used, *inodes)] == [True, False, True]
        assert lib.dm_count(plane.map) == 2
        assert inodes[0].written == -1
        assert not acquire(plane, inodes[0])
        both = [file, acquire(plane, inodes[1])]
        for _ in range(2 * OFFER_AFTER):
            await filesystem.read(inodes[0].number, 0, BLOCK_BYTES)
        assert not inodes[0].published  # both are in use
        for each in both:
            lib.dm_release(plane.map, each)
        await publish(filesystem, inodes[0])
        assert not used.published


async def test_who_waits_without_a_lock_sees_the_file_published_again() -> None:
    """forget() withdraws without holding a range: meanwhile others withdraw and publish."""
    async with published_file() as (filesystem, plane, inode):
        first = acquire(plane, inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filesystem.forgotten, inode.number)
            await wait_all_tasks_blocked()
            inode.published = False  # as another does whose request was the last one waited for
            lib.dm_release(plane.map, first)
            await publish(filesystem, inode)
            second = acquire(plane, inode)
            await wait_all_tasks_blocked()
            if second:
                lib.dm_release(plane.map, second)
        assert bool(inode.published) == bool(lib.dm_count(plane.map))


async def test_after_a_failure_nothing_bypasses_it() -> None:
    async with published_file() as (filesystem, plane, inode):
        filesystem.journal.fail("a test says so")
        assert not acquire(plane, inode)
        for _ in range(2 * OFFER_AFTER):
            await filesystem.read(inode.number, 0, BLOCK_BYTES)
        assert not acquire(plane, inode)
        filesystem.journal.read_only = True  # close() has nothing to do


async def test_waiting_ends_with_the_front_end() -> None:
    async with published_file() as (filesystem, plane, inode):
        file = acquire(plane, inode)
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                with pytest.raises(DeviceFailed):
                    await filesystem.files.truncate(inode.number, 0)

            nursery.start_soon(cut)
            await wait_all_tasks_blocked()
            plane.end()
        assert not inode.ranges.busy
        lib.dm_release(plane.map, file)
        await filesystem.files.truncate(inode.number, 0)


async def test_what_was_lost_is_known_before_anybody_goes_on() -> None:
    async with published_file() as (filesystem, plane, inode):
        file = acquire(plane, inode)
        plane.before_waking = lambda: filesystem.journal.fail("a command was lost")
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                with pytest.raises(FsError):
                    await filesystem.files.truncate(inode.number, 0)

            nursery.start_soon(cut)
            await wait_all_tasks_blocked()
            lib.dm_release(plane.map, file)
        filesystem.journal.read_only = True


async def test_overwriting_publishes() -> None:
    async with published_file() as (filesystem, plane, inode):
        await plane.withdraw(inode)
        for _ in range(OFFER_AFTER):
            await filesystem.write(inode.number, 0, b"y" * BLOCK_BYTES)
        assert inode.published


async def test_a_file_of_many_extents_is_not_published_over_and_over() -> None:
    """Looking at all extents is paid for by requests before it is done again."""
    async with published_file() as (filesystem, _, inode):
        for block in range(1000, 4200, 2):
            await filesystem.write(inode.number, block * BLOCK_BYTES, b"z" * BLOCK_BYTES)
        looked = 0
        each = filesystem.extents.each

        def counting(tx: Transaction, number: int) -> Iterator[Extent]:
            nonlocal looked
            looked += 1
            return each(tx, number)

        filesystem.extents.each = counting  # type: ignore[method-assign]
        for _ in range(100):
            await filesystem.write(inode.number, 5, b"a part of a block")
            for _ in range(OFFER_AFTER):
                await filesystem.read(inode.number, 0, BLOCK_BYTES)
        assert 1 <= looked <= 8


# --- bounds --------------------------------------------------------------------------------------------


async def fragmented(filesystem: Filesystem, name: bytes, extents: int) -> Inode:
    """A file whose every other block is there."""
    inode = await filesystem.create(ROOT_INODE, name, FILE, 0, 0)
    for index in range(extents):
        await filesystem.write(inode.number, 2 * index * BLOCK_BYTES, b"x" * BLOCK_BYTES)
    return inode


async def test_maps_take_no_more_than_they_may() -> None:
    async with published_file() as (filesystem, plane, first):
        plane.capacity_extents = plane.most_extents = 100
        inodes = [await fragmented(filesystem, b"%d" % index, 40) for index in range(5)]
        for inode in inodes:
            await publish(filesystem, inode)
            published = [each for each in (first, *inodes) if each.published]
            assert plane.extents == sum(1 if each is first else 40 for each in published)
            assert plane.extents <= 100
        assert [inode.published for inode in inodes] == [False, False, False, True, True]
        files = [acquire(plane, inodes[3]), acquire(plane, inodes[4])]
        for _ in range(2 * OFFER_AFTER):
            await filesystem.read(inodes[0].number, 0, BLOCK_BYTES)
        assert not inodes[0].published  # the others are in use
        for file in files:
            lib.dm_release(plane.map, file)
        await filesystem.forgotten(inodes[3].number)
        assert plane.extents == 40


async def test_of_a_file_of_too_many_extents_not_all_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with published_file() as (filesystem, plane, _):
        plane.capacity_extents = plane.most_extents = 100
        inode = await fragmented(filesystem, b"many", 300)
        looked_at = 0
        decode = filesystem.extents._decode

        def counted(number: int, file_block: int, value: bytes) -> Extent:
            nonlocal looked_at
            looked_at += 1
            return decode(number, file_block, value)

        monkeypatch.setattr(filesystem.extents, "_decode", counted)
        inode.requests = OFFER_AFTER
        for _ in range(50):
            await filesystem.read(inode.number, 0, BLOCK_BYTES)
        assert not inode.published
        assert looked_at < 101 + 2 * 50 + 10


# --- access times --------------------------------------------------------------------------------------


def read_by_c(plane: DataPlane, inode: Inode) -> None:
    file = acquire(plane, inode)
    lib.dm_mark_read(file)
    lib.dm_release(plane.map, file)


async def old(filesystem: Filesystem, inode: Inode) -> None:
    """The file was read long ago, and changed later."""
    long_ago = AttributeChanges(atime=(1000, 0), mtime=(2000, 0), ctime=(2000, 0))
    await filesystem.setattr(inode.number, long_ago)


async def test_a_read_by_c_sets_atime_when_attributes_are_asked_for() -> None:
    async with published_file() as (filesystem, plane, inode):
        plane.on_read = filesystem.access_times.served
        operations = Operations(filesystem)
        await old(filesystem, inode)
        before_ns = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        assert operations.attributes(inode).st_atime_ns == 1000 * NS
        read_by_c(plane, inode)
        assert (inode.atime_s, inode.atime_ns) == (1000, 0)  # nobody has asked
        first = operations.attributes(inode).st_atime_ns
        assert before_ns <= first
        assert (inode.atime_s, inode.atime_ns) <= now()
        assert inode.published
        read_by_c(plane, inode)
        again = operations.attributes(inode).st_atime_ns
        assert again == first  # relatime: it is newer than the change


async def test_what_was_read_is_known_after_the_map_is_gone_and_after_the_mount() -> None:
    namespace = await fresh()
    numbers = []
    for way in ("withdrawn", "while requests are under way", "at the end"):
        async with mounted(namespace) as filesystem:
            plane = filesystem.files.plane = DataPlane()
            plane.on_read = filesystem.access_times.served
            inode = await filesystem.create(ROOT_INODE, way.encode(), FILE, 0, 0)
            numbers.append(inode.number)
            await filesystem.write(inode.number, 0, b"x" * 8 * BLOCK_BYTES)
            await publish(filesystem, inode)
            await old(filesystem, inode)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.drain)
                if way == "while requests are under way":
                    file = acquire(plane, inode)
                    nursery.start_soon(filesystem.forgotten, inode.number)
                    await wait_all_tasks_blocked()
                    lib.dm_mark_read(file)
                    lib.dm_release(plane.map, file)
                    await wait_all_tasks_blocked()
                else:
                    read_by_c(plane, inode)
                if way == "withdrawn":
                    await filesystem.forgotten(inode.number)
                    assert inode.atime_s > 2000
                nursery.cancel_scope.cancel()
            plane.collect()
            filesystem.files.plane = None
            plane.close()
    async with mounted(namespace) as filesystem:
        for number in numbers:
            assert (await filesystem.getattr(number)).atime_s > 2000


async def test_a_read_follows_the_change_that_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the clock that C reads may be a tick behind the one that stamps files, or before it."""
    async with published_file() as (filesystem, _, inode):
        for changed_ns, read_ns, atime_ns in (
            (50 * NS, 50 * NS - 3_000_000, 50 * NS),
            (60 * NS, 60 * NS + 1, 60 * NS + 1),
            (70 * NS, 69 * NS, 69 * NS),  # read before it, indeed
            (80 * NS, 999 * NS, 90 * NS),
        ):
            changed = divmod(changed_ns, NS)
            changes = AttributeChanges(atime=(1, 0), mtime=changed, ctime=changed)
            await filesystem.setattr(inode.number, changes)
            with monkeypatch.context() as patch:
                patch.setattr("nvmefs.atime.now", lambda: (90, 0))
                assert filesystem.access_times.served(inode.number, read_ns)
            assert inode.atime_s * NS + inode.atime_ns == atime_ns


async def test_times_that_are_set_win_over_reads_before() -> None:
    async with published_file() as (filesystem, plane, inode):
        plane.on_read = filesystem.access_times.served
        read_by_c(plane, inode)
        await filesystem.setattr(inode.number, AttributeChanges(atime=(5, 6)))
        assert Operations(filesystem).attributes(inode).st_atime_ns == 5 * NS + 6


async def test_a_batch_that_is_full_gets_the_time_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the kernel, which was told the old one, is told to ask anew."""
    told: list[int] = []
    async with published_file() as (filesystem, plane, inode):
        plane.on_read = filesystem.access_times.served
        await old(filesystem, inode)
        operations = Operations(filesystem)
        monkeypatch.setattr(operations.stale, "add", told.append)
        read_by_c(plane, inode)
        with monkeypatch.context() as patch:
            patch.setattr(filesystem.journal, "batch_limit_blocks", 0)
            assert operations.attributes(inode).st_atime_ns == 1000 * NS
        assert told == [inode.number]
        await filesystem.sync()
        assert inode.atime_s > 2000
        assert operations.attributes(inode).st_atime_ns > 2000 * NS
        assert told == [inode.number]


async def test_reads_of_a_file_that_is_gone() -> None:
    async with published_file() as (filesystem, plane, inode):
        plane.on_read = filesystem.access_times.served
        read_by_c(plane, inode)
        await filesystem.unlink(ROOT_INODE, b"file")
        await filesystem.reap(inode.number)
        assert filesystem.access_times.served(inode.number, 5 * NS)
        assert not filesystem.access_times.unsaved
