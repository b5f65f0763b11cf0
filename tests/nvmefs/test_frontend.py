"""core/frontend.c and hot.c, with the test as the kernel, as pyfuse3 and as the controller."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from driver._core import ffi as ring_ffi
from driver._core import lib as ring_lib
from driver.interrupts import Wakeup
from nvmefs._core import ffi, lib
from nvmefs.layout import BLOCK_BYTES

IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>
READ_IN = WRITE_IN = struct.Struct("<QQIIQII")
READLINK, READ, WRITE = 5, 15, 16
ABORTED = 0x07
DEPTH = 64

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")
INODE = 77
FIRST_BLOCK = 1000
BOUND_S = 5.0
LAST_WAIT_NS = 3 * 10**8


def wait_until(condition: Callable[[], object]) -> None:
    """Look again until it holds; fails after the bound."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Bench:
    """A front end between three ends that are all the test's."""

    def __init__(self, slots: int, timeout_ns: int, list_pages: int, naps: bool = False) -> None:
        self.kernel, self.fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.python, self.requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.caller, self.upcalls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
        self.requests.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 << 20)
        self.kernel.settimeout(BOUND_S)
        self.python.settimeout(BOUND_S)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.drain_fd, self.ended_fd, self.vector_fd = (os.eventfd(0, flags) for _ in range(3))
        self.attention_fd = os.eventfd(0, flags)
        self.wakeup = Wakeup(-1 if naps else self.vector_fd)
        self.map: Any = lib.dm_new(self.drain_fd)
        self._make_ring(list_pages)
        self.memory = ffi.new("uint8_t[]", slots * lib.FE_SLOT_BYTES)
        config = ffi.new("struct fe_config *")
        config.fuse_fd, config.requests_fd = self.fuse.fileno(), self.requests.fileno()
        config.upcalls_fd, config.ended_fd = self.upcalls.fileno(), self.ended_fd
        config.map = self.map
        config.ring = ffi.cast("void *", int(ring_ffi.cast("uintptr_t", self.ring)))
        config.wakeup_fd = self.wakeup.fd
        config.naps = naps
        config.grace_ns = timeout_ns
        config.last_wait_ns = LAST_WAIT_NS
        config.nsid = 1
        config.lbas_per_block = 8
        config.max_transfer_blocks = 256
        config.timeout_ns = timeout_ns
        config.memory = self.memory
        config.memory_iova = 1 << 32
        config.slots = slots
        config.spin_ns = 1000
        self.handle: Any = lib.fe_start(config)
        assert self.handle != ffi.NULL
        self.unique = 0

    def _make_ring(self, list_pages: int) -> None:
        self.sq = ring_ffi.new("char[]", DEPTH * 64)
        self.cq = ring_ffi.new("char[]", DEPTH * 16)
        self.lists = ring_ffi.new("char[]", DEPTH * 4096)
        raw = ring_lib.nv_ring_new(
            1, DEPTH, self.sq, self.cq, self.lists, 0x100000, list_pages, 4096
        )
        self.ring: Any = ring_ffi.gc(raw, ring_lib.nv_ring_free)
        self.bells = ring_ffi.new("uint32_t[2]")
        self.ring.sq_doorbell = self.bells
        self.ring.cq_doorbell = self.bells + 1
        self.lease = ring_ffi.addressof(self.ring, "lease")
        self.lease.attention_fd = self.attention_fd
        self.taken = self.answered = 0

    # the controller

    def command(self) -> tuple[int, int]:
        """The next command that was submitted: its opcode and id."""
        wait_until(lambda: self.bells[0] != self.taken % DEPTH)
        at = self.taken % DEPTH * 64
        opcode, _, cid = struct.unpack_from("<BBH", ring_ffi.buffer(self.sq)[at : at + 4])
        self.taken += 1
        return opcode, cid

    def complete(self, cid: int, status: int = 0) -> None:
        phase = 1 ^ self.answered // DEPTH & 1
        at = self.answered % DEPTH * 16
        self.answered += 1
        entry = struct.pack("<IIHHHH", 0, 0, 0, 1, cid, status << 1 | phase)
        ring_ffi.buffer(self.cq)[at : at + 14] = entry[:14]
        ring_ffi.buffer(self.cq)[at + 14 : at + 16] = entry[14:]
        os.eventfd_write(self.vector_fd, 1)

    # the driver

    def want(self, wish: int) -> None:
        ring_lib.nv_lease_ask(self.lease, wish)
        self.wakeup.wake()

    def reset(self) -> None:
        """As the driver does it; what the thread had in flight is forgotten."""
        self.want(ring_lib.NV_LEASE_PARK)
        wait_until(lambda: not ring_lib.nv_lease_used(self.lease))
        ring_lib.nv_ring_reset(self.ring)
        self.bells[0] = self.bells[1] = 0
        self.taken = self.answered = 0
        self.want(ring_lib.NV_LEASE_USE)

    def late(self) -> dict[int, int]:
        found = ring_ffi.new("struct nv_late[]", DEPTH)
        count = ring_lib.nv_ring_late(self.ring, found, DEPTH)
        return {each.cid: each.missed for each in found[0:count]}

    # the kernel

    def ask(self, opcode: int, body: bytes, inode: int = INODE) -> int:
        """Send a request; its unique."""
        self.unique += 2
        head = IN_HEADER.pack(40 + len(body), opcode, self.unique, inode, 0, 0, 0, 0, 0)
        self.kernel.send(head + body)
        return self.unique

    def ask_read(self, block: int, count: int = 1, inode: int = INODE) -> int:
        body = READ_IN.pack(0, block * BLOCK_BYTES, count * BLOCK_BYTES, 0, 0, 0, 0)
        return self.ask(READ, body, inode)

    def ask_write(self, block: int, data: bytes, inode: int = INODE) -> int:
        body = WRITE_IN.pack(0, block * BLOCK_BYTES, len(data), 0, 0, 0, 0)
        return self.ask(WRITE, body + data, inode)

    def answer(self) -> tuple[int, int, bytes]:
        """The next answer: unique, errno, body."""
        message = self.kernel.recv(2 << 20)
        length, error, unique = OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[OUT_HEADER.size :]

    # Python

    def publish(self, blocks: int, inode: int = INODE) -> None:
        table = ffi.new("struct dm_extent[1]")
        table[0].file_block, table[0].start, table[0].count = 0, FIRST_BLOCK, blocks
        assert not lib.dm_publish(self.map, inode, blocks * BLOCK_BYTES, table, 1)

    def forwarded(self) -> tuple[int, int]:
        """The next request that reaches pyfuse3: opcode, unique."""
        _, opcode, unique, *_ = IN_HEADER.unpack_from(self.python.recv(2 << 20))
        return opcode, unique

    def statistics(self) -> Any:
        out = ffi.new("struct fe_statistics *")
        lib.fe_statistics(self.handle, out)
        return out

    def stop(self) -> int:
        left = int(lib.fe_stop(self.handle))
        for each in (self.kernel, self.fuse, self.python, self.requests, self.caller, self.upcalls):
            each.close()
        lib.dm_free(self.map)
        self.wakeup.close()
        for fd in (self.drain_fd, self.ended_fd, self.vector_fd, self.attention_fd):
            os.close(fd)
        return left


