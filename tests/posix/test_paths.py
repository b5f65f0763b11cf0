"""What every call that takes a path refuses in the same way: path_resolution(7), and in this order."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import (
    EACCES,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
)
from typing import Any

import pytest

from tests.posix import calls
from tests.posix.checks import ALICE, KINDS, NOT_DIRS, ROOT, Checks, User, make

Call = Callable[[str], Any]


def _open(flags: int) -> Call:
    def opened(path: str) -> None:
        os.close(os.open(path, flags, 0o644))

    return opened


def _chdir(path: str) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
        os.fchdir(here)
    finally:
        os.close(here)


# Calls that look something up, and calls that make a name. Each takes the path alone.
LOOKERS: dict[str, Call] = {
    "open": _open(os.O_RDONLY | os.O_NONBLOCK),
    "open for writing": _open(os.O_WRONLY),
    "open O_PATH": _open(os.O_PATH),
    "stat": os.stat,
    "lstat": os.lstat,
    "statx": calls.statx,
    "access": lambda path: os.access(path, os.F_OK, effective_ids=True) or os.stat(path),
    "statvfs": os.statvfs,
    "chmod": lambda path: os.chmod(path, 0o644),
    "chown": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.lchown(path, -1, -1),
    "truncate": lambda path: os.truncate(path, 0),
    "utimensat": lambda path: calls.utimensat(path, None),
    "utimensat without following": lambda path: calls.utimensat(
        path, None, calls.AT_SYMLINK_NOFOLLOW
    ),
    "chdir": _chdir,
    "readlink": os.readlink,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename from": lambda path: os.rename(path, "elsewhere"),
    "link from": lambda path: calls.linkat(path, "elsewhere"),
    "getxattr": lambda path: os.getxattr(path, "user.a"),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"v"),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, "user.a"),
    "execve": lambda path: os.execve(path, ["f"], {}),
}
MAKERS: dict[str, Call] = {
    "creat": _open(os.O_CREAT | os.O_WRONLY | os.O_EXCL),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, 0o644),
    "symlink": lambda path: os.symlink("anywhere", path),
    "link to": lambda path: calls.linkat("origin", path),
    "rename to": lambda path: os.rename("origin", path),
}
ALL = {**LOOKERS, **MAKERS}
FOLLOWING = set(ALL) - {
    "lstat", "lchown", "readlink", "unlink", "rmdir", "rename from", "link from", "mkdir", "mkfifo",
    "utimensat without following", "mknod", "symlink", "link to", "rename to", "creat",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _origin(place: os.PathLike[str]) -> None:
    make("file", "origin")
    make("dir", "d", 0o755)


@pytest.mark.parametrize("call", ALL)
def test_resolution(checks: Checks, call: str) -> None:
    take = ALL[call]
    checks.fails(ENOENT, take, "")
    checks.fails(ENOENT, take, "absent/x")
    checks.fails(ENOENT, take, "d/absent/x")
    for kind in NOT_DIRS[:-1]:
        if kind != "file":
            make(kind, kind)
        name = "origin" if kind == "file" else kind
        checks.fails(ENOTDIR, take, f"{name}/x")
        checks.fails(ENOTDIR, take, f"{name}/.")
        checks.fails(ENOTDIR, take, f"{name}/..")
    os.symlink("nothing", "dangling")
    checks.fails(ENOENT, take, "dangling/x")
    os.symlink("loop-b", "loop-a")
    os.symlink("loop-a", "loop-b")
    checks.fails(ELOOP, take, "loop-a/x")
    checks.fails(ELOOP, take, "loop-a/x/y")
    if call in FOLLOWING:
        checks.fails(ELOOP, take, "loop-a")
        checks.fails(ENOENT, take, "dangling")


@pytest.mark.parametrize("call", LOOKERS)
def test_absent(checks: Checks, call: str) -> None:
    take = LOOKERS[call]
    checks.fails(ENOENT, take, "absent")
    checks.fails(ENOENT, take, "d/absent")
    checks.fails(ENOENT, take, "absent/")


@pytest.mark.parametrize("call", ALL)
def test_length_of_names(checks: Checks, call: str) -> None:
    take = ALL[call]
    longest, longer = "n" * calls.NAME_MAX, "n" * (calls.NAME_MAX + 1)
    for directory in ("", "d/"):
        if call in MAKERS:
            checks.works(take, directory + longest)
            checks.true(longest in os.listdir(directory or "."), "the longest name is listed")
            if call == "rename to":
                make("file", "origin")
        else:
            checks.fails(ENOENT, take, directory + longest)
        checks.fails(ENAMETOOLONG, take, directory + longer)
        checks.fails(ENAMETOOLONG, take, directory + longer + "/x")
        checks.fails(ENAMETOOLONG, take, directory + "é" * 128)  # 256 bytes
    checks.fails(ENOENT, take, "absent/" + longer)  # the directory is looked for first
    checks.fails(ENOTDIR, take, "origin/" + longer)


@pytest.mark.parametrize("call", ALL)
def test_length_of_paths(checks: Checks, call: str) -> None:
    take = ALL[call]
    step = "d/../"
    base = step * (calls.PATH_MAX // len(step))  # 4,095 bytes: one less than fit without a name
    exactly = base[: -len(step)] + "d/" + "x" * 2  # 4,094: with its NUL byte it fits
    exactly += "x" * (calls.PATH_MAX - 1 - len(exactly))
    assert len(exactly) == calls.PATH_MAX - 1
    if call in MAKERS:
        checks.works(take, exactly)
    else:
        checks.fails(ENOENT, take, exactly)
    checks.fails(ENAMETOOLONG, take, exactly + "x")
    checks.fails(ENAMETOOLONG, take, "/" * calls.PATH_MAX)
    checks.fails(ENAMETOOLONG, take, "absent/" * 600)  # before anything is looked up


@pytest.mark.parametrize("call", ALL)
def test_search_permission(checks: Checks, call: str) -> None:
    """Execute permission on each directory of the path, for owner, group and others alike."""
    take = ALL[call]
    os.mkdir("d/in")
    os.chmod("d/in", 0o777)
    make("file", "d/in/f", 0o666)
    os.chmod("origin", 0o666)
    for owner, refusing in (
        (ALICE, 0o677),
        (User(ROOT.uid, ALICE.gid), 0o767),
        (User(ROOT.uid, ROOT.gid), 0o776),
    ):
        os.chown("d", owner.uid, owner.gid)
        os.chmod("d", refusing)
        for path in ("d/in/f", "d/in/absent", "d/absent", "d/in", "d/in/"):
            checks.fails(EACCES, take, path, user=ALICE, what=oct(refusing))
        checks.fails(EACCES, take, "d/in/" + "n" * 256, user=ALICE)
    os.chmod("d", 0o755)


@pytest.mark.parametrize("call", MAKERS)
def test_names_need_a_directory_to_write(checks: Checks, call: str) -> None:
    take = MAKERS[call]
    os.chown("origin", ALICE.uid, ALICE.gid)
    for owner, refusing in (
        (ALICE, 0o577),
        (User(ROOT.uid, ALICE.gid), 0o757),
        (User(ROOT.uid, ROOT.gid), 0o775),
    ):
        os.chown("d", owner.uid, owner.gid)
        os.chmod("d", refusing)
        checks.fails(EACCES, take, "d/new", user=ALICE, what=oct(refusing))
        make("file", "d/old", 0o666)
        checks.fails(
            EACCES if call == "rename to" else EEXIST, take, "d/old", user=ALICE, what="exists"
        )
        os.unlink("d/old")
        os.chmod("d", 0o777)
        checks.works(take, "d/new", user=ALICE)
        (os.rmdir if call == "mkdir" else os.unlink)("d/new")
        if call == "rename to":
            make("file", "origin", 0o644, ALICE)


@pytest.mark.parametrize("call", MAKERS)
def test_existing(checks: Checks, call: str) -> None:
    """Whatever exists is in the way, whatever it is; also a link that leads nowhere or in a circle."""
    take = MAKERS[call]
    os.symlink("loop", "loop")
    taken = [*KINDS[1:], "loop"]
    for kind in KINDS[1:]:
        make(kind, kind)
    for name in taken:
        if call == "rename to":
            checks.fails(EISDIR if name == "dir" else 0, take, name, what=name)
            if name != "dir":
                os.link(name, "origin")
        else:
            checks.fails(EEXIST, take, name)
    if call != "rename to":
        for path in (".", "..", "d/.", "d/..", "/"):
            checks.fails(EEXIST, take, path)


@pytest.mark.parametrize("call", MAKERS)
def test_trailing_slash(checks: Checks, call: str) -> None:
    take = MAKERS[call]
    if call == "mkdir":
        checks.works(take, "new/")
        checks.works(take, "another//")
        checks.fails(EEXIST, take, "new/")
        checks.fails(EEXIST, take, "origin/")
    elif call == "creat":
        checks.fails(EISDIR, take, "new/")
        checks.fails(EISDIR, take, "origin/")
    elif call == "rename to":
        checks.fails(ENOTDIR, take, "new/")
        checks.fails(ENOTDIR, take, "d/")
    else:
        checks.fails(ENOENT, take, "new/")
        checks.fails(EEXIST, take, "d/")


@pytest.mark.parametrize("kind", NOT_DIRS[:-1])
def test_trailing_slash_after_what_is_no_directory(checks: Checks, kind: str) -> None:
    make(kind, "f")
    for call, take in LOOKERS.items():
        checks.fails(ENOTDIR, take, "f/", what=call)


def test_dots(checks: Checks) -> None:
    checks.fails(EINVAL, os.rmdir, "d/.")
    checks.fails(ENOTEMPTY, os.rmdir, "d/..")
    checks.fails(EISDIR, os.unlink, "d/.")
    checks.fails(EISDIR, os.unlink, "d/..")
    for dot in ("d/.", "d/..", ".", ".."):
        checks.fails(EBUSY, os.rename, dot, "new")
        checks.fails(EBUSY, os.rename, "d", dot)
    checks.fails(EISDIR, _open(os.O_WRONLY), "d")
    checks.fails(EISDIR, _open(os.O_RDWR), "d/.")
    checks.fails(EISDIR, _open(os.O_WRONLY | os.O_CREAT), "d")


def test_addresses(checks: Checks) -> None:
    """EFAULT for a path outside the address space."""
    one = 1
    for name, *rest in (
        ("open", 0), ("mkdir", 0o755), ("mkfifo", 0o644), ("rmdir",), ("unlink",), ("chmod", 0o644),
        ("chown", 0, 0), ("lchown", 0, 0), ("truncate", 0), ("chdir",), ("creat", 0o644),
        ("access", 0), ("mknod", 0o100644, 0),
    ):  # fmt: skip
        checks.fails(EFAULT, calls.by_address, name, one, *rest)
    for old, new in ((None, "x"), ("origin", None)):
        checks.fails(EFAULT, calls.renameat2, old, new)


def test_forty_links(checks: Checks) -> None:
    """A path may lead through forty symbolic links, and no more."""
    os.symlink("origin", "l1")
    for number in range(2, 43):
        os.symlink(f"l{number - 1}", f"l{number}")
    checks.works(os.stat, "l40")
    checks.fails(ELOOP, os.stat, "l41")
    checks.fails(ELOOP, _open(os.O_RDONLY), "l41")
    checks.fails(ELOOP, _open(os.O_CREAT | os.O_WRONLY), "l41")
    checks.fails(0, os.lstat, "l41")
    os.symlink("d", "m1")
    for number in range(2, 43):
        os.symlink(f"m{number - 1}", f"m{number}")
    checks.works(os.mkdir, "m40/x")
    checks.fails(ELOOP, os.mkdir, "m41/y")
    checks.fails(EEXIST, os.mkdir, "m41")
