"""nvmefs.umount, as far as nothing has to be mounted for it; tests/mount/test_helpers.py has the rest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from driver.mountinfo import Mounted
from nvmefs import cli, umount
from nvmefs.umount import flush, users

BUSY_S = 30


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What /sbin/umount.nvmefs says, and its exit status."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["/sbin/umount.nvmefs", *words])
        return cli.main(), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 1, "usage: umount.nvmefs"),
        (["/mnt", "-x"], 1, "usage: umount.nvmefs"),
        (["/no/such/place"], 32, "umount.nvmefs: /no/such/place: not mounted\n"),
        (["/proc"], 32, "umount.nvmefs: /proc: mounted as proc, not by nvmefs: umount -i /proc\n"),
        (["/mnt", "-N", "/no/such/ns"], 32, "/no/such/ns: no mount namespace: No such file"),
        (["/mnt", "-N", "/dev/null"], 32, "/dev/null: the mount namespace cannot be entered"),
    ],
)
def test_refusals(said: object, words: list[str], status: int, text: str) -> None:
    assert callable(said)
    found, err = said(*words)
    assert found == status
    assert text in err


def test_interrupted(said: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_arguments: object) -> tuple[int, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(umount, "unmount", interrupt)
    assert callable(said)
    assert said("/mnt") == (32, "umount.nvmefs: interrupted\n")


def test_flush(tmp_path: Path) -> None:
    assert flush(str(tmp_path)) == ""
    assert flush(str(tmp_path / "absent")) == "not all could be written: No such file or directory"


def test_flush_of_what_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def sleep(*_: object) -> int:
        released.wait(BUSY_S)
        raise OSError(errno.EINTR, "killed")

    monkeypatch.setattr(os, "open", sleep)
    assert flush(str(tmp_path), bound_s=0.05) == "its dirty pages were not written within 0.05 s"
    released.set()


def test_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount on it, and processes: by an open file, by their directory. Our own process is none."""
    place = tmp_path / "mnt"
    place.mkdir()
    beside = tmp_path / "mnt2"
    beside.touch()
    monkeypatch.setattr(umount, "mounts", lambda: [Mounted("0:1", f"{place}/x", "tmpfs", "none")])
    with beside.open(), (place / "file").open("w"):
        assert users(str(place)) == [f"{place}/x is mounted on it: umount {place}/x"]
        with subprocess.Popen(["sleep", str(BUSY_S)], cwd=place) as child:
            found = users(str(place))[1]
            child.kill()
    assert found == f"in use by sleep (pid {child.pid})"
