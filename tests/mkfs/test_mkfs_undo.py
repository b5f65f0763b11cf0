"""mkfs.nvmefs --undo-file: what was overwritten can be put back, to the byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mkfs import fsck, mkfs
from nvmefs.layout import MIN_BLOCKS

SIZE = MIN_BLOCKS * 4096


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, bytes]:
    """An image with something else in it, and its bytes."""
    path = tmp_path / "disk.img"
    content = os.urandom(64 * 4096).ljust(SIZE - 8192, b"\0") + os.urandom(8192)
    path.write_bytes(content)
    return path, content


def test_everything_is_put_back(old: tuple[Path, bytes], tmp_path: Path) -> None:
    path, content = old
    undo, tree = tmp_path / "undo", tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"data" * 5000)
    assert mkfs.main(["--force", "-q", "--undo-file", str(undo), "-d", str(tree), str(path)]) == 0
    assert path.read_bytes() != content
    assert fsck.main(["-n", str(path)]) == 0
    assert fsck.main(["--undo", "--undo-file", str(undo), str(path)]) in (0, 1)
    assert path.read_bytes() == content


def test_the_command_is_told(
    old: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undo = tmp_path / "undo"
    assert mkfs.main(["--force", "--undo-file", str(undo), str(old[0])]) == 0
    assert f"fsck.nvmefs --undo --undo-file {undo} {old[0]}" in capsys.readouterr().err


def test_no_undo_file_is_overwritten(
    old: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undo = tmp_path / "undo"
    undo.write_bytes(b"precious")
    assert mkfs.main(["--force", "--undo-file", str(undo), str(old[0])]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert (old[0].read_bytes(), undo.read_bytes()) == (old[1], b"precious")


def test_what_makes_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, undo = tmp_path / "new.img", tmp_path / "undo"
    assert mkfs.main(["--size", str(SIZE), "--undo-file", str(undo), str(path)]) == 1
    assert "is new" in capsys.readouterr().err
    assert mkfs.main(["-n", "--undo-file", str(undo), str(path)]) == 2
    assert "changes nothing" in capsys.readouterr().err
    assert not undo.exists()
    assert not path.exists()
