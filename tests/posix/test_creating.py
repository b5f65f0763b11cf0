"""open(O_CREAT), mkdir, mkfifo, mknod: mode, umask, owner, group, times, and what may be made by whom."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EINVAL, ENOENT, EPERM

import pytest

from tests.posix.checks import ALICE, BOB, ROOT, SHARED_GROUP, Checks, User, make, mode, remove

MASKS = (0, 0o022, 0o077, 0o151, 0o501, 0o777)
MODES = (0o755, 0o644, 0o151, 0, 0o777, 0o1777, 0o4755, 0o2755, 0o6755, 0o2644, 0o7777)


def _creat(path: str, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _node(type_: int, device: int = 0) -> Callable[[str, int], None]:
    return lambda path, mode: os.mknod(path, type_ | mode, device)


MAKERS: dict[str, Callable[[str, int], None]] = {
    "file": _creat,
    "dir": os.mkdir,
    "fifo": os.mkfifo,
    "node": _node(0),
    "mknod fifo": _node(stat.S_IFIFO),
    "socket": _node(stat.S_IFSOCK),
    "char": _node(stat.S_IFCHR, os.makedev(1, 3)),
    "block": _node(stat.S_IFBLK, os.makedev(8, 1)),
}
TYPES = {
    "file": stat.S_IFREG, "dir": stat.S_IFDIR, "fifo": stat.S_IFIFO, "node": stat.S_IFREG,
    "mknod fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}  # fmt: skip
FOR_ROOT = ("char", "block")


def _users(what: str) -> tuple[User, ...]:
    return (ROOT,) if what in FOR_ROOT else (ROOT, ALICE)


@pytest.mark.parametrize("what", MAKERS)
def test_mode_and_owner(checks: Checks, what: str) -> None:
    """The umask takes its bits and no others; mkdir knows no set-ID bits."""
    for user in _users(what):
        for umask in MASKS:
            for asked in MODES:
                kept = asked & (0o1777 if what == "dir" else 0o7777)
                checks.works(MAKERS[what], "x", asked, user=user, umask=umask, what=oct(umask))
                status = os.lstat("x")
                wanted = (TYPES[what] | kept & ~umask, user.uid, user.gid)
                found = (status.st_mode, status.st_uid, status.st_gid)
                checks.gives(wanted, lambda found=found: found, what=f"{what} {umask:o} {asked:o}")
                remove("dir" if what == "dir" else what, "x")


@pytest.mark.parametrize("what", MAKERS)
def test_group_of_the_directory(checks: Checks, what: str) -> None:
    """A set-group-ID directory gives its group on, and to directories the bit itself."""
    make("dir", "d", 0o2777)
    for group, member in ((SHARED_GROUP, True), (BOB.gid, False)):
        os.chown("d", 0, group)
        os.chmod("d", 0o2777)
        for user in _users(what):
            for asked in (0o755, 0o644, 0o2755, 0o2745, 0o6711):
                MAKERS[what]("d/x", asked) if user is ROOT else checks.works(
                    MAKERS[what], "d/x", asked, user=user
                )
                kept = asked & (0o1777 if what == "dir" else 0o7777)
                if what == "dir":
                    kept |= stat.S_ISGID
                elif user is not ROOT and not member and kept & stat.S_IXGRP:
                    kept &= ~stat.S_ISGID  # not to be had by writing into another's directory
                status = os.lstat("d/x")
                found = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
                checks.gives(
                    (kept, user.uid, group), lambda found=found: found, what=f"{what} {asked:o}"
                )
                remove(what, "d/x")


@pytest.mark.parametrize("what", MAKERS)
def test_times_and_links(checks: Checks, what: str) -> None:
    """All times of what is new are of now, and so are mtime and ctime of the directory."""
    make("dir", "d", 0o755)
    checks.touches({"d": "mc", ".": ""}, MAKERS[what], "d/x", 0o644)
    status, parent = os.lstat("d/x"), os.stat("d")
    checks.true(status.st_atime_ns == status.st_mtime_ns == status.st_ctime_ns, "one time")
    checks.true(abs(status.st_ctime_ns - parent.st_mtime_ns) < 10**9, "the directory's time")
    checks.gives(2 if what == "dir" else 1, lambda: os.lstat("d/x").st_nlink)
    checks.gives(3 if what == "dir" else 2, lambda: os.stat("d").st_nlink)
    checks.gives(0, lambda: 0 if what == "dir" else os.lstat("d/x").st_size)
    checks.touches({"d": "", "d/x": ""}, MAKERS[what], "d/x", 0o644, fails=17)
    checks.touches({"d": "", "d/x": ""}, MAKERS[what], "d/" + "n" * 256, 0o644, fails=36)


@pytest.mark.parametrize("what", MAKERS)
def test_in_a_removed_directory(checks: Checks, what: str, place: os.PathLike[str]) -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    checks.fails(ENOENT, MAKERS[what], "x", 0o644)
    os.chdir(place)


def test_devices_are_roots(checks: Checks) -> None:
    for what in FOR_ROOT:
        checks.fails(EPERM, MAKERS[what], "x", 0o644, user=ALICE)
    checks.fails(EPERM, os.mknod, "x", stat.S_IFDIR | 0o755)
    checks.fails(EPERM, os.mknod, "x", stat.S_IFDIR | 0o755, user=ALICE)
    checks.fails(EINVAL, os.mknod, "x", stat.S_IFLNK | 0o755)
    checks.fails(EINVAL, os.mknod, "x", 0o170000 | 0o755)


@pytest.mark.parametrize("type_", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_numbers(checks: Checks, type_: int) -> None:
    for major, minor in ((0, 0), (1, 2), (1, 255), (1, 256), (255, 255), (256, 1), (4095, 1048575)):
        os.mknod("x", type_ | 0o600, os.makedev(major, minor))
        found = os.stat("x").st_rdev
        checks.gives((major, minor), lambda found=found: (os.major(found), os.minor(found)))
        os.unlink("x")


def test_owner_may_lack_rights_to_what_it_makes(checks: Checks) -> None:
    """The mode does not bind the descriptor that made the file."""

    def write_and_read() -> bytes:
        descriptor = os.open("x", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0)
        try:
            os.write(descriptor, b"data")
            return os.pread(descriptor, 10, 0)
        finally:
            os.close(descriptor)

    checks.gives(b"data", write_and_read, user=ALICE)
    checks.gives(0, mode, "x")
    checks.fails(13, os.open, "x", os.O_RDONLY, user=ALICE)
