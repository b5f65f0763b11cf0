"""Access times of what is read past the page cache, most of which the C front end reads without Python."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, counted, make_mount

NS = 1_000_000_000
PAGE = 4096
READS = 40

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="the C front end is root's"),
]


@contextmanager
def direct(path: Path, flags: int = 0) -> Iterator[Callable[[], None]]:
    """Reads of one block, past the page cache, as many as it takes that C serves some."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | flags)
    with mmap.mmap(-1, PAGE) as memory:

        def read() -> None:
            for _ in range(READS):
                assert os.preadv(descriptor, [memory], 0) == PAGE

        try:
            yield read
        finally:
            os.close(descriptor)


def mounted(place: Path, policy: str) -> Mount:
    mount = make_mount(place, options=policy)
    (mount.path / "f").write_bytes(bytes(16 * PAGE))
    os.utime(mount.path / "f", ns=(NS, 2 * NS))
    return mount


def atime(mount: Mount) -> int:
    return (mount.path / "f").stat().st_atime_ns


@pytest.mark.parametrize("policy", ["relatime", "strictatime", "noatime"])
def test_direct_reads(tmp_path: Path, policy: str) -> None:
    mount = mounted(tmp_path, policy)
    path = mount.path / "f"
    try:
        with direct(path) as read:
            read()
            first = atime(mount)
            assert (first == NS) == (policy == "noatime")
            time.sleep(0.05)
            read()
            second = atime(mount)
            assert (second > first) == (policy == "strictatime")
            os.utime(path, ns=(3 * NS, 2 * NS))
            assert atime(mount) == 3 * NS
            with direct(path, os.O_NOATIME) as read_quietly:
                read_quietly()
            assert atime(mount) == 3 * NS
            os.utime(path, ns=(NS, 2 * NS))
            read()
        mount.unmount()  # without a look
        assert counted(mount, "reads") > READS
        mount.mount()
        assert (atime(mount) == NS) == (policy == "noatime")
    finally:
        mount.tidy()
