"""EROFS: on a bind mount that is read-only, on a filesystem mounted with ro, after a remount."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from errno import EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EROFS
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Mount, run
from tests.posix.calls import RENAME_EXCHANGE, linkat, renameat2, utimensat
from tests.posix.checks import ALICE, KINDS, Checks, make
from tests.support.uring import URING

NewMount = Callable[..., Mount]

pytestmark = pytest.mark.quick


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


# What is refused, and what comes before that.
CALLS: dict[str, tuple[Callable[[], Any], int]] = {
    "read": (lambda: _open("file", os.O_RDONLY), 0),
    "write": (lambda: _open("file", os.O_WRONLY), EROFS),
    "read and write": (lambda: _open("file", os.O_RDWR), EROFS),
    "O_TRUNC": (lambda: _open("file", os.O_RDONLY | os.O_TRUNC), EROFS),
    "O_CREAT of what is there": (lambda: _open("file", os.O_CREAT | os.O_RDONLY), 0),
    "O_CREAT": (lambda: _open("new", os.O_CREAT | os.O_RDONLY), EROFS),
    "O_CREAT and O_EXCL of what is there": (
        lambda: _open("file", os.O_CREAT | os.O_EXCL | os.O_RDWR), EEXIST,
    ),
    "O_TMPFILE": (lambda: _open("dir", os.O_TMPFILE | os.O_RDWR), EROFS),
    "write to a fifo": (lambda: _open("fifo", os.O_RDWR), 0),
    "a directory for writing": (lambda: _open("dir", os.O_WRONLY), EISDIR),
    "mkdir": (lambda: os.mkdir("new"), EROFS),
    "mkdir of what is there": (lambda: os.mkdir("dir"), EEXIST),
    "mkdir below nothing": (lambda: os.mkdir("absent/new"), ENOENT),
    "mkdir below a file": (lambda: os.mkdir("file/new"), ENOTDIR),
    "mknod": (lambda: os.mknod("new", stat.S_IFREG | 0o644), EROFS),
    "mkfifo": (lambda: os.mkfifo("new"), EROFS),
    "symlink": (lambda: os.symlink("x", "new"), EROFS),
    "symlink over what is there": (lambda: os.symlink("x", "file"), EEXIST),
    "link": (lambda: linkat("file", "new"), EROFS),
    "unlink": (lambda: os.unlink("file"), EROFS),
    "unlink of nothing": (lambda: os.unlink("absent"), EROFS),
    "rmdir": (lambda: os.rmdir("dir"), EROFS),
    "rmdir of '.'": (lambda: os.rmdir("dir/."), EINVAL),
    "rmdir of '..'": (lambda: os.rmdir("dir/.."), ENOTEMPTY),
    "rename": (lambda: os.rename("file", "new"), EROFS),
    "rename of nothing": (lambda: os.rename("absent", "new"), EROFS),
    "exchange": (lambda: renameat2("file", "dir", RENAME_EXCHANGE), EROFS),
    "chmod": (lambda: os.chmod("file", 0o600), EROFS),
    "chown": (lambda: os.chown("file", 1, 1), EROFS),
    "chown to nobody new": (lambda: os.chown("file", -1, -1), EROFS),
    "truncate": (lambda: os.truncate("file", 0), EROFS),
    "truncate of a directory": (lambda: os.truncate("dir", 0), EISDIR),
    "utimensat": (lambda: utimensat("file", None), EROFS),
    "setxattr": (lambda: os.setxattr("file", "user.b", b"v"), EROFS),
    "removexattr": (lambda: os.removexattr("file", "user.a"), EROFS),
    "getxattr": (lambda: os.getxattr("file", "user.a"), 0),
    "stat": (lambda: os.stat("file"), 0),
    "readlink": (lambda: os.readlink("symlink"), 0),
    "list": (lambda: os.listdir("."), 0),
}  # fmt: skip


def _populate() -> None:
    for kind in KINDS:
        make(kind, kind, 0o666)
    os.setxattr("file", "user.a", b"v")


def _check_all(checks: Checks) -> None:
    for what, (call, wanted) in CALLS.items():
        checks.fails(wanted, call, what=what)
    checks.gives(False, lambda: os.access("file", os.W_OK))
    checks.gives(False, lambda: os.access("file", os.W_OK, effective_ids=True), user=ALICE)
    checks.gives(True, lambda: os.access("fifo", os.W_OK))
    checks.true(bool(os.statvfs(".").f_flag & os.ST_RDONLY), "ST_RDONLY")


@pytest.fixture
def bound(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory is a read-only bind mount of a populated directory."""
    os.mkdir("origin")
    os.mkdir("seen")
    monkeypatch.chdir(place / "origin")
    _populate()
    run("mount", "--bind", place / "origin", place / "seen")
    try:
        run("mount", "-o", "remount,bind,ro", place / "seen")
        monkeypatch.chdir(place / "seen")
        yield
    finally:
        monkeypatch.chdir(place)
        run("umount", place / "seen")


@pytest.mark.usefixtures("bound")
def test_bind_mount(checks: Checks) -> None:
    _check_all(checks)


@pytest.mark.parametrize("frontend", ["c", URING, "python"])
def test_mounted_read_only(
    new_mount: NewMount, frontend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = new_mount(size="64M", options=f"frontend={frontend}")
    monkeypatch.chdir(mount.path)
    _populate()
    os.truncate("file", 5)
    monkeypatch.chdir("/")
    mount.remount(f"ro,frontend={frontend}")
    monkeypatch.chdir(mount.path)
    checks = Checks(frontend)
    _check_all(checks)
    before = os.stat("file")
    checks.gives(bytes(5), Path("file").read_bytes)
    checks.gives(before, lambda: os.stat("file"), what="no atime either")
    monkeypatch.chdir("/")
    checks.judge()
