"""driver/core/ring.h, with the test as the controller."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from driver import commands
from driver._core import ffi, lib

DEPTH = 4


class Ring:
    """A ring in ordinary memory, and the controller's side of it."""

    def __init__(self, depth: int = DEPTH, qid: int = 1) -> None:
        self.depth = depth
        self.sq = ffi.new("char[]", depth * 64)
        self.cq = ffi.new("char[]", depth * 16)
        self.lists = ffi.new("char[]", depth * 4096)
        raw = lib.nv_ring_new(qid, depth, self.sq, self.cq, self.lists, 0x100000, 1, 4096)
        self.ring: Any = ffi.gc(raw, lib.nv_ring_free)
        self.bells = ffi.new("uint32_t[2]")
        self.ring.sq_doorbell = self.bells
        self.ring.cq_doorbell = self.bells + 1
        self.tail = 0
        self.phase = 1

    def push(self, command: bytes | None = None, iova: int = 0, nbytes: int = 0) -> int:
        return int(lib.nv_ring_push(self.ring, command or commands.flush(1), iova, nbytes, 0))

    def answer(self, cid: int, status: int = 0, *, sq_head: int = 0, sqid: int = 1) -> None:
        entry = struct.pack("<IIHHHH", cid * 3, 0, sq_head, sqid, cid, status << 1 | self.phase)
        ffi.buffer(self.cq)[self.tail * 16 : self.tail * 16 + 16] = entry
        self.tail += 1
        if self.tail == self.depth:
            self.tail, self.phase = 0, self.phase ^ 1

    def reap(self) -> list[tuple[int, int, int]]:
        n = lib.nv_ring_reap(self.ring) & 0x7FFFFFFF
        done = [(d.cid, d.status, d.result) for d in ffi.unpack(self.ring.done, n)]
        self.ring.done_count = 0
        return done


def test_fills_and_wraps() -> None:
    ring = Ring()
    for turn in range(25):
        cids = [ring.push() for _ in range(DEPTH - 1)]
        assert len(set(cids)) == DEPTH - 1
        assert ring.push() == lib.NV_RING_FULL
        assert lib.nv_ring_doorbell(ring.ring) == 0
        assert ring.bells[0] == (turn + 1) * (DEPTH - 1) % DEPTH
        assert ring.reap() == []
        for cid in reversed(cids):
            ring.answer(cid)
        assert ring.reap() == [(cid, 0, cid * 3) for cid in reversed(cids)]
        assert ring.bells[1] == (turn + 1) * (DEPTH - 1) % DEPTH
    assert ring.ring.completed == 25 * (DEPTH - 1)
    assert ring.ring.bad_cid == 0


def test_the_command_is_copied_with_id_and_prps() -> None:
    ring = Ring()
    cid = ring.push(commands.read(7, 1 << 33, 8), 0x5000, 4096)
    raw = bytes(ffi.buffer(ring.sq)[0:64])
    opcode, flags, id_, nsid, _, _, prp1, prp2 = struct.unpack_from("<BBHIQQQQ", raw)
    assert (opcode, flags, id_, nsid, prp1, prp2) == (2, 0, cid, 7, 0x5000, 0)
    assert struct.unpack_from("<QI", raw, 40) == (1 << 33, 7)


def test_the_list_of_each_slot_is_its_own() -> None:
    ring = Ring()
    seen = set()
    for _ in range(DEPTH - 1):
        cid = ring.push(commands.read(1, 0, 8), 0x8000, 3 * 4096)
        at = (ring.ring.sq_tail - 1) * 64
        prp2 = struct.unpack_from("<Q", bytes(ffi.buffer(ring.sq)[at : at + 64]), 32)[0]
        assert prp2 == 0x100000 + (cid & 0xFFF) * 4096
        index = (cid & 0xFFF) * 4096
        entries = struct.unpack_from("<QQQ", bytes(ffi.buffer(ring.lists)[index : index + 24]))
        assert entries == (0x9000, 0xA000, 0)
        seen.add(prp2)
    assert len(seen) == DEPTH - 1


