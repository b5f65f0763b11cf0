"""Filling a filesystem and freeing it again: errors come, what is there stays, all space comes back."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, wait_until
from tests.programs.writer import content, sync
from tests.support.uring import URING

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]

ROUNDS = 3
LARGE_BYTES = 4 << 20
MEDIUM_BYTES = 20_000
SMALL_BYTES = 3000


def free_blocks(path: Path) -> tuple[int, int]:
    usage = os.statvfs(path)
    return usage.f_bfree, usage.f_bavail


def fill(directory: Path, sizes: list[int]) -> dict[Path, tuple[int, int]]:
    """Write files of these sizes in turns until nothing fits; (seed, size) of those that did, by path."""
    written: dict[Path, tuple[int, int]] = {}
    for number in range(10**6):
        size = sizes[number % len(sizes)]
        path = directory / f"f{number}"
        try:
            with open(path, "xb", buffering=0) as file:
                data = content(number, size)
                done = 0
                while done < size:
                    done += file.write(data[done:])
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return written
        written[path] = (number, size)
    raise AssertionError("a filesystem without end")


def require_intact(written: dict[Path, tuple[int, int]]) -> None:
    for path, (seed, size) in written.items():
        assert path.read_bytes() == content(seed, size), path


@pytest.mark.parametrize("frontend", ["c", URING, "python"])
def test_all_space_comes_back(new_mount: Callable[..., Mount], frontend: str) -> None:
    mount = new_mount(size="192M", options=f"frontend={frontend}")
    before = free_blocks(mount.path)
    for number in range(ROUNDS):
        directory = mount.path / f"round{number}"
        directory.mkdir()
        written = fill(directory, [LARGE_BYTES, SMALL_BYTES, 100])
        assert free_blocks(mount.path)[1] * 4096 < LARGE_BYTES
        require_intact(written)
        written |= fill_the_rest(directory)
        mount.remount()
        require_intact(written)
        if number % 2:
            shutil.rmtree(directory)
        else:
            for path in written:
                os.truncate(path, 0)
            shutil.rmtree(directory)
        sync(mount.path)
        wait_until(lambda: free_blocks(mount.path) == before, 20)


def fill_the_rest(directory: Path) -> dict[Path, tuple[int, int]]:
    """What is too little for large files takes small ones."""
    below = directory / "rest"
    below.mkdir()
    return fill(below, [SMALL_BYTES])


def make_directories(top: Path) -> None:
    """Directories take no blocks of their own, only room in the tree; until there is none."""
    for number in range(10**6):
        (top / f"empty{number}").mkdir()


def test_a_full_filesystem_can_be_emptied_bit_by_bit(new_mount: Callable[..., Mount]) -> None:
    """Removing needs space in the tree; it must be had even when nothing is left for data."""
    mount = new_mount(size="64M")
    written = fill(mount.path, [MEDIUM_BYTES])
    with pytest.raises(OSError) as refused:
        make_directories(mount.path)
    assert refused.value.errno == errno.ENOSPC
    for path in list(written)[::2]:
        path.unlink()
        del written[path]
    sync(mount.path)
    more = mount.path / "more"
    more.mkdir()
    again = fill(more, [MEDIUM_BYTES])
    assert len(again) > 100
    mount.remount()
    require_intact(written)
    require_intact(again)
