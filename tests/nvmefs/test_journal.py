"""Commit, checkpoint and the ring: who waits for what, and what is where afterwards."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nvmefs.errors import DeviceFailed, FsError, ReadOnly
from nvmefs.filesystem import Filesystem, Options
from nvmefs.journal import Journal
from nvmefs.layout import (
    JOURNAL_START,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    MIN_JOURNAL_BLOCKS,
    ROOT_INODE,
    STATE_BLOCK,
    TAGS_PER_HEADER,
    record_blocks,
)
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.ram import Gate, InjectedError, RamNamespace, held_up

FILE = 0o100644
JOURNAL_LAST = JOURNAL_START + MIN_JOURNAL_BLOCKS - 1


async def remounted_names(namespace: RamNamespace) -> list[bytes]:
    """The names in the root after a crash now."""
    filesystem = await Filesystem.open(namespace.copy().device(), Options(read_only=True))
    return sorted(entry.name for _, entry in await filesystem.readdir(ROOT_INODE, 0, 100000))


async def fill(filesystem: Filesystem, number: int, attributes: int) -> None:
    """Grow the tree by some 20 leaves an attribute."""
    for index in range(attributes):
        await filesystem.setxattr(number, b"user.%d" % index, bytes([index]) * 65536)


async def test_one_record_serves_all_who_wait() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        before = filesystem.journal.commits
        done = []

        async def create_and_sync(index: int) -> None:
            inode = await filesystem.create(ROOT_INODE, b"%d" % index, FILE, 0, 0)
            await filesystem.fsync(inode.number)
            done.append(index)

        async with held_up(namespace, "write", JOURNAL_START, JOURNAL_LAST) as (nursery, gate):
            nursery.start_soon(create_and_sync, 0)
            await gate.reached.wait()
            for index in range(1, 50):
                nursery.start_soon(create_and_sync, index)
            await wait_all_tasks_blocked()
            assert not done
        assert len(done) == 50
        assert filesystem.journal.commits - before == 2
        assert len(await remounted_names(namespace)) == 50


async def test_blocks_of_a_commit_under_way_are_not_evicted() -> None:
    """Their home is stale, and so is the journal's older image: reading them back would lose the change."""
    namespace = await fresh(16384)
    async with mounted(namespace, Options(cache_mb=1)) as filesystem:
        other = await filesystem.create(ROOT_INODE, b"other", FILE, 0, 0)
        await fill(filesystem, other.number, 40)
        await filesystem.sync()
        await filesystem.journal.checkpoint()
        inode = await filesystem.create(ROOT_INODE, b"new", FILE, 0, 0)
        async with held_up(namespace, "write", JOURNAL_START, JOURNAL_LAST) as (nursery, gate):
            nursery.start_soon(filesystem.sync)
            await gate.reached.wait()
            evictions = filesystem.cache.evictions
            for _ in range(3):
                for index in range(40):
                    await filesystem.getxattr(other.number, b"user.%d" % index)
            assert filesystem.cache.evictions > evictions
            assert await filesystem.lookup(ROOT_INODE, b"new") is inode
            names = [entry.name for _, entry in await filesystem.readdir(ROOT_INODE, 0, 10)]
            assert sorted(names) == [b"new", b"other"]
    assert check(namespace.blocks) == []


