"""fsync through the C front end: what it costs, and that a power cut takes nothing that it has covered."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, counted, faulty

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="the C front end is root's"),
]
NewMount = Callable[..., Mount]

PAGE = 4096
BLOCKS = 16
WRITERS = 4
CACHE = {"write_cache": "volatile"}  # of which a power cut takes some, block by block


@contextmanager
def overwriting(path: Path) -> Iterator[Callable[[int, int], None]]:
    """`put(block, number)` overwrites a block of a file whose map is published, directly."""
    path.write_bytes(bytes(BLOCKS * PAGE))
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.fsync(descriptor)
    memory = mmap.mmap(-1, PAGE)

    def put(block: int, number: int) -> None:
        memory[:8] = struct.pack("<Q", number)
        os.pwritev(descriptor, [memory], block * PAGE)
        os.fdatasync(descriptor)

    try:
        for _ in range(8):
            os.preadv(descriptor, [memory], 0)
        yield put
    finally:
        with contextlib.suppress(OSError):  # the filesystem is read-only now, or has ended
            os.close(descriptor)


def numbers(path: Path) -> list[int]:
    content = path.read_bytes()
    return [struct.unpack_from("<Q", content, block * PAGE)[0] for block in range(BLOCKS)]


def test_a_power_cut_takes_nothing_that_was_synced(new_mount: NewMount) -> None:
    mount = faulty(new_mount, **CACHE)
    synced = [[0] * BLOCKS for _ in range(WRITERS)]

    def work(index: int) -> None:
        try:
            with overwriting(mount.path / f"file{index}") as put:
                for number in range(1, 10**9):
                    block = number % BLOCKS
                    put(block, number)
                    synced[index][block] = number
                    if number == 400 and not index:
                        mount.cut_power()
        except OSError:
            return  # the daemon was killed

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, range(WRITERS)))
    assert synced[0][400 % BLOCKS] >= 384
    mount.mount()
    for index, expected in enumerate(synced):
        found = numbers(mount.path / f"file{index}")
        assert all(new >= old for new, old in zip(found, expected, strict=True)), index
    mount.unmount()


def test_a_power_cut_takes_what_was_not_synced(new_mount: NewMount) -> None:
    """Or the test above would show nothing."""
    mount = faulty(new_mount, **CACHE)
    path = mount.path / "file"
    path.write_bytes(bytes(BLOCKS * PAGE))
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.fsync(descriptor)
    with mmap.mmap(-1, PAGE) as memory:
        for _ in range(8):
            os.preadv(descriptor, [memory], 0)
        for number in range(1, 4 * BLOCKS):
            memory[:8] = struct.pack("<Q", number)
            os.pwritev(descriptor, [memory], number % BLOCKS * PAGE)
    mount.cut_power()
    os.close(descriptor)
    mount.mount()
    assert numbers(path) != [48 + block for block in range(BLOCKS)]
    mount.unmount()


def test_one_flush_is_for_many_who_wait(new_mount: NewMount) -> None:
    """Flushes that take a while, as they do on real drives: who comes meanwhile shares the next one."""
    mount = faulty(new_mount, "q2:flush delay=3ms", **CACHE)

    def work(index: int) -> None:
        with overwriting(mount.path / f"file{index}") as put:
            for number in range(40):
                put(number % BLOCKS, number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    mount.unmount()
    fsyncs, flushes = counted(mount, "fsyncs"), counted(mount, "flushes")
    assert fsyncs > 100
    assert flushes < fsyncs / 2


def errno_of(put: Callable[[int, int], None], block: int, number: int) -> int | None:
    """None: it did not fail."""
    try:
        put(block, number)
    except OSError as error:
        return error.errno
    return None


def test_a_flush_that_fails_ends_writing(new_mount: NewMount) -> None:
    """Once: whatever the drive says later, what its cache has lost is lost."""
    mount = faulty(new_mount, "q2:flush nth=3 status=0x06 dnr", **CACHE)
    with overwriting(mount.path / "file") as put:
        synced = 0
        while (code := errno_of(put, synced % BLOCKS, synced)) is None and synced < 200:
            synced += 1
        assert (
            code == errno.EIO
        )  # the thread's third Flush; now and then Python answers an fsync instead
        assert synced >= 2
        with pytest.raises(OSError):
            put(0, synced)
    assert "turned read-only: flushing the write cache" in mount.logged()
    mount.unmount()
    mount.mount()
    (mount.path / "after").write_bytes(b"x")


def test_fsync_after_a_change_of_metadata_is_not_answered_too_early(new_mount: NewMount) -> None:
    """The file stays published while its mode changes: fsync has to commit that."""
    mount = faulty(new_mount, **CACHE)
    path = mount.path / "file"
    with overwriting(path) as put:
        put(0, 1)
        for round_ in range(20):
            os.chmod(path, 0o600 + round_ % 8)
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        mount.cut_power()
    mount.mount()
    assert path.stat().st_mode & 0o777 == 0o600 + 19 % 8
    mount.unmount()
