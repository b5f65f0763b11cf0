"""fallocate, seek and copy against a model of bytes, over holes, unwritten blocks and inline data."""

from __future__ import annotations

import errno
import os
import random

import pytest
from trio.testing import wait_all_tasks_blocked

from nvmefs.attributes import AttributeChanges
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem, Options
from nvmefs.inodes import Inode
from nvmefs.items import EXTENT_UNWRITTEN, INODE_APPEND, INODE_IMMUTABLE, INODE_INLINE
from nvmefs.layout import BLOCK_BYTES, INLINE_BYTES, MAX_FILE_BYTES, ROOT_INODE
from nvmefs.ranges import END
from nvmefs.regions import COPY_BYTES, KEEP_SIZE, PUNCH_HOLE, STEP_BLOCKS, ZERO_RANGE
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace, held_up

FILE = 0o100644
B = BLOCK_BYTES
PUNCH = PUNCH_HOLE | KEEP_SIZE
EDGES = [0, 1, 511, INLINE_BYTES, B - 1, B, B + 1, 2 * B, 3 * B - 1, 3 * B + 5, 5 * B]


async def new_file(filesystem: Filesystem, content: bytes = b"", name: bytes = b"file") -> Inode:
    inode = await filesystem.create(ROOT_INODE, name, FILE, 0, 0)
    if content:
        await filesystem.write(inode.number, 0, content)
    return inode


async def remove(filesystem: Filesystem, inode: Inode) -> None:
    await filesystem.unlink(ROOT_INODE, b"file")
    await filesystem.reap(inode.number)


async def content_of(filesystem: Filesystem, inode: Inode) -> bytes:
    found = await filesystem.read(inode.number, 0, inode.size_bytes + 2 * B)
    assert len(found) == inode.size_bytes
    return found


async def fails(number: int, filesystem: Filesystem, *arguments: int) -> None:
    with pytest.raises(FsError) as caught:
        await filesystem.fallocate(*arguments)
    assert caught.value.errno == number


def changed(content: bytes, mode: int, offset: int, length: int) -> bytes:
    """What fallocate makes of a file."""
    end = offset + length
    if not mode & KEEP_SIZE:
        content = content.ljust(end, b"\0")
    if mode & (PUNCH_HOLE | ZERO_RANGE):
        kept = min(end, len(content))
        content = content[:offset] + bytes(max(kept - offset, 0)) + content[kept:]
    return content


def blocks_of(filesystem: Filesystem, inode: Inode) -> int:
    tx = filesystem.transactions.transaction
    return sum(e.count for e in filesystem.extents.map_range(tx, inode.number, 0, END))


