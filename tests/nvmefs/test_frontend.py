"""core/channel.c, forward.c, hot.c, recovery.c: the test is the kernel, pyfuse3 and the controller."""

from __future__ import annotations

import os
import select
import time

import pytest

from driver._core import lib as ring_lib
from nvmefs._core import ffi, lib
from nvmefs.layout import BLOCK_BYTES
from tests.nvmefs.frontbench import (
    ABORTED,
    BOUND_S,
    FIRST_BLOCK,
    INODE,
    LAST_WAIT_NS,
    QUIET_HANDLE,
    READ,
    READLINK,
    WRITE,
    Bench,
    running,
    wait_until,
)

CLOCK_REALTIME_COARSE = 5  # <linux/time.h>

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")


def test_a_read_goes_to_the_drive_and_back() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_read(1)
        opcode, cid = bench.command()
        assert opcode == 2
        bench.complete(cid)
        assert bench.answer() == (unique, 0, bytes(BLOCK_BYTES))


def test_a_read_is_marked_and_a_write_is_not() -> None:
    """Nor a read by a handle that says so; what was read is known also when the map is gone."""
    with running() as bench:
        bench.publish(4)
        number, read_ns = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        bench.ask_write(3, b"x" * BLOCK_BYTES)
        bench.complete(bench.command()[1])
        bench.answer()
        bench.ask_read(0, handle=QUIET_HANDLE)
        bench.complete(bench.command()[1])
        bench.answer()
        assert lib.dm_take_read(bench.map, INODE) == 0
        before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        for left in (True, False):
            bench.ask_read(1)
            cid = bench.command()[1]
            assert not left or before <= lib.dm_take_read(bench.map, INODE) <= time.time_ns()
            assert left or lib.dm_withdraw(bench.map, INODE) == 1
            assert not lib.dm_next_departed(bench.map, number, read_ns)
            bench.complete(cid)
            bench.answer()
            assert lib.dm_take_read(bench.map, INODE) == 0
        wait_until(lambda: lib.dm_count(bench.map) == 0)
        assert lib.dm_next_departed(bench.map, number, read_ns)
        assert number[0] == INODE
        assert before <= read_ns[0] <= time.time_ns()
        assert not lib.dm_next_departed(bench.map, number, read_ns)


def test_a_write_counts_before_it_is_answered() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_write(3, b"x" * BLOCK_BYTES)
        opcode, cid = bench.command()
        assert opcode == 1
        assert lib.ledger_written(bench.ledger) == 0
        bench.complete(cid)
        assert bench.answer()[:2] == (unique, 0)
        assert lib.ledger_written(bench.ledger) == 1


def test_what_the_drive_refuses_is_forwarded() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_write(3, b"x" * BLOCK_BYTES)
        bench.complete(bench.command()[1], status=0x280)
        assert bench.forwarded() == (WRITE, unique)
        assert lib.ledger_written(bench.ledger) == 0


def test_python_that_reads_nothing_holds_no_command_up() -> None:
    """Python waits for a command's end (withdraw) while its socket is full: the command must end."""
    with running(slots=16) as bench:
        bench.publish(4)
        read = bench.ask_read(0)
        cid = bench.command()[1]
        data = bytes(lib.FE_MAX_WRITE)
        sent = [bench.ask_write(0, data, inode=INODE + 1) for _ in range(12)]
        wait_until(lambda: bench.statistics().forwarded >= 3)
        lib.dm_withdraw(bench.map, INODE)
        bench.complete(cid)
        assert bench.answer()[0] == read
        assert lib.dm_busy(bench.map, INODE) == 0
        assert [bench.forwarded()[1] for _ in sent] == sent
        last = bench.ask(READLINK, b"")
        assert bench.forwarded() == (READLINK, last)


def test_it_stops_while_python_reads_nothing() -> None:
    with running(slots=4) as bench:
        for _ in range(12):
            bench.kernel.setblocking(False)
            try:
                bench.ask_write(0, bytes(lib.FE_MAX_WRITE))
            except BlockingIOError:
                break
        started = time.monotonic()
    assert time.monotonic() - started < BOUND_S


