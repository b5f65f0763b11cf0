"""nvmefs install-helpers: the links, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmefs import cli, helpers
from nvmefs.helpers import LINKS


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    for command in set(LINKS.values()):
        (directory / command).touch()
    monkeypatch.setattr(helpers, "commands", lambda: directory)
    return directory


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    directory = tmp_path / "sbin"
    directory.mkdir()
    (directory / "mount.nfs").touch()
    return directory


def links(prefix: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in prefix.iterdir() if path.is_symlink()}


def run(prefix: Path, *words: str) -> int:
    return cli.main(["install-helpers", "--prefix", str(prefix), *words])


def test_there_and_gone(commands: Path, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(prefix) == 0
    assert links(prefix) == {name: str(commands / command) for name, command in LINKS.items()}
    assert f"{prefix}/mount.nvmefs -> {commands}/nvmefs\n" in capsys.readouterr().out
    assert run(prefix) == 0
    assert capsys.readouterr().out == ""
    assert run(prefix, "--remove") == 0
    assert [path.name for path in prefix.iterdir()] == ["mount.nfs"]
    assert run(prefix, "--remove") == 0


def test_an_earlier_installation_is_replaced(commands: Path, prefix: Path) -> None:
    (prefix / "mount.nvmefs").symlink_to("/old/venv/bin/nvmefs")
    assert run(prefix) == 0
    assert links(prefix)["mount.nvmefs"] == str(commands / "nvmefs")


@pytest.mark.parametrize("foreign", ["file", "link"])
@pytest.mark.parametrize("words", [[], ["--remove"]])
def test_what_is_not_ours_stays(
    commands: Path,
    prefix: Path,
    capsys: pytest.CaptureFixture[str],
    foreign: str,
    words: list[str],
) -> None:
    path = prefix / "umount.nvmefs"
    if foreign == "file":
        path.write_text("theirs")
    else:
        path.symlink_to("/usr/bin/theirs")
    assert run(prefix, *words) == (0 if words and foreign == "file" else 1)
    assert path.is_symlink() or path.read_text() == "theirs"
    assert [name for name in links(prefix) if name != path.name] == []
    if not words:
        assert "not ours" in capsys.readouterr().err


def test_a_missing_command(
    commands: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (commands / "fsck.nvmefs").unlink()
    assert run(prefix) == 1
    assert "pip install" in capsys.readouterr().err
    assert links(prefix) == {}


def test_nowhere_to_put_them(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "absent") == 1
    assert "No such file or directory" in capsys.readouterr().err
