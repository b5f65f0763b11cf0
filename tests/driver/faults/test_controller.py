"""Rules about completions, registers and data, seen by a host that shares nothing with the driver."""

from __future__ import annotations

import time

import pytest

from tests.driver.embedded.harness import (
    ASYNC_EVENT,
    CAP,
    CC,
    CC_ENABLE,
    CFS,
    CSTS,
    GET_LOG,
    PAGE,
    RDY,
    SET_FEATURES,
    SHST_COMPLETE,
    WRITE,
    WRITE_ZEROES,
    command,
    rw,
    signalled,
)
from tests.driver.faults.hosts import (
    ALL_ONES,
    BLOCK,
    Make,
    read,
    silent,
    statistics,
    write,
)

# ---- completions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 3])
def test_duplicates(make: Make, copies: int) -> None:
    host = make(f"io nth=1 duplicate={copies}")
    queue = host.start()
    queue.push(rw(WRITE_ZEROES, 0, 1, cid=9))
    queue.ring()
    assert [reply.cid for reply in queue.reap(1 + copies)] == [9] * (1 + copies)
    assert silent(queue, 0.005)


def test_duplicates_never_overrun_the_completion_queue(make: Make) -> None:
    host = make("io duplicate=500")
    queue = host.start(8)
    queue.push(rw(WRITE_ZEROES, 0, 1, cid=9))
    queue.ring()
    assert len(queue.reap(7, ring_head=False)) == 7
    assert queue.poll() is None


@pytest.mark.parametrize(
    ("words", "cids"),
    [
        ("nth=2 cid=0xffff", [5, 0xFFFF, 7]),
        ("nth=2 cid=^0x1000", [5, 0x1006, 7]),
        ("nth=2 cid=stale", [5, 5, 7]),
        ("nth=1 cid=stale", [0xFFFF, 6, 7]),
    ],
)
def test_command_ids(make: Make, words: str, cids: list[int]) -> None:
    host = make(f"io {words}")
    queue = host.start()
    assert [queue.run(rw(WRITE_ZEROES, 0, 1, cid=cid)).cid for cid in (5, 6, 7)] == cids


def test_fields_of_a_completion(make: Make) -> None:
    host = make("io nth=1 sqid=513 sqhead=0xfff0 result=0xdeadbeef")
    queue = host.start()
    reply = queue.run(rw(WRITE_ZEROES, 0, 1))
    assert (reply.sq_id, reply.sq_head, reply.result) == (513, 0xFFF0, 0xDEADBEEF)


def test_a_stale_phase_hides_the_completion(make: Make) -> None:
    host = make("io nth=1 stale-phase")
    queue = host.start()
    for cid in (5, 6):
        queue.push(rw(WRITE_ZEROES, 0, 1, cid=cid))
    queue.ring()
    assert silent(queue)
    first, second = (
        host.memory.map[queue.cq + 16 * i + 12 : queue.cq + 16 * i + 16] for i in (0, 1)
    )
    assert (first[0], first[2] & 1) == (5, 0)
    assert (second[0], second[2] & 1) == (6, 1)


def test_a_lost_interrupt(make: Make) -> None:
    host = make("io nth=1 quiet")
    fds = host.interrupts(2)
    queue = host.start(vector=1)
    queue.run(rw(WRITE_ZEROES, 0, 1))
    assert signalled(fds[1], 0.02) == 0
    queue.run(rw(WRITE_ZEROES, 0, 1))
    assert signalled(fds[1]) == 1


def test_spurious_interrupts(make: Make) -> None:
    host = make("io nth=1 spurious drop")
    fds = host.interrupts(3)
    queue = host.start(vector=1)
    signalled(fds[0])  # of the admin queue
    queue.push(rw(WRITE_ZEROES, 0, 1))
    queue.ring()
    assert [signalled(fd) for fd in fds] == [1, 1, 1]
    assert silent(queue, 0.005)


