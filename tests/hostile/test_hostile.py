"""The bounded part of the hostile campaign, the corpus, and the proof that it would notice."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from mkfs.check.findings import Finding
from mkfs.repair.writer import Writer
from tests.hostile import campaign
from tests.hostile.campaign import CORPUS, HostileFailure, image_of, keep, kept, names_of, run
from tests.hostile.examine import Bug, examine
from tests.support.images import tiny_allowed

IMAGES = 240
PARTS = 3


@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", range(PARTS))
async def test_hostile_images(part: int) -> None:
    each = IMAGES // PARTS
    tally = await run(names_of(part * each, each))
    assert tally["repaired"] > each // 3


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.gz")), ids=lambda path: path.name)
async def test_corpus(path: Path) -> None:
    """Images that have found a bug, each by its first line in the commit that mended it."""
    with tiny_allowed():
        await examine(kept(path))


async def test_an_image_of_which_nothing_is_left_is_damaged_further() -> None:
    """The end may be cut off at its beginning, and something else be done to it then."""
    tally = await run(["used:50006854"])
    assert tally["unusable"] == 1


async def test_a_seed_makes_the_same_image_each_time(tmp_path: Path) -> None:
    with tiny_allowed():
        one = await image_of("used:7")
        assert one.blocks == (await image_of("used:7")).blocks != (await image_of("used:8")).blocks
        keep(tmp_path / "image.gz", one)
        again = kept(tmp_path / "image.gz")
        assert again.block_count == one.block_count
        assert {n: data for n, data in one.blocks.items() if any(data)} == again.blocks


# --- bugs on purpose ------------------------------------------------------------------------------------


async def caught(first: int = 0, images: int = 400) -> str:
    """The failure that the campaign ends with."""
    with pytest.raises(HostileFailure) as failure:
        await run(names_of(first, images))
    return str(failure.value)


async def do_nothing(writer: Writer, finding: Finding) -> None:
    """A repair that forgets to repair."""


async def test_a_repair_that_does_nothing_is_caught() -> None:
    fixes = {"item-value": do_nothing, "dirent-dangling": do_nothing}
    with mock.patch.dict("mkfs.repair.fixes.FIXES", clear=False) as table:
        for stage, known in list(table.items()):
            table[stage] = {**known, **{name: fix for name, fix in fixes.items() if name in known}}
        assert "left" in await caught()


async def test_a_traceback_at_mount_is_caught() -> None:
    def unchecked(*args: object, **kwargs: object) -> None:
        raise KeyError("a field that was trusted")

    with mock.patch("nvmefs.inodes.InodeRecord.decode", unchecked):
        assert "KeyError" in await caught()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_nonsense_from_a_mount_is_caught() -> None:
    """Names that are not checked come through."""
    with mock.patch("nvmefs.items.check_name", return_value=None):
        assert "nonsense" in await caught(0, 2000)


async def test_an_endless_image_is_caught() -> None:
    async def endless(image: object) -> str:
        while True:
            pass

    with (
        mock.patch.object(campaign, "examine", endless),
        mock.patch.object(campaign, "IMAGE_BOUND_S", 1),
    ):
        assert "more than 1 s" in await caught(0, 1)


async def test_faults_of_a_check_are_caught() -> None:
    """A checker that overlooks something is contradicted by the second."""
    with mock.patch("mkfs.check.verify.check_count", return_value=None):
        assert Bug.__name__ in await caught()
