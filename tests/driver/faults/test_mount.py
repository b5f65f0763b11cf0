"""A mount over a controller that misbehaves: the front end's threads in C, on queue pairs of their own."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver.faults.oracle import Area, WrongData
from tests.driver.vfio_user import conftest as served
from tests.driver.vfio_user.conftest import Server
from tests.mount.conftest import Mount, fsck, python_module, run

start = served.start
image = served.image

BLOCK = 4096
BLOCKS = 32  # of a file
WORKERS = 4
SECONDS = 6.0
# The mount itself is over before the harder ones begin.
RULES = [
    "io:read every=1009 drop",
    "io:read every=997 status=0x281 dnr",
    "io:read every=991 cid=stale",
    "io:write every=983 delay=600ms",
    "io every=251 status=0x06",
    "io p=0.01 delay=4ms",
    "io p=0.01 behind=3",
    "io p=0.01 duplicate=2",
    "io p=0.01 quiet",
    "io p=0.01 spurious",
]


class Worker(threading.Thread):
    """Reads and writes blocks of a file of its own, in place."""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__()
        self._path = path
        self._rng = random.Random(number)
        self.area = Area(0, BLOCKS, BLOCK)
        self.done = self.failed = 0
        self.wrong: WrongData | None = None

    def run(self) -> None:
        end = time.monotonic() + SECONDS
        fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        try:
            while time.monotonic() < end:
                self._step(fd)
        except WrongData as error:
            self.wrong = error
        finally:
            os.close(fd)

    def _step(self, fd: int) -> None:
        at = self._rng.randrange(BLOCKS)
        count = self._rng.randint(1, min(4, BLOCKS - at))
        try:
            if self._rng.random() < 0.5:
                data = os.pread(fd, count * BLOCK, at * BLOCK)
                self.area.check(at, data)
            else:
                tags = self.area.fresh(count)
                self.area.begin(at, tags)
                os.pwrite(fd, self.area.data(tags), at * BLOCK)
                self.area.done(at, tags)
            self.done += 1
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EROFS):
                raise
            self.failed += 1


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_is_read_is_what_was_written(
    start: Callable[..., Server],
    tmp_path: Path,
) -> None:
    honest = start("--queues", "4")
    run(*python_module("mkfs.mkfs", "-q", honest.address))
    mount = Mount(Path(honest.address), tmp_path / "mnt", tmp_path / "log", checked=False)
    mount.path.mkdir()
    mount.mount()
    for number in range(WORKERS):
        (mount.path / str(number)).write_bytes(bytes(BLOCKS * BLOCK))
    mount.unmount()
    assert honest.end() == 0
    faults = [word for rule in RULES for word in ("--fault", rule)]
    server = start("--queues", "4", "--seed", "11", *faults)
    mount.options = "command_timeout=0.2"
    try:
        mount.mount()
        workers = [Worker(mount.path / str(number), number) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60 + SECONDS)
            assert not worker.is_alive(), "a read or write hangs"
        assert [worker.wrong for worker in workers] == [None] * WORKERS
        print([(worker.done, worker.failed) for worker in workers])
        assert sum(worker.done for worker in workers) > 1000
        mount.unmount()
    finally:
        mount.tidy()
    server.end()
    assert fsck(server.image).returncode == 0
