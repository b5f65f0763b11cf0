"""nvmefs/relay.py: work in the task that began it, which tells when it has to wait."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs.relay import relayed


async def test_work_that_need_not_wait_tells_nothing() -> None:
    async def work() -> int:
        return 7

    assert await relayed(work(), lambda: pytest.fail("it did not wait")) == 7


async def test_work_that_waits_tells_so_once_and_goes_on_in_the_same_task() -> None:
    told: list[str] = []

    async def work() -> trio.lowlevel.Task:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        told.append("done")
        return trio.lowlevel.current_task()

    task = await relayed(work(), lambda: told.append("waits"))
    assert task is trio.lowlevel.current_task()
    assert told == ["waits", "done"]


@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_arrives(waits: bool) -> None:
    async def work() -> None:
        if waits:
            await trio.lowlevel.checkpoint()
        raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        await relayed(work(), lambda: None)


async def test_cancellation_reaches_the_work() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append("cancelled")

    async def run() -> None:
        await relayed(work(), lambda: seen.append("waits"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == ["waits", "cancelled"]


async def test_work_may_catch_its_cancellation() -> None:
    async def work() -> str:
        with trio.move_on_after(0):
            await trio.sleep_forever()
        return "went on"

    assert await relayed(work(), lambda: None) == "went on"
