"""What the allocator hands out, against a set of block numbers that knows what may be handed out."""

from __future__ import annotations

import random
from functools import partial

import pytest

from nvmefs.errors import Corrupted, NoSpace
from nvmefs.filesystem import Filesystem
from nvmefs.layout import FIRST_BITMAP, GROUP_BLOCKS, BlockType
from nvmefs.transaction import Transaction
from tests.support.checker import check
from tests.support.images import fresh, mounted


class TakenBackError(Exception):
    """What a test raises at the end of an operation, so that all of it is taken back."""


class SetModel:
    """Random calls of the allocator; `used`, `reserved` and `freed` are what must not be handed out."""

    def __init__(self, filesystem: Filesystem, rng: random.Random) -> None:
        self.filesystem = filesystem
        self.allocator = filesystem.allocator
        self.rng = rng
        self.used: set[int] = set()
        self.reserved: list[tuple[int, int]] = []
        self.freed: list[tuple[int, int]] = []
        self.refused = 0

    async def step(self) -> None:
        actions = [self.reserve, self.reserve, self.claim, self.free]
        action = self.rng.choice(actions)
        if (action == self.claim and not self.reserved) or (action == self.free and not self.used):
            return
        fails = self.rng.random() < 0.3

        def operation(tx: Transaction) -> list[tuple[int, int]]:
            runs = action(tx)
            if fails:
                raise TakenBackError
            return runs

        before = self.counts()
        commits = self.filesystem.journal.commits
        runs = None
        try:
            runs = await self.filesystem.transactions.run(operation)
        except TakenBackError:
            if self.filesystem.journal.commits == commits:
                assert self.counts() == before
        except NoSpace:
            self.refused += 1
            assert self.free_blocks() <= self.allocator.metadata_reserve_blocks
        if self.filesystem.journal.commits != commits:
            self.freed.clear()  # space was short, so what was freed has been committed
        if runs is not None:
            self.done(action.__name__, runs)

    def counts(self) -> tuple[int, int, int]:
        allocator = self.allocator
        return self.filesystem.state.free_blocks, allocator.held_blocks, len(allocator.held)

    def free_blocks(self) -> int:
        return self.filesystem.state.free_blocks - self.allocator.held_blocks

    def reserve(self, tx: Transaction) -> list[tuple[int, int]]:
        last = self.filesystem.superblock.block_count - 3
        goal = self.rng.choice([0, 1, 20000, GROUP_BLOCKS + 5, last])
        return self.allocator.reserve(tx, self.rng.choice([1, 5, 100, 9000]), goal)

    def claim(self, tx: Transaction) -> list[tuple[int, int]]:
        self.allocator.claim(tx, *self.reserved[-1])
        return [self.reserved[-1]]

    def free(self, tx: Transaction) -> list[tuple[int, int]]:
        start = self.rng.choice(sorted(self.used))
        count = 1
        while start + count in self.used and count < 50 and (start + count) % GROUP_BLOCKS:
            count += 1
        tx.free_data(start, count)
        return [(start, count)]

    def done(self, action: str, runs: list[tuple[int, int]]) -> None:
        taken = {block for start, count in runs for block in range(start, start + count)}
        if action == "claim":
            self.reserved.pop()
            self.used |= taken
        elif action == "free":
            self.used -= taken
            self.freed += runs
        else:
            unavailable = set(self.used)
            for start, count in (*self.reserved, *self.freed):
                unavailable.update(range(start, start + count))
            assert not taken & unavailable
            assert len(taken) == sum(count for _, count in runs)
            assert all(self.filesystem.superblock.is_allocatable(*run) for run in runs)
            self.reserved += runs


@pytest.mark.parametrize("seed", range(5))
async def test_against_a_set(seed: int) -> None:
    namespace = await fresh(2 * GROUP_BLOCKS + 500)
    async with mounted(namespace) as filesystem:
        allocator = filesystem.allocator
        for group in range(filesystem.superblock.group_count):
            await filesystem.cache.load(group * GROUP_BLOCKS or FIRST_BITMAP, BlockType.BITMAP)
        model = SetModel(filesystem, random.Random(seed))
        for _ in range(300):
            await model.step()
        for start, count in model.reserved:
            allocator.release(start, count)

        def free_all(tx: Transaction) -> None:
            for block in model.used:
                tx.free_data(block, 1)

        await filesystem.transactions.run(free_all)
        assert model.refused
    assert allocator.held_blocks == 0
    assert check(namespace.blocks) == []


async def test_what_is_not_its_own_is_refused() -> None:
    async with mounted(await fresh(40000)) as filesystem:
        sb, run = filesystem.superblock, filesystem.transactions.run
        wrong = [
            (1, 1), (20, 1), (sb.journal_start, 1), (sb.block_count - 1, 1), (GROUP_BLOCKS, 1),
            (GROUP_BLOCKS - 1, 2), (GROUP_BLOCKS + 1, 1), (sb.block_count, 1),
        ]  # fmt: skip
        for start, count in wrong:
            for change in (filesystem.allocator.use, filesystem.allocator.free):
                with pytest.raises(Corrupted):
                    await run(partial(change, start=start, count=count))
        with pytest.raises(Corrupted, match="free already"):
            await run(partial(filesystem.allocator.free, start=30000, count=1))


async def test_a_goal_is_met_where_it_is_free() -> None:
    async with mounted(await fresh(40000)) as filesystem:
        goals = [GROUP_BLOCKS + 700, 20000, GROUP_BLOCKS - 3]
        for goal in goals:
            runs = await filesystem.transactions.run(
                lambda tx, goal=goal: filesystem.allocator.reserve(tx, 3, goal)  # type: ignore[misc]
            )
            assert runs == [(goal, 3)]
            filesystem.allocator.release(goal, 3)


async def test_a_full_group_is_not_searched_again_until_something_is_free_there() -> None:
    async with mounted(await fresh(40000)) as filesystem:
        allocator, run = filesystem.allocator, filesystem.transactions.run
        most = allocator.available(filesystem.transactions.transaction)
        runs = await run(lambda tx: allocator.reserve(tx, most))
        with pytest.raises(NoSpace):
            await run(lambda tx: allocator.reserve(tx, 1))
        start, count = runs[0]
        allocator.release(start, count)
        again = await run(lambda tx: allocator.reserve(tx, count))
        assert sum(length for _, length in again) == count
        for each in (*runs[1:], *again):
            allocator.release(*each)
        assert not allocator.held
        assert not allocator.full


async def test_holds_must_match() -> None:
    """Holding twice, or releasing what is not held, is a bug elsewhere and is not passed over."""
    async with mounted(await fresh()) as filesystem:
        allocator = filesystem.allocator
        allocator.hold(2000, 5)
        with pytest.raises(Corrupted, match="held twice"):
            allocator.hold(2004, 5)
        with pytest.raises(Corrupted, match="not held"):
            allocator.release(1999, 2)
        allocator.release(2000, 5)
        assert allocator.held_blocks == 0
