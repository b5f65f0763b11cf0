"""fsck.nvmefs as a user types it: modes, exit codes, questions, progress, the undo file."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkfs import fsck as fsck_tool
from mkfs.undo import HEADER, RECORD, Recorded, UndoFile
from nvmefs.device import open_device
from nvmefs.items import InodeRecord
from nvmefs.layout import BLOCK_BYTES, STATE_BLOCK, StateFlag
from tests.mkfs.builder import Builder, small_tree
from tests.mkfs.test_fsck import BIG, EMPTY
from tests.support.ram import RamNamespace

Run = Callable[..., tuple[int, str, str]]
BOUND_S = 30


@pytest.fixture
def fsck(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run fsck.nvmefs in this process: (exit code, standard output, standard error)."""

    def run(*args: object) -> tuple[int, str, str]:
        code = fsck_tool.main([str(arg) for arg in args])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def image(path: Path, break_it: Callable[[Builder], None] = lambda builder: None) -> Path:
    """An image file with what a test builds."""
    builder = small_tree()
    break_it(builder)
    device = builder.build()
    with path.open("wb") as file:
        file.truncate(device.block_count * BLOCK_BYTES)
        for number, data in device.blocks.items():
            file.seek(number * BLOCK_BYTES)
            file.write(data)
    return path


def wrong_counts(builder: Builder) -> None:
    builder.records[BIG].nlink = 9
    builder.records[EMPTY].nlink = 7


def unnamed(builder: Builder) -> None:
    builder.records[builder.take_number()] = InodeRecord(0o100644, 1, 0, 0)


# --- modes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["-y", "-a", "-p"])
def test_repaired(tmp_path: Path, fsck: Run, mode: str) -> None:
    path = image(tmp_path / "disk.img", wrong_counts)
    assert fsck("-n", path)[0] == 4
    code, out, _ = fsck(mode, "-f", path)
    assert code == 1
    assert f"{path}: link-count: inode 18 has link count 9, right is 2: repaired\n" in out
    assert out.endswith(f"{path}: 2 errors found and repaired\n")
    assert fsck("-n", path)[0] == 0
    code, out, _ = fsck(mode, "-f", path)
    assert (code, out) == (0, f"{path}: clean, 7 inodes, 7 names\n")


def test_safe_mode_leaves_what_is_not(tmp_path: Path, fsck: Run) -> None:
    path = image(tmp_path / "disk.img", unnamed)
    before = path.read_bytes()
    code, out, _ = fsck("-p", "-f", path)
    assert code == 4
    assert out.endswith("1 error left: run fsck.nvmefs by hand, without -p\n")
    assert path.read_bytes() == before


def test_safe_mode_believes_a_clean_filesystem(tmp_path: Path, fsck: Run) -> None:
    """At boot it is glanced at only; not when it was in use, or has met errors, or -f is given."""
    path = image(tmp_path / "disk.img", wrong_counts)
    assert fsck("-a", path) == (0, f"{path}: clean, 7 inodes\n", "")
    for flags in (StateFlag(0), StateFlag.CLEAN | StateFlag.ERRORS):

        def used(builder: Builder, flags: StateFlag = flags) -> None:
            builder.flags = flags

        path = image(tmp_path / "disk.img", used)
        code, out, _ = fsck("-a", path)
        assert "names" in out or code == 1
        assert fsck("-a", path) == (0, f"{path}: clean, 7 inodes\n", "")


def test_a_crash_is_no_error(tmp_path: Path, fsck: Run) -> None:
    def crashed(builder: Builder) -> None:
        builder.flags = StateFlag(0)

    path = image(tmp_path / "disk.img", crashed)
    code, out, _ = fsck("-y", path)
    assert code == 0
    assert "was not unmounted in order" in out
    assert "was not unmounted" not in fsck("-n", path)[1]


def test_json(tmp_path: Path, fsck: Run) -> None:
    path = image(tmp_path / "disk.img", wrong_counts)
    code, out, _ = fsck("-y", "--json", path)
    report = json.loads(out)
    assert code == 1
    assert (report["repaired"], report["left"], report["clean"]) == (2, 0, True)
    assert report["findings"][0] == {
        "name": "link-count",
        "text": "inode 18 has link count 9, right is 2",
        "where": {"inode": 18},
        "found": 9,
        "expected": 2,
        "repaired": True,
    }


def test_progress_and_figures(tmp_path: Path, fsck: Run) -> None:
    path = image(tmp_path / "disk.img")
    read, write = os.pipe()
    try:
        code, out, _ = fsck("-n", "-v", "-t", "-C", write, path)
        told = os.read(read, 65536).decode().splitlines()
    finally:
        os.close(read)
        os.close(write)
    assert code == 0
    assert told[0] == f"1 0 1 {path}"
    assert told[-1] == f"4 3 3 {path}"
    assert " of memory" in out
    assert fsck("-n", "-C", 999, path)[0] == 8
    assert "scan" in fsck("-n", "-C", 0, path)[2]


