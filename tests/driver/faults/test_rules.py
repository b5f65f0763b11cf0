"""Each rule of the fault controller, seen by a host that shares nothing with the driver."""

from __future__ import annotations

import time

import pytest

from tests.driver.embedded.harness import (
    ABORT,
    CREATE_SQ,
    FLUSH,
    WRITE,
    WRITE_ZEROES,
    Host,
    Queue,
    command,
    rw,
)
from tests.driver.faults.hosts import (
    BLOCK,
    Make,
    read,
    silent,
    statistics,
    write,
    writing,
)

# ---- which commands ------------------------------------------------------------------------------


def statuses(host: Host, queue: Queue, count: int) -> list[int]:
    return [queue.run(rw(WRITE_ZEROES, lba, 1, cid=lba)).status for lba in range(count)]


@pytest.mark.parametrize(
    ("conditions", "hit"),
    [
        ("", {0, 1, 2, 3, 4, 5, 6, 7}),
        ("nth=3", {2}),
        ("every=3", {2, 5}),
        ("every=2 limit=2", {1, 3}),
        ("nth=2 every=3", set()),
        ("lba=4", {4}),
        ("lba=2-5 every=2", {3, 5}),
        ("p=1", {0, 1, 2, 3, 4, 5, 6, 7}),
        ("limit=1", {0}),
    ],
)
def test_conditions(make: Make, conditions: str, hit: set[int]) -> None:
    host = make(f"io:write_zeroes {conditions} status=0x280")
    found = statuses(host, host.start(), 8)
    assert {i for i, status in enumerate(found) if status} == hit
    assert statistics(host, "fault_hits") == len(hit)


@pytest.mark.parametrize(
    ("subject", "hit"),
    [
        ("any", [True, True]),
        ("io", [True, True]),
        ("q1", [True, False]),
        ("q2:write_zeroes", [False, True]),
        ("q2:0x08", [False, True]),
        ("io:write", [False, False]),
        ("admin", [False, False]),
    ],
)
def test_subjects(make: Make, subject: str, hit: list[bool]) -> None:
    host = make()
    queues = [host.start(), host.create_queue(2)]
    host.transport.set_faults([f"{subject} status=0x280"])
    assert [bool(queue.run(rw(WRITE_ZEROES, 0, 1)).status) for queue in queues] == hit


def test_the_first_rule_that_hits_decides_and_all_count(make: Make) -> None:
    host = make("io nth=2 status=0x281", "io nth=3 status=0x282", "io every=2 status=0x283")
    assert statuses(host, host.start(), 5) == [0, 0x281, 0x282, 0x283, 0]


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567890])
def test_the_same_seed_meets_the_same_faults(make: Make, seed: int) -> None:
    runs = []
    for _ in range(2):
        host = make("io p=0.3 status=0x281", seed=seed)
        runs.append(statuses(host, host.start(), 60))
        host.close()
    assert runs[0] == runs[1]
    assert 5 < sum(map(bool, runs[0])) < 35


def test_another_seed_meets_others(make: Make) -> None:
    runs = []
    for seed in range(2):
        host = make("io p=0.3 status=0x281", seed=seed)
        runs.append(statuses(host, host.start(), 60))
        host.close()
    assert runs[0] != runs[1]


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "stored"), [("drop", False), ("mute", True), ("never", False)])
def test_commands_that_never_complete(make: Make, action: str, stored: bool) -> None:
    host = make(f"io:write nth=1 {action}")
    queue = host.start()
    queue.push(writing(host, 3, 0xAA))
    queue.ring()
    assert silent(queue)
    assert (read(host, queue, 3)[1] == b"\xaa" * BLOCK) is stored


def test_a_lost_write_is_acknowledged(make: Make) -> None:
    host = make("io:write nth=1 lost")
    queue = host.start()
    assert write(host, queue, 3, 0xAA).status == 0
    assert read(host, queue, 3)[1] == bytes(BLOCK)
    write(host, queue, 3, 0xBB)
    assert read(host, queue, 3)[1] == b"\xbb" * BLOCK


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("status=0x280", (0x280, False)),
        ("status=0x281 dnr", (0x281, True)),
        ("status=7", (7, False)),
        ("status=0x3ff", (0x3FF, False)),
    ],
)
@pytest.mark.parametrize("executed", [False, True])
def test_status(make: Make, words: str, field: tuple[int, bool], executed: bool) -> None:
    host = make(f"io:write {words}" + " executed" * executed)
    queue = host.start()
    reply = write(host, queue, 3, 0xAA)
    assert (reply.status, reply.dnr) == field
    assert (read(host, queue, 3)[1] == b"\xaa" * BLOCK) is executed
    assert host.error_log()[0][3] & 0x7FF == field[0]


