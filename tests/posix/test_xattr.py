"""Extended attributes: namespaces, limits, flags, who may; access control lists."""

from __future__ import annotations

import ctypes
import os
import struct
from errno import E2BIG, EACCES, EEXIST, EINVAL, ENODATA, ENOENT, EOPNOTSUPP, EPERM, ERANGE

import pytest

from tests.posix.calls import by_address
from tests.posix.checks import ALICE, BOB, CAROL, KINDS, SHARED_GROUP, Checks, make, mode

pytestmark = pytest.mark.quick

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NO_ID = 2**32 - 1
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    packed = [struct.pack("<HHI", *(*entry, NO_ID)[:3]) for entry in entries]
    return struct.pack("<I", 2) + b"".join(packed)


def test_values(checks: Checks) -> None:
    """Of any bytes; the empty one is a value too. ctime changes, and no other time."""
    make("file", "x")
    for value in (b"", b"v", b"\0\n\xff", b"v" * 255, b"v" * 3000):
        checks.touches({"x": "c", ".": ""}, os.setxattr, "x", "user.a", value)
        checks.gives(value, os.getxattr, "x", "user.a")
        checks.gives(["user.a"], os.listxattr, "x")
    checks.touches({"x": "c"}, os.removexattr, "x", "user.a")
    checks.gives([], os.listxattr, "x")
    checks.touches({"x": ""}, os.removexattr, "x", "user.a", fails=ENODATA)
    checks.touches({"x": ""}, os.getxattr, "x", "user.a", fails=ENODATA)


def test_creating_and_replacing(checks: Checks) -> None:
    make("file", "x")
    checks.fails(ENODATA, os.setxattr, "x", "user.a", b"v", os.XATTR_REPLACE)
    checks.works(os.setxattr, "x", "user.a", b"v", os.XATTR_CREATE)
    checks.fails(EEXIST, os.setxattr, "x", "user.a", b"w", os.XATTR_CREATE)
    checks.works(os.setxattr, "x", "user.a", b"w", os.XATTR_REPLACE)
    checks.gives(b"w", os.getxattr, "x", "user.a")
    checks.fails(EINVAL, os.setxattr, "x", "user.a", b"w", 4)
    both = os.XATTR_CREATE | os.XATTR_REPLACE
    # pyfuse3 looks at XATTR_REPLACE only where XATTR_CREATE is not set.
    absent = 0 if checks.where == "python" else ENODATA
    checks.fails(EEXIST, os.setxattr, "x", "user.a", b"v", both)
    checks.fails(absent, os.setxattr, "x", "user.b", b"v", both)
    names = ["user.a"] + ["user.b"] * (not absent)
    checks.gives(names, lambda: sorted(os.listxattr("x")))
    checks.gives(b"w", os.getxattr, "x", "user.a")


def test_names(checks: Checks) -> None:
    make("file", "x")
    longest = "user." + "n" * 250
    checks.works(os.setxattr, "x", longest, b"v")
    checks.gives([longest], os.listxattr, "x")
    for call in (os.getxattr, os.removexattr):
        checks.fails(ERANGE, call, "x", longest + "n")
        checks.fails(ERANGE, call, "x", "")
        checks.fails(EOPNOTSUPP, call, "x", "nothing")
        checks.fails(EOPNOTSUPP, call, "x", "nothing.x")
    checks.fails(ERANGE, os.setxattr, "x", longest + "n", b"v")
    checks.fails(ERANGE, os.setxattr, "x", "", b"v")
    checks.fails(EOPNOTSUPP, os.setxattr, "x", "nothing.x", b"v")
    checks.fails(EINVAL, os.setxattr, "x", "user.", b"v")
    checks.fails((EOPNOTSUPP, EINVAL), os.setxattr, "x", "system.x", b"v")


def test_sizes(checks: Checks) -> None:
    """64 KiB for a value, which ext4 alone does not reach; ERANGE for a buffer that is too small."""
    make("file", "x")
    checks.fails(E2BIG, os.setxattr, "x", "user.a", b"v" * 65537)
    if checks.on_fuse:
        for size in (4096, 4097, 10_000, 65535, 65536):
            checks.works(os.setxattr, "x", "user.a", b"v" * size)
            checks.gives(b"v" * size, os.getxattr, "x", "user.a", what=f"{size}")
    os.setxattr("x", "user.a", b"v" * 100)
    path, name = ctypes.create_string_buffer(b"x"), ctypes.create_string_buffer(b"user.a")
    room = ctypes.create_string_buffer(200)
    at = [ctypes.addressof(one) for one in (path, name, room)]
    for size, wanted in ((0, 0), (99, ERANGE), (1, ERANGE), (100, 0), (200, 0)):
        checks.fails(wanted, by_address, "getxattr", *at, size, what=f"{size} bytes")
    checks.gives(100, by_address, "getxattr", *at, 0)
    checks.gives(7, by_address, "listxattr", at[0], at[2], 0)
    for size, wanted in ((6, ERANGE), (7, 0)):
        checks.fails(wanted, by_address, "listxattr", at[0], at[2], size)