async def test_a_device_in_use_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "disk.img")
    async with open_device(str(path)):
        for mode in ("-n", "-y", "-p"):
            command = [sys.executable, "-m", "mkfs.fsck", mode, str(path)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=BOUND_S
            )
            assert done.returncode == 8
            assert "in use by process" in done.stderr


# --- questions ------------------------------------------------------------------------------------------


def asked(path: Path, answers: list[str]) -> tuple[int, str]:
    """fsck.nvmefs on a terminal: what it prints, and its exit code."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mkfs.fsck", str(path)],
        stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True,
    )  # fmt: skip
    os.close(terminal)
    seen, waiting = "", list(answers)
    deadline = time.monotonic() + BOUND_S
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(master, 4096)
            except OSError:
                break  # the other end is closed
            seen += data.decode()
            if seen.count("repair it (y/n/a = all)? ") > len(answers) - len(waiting) and waiting:
                os.write(master, waiting.pop(0).encode() + b"\n")
        return process.wait(BOUND_S), seen
    finally:
        os.close(master)
        process.kill()
        process.wait(BOUND_S)


def test_questions(tmp_path: Path, fsck: Run) -> None:
    path = image(tmp_path / "disk.img", wrong_counts)
    code, seen = asked(path, ["n", "n"])
    assert code == 4
    assert "0 errors repaired, 2 left" in seen
    code, seen = asked(path, ["what?", "n", "y"])
    assert code == 1 | 4
    assert seen.count("inode 18 has link count 9, right is 2\r\nrepair it") == 2
    code, seen = asked(path, ["a"])
    assert code == 1
    assert fsck("-n", path)[0] == 0


# --- the undo file --------------------------------------------------------------------------------------


def test_undo(tmp_path: Path, fsck: Run) -> None:
    path, undo = image(tmp_path / "disk.img", unnamed), tmp_path / "undo"
    before = path.read_bytes()
    assert fsck("-y", "--undo-file", undo, path)[0] == 1
    assert path.read_bytes() != before
    code, _, err = fsck("-y", "--undo-file", undo, path)
    assert code == 8
    assert "is not overwritten" in err
    for _ in range(2):  # it may be repeated
        code, out, _ = fsck("--undo", "--undo-file", undo, path)
        assert code == 0
        assert "blocks put back" in out
        assert path.read_bytes() == before


def test_undo_files_that_are_none(tmp_path: Path, fsck: Run) -> None:
    path, undo = image(tmp_path / "disk.img"), tmp_path / "undo"
    before = path.read_bytes()
    undo.write_bytes(b"something else")
    code, _, err = fsck("--undo", "--undo-file", undo, path)
    assert code == 8
    assert "not an undo file" in err
    undo.unlink()
    UndoFile.create(undo, 77).__exit__(None, None, None)
    code, _, err = fsck("--undo", "--undo-file", undo, path)
    assert code == 8
    assert "77 blocks" in err
    assert path.read_bytes() == before


def test_undo_file_cut_short(tmp_path: Path, fsck: Run) -> None:
    """The last record was not whole when the power went: its block had not been written."""
    path, undo = image(tmp_path / "disk.img", unnamed), tmp_path / "undo"
    before = path.read_bytes()
    fsck("-y", "--undo-file", undo, path)
    records = (undo.stat().st_size - HEADER.size) // (RECORD.size + BLOCK_BYTES)
    os.truncate(undo, undo.stat().st_size - 1)
    _, out, _ = fsck("--undo", "--undo-file", undo, path)
    assert f"{records - 1} blocks put back" in out
    assert path.read_bytes() != before


async def test_blocks_are_saved_before_they_are_changed(tmp_path: Path) -> None:
    namespace = RamNamespace(64, {STATE_BLOCK: b"\1" * BLOCK_BYTES})
    saved_at_write: list[bytes] = []

    async def look(kind: str, block: int, count: int) -> None:
        if kind == "write":
            saved_at_write.append((tmp_path / "undo").read_bytes())

    namespace.before = look
    with UndoFile.create(tmp_path / "undo", 64) as undo:
        device = Recorded(namespace.device(), undo)
        for value in (2, 3):
            await device.write(STATE_BLOCK, bytes([value]) * BLOCK_BYTES)
        await device.discard([(STATE_BLOCK, 1)])
        assert await device.read(STATE_BLOCK) == b"\3" * BLOCK_BYTES
    assert b"\1" * BLOCK_BYTES in saved_at_write[0]
    assert saved_at_write[1] == saved_at_write[0], "saved twice"
