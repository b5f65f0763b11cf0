"""Every golden image is read by both readers, checked by fsck, and goes on living.

The oracle for tests/reader.py itself is at the end: what it must find wrong, it finds.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from mkfs.fsck import main as fsck
from nvmefs.filesystem import Filesystem, Options
from tests.golden.contents import CONTENTS, GROWN_BLOCKS, text
from tests.golden.make import HERE, Image, load, told
from tests.reader import Corrupt, Reader, crc32c, siphash
from tests.support.images import fresh, mounted

FLAG_CLEAN = 1
GROUP_BLOCKS = 32256
MAGIC = b"SFvn"


def tree_of(name: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(lzma.decompress((HERE / f"{name}.json.xz").read_bytes()))
    return known


def test_every_content_has_its_image() -> None:
    assert {path.name.split(".")[0] for path in HERE.glob("*.img.xz")} == set(CONTENTS)


@pytest.mark.parametrize("name", CONTENTS)
def test_read_by_the_document_alone(name: str) -> None:
    assert Reader(Image(load(name))).tree() == tree_of(name)


@pytest.mark.parametrize("name", CONTENTS)
async def test_read_by_the_filesystem(name: str) -> None:
    assert await told(load(name)) == tree_of(name)


@pytest.mark.parametrize("name", CONTENTS)
async def test_mounted_changed_and_read_again(name: str) -> None:
    """What is not touched stays, byte for byte, and the second reader sees what is new."""
    namespace = load(name)
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(1, b"new", 0o100644, 0, 0)
        await filesystem.write(inode.number, 0, text("new", 70_000))
    reader = Reader(Image(namespace))
    found, expected = reader.tree(), tree_of(name)
    assert reader.flags & FLAG_CLEAN
    assert found.pop("/new")["size"] == 70_000
    for root in (found["/"], expected["/"]):
        del root["mtime"]
    assert found == expected


@pytest.mark.parametrize("name", CONTENTS)
def test_checked(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "golden.img"
    image.write_bytes(lzma.decompress((HERE / f"{name}.img.xz").read_bytes()))
    assert fsck(["-n", "-f", str(image)]) == 0, capsys.readouterr().out


def test_the_long_journal_goes_on_in_the_second_group() -> None:
    """Its records lie around the bitmap and the superblock's copy, and around the ring's end."""
    namespace = load("long-journal")
    record = (4).to_bytes(2, "little")
    headers = [block for block, data in namespace.blocks.items() if data[4:10] == MAGIC + record]
    assert any(block < GROUP_BLOCKS for block in headers if block > GROUP_BLOCKS - 20)
    assert any(block > GROUP_BLOCKS + 1 for block in headers)
    assert any(block < 100 for block in headers)
    assert {data[4:10] for data in map(namespace.blocks.__getitem__, (32256, 32257))} == {
        MAGIC + (5).to_bytes(2, "little"), MAGIC + (1).to_bytes(2, "little")
    }  # fmt: skip


def test_the_crashed_one_was_not_clean() -> None:
    reader = Reader(Image(load("crashed")))
    assert not reader.flags & FLAG_CLEAN
    nameless = [inode for inode in reader.inodes.values() if not inode.links]
    assert len(nameless) == 3, "two that lost their names, one that never had one"


def test_the_grown_one_has_its_size_in_the_journal() -> None:
    namespace = load("grown")
    assert int.from_bytes(namespace.blocks[16][104:112], "little") < GROWN_BLOCKS
    assert Reader(Image(namespace)).blocks == GROWN_BLOCKS


async def test_an_empty_filesystem() -> None:
    namespace = await fresh()
    reader = Reader(Image(namespace))
    assert list(reader.tree()) == ["/"]
    assert (
        reader.free_blocks
        == (await Filesystem.open(namespace.device(), Options())).statfs().free_blocks
    )


# ---- the second reader itself -------------------------------------------------------------------------


def test_the_documents_examples() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert siphash(bytes(range(16)), bytes(range(15))) >> 8 == 0xA129CA6149BE45


@pytest.mark.parametrize(
    ("place", "offset", "what"),
    [
        pytest.param("state", 80, "free blocks", id="free blocks"),
        pytest.param("state", 88, "number of inodes", id="inodes"),
        pytest.param("root", 40, "tree or level", id="owner of a node"),
        pytest.param("root", 64, "does not begin at its bound", id="first key"),
        pytest.param("bitmap", 4000, "bits are wrong", id="a bit"),
        pytest.param("bitmap", 56, "free blocks", id="count of a bitmap"),
    ],
)
def test_it_finds_what_breaks_a_rule(place: str, offset: int, what: str) -> None:
    namespace = load("kinds")
    reader = Reader(Image(namespace))
    number = {"state": 17, "root": reader.root[0], "bitmap": 20}[place]
    block = bytearray(namespace.blocks[number])
    block[offset] ^= 1
    namespace.blocks[number] = bytes(block)
    with pytest.raises(Corrupt, match="checksum"):
        Reader(Image(namespace))
    block[:4] = crc32c(bytes(block[4:]), reader.checksum_seed).to_bytes(4, "little")
    namespace.blocks[number] = bytes(block)
    with pytest.raises(Corrupt, match=what):
        Reader(Image(namespace))


def test_two_of_three_superblocks_are_enough() -> None:
    namespace = load("kinds")
    del namespace.blocks[16]
    assert Reader(Image(namespace)).tree() == tree_of("kinds")
