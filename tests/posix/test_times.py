"""Which times reading and writing change: POSIX's marks for update, with Linux's relatime."""

from __future__ import annotations

import mmap
import os
from errno import EBADF
from pathlib import Path

import pytest

from tests.posix.calls import utimensat
from tests.posix.checks import Checks, later, make, times

pytestmark = pytest.mark.quick

CACHED = "the kernel's FUSE asks for what it has in its cache no more, and tells of no reading"
NO_CMTIME = (
    "the kernel's FUSE leaves the times of what is no regular file to the daemon, and asks not"
)


def test_write(checks: Checks) -> None:
    make("file", "x")
    descriptor = os.open("x", os.O_RDWR)
    for what, call in (
        ("write", lambda: os.write(descriptor, b"data")),
        ("pwrite", lambda: os.pwrite(descriptor, b"data", 100_000)),
        ("overwrite", lambda: os.pwrite(descriptor, b"data", 0)),
        ("append", lambda: os.pwrite(descriptor, b"x", os.fstat(descriptor).st_size)),
    ):
        checks.touches({"x": "mc", ".": ""}, call, what=what)
    checks.touches({"x": ""}, os.write, descriptor, b"", what="of nothing")
    checks.touches({"x": ""}, os.fsync, descriptor)
    checks.touches({"x": ""}, lambda: os.close(os.dup(descriptor)), what="close")
    os.close(descriptor)
    later()
    checks.touches({"x": ""}, lambda: None, what="nothing comes late")
    read_only = os.open("x", os.O_RDONLY)
    checks.touches({"x": ""}, os.write, read_only, b"x", fails=EBADF)
    os.close(read_only)


def test_direct_write(checks: Checks) -> None:
    """Past the page cache; also what the C front end answers of itself."""
    descriptor = os.open("x", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    with mmap.mmap(-1, 65536) as buffer:
        for _ in range(3):
            checks.touches({"x": "mc"}, os.pwritev, descriptor, [buffer], 0)
        checks.gives(65536, os.preadv, descriptor, [buffer], 0)
    os.close(descriptor)


def test_times_survive_the_cache(checks: Checks) -> None:
    """What was set and what a write left is what comes back when the kernel has forgotten the file."""
    make("file", "x")
    utimensat("x", (5, 6, 7, 8))
    make("file", "y")
    Path("y").write_bytes(b"data" * 1000)
    before = times("x"), times("y")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    checks.gives(before, lambda: (times("x"), times("y")))


def test_read(checks: Checks) -> None:
    """Once, because the file is newer than its last reading; then not again on this day."""
    Path("x").write_bytes(b"data" * 5000)
    descriptor = os.open("x", os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)
    later()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")
    checks.touches({"x": "a", ".": ""}, lambda: Path("x").read_bytes())
    checks.touches({"x": ""}, lambda: Path("x").read_bytes(), what="again")
    Path("x").write_bytes(b"data")
    later()
    checks.touches(
        {"x": "a"},
        lambda: Path("x").read_bytes(),
        what="from the cache",
        fuse={"x": ""},
        why=CACHED,
    )


def test_read_directories_and_links(checks: Checks) -> None:
    os.mkdir("d")
    make("file", "d/f")
    os.symlink("d", "link")
    later()
    checks.touches({"d": "a", "d/f": ""}, os.listdir, "d")
    checks.touches({"d": ""}, os.listdir, "d")
    checks.touches({"link": "a"}, os.readlink, "link")
    make("file", "d/g")
    later()
    checks.touches({"d": "a"}, os.listdir, "d", what="it has changed since")


def test_fifo(checks: Checks) -> None:
    os.mkfifo("fifo")
    descriptor = os.open("fifo", os.O_RDWR)
    checks.touches({"fifo": "mc"}, os.write, descriptor, b"data", fuse={"fifo": ""}, why=NO_CMTIME)
    os.close(descriptor)


def test_looking_changes_nothing(checks: Checks) -> None:
    make("dir", "d", 0o755)
    make("file", "d/f")
    os.setxattr("d/f", "user.a", b"v")
    later()
    os.listdir("d")
    for what, call in (
        ("stat", lambda: os.stat("d/f")),
        ("access", lambda: os.access("d/f", os.R_OK)),
        ("open", lambda: os.close(os.open("d/f", os.O_RDWR))),
        ("getxattr", lambda: os.getxattr("d/f", "user.a")),
        ("listxattr", lambda: os.listxattr("d/f")),
        ("statvfs", lambda: os.statvfs("d")),
        ("chdir", lambda: os.stat("d/../d")),
    ):
        checks.touches({"d": "", "d/f": ""}, call, what=what)
