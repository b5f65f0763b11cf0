"""What a process that serves the controller to others needs: a reset of the whole function, doorbells
that nobody kicks for, vectors without an eventfd, the doorbell page as a file.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable

import pytest

from tests.driver.embedded.harness import (
    ACQ,
    AQA,
    ASQ,
    CC,
    CSTS,
    FLUSH,
    INTMS,
    IOVA,
    SHST_COMPLETE,
    Host,
    command,
    signalled,
)


def _deaf(host: Host) -> None:
    """From now on doorbell stores of this host are not followed by a kick."""
    host.kick = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("shadow", [False, True])
def test_doorbells_without_kicks_are_found_by_looking(
    make_host: Callable[..., Host], shadow: bool
) -> None:
    host = make_host(poll_us=0)
    queue = host.start()
    if shadow:
        host.use_shadow()
    host.transport.controller.look_at_doorbells(True)
    _deaf(host)
    for cid in range(50):
        assert queue.run(command(FLUSH, nsid=1, cid=cid)).cid == cid
    time.sleep(0.1)  # naps have grown to their longest
    start = time.monotonic()
    queue.run(command(FLUSH, nsid=1, cid=99))
    assert time.monotonic() - start < 0.05, "naps of a host that does not kick stay short"


def test_looking_costs_little_and_nothing_once_the_host_kicks(
    make_host: Callable[..., Host],
) -> None:
    host = make_host(poll_us=0)
    queue = host.start()
    host.transport.controller.look_at_doorbells(True)
    _deaf(host)
    queue.run(command(FLUSH, nsid=1))
    before, cpu = host.transport.statistics()["sleeps"], host.transport.cpu_ns()
    time.sleep(0.5)
    naps = host.transport.statistics()["sleeps"] - before
    assert 100 <= naps <= 700, "one look a millisecond"
    assert host.transport.cpu_ns() - cpu < 100_000_000, "a fifth of a core would be too much"
    del host.kick
    for cid in range(20):
        queue.run(command(FLUSH, nsid=1, cid=cid))
        time.sleep(0.001)
    time.sleep(0.2)
    before = host.transport.statistics()["sleeps"]
    time.sleep(0.5)
    assert host.transport.statistics()["sleeps"] - before <= 20, "a host that kicks is let alone"
    host.transport.controller.look_at_doorbells(False)
    before = host.transport.statistics()["sleeps"]
    time.sleep(0.3)
    assert host.transport.statistics()["sleeps"] - before <= 1


def test_reset_of_the_function(host: Host) -> None:
    queue = host.create_queue(1)
    queue.run(command(FLUSH, nsid=1))
    host.transport.write32(INTMS, 6)
    host.transport.controller.reset()
    for register in (CC, CSTS, AQA, INTMS):
        assert host.transport.read32(register) == 0, f"register {register:#x}"
    assert host.transport.read64(ASQ) == host.transport.read64(ACQ) == 0
    assert host.doorbells[2] == 0, "doorbells are zero again"
    host.enable()
    assert host.create_queue(1).run(command(FLUSH, nsid=1)).status == 0


def test_reset_after_a_shutdown_and_after_a_failed_enable(host: Host) -> None:
    host.transport.write32(CC, 0x4001 | 6 << 16 | 4 << 20)
    host.wait_csts(0xC, SHST_COMPLETE)
    host.transport.controller.reset()
    assert host.transport.read32(CSTS) == 0
    host.transport.write32(CC, 1)  # no admin queue is set: CFS
    host.wait_csts(2, 2)
    host.transport.controller.reset()
    assert host.transport.read32(CSTS) == 0
    host.enable()


def test_queues_wait_for_memory_that_comes_back(host: Host) -> None:
    """As under a monitor whose guest's memory map changes: nothing is lost, nothing is fatal."""
    queue = host.create_queue(1)
    host.use_shadow()
    host.transport.controller.serve_others(True)
    for cid in range(20):
        host.transport.unmap(IOVA, host.memory.size)
        queue.push(command(FLUSH, nsid=1, cid=cid))
        queue.ring()  # while it is away
        assert host.transport.read32(CSTS) == 1, "ready, not failed"
        assert queue.poll() is None
        half = host.memory.size // 2
        host.transport.map(host.memory.fd, 0, half, IOVA)
        host.transport.map(host.memory.fd, half, half, IOVA + half)
        assert queue.reap()[0].cid == cid
        host.transport.unmap(IOVA + half, half)
        host.transport.unmap(IOVA, half)
        host.transport.map(host.memory.fd, 0, host.memory.size, IOVA)
    host.transport.unmap(IOVA, host.memory.size)
    host.transport.controller.reset()
    host.transport.map(host.memory.fd, 0, host.memory.size, IOVA)
    host.shadow = -1
    host.enable()
    assert host.create_queue(1).run(command(FLUSH, nsid=1)).status == 0


def test_vectors_without_an_eventfd(host: Host) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    host.eventfds.append(fd)
    host.transport.enable_interrupts([-1, -1, fd])
    silent, heard = host.create_queue(1, vector=1), host.create_queue(2, vector=2)
    assert silent.run(command(FLUSH, nsid=1)).status == 0
    assert heard.run(command(FLUSH, nsid=1)).status == 0
    assert signalled(fd) == 1


def test_an_eventfd_that_would_block_holds_nothing_up(host: Host) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    host.eventfds.append(fd)
    host.transport.controller.serve_others(True)
    host.transport.enable_interrupts([-1, fd])
    queue = host.create_queue(1, vector=1)
    os.eventfd_write(fd, 2**64 - 2)
    try:
        for cid in range(3):
            assert queue.run(command(FLUSH, nsid=1, cid=cid)).cid == cid
    finally:
        full = os.eventfd_read(fd)
    assert full == 2**64 - 2
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    assert signalled(fd) == 1


def test_the_doorbell_file_is_laid_out_as_bar0(host: Host) -> None:
    queue = host.create_queue(1)
    fd = host.transport.controller.doorbell_fd
    assert os.fstat(fd).st_size == 0x2000
    with mmap.mmap(fd, 0x2000) as bar:
        assert bar[:0x1000] == bytes(0x1000), "registers are not to be had this way"
        queue.push(command(FLUSH, nsid=1, cid=7))
        struct.pack_into("<I", bar, 0x1000 + 8, queue.tail)
        host.kick()
        assert queue.reap()[0].cid == 7
