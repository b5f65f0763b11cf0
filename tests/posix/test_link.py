"""link, linkat, symlink, readlink."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, EPERM, EXDEV
from pathlib import Path

import pytest

from tests.posix.calls import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, PATH_MAX, linkat
from tests.posix.checks import ALICE, BOB, NOT_DIRS, Checks, make, mode


@pytest.mark.quick
@pytest.mark.parametrize("kind", NOT_DIRS)
def test_link(checks: Checks, kind: str) -> None:
    os.mkdir("d")
    make(kind, "x", 0o640)
    checks.touches({"x": "c", "d": "mc", ".": ""}, linkat, "x", "d/y")
    checks.gives(2, lambda: os.lstat("x").st_nlink)
    checks.gives(os.lstat("x"), os.lstat, "d/y")
    checks.touches({"x": "c", "d/y": "c", ".": "mc"}, linkat, "d/y", "z")
    checks.gives(3, lambda: os.lstat("x").st_nlink)
    checks.touches({"x": "", "z": "", ".": ""}, linkat, "x", "z", fails=EEXIST)
    checks.touches({"x": "", ".": ""}, linkat, "x", "x", fails=EEXIST)
    if kind != "symlink":
        os.chmod("d/y", 0o604)
        os.chown("z", ALICE.uid, ALICE.gid)
        checks.gives(0o604, mode, "x")
        checks.gives((ALICE.uid, ALICE.gid), lambda: (os.stat("x").st_uid, os.stat("x").st_gid))
    os.unlink("x")
    checks.gives(2, lambda: os.lstat("z").st_nlink)
    os.unlink("d/y")
    checks.gives(1, lambda: os.lstat("z").st_nlink)


def test_directories_have_one_name(checks: Checks) -> None:
    os.mkdir("d")
    checks.fails(EPERM, linkat, "d", "e")
    checks.fails(EPERM, linkat, ".", "e")
    checks.fails(EEXIST, linkat, "d", "d")
    os.chmod(".", 0o777)
    checks.fails(EPERM, linkat, "d", "e", user=ALICE)


def test_permission(checks: Checks) -> None:
    make("dir", "from", 0o755)
    make("dir", "to", 0o777)
    make("file", "from/x", 0o644, ALICE)
    checks.works(linkat, "from/x", "to/x", user=ALICE)
    os.unlink("to/x")
    os.chmod("to", 0o755)
    checks.fails(EACCES, linkat, "from/x", "to/x", user=ALICE)
    os.chmod("to", 0o777)
    os.chmod("from", 0o700)
    checks.fails(EACCES, linkat, "from/x", "to/x", user=ALICE)
    os.chmod("from", 0o755)
    hardened = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    checks.fails(EPERM if hardened else 0, linkat, "from/x", "to/x", user=BOB)


def test_links_of_links(checks: Checks) -> None:
    make("file", "x")
    os.symlink("x", "s")
    checks.works(linkat, "s", "s2")
    checks.gives(True, lambda: stat.S_ISLNK(os.lstat("s2").st_mode))
    checks.gives(2, lambda: os.lstat("s").st_nlink)
    checks.works(linkat, "s", "x2", AT_SYMLINK_FOLLOW)
    checks.gives(2, lambda: os.lstat("x").st_nlink)
    checks.fails(EINVAL, linkat, "s", "x3", 0x8000)


def test_by_descriptor(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    descriptor = os.open("x", os.O_RDONLY)
    checks.works(linkat, "", "y", AT_EMPTY_PATH, descriptor)
    checks.works(linkat, f"/proc/self/fd/{descriptor}", "z", AT_SYMLINK_FOLLOW)
    checks.gives(3, lambda: os.stat("x").st_nlink)
    checks.fails(ENOENT, linkat, "", "w", 0, descriptor)
    os.close(descriptor)


def test_other_filesystems(checks: Checks) -> None:
    make("file", "x")
    checks.fails(EXDEV, linkat, "x", "/dev/shm/nvmefs-posix-x")
    checks.fails(EXDEV, os.rename, "x", "/dev/shm/nvmefs-posix-x")
    checks.fails(EXDEV, linkat, "/proc/self/status", "y")
    checks.works(os.symlink, "/proc/self/status", "y")


def test_many_links(checks: Checks) -> None:
    make("file", "x")
    for number in range(1200):
        os.link("x", f"link-{number}")
    checks.gives(1201, lambda: os.stat("x").st_nlink)
    checks.gives(1201, lambda: len(os.listdir()))
    for number in range(0, 1200, 2):
        os.unlink(f"link-{number}")
    checks.gives(601, lambda: os.stat("link-1").st_nlink)


@pytest.mark.parametrize("length", [1, 59, 60, 61, 255, 256, 1023, PATH_MAX - 1])
def test_symlink(checks: Checks, length: int) -> None:
    os.mkdir("d")
    target = "t" * length
    checks.touches({"d": "mc", ".": ""}, os.symlink, target, "d/x")
    checks.gives(target, os.readlink, "d/x")
    checks.gives(length, lambda: os.lstat("d/x").st_size)
    checks.gives(0o777, mode, "d/x")
    checks.gives(1, lambda: os.lstat("d/x").st_nlink)
    checks.touches({"d": ""}, os.symlink, target, "d/x", fails=EEXIST)


def test_symlink_errors(checks: Checks) -> None:
    make("dir", "d", 0o755)
    checks.fails(ENAMETOOLONG, os.symlink, "t" * PATH_MAX, "x")
    checks.fails(ENOENT, os.symlink, "", "x")
    checks.fails(ENOENT, os.symlink, "t", "")
    checks.fails(EACCES, os.symlink, "t", "d/x", user=ALICE)
    make("file", "f")
    for name in ("f", "d"):
        checks.fails(EINVAL, os.readlink, name)
    checks.works(os.symlink, b"\xff\xfe\n\x01", b"bytes")
    checks.gives(b"\xff\xfe\n\x01", os.readlink, b"bytes")


def test_symlink_owner(checks: Checks) -> None:
    checks.works(os.symlink, "t", "x", user=ALICE, umask=0o777)
    status = os.lstat("x")
    checks.gives((ALICE.uid, ALICE.gid, 0o777), lambda: (status.st_uid, status.st_gid, mode("x")))
    make("dir", "d", 0o2777)
    os.chown("d", 0, BOB.gid)
    checks.works(os.symlink, "t", "d/x", user=ALICE)
    checks.gives(BOB.gid, lambda: os.lstat("d/x").st_gid)
    checks.works(os.readlink, "x", user=BOB)


@pytest.mark.quick
def test_the_same_name_again(checks: Checks) -> None:
    """What the kernel has cached of a link does not outlive it."""
    for target in ("one", "two", "a" * 300, "three"):
        os.symlink(target, "x")
        checks.gives(target, os.readlink, "x")
        os.unlink("x")
    os.symlink("one", "x")
    os.symlink("other", "y")
    os.rename("y", "x")
    checks.gives("other", os.readlink, "x")
