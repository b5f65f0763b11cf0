"""Replay: which records count, and that a mount may be interrupted as often as it likes."""

from __future__ import annotations

import random

import pytest

from nvmefs.errors import Corrupted
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    JOURNAL_START,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    ROOT_INODE,
    SUPERBLOCK_COPY,
    JournalSuper,
    RecordHeader,
    StateFlag,
)
from nvmefs.recovery import newest_journal_super, read_journal
from tests.support.checker import check
from tests.support.images import fresh, mounted, move_journal_head
from tests.support.model import FILE
from tests.support.ram import RamNamespace


async def crashed(
    commits: int, namespace: RamNamespace | None = None
) -> tuple[RamNamespace, list[int], int]:
    """An image after some commits, without a checkpoint: (image, first block of each record, end)."""
    namespace = namespace or await fresh()
    filesystem = await Filesystem.open(namespace.device(), Options())
    places = []
    for index in range(commits):
        places.append(filesystem.superblock.journal_place(filesystem.journal.head))
        await filesystem.create(ROOT_INODE, b"%03d" % index, FILE, 0, 0)
        await filesystem.sync()
    return namespace.copy(), places, filesystem.superblock.journal_place(filesystem.journal.head)


async def names(namespace: RamNamespace) -> int:
    """How many names a mount finds; the image is checked, with its journal and after the mount."""
    async with mounted(namespace) as filesystem:
        found = [entry.name for _, entry in await filesystem.readdir(ROOT_INODE, 0, 10000)]
    assert sorted(found) == [b"%03d" % index for index in range(len(found))]
    assert check(namespace.blocks) == []
    return len(found)


async def test_all_records_count() -> None:
    image, _, _ = await crashed(10)
    assert await names(image) == 10
    assert await names(image) == 10


LONG_JOURNAL_BLOCKS = GROUP_BLOCKS + 300


@pytest.mark.parametrize(
    "position",
    [GROUP_BLOCKS - JOURNAL_START - 12, LONG_JOURNAL_BLOCKS - 12],
    ids=["around the fixed blocks of group 1", "around the end"],
)
async def test_a_long_journal(position: int) -> None:
    """It steps over what stands in its way, replays from there, and a torn image there ends it."""
    empty = await fresh(3 * GROUP_BLOCKS, journal_blocks=LONG_JOURNAL_BLOCKS)
    move_journal_head(empty, position)
    fixed = {place: empty.blocks[place] for place in (GROUP_BLOCKS, SUPERBLOCK_COPY)}
    image, places, end = await crashed(8, empty)
    assert {places[0] // GROUP_BLOCKS, end // GROUP_BLOCKS} == {0, 1}
    assert await names(image.copy()) == 8
    assert {place: image.blocks[place] for place in fixed} == fixed
    for cut, place in enumerate(places):
        torn = image.copy()
        torn.blocks[place] = bytes(BLOCK_BYTES)
        assert await names(torn) == cut


async def test_a_torn_record_ends_the_journal_wherever_it_is_torn() -> None:
    image, places, end = await crashed(4)
    places.append(end)
    for index in range(4):
        for block in range(places[index], places[index + 1]):
            for at in (0, 100, 2000, BLOCK_BYTES - 1):
                torn = image.copy()
                data = bytearray(torn.blocks[block])
                data[at] ^= 1
                torn.blocks[block] = bytes(data)
                assert await names(torn) == index


async def test_an_older_record_in_the_place_of_the_next_does_not_count() -> None:
    """Neither one with an old sequence nor one of another epoch, though each is whole."""
    image, places, end = await crashed(3)
    filesystem = await Filesystem.open(image.copy().device(), Options(read_only=True))
    sb, epoch = filesystem.superblock, filesystem.journal.super.epoch
    length = places[1] - places[0]
    for seq, other_epoch, counts in ((0, 0, True), (1, 0, False), (-1, 0, False), (0, 1, False)):
        changed = image.copy()
        for offset in range(length):
            changed.blocks[end + offset] = changed.blocks[places[2] + offset]
        header = RecordHeader.decode(changed.blocks[places[2]], places[2], sb)
        header.seq += 1 + seq
        header.epoch = epoch + other_epoch
        block = bytearray(BLOCK_BYTES)
        header.encode_into(block, end, sb)
        changed.blocks[end] = bytes(block)
        device = changed.device()
        replay = await read_journal(device, sb, await newest_journal_super(device, sb))
        assert replay.next_seq - filesystem.journal.open.seq == (1 if counts else 0)


async def test_a_new_mount_starts_an_epoch_of_its_own() -> None:
    image, _, _ = await crashed(3)
    epochs = []
    for _ in range(3):
        filesystem = await Filesystem.open(image.device(), Options())
        epochs.append(filesystem.journal.super.epoch)
    assert len(set(epochs)) == 3
    assert all(epochs)


async def test_a_mount_interrupted_again_and_again() -> None:
    """The recovery stops after each of its writes in turn; the next one starts from what that left."""
    image, _, _ = await crashed(12)

    class Cut(Exception):
        pass

    for limit in range(1, 30):
        left = limit

        async def cut(kind: str, block: int, count: int) -> None:
            nonlocal left
            if kind != "read":
                left -= 1
                if not left:
                    raise Cut

        image.before = cut
        try:
            await Filesystem.open(image.device(), Options())
        except Cut:
            image.before = None
            assert await names(image.copy()) == 12
            continue
        break
    image.before = None
    assert limit > 5
    assert await names(image) == 12


async def test_a_read_only_mount_replays_in_memory_alone() -> None:
    image, _, _ = await crashed(5)
    before = dict(image.blocks)
    filesystem = await Filesystem.open(image.device(), Options(read_only=True))
    assert len(await filesystem.readdir(ROOT_INODE, 0, 100)) == 5
    assert filesystem.journal.replayed
    await filesystem.close()
    assert image.blocks == before


async def test_one_journal_superblock_is_enough() -> None:
    for bad in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        image, _, _ = await crashed(0)
        async with mounted(image):
            pass
        image.blocks[bad] = random.Random(bad).randbytes(BLOCK_BYTES)
        assert check(image.blocks) == []
        async with mounted(image) as filesystem:
            await filesystem.create(ROOT_INODE, b"000", FILE, 0, 0)
        assert await names(image) == 1


async def test_without_a_journal_superblock_nothing_is_mounted() -> None:
    image, _, _ = await crashed(1)
    for bad in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        image.blocks[bad] = bytes(BLOCK_BYTES)
    with pytest.raises(Corrupted, match="neither journal superblock"):
        await Filesystem.open(image.device(), Options())


async def test_the_newer_journal_superblock_wins() -> None:
    image, _, _ = await crashed(0)
    device = image.device()
    filesystem = await Filesystem.open(device, Options())
    newest = await newest_journal_super(device, filesystem.superblock)
    generations = [
        JournalSuper.decode(image.blocks[place], place, filesystem.superblock).generation
        for place in (JOURNAL_SUPER_A, JOURNAL_SUPER_B)
    ]
    assert newest.generation == max(generations)
    assert abs(generations[0] - generations[1]) == 1


async def test_the_clean_flag() -> None:
    image, _, _ = await crashed(1)
    filesystem = await Filesystem.open(image.device(), Options())
    assert not filesystem.state.flags & StateFlag.CLEAN
    crashed_again = image.copy()
    await filesystem.close()
    for left, clean in ((image, True), (crashed_again, False)):
        after = await Filesystem.open(left.device(), Options(read_only=True))
        assert bool(after.state.flags & StateFlag.CLEAN) == clean
