"""open: every flag, what it refuses and what it changes; O_PATH, O_TMPFILE, O_NOFOLLOW, O_EXCL."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import (
    EACCES,
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOTDIR,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
)
from pathlib import Path

import pytest

from tests.posix.calls import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, linkat
from tests.posix.checks import ALICE, BOB, SHARED_GROUP, Checks, make, mode

pytestmark = pytest.mark.quick


@contextmanager
def opened(path: str, flags: int, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: str, flags: int, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


def test_permission(checks: Checks) -> None:
    """The owner's bits are for the owner, the group's for the group, whatever the others say."""
    make("file", "x")
    for owner, shift in ((ALICE, 6), (None, 3), (BOB, 0)):
        os.chown("x", owner.uid if owner else BOB.uid, ALICE.gid if not owner else BOB.gid)
        for bits in range(8):
            inverse = 0o777 & ~(7 << shift)
            for others in (0, inverse):
                os.chmod("x", bits << shift | others)
                for flags, needed in (
                    (os.O_RDONLY, 4), (os.O_WRONLY, 2), (os.O_RDWR, 6), (os.O_RDONLY | os.O_TRUNC, 6),
                    (os.O_WRONLY | os.O_APPEND, 2),
                ):  # fmt: skip
                    wanted = 0 if bits & needed == needed else EACCES
                    words = f"{bits << shift | others:03o} flags {flags:#o}"
                    checks.fails(wanted, _open, "x", flags, user=ALICE, what=words)


def test_create(checks: Checks) -> None:
    make("dir", "d", 0o755)
    checks.fails(EACCES, _open, "d/x", os.O_CREAT | os.O_RDWR, user=ALICE)
    checks.fails(ENOENT, _open, "d/x", os.O_RDWR)
    checks.touches({"d": "mc"}, _open, "d/x", os.O_CREAT | os.O_RDWR)
    checks.touches({"d": "", "d/x": ""}, _open, "d/x", os.O_CREAT | os.O_RDWR)
    checks.touches({"d": "", "d/x": ""}, _open, "d/x", os.O_CREAT | os.O_EXCL, fails=EEXIST)
    checks.works(_open, "d/x", os.O_CREAT | os.O_RDONLY, user=ALICE)
    checks.gives(0o644, mode, "d/x")


def test_links(checks: Checks) -> None:
    make("file", "x")
    os.mkdir("d")
    for target in ("x", "d", "nothing", "self"):
        os.symlink(target, target if target == "self" else f"to-{target}")
    for name in ("to-x", "to-d", "to-nothing", "self"):
        checks.fails(ELOOP, _open, name, os.O_RDONLY | os.O_NOFOLLOW)
        checks.fails(EEXIST, _open, name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        checks.works(_open, name, os.O_PATH | os.O_NOFOLLOW)
        checks.fails(ENOTDIR, _open, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    checks.fails(ENOENT, _open, "to-nothing", os.O_RDONLY)
    checks.works(_open, "to-nothing", os.O_CREAT | os.O_RDWR, what="made through the link")
    checks.works(os.stat, "nothing")
    checks.fails(ELOOP, _open, "self", os.O_CREAT | os.O_RDWR)
    with opened("to-x", os.O_PATH | os.O_NOFOLLOW) as descriptor:
        checks.gives(True, lambda: stat.S_ISLNK(os.fstat(descriptor).st_mode))
        checks.gives("x", lambda: os.readlink("", dir_fd=descriptor))


def test_directories(checks: Checks) -> None:
    os.mkdir("d")
    make("file", "x")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_CREAT):
        checks.fails(EISDIR, _open, "d", flags)
    checks.fails(EEXIST, _open, "d", os.O_CREAT | os.O_EXCL)
    checks.fails(ENOTDIR, _open, "x", os.O_RDONLY | os.O_DIRECTORY)
    checks.fails(EINVAL, _open, "d", os.O_CREAT | os.O_DIRECTORY)
    checks.fails(EINVAL, _open, "new", os.O_CREAT | os.O_DIRECTORY)
    checks.fails(ENOENT, os.stat, "new")
    with opened("d", os.O_RDONLY) as descriptor:
        checks.fails(EISDIR, os.read, descriptor, 10)
        checks.fails(EBADF, os.write, descriptor, b"x")
        checks.fails((EISDIR, EINVAL), os.pread, descriptor, 10, 0)


def test_special_files(checks: Checks) -> None:
    for kind in ("fifo", "socket"):
        make(kind, kind)
    checks.fails(ENXIO, _open, "fifo", os.O_WRONLY | os.O_NONBLOCK)
    checks.works(_open, "fifo", os.O_RDONLY | os.O_NONBLOCK)
    checks.works(_open, "fifo", os.O_RDWR)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        checks.fails(ENXIO, _open, "socket", flags)
    checks.works(_open, "socket", os.O_PATH)
    os.mknod("nodev", stat.S_IFCHR | 0o666, os.makedev(4000, 4000))
    checks.fails(ENXIO, _open, "nodev", os.O_RDONLY)
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with opened("null", os.O_RDWR) as descriptor:
        checks.gives(3, os.write, descriptor, b"abc")
        checks.gives(b"", os.read, descriptor, 10)


def test_o_path(checks: Checks) -> None:
    make("file", "x", 0)
    with opened("x", os.O_PATH) as descriptor:
        checks.fails(EBADF, os.read, descriptor, 1)
        checks.fails(EBADF, os.write, descriptor, b"x")
        checks.fails(EBADF, os.fchmod, descriptor, 0o777)
        checks.fails(EBADF, os.fchown, descriptor, 0, 0)
        checks.fails(EBADF, os.fsync, descriptor)
        checks.fails(EBADF, os.getxattr, descriptor, "user.a")
        checks.works(os.fstat, descriptor)
        checks.works(os.fstatvfs, descriptor)
        checks.works(linkat, "", "y", AT_EMPTY_PATH, descriptor)
        os.unlink("x")
        os.unlink("y")
        checks.gives(0, lambda: os.fstat(descriptor).st_nlink)
    checks.works(make, "file", "x", 0)
    checks.works(_open, "x", os.O_PATH, user=ALICE)


def test_noatime(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    checks.works(_open, "x", os.O_RDONLY | os.O_NOATIME, user=ALICE)
    checks.fails(EPERM, _open, "x", os.O_RDONLY | os.O_NOATIME, user=BOB)


def test_append(checks: Checks) -> None:
    Path("x").write_bytes(b"0123")
    with opened("x", os.O_RDWR | os.O_APPEND) as one, opened("x", os.O_WRONLY | os.O_APPEND) as two:
        for number in range(4):
            os.write(one if number % 2 else two, b"%d" % number)
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"end")
        checks.gives(b"01230123end", os.pread, one, 20, 0)
        checks.gives(11, os.lseek, one, 0, os.SEEK_CUR)
        fcntl.fcntl(one, fcntl.F_SETFL, 0)
        checks.gives(1, os.pwrite, one, b"X", 0)
        checks.gives(b"X1230123end", os.pread, one, 20, 0)


NO_TMPFILE = "pyfuse3 has no handler for O_TMPFILE"


def test_tmpfile(checks: Checks) -> None:
    make("dir", "d", 0o2777)
    os.chown("d", 0, SHARED_GROUP)
    flags = os.O_TMPFILE | os.O_RDWR
    if checks.where == "python":
        checks.fails(EOPNOTSUPP, _open, "d", flags, what=NO_TMPFILE)
        return
    checks.touches({"d": ""}, _open, "d", flags)
    checks.fails((EINVAL,), _open, "d", os.O_TMPFILE | os.O_RDONLY)
    make("file", "x")
    checks.fails(ENOTDIR, _open, "x", flags)
    checks.fails(ENOENT, _open, "absent", flags)
    with opened("d", flags, 0o4640) as descriptor:
        status = os.fstat(descriptor)
        checks.gives((0, SHARED_GROUP), lambda: (status.st_nlink, status.st_gid))
        checks.gives(0o4640, lambda: stat.S_IMODE(status.st_mode))
        os.write(descriptor, b"content")
        checks.touches(
            {"d": "mc"}, linkat, f"/proc/self/fd/{descriptor}", "d/named", AT_SYMLINK_FOLLOW
        )
        checks.gives(b"content", Path("d/named").read_bytes)
        checks.gives(1, lambda: os.fstat(descriptor).st_nlink)
        checks.works(linkat, f"/proc/self/fd/{descriptor}", "d/again", AT_SYMLINK_FOLLOW)
        checks.gives(2, lambda: os.stat("d/named").st_nlink)
    with opened("d", flags | os.O_EXCL) as descriptor:
        checks.fails(ENOENT, linkat, f"/proc/self/fd/{descriptor}", "d/no", AT_SYMLINK_FOLLOW)
    os.chmod("d", 0o755)
    checks.fails(EACCES, _open, "d", flags, user=ALICE)
    checks.gives(["again", "named"], lambda: sorted(os.listdir("d")))


def test_access(checks: Checks) -> None:
    """access(2), by the effective rights; root lacks execution alone, and of files alone."""
    make("file", "x", 0o640)
    os.chown("x", ALICE.uid, SHARED_GROUP)
    for user, reads, writes in ((ALICE, True, True), (BOB, True, False)):
        for how, wanted in ((os.R_OK, reads), (os.W_OK, writes), (os.X_OK, False), (os.F_OK, True)):
            checks.gives(wanted, lambda how=how: os.access("x", how, effective_ids=True), user=user)
    checks.gives(True, os.access, "x", os.R_OK | os.W_OK)
    checks.gives(False, os.access, "x", os.X_OK)
    os.chmod("x", 0o001)
    checks.gives(True, os.access, "x", os.X_OK)
    make("dir", "d", 0)
    checks.gives(True, os.access, "d", os.R_OK | os.W_OK | os.X_OK)