async def test_fsync_waits_for_the_commit_of_an_inode_that_was_forgotten() -> None:
    """An inode leaves memory when nothing keeps it there; a commit under way does."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        number = inode.number
        returned = trio.Event()

        async def sync_again() -> None:
            await filesystem.fsync(number)
            returned.set()

        async with held_up(namespace, "write", JOURNAL_START, JOURNAL_LAST) as (nursery, gate):
            nursery.start_soon(filesystem.fsync, number)
            await gate.reached.wait()
            filesystem.inodes.capacity = filesystem.inodes.trim_at = 1
            await filesystem.getattr(ROOT_INODE)
            filesystem.inodes.trim()
            nursery.start_soon(sync_again)
            await wait_all_tasks_blocked()
            assert not returned.is_set()
        assert returned.is_set()


async def test_the_ring_is_not_overrun_while_a_checkpoint_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A commit that needs room waits for a checkpoint that gives it, not just for any."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await filesystem.sync()
        journal = filesystem.journal
        write_record = journal._write_record
        most = 0

        async def watch(seq: int, images: list[tuple[int, bytes]]) -> None:
            nonlocal most
            most = max(most, journal.used_blocks + record_blocks(len(images)))
            await write_record(seq, images)

        monkeypatch.setattr(journal, "_write_record", watch)
        async with held_up(namespace, "write", JOURNAL_SUPER_A, JOURNAL_SUPER_B) as (nursery, gate):
            nursery.start_soon(journal.checkpoint)
            await gate.reached.wait()
            for index in range(150):
                await filesystem.setxattr(inode.number, b"user.x", b"%d" % index)
                await filesystem.sync()
            assert 400 < journal.used_blocks < MIN_JOURNAL_BLOCKS // 2
            journal.batch_limit_blocks = MIN_JOURNAL_BLOCKS
            await fill(filesystem, inode.number, 35)
            nursery.start_soon(filesystem.sync)
            await wait_all_tasks_blocked()
        assert MIN_JOURNAL_BLOCKS // 2 < most < MIN_JOURNAL_BLOCKS
    assert check(namespace.blocks) == []


async def test_freed_nodes_are_usable_after_release_freed_even_if_a_checkpoint_runs() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await fill(filesystem, inode.number, 4)
        await filesystem.sync()
        async with held_up(namespace, "write", JOURNAL_SUPER_A, JOURNAL_SUPER_B) as (nursery, gate):
            nursery.start_soon(filesystem.journal.checkpoint)
            await gate.reached.wait()
            for index in range(4):
                await filesystem.removexattr(inode.number, b"user.%d" % index)
            nursery.start_soon(filesystem.journal.release_freed)
            await wait_all_tasks_blocked()
            assert filesystem.allocator.held_freed_blocks
        assert filesystem.allocator.held_blocks == 0
        assert filesystem.allocator.held_freed_blocks == 0


async def test_freed_nodes_stay_held_until_the_tail_has_passed() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await fill(filesystem, inode.number, 4)
        await filesystem.sync()
        for index in range(4):
            await filesystem.removexattr(inode.number, b"user.%d" % index)
        held = filesystem.allocator.held_freed_blocks
        assert held > 50
        await filesystem.sync()
        assert filesystem.allocator.held_freed_blocks == held
        async with held_up(namespace, "write", JOURNAL_SUPER_A, JOURNAL_SUPER_B) as (nursery, gate):
            nursery.start_soon(filesystem.journal.checkpoint)
            await gate.reached.wait()
            assert filesystem.allocator.held_freed_blocks == held
        assert filesystem.allocator.held_freed_blocks == 0


async def test_freed_data_is_held_until_the_commit() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await filesystem.write(inode.number, 0, bytes(100 * 4096))
        await filesystem.sync()
        await filesystem.files.truncate(inode.number, 0)
        assert filesystem.allocator.held_freed_blocks == 100
        assert filesystem.statfs().free_blocks == filesystem.state.free_blocks
        await filesystem.sync()
        assert filesystem.allocator.held_freed_blocks == 0


async def test_checkpoint_flushes_between_home_and_tail() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await filesystem.sync()
        namespace.log = []
        await filesystem.journal.checkpoint()
        commands = [event.command for event in namespace.log if not event.ended]
        kinds = [(c.kind, c.block in (JOURNAL_SUPER_A, JOURNAL_SUPER_B)) for c in commands]
        flush = kinds.index(("flush", False))
        assert kinds[-1] == ("write", True)
        assert flush == len(kinds) - 2
        assert set(kinds[:flush]) == {("write", False)}
        assert not any(command.fua for command in commands[:flush])
        assert commands[-1].fua


async def test_a_large_transaction_chains_headers() -> None:
    namespace = await fresh(16384, journal_blocks=4096)
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await filesystem.sync()
        head = filesystem.journal.head
        await fill(filesystem, inode.number, 30)
        await filesystem.sync()
        blocks = filesystem.journal.head - head
        assert blocks - TAGS_PER_HEADER * 2 > 2, "no chain was needed"
        assert record_blocks(blocks - 3) == blocks or record_blocks(blocks - 2) == blocks
        crashed = namespace.copy()
    async with mounted(crashed) as filesystem:
        for index in range(30):
            value = await filesystem.getxattr(inode.number, b"user.%d" % index)
            assert value == bytes([index]) * 65536
    assert check(crashed.blocks) == []
    assert check(namespace.blocks) == []


async def test_the_ring_wraps() -> None:
    """Many times round, with records that cross the end, and a crash after each commit near it."""
    namespace = await fresh()
    wraps = 0
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        for index in range(700):
            head = filesystem.journal.head
            await filesystem.setxattr(inode.number, b"user.x", b"%d" % index * 20)
            if index % 7 == 0:
                await filesystem.setxattr(inode.number, b"user.y", b"%d" % index * 10000)
            await filesystem.sync()
            if filesystem.journal.head < head:
                wraps += 1
                after = await Filesystem.open(namespace.copy().device(), Options(read_only=True))
                assert await after.getxattr(inode.number, b"user.x") == b"%d" % index * 20
    assert wraps >= 2
    assert check(namespace.blocks) == []


@pytest.mark.parametrize("fua", [True, False])
@pytest.mark.parametrize("cache", [True, False])
async def test_flush_and_fua_only_where_the_drive_needs_them(fua: bool, cache: bool) -> None:
    namespace = await fresh(volatile_write_cache=cache)
    filesystem = await Filesystem.open(namespace.device(fua=fua), Options())
    inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
    await filesystem.fsync(inode.number)
    namespace.log = []
    flushes = namespace.flushes
    await filesystem.write(inode.number, 0, bytes(4096))
    await filesystem.fsync(inode.number)
    record = namespace.log[-1].command if fua or not cache else namespace.log[-3].command
    assert JOURNAL_START <= record.block <= JOURNAL_LAST
    assert record.fua == fua
    assert namespace.flushes - flushes == (0 if not cache else 1 if fua else 2)
    await filesystem.fsync(inode.number)
    assert namespace.flushes - flushes == (0 if not cache else 1 if fua else 2)
    await filesystem.close()


@pytest.mark.parametrize("what", ["journal", "home", "tail", "flush", "data"])
async def test_after_a_write_error_it_is_read_only_and_readable(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    namespace = await fresh()
    filesystem = await Filesystem.open(namespace.device(), Options())
    inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
    await filesystem.write(inode.number, 0, b"x" * 5000)
    await filesystem.sync()

    async def fail(kind: str, block: int, count: int) -> None:
        if kind == "read":
            return
        places = {
            "journal": JOURNAL_START <= block <= JOURNAL_LAST,
            "home": block > JOURNAL_LAST or block == STATE_BLOCK,
            "tail": block in (JOURNAL_SUPER_A, JOURNAL_SUPER_B),
            "flush": kind == "flush",
            "data": block > JOURNAL_LAST,
        }
        if places[what]:
            raise InjectedError("write fault")

    namespace.before = fail

    async def change() -> None:
        if what in ("data", "flush"):
            await filesystem.write(inode.number, 4096, b"y" * 100000)
            await filesystem.sync()
        else:
            await filesystem.setxattr(inode.number, b"user.x", b"1")
            await filesystem.sync()
            await filesystem.journal.checkpoint()

    with pytest.raises(DeviceFailed) as failure:
        await change()
    assert failure.value.errno == errno.EIO
    assert "write fault" in (filesystem.journal.failure or "")
    assert sum(record.levelname == "CRITICAL" for record in caplog.records) == 1
    namespace.before = None
    with pytest.raises(ReadOnly):
        await filesystem.create(ROOT_INODE, b"new", FILE, 0, 0)
    with pytest.raises(FsError):
        await filesystem.write(inode.number, 0, b"z")
    with pytest.raises(ReadOnly):
        await filesystem.close()
    assert await filesystem.read(inode.number, 0, 4096) == b"x" * 4096
    assert await filesystem.lookup(ROOT_INODE, b"file") is not None
    async with mounted(namespace.copy()) as after:
        assert (await after.read(inode.number, 0, 9))[:4] == b"xxxx"


async def test_waiters_learn_of_a_failed_commit() -> None:
    namespace = await fresh()
    filesystem = await Filesystem.open(namespace.device(), Options())
    results: list[type[BaseException]] = []
    gate = Gate("write", JOURNAL_START, JOURNAL_LAST)

    async def fail(kind: str, block: int, count: int) -> None:
        await gate(kind, block, count)
        if kind == "write":
            raise InjectedError("write fault")

    namespace.before = fail

    async def work(index: int) -> None:
        inode = await filesystem.create(ROOT_INODE, b"%d" % index, FILE, 0, 0)
        try:
            await filesystem.fsync(inode.number)
        except FsError as error:
            results.append(type(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, 0)
        await gate.reached.wait()
        for index in range(1, 5):
            nursery.start_soon(work, index)
        await wait_all_tasks_blocked()
        gate.open.set()
    assert results.count(DeviceFailed) == 1
    assert results.count(ReadOnly) == 4


async def test_a_cancelled_fsync_does_not_stop_the_commit() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        async with held_up(namespace, "write", JOURNAL_START, JOURNAL_LAST) as (nursery, gate):
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await gate.reached.wait()
                    scope.cancel()
                    gate.open.set()

                nursery.start_soon(cancel)
                await filesystem.fsync(inode.number)
        assert filesystem.journal.writable
        assert await remounted_names(namespace) == [b"file"]


async def test_the_timer_commits(autojump_clock: MockClock) -> None:
    namespace = await fresh()
    filesystem = await Filesystem.open(namespace.device(), Options(commit_s=5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(filesystem.run)
        await filesystem.create(ROOT_INODE, b"one", FILE, 0, 0)
        await trio.sleep(4.9)
        assert await remounted_names(namespace) == []
        await trio.sleep(0.2)
        assert await remounted_names(namespace) == [b"one"]
        commits = filesystem.journal.commits
        await trio.sleep(1000)
        assert filesystem.journal.commits == commits, "nothing changed, and yet it commits"
        inode = await filesystem.create(ROOT_INODE, b"two", FILE, 0, 0)
        await trio.sleep(2)
        await filesystem.fsync(inode.number)
        await filesystem.create(ROOT_INODE, b"three", FILE, 0, 0)
        await trio.sleep(6)
        assert await remounted_names(namespace) == [b"one", b"three", b"two"]
        nursery.cancel_scope.cancel()
    await filesystem.close()


async def test_a_record_larger_than_the_journal_is_refused_not_written() -> None:
    namespace = await fresh()
    filesystem = await Filesystem.open(namespace.device(), Options())
    journal: Journal = filesystem.journal
    journal.batch_limit_blocks = 10**6
    inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
    await filesystem.sync()
    await fill(filesystem, inode.number, 60)
    with pytest.raises(FsError):
        await filesystem.sync()
    assert journal.failure
    assert await remounted_names(namespace) == [b"file"]


async def test_operations_wait_when_the_open_batch_is_large() -> None:
    namespace = await fresh(16384)
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        limit = filesystem.journal.batch_limit_blocks
        largest = 0
        for index in range(100):
            await filesystem.setxattr(inode.number, b"user.%d" % index, bytes(65536))
            largest = max(largest, filesystem.journal.open.size_blocks)
        assert limit <= largest < limit + 64


async def test_a_fault_within_a_commit_is_final() -> None:
    """Were it not, the next commit would acknowledge what this one has lost."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"lost", FILE, 0, 0)

        async def fault(seq: int, images: object) -> None:
            raise ZeroDivisionError("a fault")

        filesystem.journal._write_record = fault  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await filesystem.fsync(inode.number)
        del filesystem.journal._write_record
        with pytest.raises(ReadOnly):
            await filesystem.fsync(inode.number)
        with pytest.raises(ReadOnly):
            await filesystem.create(ROOT_INODE, b"later", FILE, 0, 0)
        filesystem.journal.read_only = True
    assert await remounted_names(namespace) == []
