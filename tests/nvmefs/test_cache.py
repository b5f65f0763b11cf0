"""Metadata blocks in memory: what is checked, what is shared, what is evicted and what never."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs.attributes import AttributeChanges
from nvmefs.cache import BlockMiss
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.filesystem import Options
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE, BlockType
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.model import FILE
from tests.support.ram import InjectedError, held_up


async def test_the_cache_keeps_its_bound_whatever_is_created() -> None:
    namespace = await fresh(16384)
    async with mounted(namespace, Options(cache_mb=1)) as filesystem:
        limit = filesystem.cache.capacity_blocks + filesystem.journal.batch_limit_blocks + 100
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        for index in range(120):
            await filesystem.setxattr(inode.number, b"user.%d" % index, bytes(65536))
            assert len(filesystem.cache.blocks) <= limit
        for index in range(120):
            assert await filesystem.getxattr(inode.number, b"user.%d" % index) == bytes(65536)
            assert len(filesystem.cache.blocks) <= limit
        assert filesystem.cache.evictions > 1000


async def test_what_waits_for_the_journal_keeps_a_bound_too() -> None:
    """The open batch and the images that are not home, where the journal itself has room for more."""
    namespace = await fresh(40000, journal_blocks=16384)
    async with mounted(namespace, Options(cache_mb=2)) as filesystem:
        cache, journal = filesystem.cache, filesystem.journal
        assert cache.capacity_blocks == 512
        most = 0
        for number in range(3000):
            name = b"%0200d" % number
            inode = await filesystem.create(ROOT_INODE, name, FILE, 0, 0)
            await filesystem.setxattr(inode.number, b"user.a", bytes(900))
            held = len(cache.blocks) + len(journal.images) + journal.open.size_blocks
            most = max(most, held)
        assert len(cache.blocks) <= cache.capacity_blocks + cache.capacity_blocks // 4 + 20
        assert most <= 2 * cache.capacity_blocks
        assert cache.evictions > cache.capacity_blocks


async def test_get_checks_the_type() -> None:
    async with mounted(await fresh()) as filesystem:
        root = filesystem.state.roots[0].block
        with pytest.raises(Corrupted, match="BITMAP must be"):
            filesystem.cache.get(root, BlockType.BITMAP)
        with pytest.raises(BlockMiss):
            filesystem.cache.get(4000, BlockType.NODE)
        with pytest.raises(Corrupted, match="no nvmefs block"):
            await filesystem.cache.load(4000, BlockType.NODE)
        with pytest.raises(Corrupted, match="outside"):
            await filesystem.cache.load(10**9, BlockType.NODE)


async def test_an_operation_that_needs_more_than_the_cache_holds_still_ends() -> None:
    """It would push out its own first blocks while it reads its last ones, again and again."""
    namespace = await fresh(16384)
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        for index in range(600):
            await filesystem.setxattr(inode.number, b"user.%d" % index, bytes(500))
        await filesystem.sync()
        filesystem.cache.capacity_blocks = 16
        filesystem.cache.make_room(0)
        with trio.fail_after(10):
            assert len(await filesystem.listxattr(inode.number)) == 600
            await filesystem.unlink(ROOT_INODE, b"file")
            await filesystem.reap(inode.number)
        assert await filesystem.lookup(ROOT_INODE, b"file") is None
    assert len(filesystem.cache.blocks) <= 20
    assert check(namespace.blocks) == []


async def test_a_commit_ends_though_what_is_dirty_fills_the_cache() -> None:
    """The inodes' leaves are read for the commit; each read must not push out the one before."""
    namespace = await fresh(16384)
    async with mounted(namespace) as filesystem:
        numbers = []
        for index in range(400):
            inode = await filesystem.create(ROOT_INODE, b"%d" % index + b"n" * 200, FILE, 0, 0)
            numbers.append(inode.number)
        await filesystem.sync()
        assert filesystem.state.roots[0].level
        filesystem.cache.capacity_blocks = 4
        for number in numbers:
            await filesystem.setattr(number, AttributeChanges(mode=0o600))
        await filesystem.sync()
        assert len(filesystem.cache.blocks) <= 4
    assert check(namespace.blocks) == []


async def test_dirty_blocks_are_never_evicted() -> None:
    namespace = await fresh(16384)
    async with mounted(namespace, Options(cache_mb=1)) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        dirty = set(filesystem.journal.open.blocks.values())
        filesystem.cache.capacity_blocks = 1
        for _ in range(3):
            filesystem.cache.make_room(1)
        assert dirty <= set(filesystem.cache.blocks.values())
        assert await filesystem.lookup(ROOT_INODE, b"file") is inode


async def test_one_read_serves_all_who_wait() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        root = filesystem.state.roots[0].block
        filesystem.cache.blocks.clear()
        reads = namespace.reads
        async with held_up(namespace, "read", root, root) as (nursery, gate):
            for _ in range(10):
                nursery.start_soon(filesystem.cache.load, root, BlockType.NODE)
            await gate.reached.wait()
            await wait_all_tasks_blocked()
        assert namespace.reads == reads + 1
        assert not filesystem.cache.loading


async def test_what_was_read_is_thrown_away_if_the_place_was_given_away_meanwhile() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        cache = filesystem.cache
        root = filesystem.state.roots[0].block
        cache.blocks.clear()
        async with held_up(namespace, "read", root, root) as (nursery, gate):
            nursery.start_soon(cache.load, root, BlockType.NODE)
            await gate.reached.wait()
            block = cache.add(root, BlockType.NODE)
        assert cache.blocks[root] is block
        assert not any(block.data)
        cache.drop(root)


async def test_a_cancelled_or_failed_read_leaves_the_next_one_alone() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        cache = filesystem.cache
        root = filesystem.state.roots[0].block
        cache.blocks.clear()
        async with held_up(namespace, "read", root, root) as (nursery, gate):
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await gate.reached.wait()
                    nursery.start_soon(filesystem.lookup, ROOT_INODE, b"x")
                    await wait_all_tasks_blocked()
                    scope.cancel()
                    gate.open.set()

                nursery.start_soon(cancel)
                await cache.load(root, BlockType.NODE)
        assert root in cache.blocks
        cache.blocks.clear()

        async def fail(kind: str, block: int, count: int) -> None:
            raise InjectedError("read fault")

        namespace.before = fail
        with pytest.raises(DeviceFailed, match="read fault"):
            await filesystem.lookup(ROOT_INODE, b"x")
        namespace.before = None
        assert await filesystem.lookup(ROOT_INODE, b"x") is None


@pytest.mark.parametrize("at", [0, 5, 9, 33, 41, 57, 100, BLOCK_BYTES - 1])
async def test_no_flipped_bit_is_believed(at: int) -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        root = filesystem.state.roots[0].block
        await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await filesystem.sync()
        await filesystem.journal.checkpoint()
        filesystem.cache.blocks.clear()
        good = namespace.blocks[root]
        namespace.blocks[root] = good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]
        with pytest.raises(Corrupted):
            await filesystem.lookup(ROOT_INODE, b"file")
        namespace.blocks[root] = good
        assert await filesystem.lookup(ROOT_INODE, b"file") is not None


async def test_a_misdirected_write_is_noticed() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        root = filesystem.state.roots[0].block
        namespace.blocks[root + 1] = namespace.blocks[root]
        with pytest.raises(Corrupted, match="misdirected"):
            await filesystem.cache.load(root + 1, BlockType.NODE)
