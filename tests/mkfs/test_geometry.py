"""Where things go, for devices of every size."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkfs.cli import ToolError, parse_size, show_size
from mkfs.geometry import Identity, Plan, Wishes, calculate, make_identity
from mkfs.settings import parse_features, parse_reserve
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    INCOMPAT_LONG_JOURNAL,
    JOURNAL_START,
    MIN_BLOCKS,
    MIN_JOURNAL_BLOCKS,
    MIN_LAST_GROUP_BLOCKS,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    Superblock,
    fixed_bits,
    fixed_blocks,
    free_blocks_when_fresh,
    group_count,
    journal_block,
    superblock_places,
)

IDENTITY: Identity = make_identity(None, "test")
SIZES = [
    MIN_BLOCKS,
    MIN_BLOCKS + 1,
    GROUP_BLOCKS - 1,
    GROUP_BLOCKS,
    GROUP_BLOCKS + 1,
    GROUP_BLOCKS + 2,
    GROUP_BLOCKS + MIN_LAST_GROUP_BLOCKS - 1,
    GROUP_BLOCKS + MIN_LAST_GROUP_BLOCKS,
    2 * GROUP_BLOCKS - 1,
    2 * GROUP_BLOCKS,
    2 * GROUP_BLOCKS + MIN_LAST_GROUP_BLOCKS + 1,
    3 * GROUP_BLOCKS + 5000,
    2**21,
    100 * 2**28,
    2**48,
]


def plan_of(blocks: int, **wishes: Any) -> Plan:
    return calculate(blocks, Wishes(**wishes), IDENTITY)


def holds(plan: Plan) -> None:
    """What must be true of every plan."""
    superblock = plan.superblock
    blocks = superblock.block_count
    assert blocks <= plan.device_blocks
    assert plan.unused_blocks < MIN_LAST_GROUP_BLOCKS
    assert superblock.group_count == group_count(blocks)
    assert superblock.journal_start == JOURNAL_START
    assert superblock.journal_blocks >= MIN_JOURNAL_BLOCKS
    assert plan.root_block == journal_block(superblock.journal_blocks) >= superblock.journal_end
    assert superblock.is_allocatable(plan.root_block, 1)
    assert 0 < plan.free_blocks < blocks
    # A reader must take it.
    assert Superblock.decode(superblock.encode(SUPERBLOCK), SUPERBLOCK) == superblock


@pytest.mark.parametrize("blocks", SIZES)
def test_sizes(blocks: int) -> None:
    plan = plan_of(blocks)
    holds(plan)
    if plan.superblock.group_count <= 100:
        free = sum(
            GROUP_BLOCKS - fixed_bits(group, plan.superblock).bit_count()
            for group in range(plan.superblock.group_count)
        )
        assert plan.free_blocks == free - 1  # the root node
    assert plan.as_json()["free_blocks"] == plan.free_blocks
    assert any(f"{plan.superblock.block_count} blocks" in line for line in plan.lines())


@given(st.integers(MIN_BLOCKS, 40 * GROUP_BLOCKS))
def test_any_size(blocks: int) -> None:
    holds(plan_of(blocks))


@given(st.integers(MIN_BLOCKS, 40 * GROUP_BLOCKS))
def test_free_blocks_by_addition(blocks: int) -> None:
    superblock = plan_of(blocks).superblock
    assert free_blocks_when_fresh(superblock) == sum(
        GROUP_BLOCKS - fixed_bits(group, superblock).bit_count()
        for group in range(superblock.group_count)
    )


def test_short_tail_is_left_out() -> None:
    plan = plan_of(2 * GROUP_BLOCKS + 63)
    assert (plan.superblock.block_count, plan.unused_blocks) == (2 * GROUP_BLOCKS, 63)
    assert "63 at the end are left unused" in "\n".join(plan.lines())
    assert plan_of(2 * GROUP_BLOCKS + 64).unused_blocks == 0


def test_copies_of_the_superblock() -> None:
    assert superblock_places(plan_of(MIN_BLOCKS).superblock.block_count) == [16, MIN_BLOCKS - 1]
    blocks = 3 * GROUP_BLOCKS
    assert superblock_places(blocks) == [16, GROUP_BLOCKS + 1, blocks - 1]


@pytest.mark.parametrize("blocks", [0, 1, 20, MIN_BLOCKS - 1])
def test_too_small(blocks: int) -> None:
    with pytest.raises(ToolError, match="the least is 16 MiB"):
        plan_of(blocks)


def test_too_large() -> None:
    with pytest.raises(ToolError, match="smaller device"):
        plan_of(2**48 + GROUP_BLOCKS)


@pytest.mark.parametrize("journal_bytes", [1, 4 << 20, 32 << 20])
def test_journal_size(journal_bytes: int) -> None:
    blocks = journal_bytes // BLOCK_BYTES
    if blocks < MIN_JOURNAL_BLOCKS:
        with pytest.raises(ToolError, match="--journal-size takes 4 MiB to"):
            plan_of(2**20, journal_bytes=journal_bytes)
    else:
        plan = plan_of(2**20, journal_bytes=journal_bytes)
        holds(plan)
        assert plan.superblock.journal_blocks == blocks


@pytest.mark.parametrize("journal_blocks", [32193, 32235, 32236, 32237, 64489, 64490, 262144])
def test_long_journal(journal_blocks: int) -> None:
    """Group by group it takes what is not the group's own, and nothing of it is allocatable."""
    plan = plan_of(2**20, journal_bytes=journal_blocks * BLOCK_BYTES)
    superblock = plan.superblock
    assert superblock.incompat == INCOMPAT_LONG_JOURNAL
    holds(plan)
    runs = list(superblock.journal_runs(0, journal_blocks))
    blocks = [block for first, count in runs for block in range(first, first + count)]
    assert len(blocks) == journal_blocks
    fixed = {SUPERBLOCK_COPY} | {group * GROUP_BLOCKS for group in range(33)}
    behind = (block for block in range(JOURNAL_START, 2**20) if block not in fixed)
    assert blocks == [next(behind) for _ in blocks]
    assert plan.root_block == next(behind)
    for position in (0, 1, 32234, 32235, 64488, 64489, journal_blocks - 1):
        if position < journal_blocks:
            assert superblock.journal_place(position + journal_blocks) == blocks[position]
    for group in range(len(runs) + 1):
        fixed_there = {
            block for first, count in fixed_blocks(group, superblock)
            for block in range(first, first + count)
        }  # fmt: skip
        for block in range(group * GROUP_BLOCKS, (group + 1) * GROUP_BLOCKS, 97):
            assert superblock.is_allocatable(block, 1) is (block not in fixed_there)


