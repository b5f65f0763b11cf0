"""chmod, chown: who may, which bits stay, which times change."""

from __future__ import annotations

import itertools
import os
import stat
from errno import EACCES, EBADF, EPERM

import pytest

from tests.posix.checks import (
    ALICE,
    BOB,
    CAROL,
    KINDS,
    NOT_LINKS,
    ROOT,
    SHARED_GROUP,
    Checks,
    User,
    make,
    mode,
    remove,
)

SETXID = (0o6755, 0o4755, 0o2755, 0o6711, 0o2644, 0o6644, 0o2745, 0o6701, 0o1777, 0o644)


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_chmod(checks: Checks, kind: str) -> None:
    os.mkdir("d")
    make(kind, "d/x")
    for bits in (0, 0o777, 0o644, 0o1755, 0o2755, 0o4755, 0o7777, 0o6000):
        checks.touches({"d/x": "c", "d": ""}, os.chmod, "d/x", bits)
        checks.gives(bits, mode, "d/x")
    os.symlink("d/x", "link")
    checks.touches({"link": "a", "d/x": "c"}, os.chmod, "link", 0o611)
    checks.gives(0o611, mode, "d/x")
    os.chown("d/x", ALICE.uid, ALICE.gid)
    checks.works(os.chmod, "d/x", 0o600, user=ALICE)
    checks.touches({"d/x": ""}, os.chmod, "d/x", 0o600, user=BOB, fails=EPERM)
    checks.fails(EPERM, os.chmod, "d/x", 0o777, user=BOB)
    checks.gives(0o600, mode, "d/x")


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_set_group_id_is_for_members(checks: Checks, kind: str) -> None:
    """chmod(2): the bit is cleared, without an error, unless the group is one of the caller's."""
    for group, member in ((ALICE.gid, True), (SHARED_GROUP, True), (BOB.gid, False), (0, False)):
        make(kind, "x", 0o644)
        os.chown("x", ALICE.uid, group)
        for bits in (0o2755, 0o6755, 0o2644, 0o3777):
            checks.works(os.chmod, "x", bits, user=ALICE)
            checks.gives(bits if member else bits & ~stat.S_ISGID, mode, "x", what=f"{bits:o}")
            checks.works(os.chmod, "x", bits)
            checks.gives(bits, mode, "x")
        remove(kind, "x")


