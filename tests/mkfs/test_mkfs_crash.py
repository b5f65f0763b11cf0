"""The power goes while mkfs runs over an older filesystem: whole is the old one, or none, or the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkfs.check.run import check
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.populate import open_source
from mkfs.populate.fill import fill
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.errors import FsError, MountRefused
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, MIN_JOURNAL_BLOCKS, ROOT_INODE, State
from tests.crash.drive import moments
from tests.support.images import fresh, mounted
from tests.support.model import differences, read_back
from tests.support.ram import RamNamespace

BLOCKS = 40000  # of two groups: the copies of the superblock stand apart


async def older() -> RamNamespace:
    """A filesystem with some files, that was not closed in order."""
    namespace = await fresh(BLOCKS)
    async with mounted(namespace) as filesystem:
        for number in range(20):
            name = b"file%d" % number
            inode = await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)
            await filesystem.write(inode.number, 0, name * 1000)
    filesystem = await Filesystem.open(namespace.device(), Options())
    last = await filesystem.create(ROOT_INODE, b"last", 0o100644, 0, 0)
    await filesystem.fsync(last.number)
    return namespace


async def whose(image: RamNamespace, names: dict[bytes, str]) -> tuple[str, Filesystem | None]:
    """Which filesystem can be mounted."""
    try:
        filesystem = await Filesystem.open(image.device(), Options())
    except (FsError, MountRefused):
        return "none", None
    return names[filesystem.superblock.uuid], filesystem


@pytest.mark.parametrize("discard", [False, True])
async def test_cut_while_making(discard: bool) -> None:
    namespace = await older()
    old = dict(namespace.blocks)
    identity = make_identity(None, "another")
    plan = calculate(BLOCKS, Wishes(journal_bytes=MIN_JOURNAL_BLOCKS * BLOCK_BYTES), identity)
    async with mounted(namespace.copy()) as filesystem:
        expected = await read_back(filesystem)
        names = {filesystem.superblock.uuid: "old", plan.superblock.uuid: "new"}
    namespace.log = []
    await write_filesystem(
        namespace.device(), plan, RootDirectory(), fresh=False, discard=discard, note=print
    )
    seen: list[str] = []
    for moment in moments(old, namespace.log):
        for subset in range(4 if moment.pending else 1):
            image = RamNamespace(BLOCKS, moment.image(subset))
            where = f"step {moment.step}, subset {subset}"
            found, filesystem_ = await whose(image, names)
            seen.append(found)
            if filesystem_ is None:
                continue
            content = await read_back(filesystem_)
            if found == "old":
                assert not differences(expected, content), where
            else:
                assert len(content) == 1, where
            await filesystem_.close()
            lines = (await check(image.device())).findings.lines()
            # A superblock may be gone already, or not there yet: the others stand in for it.
            assert [line for line in lines if "superblock-damaged" not in line] == [], where
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert set(seen) == {"old", "none", "new"}


async def test_cut_while_filling(tmp_path: Path) -> None:
    """With -d: the new one is there with all of its contents, or not at all."""
    for number in range(12):
        directory = tmp_path / f"directory{number % 3}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_bytes(b"%d" % number * 3000 * number)
    (tmp_path / "link").symlink_to("directory1/file4")
    namespace = await older()
    old = dict(namespace.blocks)
    identity = make_identity(None, "another")
    plan = calculate(BLOCKS, Wishes(journal_bytes=MIN_JOURNAL_BLOCKS * BLOCK_BYTES), identity)
    async with mounted(namespace.copy()) as filesystem:
        contents = {"old": await read_back(filesystem)}
        names = {filesystem.superblock.uuid: "old", plan.superblock.uuid: "new"}
    namespace.log = []
    device = namespace.device()

    async def populate(state: State) -> int:
        born = identity.created_s, identity.created_ns
        with open_source(str(tmp_path)) as source:
            return (await fill(device, plan.superblock, state, source, born)).next_seq

    await write_filesystem(
        device, plan, RootDirectory(), fresh=False, discard=False, note=print, populate=populate
    )
    async with mounted(namespace.copy()) as filesystem:
        contents["new"] = await read_back(filesystem)
    assert len(contents["new"]) == 1 + 3 + 12 + 1
    seen: list[str] = []
    for moment in moments(old, namespace.log):
        for subset in range(2 if moment.pending else 1):
            image = RamNamespace(BLOCKS, moment.image(subset))
            where = f"step {moment.step}, subset {subset}"
            found, filesystem_ = await whose(image, names)
            seen.append(found)
            if filesystem_ is None:
                continue
            assert not differences(contents[found], await read_back(filesystem_)), where
            await filesystem_.close()
            lines = (await check(image.device())).findings.lines()
            assert [line for line in lines if "superblock-damaged" not in line] == [], where
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert set(seen) == {"old", "none", "new"}
