"""What stands on a device already: refuse before overwriting somebody's data.

Below: the device; blkid(8) where it is installed.  Above: mkfs.py.

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
from pathlib import Path
from typing import Protocol

import trio

from driver.pci.signatures import describe, parse
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

HEAD_BLOCKS = 1024  # 4 MiB
TAIL_BLOCKS = 512  # 2 MiB
CHUNK_BLOCKS = 256
BLKID_BOUND_S = 30

# name, places from the start, bytes there
MAGICS: Sequence[tuple[str, Sequence[int], bytes]] = [
    ("ext2/ext3/ext4", (0x438,), b"\x53\xef"),
    ("XFS", (0,), b"XFSB"),
    ("btrfs", (0x10040,), b"_BHRfS_M"),
    ("F2FS", (0x400,), b"\x10\x20\xf5\xf2"),
    ("bcachefs or bcache", (0x1018,), b"\xc6\x85\x73\xf6"),
    ("ZFS", range(0x20000, 0x40000, 0x400), b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("ZFS", range(0x20000, 0x40000, 0x400), b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    ("swap", (4086, 8182, 16374, 65526), b"SWAPSPACE2"),
    ("swap", (4086, 8182, 16374, 65526), b"SWAP-SPACE"),
    ("LUKS", (0, 0x4000), b"LUKS\xba\xbe"),
    ("LUKS", (0x4000,), b"SKUL\xba\xbe"),
    ("LVM physical volume", (0x18, 0x218, 0x418, 0x618), b"LVM2 001"),
    ("md RAID member", (0, 0x1000), b"\xfc\x4e\x2b\xa9"),
    ("NTFS", (3,), b"NTFS    "),
    ("exFAT", (3,), b"EXFAT   "),
    ("BitLocker", (3,), b"-FVE-FS-"),
    ("FAT", (0x36,), b"FAT12   "),
    ("FAT", (0x36,), b"FAT16   "),
    ("FAT", (0x52,), b"FAT32   "),
    ("JFS", (0x8000,), b"JFS1"),
    ("ReiserFS", (0x2034, 0x10034), b"ReIsEr"),
    ("NILFS2", (0x406,), b"\x34\x34"),
    ("EROFS", (0x400,), b"\xe2\xe1\xf5\xe0"),
    ("SquashFS", (0,), b"hsqs"),
    ("ISO 9660", (0x8001,), b"CD001"),
    ("HFS+", (0x400,), b"H+"),
    ("HFS+", (0x400,), b"HX"),
    ("APFS", (0x20,), b"NXSB"),
    ("Ceph BlueStore", (0,), b"bluestore block device\n"),
    ("VDO", (0,), b"dmvdo001"),
    ("Stratis", (0x204, 0x1204), b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("GPT partition table", (0x200, 0x1000), b"EFI PART"),
    ("gzip archive", (0,), b"\x1f\x8b\x08"),
    ("tar archive", (0x101,), b"ustar"),
    ("qcow2 image", (0,), b"QFI\xfb"),
    ("VMDK image", (0,), b"KDMV"),
    ("SQLite database", (0,), b"SQLite format 3\0"),
]
# name, places from the end, bytes there
END_MAGICS: Sequence[tuple[str, Sequence[int], bytes]] = [
    ("GPT partition table (backup)", (512, 4096), b"EFI PART"),
    ("md RAID member", range(0x2000, 0x21000, 0x1000), b"\xfc\x4e\x2b\xa9"),
    ("DRBD", (0xFC4,), b"\x83\x74\x02\x67"),
]


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
    found += known_magics(head, tail)
    shadow_bytes = device.block_count * BLOCK_BYTES
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


def known_magics(head: bytes, tail: bytes) -> list[str]:
    """The names of the magics found in the first and last blocks of a device."""
    found = [
        name
        for name, places, magic in MAGICS
        if any(head[place : place + len(magic)] == magic for place in places)
    ]
    found += [
        name
        for name, places, magic in END_MAGICS
        if any(tail[(at := len(tail) - place) : at + len(magic)] == magic for place in places)
    ]
    if not found and has_partition_table(head):
        found.append("MBR partition table")
    return found


def has_partition_table(head: bytes) -> bool:
    """Whether the first sector is a master boot record, and not our protective one."""
    if head[510:512] != b"\x55\xaa":
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
