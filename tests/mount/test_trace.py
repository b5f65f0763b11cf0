"""The hops of requests on a mount are those drawn in docs/data-flow.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import ROOT, Mount, make_mount, wait_until

pytestmark = pytest.mark.mount

DOCUMENT = ROOT / "docs" / "data-flow.md"
BLOCK = 4096
Hops = list[str]


def drawn() -> dict[str, Hops]:
    """The lists in the document: ```hops NAME, a hop in the first column of each line."""
    blocks = re.findall(r"^```hops (\w+)\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    return {name: [line.split()[0] for line in text.splitlines()] for name, text in blocks}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount whose metadata is in memory, so that no request has to read it first."""
    mount = make_mount(tmp_path_factory.mktemp("trace"), options="trace,commit=1000,noatime")
    (mount.path / "warm").write_bytes(bytes(8 * BLOCK))
    os.sync()
    yield mount
    mount.tidy()


def hops_of(mount: Mount, verb: str, action: Callable[[], object]) -> Hops:
    """The hops of the last request that begins with operations.`verb` while `action` runs."""
    start = mount.log.stat().st_size
    action()
    found: dict[int, Hops] = {}

    def seen() -> bool:
        found.clear()
        for line in mount.log.read_bytes()[start:].decode().splitlines():
            match = re.search(r"nvmefs\.trace: #(\d+) (\S+)", line)
            if match:
                found.setdefault(int(match[1]), []).append(match[2])
        return any(hops[0] == f"operations.{verb}" for hops in found.values())

    wait_until(seen, seconds=10)
    return [hops for _, hops in sorted(found.items()) if hops[0] == f"operations.{verb}"][-1]


def test_create(traced: Mount) -> None:
    made = hops_of(traced, "create", lambda: os.close(os.open(traced.path / "new", os.O_CREAT)))
    assert made == drawn()["create"]


def test_write_overwrite_fsync_read(traced: Mount) -> None:
    path: Path = traced.path / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)

    def write() -> None:
        os.pwrite(direct, b"x" * 4 * BLOCK, 0)

    def read() -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, BLOCK, 0) == b"x" * BLOCK

    lists = drawn()
    assert hops_of(traced, "write", write) == lists["write"]
    assert hops_of(traced, "fsync", lambda: os.fsync(descriptor)) == lists["fsync"]
    assert hops_of(traced, "write", write) == lists["overwrite"]
    os.fsync(descriptor)
    assert hops_of(traced, "fsync", lambda: os.fsync(descriptor)) == ["operations.fsync"]
    assert hops_of(traced, "read", read) == lists["read"]
    os.close(descriptor)
    os.close(direct)


def test_pages_written_back_take_the_same_way(traced: Mount) -> None:
    descriptor = os.open(traced.path / "paged", os.O_CREAT | os.O_RDWR)

    def write() -> None:
        os.pwrite(descriptor, b"x" * 4 * BLOCK, 0)
        os.fsync(descriptor)

    assert hops_of(traced, "write", write) == drawn()["write"]
    os.close(descriptor)


def test_the_document_draws_all_that_is_asserted() -> None:
    assert set(drawn()) == {"create", "write", "overwrite", "read", "fsync"}
