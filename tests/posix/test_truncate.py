"""truncate, ftruncate: sizes, times, zeroes, limits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENXIO, EPERM, ETXTBSY
from pathlib import Path

import pytest

from tests.posix.checks import ALICE, BOB, NOT_DIRS, Checks, make
from tests.posix.limits import file_size_limit, running_program

SIZES = (0, 1, 511, 900, 1000, 4095, 4096, 4097, 65536, 1234567, 1 << 32, (1 << 43) - 4096)


@contextmanager
def _opened(flags: int, path: str = "x") -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("how", ["truncate", "ftruncate"])
def test_sizes(checks: Checks, how: str) -> None:
    """Longer: the new bytes are zeroes. Shorter and longer again: so are those that were cut."""
    for before in (0, 1, 100, 1000, 4096, 5000, 20_000):
        for after in SIZES:
            Path("x").write_bytes(b"d" * before)
            with _opened(os.O_RDWR) as descriptor:
                if how == "truncate":
                    checks.works(os.truncate, "x", after)
                else:
                    checks.works(os.ftruncate, descriptor, after)
                checks.gives(after, lambda: os.stat("x").st_size, what=f"{before} to {after}")
                kept = min(before, after)
                expected = (b"d" * kept).ljust(min(after, 30_000), b"\0")
                checks.gives(expected, os.pread, descriptor, len(expected) or 1, 0)
                os.ftruncate(descriptor, kept)
                os.ftruncate(descriptor, 30_000)
                checks.gives((b"d" * kept).ljust(30_000, b"\0"), os.pread, descriptor, 40_000, 0)


@pytest.mark.parametrize("how", ["truncate", "ftruncate"])
def test_times(checks: Checks, how: str) -> None:
    Path("x").write_bytes(b"d" * 5000)
    with _opened(os.O_RDWR) as descriptor:
        target = "x" if how == "truncate" else descriptor
        for size in (100, 100_000, 100, 0):
            checks.touches({"x": "mc", ".": ""}, os.truncate, target, size)
        checks.touches({"x": ""}, os.truncate, target, -1, fails=EINVAL)
        if how == "ftruncate":
            checks.touches({"x": "mc"}, os.truncate, target, 0, what="the same size")
        else:
            checks.touches(
                {"x": "mc"}, os.truncate, target, 0, what="the same size",
                fuse={"x": ""}, why="the kernel's writeback cache keeps both times, and as they are",
            )  # fmt: skip


def test_open_with_truncation(checks: Checks) -> None:
    Path("x").write_bytes(b"d" * 5000)

    def cut() -> None:
        os.close(os.open("x", os.O_WRONLY | os.O_TRUNC))

    checks.touches({"x": "mc", ".": ""}, cut)
    checks.gives(0, lambda: os.stat("x").st_size)
    checks.touches({"x": "mc"}, cut, what="it was empty")
    with _opened(os.O_RDONLY | os.O_TRUNC) as descriptor:
        checks.gives(b"", os.read, descriptor, 10)
    make("fifo", "fifo")
    with _opened(os.O_RDWR | os.O_TRUNC, "fifo") as descriptor:
        checks.gives(3, os.write, descriptor, b"abc")
        checks.gives(b"abc", os.read, descriptor, 10)


def test_permission(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    checks.fails(EACCES, os.truncate, "x", 0, user=BOB)
    checks.works(os.truncate, "x", 0, user=ALICE)
    os.chmod("x", 0o444)
    checks.fails(EACCES, os.truncate, "x", 0, user=ALICE)
    checks.works(os.truncate, "x", 0)
    os.chmod("x", 0o646)
    checks.works(os.truncate, "x", 10, user=BOB)
    with _opened(os.O_RDWR) as descriptor:
        os.chmod("x", 0)
        checks.works(os.ftruncate, descriptor, 5, user=BOB)


def test_what_cannot_be_cut(checks: Checks) -> None:
    os.mkdir("dir")
    checks.fails(EISDIR, os.truncate, "dir", 0)
    for kind in NOT_DIRS[1:-1]:
        make(kind, kind)
        checks.fails(EINVAL, os.truncate, kind, 0)
    make("file", "x")
    checks.fails(EINVAL, os.truncate, "x", -1)
    checks.fails(EINVAL, os.truncate, "x", -(1 << 63))
    with _opened(os.O_RDONLY) as descriptor:
        checks.fails((EINVAL, EBADF), os.ftruncate, descriptor, 0)
    with _opened(os.O_RDONLY, "dir") as descriptor:
        checks.fails(EINVAL, os.ftruncate, descriptor, 0)
    with _opened(os.O_PATH) as descriptor:
        checks.fails(EBADF, os.ftruncate, descriptor, 0)
    checks.fails(ENXIO, os.open, "socket", os.O_RDONLY)


def test_running_program(checks: Checks) -> None:
    with running_program("program"):
        checks.fails(ETXTBSY, os.truncate, "program", 0)
        checks.fails(ETXTBSY, os.open, "program", os.O_WRONLY)
        checks.fails(ETXTBSY, os.open, "program", os.O_RDWR | os.O_TRUNC)
        checks.works(os.rename, "program", "renamed")
        checks.works(os.unlink, "renamed")


def test_limit_of_the_process(checks: Checks) -> None:
    """RLIMIT_FSIZE: SIGXFSZ and EFBIG; up to the limit a write is short."""
    Path("x").write_bytes(b"d" * 100)
    with file_size_limit(10_000), _opened(os.O_RDWR) as descriptor:
        checks.works(os.truncate, "x", 10_000)
        checks.fails(EFBIG, os.truncate, "x", 10_001)
        checks.fails(EFBIG, os.ftruncate, descriptor, 1 << 40)
        checks.gives(True, signal_came)
        checks.gives(10_000, lambda: os.stat("x").st_size)
        checks.gives(100, os.pwrite, descriptor, bytes(200), 9_900)
        checks.fails(EFBIG, os.pwrite, descriptor, b"x", 10_000)
        checks.gives(True, signal_came)
        checks.fails(EFBIG, os.posix_fallocate, descriptor, 0, 20_000)
        checks.works(os.truncate, "x", 10)
    with _opened(os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 50_000)
        with file_size_limit(10_000):
            checks.works(os.ftruncate, descriptor, 40_000, what="shorter, and still too long")
            checks.fails(EFBIG, os.pwrite, descriptor, b"x", 20_000)


def signal_came() -> bool:
    """Whether SIGXFSZ has come since this was last asked; it is blocked meanwhile."""
    return signal.sigtimedwait({signal.SIGXFSZ}, 0) is not None


def test_append_only_handles(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    with _opened(os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"abc")
        checks.works(os.ftruncate, descriptor, 1)
        os.write(descriptor, b"z")
        checks.gives(b"dz".replace(b"d", b"a"), Path("x").read_bytes)
    checks.fails(EPERM, os.chown, "x", BOB.uid, -1, user=BOB)
