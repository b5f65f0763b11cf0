"""Sticky directories: only the owner of a file or of the directory, or root, takes names away (EPERM)."""

from __future__ import annotations

import os
from errno import EACCES, EPERM

import pytest

from tests.posix.calls import RENAME_EXCHANGE, renameat2
from tests.posix.checks import (
    ALICE,
    BOB,
    KINDS,
    ROOT,
    SHARED_GROUP,
    Checks,
    User,
    make,
    remove,
)

OWNERS = (ROOT, ALICE, BOB)


def _allowed(user: User, directory: User, owner: User) -> bool:
    return user is ROOT or user in (directory, owner)


@pytest.mark.parametrize("kind", KINDS)
def test_remove(checks: Checks, kind: str) -> None:
    os.mkdir("s")
    for directory in OWNERS:
        os.chown("s", directory.uid, directory.gid)
        for sticky in (0o1777, 0o777):
            os.chmod("s", sticky)
            for owner in OWNERS:
                for user in OWNERS:
                    make(kind, "s/x", 0o644, owner)
                    good = sticky == 0o777 or _allowed(user, directory, owner)
                    checks.fails(
                        0 if good else EPERM, remove, kind, "s/x",
                        user=user, what=f"{directory.uid}'s {sticky:o}, {owner.uid}'s {kind}",
                    )  # fmt: skip
                    if not good:
                        remove(kind, "s/x")


@pytest.mark.parametrize("kind", KINDS)
def test_rename_from(checks: Checks, kind: str) -> None:
    """Out of a sticky directory; a directory that is moved must be writable too: its '..' changes."""
    os.mkdir("s")
    make("dir", "to", 0o777)
    for directory in OWNERS:
        os.chown("s", directory.uid, directory.gid)
        os.chmod("s", 0o1777)
        for owner in OWNERS:
            for user in OWNERS:
                make(kind, "s/x", 0o755, owner)
                wanted = 0 if _allowed(user, directory, owner) else EPERM
                if not wanted and kind == "dir" and user not in (ROOT, owner):
                    wanted = EACCES
                checks.fails(
                    wanted, os.rename, "s/x", "to/x",
                    user=user, what=f"{directory.uid}'s directory, {owner.uid}'s {kind}",
                )  # fmt: skip
                remove(kind, "s/x" if wanted else "to/x")


@pytest.mark.parametrize("kind", KINDS)
def test_rename_over(checks: Checks, kind: str) -> None:
    """The name that is replaced must be one's own, or the directory."""
    os.mkdir("s")
    make("dir", "from", 0o777)
    for directory in OWNERS:
        os.chown("s", directory.uid, directory.gid)
        os.chmod("s", 0o1777)
        for owner in OWNERS:
            for user in OWNERS:
                make(kind, "from/x", 0o755, user)
                make(kind, "s/x", 0o644, owner)
                good = _allowed(user, directory, owner)
                checks.fails(
                    0 if good else EPERM, os.rename, "from/x", "s/x",
                    user=user, what=f"{directory.uid}'s directory, {owner.uid}'s {kind}",
                )  # fmt: skip
                if not good:
                    remove(kind, "from/x")
                remove(kind, "s/x")


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_rename_within_and_exchange(checks: Checks, kind: str) -> None:
    """A new name in the same directory takes the old one away all the same."""
    os.mkdir("s")
    for directory in OWNERS:
        os.chown("s", directory.uid, directory.gid)
        os.chmod("s", 0o1777)
        for owner in OWNERS:
            for user in OWNERS:
                make(kind, "s/x", 0o755, owner)
                make(kind, "s/mine", 0o755, user)
                wanted = 0 if _allowed(user, directory, owner) else EPERM
                words = f"{directory.uid}'s directory, {owner.uid}'s {kind}"
                checks.fails(wanted, os.rename, "s/x", "s/y", user=user, what=words)
                if not wanted:
                    os.rename("s/y", "s/x")
                for one, other in (("s/x", "s/mine"), ("s/mine", "s/x")):
                    checks.fails(
                        wanted, renameat2, one, other, RENAME_EXCHANGE, user=user, what=words
                    )
                for name in ("s/x", "s/mine"):
                    remove(kind, name)


def test_group_write_does_not_help(checks: Checks) -> None:
    os.mkdir("s")
    os.chown("s", 0, SHARED_GROUP)
    os.chmod("s", 0o1770)
    make("file", "s/x", 0o666, BOB)
    checks.fails(EPERM, os.unlink, "s/x", user=ALICE)
    checks.works(os.unlink, "s/x", user=BOB)
    os.chmod("s", 0o1700)
    make("file", "s/x", 0o666, BOB)
    checks.fails(EACCES, os.unlink, "s/x", user=BOB)