@pytest.mark.parametrize("event", [0x010002, 0x020101, 0xFFFFFF, 0xAB07])
def test_events_that_say_anything(make: Make, event: int) -> None:
    host = make(f"io event={event}")
    queue = host.start()
    for _ in range(2):  # and again, though no log page was read
        host.admin.push(command(ASYNC_EVENT, cid=77))
        host.admin.ring()
        queue.run(rw(WRITE_ZEROES, 0, 1))
        reply = host.admin.reap()[0]
        assert (reply.cid, reply.status, reply.result) == (77, 0, event)


# ---- the controller ------------------------------------------------------------------------------


def test_fatal_status_until_reset(make: Make) -> None:
    host = make("io nth=2 fatal")
    queue = host.start()
    assert queue.run(rw(WRITE_ZEROES, 0, 1)).status == 0
    queue.push(rw(WRITE_ZEROES, 0, 1))
    queue.ring()
    host.wait_csts(CFS, CFS)
    assert silent(queue)
    host.disable()
    host.enable()
    assert host.create_queue(1).run(rw(WRITE_ZEROES, 0, 1)).status == 0


def test_gone_is_all_ones_for_good(make: Make) -> None:
    host = make("io nth=1 gone")
    queue = host.start()
    queue.push(rw(WRITE_ZEROES, 0, 1))
    queue.ring()
    host.wait_csts(ALL_ONES, ALL_ONES)
    host.transport.write32(CC, 0)
    host.transport.write32(CC, CC_ENABLE)
    assert host.transport.read64(CAP) == (1 << 64) - 1
    assert silent(queue)


def test_slow_enable_and_reset(make: Make) -> None:
    host = make("enable nth=2 delay=30ms", "reset nth=1 delay=150ms")
    queue = host.start()
    start = time.monotonic()
    host.transport.write32(CC, CC_ENABLE & ~1)
    assert host.transport.read32(CSTS) & RDY
    assert queue.run(rw(WRITE_ZEROES, 0, 1)).status == 0  # it goes on until RDY is 0
    host.wait_csts(RDY, 0)
    assert time.monotonic() - start >= 0.15
    start = time.monotonic()
    host.enable()
    assert time.monotonic() - start >= 0.03
    host.disable()
    host.enable()
    assert host.identify(1)[0].status == 0


@pytest.mark.parametrize("transition", ["enable", "reset", "shutdown"])
def test_never(make: Make, transition: str) -> None:
    host = make(f"{transition} never")
    host.enable(wait=transition != "enable")
    if transition == "reset":
        host.transport.write32(CC, CC_ENABLE & ~1)
    if transition == "shutdown":
        host.transport.write32(CC, CC_ENABLE | 1 << 14)
    time.sleep(0.02)
    expected = {"enable": 0, "reset": RDY, "shutdown": RDY}[transition]
    assert host.transport.read32(CSTS) & (RDY | SHST_COMPLETE) == expected


def test_an_enable_that_was_given_up_does_not_come_later(make: Make) -> None:
    host = make("enable nth=1 delay=150ms")
    host.enable(wait=False)
    host.transport.write32(CC, CC_ENABLE & ~1)
    time.sleep(0.2)
    assert not host.transport.read32(CSTS) & RDY
    host.enable()


def test_enable_ends_in_a_fatal_status(make: Make) -> None:
    host = make("enable nth=1 fatal")
    host.enable(wait=False)
    host.wait_csts(CFS | RDY, CFS)
    host.disable()
    host.enable()


def test_memory_is_seen_by_an_enable_that_follows_its_map(make: Make) -> None:
    """Also when another request of the host is being served just then."""
    for _ in range(60):
        host = make("io drop")
        host.enable()
        host.close()


