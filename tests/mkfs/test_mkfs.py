"""mkfs.nvmefs: what it writes and in which order, what it refuses, what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from driver import crc32c
from mkfs import fsck as fsck_tool
from mkfs import mkfs as mkfs_tool
from mkfs import selftest
from mkfs.check.run import check
from mkfs.cli import ToolError
from mkfs.geometry import Plan, Wishes, calculate, make_identity
from mkfs.write import EAGER_GROUPS, RootDirectory, write_filesystem
from nvmefs.device import Device
from nvmefs.errors import DeviceFailed
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    JOURNAL_START,
    MIN_BLOCKS,
    SUPERBLOCK,
    Superblock,
    bitmap_block,
    superblock_places,
)
from tests.mkfs.ramdevice import RamDevice

MIB = 1 << 20
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mkfs(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run mkfs.nvmefs in this process: (exit code, standard output, standard error)."""

    def run(*args: object) -> tuple[int, str, str]:
        code = mkfs_tool.main([str(arg) for arg in args])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def fsck(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run fsck.nvmefs in this process: (exit code, standard output, standard error)."""

    def run(*args: object) -> tuple[int, str, str]:
        code = fsck_tool.main([str(arg) for arg in args])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def plan_of(blocks: int, seed: str = "test") -> Plan:
    return calculate(blocks, Wishes(), make_identity(None, seed))


async def make(
    device: RamDevice, *, seed: str = "test", fresh: bool = False, discard: bool = True
) -> list[str]:
    """Make a filesystem on `device`; the remarks."""
    notes: list[str] = []
    await write_filesystem(
        device, plan_of(device.block_count, seed), RootDirectory(), fresh=fresh, discard=discard,
        note=notes.append,
    )  # fmt: skip
    return notes


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocks",
    [
        MIN_BLOCKS,
        GROUP_BLOCKS - 1,
        GROUP_BLOCKS,
        GROUP_BLOCKS + 1,
        GROUP_BLOCKS + 64,
        2 * GROUP_BLOCKS + 63,
        (EAGER_GROUPS + 3) * GROUP_BLOCKS + 700,
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
async def test_fresh_filesystem_is_clean(blocks: int, fresh: bool) -> None:
    device = RamDevice(blocks)
    await make(device, fresh=fresh)
    report = await check(cast(Device, device))
    assert report.findings.lines() == []
    assert report.findings.remarks == []
    assert report.inodes == 1


async def test_superblock_comes_last_and_alone() -> None:
    device = RamDevice(3 * GROUP_BLOCKS)
    await make(device)
    assert device.log[-3:] == [("flush", 0, 0), ("write", SUPERBLOCK, 1), ("flush", 0, 0)]
    assert [entry for entry in device.log if entry[1] == SUPERBLOCK] == [("write", SUPERBLOCK, 1)]


async def test_interrupted_anywhere_leaves_nothing_or_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over an older filesystem, cut after each write: no superblock stands over half a filesystem."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    old = RamDevice(3 * GROUP_BLOCKS)
    await make(old, seed="old")
    new = plan_of(old.block_count, "new").superblock
    for writes in range(100):
        device = RamDevice(old.block_count)
        device.blocks = dict(old.blocks)
        device.fail_after = writes
        try:
            await make(device, seed="new")
        except DeviceFailed:
            pass
        else:
            break
        valid = [
            place
            for place in superblock_places(device.block_count)
            if device.get(place) == bytes(new.encode(place))
        ]
        if valid:
            report = await check(cast(Device, device))
            assert set(report.findings.counts) <= {"superblock-damaged"}
            assert report.source.superblock == new
        elif writes > 4:
            assert not any(device.get(place)[0] for place in superblock_places(device.block_count))
    assert writes > 8


async def test_stale_bitmaps_and_records_are_replaced() -> None:
    """Without discard, old bytes stand where groups not written at once keep their bitmaps."""
    device = RamDevice((EAGER_GROUPS + 4) * GROUP_BLOCKS)
    for group in range(1, EAGER_GROUPS + 4):
        device.put(bitmap_block(group), b"\xaa" * BLOCK_BYTES)
    device.put(JOURNAL_START, b"\xaa" * BLOCK_BYTES)
    await make(device, discard=False)
    assert not any(device.get(JOURNAL_START))
    assert (await check(cast(Device, device))).findings.clean


async def test_drive_without_discard() -> None:
    device = RamDevice(MIN_BLOCKS, discards=False)
    device.put(MIN_BLOCKS // 2, b"x" * BLOCK_BYTES)
    notes = await make(device)
    assert "does not discard" in notes[0]
    assert (await check(cast(Device, device))).findings.clean


async def test_same_seed_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    first, second, other = (RamDevice(MIN_BLOCKS) for _ in range(3))
    await make(first, seed="a")
    await make(second, seed="a")
    await make(other, seed="b")
    assert first.blocks == second.blocks != other.blocks


async def test_fresh_image_stays_sparse() -> None:
    device = RamDevice(1000 * GROUP_BLOCKS)
    await make(device, fresh=True)
    assert len(device.blocks) < EAGER_GROUPS + 16


async def test_protective_partition_table() -> None:
    device = RamDevice(MIN_BLOCKS)
    await make(device)
    block = device.get(0)
    assert block[510:512] == b"\x55\xaa"
    assert [block[446 + 16 * index + 4] for index in range(4)] == [0xDA, 0, 0, 0]
    assert int.from_bytes(block[454:458], "little") == 1
    assert int.from_bytes(block[458:462], "little") == MIN_BLOCKS * 8 - 1
    assert not any(block[512:])


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("lba", [512, 4096])
def test_make_and_check_an_image(tmp_path: Path, mkfs: Run, fsck: Run, lba: int) -> None:
    image = tmp_path / "disk.img"
    code, out, err = mkfs(image, "--size", "256M", "-L", "my disk", "--lba-size", lba)
    assert (code, err) == (0, "")
    assert "label        my disk" in out
    assert image.stat().st_size == 256 * MIB
    assert image.stat().st_blocks * 512 < MIB
    code, out, err = fsck("-n", image)
    assert (code, err) == (0, "")
    assert "clean, 1 inodes" in out
    code, _, err = mkfs(f"file:{image}")
    assert code == 1
    assert '"my disk"' in err


def test_dry_run_writes_nothing(tmp_path: Path, mkfs: Run) -> None:
    image = tmp_path / "disk.img"
    code, out, _ = mkfs(image, "--size", "1G", "-n")
    assert code == 0
    assert "nothing is written" in out
    assert not image.exists()
    assert mkfs(image, "--size", "64M", "-q")[0] == 0
    before = image.read_bytes()
    code, out, _ = mkfs(image, "-n", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["block_count"] == 16384
    assert shown["found"][0].startswith("nvmefs")
    assert mkfs(image, "-n", "--size", "128M", "--force")[0] == 0
    assert image.read_bytes() == before


def test_reproducible_image(tmp_path: Path, mkfs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    images = [tmp_path / name for name in ("a", "b", "c")]
    for image, seed in zip(images, ("1", "1", "2"), strict=True):
        assert mkfs(image, "--size", "32M", "--seed", seed, "-q")[0] == 0
    first, second, other = (image.read_bytes() for image in images)
    assert first == second != other


def test_extends_and_never_shrinks(tmp_path: Path, mkfs: Run, fsck: Run) -> None:
    image = tmp_path / "disk.img"
    assert mkfs(image, "--size", "32M", "-q")[0] == 0
    code, _, err = mkfs(image, "--size", "16M", "-f")
    assert code == 1
    assert "not shrunk" in err
    code, _, err = mkfs(image, "--size", "64M")
    assert code == 1
    assert image.stat().st_size == 32 * MIB
    assert mkfs(image, "--size", "64M", "-f", "-q") == (0, "", "")
    assert image.stat().st_size == 64 * MIB
    assert fsck("-n", image)[0] == 0


def test_uuid_owner_mode(tmp_path: Path, mkfs: Run) -> None:
    image = tmp_path / "disk.img"
    uuid = "12345678-1234-5678-1234-567812345678"
    code, out, _ = mkfs(
        image, "--size", "32M", "-U", uuid, "--root-owner", "12:34", "--root-mode", "1777"
    )
    assert code == 0
    assert uuid in out


def test_image_in_use_is_refused(tmp_path: Path, mkfs: Run, fsck: Run) -> None:
    image = tmp_path / "disk.img"
    assert mkfs(image, "--size", "32M", "-q")[0] == 0
    before = image.read_bytes()
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, image],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        for tool, args, expected in ((mkfs, ("-f",), 1), (fsck, ("-n",), 8)):
            code, _, err = tool(image, *args)
            assert code == expected
            assert err.count("\n") == 1
            assert str(holder.pid) in err
        holder.stdin.close()
        assert holder.wait(timeout=10) == 0
    assert image.read_bytes() == before


def test_failed_new_image_is_removed(tmp_path: Path, mkfs: Run) -> None:
    image = tmp_path / "disk.img"
    for size in ("1M", "15M", "20000P"):
        code, _, err = mkfs(image, "--size", size)
        assert code == 1
        assert err.count("\n") == 1
        assert not image.exists()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "IMAGE_OR_ADDRESS"),
        (("x", "y"), 2, "unrecognized"),
        (("x", "--size", "lots"), 2, "is not a size"),
        (("x", "-L", "l" * 65), 2, "at most 64"),
        (("x", "-U", "1234"), 2, "is not a UUID"),
        (("x", "--lba-size", "520"), 2, "invalid choice"),
        *((("x", "--alignment", size), 2, "no power of two") for size in ("2K", "12K", "4M", "0")),
        (("x", "--root-owner", "me"), 2, "UID:GID"),
        (("x", "--root-mode", "999"), 2, "octal"),
        (("x", "--root-mode", "17777"), 2, "octal"),
        (("/nonexistent/x",), 1, "give --size"),
        (("/nonexistent/x", "--size", "1G"), 1, "No such file"),
        (("/dev",), 1, "a directory"),
        (("/dev/null",), 1, "not an image file"),
        (("nvme0:",), 1, "unknown kind of address"),
        (("0000:01:00.0", "--size", "1G"), 2, "--size is for image files"),
    ],
)
def test_bad_arguments(mkfs: Run, args: tuple[str, ...], code: int, says: str) -> None:
    got, out, err = mkfs(*args)
    assert got == code
    assert out == ""
    assert says in err
    assert err.startswith("mkfs.nvmefs: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("options", "blocks"), [((), 1), (("--alignment", "64K"), 16)])
def test_alignment(tmp_path: Path, mkfs: Run, options: tuple[str, ...], blocks: int) -> None:
    image = tmp_path / "disk.img"
    assert mkfs(image, "--size", "32M", "-q", *options) == (0, "", "")
    block = image.read_bytes()[SUPERBLOCK * BLOCK_BYTES : (SUPERBLOCK + 1) * BLOCK_BYTES]
    assert Superblock.decode(block, SUPERBLOCK).alignment_blocks == blocks


def test_version(mkfs: Run) -> None:
    with pytest.raises(SystemExit, match="0"):
        mkfs("--version")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("x",), "no terminal to ask on: say -n, -p or -y"),
        (("-y", "-n", "x"), "only one of"),
        (("-p", "--undo", "x"), "only one of"),
        (("--undo", "x"), "--undo needs the file"),
        (("-n", "--undo-file", "u", "x"), "-n changes nothing"),
        (("-n", "-b", "x", "x"), "not a number"),
        (("-n", "-C", "-1", "x"), "-C"),
    ],
)
def test_fsck_usage(fsck: Run, args: tuple[str, ...], says: str) -> None:
    code, out, err = fsck(*args)
    assert (code, out) == (16, "")
    assert says in err


def test_fsck_on_what_is_no_filesystem(tmp_path: Path, fsck: Run) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(20 * MIB))
    text = tmp_path / "text"
    text.write_text("hello")
    for spec in (empty, text, tmp_path, tmp_path / "missing"):
        code, out, err = fsck("-n", spec)
        assert (code, out) == (8, "")
        assert err.startswith("fsck.nvmefs: ")
        assert err.count("\n") == 1


def test_fsck_reports_errors_and_json(tmp_path: Path, mkfs: Run, fsck: Run) -> None:
    image = tmp_path / "disk.img"
    assert mkfs(image, "--size", "32M", "-q")[0] == 0
    with image.open("r+b") as file:
        file.seek(SUPERBLOCK * BLOCK_BYTES + 100)
        file.write(b"\xff")
    code, out, _ = fsck("-n", image)
    assert code == 4
    assert "superblock-damaged: the superblock in block 16" in out
    code, out, _ = fsck("-n", "--json", image)
    assert code == 4
    assert json.loads(out)["counts"] == {"superblock-damaged": 1}
    os.truncate(image, 31 * MIB)
    assert fsck("-n", image)[0] == 8


# --- self-test -----------------------------------------------------------------------------------


def test_self_test_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.self_test()
    monkeypatch.setattr(selftest, "crc32c", lambda data, seed=0: crc32c(data, seed) ^ 1)
    with pytest.raises(ToolError, match="the build is broken"):
        selftest.self_test()
