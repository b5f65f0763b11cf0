"""nvmefs.registry: the daemon of a mount, and nobody else for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from driver.mountinfo import Mounted
from nvmefs import registry
from nvmefs.options import parse

MOUNTED = Mounted("0:99", "/mnt", "fuse.nvmefs", "disk.img")
OPTIONS = parse(["ro,noexec,commit=7"])


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "DIRECTORY", tmp_path / "run/mounts")
    return tmp_path / "run/mounts"


def daemon_pid() -> int | None:
    descriptor = registry.daemon_of(MOUNTED)
    if descriptor is None:
        return None
    fields = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split()
    os.close(descriptor)
    return int(fields[fields.index("Pid:") + 1])


def test_as_long_as_it_lasts(directory: Path) -> None:
    assert daemon_pid() is None
    with registry.entered(MOUNTED, OPTIONS):
        assert daemon_pid() == os.getpid()
    assert daemon_pid() is None
    assert list(directory.iterdir()) == []


def test_a_pid_that_was_used_again(directory: Path) -> None:
    with registry.entered(MOUNTED, OPTIONS):
        path = directory / "0:99"
        entry = json.loads(path.read_text())
        path.write_text(json.dumps({**entry, "start": entry["start"] - 1}))
        assert daemon_pid() is None
    assert path.exists()  # another's by now: not ours to take away


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}', '{"pid": "x", "start": 1}'])
def test_a_broken_entry(directory: Path, text: str) -> None:
    directory.mkdir(parents=True)
    (directory / "0:99").write_text(text)
    assert daemon_pid() is None


def test_where_it_cannot_be_written(directory: Path) -> None:
    directory.parent.mkdir()
    directory.touch()
    with registry.entered(MOUNTED, OPTIONS):
        assert daemon_pid() is None


def test_not_within_the_mount_itself(directory: Path) -> None:
    """Serving it we would wait for ourselves."""
    mounted = Mounted("0:99", str(directory.parent), "fuse.nvmefs", "disk.img")
    with registry.entered(mounted, OPTIONS):
        assert not directory.exists()


def test_options(directory: Path) -> None:
    with registry.entered(MOUNTED, OPTIONS):
        assert registry.options_of(MOUNTED) == OPTIONS
        path = directory / "0:99"
        entry = json.loads(path.read_text())
        path.write_text(json.dumps({**entry, "options": {"of a newer version": 1}}))
        assert registry.options_of(MOUNTED) is None
    path.unlink()
    assert registry.options_of(MOUNTED) is None
