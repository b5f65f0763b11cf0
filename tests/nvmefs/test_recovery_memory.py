"""A journal full of images does not come into memory: neither at mount nor in fsck, whoever has written it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver import crc32c
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import open_device
from nvmefs.layout import BLOCK_BYTES, MAX_JOURNAL_BLOCKS, TAGS_PER_HEADER, RecordHeader, Superblock
from nvmefs.recovery import newest_journal_super
from nvmefs.superblock import read

FILESYSTEM_BLOCKS = 1 << 20  # 4 GiB, hardly any of it written
ZEROES = bytes(BLOCK_BYTES)

OPEN = """
import sys, trio
from nvmefs.device import open_device
from nvmefs.filesystem import Filesystem, Options

async def main():
    async with open_device(f"file:{sys.argv[1]}") as device:
        filesystem = await Filesystem.open(device, Options(read_only=sys.argv[2] == "ro"))
        assert filesystem.journal.open.seq == int(sys.argv[3]), filesystem.journal.open.seq
        await filesystem.close()

trio.run(main)
"""
CHECK = """
import sys
from mkfs.fsck import main

assert main(["-n", sys.argv[1]]) in (0, 4)
"""
PEAK = """
import re
from pathlib import Path

print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def free_blocks(superblock: Superblock) -> Iterator[int]:
    """Where no node of a new filesystem is."""
    first = superblock.journal_end + 1000
    return (block for block in itertools.count(first) if superblock.is_allocatable(block, 1))


async def make(path: Path, journal_blocks: int) -> int:
    """A filesystem whose journal is full of one record, of zeroes for free blocks: hardly a byte on the disk.

    The sequence of the next record.
    """
    with path.open("wb") as file:
        file.truncate(FILESYSTEM_BLOCKS * BLOCK_BYTES)
    async with open_device(f"file:{path}") as device:
        wishes = Wishes(journal_bytes=journal_blocks * BLOCK_BYTES, lba_bytes=512)
        plan = calculate(FILESYSTEM_BLOCKS, wishes, make_identity(None, "tests"))
        await write_filesystem(
            device, plan, RootDirectory(), fresh=True, discard=False, note=lambda _: None
        )
        superblock = await read(device)
        journal = await newest_journal_super(device, superblock)
        assert superblock.journal_blocks == journal_blocks
        headers = (journal_blocks - 1) // (TAGS_PER_HEADER + 1)
        images = headers * TAGS_PER_HEADER
        homes, checksum = free_blocks(superblock), crc32c(ZEROES)
        for index in range(headers):
            tags = [(home, checksum) for home in itertools.islice(homes, TAGS_PER_HEADER)]
            position = journal.tail_block + index * (TAGS_PER_HEADER + 1)
            place = superblock.journal_place(position)
            block = bytearray(BLOCK_BYTES)
            record = RecordHeader(journal.epoch, journal.tail_seq, index, headers, images, tags)
            record.encode_into(block, place, superblock)
            await device.write(place, block)
        return journal.tail_seq + 1


def peak_mib(program: str, *arguments: object) -> float:
    """The most that a Python which runs this had resident."""
    command = [sys.executable, "-c", program + PEAK, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak ")[2]) / 1024


async def require_little(tmp_path: Path, journal_blocks: int, bound_mib: int) -> None:
    """More than the same takes with a journal that is empty."""
    small, large = tmp_path / "small", tmp_path / "large"
    await make(small, 1024)
    next_seq = await make(large, journal_blocks)
    assert peak_mib(CHECK, large) - peak_mib(CHECK, small) < bound_mib
    usual = peak_mib(OPEN, small, "ro", next_seq)
    assert peak_mib(OPEN, large, "ro", next_seq) - usual < bound_mib
    assert peak_mib(OPEN, large, "rw", next_seq + 1) - usual < bound_mib  # it says so on the disk
    assert (
        peak_mib(OPEN, large, "ro", next_seq + 2) - usual < bound_mib
    )  # and that it is clean again


@pytest.mark.timeout(120)
async def test_a_full_journal(tmp_path: Path) -> None:
    await require_little(tmp_path, 24000, bound_mib=40)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_longest_journal(tmp_path: Path) -> None:
    await require_little(tmp_path, MAX_JOURNAL_BLOCKS, bound_mib=120)