def test_features_decide_how_long_a_journal_may_be() -> None:
    on, off = parse_features("long_journal"), parse_features("^long_journal")
    huge = 2**32
    assert plan_of(huge, features=on).superblock.journal_blocks == 262144
    assert plan_of(huge).superblock.journal_blocks == GROUP_BLOCKS - 256
    assert plan_of(MIN_BLOCKS, features=on).superblock.journal_blocks == MIN_JOURNAL_BLOCKS
    with pytest.raises(ToolError, match="--journal-size takes"):
        plan_of(huge, journal_bytes=500 << 20, features=off)
    with pytest.raises(ToolError, match="to 1 GiB"):
        plan_of(huge, journal_bytes=2 << 30)


def test_reserve() -> None:
    assert plan_of(2**20, reserve=parse_reserve("5")).superblock.reserved_blocks == 2**20 // 20
    assert plan_of(2**20, reserve=parse_reserve("1G")).superblock.reserved_blocks == 2**18
    with pytest.raises(ToolError, match="more than half"):
        plan_of(2**20, reserve=parse_reserve("3G"))


def test_journal_must_leave_room() -> None:
    with pytest.raises(ToolError, match="not possible here"):
        plan_of(MIN_BLOCKS, journal_bytes=MIN_BLOCKS * BLOCK_BYTES)
    holds(plan_of(MIN_BLOCKS, journal_bytes=MIN_BLOCKS * BLOCK_BYTES // 2))


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    first, again = make_identity(None, "x"), make_identity(None, "x")
    assert first == again
    assert (first.created_s, first.created_ns) == (1234567890, 0)
    assert make_identity(None, "y").meta_uuid != first.meta_uuid
    assert make_identity(None, None).meta_uuid != make_identity(None, None).meta_uuid
    assert make_identity(b"u" * 16, None).uuid == b"u" * 16
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ToolError, match="not a number"):
        make_identity(None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1K", 1024),
        ("1kib", 1024),
        ("1KB", 1000),
        ("8G", 8 << 30),
        ("1.5TiB", 3 << 39),
        ("0.1M", 104857),
        ("2P", 2 << 50),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1.5", "1e9", "1 G B", "0x10", "\uff11G"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (8 << 30, "8 GiB"),
     (125 << 20, "125 MiB"), (1 << 60, "1 EiB")],
)  # fmt: skip
def test_show_size(size: int, text: str) -> None:
    assert show_size(size) == text
