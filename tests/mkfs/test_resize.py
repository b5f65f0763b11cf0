"""nvmefs resize on an image that nobody has mounted. Growing itself: tests/nvmefs/test_grow.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mkfs.fsck import main as fsck
from mkfs.mkfs import main as mkfs
from mkfs.resize import main as resize
from nvmefs.layout import BLOCK_BYTES, STATE_BLOCK, SUPERBLOCK, State, StateFlag, Superblock

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    assert mkfs(["-q", "--size", "16M", "-L", "small", str(path)]) == 0
    return path


def superblock_of(image: Path) -> Superblock:
    with image.open("rb") as file:
        file.seek(SUPERBLOCK * BLOCK_BYTES)
        return Superblock.decode(file.read(BLOCK_BYTES), SUPERBLOCK)


def test_to_the_size_of_the_image(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(image, 300 * MIB)
    assert resize([str(image)]) == 0
    assert capsys.readouterr().out == (f"{image}: grown from 16 MiB to 300 MiB (76800 blocks)\n")
    assert superblock_of(image).block_count == 76800
    assert fsck(["-n", "-f", str(image)]) == 0
    assert resize([str(image)]) == 0
    assert "nothing is to be done" in capsys.readouterr().out


def test_an_image_is_extended(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resize([str(image), "200M", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["before_bytes"], told["after_bytes"]) == (16 * MIB, 200 * MIB)
    assert image.stat().st_size == 200 * MIB
    assert fsck(["-n", "-f", str(image)]) == 0


def test_to_less_than_the_image_has(image: Path) -> None:
    os.truncate(image, 300 * MIB)
    assert resize(["-q", str(image), "100M"]) == 0
    assert superblock_of(image).block_count * BLOCK_BYTES == 100 * MIB
    assert image.stat().st_size == 300 * MIB
    assert fsck(["-n", "-f", str(image)]) == 0


def test_it_is_no_mount_and_stays_clean(image: Path) -> None:
    assert resize(["-q", str(image), "100M"]) == 0
    with image.open("rb") as file:
        file.seek(STATE_BLOCK * BLOCK_BYTES)
        state = State.decode(file.read(BLOCK_BYTES), superblock_of(image))
    assert state.flags == StateFlag.CLEAN
    assert (state.mount_count, state.mount_time_s) == (0, 0)


def test_shrinking_is_refused(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    assert resize([str(image), "15M"]) == 1
    error = capsys.readouterr().err
    assert "cannot shrink" in error
    assert error.count("\n") == 1
    after = image.read_bytes()
    for place in (0, SUPERBLOCK, 4095):
        here = slice(place * BLOCK_BYTES, (place + 1) * BLOCK_BYTES)
        assert before[here] == after[here]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nothing.img"], 1, "nothing.img: No such file"),
        (["nothing.img", "much"], 2, "'much' is not a size"),
        ([], 2, "required: DIR|IMAGE_OR_ADDRESS"),
        (["/proc"], 1, "/proc: no filesystem of nvmefs is mounted there"),
    ],
)
def test_what_cannot_be(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resize(words) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_not_a_filesystem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zeroes"
    path.write_bytes(bytes(16 * MIB))
    assert resize([str(path)]) == 1
    assert capsys.readouterr().err == (
        f"nvmefs resize: {path}: holds no nvmefs (no superblock found)\n"
    )


def test_one_with_known_errors_is_repaired_first(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    superblock = superblock_of(image)
    with image.open("r+b") as file:
        file.seek(STATE_BLOCK * BLOCK_BYTES)
        state = State.decode(file.read(BLOCK_BYTES), superblock)
        state.flags |= StateFlag.ERRORS
        file.seek(STATE_BLOCK * BLOCK_BYTES)
        file.write(state.encode(superblock, 5))
    assert resize([str(image), "100M"]) == 1
    assert "repair it first" in capsys.readouterr().err
    assert superblock_of(image).block_count * BLOCK_BYTES == 16 * MIB
    assert image.stat().st_size == 16 * MIB
