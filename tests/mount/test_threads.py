"""Several threads on /dev/fuse: requests in a crowd, each answered with its own data."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.mount.conftest import Mount, counted, faulty

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="the C front end is root's"),
]

PAGE = 4096
WORKERS = 16
ROUNDS = 100


@pytest.mark.parametrize("threads", [1, 3])
def test_a_crowd(new_mount: Callable[..., Mount], threads: int) -> None:
    """A drive that takes a while for reads has many under way. Python answers in between."""
    mount = faulty(
        new_mount,
        *(f"q{2 + thread}:read delay=1ms" for thread in range(threads)),
        options=f"frontend=c,threads={threads}",
    )
    path = mount.path / "shared"
    path.write_bytes(b"".join(bytes([index]) * PAGE for index in range(WORKERS)))
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.fsync(descriptor)

    def work(index: int) -> None:
        with mmap.mmap(-1, PAGE) as memory:
            for round_ in range(ROUNDS):
                os.preadv(descriptor, [memory], index * PAGE)
                assert memory[:] == bytes([index + round_ & 0xFF]) * PAGE
                memory[:] = bytes([index + round_ + 1 & 0xFF]) * PAGE
                os.pwritev(descriptor, [memory], index * PAGE)
                if round_ % 10 == 5:
                    (mount.path / f"other{index}").write_bytes(b"x" * index)
                if round_ == 50 and not index:
                    os.truncate(path, (WORKERS + 1) * PAGE)  # withdrawn, and published anew

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    os.close(descriptor)
    mount.unmount()
    assert counted(mount, "reads") > WORKERS * ROUNDS / 2
    assert bool(counted(mount, "calls")) == (threads > 1)


def test_no_more_threads_than_queue_pairs(new_mount: Callable[..., Mount]) -> None:
    mount = faulty(new_mount, options="frontend=c,threads=3", queues=2)
    (mount.path / "file").write_bytes(b"fine")
    assert "1 of 3 threads" in mount.logged()
    mount.unmount()