@pytest.mark.parametrize("slots", [1, 8])
def test_it_ends_with_the_mount(slots: int) -> None:
    with running(slots=slots) as bench:
        for _ in range(slots):
            bench.ask_read(0)
            bench.forwarded()
        bench.kernel.close()
        assert select.select([bench.ended_fd], [], [], BOUND_S)[0]


def test_a_controller_given_up_ends_all_service_by_the_drive() -> None:
    """What is under way fails; requests go on, through Python alone, with as many slots as before."""
    with running(slots=2, left=2) as bench:
        bench.publish(4)
        bench.publish(4, INODE + 1)
        lost = [bench.ask_read(0), bench.ask_write(1, b"x" * BLOCK_BYTES)]
        late = [bench.command()[1] for _ in lost]
        bench.want(ring_lib.NV_LEASE_END)
        assert sorted(bench.answer()[:2] for _ in lost) == [(unique, 5) for unique in lost]
        assert select.select([bench.drain_fd], [], [], BOUND_S)[0]
        assert bench.statistics().lost == 2
        assert lib.dm_count(bench.map) == 0
        wait_until(lambda: not ring_lib.nv_lease_used(bench.lease))
        bench.publish(4)
        for cid in late:
            bench.complete(cid)
        for _ in range(10):
            unique = bench.ask_read(0)
            assert bench.forwarded() == (READ, unique)
            unique = bench.ask_write(0, b"y" * BLOCK_BYTES)
            assert bench.forwarded() == (WRITE, unique)


def test_a_late_command_is_reported_and_fails_when_it_was_aborted() -> None:
    with running(timeout_ns=10**8) as bench:
        bench.publish(4)
        unique = bench.ask_read(0)
        cid = bench.command()[1]
        assert select.select([bench.attention_fd], [], [], BOUND_S)[0]
        wait_until(lambda: bench.late() == {cid: 1})
        bench.complete(cid, status=ABORTED)
        assert bench.answer()[:2] == (unique, 5)
        assert bench.statistics().expired == 1
        unique = bench.ask_read(0)  # the next one has nothing to do with it
        bench.complete(bench.command()[1])
        assert bench.answer() == (unique, 0, bytes(BLOCK_BYTES))


def test_after_a_reset_all_is_sent_again_but_what_was_lost() -> None:
    with running(timeout_ns=10**8) as bench:
        bench.publish(4)
        lost = bench.ask_read(0)
        cid = bench.command()[1]
        wait_until(lambda: bench.late() == {cid: 2})
        innocent = [bench.ask_read(1), bench.ask_write(2, b"x" * BLOCK_BYTES)]
        assert [bench.command()[0] for _ in innocent] == [2, 1]
        bench.reset()
        assert bench.answer()[:2] == (lost, 5)
        for unique, opcode in zip(innocent, (2, 1), strict=True):
            found, again = bench.command()
            assert found == opcode
            bench.complete(again)
            assert bench.answer()[:2] == (unique, 0)
        assert bench.statistics().expired == 1
        assert bench.statistics().lost == 0


def test_while_the_driver_has_the_ring_requests_are_forwarded() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_read(0)
        bench.command()
        bench.want(ring_lib.NV_LEASE_PARK)
        wait_until(lambda: not ring_lib.nv_lease_used(bench.lease))
        other = bench.ask_write(1, b"y" * BLOCK_BYTES)
        assert bench.forwarded() == (WRITE, other)
        bench.reset()
        bench.complete(bench.command()[1])
        assert bench.answer() == (unique, 0, bytes(BLOCK_BYTES))


def test_a_thread_with_nothing_under_way_does_not_hold_a_reset_up() -> None:
    with running() as bench:
        bench.publish(4)
        for _ in range(3):
            unique = bench.ask_read(0)
            bench.complete(bench.command()[1])
            assert bench.answer()[0] == unique
            wait_until(lambda: not ring_lib.nv_lease_used(bench.lease))
            bench.reset()


def test_commands_of_one_request_are_sent_again_together() -> None:
    """The first part had completed: reading and writing twice is harmless."""
    with running() as bench:
        table = ffi.new("struct dm_extent[2]")
        table[0].file_block, table[0].start, table[0].count = 0, FIRST_BLOCK, 1
        table[1].file_block, table[1].start, table[1].count = 1, 2 * FIRST_BLOCK, 1
        assert not lib.dm_publish(bench.map, 5, 2 * BLOCK_BYTES, table, 2)
        unique = bench.ask_write(0, bytes(2 * BLOCK_BYTES), inode=5)
        first = bench.command()[1]
        bench.command()
        bench.complete(first)
        wait_until(lambda: ring_lib.nv_ring_inflight(bench.ring) == 1)
        bench.reset()
        for _ in range(2):
            bench.complete(bench.command()[1])
        assert bench.answer()[:2] == (unique, 0)