async def stale(filesystem: Filesystem, inode: Inode) -> None:
    """Stale bytes on the device wherever the file's blocks are unwritten."""
    tx = filesystem.transactions.transaction
    for extent in filesystem.extents.map_range(tx, inode.number, 0, END):
        if extent.flags & EXTENT_UNWRITTEN:
            await filesystem.device.write(extent.start, b"\xee" * extent.count * B)


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
@pytest.mark.parametrize("before", [0, 5, INLINE_BYTES, B, 3 * B + 7])
async def test_one_call_at_every_edge(mode: int, before: int) -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        free = filesystem.statfs().free_blocks
        for start in EDGES:
            for end in EDGES:
                if end <= start:
                    continue
                content = b"a" * before
                inode = await new_file(filesystem, content)
                await filesystem.fallocate(inode.number, mode, start, end - start)
                await stale(filesystem, inode)
                content = changed(content, mode, start, end - start)
                assert await content_of(filesystem, inode) == content
                assert inode.blocks == blocks_of(filesystem, inode)
                if not mode & PUNCH_HOLE:
                    wanted = range(start // B, -(-end // B))
                    mapped = await filesystem.files.map(inode, wanted.start, len(wanted))
                    assert sum(extent.count for extent in mapped) == len(wanted)
                await filesystem.setattr(inode.number, AttributeChanges(size=6 * B))
                assert await content_of(filesystem, inode) == content.ljust(6 * B, b"\0")
                await remove(filesystem, inode)
        await filesystem.sync()
        assert abs(filesystem.statfs().free_blocks - free) <= 2  # nodes of the tree
    assert check(namespace.blocks) == []


class Sequence:
    """Random calls in lockstep with a bytearray; remembers nothing of where blocks are."""

    def __init__(self, filesystem: Filesystem, inode: Inode, rng: random.Random) -> None:
        self.filesystem = filesystem
        self.inode = inode
        self.rng = rng
        self.content = b""

    def span(self) -> tuple[int, int]:
        step = self.rng.choice([1, 1, B])
        offset = self.rng.randrange(0, 40 * B) // step * step
        return offset, max(step, self.rng.randrange(1, 12 * B) // step * step)

    async def step(self) -> None:
        offset, length = self.span()
        number = self.inode.number
        kind = self.rng.randrange(10)
        if kind < 5:
            mode = [0, KEEP_SIZE, PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE][kind]
            await self.filesystem.fallocate(number, mode, offset, length)
            self.content = changed(self.content, mode, offset, length)
        elif kind < 8:
            data = self.rng.randbytes(length)
            await self.filesystem.write(number, offset, data)
            self.content = (
                self.content[:offset].ljust(offset, b"\0") + data + self.content[offset + length :]
            )
        elif kind < 9:
            await self.filesystem.setattr(number, AttributeChanges(size=offset))
            self.content = self.content[:offset].ljust(offset, b"\0")
        else:
            await self.copy(offset, length)
        await self.verify()

    async def copy(self, offset: int, length: int) -> None:
        target = self.rng.randrange(50 * B)
        if not (target + length <= offset or offset + length <= target):
            return
        wanted = self.content[offset : offset + length]
        number = self.inode.number
        assert await self.filesystem.copy_range(number, offset, number, target, length) == len(
            wanted
        )
        if wanted:
            before = self.content[:target].ljust(target, b"\0")
            self.content = before + wanted + self.content[target + len(wanted) :]

    async def verify(self) -> None:
        assert await content_of(self.filesystem, self.inode) == self.content
        assert self.inode.blocks == blocks_of(self.filesystem, self.inode)
        at = 0
        while at < len(self.content):  # what is called a hole holds nothing, and the calls go on
            data = await seek(self.filesystem, self.inode, at, os.SEEK_DATA)
            data = len(self.content) if data is None else data
            assert not any(self.content[at:data])
            if data == len(self.content):
                break
            hole = await seek(self.filesystem, self.inode, data, os.SEEK_HOLE)
            assert hole is not None
            assert hole > data
            at = hole


async def seek(filesystem: Filesystem, inode: Inode, offset: int, whence: int) -> int | None:
    """The offset, or None for ENXIO."""
    try:
        return await filesystem.seek(inode.number, offset, whence)
    except FsError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


@pytest.mark.parametrize("seed", range(8))
async def test_random_sequences(seed: int) -> None:
    rng = random.Random(seed)
    namespace = await fresh()
    content = b""
    number = 0
    for _ in range(4):
        async with mounted(namespace) as filesystem:
            number = number or (await new_file(filesystem)).number
            sequence = Sequence(filesystem, await filesystem.getattr(number), rng)
            sequence.content = content
            await sequence.verify()
            for _ in range(25):
                await sequence.step()
            content = sequence.content
        assert check(namespace.blocks) == []


async def test_crash_images_never_show_what_unwritten_blocks_held() -> None:
    """Each byte of a crash image is zero, or one that was written there."""
    rng = random.Random(5)
    namespace = await fresh()
    for number in range(200, namespace.block_count - 1):  # what an earlier owner has left
        namespace.blocks.setdefault(number, b"\xee" * B)
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        for turn in range(120):
            offset, length = rng.randrange(30 * B), rng.randrange(1, 6 * B)
            mode = rng.choice([0, KEEP_SIZE, PUNCH, ZERO_RANGE])
            if turn % 2:
                await filesystem.write(inode.number, offset, b"w" * length)
            else:
                await filesystem.fallocate(inode.number, mode, offset, length)
            if turn % 5 == 0:
                await filesystem.fsync(inode.number)
            copy = namespace.copy()
            after = await Filesystem.open(copy.device(), Options())
            names = [entry.name for _, entry in await after.readdir(ROOT_INODE, 0, 9)]
            if names:
                survivor = await after.getattr(inode.number)
                await after.setattr(inode.number, AttributeChanges(size=40 * B))
                assert set(await content_of(after, survivor)) <= {0, ord("w")}
            await after.close()
            assert check(copy.blocks) == []


async def test_zeroed_blocks_are_not_written_before_the_zeroing_is_committed() -> None:
    """Otherwise a crash would show the new bytes among the old: a state that never was."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem, b"o" * 4 * B)
        await filesystem.sync()
        await filesystem.fallocate(inode.number, ZERO_RANGE, 0, 4 * B)
        commits = filesystem.journal.commits
        await filesystem.write(inode.number, B, b"n" * B)
        assert filesystem.journal.commits == commits + 1
        after = await Filesystem.open(namespace.copy().device(), Options(read_only=True))
        survivor = await after.getattr(inode.number)
        assert set(await content_of(after, survivor)) == {0}


async def test_no_space_changes_nothing() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem, b"x" * 3 * B)
        await filesystem.sync()
        before = filesystem.statfs(), inode.blocks, inode.size_bytes
        available = filesystem.statfs().available_blocks
        for blocks in (available + 10, available * 100, MAX_FILE_BYTES // B):
            await fails(errno.ENOSPC, filesystem, inode.number, 0, 0, blocks * B)
            await filesystem.sync()
            assert (filesystem.statfs(), inode.blocks, inode.size_bytes) == before
        await filesystem.fallocate(inode.number, KEEP_SIZE, 3 * B, (available - 8) * B)
        assert filesystem.statfs().available_blocks <= 8
        await filesystem.write(inode.number, 3 * B, b"y" * 100 * B)  # granted is granted
    assert check(namespace.blocks) == []


async def test_no_space_midway_gives_all_back() -> None:
    """Much of the region is mapped already elsewhere, so that the refusal comes late."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        available = filesystem.statfs().available_blocks
        far = 10 * STEP_BLOCKS
        await filesystem.fallocate(inode.number, KEEP_SIZE, far * B, available // 2 * B)
        await filesystem.sync()
        before = filesystem.statfs().free_blocks, inode.blocks
        await fails(errno.ENOSPC, filesystem, inode.number, 0, 0, (available // 2 + 50) * B)
        await filesystem.sync()
        assert (filesystem.statfs().free_blocks, inode.blocks) == before
    assert check(namespace.blocks) == []


async def test_preallocation_behind_the_end_is_used_and_cut_off() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.fallocate(inode.number, KEEP_SIZE, 0, 100 * B)
        assert (inode.size_bytes, inode.blocks) == (0, 100)
        await filesystem.write(inode.number, 0, b"a" * 10 * B)
        assert inode.blocks == 100
        await filesystem.setattr(inode.number, AttributeChanges(size=50 * B))
        assert inode.blocks == 100
        assert await content_of(filesystem, inode) == (b"a" * 10 * B).ljust(50 * B, b"\0")
        await filesystem.setattr(inode.number, AttributeChanges(size=5 * B))
        assert inode.blocks == 5
    assert check(namespace.blocks) == []


async def test_errors() -> None:
    async with mounted(await fresh()) as filesystem:
        inode = await new_file(filesystem, b"x")
        number = inode.number
        await fails(errno.EINVAL, filesystem, number, 0, 0, 0)
        await fails(errno.EINVAL, filesystem, number, 0xFF, -1, 5)
        for mode in (PUNCH_HOLE, 0x08, 0x20, 0x40, PUNCH | ZERO_RANGE):
            await fails(errno.EOPNOTSUPP, filesystem, number, mode, 0, B)
        await fails(errno.EFBIG, filesystem, number, 0, MAX_FILE_BYTES, 1)
        await fails(errno.EISDIR, filesystem, ROOT_INODE, 0, 0, 1)
        fifo = await filesystem.create(ROOT_INODE, b"fifo", 0o010600, 0, 0)
        await fails(errno.ENODEV, filesystem, fifo.number, 0, 0, 1)
        await filesystem.set_flags(number, INODE_APPEND, privileged=True)
        await filesystem.fallocate(number, KEEP_SIZE, 0, B)
        await fails(errno.EPERM, filesystem, number, PUNCH, 0, B)
        await filesystem.set_flags(number, INODE_IMMUTABLE, privileged=True)
        await fails(errno.EPERM, filesystem, number, KEEP_SIZE, 0, B)
        assert await filesystem.read(number, 0, 9) == b"x"


async def test_seeking() -> None:
    async with mounted(await fresh()) as filesystem:
        inode = await new_file(filesystem)
        assert await seek(filesystem, inode, 0, os.SEEK_DATA) is None
        assert await seek(filesystem, inode, 0, os.SEEK_HOLE) is None
        await filesystem.write(inode.number, 0, b"inline")
        assert inode.flags & INODE_INLINE
        assert await seek(filesystem, inode, 2, os.SEEK_DATA) == 2
        assert await seek(filesystem, inode, 2, os.SEEK_HOLE) == 6
        assert await seek(filesystem, inode, 6, os.SEEK_HOLE) is None
        await filesystem.write(inode.number, 10 * B, b"far")
        await filesystem.fallocate(inode.number, 0, 12 * B, 4 * B)
        assert await seek(filesystem, inode, 6, os.SEEK_HOLE) == B
        assert await seek(filesystem, inode, B, os.SEEK_HOLE) == B
        assert await seek(filesystem, inode, B, os.SEEK_DATA) == 10 * B
        assert await seek(filesystem, inode, 10 * B + 1, os.SEEK_DATA) == 10 * B + 1
        assert await seek(filesystem, inode, 10 * B, os.SEEK_HOLE) == 11 * B
        assert await seek(filesystem, inode, 11 * B, os.SEEK_DATA) is None
        assert await seek(filesystem, inode, 13 * B, os.SEEK_HOLE) == 13 * B
        with pytest.raises(FsError, match="whence"):
            await filesystem.seek(inode.number, 0, os.SEEK_END)


async def test_seeking_through_more_extents_than_one_look_takes() -> None:
    async with mounted(await fresh(20000)) as filesystem:
        inode = await new_file(filesystem)
        await filesystem.fallocate(inode.number, 0, 0, 1400 * B)
        for block in range(0, 1400, 2):
            await filesystem.fallocate(inode.number, PUNCH, block * B, B)
        assert await seek(filesystem, inode, 0, os.SEEK_DATA) is None
        await filesystem.write(inode.number, 1399 * B, b"x")
        assert await seek(filesystem, inode, 0, os.SEEK_DATA) == 1399 * B


async def test_copies() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        source = await new_file(filesystem, b"head", b"source")
        await filesystem.write(source.number, 100 * B + 5, b"tail" * B)
        wanted = await content_of(filesystem, source)
        size = len(wanted)
        for offset in (0, 7, B):
            target = await new_file(filesystem)
            done = await filesystem.copy_range(source.number, 0, target.number, offset, size * 2)
            assert done == size
            assert await content_of(filesystem, target) == bytes(offset) + wanted
            assert target.blocks <= source.blocks + 2
            await remove(filesystem, target)
        assert not await filesystem.copy_range(source.number, size, source.number, 0, 5)
    assert check(namespace.blocks) == []


async def test_a_long_copy_stops_where_its_caller_can_be_interrupted() -> None:
    async with mounted(await fresh()) as filesystem:
        source = await new_file(filesystem, name=b"source")
        await filesystem.setattr(source.number, AttributeChanges(size=4 * COPY_BYTES))
        target = await new_file(filesystem)
        done = await filesystem.copy_range(source.number, 0, target.number, 0, 4 * COPY_BYTES)
        assert done == COPY_BYTES == target.size_bytes
        assert not target.blocks


async def test_a_read_under_way_holds_up_a_punch() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem, b"x" * 4 * B)
        found: list[bytes] = []

        async def read() -> None:
            found.append(await filesystem.read(inode.number, 0, 4 * B))

        async with held_up(namespace, "read") as (nursery, gate):
            nursery.start_soon(read)
            await gate.reached.wait()
            nursery.start_soon(filesystem.fallocate, inode.number, PUNCH, B, B)
            await wait_all_tasks_blocked()
            assert inode.blocks == 4
        assert found == [b"x" * 4 * B]
        assert inode.blocks == 3


async def test_a_read_only_mount_refuses() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem, b"x" * B)
    async with mounted(namespace, Options(read_only=True)) as filesystem:
        await fails(errno.EROFS, filesystem, inode.number, 0, 0, 9 * B)
        await fails(errno.EROFS, filesystem, inode.number, PUNCH, 0, B)


async def test_punching_many_extents_takes_several_operations() -> None:
    namespace: RamNamespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await new_file(filesystem)
        for block in range(0, 600, 2):
            await filesystem.write(inode.number, block * B, b"x")
        await filesystem.fallocate(inode.number, ZERO_RANGE, 0, 601 * B)
        assert inode.blocks == 601
        assert set(await content_of(filesystem, inode)) == {0}
        await filesystem.fallocate(inode.number, PUNCH, 0, 601 * B)
        assert not inode.blocks
    assert check(namespace.blocks) == []
