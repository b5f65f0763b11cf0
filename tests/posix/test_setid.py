"""Set-user-ID, set-group-ID and file capabilities end when somebody changes the file's bytes (inode(7))."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import ENODATA, EOPNOTSUPP
from typing import Any

import pytest

from tests.posix import calls
from tests.posix.checks import ALICE, BOB, ROOT, SHARED_GROUP, Checks, User, mode

pytestmark = pytest.mark.quick

CAPABILITY = "security.capability"
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep, revision 2


def _with(flags: int, action: Callable[[int], Any]) -> Callable[[str], None]:
    """`action` on the file, opened and closed."""

    def opened(path: str) -> None:
        descriptor = os.open(path, flags)
        try:
            action(descriptor)
        finally:
            os.close(descriptor)

    return opened


def _link_and_unlink(path: str) -> None:
    os.link(path, "other")
    os.unlink("other")


def _rename_and_back(path: str) -> None:
    os.rename(path, "other")
    os.rename("other", path)


def _copy_into(descriptor: int) -> None:
    source = os.open("source", os.O_RDONLY)
    try:
        os.copy_file_range(source, descriptor, 3)
    finally:
        os.close(source)


# What changes the bytes of a file, by path. The file holds 5,000 bytes.
CHANGES: dict[str, Callable[[str], Any]] = {
    "write": _with(os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "append": _with(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "write synchronously": _with(os.O_WRONLY | os.O_SYNC, lambda fd: os.write(fd, b"x")),
    "pwrite a page": _with(os.O_WRONLY, lambda fd: os.pwrite(fd, bytes(4096), 0)),
    "pwritev": _with(os.O_WRONLY, lambda fd: os.pwritev(fd, [b"a", b"b"], 9000)),
    "copy_file_range": _with(os.O_WRONLY, _copy_into),
    "ftruncate": _with(os.O_WRONLY, lambda fd: os.ftruncate(fd, 100)),
    "ftruncate longer": _with(os.O_WRONLY, lambda fd: os.ftruncate(fd, 100_000)),
    "truncate": lambda path: os.truncate(path, 0),
    "O_TRUNC": _with(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "fallocate": _with(os.O_WRONLY, lambda fd: calls.fallocate(fd, 0, 0, 10_000)),
    "fallocate, size kept": _with(
        os.O_WRONLY, lambda fd: calls.fallocate(fd, calls.KEEP_SIZE, 0, 10_000)
    ),
    "punch a hole": _with(
        os.O_WRONLY, lambda fd: calls.fallocate(fd, calls.PUNCH_HOLE | calls.KEEP_SIZE, 0, 4096)
    ),
    "zero a range": _with(os.O_WRONLY, lambda fd: calls.fallocate(fd, calls.ZERO_RANGE, 0, 4096)),
}
HARMLESS: dict[str, Callable[[str], Any]] = {
    "open for writing": _with(os.O_WRONLY, lambda fd: None),
    "open for both": _with(os.O_RDWR, lambda fd: None),
    "read": _with(os.O_RDONLY, lambda fd: os.read(fd, 100)),
    "write nothing": _with(os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "fsync": _with(os.O_WRONLY, os.fsync),
    "utimensat": lambda path: calls.utimensat(path, None),
    "link and unlink": _link_and_unlink,
    "rename": _rename_and_back,
}
OPENING = ("open for writing", "open for both", "write nothing", "fsync")
PYTHON_KILLS = "pyfuse3 does not say who writes: an ordinary user's opening for writing takes them"
FALLOCATES = {name for name in CHANGES if "fallocate" in name or "hole" in name or "range" in name}
NO_FALLOCATE = "pyfuse3 has no handler for fallocate"


def _file(bits: int, group: int) -> None:
    with open("x", "wb") as file:
        file.write(b"a" * 5000)
    with open("source", "wb") as file:
        file.write(b"xyz")
    os.chmod("source", 0o644)
    os.chown("x", ALICE.uid, group)
    os.chmod("x", bits)


def _skips(checks: Checks, change: str) -> bool:
    return checks.where == "python" and change in FALLOCATES - {"copy_file_range"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("user", [ALICE, BOB, ROOT], ids=["owner", "member", "root"])
def test_changes(checks: Checks, change: str, user: User) -> None:
    if _skips(checks, change):
        _file(0o666, SHARED_GROUP)
        checks.fails(EOPNOTSUPP, CHANGES[change], "x", user=user, what=NO_FALLOCATE)
        return
    for bits in (0o6777, 0o4777, 0o2777, 0o2767, 0o6766, 0o3767, 0o777):
        for group in (SHARED_GROUP, ALICE.gid):
            _file(bits, group)
            checks.works(CHANGES[change], "x", user=user)
            left = bits
            if user is not ROOT:
                member = user is ALICE or group == SHARED_GROUP
                left &= ~stat.S_ISUID
                if bits & stat.S_IXGRP or not member:
                    left &= ~stat.S_ISGID
            checks.gives(left, mode, "x", what=f"{change}, {bits:o}, group {group}")


@pytest.mark.parametrize("change", HARMLESS)
def test_no_changes(checks: Checks, change: str) -> None:
    for user in (ALICE, ROOT):
        for bits in (0o6777, 0o2767):
            _file(bits, SHARED_GROUP)
            os.chmod(".", 0o777)
            checks.works(HARMLESS[change], "x", user=user)
            left = bits
            if checks.where == "python" and user is ALICE and change in OPENING:
                left = bits & ~stat.S_ISUID & ~(stat.S_ISGID if bits & stat.S_IXGRP else 0)
            checks.gives(left, mode, "x", what=f"{change} by {user.uid}, {bits:o}: {PYTHON_KILLS}")


@pytest.mark.parametrize("change", [*CHANGES, "chown"])
@pytest.mark.parametrize("user", [ALICE, ROOT], ids=["owner", "root"])
def test_capabilities(checks: Checks, change: str, user: User) -> None:
    """They go whoever makes the change; at once, and for good."""
    if _skips(checks, change):
        _file(0o777, ALICE.gid)
        checks.fails(EOPNOTSUPP, CHANGES[change], "x", user=user, what=NO_FALLOCATE)
        return
    action = CHANGES.get(change, lambda path: os.chown(path, -1, ALICE.gid))
    for bits in (0o777, 0o4777):
        _file(bits, ALICE.gid)
        os.setxattr("x", CAPABILITY, NET_RAW)
        checks.works(action, "x", user=user)
        checks.fails(ENODATA, os.getxattr, "x", CAPABILITY, what=change)


@pytest.mark.parametrize("change", HARMLESS)
def test_capabilities_stay(checks: Checks, change: str) -> None:
    _file(0o777, ALICE.gid)
    os.chmod(".", 0o777)
    os.setxattr("x", CAPABILITY, NET_RAW)
    checks.works(HARMLESS[change], "x", user=ALICE)
    checks.gives(NET_RAW, os.getxattr, "x", CAPABILITY)
    checks.works(os.chmod, "x", 0o755, user=ALICE)
    checks.gives(NET_RAW, os.getxattr, "x", CAPABILITY)


def test_a_descriptor_that_was_handed_on(checks: Checks) -> None:
    """Who writes counts, not who opened."""
    _file(0o6777, SHARED_GROUP)
    descriptor = os.open("x", os.O_WRONLY)
    checks.works(os.pwrite, descriptor, b"x", 0)
    checks.gives(0o6777, mode, "x")
    checks.works(os.pwrite, descriptor, b"x", 0, user=BOB)
    checks.gives(0o777, mode, "x")
    os.close(descriptor)


@pytest.mark.parametrize("user", [ALICE, ROOT], ids=["owner", "root"])
def test_chmod_after_a_write(checks: Checks, user: User) -> None:
    """As cp -p and tar do it; the pages that reach the filesystem later must not undo it."""

    def write_and_chmod() -> int:
        descriptor = os.open("x", os.O_WRONLY)
        try:
            os.pwrite(descriptor, bytes(100_000), 0)
            os.fchmod(descriptor, 0o6755)
            os.fsync(descriptor)
            return stat.S_IMODE(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)

    _file(0o644, ALICE.gid)
    checks.gives(0o6755, write_and_chmod, user=user)
    checks.gives(0o6755, mode, "x")
