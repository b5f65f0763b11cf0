"""A filesystem over vfio-user: mounted, written, killed under; its C threads have queue pairs of their own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from driver.tools import cli
from tests.driver.vfio_user.conftest import Server
from tests.mount.conftest import Mount, fsck, python_module, run, wait_until

Start = Callable[..., Server]
SOURCES = Path(__file__).resolve().parents[3] / "driver"


def filesystem(server: Server, directory: Path) -> Mount:
    """Made and mounted over the socket."""
    run(*python_module("mkfs.mkfs", "-q", server.address))
    mount = Mount(Path(server.address), directory / "mnt", directory / "log", checked=False)
    mount.path.mkdir()
    mount.mount()
    return mount


def write_durably(path: Path, data: bytes) -> None:
    """fsync() covers everything that was done before it, too."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.mount
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "doorbells",
    [
        (),
        pytest.param(("--no-doorbell-mmap", "--no-shadow-doorbells"), marks=pytest.mark.slow),
    ],
)
def test_mounted(start: Start, tmp_path: Path, doorbells: tuple[str, ...]) -> None:
    server = start("--queues", "4", *doorbells)
    mount = filesystem(server, tmp_path)
    data = random.Random(5).randbytes(4 << 20)
    try:
        shutil.copytree(SOURCES / "vfio_user", mount.path / "tree")
        big = mount.path / "big"
        big.write_bytes(data)
        with big.open("r+b") as file:
            for at in range(0, len(data), 65536):  # in place: the front end's own queue pairs
                file.seek(at)
                file.write(data[at : at + 4096][::-1])
            os.fsync(file.fileno())
        expected = b"".join(
            data[at : at + 4096][::-1] + data[at + 4096 : at + 65536]
            for at in range(0, len(data), 65536)
        )
        mount.remount()
        assert big.read_bytes() == expected
        for source in (SOURCES / "vfio_user").glob("*.py"):
            assert (mount.path / "tree" / source.name).read_bytes() == source.read_bytes()
        mount.unmount()
    finally:
        mount.tidy()
    assert server.end() == 0
    checked = fsck(server.image)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_daemon_is_killed_and_the_next_one_replays(start: Start, tmp_path: Path) -> None:
    server = start()
    mount = filesystem(server, tmp_path)
    try:
        for i in range(50):
            write_durably(mount.path / str(i), bytes([i]) * 5000)
        mount.kill()
        mount.mount()
        for i in range(50):
            assert (mount.path / str(i)).read_bytes() == bytes([i]) * 5000
        mount.unmount()
    finally:
        mount.tidy()
    assert server.end() == 0
    assert fsck(server.image).returncode == 0


@pytest.mark.mount
@pytest.mark.timeout(180)
def test_the_server_is_killed_under_a_mount(start: Start, tmp_path: Path) -> None:
    """Errors, no hang; what was synced before is there afterwards."""
    server = start()
    mount = filesystem(server, tmp_path)
    try:
        write_durably(mount.path / "synced", b"kept" * 1000)
        server.kill()
        with pytest.raises(OSError):
            write_durably(mount.path / "more", bytes(1 << 20))
        run("umount", mount.path, check=False)
        wait_until(lambda: not os.path.exists(f"/proc/{mount.pid}"))
        mount.pid = 0
    finally:
        if mount.pid:
            os.kill(mount.pid, signal.SIGKILL)
            mount.pid = 0
        mount.tidy()
    again = start(path=server.path)
    mount = Mount(Path(again.address), tmp_path / "mnt", tmp_path / "log", checked=False)
    mount.mount()
    try:
        assert (mount.path / "synced").read_bytes() == b"kept" * 1000
        mount.unmount()
    finally:
        mount.tidy()


@pytest.mark.parametrize("wait", ["--poll", "--interrupt"])
def test_a_queue_pair_of_the_c_core(
    start: Start, wait: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No Python on the way of a command: doorbells, kicks and eventfds are the C core's."""
    server = start("--queues", "2", "--queue-entries", "64")
    words = ["perf", server.address, "--time", "0.3", "--qd", "16", "--rw", "randwrite", wait]
    assert cli.main([*words, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commands"] > 100
    assert found["failed"] == 0
