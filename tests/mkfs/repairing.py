"""Repairing what a test has broken, and looking that nothing else has changed."""

from __future__ import annotations

import struct

from mkfs.check.run import check
from mkfs.repair.engine import Outcome, repair
from mkfs.repair.policy import everything
from nvmefs.errors import Corrupted
from nvmefs.filesystem import Filesystem, Options
from nvmefs.items import (
    decode_extent,
)
from nvmefs.layout import (
    BLOCK_BYTES,
    OFFSET_MASK,
    ROOT_INODE,
    Kind,
)
from tests.mkfs.builder import Builder, small_tree
from tests.mkfs.ramdevice import RamDevice
from tests.mkfs.test_fsck import BIG, EMPTY, LINK, SUB
from tests.support.checker import check as second_opinion
from tests.support.model import Tree, differences, read_back
from tests.support.ram import RamNamespace

LOST = b"lost+found"

# The inodes that a break, by its name, may cost something; all others are as before, byte for byte.
DAMAGED: dict[str, set[int]] = {
    "inline-pieces": {LINK},
    "xattr-twice": {BIG},
    "xattr-missing": {BIG},
    "xattr-size": {BIG},
    "extent-behind": {BIG},
    "block-shared": {BIG, EMPTY},
}


# --- helpers --------------------------------------------------------------------------------------------


def with_data(builder: Builder, device: RamDevice) -> RamNamespace:
    """A namespace with what was built, and bytes of their own in the blocks of files."""
    namespace = RamNamespace(device.block_count, dict(device.blocks))
    for (number, rest), value in builder.items.items():
        if rest >> 56 != Kind.EXTENT:
            continue
        try:
            extent = decode_extent(number, rest & OFFSET_MASK, value, device.block_count)
        except Corrupted:
            continue
        if builder.superblock.is_allocatable(extent.start, extent.count):
            for block in range(extent.start, extent.start + extent.count):
                namespace.blocks.setdefault(block, struct.pack("<Q", block) * (BLOCK_BYTES // 8))
    return namespace


async def contents(namespace: RamNamespace) -> Tree:
    """Every file, read through the filesystem."""
    return await read_back(await Filesystem.open(namespace.device(), Options(read_only=True)))


async def intact() -> Tree:
    builder = small_tree()
    return await contents(with_data(builder, builder.build()))


async def mend(namespace: RamNamespace, *, clean_twice: bool = True) -> Outcome:
    """Repair everything; what comes out is clean, for both checkers, and at the second run untouched."""
    outcome = await repair(namespace.device(), everything)
    assert outcome.failures == []
    assert [str(finding) for finding in outcome.left] == []
    assert all(finding.repaired for finding in outcome.found.values())
    report = await check(namespace.device())
    assert (report.findings.lines(), report.findings.remarks) == ([], [])
    assert second_opinion(namespace.blocks) == []
    before = dict(namespace.blocks)
    again = await repair(namespace.device(), everything)
    assert (again.found, again.rounds) == ({}, 0)
    assert namespace.blocks == before, "what is clean was written to"
    return outcome


def names_of(outcome: Outcome) -> set[str]:
    return {finding.name for finding in outcome.found.values()}


def only_found(expected: Tree, found: Tree, damaged: set[int]) -> None:
    """All is as it was, but for what is damaged, and what stands in lost+found."""
    places = dict(found[ROOT_INODE].names)
    new = {number for number in found if number not in expected}
    changed = {line.split(":")[0] for line in differences(expected, found)}
    allowed = {f"inode {number}" for number in damaged | new}
    if LOST in places or damaged:
        allowed.add(f"inode {ROOT_INODE}")
    assert changed <= allowed, differences(expected, found)
    kept = {name: number for name, number in places.items() if name != LOST}
    before = expected[ROOT_INODE].names
    assert {name: before.get(name) for name in kept} == kept
    assert {n for name, n in before.items() if name not in kept} <= damaged | {SUB}
