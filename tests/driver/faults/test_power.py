"""The power of a drive fails under a mount: `nvmefs controller` with a volatile cache, and SIGUSR1."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver.vfio_user import conftest as served
from tests.driver.vfio_user.conftest import END_BOUND_S, Server
from tests.mount.conftest import Mount, fsck, python_module, run, wait_until

start = served.start
image = served.image

BLOCK = 4096
SECTOR = 512
BLOCKS = 64
ROUNDS = 2


def writer(path: Path, rng: random.Random, promised: dict[int, int]) -> None:
    """Overwrites blocks in place and synchronizes, until it gets an error; notes what was promised.

    Block i is filled with a number that only grows.
    """
    numbers = itertools.count(max(promised.values(), default=0) + 1)
    pending: dict[int, int] = {}
    try:
        with path.open("r+b", buffering=0) as file:
            while True:
                at, number = rng.randrange(BLOCKS), next(numbers)
                os.pwrite(file.fileno(), number.to_bytes(8, "little") * (BLOCK // 8), at * BLOCK)
                pending[at] = number
                if rng.random() < 0.1:
                    os.fsync(file.fileno())
                    promised |= pending
                    pending.clear()
    except OSError:
        return


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_was_synchronized_survives_the_power_of_the_drive(
    start: Callable[..., Server],
    tmp_path: Path,
) -> None:
    """Most of the writes go through the front end's C threads and queue pairs of their own."""
    rng = random.Random(3)
    promised: dict[int, int] = {}
    server: Server = start("--queues", "4", "--write-cache", "volatile")
    run(*python_module("mkfs.mkfs", "-q", server.address))
    mount = Mount(Path(server.address), tmp_path / "mnt", tmp_path / "log", checked=False)
    mount.path.mkdir()
    data = mount.path / "data"
    try:
        for number in range(ROUNDS):
            mount.mount()
            if not data.exists():
                data.write_bytes(bytes(BLOCK * BLOCKS))
            thread = threading.Thread(target=writer, args=(data, rng, promised))
            thread.start()
            wait_until(lambda: len(promised) > BLOCKS // 2)
            server.process.send_signal(signal.SIGUSR1)
            assert server.process.wait(END_BOUND_S) == 0
            thread.join(60)
            assert not thread.is_alive()
            run("umount", mount.path, check=False)
            wait_until(lambda: not os.path.exists(f"/proc/{mount.pid}"))
            mount.pid = 0
            server = start("--queues", "4", "--write-cache", "volatile", "--seed", str(number + 1))
        mount.mount()
        content = data.read_bytes()
        for at, least in promised.items():
            for sector in range(at * BLOCK, (at + 1) * BLOCK, SECTOR):  # each may be newer
                found = int.from_bytes(content[sector : sector + 8], "little")
                assert content[sector : sector + SECTOR] == content[sector : sector + 8] * 64
                assert found >= least, f"block {at} holds {found}, and {least} was synchronized"
        mount.unmount()
    finally:
        if mount.pid:
            os.kill(mount.pid, signal.SIGKILL)
            mount.pid = 0
        mount.tidy()
    assert server.end() == 0
    checked = fsck(server.image)
    assert checked.returncode == 0, checked.stdout
