"""How a mount ends while programs work on it: by every way in which it can end, with both front ends.

Nothing may hang, nothing may be left behind, what was synced is there afterwards, and fsck finds nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, ended, make_mount, run, wait_until
from tests.support.uring import URING

FRONTENDS = ["c,threads=2", URING, "python"]
WORKERS = 4
BLOCKS = 64
PAGE = 4096

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="the C front end is root's"),
]
NewMount = Callable[..., Mount]


class Load:
    """Programs that overwrite and read files directly, write and cut others, until the mount is gone."""

    def __init__(self, mountpoint: Path) -> None:
        # Not by its name, which after the unmount is that of the directory below.
        self.descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        self.place = Path(f"/proc/self/fd/{self.descriptor}")
        self.stop = threading.Event()
        self.rounds = [0] * WORKERS
        self.synced: set[str] = set()
        self.workers: list[Future[None]] = []

    def leave(self) -> None:
        """The workers end, and nothing keeps the mount busy."""
        self.stop.set()
        for future in self.workers:
            future.result(40)
        self.workers.clear()
        with contextlib.suppress(OSError):
            if self.descriptor >= 0:
                os.close(self.descriptor)
        self.descriptor = -1

    def work(self, index: int) -> None:
        direct, other = self.place / f"direct{index}", self.place / f"other{index}"
        try:
            with mmap.mmap(-1, 16 * PAGE) as memory:
                direct.write_bytes(bytes(BLOCKS * PAGE))
                descriptor = os.open(direct, os.O_RDWR | os.O_DIRECT)
                try:
                    while not self.stop.is_set():
                        self.turn(index, descriptor, memory, other)
                finally:
                    os.close(descriptor)
        except OSError:
            return  # the mount has ended

    def turn(self, index: int, descriptor: int, memory: mmap.mmap, other: Path) -> None:
        self.rounds[index] += 1
        for at in range(0, BLOCKS, 16):
            os.pwritev(descriptor, [memory], at * PAGE)
            os.preadv(descriptor, [memory], at * PAGE)
        other.write_bytes(os.urandom(50_000))
        os.truncate(other, 10_000)
        kept = self.place / f"kept{index}-{self.rounds[index] % 8}"
        content = b"%d " % self.rounds[index] * 1000
        with open(self.place / f"{kept.name}.new", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(file.name, kept)
        os.fsync(self.descriptor)
        self.synced.add(kept.name)


@contextmanager
def load(mount: Mount) -> Iterator[Load]:
    """Under load within; when it ends, so do the workers."""
    made = Load(mount.path)
    with ThreadPoolExecutor(WORKERS) as pool:
        made.workers = [pool.submit(made.work, index) for index in range(WORKERS)]
        try:
            wait_until(lambda: min(made.rounds) >= 3)
            yield made
        finally:
            made.leave()


def require_all_is_well(mount: Mount, made: Load) -> None:
    """Mounted anew everything that was synced is there; the fixture runs fsck."""
    assert not mount.mounted
    mount.pid = 0
    mount.mount()
    for name in made.synced:
        # A later version may have been renamed over the one that was synced last.
        assert re.fullmatch(rb"(\d+ )\1*", (mount.path / name).read_bytes()), name
    mount.unmount()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_sigterm(new_mount: NewMount, frontend: str) -> None:
    mount = new_mount(options=f"frontend={frontend}")
    with load(mount) as made:
        os.kill(mount.pid, signal.SIGTERM)
        assert ended(mount.pid)
    require_all_is_well(mount, made)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_lazy_unmount(new_mount: NewMount, frontend: str) -> None:
    """The daemon goes on until the last file is closed."""
    mount = new_mount(options=f"frontend={frontend}")
    with load(mount) as made:
        run("umount", "-l", mount.path)
        made.leave()
        assert ended(mount.pid)
    require_all_is_well(mount, made)


@pytest.fixture
def fusectl(tmp_path: Path) -> Iterator[Path]:
    """What is at /sys/fs/fuse/connections where an init system has run."""
    path = tmp_path / "connections"
    path.mkdir()
    run("mount", "-t", "fusectl", "fusectl", path)
    yield path
    run("umount", path)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_abort_of_the_connection(new_mount: NewMount, fusectl: Path, frontend: str) -> None:
    mount = new_mount(options=f"frontend={frontend}")
    abort = fusectl / str(os.minor(os.stat(mount.path).st_dev)) / "abort"
    with load(mount) as made:
        abort.write_text("1")
        assert ended(mount.pid)
    while mount.mounted:
        run("umount", "-l", mount.path)
    require_all_is_well(mount, made)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_sigkill(new_mount: NewMount, frontend: str) -> None:
    mount = new_mount(options=f"commit=1,frontend={frontend}")
    with load(mount) as made:
        mount.kill()
    require_all_is_well(mount, made)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_fusermount(new_mount: NewMount, frontend: str) -> None:
    mount = new_mount(options=f"frontend={frontend}")
    with load(mount) as made:
        pass
    run("fusermount3", "-u", mount.path)
    assert ended(mount.pid)
    require_all_is_well(mount, made)


@pytest.fixture
def small_host(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "host"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path)
    yield path
    run("umount", path)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_the_device_fails(small_host: Path, frontend: str) -> None:
    """Writes fail once the host is full: programs see an error, and the mount ends as asked."""
    mount = make_mount(small_host, size="256M", options=f"frontend={frontend}")
    try:
        with load(mount):
            filler = small_host / "filler"
            with open(filler, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(PAGE)):
                        pass
                except OSError:
                    pass
            wait_until(lambda: "turned read-only" in mount.logged())
        filler.unlink()
        os.kill(mount.pid, signal.SIGTERM)
        assert ended(mount.pid)
        assert not mount.mounted
        mount.pid = 0
        mount.mount()
        (mount.path / "after").write_bytes(b"x")
    finally:
        (small_host / "filler").unlink(missing_ok=True)
        mount.tidy()


def test_nothing_is_left_of_a_mount_that_its_daemon_gives_up(new_mount: NewMount) -> None:
    """Detached with the mount busy: no dead mount stays at the mountpoint."""
    mount = new_mount(options="frontend=c")
    descriptor = os.open(mount.path / "f", os.O_CREAT | os.O_RDWR)
    os.kill(mount.pid, signal.SIGTERM)
    assert ended(mount.pid)
    assert not mount.mounted
    with contextlib.suppress(OSError):  # ENOTCONN
        os.close(descriptor)
    mount.pid = 0


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_each_write_sets_the_times_without_the_writeback_cache(
    new_mount: NewMount, frontend: str
) -> None:
    mount = new_mount(options=f"frontend={frontend},nowriteback_cache,attr_timeout=0")
    path = mount.path / "f"
    path.write_bytes(bytes(BLOCKS * PAGE))
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as memory:
        for block in range(8):
            os.preadv(descriptor, [memory], block * PAGE)
        for block in range(8):
            os.utime(path, ns=(0, 0))
            os.pwritev(descriptor, [memory], block * PAGE)
            assert path.stat().st_mtime_ns
    os.close(descriptor)
