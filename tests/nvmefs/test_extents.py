"""Block maps against a dict of blocks: merging, splitting, cutting out, and what is freed."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise

import pytest

from nvmefs.errors import Corrupted
from nvmefs.extents import Extents
from nvmefs.filesystem import Filesystem
from nvmefs.inodes import Inode
from nvmefs.items import EXTENT_UNWRITTEN, Extent
from nvmefs.layout import GROUP_BLOCKS, ROOT_INODE, Kind, key
from nvmefs.ranges import END
from nvmefs.transaction import Transaction
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.model import FILE

Blocks = dict[int, tuple[int, int]]  # file block: (device block, flags)


class Map:
    """One file's map, changed through Extents and, in step, as a dict."""

    def __init__(self, filesystem: Filesystem, inode: Inode) -> None:
        self.filesystem = filesystem
        self.extents: Extents = filesystem.extents
        self.inode = inode
        self.blocks: Blocks = {}

    async def map(self, first: int, start: int, count: int, flags: int = 0) -> None:
        def apply(tx: Transaction) -> None:
            self.filesystem.allocator.use(tx, start, count)
            self.extents.map_write(tx, self.inode, Extent(first, start, count, flags))

        await self.filesystem.transactions.run(apply)
        for index in range(count):
            self.blocks[first + index] = (start + index, flags)

    async def unmap(self, first: int, last: int, limit: int = 1000) -> bool:
        free = self.filesystem.state.free_blocks
        before = self.count()
        done = await self.filesystem.transactions.run(
            lambda tx: self.extents.unmap(tx, self.inode, first, last, limit)
        )
        if done:
            self.blocks = {b: at for b, at in self.blocks.items() if not first <= b <= last}
        else:
            self.blocks = self.expand(await self.stored())
        assert self.filesystem.state.free_blocks - free == before - self.count()
        return done

    async def written(self, first: int, count: int) -> None:
        await self.filesystem.transactions.run(
            lambda tx: self.extents.mark_written(tx, self.inode, first, count)
        )
        for block in range(first, first + count):
            self.blocks[block] = (self.blocks[block][0], 0)

    async def stored(self) -> list[Extent]:
        return await self.filesystem.transactions.read(
            lambda tx: self.extents.map_range(tx, self.inode.number, 0, END)
        )

    def count(self) -> int:
        return len(self.blocks)

    @staticmethod
    def expand(extents: list[Extent]) -> Blocks:
        return {
            extent.file_block + index: (extent.start + index, extent.flags)
            for extent in extents
            for index in range(extent.count)
        }

    async def require(self, pieces: int | None = None) -> None:
        stored = await self.stored()
        assert self.expand(stored) == self.blocks
        assert sum(extent.count for extent in stored) == self.count() == self.inode.blocks
        for left, right in pairwise(stored):
            assert left.end <= right.file_block
            assert (left.end, left.start + left.count, left.flags) != (
                right.file_block,
                right.start,
                right.flags,
            ) or left.start // GROUP_BLOCKS != right.start // GROUP_BLOCKS, (
                "two neighbours that are one"
            )
        if pieces is not None:
            assert len(stored) == pieces


async def new_map(filesystem: Filesystem) -> Map:
    inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
    await filesystem.files.truncate(inode.number, 1 << 40)
    return Map(filesystem, inode)


async def test_neighbours_merge_on_both_sides() -> None:
    async with mounted(await fresh()) as filesystem:
        m = await new_map(filesystem)
        await m.map(10, 2010, 5)
        await m.map(20, 2020, 5)
        await m.require(2)
        await m.map(15, 2015, 5)
        await m.require(1)
        await m.map(9, 2009, 1)
        await m.map(25, 2025, 1)
        await m.require(1)
        await m.map(26, 2030, 1)
        await m.require(2)
        await m.map(27, 2031, 1, EXTENT_UNWRITTEN)
        await m.require(3)


