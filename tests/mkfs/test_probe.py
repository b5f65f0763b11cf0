"""mkfs.probe: what is in the way is named with its place; when mkfs is done nobody finds it any more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from driver.pci.kernel import program
from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.probe import known_magics, signatures
from mkfs.signatures import FAR_MAGICS, HEAD_BLOCKS, MAGICS, TAIL_BLOCKS
from mkfs.write import RootDirectory, wipe_signatures, write_filesystem
from nvmefs.layout import BLOCK_BYTES, GROUP_BLOCKS, MIN_BLOCKS, SUPERBLOCK
from tests.mkfs.ramdevice import RamDevice
from tests.mkfs.test_mkfs import MIB, Run, make, mkfs

__all__ = ["mkfs"]


@pytest.mark.parametrize(
    ("name", "place", "magic"),
    [(name, max(places), magic) for name, places, magic in MAGICS],
    ids=[f"{name}-{index}" for index, (name, _, _) in enumerate(MAGICS)],
)
async def test_each_magic_is_recognised(name: str, place: int, magic: bytes) -> None:
    device = RamDevice(MIN_BLOCKS)
    device.put_bytes(place, magic)
    head = await device.read(0, HEAD_BLOCKS)
    size_bytes = device.block_count * BLOCK_BYTES
    wanted = f"{name} at byte {place:#x}"
    assert wanted in known_magics(head, bytes(TAIL_BLOCKS * BLOCK_BYTES), size_bytes)
    assert wanted in await signatures(device)


async def test_magics_at_the_end() -> None:
    device = RamDevice(MIN_BLOCKS)
    assert await signatures(device) == []
    device.put_bytes(-512, b"EFI PART")
    place = device.block_count * BLOCK_BYTES - 512
    assert f"GPT partition table (backup) at byte {place:#x}" in await signatures(device)


@pytest.mark.parametrize(("name", "place", "magic"), FAR_MAGICS)
async def test_copies_between_the_ends(name: str, place: int, magic: bytes) -> None:
    device = RamDevice(place // BLOCK_BYTES + MIN_BLOCKS, discards=False)
    device.put_bytes(place, magic)
    assert await signatures(device) == [f"{name} at byte {place:#x}"]
    await wipe_signatures(device)
    assert await signatures(device) == []
    assert not any(device.get(place // BLOCK_BYTES))


async def test_device_that_ends_before_a_copy() -> None:
    device = RamDevice((64 << 20) // BLOCK_BYTES)
    await wipe_signatures(device)
    assert await signatures(device) == []


async def test_partition_table() -> None:
    device = RamDevice(MIN_BLOCKS)
    device.put_bytes(446 + 4, b"\x83")
    device.put_bytes(510, b"\x55\xaa")
    assert any("partition table" in each for each in await signatures(device))


async def test_own_filesystem_is_named_even_by_a_copy() -> None:
    device = RamDevice(2 * GROUP_BLOCKS)
    plan = calculate(device.block_count, Wishes(b"precious"), make_identity(None, "x"))
    await write_filesystem(
        device, plan, RootDirectory(), fresh=True, discard=False, note=lambda text: None
    )
    (found,) = await signatures(device)
    assert found.startswith('nvmefs "precious", uuid ')
    device.put(SUPERBLOCK, bytes(BLOCK_BYTES))
    assert (await signatures(device))[0] == found
    device.put(SUPERBLOCK, bytes(plan.superblock.encode(SUPERBLOCK)))
    device.put_bytes(SUPERBLOCK * BLOCK_BYTES + 900, b"\xff")
    assert "damaged or newer nvmefs" in (await signatures(device))[0]


async def test_forced_over_another_leaves_no_trace() -> None:
    device = RamDevice(MIN_BLOCKS, discards=False)
    for _, places, magic in MAGICS:
        device.put_bytes(max(places), magic)
    device.put_bytes(-512, b"EFI PART")
    await make(device)
    (found,) = await signatures(device)
    assert found.startswith("nvmefs")


@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
def test_real_ext4_is_refused(tmp_path: Path, mkfs: Run) -> None:
    image = tmp_path / "ext4.img"
    image.write_bytes(b"")
    os.truncate(image, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-L", "mine", image], check=True, timeout=30)
    before = image.read_bytes()
    for args in ((image,), (image, "--size", "128M")):
        code, _, err = mkfs(*args)
        assert code == 1
        assert "holds ext2/ext3/ext4 at byte 0x438" in err
        assert "--force" in err
    assert image.read_bytes() == before
    assert mkfs(image, "-f", "-q") == (0, "", "")


MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "IMAGE"],
    "xfs": ["mkfs.xfs", "-q", "IMAGE"],
    "btrfs": ["mkfs.btrfs", "-q", "IMAGE"],
    "vfat": ["mkfs.vfat", "IMAGE"],
    "swap": ["mkswap", "-q", "IMAGE"],
    "luks2": ["cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2",
              "--pbkdf-force-iterations", "1000", "IMAGE", "/etc/hostname"],
    "gpt": ["sfdisk", "-q", "IMAGE"],
}  # fmt: skip


@pytest.mark.parametrize("made_by", MAKERS)
def test_no_tool_finds_what_others_made(made_by: str, tmp_path: Path, mkfs: Run) -> None:
    maker, wipefs, blkid = program(MAKERS[made_by][0]), program("wipefs"), program("blkid")
    if maker is None or wipefs is None or blkid is None:
        pytest.skip(f"needs {MAKERS[made_by][0]}, wipefs and blkid")
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 400 * MIB)
    arguments = [str(image) if each == "IMAGE" else each for each in MAKERS[made_by][1:]]
    script = "label: gpt\n,,L\n" if made_by == "gpt" else ""
    subprocess.run(
        [maker, *arguments], input=script, text=True, check=True, capture_output=True, timeout=60
    )
    code, _, err = mkfs(image)
    assert code == 1
    assert " at byte 0x" in err
    assert err.count("\n") == 1
    assert mkfs(image, "-f", "-q", "--no-discard") == (0, "", "")
    left = subprocess.run(
        [wipefs, "-n", "--json", image], check=True, capture_output=True, timeout=30
    )
    assert [each["type"] for each in json.loads(left.stdout)["signatures"]] == ["dos"]
    answer = subprocess.run(
        [blkid, "-p", "-o", "export", image], check=True, capture_output=True, timeout=30
    )
    assert b"\nTYPE=" not in answer.stdout
    assert b"PTTYPE=dos" in answer.stdout