def test_long_lists(checks: Checks) -> None:
    make("file", "x")
    names = sorted(f"user.{number:03}" for number in range(60 if not checks.on_fuse else 800))
    for name in names:
        os.setxattr("x", name, name.encode())
    checks.gives(names, lambda: sorted(os.listxattr("x")))
    checks.true(all(os.getxattr("x", name) == name.encode() for name in names), "each its value")
    if checks.on_fuse:  # more than XATTR_LIST_MAX: no buffer is large enough
        for number in range(300):
            os.setxattr("x", f"user.{number:03}{'n' * 240}", b"")
        checks.fails(E2BIG, os.listxattr, "x")
        checks.gives(b"user.000", os.getxattr, "x", "user.000")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(checks: Checks, kind: str) -> None:
    """user.* is for files and directories; the rest is root's."""
    make(kind, "x", 0o666, ALICE)
    plain = kind in ("file", "dir")
    for call, wanted in (
        (lambda: os.setxattr("x", "user.a", b"v", follow_symlinks=False), 0 if plain else EPERM),
        (lambda: os.getxattr("x", "user.a", follow_symlinks=False), 0 if plain else ENODATA),
        (lambda: os.removexattr("x", "user.a", follow_symlinks=False), 0 if plain else EPERM),
    ):
        checks.fails(wanted, call)
    for name in ("trusted.a", "security.a"):
        checks.works(lambda name=name: os.setxattr("x", name, b"v", follow_symlinks=False))
        checks.gives(b"v", lambda name=name: os.getxattr("x", name, follow_symlinks=False))
        checks.fails(
            EPERM, lambda name=name: os.setxattr("x", name, b"w", follow_symlinks=False), user=ALICE
        )
    checks.fails(ENODATA, lambda: os.getxattr("x", "trusted.a", follow_symlinks=False), user=ALICE)
    shown = sorted(os.listxattr("x", follow_symlinks=False))
    checks.gives(["security.a", "trusted.a"], lambda: shown)
    checks.gives(["security.a"], lambda: os.listxattr("x", follow_symlinks=False), user=ALICE)


