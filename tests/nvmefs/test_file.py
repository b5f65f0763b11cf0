"""Bytes of files: every way a write, a read or a truncation can lie over blocks, holes and inline data."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs.errors import FsError, NoSpace
from nvmefs.filesystem import Filesystem, Options
from nvmefs.inodes import Inode
from nvmefs.items import EXTENT_UNWRITTEN, INODE_INLINE, Extent
from nvmefs.layout import BLOCK_BYTES, INLINE_BYTES, MAX_FILE_BYTES, ROOT_INODE, Kind, key
from nvmefs.transaction import Transaction
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace, held_up

FILE = 0o100644
B = BLOCK_BYTES
EDGES = sorted(
    {0, 1, 511, 512, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1}
    | {n * B + d for n in (1, 2, 3) for d in (-1, 0, 1)}
)


async def new_file(filesystem: Filesystem, name: bytes = b"file") -> Inode:
    return await filesystem.create(ROOT_INODE, name, FILE, 0, 0)


def overlay(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def cut(content: bytes, size: int) -> bytes:
    return content[:size].ljust(size, b"\0")


async def require(filesystem: Filesystem, inode: Inode, content: bytes) -> None:
    """The file holds exactly `content`, and no byte more can be read."""
    assert inode.size_bytes == len(content)
    found = await filesystem.read(inode.number, 0, len(content) + 2 * B)
    assert len(found) == len(content)
    assert found == content


async def after_crash(namespace: RamNamespace, number: int) -> bytes:
    filesystem = await Filesystem.open(namespace.copy().device(), Options(read_only=True))
    size = (await filesystem.getattr(number)).size_bytes
    return await filesystem.read(number, 0, size)


async def punch(filesystem: Filesystem, inode: Inode, first: int, last: int) -> None:
    """A hole, through the extent map; the data plane has no call for it."""

    def apply(tx: Transaction) -> None:
        while not filesystem.extents.unmap(tx, inode, first, last, 64):
            pass

    await filesystem.transactions.run(apply)


async def map_unwritten(filesystem: Filesystem, inode: Inode, first: int, count: int) -> None:
    """Blocks that are allocated and read as zeroes, over stale bytes on the device."""

    def apply(tx: Transaction) -> list[tuple[int, int]]:
        at = first
        runs = filesystem.allocator.reserve(tx, count)
        for start, length in runs:
            filesystem.allocator.claim(tx, start, length)
            filesystem.extents.map_write(tx, inode, Extent(at, start, length, EXTENT_UNWRITTEN))
            at += length
        return runs

    for start, length in await filesystem.transactions.run(apply):
        await filesystem.device.write(start, b"\xee" * length * B)


@pytest.mark.parametrize("before", [0, 5, INLINE_BYTES, B, 2 * B + 7])
async def test_one_write_at_every_edge(before: int) -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        for offset in EDGES:
            for length in (1, 512, B - 1, B, B + 1, 2 * B):
                inode = await new_file(filesystem)
                content = b"a" * before
                await filesystem.write(inode.number, 0, content)
                await filesystem.write(inode.number, offset, b"b" * length)
                await require(filesystem, inode, overlay(content, offset, b"b" * length))
                await filesystem.unlink(ROOT_INODE, b"file")
                await filesystem.reap(inode.number)
    assert check(namespace.blocks) == []


async def test_truncations_between_all_edges() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        for first in EDGES:
            for second in EDGES:
                inode = await new_file(filesystem)
                await filesystem.write(inode.number, 0, b"x" * (3 * B + 1))
                content = b"x" * (3 * B + 1)
                for size in (first, second, 4 * B):
                    await filesystem.files.truncate(inode.number, size)
                    content = cut(content, size)
                    await require(filesystem, inode, content)
                await filesystem.unlink(ROOT_INODE, b"file")
                await filesystem.reap(inode.number)
    assert check(namespace.blocks) == []


async def test_inline_truncations_between_all_edges() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        for first in EDGES:
            for second in EDGES:
                inode = await new_file(filesystem)
                content = b"x" * 700
                await filesystem.write(inode.number, 0, content)
                for size in (first, second):
                    await filesystem.files.truncate(inode.number, size)
                    content = cut(content, size)
                    await require(filesystem, inode, content)
                await filesystem.write(inode.number, 10, b"more")
                await require(filesystem, inode, overlay(content, 10, b"more"))
                await filesystem.unlink(ROOT_INODE, b"file")
                await filesystem.reap(inode.number)
    assert check(namespace.blocks) == []


@pytest.mark.parametrize("seed", range(6))
async def test_random_sequences(seed: int) -> None:
    rng = random.Random(seed)
    namespace = await fresh()
    inode: Inode | None = None
    content = b""
    for _ in range(4):
        async with mounted(namespace, Options(cache_mb=1)) as filesystem:
            if inode is None:
                inode = await new_file(filesystem)
            number = inode.number
            inode = await filesystem.getattr(number)
            for _ in range(60):
                offset = rng.choice([rng.randrange(20 * B), rng.choice(EDGES)])
                length = rng.choice([1, 100, 512, B, rng.randrange(1, 6 * B)])
                action = rng.choice("wwwwttphuar")
                if action == "w":
                    data = bytes([rng.randrange(1, 256)]) * length
                    await filesystem.write(number, offset, data)
                    content = overlay(content, offset, data)
                elif action == "a":
                    await filesystem.write(number, len(content), b"+" * length)
                    content += b"+" * length
                elif action == "t":
                    await filesystem.files.truncate(number, offset)
                    content = cut(content, offset)
                elif action in "ph" and len(content) > 2 * B and inode.blocks:
                    first = rng.randrange(len(content) // B)
                    await punch(filesystem, inode, first, first)
                    content = overlay(content, first * B, bytes(B))
                elif action == "u" and inode.blocks and len(content) > 3 * B:
                    first = rng.randrange(len(content) // B)
                    await punch(filesystem, inode, first, first)
                    await map_unwritten(filesystem, inode, first, 1)
                    content = overlay(content, first * B, bytes(B))
                elif action == "r":
                    found = await filesystem.read(number, offset, length)
                    assert found == content[offset : offset + length]
            await require(filesystem, inode, content)
            assert filesystem.allocator.held_blocks == filesystem.allocator.held_freed_blocks
        assert check(namespace.blocks) == []
        assert await after_crash(namespace, number) == content


async def test_a_partial_write_into_unwritten_blocks_does_not_show_what_was_there() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, b"x" * B)
        await filesystem.files.truncate(inode.number, 8 * B)
        await map_unwritten(filesystem, inode, 1, 6)
        content = b"x" * B + bytes(7 * B)
        await require(filesystem, inode, content)
        for offset, length in ((2 * B + 100, 50), (3 * B - 10, 20), (6 * B, 2 * B), (B, 1)):
            await filesystem.write(inode.number, offset, b"w" * length)
            content = overlay(content, offset, b"w" * length)
            await require(filesystem, inode, content)
        assert inode.blocks == 8


async def test_extending_over_an_unwritten_last_block() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.files.truncate(inode.number, 100)
        await map_unwritten(filesystem, inode, 0, 1)
        await filesystem.files.truncate(inode.number, 3 * B)
        await filesystem.write(inode.number, 2 * B, b"x")
        await require(filesystem, inode, bytes(2 * B) + b"x" + bytes(B - 1))


async def test_holes_and_far_offsets() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, MAX_FILE_BYTES - 10, b"0123456789")
        assert inode.size_bytes == MAX_FILE_BYTES
        assert inode.blocks == 1
        assert await filesystem.read(inode.number, MAX_FILE_BYTES - 12, 100) == b"\0\x000123456789"
        with pytest.raises(FsError) as caught:
            await filesystem.write(inode.number, MAX_FILE_BYTES - 10, b"0123456789a")
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(FsError) as caught:
            await filesystem.files.truncate(inode.number, MAX_FILE_BYTES + 1)
        assert caught.value.errno == errno.EFBIG
        await filesystem.files.truncate(inode.number, 0)
        assert inode.blocks == 0
    assert check(namespace.blocks) == []


async def test_a_file_in_many_pieces_is_cut_in_bounded_steps() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        for index in range(600):
            await filesystem.write(inode.number, index * 2 * B, b"x")
        assert inode.blocks == 600
        await filesystem.sync()
        operations = filesystem.journal.open.operations
        await filesystem.files.truncate(inode.number, 100 * 2 * B)
        assert filesystem.journal.open.operations - operations >= 500 // 64
        assert inode.blocks == 100
        await filesystem.unlink(ROOT_INODE, b"file")
        await filesystem.reap(inode.number)
    assert check(namespace.blocks) == []


async def test_a_crash_amid_the_steps_is_finished_at_the_next_mount() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        for index in range(300):
            await filesystem.write(inode.number, index * 2 * B, b"x")
        await filesystem.sync()
        step = filesystem.files.unmap_step
        crashed: list[RamNamespace] = []

        def first_step_then_copy(tx: Transaction, inode: Inode) -> bool:
            filesystem.journal.open.forced = True
            return step(tx, inode)

        async def crash(inode: Inode) -> None:
            await filesystem.sync()
            crashed.append(namespace.copy())
            while not await filesystem.transactions.run(lambda tx: first_step_then_copy(tx, inode)):
                await filesystem.sync()
                crashed.append(namespace.copy())

        filesystem.files._unmap_behind_end = crash  # type: ignore[method-assign]
        await filesystem.files.truncate(inode.number, 10 * 2 * B)
    assert len(crashed) > 3
    for image in crashed:
        async with mounted(image) as filesystem:
            again = await filesystem.getattr(inode.number)
            assert (again.size_bytes, again.blocks) == (20 * B, 10)
        assert check(image.blocks) == []


async def test_cutting_an_unlinked_file_leaves_it_an_orphan() -> None:
    """The steps of a truncation end with the orphan item's removal, but not when it stands for a lost name."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        for index in range(200):
            await filesystem.write(inode.number, index * 2 * B, b"x")
        await filesystem.unlink(ROOT_INODE, b"file")
        await filesystem.files.truncate(inode.number, 5 * B)
        await filesystem.sync()
        crashed = namespace.copy()
    async with mounted(crashed) as filesystem:
        assert filesystem.state.inode_count == 1
    assert check(crashed.blocks) == []


