"""A filesystem on drives whose power fails: what was synchronized is there, and fsck finds nothing.

tests/crash replays recorded commands on a drive in Python; here the drive is the controller's own volatile
cache, below the real driver, and the cuts come while commands are in flight.
"""

from __future__ import annotations

import contextlib
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from driver import DriverOptions, open_controller
from driver.transports.embedded import EmbeddedTransport, open_embedded
from mkfs import fsck
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import Device
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import MIN_BLOCKS, MIN_JOURNAL_BLOCKS, ROOT_INODE
from tests.driver.faults.oracle import Area

PATIENT = DriverOptions(dma_bytes=64 << 20)
NOTICES_SOON = DriverOptions(command_timeout_s=0.25, shutdown_timeout_s=1, dma_bytes=64 << 20)
SECTOR = 512
SECTORS = 96  # of a file
CUTS = 2
FILES = 3


@asynccontextmanager
async def drive(
    path: Path, lba_size: int, *faults: str, seed: int = 0
) -> AsyncIterator[tuple[EmbeddedTransport, Device]]:
    """A device on the image, with a cache that tears at sectors."""
    transport = open_embedded(
        path, lba_size=lba_size, write_cache="volatile", tear_bytes=512, faults=faults, seed=seed
    )
    options = NOTICES_SOON if faults else PATIENT
    async with await open_controller(transport, options=options) as controller:
        namespace = await controller.namespace()
        yield transport, Device(namespace, str(path), controller=controller)


async def make(path: Path, lba_size: int) -> None:
    """An empty filesystem."""
    with path.open("wb") as file:
        file.truncate(MIN_BLOCKS * 4096)
    wishes = Wishes(journal_bytes=MIN_JOURNAL_BLOCKS * 4096, lba_bytes=lba_size)
    plan = calculate(MIN_BLOCKS, wishes, make_identity(None, "faults"))
    async with drive(path, lba_size) as (_, device):
        await write_filesystem(
            device, plan, RootDirectory(), fresh=True, discard=False, note=lambda _text: None
        )


class File:
    """What a file must hold: sectors of one tag each, as in the oracle, and one of some sizes."""

    def __init__(self, number: int) -> None:
        self.name = b"file %d" % number
        self.area = Area(0, SECTORS, SECTOR)
        self.sizes = {0}
        self.size = self.inode = 0
        self.promised = False  # its name was synchronized

    async def create(self, filesystem: Filesystem) -> None:
        mode = stat.S_IFREG | 0o644
        self.inode = (await filesystem.create(ROOT_INODE, self.name, mode, 0, 0)).number

    async def write(self, filesystem: Filesystem, rng: random.Random) -> None:
        first = rng.randrange(SECTORS)
        count = rng.randint(1, min(24, SECTORS - first))
        tags = self.area.fresh(count)
        self.area.begin(first, tags)
        self.sizes.add(max(self.size, (first + count) * SECTOR))
        await filesystem.write(self.inode, first * SECTOR, self.area.data(tags))
        self.size = max(self.size, (first + count) * SECTOR)
        self.area.done(first, tags)

    async def synchronize(self, filesystem: Filesystem) -> None:
        before = [set(tags) for tags in self.area.now]
        await filesystem.fsync(self.inode)
        self.area.flushed(before)
        self.sizes, self.promised = {self.size}, True

    async def check(self, filesystem: Filesystem) -> None:
        """After a power cut. Raises AssertionError."""
        self.area.power_lost()
        inode = await filesystem.lookup(ROOT_INODE, self.name)
        if inode is None:
            assert not self.promised, f"{self.name!r} is gone"
            self.area, self.sizes, self.size = Area(0, SECTORS, SECTOR), {0}, 0
            await self.create(filesystem)
            return
        self.inode, self.size = inode.number, inode.size_bytes
        assert inode.size_bytes in self.sizes
        data = await filesystem.read(self.inode, 0, SECTORS * SECTOR)
        assert len(data) == inode.size_bytes
        self.area.check(0, data)
        # What lies behind the end is not promised to anybody, and reads as zeroes once it is inside.
        for i in range(inode.size_bytes // SECTOR, SECTORS):
            self.area.now[i] = {0}
            self.area.safe[i] = {0}
        self.sizes = {self.size}


async def until_the_cut(device: Device, files: list[File], rng: random.Random) -> None:
    """Mounts, checks, then writes and synchronizes until the drive is gone."""
    with contextlib.suppress(FsError):
        filesystem = await Filesystem.open(device, Options())
        for file in files:
            await file.check(filesystem)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit, filesystem)
            with contextlib.suppress(FsError):
                while True:
                    file = rng.choice(files)
                    if rng.random() < 0.25:
                        await file.synchronize(filesystem)
                    else:
                        await file.write(filesystem, rng)
            nursery.cancel_scope.cancel()


async def commit(filesystem: Filesystem) -> None:
    """What a mount does in the background."""
    with contextlib.suppress(FsError):
        await filesystem.run()


@pytest.mark.parametrize("lba_size", [512, 4096])
@pytest.mark.parametrize("seed", range(1))
async def test_what_was_synchronized_survives(tmp_path: Path, lba_size: int, seed: int) -> None:
    path, rng = tmp_path / "disk.img", random.Random(seed)
    await make(path, lba_size)
    files = [File(number) for number in range(FILES)]
    for _ in range(CUTS):
        # The controller is gone at some write; then its cache, as far as it is not lucky.
        gone = f"io:write nth={rng.randint(1, 120)} gone"
        async with drive(path, lba_size, gone) as (transport, device):
            await until_the_cut(device, files, rng)
            assert transport.statistics()["fault_hits"] == 1
            transport.power_cut(rng.getrandbits(64))
    async with drive(path, lba_size) as (_, device):
        filesystem = await Filesystem.open(device, Options())
        for file in files:
            await file.check(filesystem)
        await filesystem.close()
    assert await trio.to_thread.run_sync(fsck.main, ["-n", "-q", str(path)]) == 0
    assert any(file.promised for file in files)