def test_a_refused_buffer_changes_nothing() -> None:
    ring = Ring()
    assert ring.push(iova=0x5001, nbytes=4) == lib.NV_PRP_UNALIGNED
    assert ring.push(iova=0x5000, nbytes=600 * 4096) == lib.NV_PRP_TOO_LONG
    assert ring.ring.sq_tail == 0
    assert lib.nv_ring_inflight(ring.ring) == 0


@pytest.mark.parametrize("wrong", ["range", "idle", "stale", "duplicate", "queue"])
def test_a_completion_nobody_waits_for(wrong: str) -> None:
    ring = Ring()
    old = ring.push()
    ring.answer(old)
    ring.reap()
    cid = ring.push()
    expect = []
    if wrong == "range":
        ring.answer(0xFFFF)
    elif wrong == "idle":
        ring.answer((cid & 0xF000) | ((cid + 1) & 0xFFF))
    elif wrong == "stale":
        assert old & 0xFFF == cid & 0xFFF
        ring.answer(old)
    elif wrong == "queue":
        ring.answer(cid, sqid=2)
    else:
        ring.answer(cid)
        ring.answer(cid)
        expect = [cid]
    assert [cid for cid, _, _ in ring.reap()] == expect
    assert ring.ring.bad_cid == 1
    assert lib.nv_ring_inflight(ring.ring) == 1 - len(expect)
    if not expect:  # the right answer is still accepted
        ring.answer(cid)
        assert [cid for cid, _, _ in ring.reap()] == [cid]


def test_an_absurd_head_is_not_used() -> None:
    """A slot is free when its command has completed: what the controller says of its head is not needed."""
    ring = Ring()
    for _ in range(3 * DEPTH):
        ring.answer(ring.push(), sq_head=0xFFFF)
        assert len(ring.reap()) == 1


def test_shadow_doorbells_ring_only_across_the_event_index() -> None:
    ring = Ring(depth=16)
    shadow, event = ffi.new("uint32_t[2]"), ffi.new("uint32_t[2]")
    ring.ring.sq_shadow, ring.ring.cq_shadow = shadow, shadow + 1
    ring.ring.sq_event, ring.ring.cq_event = event, event + 1
    ring.push()
    lib.nv_ring_doorbell(ring.ring)
    assert (shadow[0], ring.bells[0]) == (1, 1)  # event index 0: tell me about 1
    ring.push()
    lib.nv_ring_doorbell(ring.ring)
    assert (shadow[0], ring.bells[0]) == (2, 1)  # it is awake: nothing to ring
    event[0] = 2
    ring.push()
    ring.push()
    lib.nv_ring_doorbell(ring.ring)
    assert (shadow[0], ring.bells[0]) == (4, 4)
    assert ring.ring.doorbells_saved == 1


@pytest.mark.parametrize("depth", [2, 3, 16])
def test_need_event_by_brute_force(depth: int) -> None:
    """Ring exactly when the tail moves past the event index, on a ring of any size."""
    for old in range(depth):
        for steps in range(1, depth):
            fresh = (old + steps) % depth
            passed = [(old + i) % depth for i in range(steps)]
            for event in range(depth):
                if fresh < old and depth != 1 << 16:
                    # Indexes are modulo the ring, the formula modulo 2^16: it may ring once too often
                    # on a wrap, never too seldom.
                    assert not (event in passed and not lib.nv_ring_need_event(event, fresh, old))
                else:
                    assert bool(lib.nv_ring_need_event(event, fresh, old)) == (event in passed)


def test_doorbells_by_message() -> None:
    ring = Ring()
    ring.ring.sq_doorbell = ring.ring.cq_doorbell = ffi.NULL
    cid = ring.push()
    assert lib.nv_ring_doorbell(ring.ring) == 1
    assert lib.nv_ring_doorbell(ring.ring) == 0
    ring.answer(cid)
    assert lib.nv_ring_reap(ring.ring) == 0x80000001


