"""The power goes while fsck repairs: at every write, with what was not flushed lost, kept or torn.

The next fsck must end clean, and what was not damaged must be as it was, however often that happens.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mkfs.check.run import check
from mkfs.repair.engine import repair
from mkfs.repair.policy import everything
from nvmefs.layout import BLOCK_BYTES, JOURNAL_SUPER_A, JOURNAL_SUPER_B, STATE_BLOCK, bitmap_block
from tests.crash.drive import moments
from tests.mkfs.builder import small_tree
from tests.mkfs.repairing import DAMAGED, contents, intact, only_found, with_data
from tests.mkfs.test_fsck import IN_ITEMS, Break
from tests.support.checker import check as second_opinion
from tests.support.model import Tree, differences
from tests.support.ram import RamNamespace

Make = Callable[[], RamNamespace]


def by(break_it: Break) -> Make:
    """A filesystem with one invariant broken."""

    def make() -> RamNamespace:
        builder = small_tree()
        break_it(builder)
        return with_data(builder, builder.build())

    return make


def without(*places: int, nodes: bool = False) -> Make:
    """A filesystem without some blocks; and, if asked for, without all nodes above the leaves."""

    def make() -> RamNamespace:
        builder = small_tree()
        namespace = with_data(builder, builder.build())
        for place in (*places, *(builder.nodes if nodes else ())):
            namespace.blocks[place] = b"\xa5" * BLOCK_BYTES
        return namespace

    return make


BROKEN: dict[str, Make] = {
    "nodes": without(nodes=True),
    "nodes and state": without(STATE_BLOCK, nodes=True),
    "journal": without(JOURNAL_SUPER_A, JOURNAL_SUPER_B),
    "bitmaps": without(bitmap_block(0), bitmap_block(2)),
    **{f"{name}-{at}": by(break_it) for at, (name, break_it) in enumerate(IN_ITEMS)},
}
QUICK = (
    "nodes",
    "nodes and state",
    "journal",
    "bitmaps",
    "block-shared",
    "directory-cycle",
    "inode-missing",
)


async def cut_everywhere(name: str, subsets: int, expected: Tree) -> int:
    """Cut the repair at each step, and repair again; how many states that were."""
    namespace = BROKEN[name]()
    before = dict(namespace.blocks)
    namespace.log = []
    await repair(namespace.device(), everything)
    right = await contents(namespace)
    cuts = 0
    for moment in moments(before, namespace.log):
        for subset in range(subsets if moment.pending else 1):
            image = RamNamespace(namespace.block_count, moment.image(subset))
            await repair(image.device(), everything)
            where = f"{name}, step {moment.step}, subset {subset}"
            report = await check(image.device())
            assert (report.findings.lines(), report.findings.remarks) == ([], []), where
            assert second_opinion(image.blocks) == [], where
            found = await contents(image)
            if differences(right, found):  # numbers in lost+found may be others
                only_found(expected, found, DAMAGED.get(name.rsplit("-", 1)[0], set()))
            cuts += 1
    return cuts


@pytest.mark.parametrize("name", [n for n in BROKEN if n in QUICK or n.rsplit("-", 1)[0] in QUICK])
async def test_cut_while_repairing(name: str) -> None:
    assert await cut_everywhere(name, 2, await intact()) > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(BROKEN))
async def test_cut_while_repairing_anything(name: str) -> None:
    assert await cut_everywhere(name, 6, await intact()) > 10
