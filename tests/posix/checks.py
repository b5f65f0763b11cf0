"""Assertions in tables: each runs, as its user, and what is wrong is told together at the end."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.uring import URING


@dataclass(frozen=True)
class User:
    """Whose rights a call runs with."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
ALICE = User(65501, 65601, (65601, 65700))
BOB = User(65502, 65602, (65602, 65700))
CAROL = User(65503, 65603)
SHARED_GROUP = 65700  # of Alice and Bob, not of Carol

# For what pyfuse3 has no handler for.
not_by_pyfuse3 = pytest.mark.parametrize("where", ["host", "c", URING], indirect=True)

_UNSET: Any = object()


@contextmanager
def acting(user: User, umask: int = 0) -> Iterator[None]:
    """The process has the rights of `user`; root's stay in the saved user id, to come back."""
    before = os.getgroups()
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    old_umask = os.umask(umask)
    try:
        yield
    finally:
        os.umask(old_umask)
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(before)


def name_of(outcome: object) -> str:
    if isinstance(outcome, OSError):
        return errno.errorcode.get(outcome.errno or 0, str(outcome))
    return repr(outcome)


@dataclass
class Checks:
    """`where` is "host", or the front end of the mount: "c", "uring" or "python"."""

    where: str
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def on_fuse(self) -> bool:
        return self.where != "host"

    def _run(self, user: User, umask: int, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        try:
            if user is ROOT and not umask:
                return call(*args)
            with acting(user, umask):
                return call(*args)
        except OSError as error:
            return error

    def _told(self, what: str, call: Callable[..., Any], args: tuple[Any, ...], user: User) -> str:
        words = ", ".join(repr(arg)[:60] for arg in args)
        who = "" if user is ROOT else f" by {user.uid}:{user.gid}"
        named = getattr(call, "__name__", repr(call))
        return f"{what}: {named}({words}){who}" if what else f"{named}({words}){who}"

    def _differs(self, wanted: Any, fuse: Any, why: str) -> Any:
        assert (fuse is _UNSET) == (not why), "another answer on a mount has a reason"
        return fuse if self.on_fuse and fuse is not _UNSET else wanted

    def fails(
        self,
        number: int | tuple[int, ...],
        call: Callable[..., Any],
        *args: Any,
        user: User = ROOT,
        umask: int = 0,
        what: str = "",
        fuse: Any = _UNSET,
        why: str = "",
    ) -> None:
        """The call raises OSError with this errno, or one of them; 0: it succeeds."""
        wanted = self._differs(number, fuse, why)
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        self.count += 1
        outcome = self._run(user, umask, call, args)
        got = (outcome.errno or -1) if isinstance(outcome, OSError) else 0
        if got not in allowed:
            names = " or ".join(errno.errorcode.get(one, "success") for one in allowed)
            self.wrong.append(
                f"{self._told(what, call, args, user)}: {name_of(outcome)}, not {names}"
            )

    def works(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """The call raises nothing."""
        self.fails(0, call, *args, **options)

    def gives(
        self,
        wanted: Any,
        call: Callable[..., Any],
        *args: Any,
        user: User = ROOT,
        umask: int = 0,
        what: str = "",
        fuse: Any = _UNSET,
        why: str = "",
    ) -> None:
        """The call returns what is wanted."""
        wanted = self._differs(wanted, fuse, why)
        self.count += 1
        outcome = self._run(user, umask, call, args)
        if isinstance(outcome, OSError) or outcome != wanted:
            told = self._told(what, call, args, user)
            self.wrong.append(f"{told}: {name_of(outcome)}, not {wanted!r}")

    def touches(
        self,
        wanted: dict[str, str],
        call: Callable[..., Any],
        *args: Any,
        user: User = ROOT,
        fails: int = 0,
        what: str = "",
        fuse: dict[str, str] = _UNSET,
        why: str = "",
    ) -> None:
        """Which times the call changes: by path a, m and c; "" for none. `fails`: with this errno.

        A path with a colon, "old:new", is looked up as the one before and as the other after.
        """
        wanted = self._differs(wanted, fuse, why)
        before = {path: times(path.split(":")[0]) for path in wanted}
        later()
        self.fails(fails, call, *args, user=user, what=what)
        later()
        after = {path: times(path.split(":")[-1]) for path in wanted}
        changed = {
            path: "".join(
                letter
                for letter, old, new in zip("amc", before[path], after[path], strict=True)
                if old != new
            )
            for path in wanted
        }
        self.count += 1
        if changed != wanted:
            self.wrong.append(
                f"{self._told(what, call, args, user)}: changed {changed}, not {wanted}"
            )

    def true(self, condition: bool, what: str) -> None:
        """A fact that was found out otherwise."""
        self.count += 1
        if not condition:
            self.wrong.append(what)

    def judge(self) -> None:
        """Fails with all that was wrong."""
        assert self.count, "nothing was asserted"
        shown = "\n".join(self.wrong[:60])
        assert not self.wrong, f"{len(self.wrong)} of {self.count} on {self.where}:\n{shown}"


# --- kinds of files ---------------------------------------------------------------------------------

KINDS = ("file", "dir", "fifo", "char", "block", "socket", "symlink")
NOT_DIRS = tuple(kind for kind in KINDS if kind != "dir")
NOT_LINKS = tuple(kind for kind in KINDS if kind != "symlink")
_NODES = {
    "file": (stat.S_IFREG, 0),
    "fifo": (stat.S_IFIFO, 0),
    "char": (stat.S_IFCHR, os.makedev(1, 3)),
    "block": (stat.S_IFBLK, os.makedev(7, 240)),
    "socket": (stat.S_IFSOCK, 0),
}


def make(kind: str, path: str, mode: int = 0o644, owner: User = ROOT) -> None:
    """A new file of any kind, with exactly this mode and owner; a symlink points at nothing."""
    if kind == "dir":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink("nothing", path)
    else:
        type_, device = _NODES[kind]
        os.mknod(path, type_ | 0o600, device)
    if owner is not ROOT:
        os.lchown(path, owner.uid, owner.gid)
    if kind != "symlink":
        os.chmod(path, mode)


def remove(kind: str, path: str) -> None:
    (os.rmdir if kind == "dir" else os.unlink)(path)


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


_REALTIME_COARSE = 5  # <linux/time.h>


def later() -> None:
    """Returns when files are stamped with later times than any before.

    That is the clock of ticks, or a finer time if one was given to some file since: then it stands still until
    the ticks have come so far, which are up to two behind.
    """
    start = time.time_ns()
    while time.clock_gettime_ns(_REALTIME_COARSE) <= start:
        time.sleep(0.0005)


def times(path: str) -> tuple[int, int, int]:
    """atime, mtime, ctime in nanoseconds."""
    status = os.lstat(path)
    return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