def test_a_reset_after_the_mount_has_ended() -> None:
    """Commands are under way when the kernel goes: the ladder still has its chance."""
    with running() as bench:
        bench.publish(4)
        bench.ask_write(0, b"z" * BLOCK_BYTES)
        bench.command()
        bench.kernel.close()
        bench.reset()
        bench.complete(bench.command()[1])
        assert select.select([bench.ended_fd], [], [], BOUND_S)[0]
        assert lib.ledger_written(bench.ledger) == 1


def test_the_wait_for_the_last_commands_is_bounded() -> None:
    with running(left=1) as bench:
        bench.publish(4)
        bench.ask_read(0)
        bench.command()
        started = time.monotonic()
    assert LAST_WAIT_NS / 1e9 <= time.monotonic() - started < BOUND_S


def test_without_an_interrupt_it_looks_by_itself_and_does_not_spin() -> None:
    with running(naps=True) as bench:
        bench.publish(4)
        for _ in range(20):
            unique = bench.ask_read(0)
            bench.complete(bench.command()[1])
            assert bench.answer()[0] == unique
        unique = bench.ask_read(0)
        cid = bench.command()[1]
        time.sleep(0.05)  # the naps have become long
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1
        bench.complete(cid)
        assert bench.answer()[0] == unique


def test_a_transfer_that_the_ring_refuses_is_forwarded() -> None:
    with running(list_pages=0) as bench:  # no room for the addresses of more than two pages
        bench.publish(256)
        unique = bench.ask_read(0, 8)
        assert bench.forwarded() == (READ, unique)
        unique = bench.ask_write(0, bytes(8 * BLOCK_BYTES))
        assert bench.forwarded() == (WRITE, unique)
        table = ffi.new("struct dm_extent[2]")
        table[0].file_block, table[0].start, table[0].count = 0, FIRST_BLOCK, 1
        table[1].file_block, table[1].start, table[1].count = 1, 2 * FIRST_BLOCK, 7
        assert not lib.dm_publish(bench.map, 5, 8 * BLOCK_BYTES, table, 2)
        unique = bench.ask_write(0, bytes(8 * BLOCK_BYTES), inode=5)
        bench.complete(bench.command()[1])
        assert bench.forwarded() == (WRITE, unique)
        assert lib.dm_busy(bench.map, 5) == 0


def test_withdrawing_all_leaves_what_is_under_way() -> None:
    with running() as bench:
        for inode in range(INODE, INODE + 20):
            bench.publish(4, inode)
        unique = bench.ask_read(0)
        cid = bench.command()[1]
        lib.dm_withdraw_all(bench.map)
        assert lib.dm_count(bench.map) == lib.dm_busy(bench.map, INODE) == 1
        forwarded = bench.ask_read(0)
        assert bench.forwarded() == (READ, forwarded)
        bench.complete(cid)
        assert bench.answer()[0] == unique
        assert lib.dm_count(bench.map) == 0


def served(bench: Bench) -> None:
    unique = bench.ask_read(0)
    bench.complete(bench.command()[1])
    assert bench.answer()[:2] == (unique, 0)


def test_the_next_request_is_found_without_a_sleep() -> None:
    with running(spin_ns=200_000_000) as bench:
        bench.publish(4)
        while not bench.statistics().found:
            served(bench)
        assert bench.statistics().vain <= 1  # before the first


def test_it_looks_about_in_vain_less_and_less_often() -> None:
    with running() as bench:
        bench.publish(4)
        for _ in range(40):
            served(bench)
            time.sleep(0.002)
        assert 0 < bench.statistics().vain < 12


def test_who_is_not_to_spin_never_looks_about() -> None:
    with running(spin_ns=0) as bench:
        bench.publish(4)
        for _ in range(20):
            served(bench)
        assert bench.statistics().found + bench.statistics().vain == 0