async def test_no_write_is_cut_short_when_space_is() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        big = filesystem.statfs().available_blocks * B
        with pytest.raises(NoSpace):
            await filesystem.write(inode.number, 0, b"x" * (big + B))
        assert (inode.size_bytes, inode.blocks) == (0, 0)
        assert filesystem.allocator.held_blocks == 0
        await filesystem.write(inode.number, 0, b"x" * (big - 8 * B))
        await require(filesystem, inode, b"x" * (big - 8 * B))
        size = inode.size_bytes
        with pytest.raises(NoSpace):
            await filesystem.write(inode.number, size - 100, b"y" * 64 * B)
        await require(filesystem, inode, b"x" * (big - 8 * B))
    assert check(namespace.blocks) == []


async def test_the_last_free_block_can_be_written() -> None:
    """What was promised is there: mapping the blocks needs none that they themselves seem to take."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, b"x" * B)
        content = b"y" * (filesystem.statfs().available_blocks + 1) * B
        await filesystem.write(inode.number, 0, content)
        await require(filesystem, inode, content)
        with pytest.raises(NoSpace):
            await filesystem.write(inode.number, len(content), b"z")
    assert check(namespace.blocks) == []


async def test_full_and_freed_and_full_again() -> None:
    """Freed blocks serve again at once: ENOSPC first waits for the commit that releases them."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        chunk = 64 * B
        sizes = []
        for _ in range(4):
            inode = await new_file(filesystem)
            size = 0
            with pytest.raises(NoSpace):  # noqa: PT012
                while True:
                    await filesystem.write(inode.number, size, b"x" * chunk)
                    size += chunk
            sizes.append(size)
            assert inode.size_bytes == size
            await filesystem.unlink(ROOT_INODE, b"file")
            await filesystem.reap(inode.number)
        assert len(set(sizes)) == 1
        assert sizes[0] > 10 << 20
    assert check(namespace.blocks) == []