@contextmanager
def running(
    slots: int = 8,
    timeout_ns: int = 10**10,
    list_pages: int = 1,
    left: int = 0,
    naps: bool = False,
) -> Iterator[Bench]:
    """`left`: how many commands are expected to be without an answer in the end."""
    bench = Bench(slots, timeout_ns, list_pages, naps)
    try:
        yield bench
    finally:
        assert bench.stop() == left


def test_a_read_goes_to_the_drive_and_back() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_read(1)
        opcode, cid = bench.command()
        assert opcode == 2
        bench.complete(cid)
        assert bench.answer() == (unique, 0, bytes(BLOCK_BYTES))


def test_a_write_counts_before_it_is_answered() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_write(3, b"x" * BLOCK_BYTES)
        opcode, cid = bench.command()
        assert opcode == 1
        assert lib.fe_writes(bench.handle) == 0
        bench.complete(cid)
        assert bench.answer()[:2] == (unique, 0)
        assert lib.fe_writes(bench.handle) == 1


def test_what_the_drive_refuses_is_forwarded() -> None:
    with running() as bench:
        bench.publish(4)
        unique = bench.ask_write(3, b"x" * BLOCK_BYTES)
        bench.complete(bench.command()[1], status=0x280)
        assert bench.forwarded() == (WRITE, unique)
        assert lib.fe_writes(bench.handle) == 0


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
        assert lib.fe_writes(bench.handle) == 1


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
