"""unlink, rmdir: what goes, what stays usable, which times change."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY

import pytest

from tests.mount.conftest import run
from tests.posix.calls import AT_REMOVEDIR, AT_SYMLINK_FOLLOW, linkat, unlinkat
from tests.posix.checks import ALICE, BOB, KINDS, NOT_DIRS, Checks, make, remove


@pytest.mark.parametrize("kind", NOT_DIRS)
def test_unlink(checks: Checks, kind: str) -> None:
    os.mkdir("d")
    make(kind, "d/x")
    checks.touches({"d": "mc", ".": ""}, os.unlink, "d/x")
    checks.fails(ENOENT, os.lstat, "d/x")
    checks.fails(ENOENT, os.unlink, "d/x")
    make(kind, "d/y")
    checks.fails(ENOTDIR, unlinkat, "d/y", AT_REMOVEDIR)
    checks.fails(ENOTDIR, os.rmdir, "d/y")
    if kind != "symlink":
        os.link("d/y", "d/z")
        checks.touches({"d": "mc", "d/z": "c"}, os.unlink, "d/y")
        checks.gives(1, lambda: os.lstat("d/z").st_nlink)


def test_unlink_a_directory(checks: Checks) -> None:
    os.mkdir("d")
    os.mkdir("d/x")
    checks.touches({"d": "", "d/x": ""}, os.unlink, "d/x", fails=EISDIR)
    checks.fails(EISDIR, os.unlink, "d/x/")
    os.chmod("d", 0o777)
    checks.fails(EISDIR, os.unlink, "d/x", user=ALICE)
    os.chmod("d", 0o755)
    checks.fails(EACCES, os.unlink, "d/x", user=ALICE)
    checks.fails(EINVAL, unlinkat, "d/x", 0x8000)


@pytest.mark.parametrize("kind", KINDS)
def test_permission(checks: Checks, kind: str) -> None:
    """Of the directory; that of the file does not matter."""
    os.mkdir("d")
    os.chown("d", ALICE.uid, ALICE.gid)
    for directory_mode, user, wanted in (
        (0o755, ALICE, 0),
        (0o555, ALICE, EACCES),
        (0o655, ALICE, EACCES),
        (0o755, BOB, EACCES),
        (0o757, BOB, 0),
        (0o756, BOB, EACCES),
    ):
        make(kind, "d/x", 0)
        os.chmod("d", directory_mode)
        checks.fails(wanted, remove, kind, "d/x", user=user, what=oct(directory_mode))
        if wanted:
            remove(kind, "d/x")


@pytest.mark.quick
def test_an_open_file_lives_on(checks: Checks) -> None:
    descriptor = os.open("x", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(descriptor, b"before")
    os.unlink("x")
    checks.gives(0, lambda: os.fstat(descriptor).st_nlink)
    checks.gives(b"before", os.pread, descriptor, 10, 0)
    checks.gives(5, os.pwrite, descriptor, b"after", 6)
    checks.gives(11, lambda: os.fstat(descriptor).st_size)
    checks.works(os.fchmod, descriptor, 0o600)
    checks.works(os.fchown, descriptor, ALICE.uid, ALICE.gid)
    checks.gives((0o600, ALICE.uid), lambda: _owner_and_mode(descriptor))
    checks.works(os.ftruncate, descriptor, 3)
    checks.gives(b"bef", os.pread, descriptor, 10, 0)
    checks.works(lambda: os.utime(descriptor, ns=(1, 2)))
    checks.gives(2, lambda: os.fstat(descriptor).st_mtime_ns)
    checks.works(os.setxattr, descriptor, "user.a", b"v")
    checks.gives(b"v", os.getxattr, descriptor, "user.a")
    checks.works(os.fsync, descriptor)
    make("file", "x")  # the name is free for another
    checks.true(os.stat("x").st_ino != os.fstat(descriptor).st_ino, "another inode")
    checks.fails(ENOENT, linkat, f"/proc/self/fd/{descriptor}", "back", AT_SYMLINK_FOLLOW)
    os.close(descriptor)


def _owner_and_mode(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return stat.S_IMODE(status.st_mode), status.st_uid


def test_rmdir(checks: Checks) -> None:
    os.mkdir("d")
    os.mkdir("d/x")
    checks.gives(3, lambda: os.stat("d").st_nlink)
    checks.touches({"d": "mc", ".": ""}, os.rmdir, "d/x")
    checks.gives(2, lambda: os.stat("d").st_nlink)
    checks.fails(ENOENT, os.rmdir, "d/x")


@pytest.mark.parametrize("kind", KINDS)
def test_rmdir_of_what_is_not_empty(checks: Checks, kind: str) -> None:
    os.mkdir("d")
    make(kind, "d/x")
    checks.touches({"d": "", "d/x": "", ".": ""}, os.rmdir, "d", fails=ENOTEMPTY)
    remove(kind, "d/x")
    checks.works(os.rmdir, "d")


@pytest.mark.parametrize("kind", NOT_DIRS)
def test_rmdir_of_no_directory(checks: Checks, kind: str) -> None:
    make(kind, "x")
    checks.fails(ENOTDIR, os.rmdir, "x")
    checks.fails(ENOTDIR, os.rmdir, "x/")


def test_rmdir_by_links(checks: Checks) -> None:
    os.mkdir("d")
    os.symlink("d", "link")
    checks.fails(ENOTDIR, os.rmdir, "link")
    checks.fails(ENOTDIR, os.rmdir, "link/")
    checks.works(os.rmdir, "d")


@pytest.mark.quick
def test_a_removed_directory(checks: Checks, place: os.PathLike[str]) -> None:
    """Who is in it may look at it, and no more."""
    os.mkdir("d")
    descriptor = os.open("d", os.O_RDONLY)
    os.chdir("d")
    os.rmdir("../d")
    checks.gives(0, lambda: os.fstat(descriptor).st_nlink)
    checks.gives([], os.listdir, descriptor)
    checks.gives([], os.listdir, ".")
    checks.fails(ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY)
    checks.fails(ENOENT, os.mkdir, "x")
    checks.fails(ENOENT, os.symlink, "x", "x")
    checks.fails(ENOENT, os.getcwd)
    checks.works(os.stat, ".")
    checks.works(os.stat, "..")
    checks.works(os.fchmod, descriptor, 0o700)
    checks.works(os.fsync, descriptor)
    os.chdir(place)
    checks.fails(ENOENT, lambda: os.stat("x", dir_fd=descriptor))
    os.close(descriptor)


def test_mountpoints(checks: Checks) -> None:
    os.mkdir("d")
    os.mkdir("other")
    make("file", "f")
    make("file", "g")
    run("mount", "--bind", "other", "d")
    run("mount", "--bind", "g", "f")
    try:
        checks.fails(EBUSY, os.rmdir, "d")
        checks.fails(EBUSY, os.rename, "d", "e")
        checks.fails(EBUSY, os.rename, "other", "d")
        checks.fails(EBUSY, os.unlink, "f")
        checks.fails(EBUSY, os.rename, "f", "h")
    finally:
        run("umount", "f")
        run("umount", "d")
    checks.works(os.rmdir, "d")


def test_ino_is_not_used_again_while_open(checks: Checks) -> None:
    held = [os.open(f"f{i}", os.O_CREAT | os.O_RDWR) for i in range(20)]
    for i in range(20):
        os.unlink(f"f{i}")
    for i in range(20):
        make("file", f"g{i}")
    inos = {os.fstat(one).st_ino for one in held} | {os.stat(f"g{i}").st_ino for i in range(20)}
    checks.true(len(inos) == 40, "each its own inode")
    for one in held:
        os.close(one)
    checks.fails(EEXIST, os.mkdir, "g0")