def test_fchmod(checks: Checks) -> None:
    make("file", "x", 0o644, ALICE)
    descriptor = os.open("x", os.O_RDONLY)
    checks.touches({"x": "c"}, os.fchmod, descriptor, 0o640)
    checks.works(os.fchmod, descriptor, 0o600, user=ALICE)
    checks.fails(EPERM, os.fchmod, descriptor, 0o644, user=BOB)
    os.close(descriptor)
    path = os.open("x", os.O_PATH)
    checks.fails(EBADF, os.fchmod, path, 0o644)
    checks.works(os.chmod, f"/proc/self/fd/{path}", 0o611)
    os.close(path)
    checks.gives(0o611, mode, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_chown(checks: Checks, kind: str) -> None:
    os.mkdir("d")
    make(kind, "d/x")
    for uid, gid in ((1, 2), (3, -1), (-1, 4), (0, 0), (2**32 - 2, 2**32 - 2)):
        before = os.lstat("d/x")
        checks.touches({"d/x": "c", "d": ""}, os.lchown, "d/x", uid, gid)
        after = (before.st_uid if uid == -1 else uid, before.st_gid if gid == -1 else gid)
        checks.gives(after, lambda: (os.lstat("d/x").st_uid, os.lstat("d/x").st_gid))
    if kind != "symlink":
        os.symlink("x", "d/link")
        checks.touches({"d/link": "a", "d/x": "c"}, os.chown, "d/link", 7, 8)
        checks.touches({"d/link": "c", "d/x": ""}, os.lchown, "d/link", 9, 10)
        checks.gives((7, 9), lambda: (os.stat("d/link").st_uid, os.lstat("d/link").st_uid))


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_chown(checks: Checks, kind: str) -> None:
    """The owner may give the file to groups of his; all else is root's."""
    make(kind, "x", 0o644, ALICE)
    for user, uid, gid, wanted in (
        (ALICE, ALICE.uid, ALICE.gid, 0),
        (ALICE, -1, SHARED_GROUP, 0),
        (ALICE, ALICE.uid, ALICE.gid, 0),
        (ALICE, -1, -1, 0),
        (ALICE, -1, BOB.gid, EPERM),
        (ALICE, BOB.uid, -1, EPERM),
        (ALICE, BOB.uid, BOB.gid, EPERM),
        (ALICE, 0, ALICE.gid, EPERM),
        (BOB, -1, BOB.gid, EPERM),
        (BOB, BOB.uid, -1, EPERM),
        (BOB, ALICE.uid, -1, EPERM),
        (BOB, -1, SHARED_GROUP, EPERM),
        (BOB, -1, -1, 0),
        (ROOT, BOB.uid, BOB.gid, 0),
    ):
        checks.fails(wanted, os.lchown, "x", uid, gid, user=user)
        if wanted:
            checks.touches({"x": ""}, os.lchown, "x", uid, gid, user=user, fails=wanted)
    checks.gives((BOB.uid, BOB.gid), lambda: (os.lstat("x").st_uid, os.lstat("x").st_gid))


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_chown_clears_set_id(checks: Checks, kind: str) -> None:
    """Also root's: set-user-ID always, set-group-ID if the group may execute; never a directory's."""
    for user, bits, (uid, gid) in itertools.product(
        (ROOT, ALICE), SETXID, ((-1, SHARED_GROUP), (ALICE.uid, ALICE.gid), (-1, -1))
    ):
        make(kind, "x", bits, ALICE)
        checks.works(os.chown, "x", uid, gid, user=user)
        left = bits
        if kind != "dir":
            left &= ~stat.S_ISUID
            if bits & stat.S_IXGRP:
                left &= ~stat.S_ISGID
        words = f"{kind} {bits:o} by {user.uid} to {uid}:{gid}"
        checks.gives(left, mode, "x", what=words)
        remove(kind, "x")


def test_set_group_id_without_execution(checks: Checks) -> None:
    """It stays when a member of the group changes the owner, and goes when others do."""
    for user, group, left in (
        (ALICE, SHARED_GROUP, 0o2644),
        (ALICE, BOB.gid, 0o644),
        (ROOT, BOB.gid, 0o2644),
    ):
        make("file", "x", 0o644)
        os.chown("x", ALICE.uid, group)
        os.chmod("x", 0o2644)
        checks.works(os.chown, "x", ALICE.uid, -1, user=user)
        checks.gives(left, mode, "x", what=f"by {user.uid}, of {group}")
        os.unlink("x")


def test_supplementary_groups(checks: Checks) -> None:
    """Permission by group: the effective one, and each of the supplementary ones."""
    many = User(CAROL.uid, CAROL.gid, tuple(range(70000, 70064)))
    make("file", "x", 0o060)
    for group, user, wanted in (
        (CAROL.gid, CAROL, 0),
        (70000, many, 0),
        (70063, many, 0),
        (70064, many, EACCES),
        (SHARED_GROUP, ALICE, 0),
        (SHARED_GROUP, CAROL, EACCES),
    ):
        os.chown("x", 0, group)
        checks.fails(wanted, lambda: os.close(os.open("x", os.O_RDWR)), user=user)
    os.chown("x", CAROL.uid, CAROL.gid)
    checks.fails(EACCES, os.open, "x", os.O_RDONLY, user=CAROL, what="the owner's bits alone count")
    os.chmod("x", 0o006)
    os.chown("x", 0, CAROL.gid)
    checks.fails(EACCES, os.open, "x", os.O_RDONLY, user=CAROL, what="then the group's")
