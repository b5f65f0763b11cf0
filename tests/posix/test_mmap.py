"""Mapped files: shared and private, beside read and write, truncated under the map, on holes."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from errno import EACCES, EINVAL, ENODEV
from pathlib import Path

import pytest

from tests.posix.checks import Checks, make

pytestmark = pytest.mark.quick

PAGE = mmap.PAGESIZE


def _mapped(path: str, size: int, flags: int = mmap.MAP_SHARED) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, size, flags)
    finally:
        os.close(descriptor)


def signal_of(function: Callable[[], object]) -> int:
    """By which signal a child dies that calls it; 0: by none."""
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            function()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_shared(checks: Checks) -> None:
    """What is written to the map, the file has at once, and the other way round."""
    Path("x").write_bytes(b"a" * (3 * PAGE))
    with _mapped("x", 3 * PAGE) as one, _mapped("x", 3 * PAGE) as two:
        descriptor = os.open("x", os.O_RDWR)
        one[10:13] = b"map"
        checks.gives(b"map", lambda: two[10:13])
        checks.gives(b"map", os.pread, descriptor, 3, 10)
        os.pwrite(descriptor, b"file", PAGE + 5)
        checks.gives(b"file", lambda: one[PAGE + 5 : PAGE + 9])
        checks.works(one.flush)
        os.close(descriptor)
        one[2 * PAGE :] = b"z" * PAGE
    checks.gives(b"z" * PAGE, lambda: Path("x").read_bytes()[2 * PAGE :])


def test_private(checks: Checks) -> None:
    Path("x").write_bytes(b"a" * PAGE)
    with _mapped("x", PAGE, mmap.MAP_PRIVATE) as private:
        private[0:4] = b"mine"
        checks.gives(b"mine", lambda: private[0:4])
        checks.gives(b"aaaa", lambda: Path("x").read_bytes()[:4])


def test_direct_beside_the_map(checks: Checks) -> None:
    """O_DIRECT sees what the map has written, and the map what O_DIRECT has."""
    Path("x").write_bytes(b"a" * (4 * PAGE))
    with _mapped("x", 4 * PAGE) as shared, mmap.mmap(-1, PAGE) as buffer:
        descriptor = os.open("x", os.O_RDWR | os.O_DIRECT)
        shared[PAGE : PAGE + 3] = b"map"
        os.preadv(descriptor, [buffer], PAGE)
        checks.gives(b"map", lambda: buffer[:3])
        buffer[:6] = b"direct"
        os.pwritev(descriptor, [buffer], 2 * PAGE)
        checks.gives(b"direct", lambda: shared[2 * PAGE : 2 * PAGE + 6])
        os.close(descriptor)


def test_behind_the_end(checks: Checks) -> None:
    """The last page's rest reads as zeroes and is lost; a page behind it is SIGBUS."""
    Path("x").write_bytes(b"a" * 100)
    with _longer("x") as shared:
        checks.gives(bytes(100), lambda: shared[100:200])
        shared[150:154] = b"lost"
        checks.gives(100, lambda: os.stat("x").st_size)
        checks.gives(signal.SIGBUS, signal_of, lambda: shared[PAGE])
        os.truncate("x", 200)
        checks.gives(b"\0\0\0\0", lambda: Path("x").read_bytes()[150:154], what="no old bytes")
        os.truncate("x", 2 * PAGE)
        checks.gives(0, signal_of, lambda: shared[PAGE])
        shared[PAGE:] = b"b" * PAGE
        os.truncate("x", 50)
        checks.gives(signal.SIGBUS, signal_of, lambda: shared[PAGE])
        checks.gives(b"a" * 50 + bytes(50), lambda: shared[:100])
        os.truncate("x", 2 * PAGE)
        checks.gives(bytes(PAGE), lambda: shared[PAGE:])


def _longer(path: str) -> mmap.mmap:
    """A map of two pages, whatever the file's size."""
    size = os.stat(path).st_size
    os.truncate(path, 2 * PAGE)
    shared = _mapped(path, 2 * PAGE)
    os.truncate(path, size)
    return shared


def test_holes(checks: Checks) -> None:
    descriptor = os.open("x", os.O_CREAT | os.O_RDWR, 0o644)
    os.ftruncate(descriptor, 16 * PAGE)
    with mmap.mmap(descriptor, 16 * PAGE) as shared:
        checks.gives(bytes(PAGE), lambda: shared[5 * PAGE : 6 * PAGE])
        shared[7 * PAGE] = 1
        checks.works(shared.flush)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    checks.gives(b"\0\1\0", os.pread, descriptor, 3, 7 * PAGE - 1)
    held = os.fstat(descriptor).st_blocks
    checks.true(0 < held <= 64, f"{held} sectors for one page")
    os.close(descriptor)


def test_times(checks: Checks) -> None:
    """A write to a shared map is one to the file: mtime and ctime change, at msync at the latest."""
    Path("x").write_bytes(b"a" * PAGE)
    with _mapped("x", PAGE) as shared:
        shared[1] = shared[1]
        shared.flush()

        def write() -> None:
            shared[0] = 98
            shared.flush()

        checks.touches({"x": "mc"}, write)


def test_unlinked(checks: Checks) -> None:
    Path("x").write_bytes(b"a" * PAGE)
    with _mapped("x", PAGE) as shared:
        os.unlink("x")
        shared[0:3] = b"new"
        checks.works(shared.flush)
        checks.gives(b"newa", lambda: shared[:4])


def test_errors(checks: Checks) -> None:
    make("file", "x")
    os.truncate("x", PAGE)
    read_only = os.open("x", os.O_RDONLY)
    write_only = os.open("x", os.O_WRONLY)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    checks.fails(EACCES, mmap.mmap, read_only, PAGE, mmap.MAP_SHARED, protection)
    checks.works(lambda: mmap.mmap(read_only, PAGE, mmap.MAP_PRIVATE, protection).close())
    checks.fails(EACCES, mmap.mmap, write_only, PAGE, mmap.MAP_SHARED, mmap.PROT_WRITE)
    os.mkdir("d")
    directory = os.open("d", os.O_RDONLY)
    checks.fails((ENODEV, EINVAL), mmap.mmap, directory, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
    for descriptor in (read_only, write_only, directory):
        os.close(descriptor)