def test_claims(make: Make) -> None:
    host = make("controller mqes=1 to=3 dstrd=2 css=0x41 mpsmin=1 mpsmax=5 mdts=9 grant=0xfffe/3")
    cap = host.transport.read64(CAP)
    assert (cap & 0xFFFF, cap >> 24 & 0xFF, cap >> 32 & 0xF, cap >> 37 & 0xFF) == (1, 3, 2, 0x41)
    assert (cap >> 48 & 0xF, cap >> 52 & 0xF, cap >> 16 & 1) == (1, 5, 1)
    host.enable()
    assert host.identify(1)[1][77] == 9
    assert host.identify(0, 1)[1][77] != 9
    reply = host.admin.run(command(SET_FEATURES, cdw=(7, 0)))
    assert reply.result == 0x3FFFE


@pytest.mark.parametrize("vectors", [0, 1, 5, 2048, 65535])
def test_vectors_claimed(make: Make, vectors: int) -> None:
    host = make(f"controller vectors={vectors}")
    assert host.transport.vectors == vectors


# ---- data ----------------------------------------------------------------------------------------


def test_bytes_of_admin_data(make: Make) -> None:
    host = make(
        "admin:identify select=1 nth=1 patch=4090:0102030405060708",
        "admin:identify select=1 nth=2 flip=0:ff00ff",
        "admin:get_log select=2 patch=508:aabbccdd",
    )
    host.enable()
    honest = host.identify(1)
    host.transport.set_faults(
        [
            "admin:identify select=1 nth=1 patch=4090:0102030405060708",
            "admin:identify select=1 nth=2 flip=0:ff00ff",
            "admin:get_log select=2 patch=508:aabbccdd",
        ]
    )
    patched, flipped = host.identify(1)[1], host.identify(1)[1]
    plain = bytes(a ^ b for a, b in zip(flipped[:3], b"\xff\x00\xff", strict=True)) + flipped[3:]
    assert patched[:4090] == plain[:4090]
    assert patched[4090:] == bytes((1, 2, 3, 4, 5, 6))  # clipped at the end of the page
    assert honest[0].status == 0
    page = host.memory.take(PAGE)
    host.admin.run(command(GET_LOG, nsid=ALL_ONES, prp1=host.iova(page), cdw=(2 | 127 << 16,)))
    assert bytes(host.memory.map[page + 508 : page + 516]) == b"\xaa\xbb\xcc\xdd\0\0\0\0"


def test_bits_rot_on_the_medium(make: Make) -> None:
    host = make("io:read nth=2 rot", seed=5)
    queue = host.start()
    write(host, queue, 3, 0)
    runs = [read(host, queue, 3)[1] for _ in range(3)]
    assert [sum(byte.bit_count() for byte in data) for data in runs] == [0, 1, 1]
    assert runs[1] == runs[2]


def test_misdirected_writes_and_reads(make: Make) -> None:
    host = make("io:write nth=1 misdirect=10", "io:read nth=3 misdirect=5")
    queue = host.start()
    write(host, queue, 3, 0xAA)
    assert read(host, queue, 3)[1] == bytes(BLOCK)
    assert read(host, queue, 13)[1] == b"\xaa" * BLOCK
    assert read(host, queue, 8)[1] == b"\xaa" * BLOCK
    blocks = (1 << 20) // BLOCK
    host.transport.set_faults(["io:write misdirect=1"])
    write(host, queue, blocks - 1, 0xBB)
    assert read(host, queue, 0)[1] == b"\xbb" * BLOCK


def test_memory_that_is_not_mapped_is_counted(make: Make) -> None:
    host = make("io:write delay=150ms")
    queue = host.start()
    other = 1 << 40
    host.transport.map(host.memory.fd, 0, PAGE, other)
    queue.push(rw(WRITE, 3, 1, prp1=other))
    queue.ring()
    host.transport.unmap(other, PAGE)
    assert queue.reap()[0].status == 4
    assert statistics(host, "stray_accesses") == 1


def test_rules_can_be_taken_back(make: Make) -> None:
    host = make("any:0x08 status=0x280", "controller mqes=1")
    queue = host.start()
    assert queue.run(rw(WRITE_ZEROES, 0, 1)).status
    host.transport.set_faults([])
    assert queue.run(rw(WRITE_ZEROES, 0, 1)).status == 0
    assert host.transport.read64(CAP) & 0xFFFF == 1023
