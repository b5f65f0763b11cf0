"""mkfs, the mounted filesystem's own code, and fsck on one image: each takes what the others wrote."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from mkfs.check.run import check
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import open_device
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE

IMAGE_BYTES = 64 << 20


async def fill(filesystem: Filesystem, files: int) -> None:
    """Files of every sort, hard links, attributes, removed names; some removed while in use."""
    choose = random.Random(7)
    directories = [ROOT_INODE]
    for index in range(files):
        parent = choose.choice(directories)
        name = b"%d" % index
        if index % 20 == 0:
            made = await filesystem.create(parent, name, stat.S_IFDIR | 0o755, 0, 0)
            directories.append(made.number)
            continue
        if index % 17 == 0:
            await filesystem.symlink(parent, name, b"t" * choose.randrange(1, 4000), 0, 0)
            continue
        made = await filesystem.create(parent, name, stat.S_IFREG | 0o644, 0, 0)
        if index % 3:
            at = choose.choice((0, 0, 100_000))
            await filesystem.files.write(made.number, at, b"x" * choose.randrange(1, 20_000))
        if index % 7 == 0:
            await filesystem.link(made.number, choose.choice(directories), name + b" again")
        if index % 11 == 0:
            value = b"v" * choose.randrange(1, 3000)
            await filesystem.setxattr(made.number, b"user.a", value)
        if index % 13 == 0:
            gone = await filesystem.unlink(parent, name)
            if index % 2 and not gone.nlink:
                await filesystem.reap(gone.number)


@pytest.mark.parametrize("in_order", [True, False], ids=["unmounted", "crashed"])
async def test_filled_filesystem_is_clean(tmp_path: Path, in_order: bool) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    plan = calculate(IMAGE_BYTES // BLOCK_BYTES, Wishes(), make_identity(None, None))
    async with open_device(str(image)) as device:
        await write_filesystem(
            device, plan, RootDirectory(), fresh=True, discard=True, note=lambda text: None
        )
        filesystem = await Filesystem.open(device, Options())
        await fill(filesystem, 500)
        if in_order:
            await filesystem.close()
        else:
            await filesystem.transactions.commit()
        report = await check(device)
        assert report.findings.lines() == []
        assert report.inodes > 400
        assert bool(report.findings.remarks) != in_order
    async with open_device(str(image)) as device:
        await (await Filesystem.open(device, Options())).close()
        report = await check(device)
        assert report.findings.lines() == []
        assert report.findings.remarks == []