def test_permission(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    checks.works(os.setxattr, "x", "user.a", b"v", user=ALICE)
    checks.gives(b"v", os.getxattr, "x", "user.a", user=BOB)
    checks.fails(EACCES, os.setxattr, "x", "user.a", b"w", user=BOB)
    checks.fails(EACCES, os.removexattr, "x", "user.a", user=BOB)
    os.chmod("x", 0o600)
    checks.fails(EACCES, os.getxattr, "x", "user.a", user=BOB)
    checks.works(os.listxattr, "x", user=BOB)
    os.chmod("x", 0o066)
    checks.fails(EACCES, os.getxattr, "x", "user.a", user=ALICE)
    make("dir", "s", 0o1777, ALICE)
    checks.works(os.setxattr, "s", "user.a", b"v", user=ALICE)
    checks.fails(EPERM, os.setxattr, "s", "user.a", b"v", user=BOB, what="a sticky directory")
    checks.fails(ENOENT, os.setxattr, "absent", "user.a", b"v")


# --- access control lists -------------------------------------------------------------------------


def _read(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def test_access_lists(checks: Checks) -> None:
    make("file", "x", 0o640)
    entries = acl(
        (USER_OBJ, 6), (USER, 4, ALICE.uid), (GROUP_OBJ, 0), (GROUP, 6, SHARED_GROUP), (MASK, 4),
        (OTHER, 0),
    )  # fmt: skip
    checks.touches({"x": "c"}, os.setxattr, "x", ACCESS, entries)
    checks.gives(0o640, mode, "x", what="the mask stands for the group")
    checks.gives(entries, os.getxattr, "x", ACCESS)
    checks.works(_read, "x", user=ALICE)
    checks.works(_read, "x", user=BOB, what="by his group")
    checks.fails(EACCES, lambda: os.close(os.open("x", os.O_RDWR)), user=BOB, what="masked")
    checks.fails(EACCES, _read, "x", user=CAROL)
    os.chmod("x", 0o600)
    checks.fails(EACCES, _read, "x", user=ALICE, what="chmod sets the mask")
    os.chmod("x", 0o664)
    checks.works(lambda: os.close(os.open("x", os.O_RDWR)), user=BOB)
    checks.fails(EPERM, os.setxattr, "x", ACCESS, entries, user=ALICE)
    checks.touches({"x": "c"}, os.removexattr, "x", ACCESS)
    checks.gives(0o664, mode, "x")
    checks.fails(ENODATA, os.getxattr, "x", ACCESS)


def test_lists_that_a_mode_says(checks: Checks) -> None:
    make("file", "x", 0o777)
    checks.works(os.setxattr, "x", ACCESS, acl((USER_OBJ, 6), (GROUP_OBJ, 5), (OTHER, 4)))
    checks.gives(0o654, mode, "x")
    checks.fails(ENODATA, os.getxattr, "x", ACCESS)
    checks.gives([], os.listxattr, "x")


def test_lists_that_break_the_rules(checks: Checks) -> None:
    make("file", "x", 0o644)
    os.mkdir("d")
    base = ((USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7))
    for what, value, wanted in (
        ("no others", acl(*base[:2]), EINVAL),
        ("no mask", acl(base[0], (USER, 7, 5), *base[1:]), EINVAL),
        ("an odd size", acl(*base) + b"x", EINVAL),
        ("another version", b"\1\0\0\0" + acl(*base)[4:], EOPNOTSUPP),
        ("permission 8", acl(base[0], base[1], (OTHER, 8)), EINVAL),
        ("an unknown tag", acl(base[0], base[1], base[2], (64, 7)), EINVAL),
        ("the wrong order", acl(base[1], base[0], base[2]), EINVAL),
        ("twice the owner", acl(base[0], *base), EINVAL),
        ("three bytes", b"\2\0\0", EINVAL),
    ):
        checks.fails(wanted, os.setxattr, "x", ACCESS, value, what=what)
        checks.fails(wanted, os.setxattr, "d", DEFAULT, value, what=what)
    checks.fails(EACCES, os.setxattr, "x", DEFAULT, acl(*base), what="a file has no default list")
    checks.gives(0o644, mode, "x")


UMASK_FIRST = "pyfuse3 does not ask for FUSE_DONT_MASK: the kernel has taken the umask's bits"


@pytest.mark.parametrize("umask", [0, 0o027])
def test_default_lists(checks: Checks, umask: int) -> None:
    """What is made in the directory gets its list from there, and the umask counts for nothing."""
    os.mkdir("d", 0o777)
    default = acl(
        (USER_OBJ, 7), (USER, 6, ALICE.uid), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 5)
    )  # fmt: skip
    os.setxattr("d", DEFAULT, default)
    checks.gives(0o777, mode, "d")
    checks.works(lambda: os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o666)), umask=umask)
    checks.works(os.mkdir, "d/sub", 0o777, umask=umask)
    late = checks.where == "python" and umask
    checks.gives(0o640 if late else 0o664, mode, "d/f", what=UMASK_FIRST)
    checks.gives(0o750 if late else 0o775, mode, "d/sub", what=UMASK_FIRST)
    checks.gives(default, os.getxattr, "d/sub", DEFAULT)
    checks.fails(ENODATA, os.getxattr, "d/f", DEFAULT)
    if not late:
        checks.gives(
            acl((USER_OBJ, 6), (USER, 6, ALICE.uid), (GROUP_OBJ, 5), (MASK, 6), (OTHER, 4)),
            os.getxattr, "d/f", ACCESS,
        )  # fmt: skip
        checks.works(lambda: os.close(os.open("d/f", os.O_RDWR)), user=ALICE)
    os.symlink("f", "d/link")
    checks.gives(0o777, mode, "d/link")
    checks.works(os.removexattr, "d", DEFAULT)
    checks.works(os.removexattr, "d", DEFAULT, what="there is none, and it is no error")


def test_chown_and_set_group_id_by_lists(checks: Checks) -> None:
    """Who sets a list on a file of another's group loses set-group-ID."""
    make("file", "x", 0o2755, ALICE)
    value = acl((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 5))
    checks.works(os.setxattr, "x", ACCESS, value, user=ALICE)
    checks.gives(0o2755, mode, "x")
    os.chown("x", ALICE.uid, CAROL.gid)
    os.chmod("x", 0o2755)
    checks.works(os.setxattr, "x", ACCESS, value, user=ALICE)
    checks.gives(0o755, mode, "x")