async def test_a_full_filesystem_still_removes_and_truncates() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        names = []
        with pytest.raises(NoSpace):  # noqa: PT012
            for index in range(100000):
                inode = await new_file(filesystem, b"%d" % index)
                names.append((b"%d" % index, inode.number))
                await filesystem.write(inode.number, 0, b"x" * 3 * B)
                await filesystem.write(inode.number, 5 * B, b"x")
        await filesystem.files.truncate(names[0][1], 1)
        for name, number in names:
            await filesystem.unlink(ROOT_INODE, name)
            await filesystem.reap(number)
        assert filesystem.state.inode_count == 1
    assert check(namespace.blocks) == []
    async with mounted(namespace) as filesystem:
        assert filesystem.state.free_blocks == filesystem.statfs().free_blocks


async def test_a_crash_before_a_shrink_is_committed_brings_the_old_bytes_back() -> None:
    """Bytes behind an uncommitted end are still the file's, should the shrinking not survive."""
    growths: list[Callable[[Filesystem, int], object]] = [
        lambda fs, number: fs.files.truncate(number, 2 * B),
        lambda fs, number: fs.write(number, 100, b"new"),
        lambda fs, number: fs.write(number, 3000, b"new"),
        lambda fs, number: fs.write(number, 5 * B, b"new"),
        lambda fs, number: fs.write(number, 0, b"x"),
    ]
    for grow in growths:
        namespace = await fresh()
        async with mounted(namespace) as filesystem:
            inode = await new_file(filesystem)
            content = bytes(range(256)) * 32
            await filesystem.write(inode.number, 0, content)
            await filesystem.fsync(inode.number)
            await filesystem.files.truncate(inode.number, 100)
            commits = filesystem.journal.commits
            await grow(filesystem, inode.number)  # type: ignore[misc]
            survived = await after_crash(namespace, inode.number)
            if filesystem.journal.commits == commits:
                assert survived[1:] == content[1:]
            else:
                assert len(survived) < len(content) or survived[100:] != content[100:]
                assert survived[1:100] == content[1:100]


