"""utimensat in all its forms; times before 1970 and after 2486."""

from __future__ import annotations

import itertools
import os
import time
from errno import EACCES, EBADF, EFAULT, EINVAL, EPERM

import pytest

from tests.posix.calls import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, statx, utimensat
from tests.posix.checks import ALICE, BOB, KINDS, Checks, later, make, times

NS = 1_000_000_000
FORMS = {"set": (5, 7), "now": (0, UTIME_NOW), "omit": (0, UTIME_OMIT)}


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_forms(checks: Checks, kind: str) -> None:
    """Each of the two times: given, now, or left as it is."""
    make(kind, "x")
    for atime, mtime in itertools.product(FORMS, FORMS):
        utimensat("x", (1, 2, 3, 4), AT_SYMLINK_NOFOLLOW)
        before, start = times("x"), time.time_ns()
        wanted = "".join(letter for letter, form in (("a", atime), ("m", mtime)) if form != "omit")
        wanted += "c" if wanted else ""
        checks.touches(
            {"x": wanted, ".": ""}, utimensat, "x", (*FORMS[atime], *FORMS[mtime]),
            AT_SYMLINK_NOFOLLOW, what=f"{atime} {mtime}",
        )  # fmt: skip
        after = times("x")
        for form, old, new in zip((atime, mtime), before, after, strict=False):
            words = f"{kind} {atime} {mtime}: {old} became {new}"
            if form == "set":
                checks.true(new == 5 * NS + 7, words)
            elif form == "omit":
                checks.true(new == old, words)
            else:
                checks.true(start - 10**9 < new < time.time_ns() + 10**9, words)
    checks.touches({"x": "amc"}, utimensat, "x", None, AT_SYMLINK_NOFOLLOW)


def test_links_are_followed_or_not(checks: Checks) -> None:
    make("file", "x")
    os.symlink("x", "link")
    later()
    os.readlink("link")
    checks.touches({"x": "amc", "link": ""}, utimensat, "link", (1, 2, 3, 4))
    checks.touches({"x": "", "link": "amc"}, utimensat, "link", (1, 2, 3, 4), AT_SYMLINK_NOFOLLOW)
    checks.gives((1 * NS + 2, 3 * NS + 4), lambda: times("link")[:2])


def test_by_descriptor(checks: Checks) -> None:
    make("file", "x", 0o000)
    for flags in (os.O_RDONLY, os.O_WRONLY):
        descriptor = os.open("x", flags)
        checks.touches({"x": "amc"}, utimensat, None, (flags, 2, 3 + flags, 4), 0, descriptor)
        checks.touches({"x": "amc"}, utimensat, None, None, 0, descriptor)
        os.close(descriptor)
    descriptor = os.open("x", os.O_PATH)
    checks.fails((EBADF, EINVAL), utimensat, None, (1, 2, 3, 4), 0, descriptor)
    os.close(descriptor)
    checks.fails(EFAULT, utimensat, None, None, 0)


def test_errors(checks: Checks) -> None:
    make("file", "x")
    for bad in (NS, -1, 1 << 40, UTIME_NOW + 1):
        checks.touches({"x": ""}, utimensat, "x", (1, bad, 3, 4), fails=EINVAL)
        checks.touches({"x": ""}, utimensat, "x", (1, 2, 3, bad), fails=EINVAL)
    checks.fails(EINVAL, utimensat, "x", (1, 2, 3, 4), 0x8000)
    checks.works(utimensat, "x", (77, UTIME_NOW, 88, UTIME_OMIT), what="seconds do not matter")


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_permission(checks: Checks, kind: str) -> None:
    """Who may write the file may set both times to now; all else is the owner's."""
    make(kind, "x", 0o644, ALICE)
    given, now, omit = (1, 2, 3, 4), (0, UTIME_NOW, 0, UTIME_NOW), (0, UTIME_OMIT, 0, UTIME_OMIT)
    mixed = ((0, UTIME_NOW, 0, UTIME_OMIT), (0, UTIME_OMIT, 0, UTIME_NOW), (0, UTIME_NOW, 3, 4))
    for form in (given, now, None, omit, *mixed):
        checks.works(utimensat, "x", form, user=ALICE)
        checks.works(utimensat, "x", form)
    for form in (now, None):
        checks.touches({"x": ""}, utimensat, "x", form, user=BOB, fails=EACCES)
    for form in (given, *mixed):
        checks.touches({"x": ""}, utimensat, "x", form, user=BOB, fails=EPERM)
    checks.works(utimensat, "x", omit, user=BOB)
    os.chmod("x", 0o666)
    for form in (now, None):
        checks.touches({"x": "amc"}, utimensat, "x", form, user=BOB)
    for form in (given, *mixed):
        checks.fails(EPERM, utimensat, "x", form, user=BOB)
    os.chmod("x", 0)
    checks.works(utimensat, "x", None, user=ALICE)
    checks.works(utimensat, "x", given, user=ALICE)


# ext4 ends in 2446, nvmefs has 64 bits of seconds.
RANGE = (2 - (1 << 31), -1, 0, 1, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 33) + 5, 15032385534)
BEYOND = (16299187200, 1 << 34, 1 << 35, 253402300800, 1 << 40, -(1 << 33), -(1 << 40))


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
def test_far_times(checks: Checks, kind: str) -> None:
    make(kind, "x")
    seconds = RANGE if checks.where == "host" else RANGE + BEYOND
    for second in seconds:
        for ns in (0, 1, 999_999_999):
            words = f"{second}.{ns:09}"
            checks.works(
                utimensat, "x", (second, ns, second - 1, ns), AT_SYMLINK_NOFOLLOW, what=words
            )
            found = times("x")
            checks.true(found[0] == second * NS + ns, f"atime {words} became {found[0]}")
            checks.true(found[1] == (second - 1) * NS + ns, f"mtime {words} became {found[1]}")
    now = time.time_ns()
    checks.true(abs(times("x")[2] - now) < 10 * NS, "ctime is of now all the same")


def test_birth_time(checks: Checks) -> None:
    """It is of the file's making, and nothing changes it."""
    start = time.time()
    make("file", "x")
    born = statx("x").btime
    if checks.where == "python":
        checks.gives(0, lambda: statx("x").mask & 0x800, what="pyfuse3 has no handler for statx")
        return
    checks.true(start - 1 < born[0] + born[1] / NS < time.time() + 1, f"born {born}")
    utimensat("x", (1, 2, 3, 4))
    os.chmod("x", 0o600)
    os.rename("x", "y")
    checks.gives(born, lambda: statx("y").btime)
    checks.gives(0x800, lambda: statx("y").mask & 0x800)
