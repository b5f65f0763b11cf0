"""How much memory fsck takes: a few numbers an inode, and not more where much is wrong."""

from __future__ import annotations

import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from mkfs.check.findings import KEPT_SHARES, SHOWN_PER_NAME, Findings
from mkfs.check.inventory import Inodes, Names
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import open_device
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE, STATE_BLOCK, State, Superblock

MIB = 1 << 20
FILES = 100_000
LIMIT_BYTES = 500 * MIB  # for a million files


def test_a_row_is_small() -> None:
    """A million inodes and names fit in 100 MiB."""
    for rows, most in ((Inodes(), 56), (Names(), 40)):
        columns = vars(rows).values()
        assert all(isinstance(column, array) for column in columns)
        assert sum(column.itemsize for column in columns) <= most


def test_findings_of_many_names_are_bounded() -> None:
    findings = Findings(1000)
    for name in range(20):
        for number in range(2000):
            findings.add(f"name-{name}", str(number))
    assert len(findings.kept) <= 1000 * KEPT_SHARES + 20 * SHOWN_PER_NAME
    assert findings.counts.total() == 40_000


async def fill(path: Path, files: int) -> None:
    """An image with so many files, in directories of a thousand, every other one with data."""
    size = 2048 * MIB
    with path.open("wb") as file:
        file.truncate(size)
    plan = calculate(size // BLOCK_BYTES, Wishes(), make_identity(None, None))
    async with open_device(str(path)) as device:
        await write_filesystem(device, plan, RootDirectory(), fresh=True, discard=False, note=print)
        filesystem = await Filesystem.open(device, Options(cache_mb=256))
        parent = await filesystem.getattr(ROOT_INODE)
        for number in range(files):
            if number % 1000 == 0:
                parent = await filesystem.create(ROOT_INODE, b"%d" % number, 0o40755, 0, 0)
            made = await filesystem.create(parent.number, b"file-%d" % number, 0o100644, 0, 0)
            if number % 2:
                await filesystem.write(made.number, 0, b"x" * (300 if number % 4 == 1 else 5000))
        await filesystem.close()


# Of the program alone: what wait4(2) tells includes the parent's memory at the fork.
MEASURED = """
import sys
from mkfs.fsck import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_bytes(*arguments: str) -> tuple[int, int]:
    """Run fsck in a process of its own: (exit code, most memory that it had)."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        stdout=subprocess.PIPE, text=True, check=False, timeout=600,
    )  # fmt: skip
    return done.returncode, int(done.stdout.split()[-2]) * 1024


def lose_root(path: Path) -> None:
    """Damage the root node of the tree."""
    with path.open("r+b") as file:
        file.seek((STATE_BLOCK - 1) * BLOCK_BYTES)
        superblock = Superblock.decode(file.read(BLOCK_BYTES), STATE_BLOCK - 1)
        root = State.decode(file.read(BLOCK_BYTES), superblock).roots[0]
        file.seek(root.block * BLOCK_BYTES + 100)
        file.write(b"lost")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_memory(tmp_path: Path) -> None:
    """Of a check, and of the repair that searches the whole device: in proportion for a million files."""
    await fill(tmp_path / "small.img", 10)
    await fill(tmp_path / "large.img", FILES)
    for arguments, code in ((["-n"], 0), (["-y"], 1)):
        peaks = []
        for name in ("small.img", "large.img"):
            if code:
                lose_root(tmp_path / name)
            found, peak = peak_bytes(*arguments, str(tmp_path / name))
            assert found == code
            peaks.append(peak)
        small, large = peaks
        million = small + (large - small) * 1_000_000 // FILES
        print(f"{arguments[0]}: {large / MIB:.0f} MiB, {million / MIB:.0f} MiB for a million files")
        assert million < LIMIT_BYTES
