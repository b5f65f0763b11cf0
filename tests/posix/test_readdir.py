"""readdir, seekdir, telldir: nothing lost, nothing twice, while names come and go; many subdirectories."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from errno import EINVAL, ENOENT, ENOTDIR, ENOTEMPTY

import pytest

from tests.posix.calls import Entry, getdents
from tests.posix.checks import KINDS, Checks, make

NAMES = 3000


def _all(descriptor: int, size: int = 4096) -> list[Entry]:
    found: list[Entry] = []
    while batch := getdents(descriptor, size):
        found += batch
    return found


@pytest.mark.quick
def test_types_and_numbers(checks: Checks) -> None:
    os.mkdir("d")
    for kind in KINDS:
        make(kind, f"d/{kind}")
    descriptor = os.open("d", os.O_RDONLY)
    found = {os.fsdecode(entry.name): entry for entry in _all(descriptor)}
    checks.gives(sorted([*KINDS, ".", ".."]), lambda: sorted(found))
    for name, entry in found.items():
        status = os.lstat(f"d/{name}")
        checks.gives((status.st_ino, status.st_mode >> 12), lambda e=entry: (e.ino, e.type))
    checks.gives([], getdents, descriptor, what="at the end it stays at the end")
    os.close(descriptor)


@pytest.mark.quick
def test_positions(checks: Checks) -> None:
    """Each entry's offset leads behind it: also from another descriptor, and after others are gone."""
    os.mkdir("d")
    for number in range(300):
        make("file", f"d/{number:04}")
    descriptor = os.open("d", os.O_RDONLY)
    found = _all(descriptor)
    checks.gives(302, lambda: len({entry.name for entry in found}))
    checks.gives(302, lambda: len({entry.offset for entry in found}))
    names = [entry.name for entry in found]
    for index in (0, 1, 2, 57, 150, 299, 300):
        os.lseek(descriptor, found[index].offset, os.SEEK_SET)
        checks.gives(names[index + 1 :], lambda: [entry.name for entry in _all(descriptor)])
    os.lseek(descriptor, 0, os.SEEK_SET)
    checks.gives(names, lambda: [entry.name for entry in _all(descriptor, 256)])
    for entry in found[100:200]:
        if entry.name not in (b".", b".."):
            os.unlink(b"d/" + entry.name)
    os.lseek(descriptor, found[99].offset, os.SEEK_SET)
    kept = [name for name in names[100:200] if name in (b".", b"..")] + names[200:]
    checks.gives(kept, lambda: [entry.name for entry in _all(descriptor)])
    checks.fails(EINVAL, os.lseek, descriptor, -1, os.SEEK_SET)
    os.close(descriptor)


@pytest.mark.quick
def test_while_names_come_and_go(checks: Checks) -> None:
    """What is there all the time is listed once; what comes or goes, once at most."""
    os.mkdir("d")
    lasting = {f"stay-{number:05}".encode() for number in range(NAMES)}
    for name in lasting:
        os.mknod(b"d/" + name)
    stop = threading.Event()

    def disturb() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            os.mknod(f"d/new-{number}")
            if number % 3 == 1:
                os.rename(f"d/new-{number}", f"d/moved-{number}")
            elif number % 3 == 2:
                os.unlink(f"d/new-{number}")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(3):
            descriptor = os.open("d", os.O_RDONLY)
            names = [entry.name for entry in _all(descriptor, 1024)]
            os.close(descriptor)
            checks.true(len(names) == len(set(names)), "no name twice")
            checks.true(lasting <= set(names), "no name lost")
    finally:
        stop.set()
        thread.join(30)


@pytest.mark.quick
def test_removing_what_is_listed(checks: Checks) -> None:
    """As rm -r does it: read a part, remove it, go on from there."""
    os.mkdir("d")
    for number in range(1000):
        os.mknod(f"d/{number}")
    descriptor = os.open("d", os.O_RDONLY)
    removed = 0
    while batch := getdents(descriptor, 512):
        for entry in batch:
            if entry.name not in (b".", b".."):
                os.unlink(b"d/" + entry.name)
                removed += 1
    os.close(descriptor)
    checks.gives(1000, lambda: removed)
    checks.works(os.rmdir, "d")


def test_errors(checks: Checks) -> None:
    make("file", "x")
    descriptor = os.open("x", os.O_RDONLY)
    checks.fails(ENOTDIR, getdents, descriptor)
    os.close(descriptor)
    os.mkdir("d")
    descriptor = os.open("d", os.O_RDONLY)
    checks.fails(EINVAL, getdents, descriptor, 8, what="no room for a name")
    os.rmdir("d")
    checks.fails((0, ENOENT), getdents, descriptor)
    os.close(descriptor)


@pytest.mark.timeout(600)
def test_many_subdirectories(checks: Checks) -> None:
    """More than the 65,000 links of ext4's directories, which then stop counting."""
    count = 65_600
    os.mkdir("d")
    for number in range(count):
        os.mkdir(f"d/{number}")
    links = os.stat("d").st_nlink
    checks.true(links == (count + 2 if checks.on_fuse else 1), f"{links} links")
    checks.fails(ENOTEMPTY, os.rmdir, "d")
    descriptor = os.open("d", os.O_RDONLY)
    names = {entry.name for entry in _all(descriptor, 65536) if stat.S_ISDIR(entry.type << 12)}
    os.close(descriptor)
    checks.gives(count + 2, lambda: len(names))
    for number in range(count):
        os.rmdir(f"d/{number}")
    if checks.on_fuse:  # ext4 does not begin to count again
        checks.gives(2, lambda: os.stat("d").st_nlink)
    checks.works(os.rmdir, "d")