async def test_growing_appends_do_not_commit() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, b"x" * 1000)
        commits = filesystem.journal.commits
        for _ in range(50):
            await filesystem.write(inode.number, inode.size_bytes, b"x" * 1000)
        await filesystem.files.truncate(inode.number, 0)
        await filesystem.write(inode.number, 0, b"x" * 9000)
        await filesystem.files.truncate(inode.number, B)
        await filesystem.write(inode.number, 0, b"x" * 9000)
        assert filesystem.journal.commits == commits


async def test_data_is_on_the_device_before_it_is_mapped() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        async with held_up(namespace, "write") as (nursery, gate):
            nursery.start_soon(filesystem.write, inode.number, 0, b"x" * 3 * B)
            await gate.reached.wait()
            assert (inode.size_bytes, inode.blocks) == (0, 0)
            assert filesystem.allocator.held_blocks == 3
        assert filesystem.allocator.held_blocks == 0
        assert inode.blocks == 3


@pytest.mark.parametrize("kind", ["new", "in place"])
async def test_a_write_that_is_cancelled_keeps_its_blocks_until_it_is_done(kind: str) -> None:
    """The drive goes on with it: the blocks must not become those of another meanwhile."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        if kind == "in place":
            await filesystem.write(inode.number, 0, b"a" * 4 * B)
        before = filesystem.allocator.held_blocks
        scope = trio.CancelScope()

        async def write() -> None:
            with scope:
                await filesystem.write(inode.number, 0, b"b" * 4 * B)

        async with held_up(namespace, "write") as (nursery, _gate):
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            held = filesystem.allocator.held_blocks - before
            exclusive = inode.ranges.exclusive
        assert held == (4 if kind == "new" else 0)
        assert exclusive
        assert filesystem.allocator.held_blocks == before
        assert not inode.ranges.busy
        await filesystem.write(inode.number, 0, b"c" * 10)
        await require(filesystem, inode, overlay(b"b" * 4 * B, 0, b"c" * 10))


async def test_writes_apart_do_not_wait_for_each_other() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, bytes(100 * B))
        done = []

        async def write(block: int) -> None:
            await filesystem.write(inode.number, block * B, b"x" * B)
            done.append(block)

        extent = (await filesystem.files.map(inode, 10, 1))[0]
        async with held_up(namespace, "write", extent.start, extent.start) as (nursery, gate):
            nursery.start_soon(write, 10)
            await gate.reached.wait()
            for block in (9, 11, 50):
                nursery.start_soon(write, block)
            await wait_all_tasks_blocked()
            assert sorted(done) == [9, 11, 50]


@pytest.mark.parametrize("seed", range(4))
async def test_concurrent_tasks_never_see_a_mixture(seed: int) -> None:
    """Writers of whole ranges, readers, truncators at once: each block read is one writer's, or zeroes."""
    rng = random.Random(seed)
    namespace = await fresh()

    async def yields(kind: str, block: int, count: int) -> None:
        for _ in range(rng.randrange(3)):
            await trio.lowlevel.checkpoint()

    async with mounted(namespace) as filesystem:
        namespace.before = yields
        inode = await new_file(filesystem)

        async def writer(mark: int) -> None:
            for _ in range(30):
                block = rng.randrange(8)
                await filesystem.write(inode.number, block * B, bytes([mark]) * B * 2)

        async def reader() -> None:
            for _ in range(30):
                block = rng.randrange(8)
                data = await filesystem.read(inode.number, block * B, B)
                assert len(set(data)) <= 1

        async def truncator() -> None:
            for _ in range(15):
                await filesystem.files.truncate(inode.number, rng.randrange(10) * B)

        async def syncer() -> None:
            for _ in range(10):
                await filesystem.fsync(inode.number)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for mark in range(1, 5):
                nursery.start_soon(writer, mark)
                nursery.start_soon(reader)
            nursery.start_soon(truncator)
            nursery.start_soon(syncer)
        assert not inode.ranges.busy
        assert filesystem.allocator.held_blocks == filesystem.allocator.held_freed_blocks
        namespace.before = None
    assert check(namespace.blocks) == []


