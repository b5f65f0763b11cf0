"""Rings, doorbells, shadow doorbells, sleeping and waking."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.driver.embedded.harness import (
    ASYNC_EVENT,
    CFS,
    CSTS,
    DELETE_CQ,
    DELETE_SQ,
    FLUSH,
    IOVA,
    PAGE,
    READ,
    Host,
    Memory,
    command,
    rw,
    signalled,
)


@pytest.mark.parametrize("entries", [2, 3, 7, 64])
def test_wrap_around_and_phase(host: Host, entries: int) -> None:
    queue = host.create_queue(1, entries)
    rounds = 40 * entries
    for cid in range(rounds):
        reply = queue.run(command(FLUSH, nsid=1, cid=cid))
        assert (reply.cid, reply.status, reply.sq_id) == (cid, 0, 1)
        assert reply.sq_head == (cid + 1) % entries


def test_batches_of_random_size(host: Host) -> None:
    queue = host.create_queue(1, 32, 50)
    choose, cid = random.Random(3), 0
    at = IOVA + host.memory.take(PAGE)
    for _ in range(200):
        batch = choose.randint(1, 31)
        for i in range(batch):
            queue.push(rw(READ, i, 1, cid=(cid + i) & 0xFFFF, prp1=at))
        queue.ring()
        assert [reply.cid for reply in queue.reap(batch)] == [
            (cid + i) & 0xFFFF for i in range(batch)
        ]
        cid += batch


@pytest.mark.parametrize("shadow", [False, True])
def test_full_completion_queue_holds_commands_back(
    make_host: Callable[..., Host], shadow: bool
) -> None:
    host = make_host()
    host.enable()
    if shadow:
        host.use_shadow()
    queue = host.create_queue(1, 64, 5)
    for cid in range(50):
        queue.push(command(FLUSH, nsid=1, cid=cid))
    queue.ring()
    seen: list[int] = []
    while len(seen) < 50:
        # Four completions fit; nothing more comes before the head moves.
        found = queue.reap(min(4, 50 - len(seen)), ring_head=False)
        seen += [reply.cid for reply in found]
        time.sleep(0.002)
        assert queue.poll(ring_head=False) is None
        assert host.admin.run(command(FLUSH)).status != 0, "other queues go on"
        queue.ring_head()
    assert seen == list(range(50))


def test_many_queue_pairs(make_host: Callable[..., Host]) -> None:
    host = make_host(queues=64, vectors=3)
    host.enable()
    queues = [host.create_queue(qid, 8) for qid in range(1, 65)]
    for turn in range(20):
        for queue in queues:
            for i in range(7):
                queue.push(command(FLUSH, nsid=1, cid=(turn * 7 + i) << 6 | queue.qid % 64))
            queue.ring()
        for queue in queues:
            replies = queue.reap(7)
            assert {reply.sq_id for reply in replies} == {queue.qid}
            assert [reply.cid for reply in replies] == [
                (turn * 7 + i) << 6 | queue.qid % 64 for i in range(7)
            ]


def test_all_511_queue_pairs(make_host: Callable[..., Host]) -> None:
    host = make_host(queues=511)
    host.enable()
    queue = host.create_queue(511, 4)
    assert queue.run(command(FLUSH, nsid=1)).status == 0


def test_doorbell_by_register_write(host: Host) -> None:
    queue = host.create_queue(1)
    queue.push(command(FLUSH, nsid=1))
    host.transport.write32(0x1008, queue.tail)
    assert queue.reap()[0].status == 0


def error_event(host: Host) -> int:
    return host.admin.reap()[0].result


@pytest.mark.parametrize("shadow", [False, True])
def test_invalid_tail(make_host: Callable[..., Host], shadow: bool) -> None:
    host = make_host()
    host.enable()
    if shadow:
        host.use_shadow()
    queue = host.create_queue(1, 16)
    host.admin.push(command(ASYNC_EVENT, cid=9))
    host.admin.ring()
    host.doorbell(2, 16)
    assert error_event(host) == 0 | 1 << 8 | 1 << 16, "invalid doorbell value"
    assert queue.poll() is None
    assert host.error_log()[0][1] == 1
    assert queue.run(command(FLUSH, nsid=1)).status == 0, "a good value heals it"
    assert host.transport.read32(CSTS) & CFS == 0


def test_invalid_head(host: Host) -> None:
    """A head in front of what was posted would let entries be overwritten: refused."""
    queue = host.create_queue(1, 16, 4)
    host.admin.push(command(ASYNC_EVENT, cid=9))
    for cid in range(6):
        queue.push(command(FLUSH, nsid=1, cid=cid))
    host.admin.ring()
    queue.ring()
    found = queue.reap(3, ring_head=False)
    host.doorbell(3, 9)
    assert error_event(host) == 0 | 1 << 8 | 1 << 16
    assert queue.poll(ring_head=False) is None
    queue.ring_head()
    found += queue.reap(3)
    assert [reply.cid for reply in found] == list(range(6))


@pytest.mark.parametrize("index", [2 * 3, 2 * 3 + 1, 2 * 400])
def test_doorbell_of_no_queue(host: Host, index: int) -> None:
    host.admin.push(command(ASYNC_EVENT, cid=9))
    host.admin.ring()
    host.doorbells[index] = 1
    host.kick()
    assert error_event(host) == 0 | 0 << 8 | 1 << 16, "write to an invalid doorbell register"
    assert host.doorbells[index] == 0


def test_queue_numbers_are_used_again(host: Host) -> None:
    host.use_shadow()
    for turn in range(30):
        queue = host.create_queue(1, 8)
        for cid in range(turn % 7 + 1):
            assert queue.run(command(FLUSH, nsid=1, cid=cid)).cid == cid
        assert host.admin.run(command(DELETE_SQ, cdw=(1,))).status == 0
        assert host.admin.run(command(DELETE_CQ, cdw=(1,))).status == 0


def test_shadow_doorbells_take_over_queues_that_exist(host: Host) -> None:
    queue = host.create_queue(1, 8)
    for _ in range(5):
        assert queue.run(command(FLUSH, nsid=1)).status == 0
    host.use_shadow()
    assert struct.unpack_from("<II", host.memory.map, host.shadow + 8) == (5, 5)
    for _ in range(20):
        assert queue.run(command(FLUSH, nsid=1)).status == 0
    host.disable()
    host.enable()
    queue = host.create_queue(1, 8)
    assert queue.run(command(FLUSH, nsid=1)).status == 0, "registers again after a reset"


def test_shadow_buffer_taken_away_is_fatal(host: Host) -> None:
    extra = Memory(2 * PAGE, 0x4000_0000)
    host.transport.map(extra.fd, 0, 2 * PAGE, extra.iova)
    code = command(0x7C, prp1=extra.iova, prp2=extra.iova + PAGE)
    assert host.admin.run(code).status == 0
    host.transport.unmap(extra.iova, 2 * PAGE)
    extra.close()
    host.wait_csts(CFS, CFS)
    host.disable()
    host.enable()
    assert host.identify(1)[0].status == 0


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("poll_us", [0, 20])
def test_no_wakeup_is_lost(make_host: Callable[..., Host], shadow: bool, poll_us: int) -> None:
    """Thousands of doorbells, at distances about as long as the thread takes to fall asleep."""
    host = make_host("null:1G", poll_us=poll_us)
    host.enable()
    if shadow:
        host.use_shadow()
    queue = host.create_queue(1, 16)
    choose = random.Random(11)
    before = host.kicks
    for cid in range(6000):
        queue.push(command(FLUSH, nsid=1, cid=cid & 0xFFFF))
        queue.ring()
        assert queue.reap()[0].cid == cid & 0xFFFF
        pause = time.perf_counter() + choose.choice((0, 1, 3, 10, 30, 60)) * 1e-6
        while time.perf_counter() < pause:
            pass
    statistics = host.transport.statistics()
    assert statistics["sleeps"] > 100, "the sleeping path was not tested"
    if shadow and statistics["polls"] > 3000:
        assert host.kicks - before < 12000, "event indexes spare kicks"


def test_kick_is_spared_while_the_controller_is_awake(make_host: Callable[..., Host]) -> None:
    """Commands in flight on one queue keep it awake; doorbells of the other need no kick."""
    host = make_host("null:16G", mdts=0, memory_bytes=32 << 20)
    host.enable()
    host.use_shadow()
    queue = host.create_queue(1, 256)
    before = host.kicks
    for cid in range(200):
        queue.push(rw(12, cid * 65536, 65536, cid=cid))  # Verify: 32 MiB each
        queue.ring()
    queue.reap(200)
    assert host.kicks - before < 200


def test_idle_costs_no_cpu(make_host: Callable[..., Host]) -> None:
    host = make_host()
    queue = host.start()
    host.use_shadow()
    for _ in range(100):
        assert queue.run(command(FLUSH, nsid=1)).status == 0
    time.sleep(0.01)
    before = host.transport.cpu_ns()
    assert before > 0
    time.sleep(0.3)
    assert host.transport.cpu_ns() - before < 2_000_000
    sleeps = host.transport.statistics()["sleeps"]
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    assert host.transport.statistics()["sleeps"] >= sleeps


def test_interrupt_wakes_a_sleeping_host(host: Host) -> None:
    fds = host.interrupts(2)
    queue = host.create_queue(1, 16, vector=1)
    for cid in range(500):
        queue.push(command(FLUSH, nsid=1, cid=cid))
        queue.ring()
        assert signalled(fds[1])
        reply = queue.poll()
        assert reply is not None
        assert reply.cid == cid


def test_map_and_unmap_under_load(host: Host) -> None:
    """Regions come and go while another thread keeps the controller busy in other memory."""
    queue = host.create_queue(1, 32)
    at = IOVA + host.memory.take(PAGE)
    stop = threading.Event()
    failures: list[object] = []

    def load() -> None:
        while not stop.is_set():
            for cid in range(16):
                queue.push(rw(READ, cid, 8, cid=cid, prp1=at))
            queue.ring()
            failures.extend(reply for reply in queue.reap(16) if reply.status)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for i in range(300):
            extra = Memory(4 * PAGE, 0x10000)
            host.transport.map(extra.fd, 0, 4 * PAGE, 0x10000)
            if i % 2:
                host.transport.read32(CSTS)
            host.transport.unmap(0x10000, 4 * PAGE)
            extra.close()
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_close_under_load(make_host: Callable[..., Host]) -> None:
    for _ in range(20):
        host = make_host()
        queue = host.start()
        at = IOVA + host.memory.take(PAGE)
        for cid in range(63):
            queue.push(rw(READ, cid, 8, cid=cid, prp1=at))
        queue.ring()
        host.close()


def test_reset_under_load(host: Host) -> None:
    for _ in range(30):
        host.memory.used = 4 * PAGE
        queue = host.create_queue(1, 64)
        at = IOVA + host.memory.take(PAGE)
        for cid in range(63):
            queue.push(rw(READ, cid, 8, cid=cid, prp1=at))
        queue.ring()
        host.disable()
        host.enable()
