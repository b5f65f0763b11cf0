"""What a daemon has in memory while it works on far more than `-o cache_mb` lets it keep."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, counted, make_mount

CACHE_MIB = 4
VALUE_BYTES = 65536
VALUES_MIB = 20
FRAGMENTED = 4
EXTENTS = 600
PAGE = 4096

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes, and the C front end"),
]


def resident_mib(mount: Mount, field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{mount.pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def fill_trees(place: Path) -> None:
    """Attributes stand in the tree: several times what the cache may keep of it."""
    place.mkdir()
    for index in range(VALUES_MIB << 20 >> 16):
        path = place / str(index % 50)
        path.touch()
        os.setxattr(path, f"trusted.{index}", index.to_bytes(4, "little") * (VALUE_BYTES // 4))


def read_trees(place: Path) -> None:
    for index in range(VALUES_MIB << 20 >> 16):
        value = os.getxattr(place / str(index % 50), f"trusted.{index}")
        assert value == index.to_bytes(4, "little") * (VALUE_BYTES // 4)


def make_maps(place: Path) -> None:
    """Files of many extents, read past the page cache until the front end has the map of some."""
    place.mkdir()
    with mmap.mmap(-1, PAGE) as memory:
        for index in range(FRAGMENTED):
            descriptor = os.open(place / str(index), os.O_CREAT | os.O_RDWR | os.O_DIRECT)
            for extent in range(EXTENTS):
                os.pwritev(descriptor, [memory], 2 * extent * PAGE)
            for _ in range(10 + EXTENTS // 16):
                os.preadv(descriptor, [memory], 0)
            os.close(descriptor)


@pytest.mark.timeout(120)
def test_the_cache_keeps_its_bound(tmp_path: Path) -> None:
    mount = make_mount(tmp_path, size="2G", options=f"cache_mb={CACHE_MIB}")
    try:
        fill_trees(mount.path / "warm")
        base = resident_mib(mount, "VmHWM")
        fill_trees(mount.path / "trees")
        make_maps(mount.path / "maps")
        read_trees(mount.path / "trees")
        read_trees(mount.path / "warm")
        more = resident_mib(mount, "VmHWM") - base
        mount.unmount()
        assert counted(mount, "reads") > FRAGMENTED
    finally:
        mount.tidy()
    assert more < 2 * CACHE_MIB
