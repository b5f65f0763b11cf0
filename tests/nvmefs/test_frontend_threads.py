"""core/channel.c and forward.c: several threads, each with its descriptor of /dev/fuse."""

from __future__ import annotations

import os
import time

import pytest

from nvmefs._core import lib
from tests.nvmefs.frontbench import (
    BOUND_S,
    IN_HEADER,
    OUT_HEADER,
    READLINK,
    Bench,
    running,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")

CROWD = 6


def crowd(bench: Bench) -> list[int]:
    """As many requests at the first thread as make it call the second; the ids of their commands."""
    bench.publish(CROWD)
    for block in range(CROWD):
        bench.ask_read(block)
    cids = [bench.command()[1] for _ in range(CROWD)]
    wait_until(lambda: bench.statistics().calls == 1)
    return cids


def ask_second(bench: Bench, unique: int) -> None:
    bench.clone.send(IN_HEADER.pack(40, READLINK, unique, 1, 0, 0, 0, 0, 0))


def test_the_second_thread_rests_until_there_is_a_crowd() -> None:
    with running(slots=16) as bench:
        ask_second(bench, 901)
        for _ in range(20):
            unique = bench.ask(READLINK, b"")
            assert bench.forwarded() == (READLINK, unique)
        assert bench.statistics().requests == 20
        cids = crowd(bench)
        assert bench.forwarded()[0] == READLINK
        for cid in cids:
            bench.complete(cid)
            bench.answer()


def test_an_answer_goes_the_way_its_request_has_come() -> None:
    """Of two requests that the kernel has numbered, in the order in which Python answers them."""
    with running(slots=16) as bench:
        cids = crowd(bench)
        first = bench.ask(READLINK, b"")
        assert bench.forwarded() == (READLINK, first)
        ask_second(bench, 901)
        opcode, tagged = bench.forwarded()
        assert (opcode, tagged & (1 << 48) - 1) == (READLINK, 901)
        bench.python.send(OUT_HEADER.pack(20, 0, tagged) + b"two!")
        assert bench.clone.recv(100) == OUT_HEADER.pack(20, 0, 901) + b"two!"
        answer = OUT_HEADER.pack(16, 0, first)
        assert lib.fe_reply(bench.handle, answer, len(answer)) == 0
        assert bench.answer() == (first, 0, b"")
        for cid in cids:
            bench.complete(cid)
            bench.answer()


@pytest.mark.parametrize("message", [b"short", OUT_HEADER.pack(16, 0, 2 << 48 | 4)])
def test_answers_to_nobody_are_refused(message: bytes) -> None:
    with running() as bench:
        assert lib.fe_reply(bench.handle, message, len(message)) == 22


def test_who_was_called_rests_again() -> None:
    """Then it costs nothing, and can be called again."""
    with running(slots=16) as bench:
        for calls in (1, 2):
            bench.publish(CROWD, 1000 + calls)
            asked = [bench.ask_read(block, inode=1000 + calls) for block in range(CROWD)]
            cids = [bench.command()[1] for _ in asked]
            deadline = time.monotonic() + BOUND_S
            while bench.statistics().calls < calls and time.monotonic() < deadline:
                bench.complete(cids.pop())
                assert bench.answer()[0] in asked
                time.sleep(0.01)  # longer than it lingers
                again = bench.ask_read(0, inode=1000 + calls)
                asked.append(again)
                cids.append(bench.command()[1])
            assert bench.statistics().calls >= calls
            for cid in cids:
                bench.complete(cid)
                bench.answer()
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.05
