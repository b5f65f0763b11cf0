"""What stands on a device already: refuse before overwriting somebody's data.

Below: the device; signatures (the table); blkid(8) where it is installed.  Above: mkfs.py.

    found = await signatures(device, image_path)        [] when nothing is recognised

Three sources, each of which suffices: our own superblock, a table of common magics (always), and
`blkid -p`. A namespace without a /dev node is shown to it as a sparse file that holds its ends.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid as uuids
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import trio

from driver.pci.signatures import describe, parse
from mkfs.signatures import (
    END_MAGICS,
    FAR_MAGICS,
    HEAD_BLOCKS,
    MAGICS,
    MBR_MAGIC,
    TAIL_BLOCKS,
)
from nvmefs.errors import Corrupted
from nvmefs.layout import (
    BLOCK_BYTES,
    MAGIC,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    BlockType,
    Superblock,
    usable_blocks,
)

CHUNK_BLOCKS = 256
BLKID_BOUND_S = 30


class ReadableDevice(Protocol):
    """What probing needs of a device."""

    @property
    def block_count(self) -> int: ...

    async def read(self, block: int, count: int = 1) -> bytes: ...


async def signatures(device: ReadableDevice, image_path: str | None = None) -> list[str]:
    """What is recognised on the device, in words, without repetition; [] if nothing is.

    Raises DeviceFailed.
    """
    head = await read_blocks(device, 0, min(HEAD_BLOCKS, device.block_count))
    tail_blocks = min(TAIL_BLOCKS, device.block_count)
    tail = await read_blocks(device, device.block_count - tail_blocks, tail_blocks)
    own = await own_filesystem(device, head)
    found = [own] if own else []
    shadow_bytes = device.block_count * BLOCK_BYTES
    found += known_magics(head, tail, shadow_bytes)
    found += await far_magics(device)
    by_blkid = await ask_blkid(image_path, head, tail, shadow_bytes)
    if own:
        # The protective partition table is part of ours.
        by_blkid = [each for each in by_blkid if each != "dos partition table"]
    words = " ".join(found).lower()
    found += [each for each in by_blkid if re.split("[ ,]", each)[0].lower() not in words]
    return list(dict.fromkeys(found))


async def read_blocks(device: ReadableDevice, block: int, count: int) -> bytes:
    """`count` blocks, a megabyte at a time."""
    end = block + count
    return b"".join(
        [
            await device.read(first, min(CHUNK_BLOCKS, end - first))
            for first in range(block, end, CHUNK_BLOCKS)
        ]
    )


# --- our own ----------------------------------------------------------------------------------


async def own_filesystem(device: ReadableDevice, head: bytes) -> str | None:
    """The nvmefs on the device in words: by its superblock, or by a copy of it."""
    places = [SUPERBLOCK, SUPERBLOCK_COPY, usable_blocks(device.block_count) - 1]
    for place in places:
        if not 0 < place < device.block_count:
            continue
        at = place * BLOCK_BYTES
        inside = at + BLOCK_BYTES <= len(head)
        block = head[at : at + BLOCK_BYTES] if inside else await device.read(place)
        if int.from_bytes(block[4:8], "little") != MAGIC:
            continue
        if int.from_bytes(block[8:10], "little") != BlockType.SUPERBLOCK:
            continue
        try:
            return describe_own(Superblock.decode(block, place))
        except Corrupted as error:
            return f"a damaged or newer nvmefs ({error})"
    return None


def describe_own(superblock: Superblock) -> str:
    """'nvmefs "data", uuid ..., made 2026-01-31 10:00 UTC'."""
    label = superblock.label.decode(errors="backslashreplace")
    named = f' "{label}"' if label else ""
    try:
        made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(superblock.created_s))
    except (OverflowError, OSError, ValueError):
        made = f"at {superblock.created_s} s"
    return f"nvmefs{named}, uuid {uuids.UUID(bytes=superblock.uuid)}, made {made}"


# --- others', by table ------------------------------------------------------------------------


def known_magics(head: bytes, tail: bytes, size_bytes: int) -> list[str]:
    """The magics found in the first and last blocks of a device of that size, each with its first place."""
    found = [
        describe_magic(name, place)
        for name, places, magic in MAGICS
        for place in first_place(places, magic, head, 0)
    ]
    tail_start = size_bytes - len(tail)
    found += [
        describe_magic(name, place)
        for name, distances, magic in END_MAGICS
        for place in first_place([size_bytes - each for each in distances], magic, tail, tail_start)
    ]
    if not found and has_partition_table(head):
        found.append(describe_magic("MBR partition table", MBR_MAGIC))
    return found


def first_place(places: Sequence[int], magic: bytes, data: bytes, start: int) -> list[int]:
    """The first of `places` where `magic` stands, or none; `data` was read at `start`."""
    there = (place for place in places if place >= start and data.startswith(magic, place - start))
    return list(islice(there, 1))


async def far_magics(device: ReadableDevice) -> list[str]:
    """The magics that stand between the ends."""
    found = []
    for name, place, magic in FAR_MAGICS:
        block, offset = divmod(place, BLOCK_BYTES)
        if block < device.block_count and (await device.read(block)).startswith(magic, offset):
            found.append(describe_magic(name, place))
    return found


def describe_magic(name: str, place: int) -> str:
    """'btrfs at byte 0x10040'."""
    return f"{name} at byte {place:#x}"


def has_partition_table(head: bytes) -> bool:
    """Whether the first sector is a master boot record, and not our protective one."""
    if head[MBR_MAGIC : MBR_MAGIC + 2] != b"\x55\xaa":
        return False
    types = [head[446 + 16 * index + 4] for index in range(4)]
    return any(types) and types != [0xDA, 0, 0, 0]


# --- others', by libblkid ---------------------------------------------------------------------


async def ask_blkid(image_path: str | None, head: bytes, tail: bytes, size_bytes: int) -> list[str]:
    """What `blkid -p` recognises; [] where it is not installed or knows nothing."""
    program = shutil.which("blkid", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return []
    if image_path is not None:
        return await run_blkid(program, image_path)
    with tempfile.TemporaryDirectory(prefix="nvmefs-probe-") as directory:
        shadow = Path(directory) / "shadow"
        with shadow.open("wb") as file:
            file.write(head)
            file.truncate(size_bytes)
            file.seek(size_bytes - len(tail))
            file.write(tail)
        return await run_blkid(program, str(shadow))


async def run_blkid(program: str, path: str) -> list[str]:
    """The answer of `blkid -p` about a file, in words."""
    with trio.move_on_after(BLKID_BOUND_S) as bound:
        result = await trio.run_process(
            [program, "-p", "-o", "export", path],
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    if bound.cancelled_caught:
        return ["something on which blkid hangs"]
    if result.returncode == 8:
        return ["several signatures at once (blkid calls them ambivalent)"]
    if result.returncode != 0:
        return []
    return describe(parse(result.stdout.decode(errors="replace")))
