"""core/sync.c: FSYNC of published files, and the Flush commands that it takes."""

from __future__ import annotations

import os
import select
import socket

import pytest

from driver._core import lib as ring_lib
from nvmefs._core import lib
from tests.nvmefs.frontbench import (
    ABORTED,
    FSYNC,
    INODE,
    Bench,
    running,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")

FLUSH, WRITE = 0, 1
FAILED_FOR_GOOD = 0x4006  # internal error, do not retry
FAILED_FOR_NOW = 0x0006


def flush(bench: Bench) -> int:
    """The id of the Flush that has been submitted."""
    opcode, cid = bench.command()
    assert opcode == FLUSH
    return cid


def test_fsync_is_answered_when_a_flush_has_completed() -> None:
    with running() as bench:
        bench.publish(4)
        bench.write()
        unique = bench.ask_fsync()
        cid = flush(bench)
        assert lib.ledger_flushed(bench.ledger) == 0
        bench.complete(cid)
        assert bench.answer() == (unique, 0, b"")
        assert lib.ledger_flushed(bench.ledger) == 1
        counted = bench.statistics()
        assert (counted.fsyncs, counted.flushes, counted.forwarded) == (1, 1, 0)


def test_nothing_is_flushed_twice() -> None:
    with running() as bench:
        bench.publish(4)
        bench.write()
        bench.ask_fsync()
        bench.complete(flush(bench))
        bench.answer()
        for _ in range(3):
            unique = bench.ask_fsync()
            assert bench.answer() == (unique, 0, b"")
        assert bench.statistics().flushes == 1


def test_what_python_has_written_is_flushed_too() -> None:
    with running() as bench:
        bench.publish(4)
        lib.ledger_wrote(bench.ledger)
        unique = bench.ask_fsync()
        bench.complete(flush(bench))
        assert bench.answer() == (unique, 0, b"")


def test_what_python_has_flushed_is_not_flushed_again() -> None:
    with running() as bench:
        bench.publish(4)
        bench.write()
        lib.ledger_cover(bench.ledger, lib.ledger_written(bench.ledger))
        unique = bench.ask_fsync()
        assert bench.answer() == (unique, 0, b"")
        assert bench.statistics().flushes == 0


def test_a_drive_without_a_volatile_cache_is_not_asked() -> None:
    with running(volatile_cache=False) as bench:
        bench.publish(4)
        bench.write()
        unique = bench.ask_fsync()
        assert bench.answer() == (unique, 0, b"")
        assert bench.statistics().flushes == 0


def test_who_comes_while_a_flush_is_under_way_waits_for_the_next() -> None:
    """Its writes may have completed after the first was submitted. One is for all who wait."""
    with running(slots=16) as bench:
        bench.publish(4)
        bench.write()
        first = bench.ask_fsync()
        running_flush = flush(bench)
        bench.write(1)
        later = [bench.ask_fsync() for _ in range(7)]
        wait_until(lambda: bench.statistics().requests == 10)
        bench.complete(running_flush)
        assert bench.answer() == (first, 0, b"")
        assert lib.ledger_flushed(bench.ledger) == 1
        bench.complete(flush(bench))
        assert [bench.answer() for _ in later] == [(unique, 0, b"") for unique in later]
        assert lib.ledger_flushed(bench.ledger) == 2
        assert bench.statistics().flushes == 2


@pytest.mark.parametrize("data_only", [False, True])
def test_metadata_that_is_not_committed_is_pythons(data_only: bool) -> None:
    with running() as bench:
        bench.publish(4)
        lib.dm_commit(bench.map, 6)
        lib.dm_change(bench.map, INODE, 7, 7 if data_only else 6)
        bench.write()
        unique = bench.ask_fsync(data_only)
        assert bench.forwarded() == (FSYNC, unique)
        lib.dm_commit(bench.map, 7)
        unique = bench.ask_fsync(data_only)
        bench.complete(flush(bench))
        assert bench.answer() == (unique, 0, b"")


def test_times_alone_do_not_keep_fdatasync() -> None:
    with running() as bench:
        bench.publish(4)
        lib.dm_change(bench.map, INODE, 7, 0)
        bench.write()
        unique = bench.ask_fsync(data_only=True)
        bench.complete(flush(bench))
        assert bench.answer() == (unique, 0, b"")


def test_files_that_are_not_published_are_pythons() -> None:
    with running() as bench:
        unique = bench.ask_fsync()
        assert bench.forwarded() == (FSYNC, unique)
        bench.publish(4)
        lib.dm_withdraw(bench.map, INODE)
        unique = bench.ask_fsync()
        assert bench.forwarded() == (FSYNC, unique)
        bench.publish(4)
        unique = bench.ask(FSYNC, b"too short")
        assert bench.forwarded() == (FSYNC, unique)


@pytest.mark.parametrize("status", [FAILED_FOR_GOOD, ABORTED])
def test_after_a_failed_flush_nothing_counts_as_flushed(status: int) -> None:
    """Not those who wait for the next one either: it would say nothing of what the first has lost."""
    with running() as bench:
        bench.publish(4)
        bench.write()
        first = bench.ask_fsync()
        cid = flush(bench)
        second = bench.ask_fsync()
        wait_until(lambda: bench.statistics().requests == 3)
        bench.complete(cid, status)
        assert [bench.forwarded() for _ in range(2)] == [(FSYNC, first), (FSYNC, second)]
        assert lib.ledger_failed(bench.ledger)
        lib.ledger_cover(bench.ledger, 1)
        assert lib.ledger_flushed(bench.ledger) == 0
        third = bench.ask_fsync()
        assert bench.forwarded() == (FSYNC, third)


def test_a_flush_that_may_be_repeated_is_repeated_by_python() -> None:
    with running() as bench:
        bench.publish(4)
        bench.write()
        unique = bench.ask_fsync()
        bench.complete(flush(bench), FAILED_FOR_NOW)
        assert bench.forwarded() == (FSYNC, unique)
        assert not lib.ledger_failed(bench.ledger)
        assert lib.ledger_flushed(bench.ledger) == 0


def test_a_failure_elsewhere_meanwhile() -> None:
    with running() as bench:
        bench.publish(4)
        bench.write()
        unique = bench.ask_fsync()
        cid = flush(bench)
        lib.ledger_fail(bench.ledger)
        bench.complete(cid)
        assert bench.forwarded() == (FSYNC, unique)


def test_after_a_reset_the_flush_is_sent_again() -> None:
    with running(slots=16) as bench:
        bench.publish(4)
        bench.write()
        asked = [bench.ask_fsync()]
        flush(bench)
        asked += [bench.ask_fsync(), bench.ask_write(1, b"y" * 4096)]
        assert bench.command()[0] == WRITE
        bench.reset()
        assert [opcode for opcode, cid in (bench.command(), bench.command())] == [WRITE, FLUSH]
        taken = bench.taken
        for index in range(2):
            bench.complete(bench.sent(taken - 2 + index))
        assert sorted(bench.answer()[:2] for _ in asked) == [
            (unique, 0) for unique in sorted(asked)
        ]
        assert lib.ledger_flushed(bench.ledger) == 1  # not the write that was under way with it


def test_a_flush_that_is_lost_is_a_failure() -> None:
    with running(timeout_ns=10**8) as bench:
        bench.publish(4)
        bench.write()
        unique = bench.ask_fsync()
        cid = flush(bench)
        wait_until(lambda: bench.late() == {cid: 2})
        bench.reset()
        assert bench.forwarded() == (FSYNC, unique)
        assert lib.ledger_failed(bench.ledger)


def test_a_controller_given_up_answers_no_fsync() -> None:
    with running() as bench:
        bench.publish(4)
        bench.write()
        asked = [bench.ask_fsync()]
        flush(bench)
        asked.append(bench.ask_fsync())
        wait_until(lambda: bench.statistics().requests == 3)
        bench.want(ring_lib.NV_LEASE_END)
        assert [bench.forwarded() for _ in asked] == [(FSYNC, unique) for unique in asked]


def test_completions_that_come_together_are_told_apart() -> None:
    """The next Flush is sent while others' completions are still to be looked at: it must not get theirs."""
    with running() as bench:
        bench.publish(4)
        bench.write()
        first = bench.ask_fsync()
        flushing = flush(bench)
        second, write = bench.ask_fsync(), bench.ask_write(1, b"x" * 4096)
        written = bench.command()[1]
        wait_until(lambda: bench.statistics().requests == 4)
        bench.complete(flushing, wake=False)
        bench.complete(written)
        assert {bench.answer()[:2] for _ in range(2)} == {(first, 0), (write, 0)}
        bench.complete(flush(bench))
        assert bench.answer() == (second, 0, b"")


def test_a_full_ring_is_waited_for() -> None:
    """The Flush goes as soon as a command has completed."""
    with running(slots=80) as bench:
        bench.publish(128)
        bench.write()
        reads = [bench.ask_read(block) for block in range(63)]
        cids = [bench.command()[1] for _ in reads]
        unique = bench.ask_fsync()
        wait_until(lambda: bench.statistics().requests == 65)
        bench.complete(cids[0])
        assert bench.answer()[0] == reads[0]
        bench.complete(flush(bench))
        assert bench.answer() == (unique, 0, b"")
        for cid, read in zip(cids[1:], reads[1:], strict=True):
            bench.complete(cid)
            assert bench.answer()[0] == read


def pair(bench: Bench) -> tuple[bool, bool]:
    """A write, and an fsync: whether the one had FUA, and the other took a Flush."""
    flushes = bench.statistics().flushes
    bench.write()
    fua = bench.has_fua
    unique = bench.ask_fsync()
    wait_until(lambda: bench.has_command or readable(bench.kernel))
    if bench.has_command:
        bench.complete(flush(bench))
    assert bench.answer() == (unique, 0, b"")
    return fua, bool(bench.statistics().flushes > flushes)


def readable(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 0)[0])


