"""core/take.c: Python reads /dev/fuse itself while its requests follow one another, and lets go of it."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from nvmefs._core import ffi, lib
from tests.nvmefs.frontbench import IN_HEADER, READ, READLINK, Bench, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")

LOOKUP, STATFS, INTERRUPT = 1, 17, 36
SIZE = lib.FE_MAX_WRITE + 4096
NO_TIME, LONG_NS = 0, 900_000_000
UPCALLS = 1 << LOOKUP | 1 << READ


class Python:
    """Python's side of a bench: it takes requests."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.buffer = bytearray(SIZE)
        self.memory: Any = ffi.from_buffer("uint8_t[]", self.buffer)

    def take(self, ns: int = LONG_NS) -> int | None:
        """The unique of the next request; None if there is none."""
        bench = self.bench
        length = lib.fe_take(
            bench.handle, bench.caller.fileno(), bench.python.fileno(), ns, self.memory, SIZE
        )
        if not length:
            return None
        assert length > 0
        told, _, unique, *_ = IN_HEADER.unpack_from(self.buffer)
        assert told == length
        return int(unique)

    def let_go(self) -> None:
        lib.fe_taken(self.bench.handle)

    def reply(self, unique: int) -> None:
        assert lib.fe_reply(self.bench.handle, struct.pack("<IiQ", 16, 0, unique), 16) == 0
        assert self.bench.answer() == (unique, 0, b"")


def test_it_takes_what_the_kernel_asks() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        assert python.take(NO_TIME) is None
        for _ in range(20):
            unique = bench.ask(LOOKUP, b"name\0")
            assert python.take() == unique
            assert python.buffer[IN_HEADER.size :][:5] == b"name\0"
            python.reply(unique)
        assert bench.statistics().taken == 20


def test_the_channel_reads_again_when_it_lets_go() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        for count in range(20):
            assert python.take(NO_TIME) is None
            python.let_go()
            unique = bench.ask(LOOKUP, b"name\0")
            assert bench.caller.recv(SIZE)[8:16] == struct.pack("<Q", unique)
            python.reply(unique)
            assert bench.statistics().upcalls == count + 1
        assert bench.statistics().taken == 0


def test_what_a_channel_has_passed_on_comes_first() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        first = bench.ask(LOOKUP, b"a\0")
        wait_until(lambda: bench.statistics().upcalls)
        assert python.take() == first
        second = bench.ask(LOOKUP, b"b\0")
        assert python.take() == second
        assert bench.statistics().taken == 1


def test_a_request_of_pyfuse3s_goes_there_and_it_has_its_turn() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        assert python.take(NO_TIME) is None
        unique = bench.ask(STATFS, b"")
        assert python.take() is None
        later = bench.ask(LOOKUP, b"name\0")
        assert python.take(NO_TIME) is None  # pyfuse3 has something to do
        assert bench.forwarded() == (STATFS, unique)
        assert python.take() == later
        python.let_go()


def test_an_interrupt_is_dropped() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        assert python.take(NO_TIME) is None
        bench.ask(INTERRUPT, bytes(8))
        unique = bench.ask(LOOKUP, b"name\0")
        assert python.take() == unique
        assert bench.statistics().forwarded == 0


def serve_read(bench: Bench) -> None:
    unique = bench.ask_read(0)
    _, cid = bench.command()
    bench.complete(cid)
    assert bench.answer()[:2] == (unique, 0)


def test_it_does_not_take_while_a_channel_serves_data() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        bench.publish(4)
        serve_read(bench)
        unique = bench.ask(LOOKUP, b"name\0")
        assert python.take() == unique  # by the channel
        assert bench.statistics().taken == 0
        assert python.take(NO_TIME) is None  # calm since
        unique = bench.ask(LOOKUP, b"name\0")
        assert python.take() == unique
        assert bench.statistics().taken == 1
        python.let_go()
        serve_read(bench)


def test_data_is_answered_once_and_then_left_to_the_channel() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        bench.publish(4)
        assert python.take(NO_TIME) is None
        unique = bench.ask_read(0)
        assert python.take() == unique
        assert python.take(NO_TIME) is None
        serve_read(bench)
        assert bench.statistics().taken == 1


def test_other_requests_reach_pyfuse3_afterwards() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        assert python.take(NO_TIME) is None
        python.let_go()
        unique = bench.ask(READLINK, b"")
        assert bench.forwarded() == (READLINK, unique)


def test_the_end_of_the_socket_and_of_the_mount() -> None:
    with running(upcalls=UPCALLS) as bench:
        python = Python(bench)
        assert python.take(NO_TIME) is None
        bench.kernel.close()
        assert python.take() is None
        bench.upcalls.close()
        length = lib.fe_take(
            bench.handle, bench.caller.fileno(), bench.python.fileno(), 0, python.memory, SIZE
        )
        assert length == -1