async def test_extents_do_not_merge_over_the_end_of_a_group() -> None:
    async with mounted(await fresh(2 * GROUP_BLOCKS)) as filesystem:
        m = await new_map(filesystem)
        await m.map(0, GROUP_BLOCKS - 4, 4)
        await m.map(4, GROUP_BLOCKS + 2, 4)
        await m.require(2)


async def test_cutting_out_of_the_middle() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        m = await new_map(filesystem)
        await m.map(0, 2000, 100)
        for first, last, pieces in ((50, 50, 2), (0, 9, 2), (90, 99, 2), (20, 30, 3), (0, END, 0)):
            assert await m.unmap(first, last)
            await m.require(pieces)
    assert check(namespace.blocks) == []


async def test_marking_written_in_parts() -> None:
    async with mounted(await fresh()) as filesystem:
        m = await new_map(filesystem)
        await m.map(0, 2000, 30, EXTENT_UNWRITTEN)
        await m.map(30, 2100, 30, EXTENT_UNWRITTEN)
        for first, count, pieces in ((10, 5, 4), (0, 3, 5), (3, 7, 3), (25, 10, 5), (15, 10, 3)):
            await m.written(first, count)
            await m.require(pieces)
        await m.written(0, 60)
        await m.require(2)


async def test_the_limit_bounds_a_step_and_the_end_goes_first() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        m = await new_map(filesystem)
        for index in range(20):
            await m.map(index * 2, 2000 + index * 2, 1)
        assert not await m.unmap(5, END, 4)
        assert sorted(m.blocks) == [index * 2 for index in range(16)]
        assert not await m.unmap(5, END, 4)
        assert await m.unmap(5, END, 9)
        assert sorted(m.blocks) == [0, 2, 4]
        assert await m.unmap(5, END, 1)
    assert check(namespace.blocks) == []


async def test_what_is_mapped_is_not_mapped_again() -> None:
    async with mounted(await fresh()) as filesystem:
        m = await new_map(filesystem)
        await m.map(0, 2000, 10)
        with pytest.raises(Corrupted, match="mapped already"):
            await m.map(5, 2100, 1)
        await m.require(1)


@pytest.mark.parametrize("extent", [Extent(0, 5, 1), Extent(0, 4095, 1), Extent(0, 4090, 10)])
async def test_an_extent_over_the_format_is_not_believed(extent: Extent) -> None:
    async with mounted(await fresh()) as filesystem:
        m = await new_map(filesystem)

        def forge(tx: Transaction, number: int) -> None:
            filesystem.tree.put(tx, key(number, Kind.EXTENT), extent.encode())

        await filesystem.transactions.run(partial(forge, number=m.inode.number))
        with pytest.raises(Corrupted):
            await filesystem.read(m.inode.number, 0, 4096)
        with pytest.raises(Corrupted):
            await filesystem.files.truncate(m.inode.number, 0)
        await filesystem.transactions.run(
            lambda tx: filesystem.tree.delete(tx, key(m.inode.number, Kind.EXTENT))
        )


@pytest.mark.parametrize("seed", range(6))
async def test_against_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        m = await new_map(filesystem)
        for _ in range(250):
            first, count = rng.randrange(60), rng.randrange(1, 12)
            wanted = range(first, first + count)
            action = rng.random()
            if action < 0.5 and not any(block in m.blocks for block in wanted):
                start = 2000 + first + rng.choice([0, 0, 0, 200, 400])
                taken = {at for at, _ in m.blocks.values()}
                held = filesystem.allocator.held_freed_blocks
                if held:
                    await filesystem.sync()
                if not taken & set(range(start, start + count)):
                    await m.map(first, start, count, rng.choice([0, 0, EXTENT_UNWRITTEN]))
            elif action < 0.7:
                await m.unmap(first, first + count - 1)
            elif all(block in m.blocks for block in wanted):
                await m.written(first, count)
            await m.require()
        await m.unmap(0, END)
    assert check(namespace.blocks) == []