async def test_a_read_that_waited_stays_inside_of_what_it_holds() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, b"a" * B)
        lengths = []

        async def read() -> None:
            lengths.append(len(await filesystem.read(inode.number, 0, 10 * B)))

        async with held_up(namespace, "write") as (nursery, gate):
            nursery.start_soon(filesystem.write, inode.number, 0, b"b" * 5 * B)
            await gate.reached.wait()
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
        assert lengths == [B]


async def test_inline_data_spills_and_empties() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, b"x" * INLINE_BYTES)
        assert inode.flags & INODE_INLINE
        assert inode.blocks == 0
        await filesystem.write(inode.number, INLINE_BYTES, b"y")
        assert not inode.flags & INODE_INLINE
        assert inode.blocks == 1
        await require(filesystem, inode, b"x" * INLINE_BYTES + b"y")
        await filesystem.files.truncate(inode.number, 0)
        assert inode.blocks == 0
        await filesystem.write(inode.number, 3, b"z")
        assert inode.flags & INODE_INLINE
        await require(filesystem, inode, b"\0\0\0z")
        piece = filesystem.tree.get(
            filesystem.transactions.transaction, key(inode.number, Kind.INLINE)
        )
        assert piece == b"\0\0\0z"


async def test_inline_data_and_the_write_that_outgrows_it_go_together() -> None:
    """Otherwise a crash could show the new bytes in a file that still has its old size."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        for offset in (0, 10, INLINE_BYTES, 2000, B - 1):
            inode = await new_file(filesystem)
            await filesystem.write(inode.number, 0, b"x" * 700)
            operations = filesystem.journal.open.operations
            writes = namespace.writes
            await filesystem.write(inode.number, offset, b"y" * 5000)
            await require(filesystem, inode, overlay(b"x" * 700, offset, b"y" * 5000))
            assert filesystem.journal.open.operations == operations + 1
            assert namespace.writes == writes + 1
            await filesystem.unlink(ROOT_INODE, b"file")
            await filesystem.reap(inode.number)


async def test_fdatasync_commits_sizes_and_not_times() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.write(inode.number, 0, b"x" * B)
        await filesystem.fsync(inode.number, data_only=True)
        assert await after_crash(namespace, inode.number) == b"x" * B
        commits = filesystem.journal.commits
        await filesystem.write(inode.number, 0, b"y" * B)
        await filesystem.fsync(inode.number, data_only=True)
        assert filesystem.journal.commits == commits
        assert await after_crash(namespace, inode.number) == b"y" * B
        await filesystem.fsync(inode.number)
        assert filesystem.journal.commits == commits + 1
        await filesystem.files.truncate(inode.number, 10)
        await filesystem.fsync(inode.number, data_only=True)
        assert await after_crash(namespace, inode.number) == b"y" * 10


@pytest.mark.parametrize("honoured", [True, False])
async def test_a_log_is_synced_without_a_flush(honoured: bool) -> None:
    """Each write but the first few has FUA, as every fsync shows that one follows (decision 0022)."""
    namespace = await fresh()
    filesystem = await Filesystem.open(namespace.device(fua=honoured), Options())
    inode = await new_file(filesystem)

    async def append(*, synced: bool = True) -> str:
        namespace.log = []
        await filesystem.write(inode.number, inode.size_bytes, b"x" * B)
        if synced:
            await filesystem.fsync(inode.number)
        commands = [event.command for event in namespace.log if event.ended]
        return " ".join("fua" if command.fua else command.kind for command in commands)

    found = [await append() for _ in range(6)]
    if not honoured:
        assert set(found) == {"write flush write flush"}
    else:
        assert found == ["write flush fua"] * 3 + ["fua fua"] * 3
        assert await append(synced=False) == "fua"
        assert await append() == "fua fua"
        assert await append() == "write flush fua"  # two writes before the last fsync
    assert check(namespace.blocks) == []
    await filesystem.close()
