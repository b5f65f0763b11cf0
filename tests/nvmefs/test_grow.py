"""Growing: every block is found again, the sums agree, and no crash leaves anything in between."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from mkfs.check.run import check
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem, Options
from nvmefs.grow import grow, new_size, watch
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    ROOT_INODE,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    Superblock,
    bitmap_block,
    free_blocks_when_fresh,
    superblock_places,
)
from tests.crash.drive import moments
from tests.golden.make import Image
from tests.reader import Reader
from tests.support.checker import check as second_opinion
from tests.support.images import fresh, mounted
from tests.support.model import differences, read_back
from tests.support.ram import RamNamespace

# Within a group, from one group to two, to many; from a group that is full.
ENCODE = Superblock.encode
SIZES = [
    (GROUP_BLOCKS + 100, GROUP_BLOCKS + 300),
    (4096, GROUP_BLOCKS),
    (4096, GROUP_BLOCKS + 64),
    (5000, 3 * GROUP_BLOCKS + 700),
    (2 * GROUP_BLOCKS, 3 * GROUP_BLOCKS),
]


async def clean(namespace: RamNamespace) -> Superblock:
    """Its superblock, when both checkers and the second reader find nothing."""
    report = await check(namespace.device())
    assert (report.findings.lines(), report.findings.remarks) == ([], [])
    assert second_opinion(namespace.blocks) == []
    Reader(Image(namespace))
    superblock = report.source.superblock
    for place in superblock_places(superblock.block_count):
        assert Superblock.decode(namespace.blocks[place], place) == superblock
    return superblock


async def fill(filesystem: Filesystem, blocks: int, name: bytes) -> int:
    inode = await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)
    data = name * (BLOCK_BYTES // len(name) + 1)
    for at in range(0, blocks, 256):
        part = data[:BLOCK_BYTES] * min(256, blocks - at)
        await filesystem.write(inode.number, at * BLOCK_BYTES, part)
    await filesystem.fsync(inode.number)
    return inode.number


@pytest.mark.parametrize(("before", "after"), SIZES)
async def test_grown(before: int, after: int) -> None:
    namespace = await fresh(before)
    async with mounted(namespace) as filesystem:
        first = await fill(filesystem, 300, b"before")
        namespace.grow(after)
        growth = await grow(filesystem)
        assert (growth.before, growth.after) == (before, after)
        used = free_blocks_when_fresh(filesystem.superblock) - filesystem.state.free_blocks
        second = await fill(filesystem, 700, b"after!")
        expected = await read_back(filesystem)
    superblock = await clean(namespace)
    assert superblock.block_count == after
    assert used < 310
    async with mounted(namespace) as filesystem:
        assert differences(expected, await read_back(filesystem)) == []
        assert (await filesystem.getattr(first)).blocks == 300
        assert (await filesystem.getattr(second)).blocks == 700


async def test_the_new_space_can_be_used_to_the_last_block() -> None:
    namespace = await fresh(4096)
    async with mounted(namespace) as filesystem:
        with pytest.raises(FsError) as caught:
            await fill(filesystem, 4096, b"full")
        assert caught.value.errno == errno.ENOSPC
        namespace.grow(8192)
        await grow(filesystem)
        free = filesystem.statfs().available_blocks
        assert free > 4000
        await fill(filesystem, free - 8, b"rest")
    await clean(namespace)


async def test_nothing_to_gain() -> None:
    namespace = await fresh(GROUP_BLOCKS)
    namespace.grow(GROUP_BLOCKS + 63)  # a tail too short for a group
    async with mounted(namespace) as filesystem:
        namespace.log = []
        growth = await grow(filesystem)
        assert growth.before == growth.after == GROUP_BLOCKS
        assert not [event for event in namespace.log if event.command.kind == "write"]
        namespace.log = None


async def test_to_a_part_of_the_device() -> None:
    namespace = await fresh(4096)
    namespace.grow(20_000)
    async with mounted(namespace) as filesystem:
        assert (await grow(filesystem, 9000)).after == 9000
        assert (await grow(filesystem)).after == 20_000
    await clean(namespace)


@pytest.mark.parametrize(("wanted", "words"), [(4095, "cannot shrink"), (4097, "device has 4096")])
def test_sizes_that_are_refused(wanted: int, words: str) -> None:
    with pytest.raises(FsError, match=words) as caught:
        new_size(4096, 4096, wanted)
    assert caught.value.errno == errno.EINVAL


async def test_read_only() -> None:
    namespace = await fresh(4096)
    namespace.grow(8192)
    filesystem = await Filesystem.open(namespace.device(), Options(read_only=True))
    with pytest.raises(FsError) as caught:
        await grow(filesystem)
    assert caught.value.errno == errno.EROFS


async def test_what_an_older_filesystem_left_behind_is_no_bitmap() -> None:
    """Also a valid one: that of a larger filesystem which had the same random numbers."""
    after = 4 * GROUP_BLOCKS
    larger = await fresh(after)
    namespace = await fresh(4096)
    namespace.grow(after)
    for group in (1, 3):
        namespace.blocks[bitmap_block(group)] = larger.blocks[bitmap_block(group)]
    namespace.blocks[bitmap_block(2)] = b"\xff" * BLOCK_BYTES
    async with mounted(namespace) as filesystem:
        await grow(filesystem)
    await clean(namespace)


async def test_the_place_of_the_old_copy_waits_for_the_checkpoint() -> None:
    """An image of the copy that is still to go home must not overwrite a file."""
    namespace = await fresh(4096)
    async with mounted(namespace) as filesystem:
        await filesystem.transactions.run(lambda tx: tx.change_superblock(label=b"changed"))
        await filesystem.transactions.commit()
        namespace.grow(4200)
        await grow(filesystem)
        await fill(filesystem, 600, b"data")
        expected = await read_back(filesystem)
    await clean(namespace)
    async with mounted(namespace) as filesystem:
        assert filesystem.superblock.label == b"changed"
        assert differences(expected, await read_back(filesystem)) == []


async def test_an_operation_that_fails_has_changed_nothing() -> None:
    namespace = await fresh(4096)
    async with mounted(namespace) as filesystem:
        free = filesystem.state.free_blocks

        def fail(tx: object) -> None:
            filesystem.transactions.transaction.change_superblock(block_count=9000, label=b"x")
            raise FsError(errno.EPERM)

        with pytest.raises(FsError):
            await filesystem.transactions.run(fail)
        assert (filesystem.superblock.block_count, filesystem.superblock.label) == (4096, b"")
        assert filesystem.state.free_blocks == free
    await clean(namespace)


async def test_a_change_of_size_is_told(caplog: pytest.LogCaptureFixture) -> None:
    namespace = await fresh(4096)
    async with mounted(namespace) as filesystem:
        watch(filesystem)
        with caplog.at_level(logging.WARNING, "nvmefs"):
            namespace.grow(9000)
            assert "has grown to 9000 blocks" in caplog.text
            caplog.clear()
            namespace.lba_count = 8 * 4000
            namespace.on_change[0](namespace)
            assert "has 4000 blocks now, the filesystem on it 4096" in caplog.text
        namespace.lba_count = 8 * 9000


@pytest.mark.parametrize(("before", "after"), [SIZES[0], SIZES[2]])
async def test_cut_while_growing(before: int, after: int) -> None:
    """The old size or the new one, at each step, with what was not flushed lost, kept, torn or mixed."""
    namespace = await fresh(before)
    async with mounted(namespace) as filesystem:
        await fill(filesystem, 100, b"before")
    namespace.grow(after)
    namespace.blocks[bitmap_block(1)] = namespace.blocks.get(bitmap_block(1), b"\xff" * BLOCK_BYTES)
    old = dict(namespace.blocks)
    namespace.log = []
    async with mounted(namespace) as filesystem:
        expected = await read_back(filesystem)
        await grow(filesystem)
        await fill(filesystem, 4, b"after")
    seen: set[int] = set()
    for moment in moments(old, namespace.log):
        for subset in range(3 if moment.pending else 1):
            image = RamNamespace(after, moment.image(subset))
            report = await check(image.device())
            assert report.findings.lines() == [], f"step {moment.step}, subset {subset}"
            if not subset:
                assert len(Reader(Image(image)).inodes) >= 2
            async with mounted(image) as filesystem:
                seen.add(filesystem.superblock.block_count)
                found = await read_back(filesystem)
            kept = {number: entry for number, entry in found.items() if number != ROOT_INODE}
            for number in expected.keys() - {ROOT_INODE}:
                assert kept[number] == expected[number]
            if moment.step % 4 == 0:
                await clean(image)
    assert seen == {before, after}


async def test_a_record_whose_superblock_cannot_be_is_no_record() -> None:
    """A record that would make the filesystem smaller, or have other seeds, does not count."""
    for fields in ({"block_count": 4096}, {"checksum_seed": 1}, {"journal_blocks": 1025}):
        namespace = await fresh(9000)
        filesystem = await Filesystem.open(namespace.device(), Options())
        proper = Superblock.decode(namespace.blocks[SUPERBLOCK], SUPERBLOCK)
        wrong = replace(proper)
        for name, value in fields.items():
            setattr(wrong, name, value)
        with mock.patch.object(Superblock, "encode", lambda _, place, say=wrong.encode: say(place)):
            await filesystem.transactions.run(lambda tx: tx.change_superblock(label=b"never"))
            await filesystem.transactions.commit()
        again = await Filesystem.open(namespace.device(), Options(read_only=True))
        assert again.superblock == proper, fields


async def test_a_record_with_other_copies_is_no_record() -> None:
    """Superblock and copies change together: a copy that is damaged, says something else or is alone."""

    def damaged(data: bytes, place: int) -> bytes:
        return data if place == SUPERBLOCK else data[:300] + b"?" + data[301:]

    def other(data: bytes, place: int) -> bytes:
        if place == SUPERBLOCK:
            return data
        return bytes(ENCODE(replace(Superblock.decode(data, place), label=b"other"), place))

    for spoil in (damaged, other):
        namespace = await fresh(9000)
        filesystem = await Filesystem.open(namespace.device(), Options())

        def wrong(superblock: Superblock, place: int, spoil: Any = spoil) -> bytearray:
            return bytearray(spoil(bytes(ENCODE(superblock, place)), place))

        with mock.patch.object(Superblock, "encode", wrong):
            await filesystem.transactions.run(lambda tx: tx.change_superblock(label=b"never"))
            await filesystem.transactions.commit()
        again = await Filesystem.open(namespace.device(), Options(read_only=True))
        assert again.superblock.label == b""


async def test_copies_are_home_after_a_checkpoint() -> None:
    namespace = await fresh(GROUP_BLOCKS + 500)
    async with mounted(namespace) as filesystem:
        await filesystem.transactions.run(lambda tx: tx.change_superblock(label=b"all three"))
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, GROUP_BLOCKS + 499):
        assert Superblock.decode(namespace.blocks[place], place).label == b"all three"
