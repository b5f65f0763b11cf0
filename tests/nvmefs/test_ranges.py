"""Locks on ranges of blocks: who waits for whom, in which order, and what cancellation leaves."""

from __future__ import annotations

import random

import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs.ranges import END, RangeLock


class Holders:
    """Tasks that hold ranges until told; `order` is in which order they got them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.lock = RangeLock()
        self.nursery = nursery
        self.order: list[str] = []
        self.leave: dict[str, trio.Event] = {}
        self.scopes: dict[str, trio.CancelScope] = {}

    async def hold(self, name: str, first: int, last: int, *, exclusive: bool) -> None:
        self.leave[name] = trio.Event()
        self.scopes[name] = trio.CancelScope()

        async def work() -> None:
            with self.scopes[name]:
                await self.lock.acquire(first, last, exclusive=exclusive)
                self.order.append(name)
                try:
                    await self.leave[name].wait()
                finally:
                    self.lock.release(first, last, exclusive=exclusive)

        self.nursery.start_soon(work)
        await wait_all_tasks_blocked()

    async def end(self, name: str) -> None:
        self.leave[name].set()
        await wait_all_tasks_blocked()

    async def cancel(self, name: str) -> None:
        self.scopes[name].cancel()
        await wait_all_tasks_blocked()


async def test_readers_share_and_writers_do_not() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(nursery)
        await holders.hold("reader", 0, 9, exclusive=False)
        await holders.hold("other reader", 5, 20, exclusive=False)
        await holders.hold("writer apart", 21, 30, exclusive=True)
        assert holders.order == ["reader", "other reader", "writer apart"]
        await holders.hold("writer", 9, 9, exclusive=True)
        assert len(holders.order) == 3
        await holders.end("reader")
        assert len(holders.order) == 3
        await holders.end("other reader")
        assert holders.order[-1] == "writer"
        await holders.end("writer")
        await holders.end("writer apart")
        assert not holders.lock.busy


async def test_a_writer_is_not_starved_by_readers() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(nursery)
        await holders.hold("reader", 0, END, exclusive=False)
        await holders.hold("writer", 5, 5, exclusive=True)
        await holders.hold("late reader", 5, 5, exclusive=False)
        assert holders.order == ["reader"]
        await holders.end("reader")
        assert holders.order == ["reader", "writer"]
        await holders.end("writer")
        assert holders.order == ["reader", "writer", "late reader"]
        await holders.end("late reader")


async def test_cancelling_a_waiter_lets_those_behind_it_go() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(nursery)
        await holders.hold("reader", 0, 9, exclusive=False)
        await holders.hold("writer", 0, 9, exclusive=True)
        await holders.hold("late reader", 0, 9, exclusive=False)
        await holders.cancel("writer")
        assert holders.order == ["reader", "late reader"]
        await holders.end("reader")
        await holders.end("late reader")
        assert not holders.lock.busy


async def test_random_holders_never_conflict() -> None:
    rng = random.Random(1)
    lock = RangeLock()
    held: list[tuple[int, int, bool]] = []

    async def work() -> None:
        for _ in range(40):
            first = rng.randrange(20)
            last, exclusive = first + rng.randrange(5), rng.random() < 0.5
            with trio.move_on_after(0 if rng.random() < 0.1 else 1e9):
                await lock.acquire(first, last, exclusive=exclusive)
                try:
                    assert not any(
                        begin <= last and first <= end and (exclusive or other)
                        for begin, end, other in held
                    )
                    held.append((first, last, exclusive))
                    for _ in range(rng.randrange(4)):
                        await trio.lowlevel.checkpoint()
                finally:
                    held.remove((first, last, exclusive))
                    lock.release(first, last, exclusive=exclusive)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(work)
    assert not lock.busy