def test_wait_polls_and_learns() -> None:
    ring = Ring()
    ring.ring.poll_max_ns = 200_000
    by_message = ffi.new("int *")
    cid = ring.push(commands.read(1, 0, 1), 0x1000, 512)
    other = ring.push()
    ring.answer(other, 0x281)
    ring.answer(cid, 0x4002)
    packed = lib.nv_ring_wait(ring.ring, cid, by_message)
    assert (packed & 0xFFFF, packed >> 16) == (0x4002, cid * 3)
    assert [(d.cid, d.status) for d in ring.ring.done[0:1]] == [(other, 0x281)]
    assert ring.ring.polled == 1
    ring.ring.done_count = 0
    cid = ring.push(commands.read(1, 0, 1), 0x1000, 512)
    assert lib.nv_ring_wait(ring.ring, cid, by_message) == lib.NV_RING_PENDING
    assert (ring.ring.poll_misses, ring.ring.poll[lib.NV_READ].skip) == (1, 1)
    latency = ring.ring.latency_ns[lib.NV_READ]
    assert lib.nv_histogram_count(ffi.addressof(latency)) == 1


def late(ring: Ring) -> list[tuple[int, int, int]]:
    """What has missed a deadline: id, kind, how many."""
    found = ffi.new("struct nv_late[]", DEPTH)
    count = lib.nv_ring_late(ring.ring, found, DEPTH)
    return [(each.cid, each.kind, each.missed) for each in found[0:count]]


def test_deadlines() -> None:
    ring = Ring()
    early = lib.nv_ring_push(ring.ring, commands.read(1, 0, 1), 0x1000, 512, 1)
    ring.push()
    now = lib.nv_now_ns() + 10
    assert lib.nv_ring_due(ring.ring, now)
    assert late(ring) == []
    assert lib.nv_ring_overdue(ring.ring, now, 1000) == 1
    assert late(ring) == [(early, lib.NV_READ, 1)]
    assert not lib.nv_ring_due(ring.ring, now + 999)
    assert lib.nv_ring_overdue(ring.ring, now + 999, 1000) == 0
    assert lib.nv_ring_overdue(ring.ring, now + 1000, 0) == 1
    assert late(ring) == [(early, lib.NV_READ, 2)]
    assert not lib.nv_ring_due(ring.ring, now + (1 << 62))  # no grace: no deadline any more
    ring.answer(early)
    assert len(ring.reap()) == 1
    assert late(ring) == []
    assert ring.ring.timeouts == 2
    again = ring.push()
    assert again & 0xFFF == early & 0xFFF
    assert late(ring) == []


def test_done_that_nobody_takes_does_not_overflow() -> None:
    """Commands complete while earlier completions are still in done[]."""
    ring = Ring()
    for turn in range(20):
        while (cid := ring.push()) >= 0:
            ring.answer(cid)
        lib.nv_ring_reap(ring.ring)
        assert ring.ring.done_count < 2 * DEPTH
        if turn % 5 == 4:
            ring.ring.done_count = 0
    assert ring.ring.bad_cid == 0


def test_a_lease_is_held_by_one_side_at_a_time() -> None:
    ring = Ring()
    lease = ffi.addressof(ring.ring, "lease")
    told = os.eventfd(0, os.EFD_NONBLOCK)
    lease.attention_fd = told
    assert lib.nv_lease_enter(lease)
    assert lib.nv_lease_used(lease)
    lib.nv_lease_ask(lease, lib.NV_LEASE_PARK)
    assert lib.nv_lease_wish(lease) == lib.NV_LEASE_PARK
    lib.nv_lease_leave(lease)
    assert os.eventfd_read(told) == 1
    assert not lib.nv_lease_enter(lease)
    assert not lib.nv_lease_used(lease)
    epoch = lease.epoch
    lib.nv_ring_reset(ring.ring)
    lib.nv_lease_ask(lease, lib.NV_LEASE_USE)
    assert lib.nv_lease_enter(lease)
    assert lease.epoch == epoch + 1
    lib.nv_lease_leave(lease)
    lib.nv_lease_ask(lease, lib.NV_LEASE_END)
    lib.nv_lease_ask(lease, lib.NV_LEASE_USE)  # too late
    assert not lib.nv_lease_enter(lease)
    os.close(told)


@pytest.mark.parametrize("depth", [0, 1, 4096, 1 << 20])
def test_depths_that_are_refused(depth: int) -> None:
    none = ffi.NULL
    assert lib.nv_ring_new(1, depth, none, none, none, 0, 1, 4096) == ffi.NULL
