"""driver/core/ring.h, with the test as the controller."""

from __future__ import annotations

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


def test_an_absurd_head_is_counted_and_not_used() -> None:
    ring = Ring()
    cid = ring.push()
    ring.answer(cid, sq_head=DEPTH)
    assert len(ring.reap()) == 1
    assert (ring.ring.bad_sq_head, ring.ring.sq_head) == (1, 0)


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
    assert (ring.ring.poll_misses, ring.ring.poll[0].skip) == (1, 1)
    assert ring.ring.latency_ns[0].count == 1


def test_expired() -> None:
    ring = Ring()
    early = lib.nv_ring_push(ring.ring, commands.flush(1), 0, 0, 1)
    ring.push()
    cids = ffi.new("uint16_t[4]")
    later = lib.nv_now_ns() + 10
    assert lib.nv_ring_expired(ring.ring, later, cids, 4) == 1
    assert cids[0] == early
    lib.nv_ring_extend(ring.ring, early, later + 1000)
    assert lib.nv_ring_expired(ring.ring, later, cids, 4) == 0


@pytest.mark.parametrize("depth", [0, 1, 4096, 1 << 20])
def test_depths_that_are_refused(depth: int) -> None:
    none = ffi.NULL
    assert lib.nv_ring_new(1, depth, none, none, none, 0, 1, 4096) == ffi.NULL