@pytest.mark.parametrize("crd", [1, 2, 3])
def test_retry_delay(make: Make, crd: int) -> None:
    host = make(f"io status=0x280 crd={crd}")
    queue = host.start()
    write(host, queue, 3, 0)
    status = int.from_bytes(host.memory.map[queue.cq + 14 : queue.cq + 16], "little")
    assert status >> 12 & 3 == crd


def test_delay_by_time(make: Make) -> None:
    host = make("io:write nth=1 delay=150ms")
    queue = host.start()
    start = time.monotonic()
    queue.push(writing(host, 3, 0xAA, cid=7))
    queue.ring()
    assert read(host, queue, 3)[1] == bytes(BLOCK)  # overtaken
    assert queue.reap()[0].cid == 7
    assert time.monotonic() - start >= 0.15
    assert read(host, queue, 3)[1] == b"\xaa" * BLOCK


def test_delay_behind_other_commands(make: Make) -> None:
    host = make("io:flush nth=1 behind=3")
    queue = host.start()
    for cid in (10, 11, 12, 13, 14):
        queue.push(
            command(FLUSH, cid=cid, nsid=1) if cid == 10 else rw(WRITE_ZEROES, 0, 1, cid=cid)
        )
    queue.ring()
    order = [completion.cid for completion in queue.reap(5)]
    assert sorted(order) == [10, 11, 12, 13, 14]
    assert order.index(10) >= 3


def test_a_delayed_write_takes_what_is_in_memory_when_it_is_executed(make: Make) -> None:
    host = make("io:write nth=1 delay=150ms")
    queue = host.start()
    page = host.memory.take(BLOCK)
    queue.push(rw(WRITE, 3, 1, prp1=host.iova(page)))
    queue.ring()
    assert read(host, queue, 0)[0].status == 0
    host.memory.map[page : page + BLOCK] = b"\xcc" * BLOCK
    queue.reap()
    assert read(host, queue, 3)[1] == b"\xcc" * BLOCK


def test_a_command_that_waits_can_be_aborted(make: Make) -> None:
    host = make("io:write never", "admin:abort nth=2 lost")
    queue = host.start()
    for cid in (7, 8):
        queue.push(writing(host, 3, 0xAA, cid=cid))
    queue.ring()
    assert silent(queue, 0.005)
    abort = command(ABORT, cdw=(1 | 7 << 16,))
    reply = host.admin.run(abort)
    assert (reply.status, reply.result) == (0, 0)
    assert queue.reap()[0][:2] == (7, 7)
    assert host.admin.run(abort).result == 0  # lost: it says so and does nothing
    assert host.admin.run(abort).result == 1  # nothing of that name any more
    assert silent(queue, 0.005)


def test_an_aborted_command_completes_where_the_others_have_not_been_taken(make: Make) -> None:
    """The completion queue has a place for each command in flight, and none to spare."""
    host = make("io:write never")
    queue = host.start(entries=4)
    queue.push(writing(host, 3, 0xAA, cid=7))
    for cid in (8, 9):
        queue.push(command(FLUSH, nsid=1, cid=cid))
    queue.ring()
    assert [reply.cid for reply in queue.reap(2, ring_head=False)] == [8, 9]
    assert host.admin.run(command(ABORT, cdw=(1 | 7 << 16,))).result == 0
    assert queue.reap()[0][:2] == (7, 7)


def test_a_reset_forgets_commands_that_wait(make: Make) -> None:
    host = make("io:write delay=150ms")
    queue = host.start()
    queue.push(writing(host, 3, 0xAA))
    queue.ring()
    host.disable()
    host.enable()
    queue = host.create_queue(1)
    assert silent(queue, 0.2)
    assert read(host, queue, 3)[1] == bytes(BLOCK)


def test_a_deleted_queue_takes_along_what_waits(make: Make) -> None:
    host = make("io:write delay=150ms")
    queue = host.start()
    queue.push(writing(host, 3, 0xAA))
    queue.ring()
    assert silent(queue, 0.002)
    assert host.admin.run(command(0, cdw=(1,))).status == 0
    create = command(CREATE_SQ, prp1=host.iova(queue.sq), cdw=(1 | 63 << 16, 1 | 1 << 16))
    assert host.admin.run(create).status == 0
    assert silent(queue, 0.2)
