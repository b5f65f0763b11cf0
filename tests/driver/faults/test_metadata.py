"""A drive that lies, below a filesystem: its checksums say so, and no name or size is made up.

Data of files has no checksums, and an old block in place of one whose write was lost has a right one: of these
nothing is asked but that the filesystem lives, or refuses.
"""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from driver import DriverOptions, open_controller
from driver.transports.embedded import open_embedded
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import Device
from nvmefs.errors import Corrupted, FsError, MountRefused
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import MIN_BLOCKS, MIN_JOURNAL_BLOCKS, ROOT_INODE

DIRECTORIES = 4
FILES = 60
DRIVES = 4
Names = dict[bytes, dict[bytes, int]]  # directory -> file -> size in bytes
PATIENT = DriverOptions(dma_bytes=64 << 20)


@pytest.fixture
async def prepared(tmp_path: Path) -> tuple[Path, Names]:
    """An image with a small tree, and what is in it."""
    path, names = tmp_path / "disk.img", Names()
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(MIN_BLOCKS * 4096)
    async with await open_controller(open_embedded(path), options=PATIENT) as controller:
        device = Device(await controller.namespace(), str(path))
        wishes = Wishes(journal_bytes=MIN_JOURNAL_BLOCKS * 4096, lba_bytes=512)
        plan = calculate(MIN_BLOCKS, wishes, make_identity(None, "metadata"))
        await write_filesystem(
            device, plan, RootDirectory(), fresh=True, discard=False, note=lambda _text: None
        )
        filesystem = await Filesystem.open(device, Options())
        for i in range(DIRECTORIES):
            made = await filesystem.create(ROOT_INODE, b"d%d" % i, stat.S_IFDIR | 0o755, 0, 0)
            files = names.setdefault(b"d%d" % i, {})
            for k in range(FILES):
                name, size = b"a rather long name, number %d" % k, 100 * k
                inode = await filesystem.create(made.number, name, stat.S_IFREG | 0o644, 0, 0)
                await filesystem.write(inode.number, 0, bytes([k]) * size)
                files[name] = size
        await filesystem.close()
    return path, names


async def look(filesystem: Filesystem, names: Names) -> int:
    """Everything that can be seen is right, or an error. Returns how many errors there were."""
    errors = 0
    for directory, files in names.items():
        try:
            found = await filesystem.lookup(ROOT_INODE, directory)
            assert found is not None, directory
            listed = {entry.name for _, entry in await filesystem.readdir(found.number, 0, 1000)}
            assert listed - {b".", b".."} == set(files)
        except Corrupted:
            errors += 1
            continue
        for name, size in files.items():
            try:
                inode = await filesystem.lookup(found.number, name)
                assert inode is not None, name
                assert inode.size_bytes == size
            except Corrupted:
                errors += 1
    return errors


@pytest.mark.parametrize(
    "rules",
    [
        ("io:read p=0.3 rot",),
        ("io:read p=0.3 flip=40:01",),
        ("io:read p=0.3 misdirect=8",),
        ("io:read p=0.3 misdirect=4096",),
    ],
)
async def test_nothing_is_made_up(prepared: tuple[Path, Names], rules: tuple[str, ...]) -> None:
    path, names = prepared
    honest, noticed = path.read_bytes(), 0
    for seed in range(DRIVES):
        path.write_bytes(honest)
        transport = open_embedded(path)
        async with await open_controller(transport, options=PATIENT) as controller:
            device = Device(await controller.namespace(), str(path))
            transport.set_faults(rules, seed=seed)
            try:
                filesystem = await Filesystem.open(device, Options(read_only=True))
                noticed += await look(filesystem, names)
            except (MountRefused, FsError):
                noticed += 1
            assert transport.statistics()["fault_hits"]
    assert noticed


@pytest.mark.parametrize("rule", ["io:write p=0.2 lost", "io:write p=0.2 misdirect=16"])
async def test_writes_that_go_nowhere_or_elsewhere(prepared: tuple[Path, Names], rule: str) -> None:
    """The filesystem works or fails with an error of its own, now and when it is mounted again."""
    path, names = prepared
    honest = path.read_bytes()
    for seed in range(DRIVES):
        rng = random.Random(seed)
        path.write_bytes(honest)
        transport = open_embedded(path)
        async with await open_controller(transport, options=PATIENT) as controller:
            device = Device(await controller.namespace(), str(path))
            try:
                filesystem = await Filesystem.open(device, Options())
                transport.set_faults([rule], seed=seed)
                for number in range(40):
                    name = b"new %d" % number
                    inode = await filesystem.create(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
                    await filesystem.write(inode.number, 0, rng.randbytes(9000))
                    if rng.random() < 0.2:
                        await filesystem.sync()
                await filesystem.close()
                transport.set_faults([])
                again = await Filesystem.open(device, Options(read_only=True))
                for directory in names:
                    found = await again.lookup(ROOT_INODE, directory)
                    if found is not None:
                        await again.readdir(found.number, 0, 1000)
            except (MountRefused, FsError):
                continue
