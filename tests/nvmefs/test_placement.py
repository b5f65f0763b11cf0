"""Where data goes: aligned as the drive prefers, behind what it continues, near what is in its directory."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from driver import open_controller
from driver.transports.embedded import open_embedded
from mkfs.geometry import make_identity
from mkfs.mkfs import lay_out
from mkfs.mkfs_options import parse
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import Device
from nvmefs.filesystem import Filesystem, Options
from nvmefs.items import Extent
from nvmefs.layout import BLOCK_BYTES, GROUP_BLOCKS, MIN_BLOCKS, ROOT_INODE, group_of
from nvmefs.ranges import END
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

ALIGNMENT = 32
SOME_GROUPS = 5 * GROUP_BLOCKS


def extents(filesystem: Filesystem, number: int) -> list[Extent]:
    tx = filesystem.transactions.transaction
    return filesystem.extents.map_range(tx, number, 0, END)


async def make(
    filesystem: Filesystem, name: bytes, parent: int = ROOT_INODE, mode: int = stat.S_IFREG
) -> int:
    return (await filesystem.create(parent, name, mode | 0o755, 0, 0)).number


async def write(filesystem: Filesystem, number: int, at: int, blocks: int) -> None:
    await filesystem.write(number, at * BLOCK_BYTES, b"x" * (blocks * BLOCK_BYTES))


# --- alignment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [ALIGNMENT, ALIGNMENT + 5, 256, 1000])
async def test_a_large_piece_begins_where_the_drive_likes_it(blocks: int) -> None:
    async with mounted(await fresh(40000, alignment_blocks=ALIGNMENT)) as filesystem:
        for name in (b"a", b"b", b"c"):
            small, large = await make(filesystem, name + b"small"), await make(filesystem, name)
            await write(filesystem, small, 0, 1)
            await write(filesystem, large, 0, blocks)
            (extent,) = extents(filesystem, large)
            assert extent.count == blocks
            assert extent.start % ALIGNMENT == 0


async def test_without_a_preference_nothing_is_left_out() -> None:
    async with mounted(await fresh()) as filesystem:
        runs = []
        for name, blocks in ((b"a", 3), (b"b", 300), (b"c", 1)):
            number = await make(filesystem, name)
            await write(filesystem, number, 0, blocks)
            runs += extents(filesystem, number)
        assert [run.start + run.count for run in runs[:-1]] == [run.start for run in runs[1:]]


async def test_small_files_are_packed() -> None:
    """But for a node of the tree here and there."""
    async with mounted(await fresh(alignment_blocks=ALIGNMENT)) as filesystem:
        starts = []
        for index in range(2 * ALIGNMENT):
            number = await make(filesystem, b"%d" % index)
            await write(filesystem, number, 0, 1)
            starts += [extent.start for extent in extents(filesystem, number)]
        assert starts == sorted(starts)
        assert starts[-1] - starts[0] < len(starts) + ALIGNMENT // 4


async def test_what_continues_a_file_goes_behind_it_and_not_to_the_next_boundary() -> None:
    async with mounted(await fresh(alignment_blocks=ALIGNMENT)) as filesystem:
        number = await make(filesystem, b"log")
        await write(filesystem, number, 0, ALIGNMENT + 1)
        await write(filesystem, number, ALIGNMENT + 1, 2 * ALIGNMENT)
        (extent,) = extents(filesystem, number)
        assert extent.count == 3 * ALIGNMENT + 1
        assert extent.start % ALIGNMENT == 0


async def test_where_another_file_is_in_the_way_it_goes_on_at_a_boundary() -> None:
    async with mounted(await fresh(alignment_blocks=ALIGNMENT)) as filesystem:
        number, other = await make(filesystem, b"log"), await make(filesystem, b"other")
        await write(filesystem, number, 0, ALIGNMENT + 1)
        await write(filesystem, other, 0, 1)
        await write(filesystem, number, ALIGNMENT + 1, 2 * ALIGNMENT)
        assert [extent.start % ALIGNMENT for extent in extents(filesystem, number)] == [0, 0]


async def test_a_run_in_one_piece_counts_more_than_its_beginning() -> None:
    """All but one run of free blocks is taken, and it begins one block behind a boundary."""
    async with mounted(await fresh(alignment_blocks=ALIGNMENT)) as filesystem:
        allocator, run = filesystem.allocator, filesystem.transactions.run
        runs = await run(lambda tx: allocator.reserve(tx, allocator.available(tx)))
        start = next(at for at, count in runs if count > 4 * ALIGNMENT)
        start += -start % ALIGNMENT + 1
        allocator.release(start, 2 * ALIGNMENT)
        await filesystem.cache.load(20, filesystem.cache.blocks[20].type)
        found = await run(lambda tx: list(allocator._search(tx, start - 9, 2 * ALIGNMENT))[:1])
        assert found == [(start, 2 * ALIGNMENT)]
        allocator.hold(start, 2 * ALIGNMENT)
        for each in runs:
            allocator.release(*each)


@pytest.mark.parametrize("alignment", [0, 3, 48, 1024, 2**31, 2**32 - 1])
async def test_an_alignment_that_no_group_can_meet_is_none(alignment: int) -> None:
    async with mounted(await fresh(alignment_blocks=alignment)) as filesystem:
        assert filesystem.allocator.alignment_blocks == 1
        number = await make(filesystem, b"file")
        await write(filesystem, number, 0, 300)
        assert [extent.count for extent in extents(filesystem, number)] == [300]


def say(**fields: int) -> Callable[[RamNamespace], RamNamespace]:
    def tell(namespace: RamNamespace) -> RamNamespace:
        for name, value in fields.items():
            setattr(namespace, f"{name}_bytes", value)
        return namespace

    return tell


@pytest.mark.parametrize(
    ("told", "blocks"),
    [
        (say(), 1),
        (say(write_granularity=512), 1),
        (say(write_granularity=16384), 4),
        (say(write_granularity=16384, write_alignment=65536), 16),
        (say(write_granularity=16384, boundary=1 << 20), 256),
        (say(write_granularity=16384, boundary=4 << 20), 4),  # more than groups can meet
        (say(write_granularity=16384, boundary=3 << 16), 4),
        (say(boundary=131072), 32),
        (say(write_granularity=12288), 3),
    ],
)
def test_what_a_namespace_says(told: Callable[[RamNamespace], RamNamespace], blocks: int) -> None:
    assert Device(told(RamNamespace(4096)), "ram").alignment_blocks == blocks


# --- nearness ----------------------------------------------------------------------------------------


async def test_what_is_below_one_directory_of_the_root_shares_a_group() -> None:
    async with mounted(await fresh(SOME_GROUPS)) as filesystem:
        groups: list[int] = []
        for name in (b"a", b"b", b"c", b"d"):
            top = await make(filesystem, name, mode=stat.S_IFDIR)
            below = await make(filesystem, b"below", top, stat.S_IFDIR)
            found = set()
            for parent in (top, below):
                number = await make(filesystem, b"file", parent)
                await write(filesystem, number, 0, 10)
                found |= {group_of(extent.start) for extent in extents(filesystem, number)}
            assert len(found) == 1
            groups += found
        assert len(set(groups)) > 1  # by the numbers of these four directories


async def test_files_of_two_directories_written_in_turns_do_not_mix() -> None:
    async with mounted(await fresh(SOME_GROUPS)) as filesystem:
        tops = [await make(filesystem, b"%d" % index, mode=stat.S_IFDIR) for index in range(9)]
        one = tops[0]
        group = filesystem.allocator.group_for(one)
        other = next(top for top in tops if filesystem.allocator.group_for(top) != group)
        ends = {one: 0, other: 0}
        for index in range(20):
            for parent in (one, other):
                number = await make(filesystem, b"%d" % index, parent)
                await write(filesystem, number, 0, 3)
                (extent,) = extents(filesystem, number)
                assert extent.start == ends[parent] or not ends[parent]
                ends[parent] = extent.start + extent.count


async def test_the_group_is_the_same_after_a_mount() -> None:
    namespace = await fresh(SOME_GROUPS)
    async with mounted(namespace) as filesystem:
        top = await make(filesystem, b"top", mode=stat.S_IFDIR)
        below = await make(filesystem, b"below", top, stat.S_IFDIR)
        number = await make(filesystem, b"file", below)
        await write(filesystem, number, 0, 1)
        before = {group_of(extent.start) for extent in extents(filesystem, number)}
    async with mounted(namespace) as filesystem:
        for inode in (ROOT_INODE, top, below):
            await filesystem.getattr(inode)
        number = await make(filesystem, b"again", below)
        await write(filesystem, number, 0, 1)
        assert {group_of(extent.start) for extent in extents(filesystem, number)} == before


async def test_a_full_group_sends_its_directory_elsewhere() -> None:
    async with mounted(await fresh(SOME_GROUPS)) as filesystem:
        top = await make(filesystem, b"top", mode=stat.S_IFDIR)
        group = filesystem.allocator.group_for(top)
        filler, number = (
            await make(filesystem, b"filler", top),
            await make(filesystem, b"file", top),
        )
        await filesystem.fallocate(filler, 0, 0, GROUP_BLOCKS * BLOCK_BYTES)
        await write(filesystem, number, 0, 7)
        (extent,) = extents(filesystem, number)
        assert group_of(extent.start) == (group + 1) % filesystem.superblock.group_count


# --- from Identify to the extent ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "blocks"),
    [
        ("", 1),
        ("patch=64:7f007f00", 16),  # NPWG and NPWA of 128 LBAs
        ("patch=46:0001", 32),  # NOIOB of 256 LBAs
    ],
)
async def test_a_drive_that_prefers_some_places(tmp_path: Path, rule: str, blocks: int) -> None:
    """What the controller says of itself is kept by mkfs, and met by what is written later."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(MIN_BLOCKS * BLOCK_BYTES)
    faults = [f"admin:identify select=0 {rule}"] if rule else []
    async with await open_controller(open_embedded(image, faults=faults)) as controller:
        device = Device(await controller.namespace(), str(image), controller=controller)
        assert device.alignment_blocks == blocks
        options = parse(["--force", f"file:{image}"])
        plan = lay_out(options, make_identity(None, "tests"), device.block_count, device)
        await write_filesystem(
            device, plan, RootDirectory(), fresh=True, discard=False, note=lambda _: None
        )
        filesystem = await Filesystem.open(device, Options())
        starts = []
        for name in (b"a", b"b", b"c"):
            small, large = await make(filesystem, name + b"small"), await make(filesystem, name)
            await write(filesystem, small, 0, 1)
            await write(filesystem, large, 0, 100)
            starts += [extent.start for extent in extents(filesystem, large)]
        await filesystem.close()
    assert len(starts) == 3
    assert all(start % blocks == 0 for start in starts)
    if blocks == 1:
        assert any(start % 16 for start in starts)
