"""core/forward.c: the data of a large write stays in its slot, lent to Python, until Python gives it back."""

from __future__ import annotations

import os
import select
import struct
from typing import Any

import pytest

from nvmefs._core import ffi, lib
from nvmefs.layout import BLOCK_BYTES
from tests.nvmefs.frontbench import IN_HEADER, READLINK, WRITE, Bench, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")

UPCALLS = 1 << WRITE
HEADER = lib.FE_WRITE_HEADER_BYTES
LEAST = lib.FE_LEND_FROM
SLOTS = 4  # half of them can be lent


class Loan:
    """A large write as Python gets it."""

    def __init__(self, bench: Bench, data: bytes) -> None:
        self.bench = bench
        self.unique = bench.ask_write(3, data)
        self.message = bench.caller.recv(2 << 20)
        self.told, _, unique, *_ = IN_HEADER.unpack_from(self.message)
        assert unique == self.unique

    @property
    def is_lent(self) -> bool:
        return bool(self.told != len(self.message))

    @property
    def place(self) -> tuple[int, int]:
        """Channel and slot."""
        channel, slot = struct.unpack_from("<II", self.message, HEADER)
        return int(channel), int(slot)

    @property
    def data(self) -> bytes:
        assert len(self.message) == HEADER + 8
        begin = self.place[1] * lib.FE_SLOT_BYTES + BLOCK_BYTES
        memory: Any = ffi.buffer(self.bench.memory)
        return bytes(memory[begin : begin + self.told - HEADER])

    def answer(self) -> None:
        self.bench.reply(struct.pack("<IiQ", 16, 0, self.unique))
        assert self.bench.answer() == (self.unique, 0, b"")

    def give_back(self) -> None:
        lib.fe_give_back(self.bench.handle, self.place)


def pattern(number: int, size: int = LEAST) -> bytes:
    return bytes([number]) * size


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def turn_over(bench: Bench) -> None:
    """The channel takes requests, each in a slot."""
    for _ in range(2 * SLOTS):
        unique = bench.ask(READLINK, b"?" * LEAST)
        assert bench.forwarded() == (READLINK, unique)


@pytest.mark.parametrize("size", [LEAST, lib.FE_MAX_WRITE, LEAST + 1])
def test_the_data_stays_where_the_kernel_has_put_it(size: int) -> None:
    with running(SLOTS, upcalls=UPCALLS) as bench:
        loan = Loan(bench, pattern(1, size))
        assert loan.is_lent
        assert loan.data == pattern(1, size)
        turn_over(bench)
        assert loan.data == pattern(1, size)
        loan.answer()
        loan.give_back()
        assert bench.statistics().lent == 1


def test_a_small_write_is_copied() -> None:
    with running(SLOTS, upcalls=UPCALLS) as bench:
        loan = Loan(bench, pattern(1, LEAST - 1))
        assert not loan.is_lent
        assert loan.message[HEADER:] == pattern(1, LEAST - 1)


def test_half_of_the_slots_are_lent_and_lent_again_when_they_come_back() -> None:
    with running(SLOTS, upcalls=UPCALLS) as bench:
        first, second, third = (Loan(bench, pattern(number)) for number in range(3))
        assert [loan.is_lent for loan in (first, second, third)] == [True, True, False]
        assert first.place != second.place
        turn_over(bench)
        assert (first.data, second.data) == (pattern(0), pattern(1))
        first.give_back()
        fourth = Loan(bench, pattern(4))
        assert fourth.is_lent
        assert (fourth.place, fourth.data) == (first.place, pattern(4))
        assert second.data == pattern(1)


def test_what_was_not_lent_cannot_come_back() -> None:
    with running(SLOTS, upcalls=UPCALLS) as bench:
        loan = Loan(bench, pattern(1))
        for channel, slot in ((0, SLOTS), (2, 0), (0, 2**31), (1, 0)):
            lib.fe_give_back(bench.handle, (channel, slot))
        for slot in range(SLOTS):
            if slot != loan.place[1]:
                lib.fe_give_back(bench.handle, (0, slot))
        turn_over(bench)
        assert loan.data == pattern(1)
        loan.give_back()
        loan.give_back()
        turn_over(bench)
        assert Loan(bench, pattern(2)).is_lent
        assert Loan(bench, pattern(3)).is_lent
        assert not Loan(bench, pattern(4)).is_lent


def test_it_ends_while_something_is_lent() -> None:
    with running(SLOTS, upcalls=UPCALLS) as bench:
        assert Loan(bench, pattern(1)).is_lent
        bench.kernel.close()
        wait_until(lambda: readable(bench.ended_fd))
