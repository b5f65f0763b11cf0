"""Damaged filesystems under a real mount: programs walk and write in them, and come back in time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nvmefs.layout import BLOCK_BYTES
from tests.hostile.campaign import image_of
from tests.mount.conftest import Mount, run
from tests.support.ram import RamNamespace

PROGRAMS = (
    ["find", ".", "-ls"],
    ["getfattr", "-R", "-d", "-m", "-", "."],
    ["cp", "-a", ".", "{copy}"],
    ["sh", "-c", "for f in *; do echo more >> $f; mv $f new-$f; done; mkdir made; ln -s x made/y"],
    ["sh", "-c", "rm -rf *"],
)  # fmt: skip

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]


def write(path: Path, image: RamNamespace) -> None:
    """The image as a file, sparse."""
    with path.open("wb") as file:
        file.truncate(image.block_count * BLOCK_BYTES)
        for number, data in image.blocks.items():
            file.seek(number * BLOCK_BYTES)
            file.write(data)


async def try_mounted(identity: str, tmp_path: Path) -> bool:
    """Whether the image could be mounted. What the programs say is right if they end in time (run)."""
    place = tmp_path / identity.replace(":", "-")
    place.mkdir()
    mount = Mount(place / "disk.img", place / "mnt", place / "log", checked=False)
    mount.path.mkdir()
    write(mount.image, await image_of(identity))
    try:
        mount.mount()
    except subprocess.CalledProcessError as error:
        said = str(error.stderr).strip()
        assert said, identity
        assert "Traceback" not in said, f"{identity}: {said}"
        return False
    try:
        for program in PROGRAMS:
            words = [word.format(copy=place / "copy") for word in program]
            run(*words, check=False, cwd=mount.path)
        mount.unmount()
    finally:
        mount.tidy()  # which looks for tracebacks in the daemon's log
    return True


async def test_some(tmp_path: Path) -> None:
    mounted = [await try_mounted(f"built:{number}", tmp_path) for number in range(3)]
    assert any(mounted)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 200, 20))
async def test_many(tmp_path: Path, first: int) -> None:
    mounted = [
        await try_mounted(f"built:{number}", tmp_path) for number in range(first, first + 20)
    ]
    assert sum(mounted) > 10
