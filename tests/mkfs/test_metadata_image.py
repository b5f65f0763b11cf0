"""nvmefs image: a check finds in the copy what it finds in the original; no data of long files is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mkfs.check.run import check
from mkfs.metadata_image import copy
from mkfs.metadata_image import main as image
from mkfs.mkfs import main as mkfs
from nvmefs.layout import BLOCK_BYTES
from tests.golden.contents import CONTENTS, text
from tests.golden.make import load as golden
from tests.mkfs.builder import small_tree
from tests.mkfs.test_fsck import IN_ITEMS, Break
from tests.support.ram import RamNamespace


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def copy_of(namespace: RamNamespace, path: Path) -> RamNamespace:
    """The copy, read back."""
    with new_file(path) as descriptor:
        await copy(namespace.device(), descriptor)
    assert path.stat().st_size == namespace.block_count * BLOCK_BYTES
    blocks = {}
    with path.open("rb") as file:
        for number in range(namespace.block_count):
            data = file.read(BLOCK_BYTES)
            if any(data):
                blocks[number] = data
    return RamNamespace(namespace.block_count, blocks)


async def told(namespace: RamNamespace) -> tuple[list[str], list[str]]:
    report = await check(namespace.device())
    return report.findings.lines(), report.findings.remarks


@pytest.mark.parametrize("name", CONTENTS)
async def test_a_sound_one(name: str, tmp_path: Path) -> None:
    namespace = golden(name)
    made = await copy_of(namespace, tmp_path / "out")
    assert await told(made) == await told(namespace)
    assert len(made.blocks) < len(namespace.blocks)
    long = text("size", 2_000_000)[1_000_000:1_000_100]
    assert long not in (tmp_path / "out").read_bytes()
    assert name != "kinds" or any(long in data for data in namespace.blocks.values())


@pytest.mark.parametrize(("name", "break_it"), IN_ITEMS)
async def test_a_broken_one(name: str, break_it: Break, tmp_path: Path) -> None:
    builder = small_tree()
    break_it(builder)
    namespace = RamNamespace(builder.superblock.block_count, dict(builder.build().blocks))
    expected = await told(namespace)
    assert expected[0]
    with new_file(tmp_path / "out") as descriptor:
        await copy(namespace.device(), descriptor)
        blocks = {}
        for number in namespace.blocks:
            blocks[number] = os.pread(descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
    assert await told(RamNamespace(namespace.block_count, blocks)) == expected


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "disk.img", tmp_path / "out"
    assert mkfs(["-q", "--size", "16M", str(source)]) == 0
    assert image([str(source), str(out)]) == 0
    assert "of metadata" in capsys.readouterr().out
    assert out.stat().st_size == 16 << 20
    assert out.stat().st_mode & 0o777 == 0o600
    assert image([str(source), str(out)]) == 1
    assert "not overwritten" in capsys.readouterr().err
    source.write_bytes(bytes(16 << 20))
    assert image([str(source), str(tmp_path / "other")]) == 1
    assert "no valid superblock" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