def test_a_write_that_an_fsync_will_follow_is_durable_by_itself() -> None:
    with running() as bench:
        bench.publish(4)
        found = [pair(bench) for _ in range(2 * lib.FE_FUA_STREAK)]
        assert found == [(False, True)] * lib.FE_FUA_STREAK + [(True, False)] * lib.FE_FUA_STREAK
        bench.write()  # still expected to be followed by one
        bench.write()
        unique = bench.ask_fsync()
        wait_until(lambda: readable(bench.kernel))
        assert bench.answer() == (unique, 0, b"")
        assert pair(bench) == (False, True)  # a Flush is for several writes


def test_a_write_among_others_is_not() -> None:
    with running() as bench:
        bench.publish(8)
        for _ in range(lib.FE_FUA_STREAK):
            pair(bench)
        first, second = bench.ask_write(0, b"x" * 4096), bench.ask_write(4, b"y" * 4096)
        found = []
        for _ in range(2):
            cid = bench.command()[1]
            found.append((bench.has_fua, cid))
        assert [fua for fua, _ in found] == [True, False]
        for _, cid in found:
            bench.complete(cid)
        assert {bench.answer()[0], bench.answer()[0]} == {first, second}
        unique = bench.ask_fsync()
        bench.complete(flush(bench))
        assert bench.answer()[0] == unique


def test_large_writes_and_drives_without_fua_are_flushed() -> None:
    with running(fua=False) as bench:
        bench.publish(4)
        assert [pair(bench) for _ in range(2 * lib.FE_FUA_STREAK)] == [(False, True)] * (
            2 * lib.FE_FUA_STREAK
        )
    with running() as bench:
        bench.publish(32)
        for _ in range(lib.FE_FUA_STREAK):
            pair(bench)
        unique = bench.ask_write(0, bytes(lib.FE_FUA_BYTES + 4096))
        bench.complete(bench.command()[1])
        assert not bench.has_fua
        assert bench.answer()[0] == unique
