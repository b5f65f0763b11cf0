"""Several processes at the same names: one wins, nothing is half done, the counts are right afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import RENAME_EXCHANGE, linkat, renameat2
from tests.posix.checks import Checks

pytestmark = pytest.mark.quick

PROCESSES = 4
ROUNDS = 60
NAMES = [f"{directory}{name}" for directory in ("", "a/", "b/", "a/c/") for name in "wxyz"]
HARMLESS = {
    errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL,
    errno.EPERM, errno.EBUSY, errno.ELOOP,
}  # fmt: skip


def together(work: Callable[[int], object], processes: int = PROCESSES) -> list[int]:
    """Run `work` in that many processes, which begin at once; their exit statuses."""
    start_read, start_write = os.pipe()
    children = []
    for number in range(processes):
        child = os.fork()
        if not child:
            status = 99
            try:
                os.close(start_write)
                os.read(start_read, 1)
                work(number)
                status = 0
            except OSError as error:
                status = error.errno or 98
            finally:
                os._exit(status)
        children.append(child)
    os.close(start_read)
    os.close(start_write)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


WINNERS: dict[str, tuple[Callable[[int], object], int]] = {
    "O_EXCL": (lambda n: os.open("new", os.O_CREAT | os.O_EXCL | os.O_RDWR), errno.EEXIST),
    "mkdir": (lambda n: os.mkdir("new"), errno.EEXIST),
    "symlink": (lambda n: os.symlink(str(n), "new"), errno.EEXIST),
    "link": (lambda n: linkat(f"own-{n}", "new"), errno.EEXIST),
    "rename without replacing": (lambda n: renameat2(f"own-{n}", "new", 1), errno.EEXIST),
    "unlink": (lambda n: os.unlink("there"), errno.ENOENT),
    "rmdir": (lambda n: os.rmdir("directory"), errno.ENOENT),
    "rename from": (lambda n: os.rename("there", f"mine-{n}"), errno.ENOENT),
}


@pytest.mark.parametrize("call", WINNERS)
def test_one_wins(checks: Checks, call: str) -> None:
    action, lost = WINNERS[call]
    for number in range(8):
        os.mkdir(f"round-{number}")
        os.chdir(f"round-{number}")
        Path("there").touch()
        os.mkdir("directory")
        for owner in range(PROCESSES):
            Path(f"own-{owner}").touch()
        outcome = sorted(together(action))
        checks.gives([0] + [lost] * (PROCESSES - 1), lambda outcome=outcome: outcome, what=call)
        os.chdir("..")


def test_appending(checks: Checks) -> None:
    """O_APPEND: each write whole, none over another."""

    def append(number: int) -> None:
        descriptor = os.open("log", os.O_WRONLY | os.O_APPEND)
        for line in range(ROUNDS):
            os.write(descriptor, f"{number}-{line}".ljust(99, ".").encode() + b"\n")

    Path("log").touch()
    checks.gives([0] * PROCESSES, together, append)
    lines = Path("log").read_text().splitlines()
    wanted = {
        f"{number}-{line}".ljust(99, ".") for number in range(PROCESSES) for line in range(ROUNDS)
    }
    checks.gives(len(wanted), lambda: len(lines))
    checks.true(set(lines) == wanted, "every line once")


def test_a_name_that_is_replaced_is_always_there(checks: Checks) -> None:
    Path("config").write_text("0" * 1000)

    def work(number: int) -> None:
        for count in range(ROUNDS):
            if number:
                text = Path("config").read_text()
                assert len(set(text)) == 1
                assert len(text) == 1000
            else:
                Path("config.new").write_text(str(count % 10) * 1000)
                os.rename("config.new", "config")

    checks.gives([0] * PROCESSES, together, work)


def test_directories_do_not_swallow_each_other(checks: Checks) -> None:
    """a into b and b into a at once: one is refused, or they take turns; no cycle."""
    for name in ("a", "b"):
        os.makedirs(f"{name}/sub")

    def move(number: int) -> None:
        one, other = ("a", "b") if number % 2 else ("b", "a")
        for _ in range(ROUNDS):
            with contextlib.suppress(OSError):
                os.rename(one, f"{other}/sub/{one}")
            with contextlib.suppress(OSError):
                os.rename(f"{other}/sub/{one}", one)

    checks.gives([0] * PROCESSES, together, move)
    found = sorted(name for _, names, _ in os.walk(".") for name in names)
    checks.gives(["a", "b", "sub", "sub"], lambda: found)


def _storm(number: int) -> None:
    """Anything, at any of the names."""
    chance = random.Random(number)
    actions: list[Callable[[str, str], object]] = [
        lambda one, _: os.close(os.open(one, os.O_CREAT | os.O_RDWR, 0o644)),
        lambda one, _: Path(one).write_bytes(b"d" * chance.randrange(9000)),
        lambda one, _: os.mkdir(one),
        os.rename,
        lambda one, other: renameat2(one, other, RENAME_EXCHANGE),
        linkat,
        lambda one, other: os.symlink(other, one),
        lambda one, _: os.unlink(one),
        lambda one, _: os.rmdir(one),
        lambda one, _: os.truncate(one, chance.randrange(9000)),
        lambda one, _: os.listdir(os.path.dirname(one) or "."),
    ]
    for _ in range(5 * ROUNDS):
        try:
            chance.choice(actions)(chance.choice(NAMES), chance.choice(NAMES))
        except OSError as error:
            if error.errno not in HARMLESS:
                raise


def test_storm(checks: Checks) -> None:
    """As many link counts as names, and every name leads to its inode."""
    os.makedirs("a/c")
    os.mkdir("b")
    checks.gives([0] * PROCESSES, together, _storm)
    names: dict[int, int] = {}
    for base, directories, files in os.walk("."):
        for name in directories + files:
            status = os.lstat(f"{base}/{name}")
            if stat.S_ISDIR(status.st_mode):
                inside = os.listdir(f"{base}/{name}")
                below = sum(
                    stat.S_ISDIR(os.lstat(f"{base}/{name}/{one}").st_mode) for one in inside
                )
                checks.true(status.st_nlink == 2 + below, f"{base}/{name}: {status.st_nlink} links")
            else:
                names[status.st_ino] = names.get(status.st_ino, 0) + 1
    for base, _, files in os.walk("."):
        for name in files:
            status = os.lstat(f"{base}/{name}")
            checks.true(status.st_nlink == names[status.st_ino], f"{base}/{name}")
