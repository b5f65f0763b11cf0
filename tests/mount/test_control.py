"""Asking the daemon of a mount: `nvmefs stat`, `trim`, `resize`, and changes of the label, while it is used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmefs.control import SYSTEM, NotServed, ask
from nvmefs.errors import FsError
from tests.mount.conftest import Mount, fsck, python_module, run
from tests.support.uring import URING

MIB = 1 << 20

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="sockets in /run are root's"),
]


def verb(*words: object) -> str:
    return run(*python_module("nvmefs.cli", *words)).stdout


@pytest.mark.parametrize("frontend", ["c", URING, "python"])
def test_all_of_it(new_mount: Callable[..., Mount], frontend: str) -> None:
    mount = new_mount(size="64M", options=f"frontend={frontend}")
    (mount.path / "file").write_bytes(b"x" * MIB)
    os.sync()
    told = json.loads(verb("stat", mount.path, "--json"))
    assert told["state"] == "read-write"
    assert told["space"]["filesystem"] == 64 * MIB // 4096
    assert (told["front_end"] is not None) == (frontend != "python")
    assert told["driver"]["queues"][0]["completed"] > 0
    assert "commits" in verb("stat", mount.path)

    assert "trimmed" in verb("trim", mount.path)
    assert ask(str(mount.path), "trim", min_length=100 << 20) == {"trimmed_bytes": 0}

    before = os.statvfs(mount.path)
    os.truncate(mount.image, 300 * MIB)
    assert "grown from 64 MiB to 300 MiB" in verb("resize", mount.path)
    after = os.statvfs(mount.path)
    assert (after.f_blocks - before.f_blocks) * 4096 == 236 * MIB
    (mount.path / "large").write_bytes(b"y" * (100 * MIB))
    assert "nothing is to be done" in verb("resize", mount.path)
    with pytest.raises(FsError, match="cannot shrink") as caught:
        ask(str(mount.path), "resize", size_bytes=16 * MIB)
    assert caught.value.errno == errno.EINVAL

    shown = verb("tune", "-L", "changed", "-m", "1%", "-e", "remount-ro", "-l", mount.path)
    assert shown.splitlines()[0] == "label    changed"
    assert "768 blocks" in shown
    assert ask(str(mount.path), "stat")["label"] == "changed"
    mount.unmount()
    checked = fsck(mount.image)
    assert checked.returncode == 0, checked.stdout
    with pytest.raises(NotServed, match="no filesystem of nvmefs is mounted"):
        ask(str(mount.path), "stat")
    mount.mount()
    assert ask(str(mount.path), "stat")["label"] == "changed"
    assert (mount.path / "large").read_bytes() == b"y" * (100 * MIB)


def test_growing_is_noticed(new_mount: Callable[..., Mount]) -> None:
    """The controller tells of it when somebody looks; the daemon writes it into its log."""
    mount = new_mount(size="64M")
    os.truncate(mount.image, 80 * MIB)
    verb("resize", mount.path, "70M")
    assert "the namespace has grown to 20480 blocks" in mount.log.read_text()


def test_after_the_daemon_was_killed(new_mount: Callable[..., Mount], tmp_path: Path) -> None:
    mount = new_mount(size="64M")
    device = os.stat(mount.path).st_dev
    socket = SYSTEM / f"{os.major(device)}:{os.minor(device)}"
    assert socket.is_socket()
    mount.unmount()
    assert not socket.exists()
