"""Immutable and append-only files and directories (FS_IOC_SETFLAGS, chattr(1)): EPERM, also for root."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import ENOTTY, EPERM
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import (
    FS_APPEND,
    FS_IMMUTABLE,
    KEEP_SIZE,
    PUNCH_HOLE,
    RENAME_EXCHANGE,
    UTIME_NOW,
    UTIME_OMIT,
    fallocate,
    linkat,
    renameat2,
    utimensat,
)
from tests.posix.checks import ALICE, Checks, make, mode, not_by_pyfuse3
from tests.posix.flags import flagged, get_flags, set_flags

pytestmark = [pytest.mark.quick, not_by_pyfuse3]  # who has no handler for ioctl

GIVEN, NOW, OMIT = (1, 2, 3, 4), (0, UTIME_NOW, 0, UTIME_NOW), (0, UTIME_OMIT, 0, UTIME_OMIT)


def _open(flags: int) -> Callable[[str], None]:
    return lambda path: os.close(os.open(path, flags))


# What may be done to an immutable and to an append-only file.
ON_FILES: dict[str, tuple[Callable[[str], Any], int, int]] = {
    "read": (_open(os.O_RDONLY), 0, 0),
    "write": (_open(os.O_WRONLY), EPERM, EPERM),
    "read and write": (_open(os.O_RDWR), EPERM, EPERM),
    "append": (_open(os.O_WRONLY | os.O_APPEND), EPERM, 0),
    "O_TRUNC": (_open(os.O_WRONLY | os.O_TRUNC), EPERM, EPERM),
    "O_TRUNC, append": (_open(os.O_WRONLY | os.O_APPEND | os.O_TRUNC), EPERM, EPERM),
    "truncate": (lambda path: os.truncate(path, 0), EPERM, EPERM),
    "chmod": (lambda path: os.chmod(path, 0o600), EPERM, EPERM),
    "chown": (lambda path: os.chown(path, 1, 1), EPERM, EPERM),
    "utime given": (lambda path: utimensat(path, GIVEN), EPERM, EPERM),
    "utime now": (lambda path: utimensat(path, None), EPERM, 0),
    "utime UTIME_NOW": (lambda path: utimensat(path, NOW), EPERM, 0),
    "utime omit": (lambda path: utimensat(path, OMIT), 0, 0),
    "atime alone": (lambda path: utimensat(path, (0, UTIME_NOW, 0, UTIME_OMIT)), EPERM, EPERM),
    "atime given": (lambda path: utimensat(path, (5, 5, 0, UTIME_OMIT)), EPERM, EPERM),
    "link": (lambda path: linkat(path, "other"), EPERM, EPERM),
    "unlink": (os.unlink, EPERM, EPERM),
    "rename": (lambda path: os.rename(path, "other"), EPERM, EPERM),
    "rename over": (lambda path: os.rename("spare", path), EPERM, EPERM),
    "exchange": (lambda path: renameat2("spare", path, RENAME_EXCHANGE), EPERM, EPERM),
    "set an attribute": (lambda path: os.setxattr(path, "user.a", b"v"), EPERM, EPERM),
    "remove an attribute": (lambda path: os.removexattr(path, "user.b"), EPERM, EPERM),
    "get an attribute": (lambda path: os.getxattr(path, "user.b"), 0, 0),
    "stat": (os.stat, 0, 0),
}


@pytest.mark.parametrize("call", ON_FILES)
@pytest.mark.parametrize("flag", [FS_IMMUTABLE, FS_APPEND], ids=["immutable", "append"])
def test_files(checks: Checks, call: str, flag: int) -> None:
    action, immutable, append = ON_FILES[call]
    wanted = immutable if flag == FS_IMMUTABLE else append
    Path("x").write_bytes(b"content")
    os.setxattr("x", "user.b", b"v")
    make("file", "spare")
    with flagged("x", flag):
        if wanted:
            checks.touches({"x": "", ".": "", "spare": ""}, action, "x", fails=wanted, what=call)
        else:
            checks.works(action, "x", what=call)
    checks.gives(b"content", Path("x").read_bytes)
    checks.works(action, "x", what=f"{call} afterwards")


CTIME_IS_THE_KERNELS = "the writeback cache keeps a file's ctime, and knows nothing of ioctls"
MTIME_ALONE = "the kernel's writeback sends the same request, which must be taken"


def test_mtime_of_append_only_files(checks: Checks) -> None:
    make("file", "x")
    with flagged("x", FS_APPEND):
        for form in ((0, UTIME_OMIT, 0, UTIME_NOW), (0, UTIME_OMIT, 3, 4)):
            checks.fails(EPERM, utimensat, "x", form, fuse=0, why=MTIME_ALONE)


IN_DIRECTORIES: dict[str, tuple[Callable[[], Any], int, int]] = {
    "list": (lambda: os.listdir("d"), 0, 0),
    "open": (lambda: _open(os.O_WRONLY)("d/f"), 0, 0),
    "truncate": (lambda: os.truncate("d/f", 1), 0, 0),
    "create": (lambda: make("file", "d/new"), EPERM, 0),
    "mkdir": (lambda: os.mkdir("d/new"), EPERM, 0),
    "mkfifo": (lambda: os.mkfifo("d/new"), EPERM, 0),
    "symlink": (lambda: os.symlink("x", "d/new"), EPERM, 0),
    "link": (lambda: linkat("f", "d/new"), EPERM, 0),
    "rename into": (lambda: os.rename("f", "d/new"), EPERM, 0),
    "O_TMPFILE": (lambda: _open(os.O_TMPFILE | os.O_RDWR)("d"), EPERM, 0),
    "unlink": (lambda: os.unlink("d/f"), EPERM, EPERM),
    "rmdir": (lambda: os.rmdir("d/sub"), EPERM, EPERM),
    "rename out": (lambda: os.rename("d/f", "new"), EPERM, EPERM),
    "rename within": (lambda: os.rename("d/f", "d/new"), EPERM, EPERM),
    "rename over": (lambda: os.rename("f", "d/f"), EPERM, EPERM),
    "exchange": (lambda: renameat2("f", "d/f", RENAME_EXCHANGE), EPERM, EPERM),
    "remove it": (lambda: os.rmdir("d"), EPERM, EPERM),
    "rename it": (lambda: os.rename("d", "new"), EPERM, EPERM),
    "chmod it": (lambda: os.chmod("d", 0o700), EPERM, EPERM),
    "touch it": (lambda: utimensat("d", None), EPERM, 0),
}


@pytest.mark.parametrize("call", IN_DIRECTORIES)
@pytest.mark.parametrize("flag", [FS_IMMUTABLE, FS_APPEND], ids=["immutable", "append"])
def test_directories(checks: Checks, call: str, flag: int) -> None:
    action, immutable, append = IN_DIRECTORIES[call]
    os.mkdir("d")
    os.mkdir("d/sub")
    make("file", "d/f")
    make("file", "f")
    with flagged("d", flag):
        checks.fails(immutable if flag == FS_IMMUTABLE else append, action, what=call)


def test_descriptors_that_were_open(checks: Checks) -> None:
    """fallocate and ftruncate look at the flags again; write(2) on ext4 does for immutable files."""
    Path("x").write_bytes(bytes(8192))
    descriptor = os.open("x", os.O_RDWR)
    for flag in (FS_IMMUTABLE, FS_APPEND):
        with flagged("x", flag):
            checks.fails(EPERM, os.ftruncate, descriptor, 0)
            checks.fails(EPERM, fallocate, descriptor, PUNCH_HOLE | KEEP_SIZE, 0, 4096)
            checks.fails(EPERM, os.fchmod, descriptor, 0o600)
    with flagged("x", FS_IMMUTABLE):
        checks.fails(EPERM, fallocate, descriptor, 0, 0, 4096)
    os.close(descriptor)


def test_who_may_set_flags(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    checks.fails(EPERM, set_flags, "x", get_flags("x") | FS_IMMUTABLE, user=ALICE)
    checks.works(set_flags, "x", get_flags("x"), user=ALICE)
    before = get_flags("x")
    checks.touches(
        {"x": "c"}, set_flags, "x", before | FS_APPEND, fuse={"x": ""}, why=CTIME_IS_THE_KERNELS
    )
    checks.fails(EPERM, set_flags, "x", before, user=ALICE)
    checks.works(set_flags, "x", before)
    os.mkdir("d")
    checks.touches({"d": "c"}, set_flags, "d", get_flags("d") | FS_APPEND)
    set_flags("d", before)
    os.mkfifo("fifo")
    descriptor = os.open("fifo", os.O_RDWR)
    checks.fails(ENOTTY, get_flags, "fifo")
    os.close(descriptor)
    checks.gives(0o644, mode, "x")


def test_append_only_is_appended_to(checks: Checks) -> None:
    Path("x").write_bytes(b"one")
    with flagged("x", FS_APPEND):
        descriptor = os.open("x", os.O_WRONLY | os.O_APPEND)
        checks.gives(3, os.write, descriptor, b"two")
        checks.gives(5, os.pwrite, descriptor, b"three", 0)  # Linux appends with pwrite too
        os.close(descriptor)
        checks.gives(b"onetwothree", Path("x").read_bytes)
