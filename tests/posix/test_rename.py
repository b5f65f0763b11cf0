"""rename, renameat2: over everything, into itself, with each flag; '..', link counts, times."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY
from pathlib import Path

import pytest

from tests.posix.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    renameat2,
)
from tests.posix.checks import ALICE, BOB, KINDS, NOT_DIRS, Checks, make, remove


@pytest.mark.parametrize("kind", KINDS)
def test_to_a_new_name(checks: Checks, kind: str) -> None:
    os.mkdir("from")
    os.mkdir("to")
    make(kind, "from/x", 0o640)
    number = os.lstat("from/x").st_ino
    checks.touches(
        {"from": "mc", "to": "mc", "from/x:to/y": "c", ".": ""}, os.rename, "from/x", "to/y"
    )
    checks.fails(ENOENT, os.lstat, "from/x")
    checks.gives(number, lambda: os.lstat("to/y").st_ino)
    checks.touches({"to": "mc", "to/y:to/z": "c"}, os.rename, "to/y", "to/z")
    links = (2, 3) if kind == "dir" else (2, 2)
    checks.gives(links, lambda: (os.stat("from").st_nlink, os.stat("to").st_nlink))
    checks.touches({"to": "", "to/z": ""}, os.rename, "to/z", "to/z")
    checks.touches({"to": "", "to/z": "", "from": ""}, os.rename, "to/z", "absent/x", fails=ENOENT)


@pytest.mark.parametrize("kind", NOT_DIRS)
@pytest.mark.parametrize("other", NOT_DIRS)
def test_over(checks: Checks, kind: str, other: str) -> None:
    """Anything but a directory replaces anything but a directory; other links to it live on."""
    os.mkdir("d")
    make(kind, "d/x")
    make(other, "d/y")
    os.link("d/y", "z", follow_symlinks=False)
    number = os.lstat("d/x").st_ino
    checks.touches({"d": "mc", "z": "c", "d/x:d/y": "c", ".": ""}, os.rename, "d/x", "d/y")
    checks.gives(number, lambda: os.lstat("d/y").st_ino)
    checks.gives(1, lambda: os.lstat("z").st_nlink)
    checks.gives(["y"], os.listdir, "d")


@pytest.mark.parametrize("kind", NOT_DIRS)
def test_directories_and_others_do_not_mix(checks: Checks, kind: str) -> None:
    os.mkdir("d")
    make(kind, "x")
    checks.touches({"d": "", "x": "", ".": ""}, os.rename, "x", "d", fails=EISDIR)
    checks.touches({"d": "", "x": "", ".": ""}, os.rename, "d", "x", fails=ENOTDIR)
    checks.fails(ENOTDIR, os.rename, "x/", "y")
    checks.fails(ENOTDIR, os.rename, "d/", "x")


@pytest.mark.quick
def test_directories(checks: Checks) -> None:
    for name in ("a", "a/in", "b", "b/in", "b/in/deep", "empty"):
        os.mkdir(name)
    checks.fails(ENOTEMPTY, os.rename, "a", "b")
    checks.fails((ENOTEMPTY, EEXIST), os.rename, "empty", "b")
    checks.touches({".": "mc", "a:empty": "c"}, os.rename, "a", "empty")
    checks.gives(["b", "empty"], lambda: sorted(os.listdir()))
    checks.gives(["in"], os.listdir, "empty")
    checks.works(os.rename, "empty/", "a/")
    checks.fails(EINVAL, os.rename, "b", "b/new")
    checks.fails(EINVAL, os.rename, "b", "b/in/deep/new")
    checks.fails(EINVAL, os.rename, "b", "b/in")
    checks.fails(EINVAL, os.rename, "b", "b/in/deep")
    checks.fails(ENOTEMPTY, os.rename, "b/in/deep", "b/in")
    checks.fails(ENOTEMPTY, os.rename, "b/in/deep", "b")
    checks.gives(4, lambda: os.stat(".").st_nlink)
    checks.works(os.rename, "b/in", "a/in")
    checks.gives((2, 3), lambda: (os.stat("b").st_nlink, os.stat("a").st_nlink))


@pytest.mark.quick
def test_dotdot_follows(checks: Checks) -> None:
    for name in ("a", "a/d", "b", "b/c"):
        os.mkdir(name)
    make("file", "b/mark")
    descriptor = os.open("a/d", os.O_RDONLY)
    checks.touches({"a/d:b/d": "c", "a": "mc", "b": "mc"}, os.rename, "a/d", "b/d")
    checks.gives(os.stat("b").st_ino, lambda: os.stat("b/d/..").st_ino)
    checks.gives(os.stat("b").st_ino, lambda: os.stat("..", dir_fd=descriptor).st_ino)
    checks.works(os.stat, "b/d/../mark")
    listed = {entry.name: entry for entry in os.scandir("b/d")}
    checks.gives({}, lambda: listed)
    os.close(descriptor)


def test_links_to_one_file(checks: Checks) -> None:
    """Nothing happens, and it is no error."""
    make("file", "x")
    os.link("x", "y")
    checks.touches({"x": "", "y": "", ".": ""}, os.rename, "x", "y")
    checks.gives(["x", "y"], lambda: sorted(os.listdir()))
    checks.gives(2, lambda: os.stat("x").st_nlink)
    checks.fails(EEXIST, renameat2, "x", "y", RENAME_NOREPLACE)


def test_over_open_files(checks: Checks) -> None:
    for name, content in (("x", b"new"), ("y", b"old")):
        with open(name, "wb") as file:
            file.write(content)
    old = os.open("y", os.O_RDWR)
    new = os.open("x", os.O_RDWR)
    checks.works(os.rename, "x", "y")
    checks.gives(b"old", os.pread, old, 10, 0)
    checks.gives(0, lambda: os.fstat(old).st_nlink)
    checks.gives(3, os.pwrite, old, b"OLD", 0)
    checks.gives(b"new", os.pread, new, 10, 0)
    os.pwrite(new, b"NEW", 0)
    checks.gives(b"NEW", lambda: Path("y").read_bytes())
    os.close(old)
    os.close(new)
    os.mkdir("d")
    os.mkdir("e")
    held = os.open("e", os.O_RDONLY)
    checks.works(os.rename, "d", "e")
    checks.gives(0, lambda: os.fstat(held).st_nlink)
    checks.gives([], os.listdir, held)
    os.close(held)


@pytest.mark.quick
def test_noreplace(checks: Checks) -> None:
    for kind in KINDS:
        make(kind, kind)
    for kind in KINDS:
        for other in KINDS:
            checks.fails(EEXIST, renameat2, kind, other, RENAME_NOREPLACE)
        checks.works(renameat2, kind, "new", RENAME_NOREPLACE)
        checks.works(renameat2, "new", kind, RENAME_NOREPLACE)
    checks.fails(ENOENT, renameat2, "absent", "new", RENAME_NOREPLACE)


def test_exchange(checks: Checks) -> None:
    os.mkdir("a")
    os.mkdir("b")
    for kind in KINDS:
        for other in KINDS:
            make(kind, "a/x")
            make(other, "b/y")
            before = os.lstat("a/x").st_ino, os.lstat("b/y").st_ino
            checks.works(renameat2, "a/x", "b/y", RENAME_EXCHANGE, what=f"{kind} and {other}")
            after = os.lstat("b/y").st_ino, os.lstat("a/x").st_ino
            checks.gives(before, lambda after=after: after)
            counts = (2 + (other == "dir"), 2 + (kind == "dir"))
            checks.gives(counts, lambda: (os.stat("a").st_nlink, os.stat("b").st_nlink))
            remove(other, "a/x")
            remove(kind, "b/y")


@pytest.mark.quick
def test_exchange_times_and_errors(checks: Checks) -> None:
    for name in ("a", "b", "a/d", "b/e", "b/e/in"):
        os.mkdir(name)
    make("file", "a/f")
    checks.touches(
        {"a": "mc", "b": "mc", "a/d:b/e": "c", "b/e:a/d": "c", "b/e/in:a/d/in": ""},
        renameat2, "a/d", "b/e", RENAME_EXCHANGE,
    )  # fmt: skip
    checks.gives(os.stat("a").st_ino, lambda: os.stat("a/d/..").st_ino)
    checks.gives(os.stat("b").st_ino, lambda: os.stat("b/e/..").st_ino)
    checks.fails(ENOENT, renameat2, "a/f", "absent", RENAME_EXCHANGE)
    checks.fails(ENOENT, renameat2, "absent", "a/f", RENAME_EXCHANGE)
    checks.fails(EINVAL, renameat2, "a", "a/d", RENAME_EXCHANGE)
    checks.fails(EINVAL, renameat2, "a/d/in", "a", RENAME_EXCHANGE)
    checks.fails(EINVAL, renameat2, "a/f", "b", RENAME_EXCHANGE | RENAME_NOREPLACE)
    checks.fails(EINVAL, renameat2, "a/f", "new", RENAME_EXCHANGE | RENAME_WHITEOUT)
    checks.fails(EINVAL, renameat2, "a/f", "new", 8)


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_whiteout(checks: Checks, kind: str) -> None:
    """A character device 0:0 stays behind under the old name: what overlayfs hides names with."""
    os.mkdir("d")
    os.mkdir("e")
    make(kind, "d/x")
    make("file" if kind != "dir" else "dir", "e/y")
    number = os.lstat("d/x").st_ino
    checks.touches({"d": "mc", "e": "mc", "d/x:e/y": "c"}, renameat2, "d/x", "e/y", RENAME_WHITEOUT)
    status = os.lstat("d/x")
    checks.true(stat.S_ISCHR(status.st_mode) and status.st_rdev == 0, "a whiteout is there")
    checks.gives((1, 0, 0), lambda: (status.st_nlink, status.st_uid, status.st_gid))
    checks.gives(number, lambda: os.lstat("e/y").st_ino)
    checks.gives((2, 3 if kind == "dir" else 2), lambda: (_links("d"), _links("e")))
    checks.fails(
        EEXIST, renameat2, "e/y", "d/x", RENAME_WHITEOUT | RENAME_NOREPLACE, what="both flags"
    )
    checks.works(renameat2, "e/y", "e/z", RENAME_WHITEOUT | RENAME_NOREPLACE)
    checks.gives(["y", "z"], lambda: sorted(os.listdir("e")))
    os.unlink("d/x")
    os.unlink("e/y")


def _links(path: str) -> int:
    return os.stat(path).st_nlink


def test_permission(checks: Checks) -> None:
    make("dir", "from", 0o777, ALICE)
    make("dir", "to", 0o777, ALICE)
    make("file", "from/x", 0o644, BOB)
    for which in ("from", "to"):
        for directory_mode in (0o555, 0o655, 0o355):
            os.chmod(which, directory_mode)
            wanted = 0 if directory_mode == 0o355 else EACCES
            checks.fails(wanted, os.rename, "from/x", "to/x", user=ALICE, what=which)
            if not wanted:
                os.rename("to/x", "from/x")
        os.chmod(which, 0o777)
    checks.works(os.rename, "from/x", "to/x", user=BOB)


def test_a_directory_that_moves_must_be_writable(checks: Checks) -> None:
    make("dir", "from", 0o777)
    make("dir", "to", 0o777)
    make("dir", "from/d", 0o755, BOB)
    checks.fails(EACCES, os.rename, "from/d", "to/d", user=ALICE)
    checks.works(os.rename, "from/d", "from/e", user=ALICE, what="'..' stays as it is")
    checks.works(os.rename, "from/e", "to/d", user=BOB)
    os.chmod("to/d", 0o777)
    checks.works(os.rename, "to/d", "from/d", user=ALICE)


def test_case_and_bytes(checks: Checks) -> None:
    """Names are bytes: nothing is folded or normalised."""
    names = [
        b"A",
        b"a",
        "é".encode(),
        "e\u0301".encode(),
        b"\xff\xfe",
        b"a b",
        b"a\nb",
        b"-",
        b"\\",
    ]
    for name in names:
        make("file", os.fsdecode(name))
    checks.gives(sorted(names), lambda: sorted(os.listdir(b".")))
    for name in names:
        checks.works(os.rename, name, name + b"2")
    checks.gives(sorted(name + b"2" for name in names), lambda: sorted(os.listdir(b".")))
