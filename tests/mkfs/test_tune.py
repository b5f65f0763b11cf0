"""nvmefs tune: settings change in all copies or in none, and nothing else does."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driver import open_controller
from mkfs.check.run import check
from mkfs.fsck import main as fsck
from mkfs.mkfs import main as mkfs
from mkfs.tune import main as tune_main
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, SUPERBLOCK, Superblock, superblock_places
from nvmefs.tuning import tune
from tests.crash.drive import moments
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

UUID = "12345678-1234-4234-8234-123456789abc"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    assert mkfs(["-q", "--size", "200M", "-L", "old", "-U", UUID, str(path)]) == 0
    return path


def copies(image: Path) -> list[Superblock]:
    data = image.read_bytes()
    places = superblock_places(len(data) // BLOCK_BYTES)
    return [Superblock.decode(data[p * BLOCK_BYTES : (p + 1) * BLOCK_BYTES], p) for p in places]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["-L", "neu ü"], {"label": "neu ü".encode()}),
        (["-L", ""], {"label": b""}),
        (["-U", UUID.replace("1", "9")], {"uuid": uuid.UUID(UUID.replace("1", "9")).bytes}),
        (["-U", "clear"], {"uuid": bytes(16)}),
        (["-m", "10"], {"reserved_blocks": 5120}),
        (["-m", "1M", "-e", "remount-ro"], {"reserved_blocks": 256, "on_error": 1}),
    ],
)
def test_in_every_copy(image: Path, words: list[str], changed: dict[str, Any]) -> None:
    (before, *_) = copies(image)
    assert tune_main([*words, str(image)]) == 0
    found = copies(image)
    assert len(found) == 3
    assert found == [replace(before, **changed)] * 3
    assert fsck(["-n", "-f", str(image)]) == 0


@pytest.mark.parametrize(("word", "version"), [("random", 4), ("time", 1)])
def test_a_new_uuid(image: Path, word: str, version: int) -> None:
    assert tune_main(["-U", word, str(image)]) == 0
    (found, *_) = copies(image)
    made = uuid.UUID(bytes=found.uuid)
    assert (made.version, made.variant) == (version, uuid.RFC_4122)
    assert str(made) != UUID


def test_looking_changes_nothing(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    assert tune_main([str(image)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "label    old",
        f"uuid     {UUID}",
        "reserve  0 bytes, 0 blocks",
        "errors   continue",
        "size     200 MiB, 51200 blocks",
    ]
    assert tune_main(["--json", str(image)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "target": str(image),
        "label": "old",
        "uuid": UUID,
        "reserved_blocks": 0,
        "errors": "continue",
        "block_count": 51200,
    }
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["-L", "x" * 65], 2, "a label of 65 bytes"),
        (["-U", "17"], 2, "'17' is not a UUID"),
        (["-m", "51"], 2, "not a percentage from 0 to 50"),
        (["-m", "101M"], 1, "the most is 100 MiB"),
        (["-e", "panic"], 2, "'panic' is not one of"),
        (["-O", "nothing"], 2, "there is no feature 'nothing'"),
        (["-O", "long_journal"], 2, "can be chosen by mkfs.nvmefs only"),
    ],
)
def test_what_is_refused(
    image: Path, words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = copies(image)
    assert tune_main([*words, str(image)]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert copies(image) == before


async def test_one_that_is_in_use(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import trio

    async with await open_controller(str(image)):
        assert await trio.to_thread.run_sync(tune_main, ["-L", "new", str(image)]) == 1
    assert "in use by" in capsys.readouterr().err


def test_no_filesystem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune_main([str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "zero").write_bytes(bytes(16 << 20))
    for words in ([], ["-L", "new"]):
        assert tune_main([*words, str(tmp_path / "zero")]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"nvmefs tune: {tmp_path}/zero: ")
        assert error.count("\n") == 1


async def test_cut_at_every_write() -> None:
    """The old settings or the new ones, and a filesystem in which nothing is to be found fault with."""
    namespace = await fresh(40_000)
    before = dict(namespace.blocks)
    namespace.log = []
    filesystem = await Filesystem.open(namespace.device(), Options(), mounting=False)
    await tune(filesystem, {"label": b"new", "reserved_blocks": 100})
    await filesystem.close()
    seen = set()
    for moment in moments(before, namespace.log):
        for subset in range(4 if moment.pending else 1):
            image = RamNamespace(namespace.block_count, moment.image(subset))
            report = await check(image.device())
            assert report.findings.lines() == [], f"step {moment.step}, subset {subset}"
            told = report.source.superblock
            seen.add((told.label, told.reserved_blocks))
            async with mounted(image) as opened:
                assert opened.superblock == told
            places = superblock_places(image.block_count)
            assert [Superblock.decode(image.blocks[p], p) for p in places] == [told] * 3
    assert seen == {(b"", 0), (b"new", 100)}
    assert namespace.blocks[SUPERBLOCK] != before[SUPERBLOCK]
