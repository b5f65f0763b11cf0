"""Commands that do not come back below a mount under load: programs see right data or EIO, and it lives on."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, counted, ended, faulty, wait_until

PAGE = 4096
BLOCKS = 48
WORKERS = 4
BOUND_S = 60.0

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="the C front end is root's"),
]
NewMount = Callable[..., Mount]


class Worker:
    """Overwrites and reads blocks of one file directly, and knows what may be in each.

    A write that failed may have been done or not, so that its block may hold either.
    """

    def __init__(self, path: Path, index: int) -> None:
        self.path = path / f"file{index}"
        self.possible = [{bytes(PAGE)} for _ in range(BLOCKS)]
        self.turns = self.failures = 0
        self.ended = False  # by an error that is not EIO, too
        self.path.write_bytes(bytes(BLOCKS * PAGE))
        descriptor = os.open(self.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def work(self, stop: threading.Event) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, PAGE) as memory:
                while not stop.is_set():
                    block = self.turns * 7 % BLOCKS
                    self._write(descriptor, memory, block)
                    self._read(descriptor, memory, (block * 5 + 1) % BLOCKS)
                    self.turns += 1
        finally:
            self.ended = True
            os.close(descriptor)

    def _write(self, descriptor: int, memory: mmap.mmap, block: int) -> None:
        memory[:] = (b"%08d %08d " % (block, self.turns)).ljust(PAGE, b"%d" % (self.turns % 10))
        try:
            os.pwritev(descriptor, [memory], block * PAGE)
        except OSError as error:
            self._failed(error)
            self.possible[block].add(bytes(memory))
        else:
            self.possible[block] = {bytes(memory)}

    def _read(self, descriptor: int, memory: mmap.mmap, block: int) -> None:
        try:
            os.preadv(descriptor, [memory], block * PAGE)
        except OSError as error:
            self._failed(error)
        else:
            self._check(bytes(memory), block)

    def _check(self, data: bytes, block: int) -> None:
        assert data in self.possible[block], f"block {block} of {self.path}: {data[:18]!r}"

    def _failed(self, error: OSError) -> None:
        if error.errno != errno.EIO:
            raise error
        self.failures += 1

    def verify(self) -> None:
        """All of the file, as it is on the drive."""
        data = self.path.read_bytes()
        for block in range(BLOCKS):
            self._check(data[block * PAGE : (block + 1) * PAGE], block)


@contextmanager
def load(mount: Mount) -> Iterator[list[Worker]]:
    workers = [Worker(mount.path, index) for index in range(WORKERS)]
    stop = threading.Event()
    with ThreadPoolExecutor(WORKERS) as pool:
        futures: list[Future[None]] = [pool.submit(worker.work, stop) for worker in workers]
        try:
            yield workers
        finally:
            stop.set()
    for future in futures:
        future.result()


def require_healthy(mount: Mount, workers: list[Worker]) -> None:
    """Still there, writable, and what it says is what was written; also for another daemon."""
    assert mount.mounted
    assert "turned read-only" not in mount.logged()
    (mount.path / "after").write_bytes(b"fine")
    for worker in workers:
        worker.verify()
    mount.unmount()
    mount.module = "nvmefs.cli"
    mount.mount()
    for worker in workers:
        worker.verify()


def write_and_sync(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())


def turns(workers: list[Worker]) -> int:
    return min(worker.turns for worker in workers)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(("q2:read every=300 limit=3 drop",), id="reads", marks=pytest.mark.slow),
        pytest.param(("q2:write every=300 limit=3 drop",), id="writes", marks=pytest.mark.slow),
        pytest.param(
            ("q2:write every=300 limit=3 drop", "q2:read every=500 limit=2 never"), id="both"
        ),
        pytest.param(
            ("q1 every=2 delay=50ms", "q2 every=300 limit=2 drop"),
            id="beside-slow-ones",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_lost_commands(new_mount: NewMount, rules: tuple[str, ...]) -> None:
    mount = faulty(new_mount, *rules)
    with load(mount) as workers:
        wait_until(lambda: ": resetting" in mount.logged(), BOUND_S)
        seen = turns(workers)
        wait_until(lambda: turns(workers) > seen + 100, BOUND_S)
    require_healthy(mount, workers)
    assert counted(mount, "aborts") >= counted(mount, "resets") >= 1
    assert counted(mount, "lost") == 0
    assert counted(mount, "reads") + counted(mount, "writes") > 200
    assert 1 <= sum(worker.failures for worker in workers) <= 20


@pytest.mark.slow
def test_commands_that_can_be_aborted(new_mount: NewMount) -> None:
    """They are late, not lost: their request fails, and nothing is reset."""
    mount = faulty(new_mount, "q2 every=300 limit=4 delay=5s")
    with load(mount) as workers:
        wait_until(lambda: mount.logged().count("aborting it") >= 3, BOUND_S)
        seen = turns(workers)
        wait_until(lambda: turns(workers) > seen + 100, BOUND_S)
    require_healthy(mount, workers)
    assert counted(mount, "aborts") >= 3
    assert counted(mount, "resets") == 0


@pytest.mark.slow
def test_lost_interrupts(new_mount: NewMount) -> None:
    """They cost time, and nothing else."""
    mount = faulty(new_mount, "q2 every=40 limit=20 quiet", options="frontend=c,interrupt")
    with load(mount) as workers:
        wait_until(lambda: turns(workers) > 300, BOUND_S)
    require_healthy(mount, workers)
    assert counted(mount, "resets") == 0
    assert sum(worker.failures for worker in workers) == 0


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [0, 1, 2, 3])
def test_few_vectors(new_mount: NewMount, vectors: int) -> None:
    """The front end shares one with Python, or looks by itself."""
    mount = faulty(new_mount, "q2:read every=300 limit=2 drop", queues=2, vectors=vectors)
    with load(mount) as workers:
        wait_until(lambda: ": resetting" in mount.logged(), BOUND_S)
        seen = turns(workers)
        wait_until(lambda: turns(workers) > seen + 100, BOUND_S)
    require_healthy(mount, workers)


def test_a_controller_given_up_under_load(new_mount: NewMount) -> None:
    """Whatever is asked fails with EIO or EROFS, at once, and the mount can be ended."""
    mount = faulty(new_mount, "q2 nth=2000 gone")
    mount.checked = False
    errors: set[int] = set()
    try:
        with load(mount) as workers, contextlib.suppress(OSError):
            wait_until(lambda: "the controller is gone" in mount.logged(), BOUND_S)
            wait_until(lambda: all(each.failures or each.ended for each in workers), BOUND_S)
    except OSError as error:
        errors.add(error.errno or 0)
    assert errors <= {errno.EIO, errno.EROFS}
    started = time.monotonic()
    with pytest.raises(OSError, match=r"Input/output|Read-only"):
        write_and_sync(mount.path / "new")
    assert time.monotonic() - started < 10
    os.kill(mount.pid, signal.SIGTERM)
    assert ended(mount.pid)
    assert not mount.mounted
    mount.pid = 0
    mount.module = "nvmefs.cli"
    mount.mount()
    mount.checked = True


@pytest.mark.slow
def test_a_command_is_lost_when_the_mount_ends(new_mount: NewMount) -> None:
    """The ladder is climbed for it before the daemon ends, and the filesystem stays whole."""
    mount = faulty(new_mount, "q2 every=200 limit=20 never")
    with load(mount) as workers:
        wait_until(lambda: turns(workers) > 60, BOUND_S)
    mount.unmount()
    assert "turned read-only" not in mount.logged()
    assert counted(mount, "lost") == 0


@pytest.mark.slow
@pytest.mark.parametrize("poll", ["always", "never"])
def test_the_mode_of_completion(new_mount: NewMount, poll: str) -> None:
    """Lost commands are noticed however completions are waited for, and an idle mount takes no CPU."""
    mount = faulty(new_mount, "q2:read every=300 limit=2 drop", options=f"frontend=c,poll={poll}")
    with load(mount) as workers:
        wait_until(lambda: ": resetting" in mount.logged(), BOUND_S)
        seen = turns(workers)
        wait_until(lambda: turns(workers) > seen + 100, BOUND_S)
    before = mount.cpu_s()
    time.sleep(2)
    assert mount.cpu_s() - before < 0.2
    require_healthy(mount, workers)
