"""nvmefs/frontend.py: who takes requests answers them; while one waits another task takes the next."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from driver import DmaBuffer
from nvmefs._core import ffi, lib
from nvmefs.frontend import Frontend
from nvmefs.wire import Request, reply
from tests.nvmefs.frontbench import WRITE, WRITE_IN, Bench, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")

QUICK, SLOW = 1, 3


class Answers:
    """In place of shortcut.py: one kind of request waits."""

    def __init__(self) -> None:
        self.may_go_on = trio.Event()
        self.written: list[bytes] = []
        self.failure: str | None = None

    def knows(self, request: Request) -> bool:
        return True

    async def answer(self, request: Request) -> bytes:
        if request.opcode == SLOW:
            await self.may_go_on.wait()
        if request.opcode == WRITE:
            data = request.data
            copied = request.body[WRITE_IN.size :]
            self.written.append(bytes(data.view) if isinstance(data, DmaBuffer) else copied)
        return reply(request.unique, b"")


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Bench, Answers]]:
    with running(upcalls=1 << QUICK | 1 << SLOW | 1 << WRITE) as bench:
        answers: Any = Answers()
        answers.fs = answers.journal = answers
        view = memoryview(ffi.buffer(bench.memory))
        memory = [DmaBuffer(cast(Any, None), view, 0, None)]
        bench.caller.setblocking(False)
        frontend = Frontend(
            bench.handle, cast(Any, None), answers, answers, bench.caller,
            -1, -1, bench.python.fileno(), cast(Any, None), memory,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(frontend.take_requests, nursery)
            yield bench, answers
            nursery.cancel_scope.cancel()


async def answer(bench: Bench) -> int:
    """The unique of the next answer; the tasks run meanwhile."""
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(bench.kernel)
    unique, code, _ = bench.answer()
    assert not code
    return unique


async def test_an_answer_that_waits_holds_nobody_up() -> None:
    async with serving() as (bench, answers):
        slow = [bench.ask(SLOW, b"") for _ in range(3)]
        for _ in range(20):
            unique = bench.ask(QUICK, b"")
            assert await answer(bench) == unique
        answers.may_go_on.set()
        assert {await answer(bench) for _ in slow} == set(slow)
        unique = bench.ask(QUICK, b"")
        assert await answer(bench) == unique


async def test_what_is_lent_is_seen_and_given_back() -> None:
    async with serving() as (bench, answers):
        for number in range(20):
            data = struct.pack("<I", number) * (lib.FE_LEND_FROM // 4)
            unique = bench.ask_write(0, data)
            assert await answer(bench) == unique
            assert answers.written.pop() == data
        assert bench.statistics().lent + bench.statistics().taken == 20
        assert bench.statistics().lent > 8  # the few slots there are, again and again


async def test_nothing_is_given_back_that_the_drive_may_still_read() -> None:
    async with serving() as (bench, answers):
        answers.failure = "the drive is not sound"
        for number in range(40):
            data = bytes([number]) * lib.FE_LEND_FROM
            unique = bench.ask_write(0, data)
            assert await answer(bench) == unique
            assert answers.written.pop() == data
        assert bench.statistics().lent == 4  # half of the slots
