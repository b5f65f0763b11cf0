"""-o discard: a block is discarded after the transaction that frees it has committed, and never before."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mkfs.check.run import check
from nvmefs._core import ffi, lib
from nvmefs.device import open_device
from nvmefs.discards import joined
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, GROUP_BLOCKS, MIN_BLOCKS, ROOT_INODE, group_of
from nvmefs.ranges import END
from tests.crash.drive import moments
from tests.support.images import fresh, mounted
from tests.support.ram import InjectedError, RamNamespace

DATA = b"kept until committed" * (30 * BLOCK_BYTES // 20)
DISCARD = Options(discard=True)


def discarded(namespace: RamNamespace) -> int:
    """Blocks that the drive was told to forget."""
    assert namespace.log is not None
    return sum(
        len(event.command.data)
        for event in namespace.log
        if event.ended and event.command.kind == "discard"
    )


@asynccontextmanager
async def working(namespace: RamNamespace) -> AsyncIterator[Filesystem]:
    """Mounted with discards in the background."""
    async with mounted(namespace, DISCARD) as filesystem, trio.open_nursery() as nursery:
        nursery.start_soon(filesystem.run)
        yield filesystem
        nursery.cancel_scope.cancel()


async def settled(filesystem: Filesystem) -> None:
    """All discards that are due are done."""
    assert filesystem.journal.discards is not None
    await filesystem.journal.discards.drain()


def blocks_of(filesystem: Filesystem, number: int) -> set[int]:
    extents = filesystem.extents.map_range(filesystem.transactions.transaction, number, 0, END)
    return {block for each in extents for block in range(each.start, each.start + each.count)}


async def make(filesystem: Filesystem, name: bytes) -> int:
    inode = await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)
    await filesystem.write(inode.number, 0, DATA)
    await filesystem.fsync(inode.number)
    return inode.number


async def remove(filesystem: Filesystem, name: bytes) -> None:
    inode = await filesystem.unlink(ROOT_INODE, name)
    await filesystem.reap(inode.number)


async def test_only_when_committed() -> None:
    namespace = await fresh()
    namespace.log = []
    async with mounted(namespace, DISCARD) as filesystem:
        await make(filesystem, b"file")
        await remove(filesystem, b"file")
        assert discarded(namespace) == 0
        await settled(filesystem)
        assert discarded(namespace) == 0
        await filesystem.sync()
        await settled(filesystem)
        assert discarded(namespace) >= len(DATA) // BLOCK_BYTES


async def test_fsync_does_not_wait_for_it() -> None:
    """Nor does anything else, but the blocks are not handed out until it is done."""
    namespace = await fresh()
    async with working(namespace) as filesystem:
        number = await make(filesystem, b"file")
        old = blocks_of(filesystem, number)
        allowed, asked = trio.Event(), trio.Event()

        async def slow(kind: str, block: int, count: int) -> None:
            if kind == "discard":
                asked.set()
                await allowed.wait()

        namespace.before = slow
        await remove(filesystem, b"file")
        with trio.fail_after(5):
            await filesystem.sync()
            await asked.wait()
            other = await make(filesystem, b"other")
        for start in old:
            group = group_of(start)
            assert lib.bitmap_run_at(
                filesystem.allocator.held[group], ffi.NULL, GROUP_BLOCKS, start % GROUP_BLOCKS, 1
            ) == 0  # fmt: skip
        assert not old & blocks_of(filesystem, other)
        allowed.set()
        await settled(filesystem)
        assert filesystem.allocator.held_blocks == 0


async def test_who_needs_the_space_waits_for_it() -> None:
    """Without anybody who discards in the background: it is done when space is short, and at the end."""
    namespace = await fresh()
    namespace.log = []
    async with mounted(namespace, DISCARD) as filesystem:
        for round_ in range(4):
            name = b"%d" % round_
            number = (await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)).number
            blocks = filesystem.statfs().available_blocks * 3 // 4
            await filesystem.write(number, 0, bytes(blocks * BLOCK_BYTES))
            await filesystem.sync()
            await remove(filesystem, name)
            await filesystem.sync()
        before = discarded(namespace)
        assert before
    assert discarded(namespace) > before
    assert filesystem.allocator.held_blocks == 0


async def test_a_drive_that_refuses_is_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    namespace = await fresh()
    asked = 0

    async def refuse(kind: str, block: int, count: int) -> None:
        nonlocal asked
        if kind == "discard":
            asked += 1
            raise InjectedError("a test")

    namespace.before = refuse
    async with working(namespace) as filesystem:
        for name in (b"first", b"second"):
            await make(filesystem, name)
            await remove(filesystem, name)
            await filesystem.sync()
            await settled(filesystem)
            assert filesystem.allocator.held_blocks == 0
    assert asked == 1
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "discard switched off: discarding 1 runs of blocks: a test"
    ]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3))))
def test_neighbours_go_as_one(wanted: list[tuple[int, int]]) -> None:
    runs = [(5 * at, count) for at, count in dict(wanted).items()] + [(500, 5), (505, 5)]
    blocks = sorted(block for start, count in runs for block in range(start, start + count))
    found = joined(runs)
    assert [block for start, count in found for block in range(start, start + count)] == blocks
    assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(found))


async def test_exactly_what_was_freed_is_discarded(tmp_path: Path) -> None:
    """On a controller that keeps a log of it; and no block that is in use again."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(MIN_BLOCKS * BLOCK_BYTES)
    source = await fresh(lba_bytes=512)
    async with open_device(f"file:{image}") as device:
        for number, data in source.blocks.items():
            await device.write(number, data)
        assert device.controller is not None
        transport: Any = device.controller.transport
        filesystem = await Filesystem.open(device, DISCARD)
        per_block = device.lbas_per_block
        transport.take_deallocated()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filesystem.run)
            rng = random.Random(1)
            kept: dict[bytes, bytes] = {}
            for round_ in range(25):
                freed: set[int] = set()
                for name in rng.sample(sorted(kept), len(kept) // 2):
                    inode = await filesystem.lookup(ROOT_INODE, name)
                    assert inode is not None
                    freed |= blocks_of(filesystem, inode.number)
                    await remove(filesystem, name)
                    del kept[name]
                for index in range(4):
                    name = b"%d.%d" % (round_, index)
                    kept[name] = rng.randbytes(rng.randrange(1, 60) * BLOCK_BYTES)
                    number = (await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)).number
                    await filesystem.write(number, 0, kept[name])
                await filesystem.sync()
                await settled(filesystem)
                told = [
                    block
                    for lba, count in transport.take_deallocated()
                    for block in range(lba // per_block, (lba + count) // per_block)
                ]
                assert len(told) == len(set(told))
                nodes = set(told) - freed
                assert freed <= set(told)
                assert len(nodes) < 10  # of the tree, at checkpoints
                for name, data in kept.items():
                    inode = await filesystem.lookup(ROOT_INODE, name)
                    assert inode is not None
                    assert not blocks_of(filesystem, inode.number) & set(told)
                    assert await filesystem.read(inode.number, 0, len(data)) == data
            nursery.cancel_scope.cancel()
        await filesystem.close()


async def test_no_crash_finds_a_file_whose_blocks_are_gone() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        await make(filesystem, b"first")
        await make(filesystem, b"second")
    before = dict(namespace.blocks)
    namespace.log = []
    async with working(namespace) as filesystem:
        await remove(filesystem, b"first")
        await filesystem.sync()
        await make(filesystem, b"third")
        await settled(filesystem)
        await remove(filesystem, b"second")
        await filesystem.sync()
        await settled(filesystem)
    assert discarded(namespace)
    seen = set()
    for moment in moments(before, namespace.log):
        for subset in range(3 if moment.pending else 1):
            image = RamNamespace(namespace.block_count, moment.image(subset))
            report = await check(image.device())
            assert report.findings.lines() == [], f"step {moment.step}, subset {subset}"
            async with mounted(image) as filesystem:
                names = {entry.name for _, entry in await filesystem.readdir(ROOT_INODE, 0, 9)}
                for name in names:
                    inode = await filesystem.lookup(ROOT_INODE, name)
                    assert inode is not None
                    data = await filesystem.read(inode.number, 0, len(DATA))
                    assert data == DATA[: inode.size_bytes], f"{name!r}, step {moment.step}"
                seen.add(frozenset(names))
    assert frozenset((b"first", b"second")) in seen
    assert frozenset((b"third",)) in seen
