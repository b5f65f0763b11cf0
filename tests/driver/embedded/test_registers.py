"""Registers, bring-up, reset and shutdown (NVM Express 1.4, sections 3.1 and 7.6)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from driver.errors import ControllerGone, TransportError
from tests.driver.embedded.harness import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CC_ENABLE,
    CFS,
    CREATE_CQ,
    CREATE_SQ,
    CSTS,
    FLUSH,
    IDENTIFY,
    INTMC,
    INTMS,
    IOVA,
    PAGE,
    RDY,
    SHST_COMPLETE,
    VS,
    WRITE,
    Host,
    Queue,
    command,
    rw,
    signalled,
)


def test_capabilities(make_host: Callable[..., Host]) -> None:
    host = make_host(queue_entries=256)
    cap = host.transport.read64(CAP)
    assert cap & 0xFFFF == 255
    assert cap >> 16 & 1 == 1, "queues must be contiguous"
    assert cap >> 24 & 0xFF > 0, "time-out"
    assert cap >> 32 & 0xF == 0, "doorbell stride"
    assert cap >> 37 & 1 == 1, "NVM command set"
    assert cap >> 48 & 0xF == 0, "4 KiB pages"
    assert host.transport.read32(CAP) == cap & 0xFFFFFFFF
    assert host.transport.read32(CAP + 4) == cap >> 32
    assert host.transport.read32(VS) == 0x00010400
    assert host.transport.read32(CSTS) == 0
    assert host.transport.read32(CC) == 0
    assert host.transport.read64(0x38) == 0, "no controller memory buffer"


def test_registers_hold_what_is_written(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.transport.write64(ASQ, 0x1234_5678_9ABC_D000)
    assert host.transport.read64(ASQ) == 0x1234_5678_9ABC_D000
    host.transport.write32(ACQ + 4, 0x11)
    host.transport.write32(ACQ, 0x2FFF)
    assert host.transport.read64(ACQ) == 0x11_0000_2000
    host.transport.write32(AQA, 0xFFFF_FFFF)
    assert host.transport.read32(AQA) == 0x0FFF_0FFF
    host.transport.write64(CAP, 0)
    assert host.transport.read64(CAP) != 0


@pytest.mark.parametrize(("offset", "size"), [(2, 4), (0x2000, 4), (0x1FFC, 8), (-4, 4)])
def test_no_such_register(host: Host, offset: int, size: int) -> None:
    read = host.transport.read32 if size == 4 else host.transport.read64
    with pytest.raises(TransportError, match=r"no .*register"):
        read(offset)


def test_enable_and_reset(host: Host) -> None:
    queue = host.create_queue(1)
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    host.disable()
    assert host.transport.read32(CSTS) == 0
    assert host.transport.read32(AQA) != 0, "kept over a reset"
    assert not any(host.doorbells), "doorbells start at zero again"
    host.enable()
    again = host.create_queue(1)
    assert again.run(command(FLUSH, nsid=1)).status == 0


def test_nothing_is_executed_while_disabled(host: Host) -> None:
    host.disable()
    host.admin.push(command(IDENTIFY, nsid=1, prp1=IOVA))
    host.admin.ring()
    assert host.admin.poll() is None


def test_enable_right_after_disable(host: Host) -> None:
    """Not allowed without waiting for CSTS.RDY, but it must end enabled, after a full reset."""
    for _ in range(50):
        host.create_queue(1)
        host.memory.used = 8 * PAGE
        host.transport.write32(CC, CC_ENABLE & ~1)
        host.enable(wait=False)
        deadline = time.monotonic() + 5
        while host.transport.read32(CSTS) != RDY or any(host.doorbells):
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("cc", "aqa", "asq"),
    [
        (CC_ENABLE | 5 << 7, 0x001F001F, IOVA),  # page size above MPSMAX
        (CC_ENABLE | 1 << 4, 0x001F001F, IOVA),  # no such command set
        (CC_ENABLE | 1 << 11, 0x001F001F, IOVA),  # no such arbitration
        (CC_ENABLE, 0x00000000, IOVA),  # queues of one entry
        (CC_ENABLE, 0x0000001F, IOVA),
        (CC_ENABLE, 0x001F001F, 0x7000_0000_0000),  # queue in no memory
        (CC_ENABLE | 4 << 7, 0x001F001F, IOVA + PAGE),  # queue within a page of 64 KiB
    ],
)
def test_bad_configuration_is_fatal_and_curable(
    make_host: Callable[..., Host], cc: int, aqa: int, asq: int
) -> None:
    host = make_host()
    host.transport.write32(AQA, aqa)
    host.transport.write64(ASQ, asq)
    host.transport.write64(ACQ, IOVA + (1 << 20))
    host.transport.write32(CC, cc)
    assert host.wait_csts(CFS, CFS) & RDY == 0
    host.transport.write32(CC, 0)
    host.wait_csts(CFS, 0)
    host.enable()


@pytest.mark.parametrize("mps", [0, 1, 4])
def test_page_sizes(make_host: Callable[..., Host], image: Path, mps: int) -> None:
    host = make_host()
    size = PAGE << mps
    page = [size * i for i in range(1, 9)]  # aligned to the page size; page 0 stays unused
    host.admin.sq, host.admin.cq = page[0], page[1]
    host.enable(CC_ENABLE | mps << 7)
    queue = Queue(host, 1, 16, 16, page[2], page[3])
    create = command(CREATE_CQ, prp1=IOVA + queue.cq, cdw=(1 | 15 << 16, 1))
    assert host.admin.run(create).status == 0
    create = command(CREATE_SQ, prp1=IOVA + queue.sq, cdw=(1 | 15 << 16, 1 | 1 << 16))
    assert host.admin.run(create).status == 0
    # One transfer of two pages: PRP2 is the second page, whatever a page is.
    data = os.urandom(size)
    host.memory.map[page[6] : page[6] + size] = data
    write = rw(WRITE, 0, 2 * size // 512, prp1=IOVA + page[5], prp2=IOVA + page[6])
    assert queue.run(write).status == 0
    assert image.read_bytes()[size : 2 * size] == data


@pytest.mark.parametrize("notification", [1, 2])
def test_shutdown(host: Host, notification: int) -> None:
    queue = host.create_queue(1)
    host.transport.write32(CC, CC_ENABLE | notification << 14)
    assert host.wait_csts(0xC, SHST_COMPLETE) & RDY == RDY
    queue.push(command(FLUSH, nsid=1))
    queue.ring()
    time.sleep(0.02)
    assert queue.poll() is None, "nothing is executed after a shutdown"
    host.transport.unmap(IOVA, host.memory.size)
    assert host.transport.read32(CSTS) & CFS == 0
    host.transport.map(host.memory.fd, 0, host.memory.size, IOVA)
    host.disable()
    assert host.transport.read32(CSTS) == 0
    host.enable()


def test_shutdown_while_disabled(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.transport.write32(CC, 1 << 14)
    host.wait_csts(0xC, SHST_COMPLETE)


def test_interrupts_by_vector_and_mask(host: Host) -> None:
    first, second = host.interrupts(2)
    host.admin.run(command(FLUSH))
    assert signalled(first)
    queue = host.create_queue(1, vector=1)
    silent = host.create_queue(2)
    assert signalled(first)
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    assert signalled(second)
    assert silent.run(command(FLUSH, nsid=1)).status == 0
    assert not signalled(second, 0.02)
    host.transport.write32(INTMS, 1 << 1)
    assert host.transport.read32(INTMC) == 2
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    assert not signalled(second, 0.02)
    host.transport.write32(INTMC, 1 << 1)
    assert signalled(second), "raised while masked"
    host.transport.disable_interrupts()
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    assert not signalled(second, 0.02)
    with pytest.raises(TransportError, match="vectors"):
        host.transport.enable_interrupts([first] * 18)


def test_memory_taken_from_under_a_queue_is_fatal(host: Host) -> None:
    host.transport.unmap(IOVA, host.memory.size)
    host.wait_csts(CFS, CFS)
    host.doorbells[0] = 1
    host.kick()
    host.transport.map(host.memory.fd, 0, host.memory.size, IOVA)
    host.disable()
    host.enable()


def test_map_refuses(host: Host) -> None:
    memory = host.memory
    for fd, offset, length, iova, reason in [
        (memory.fd, 0, PAGE, IOVA, "exists"),
        (memory.fd, 0, 2 * PAGE, IOVA - PAGE, "exists"),
        (memory.fd, 0, PAGE, IOVA + memory.size - PAGE, "exists"),
        (memory.fd, 1, PAGE, 0x10000, "Invalid"),
        (memory.fd, 0, 100, 0x10000, "Invalid"),
        (memory.fd, 0, 0, 0x10000, "Invalid"),
        (memory.fd, memory.size, PAGE, 0x10000, "Invalid"),  # behind the end of the file
        (memory.fd, 0, 2 * PAGE, (1 << 64) - PAGE, "Invalid"),
        (-1, 0, PAGE, 0x10000, "descriptor"),
    ]:
        with pytest.raises(TransportError, match=reason):
            host.transport.map(fd, offset, length, iova)
    with pytest.raises(TransportError, match="No such"):
        host.transport.unmap(IOVA, PAGE)
    host.transport.map(memory.fd, 0, PAGE, IOVA - PAGE)
    host.transport.map(memory.fd, 0, PAGE, (1 << 64) - PAGE)
    host.transport.unmap(IOVA - PAGE, PAGE)
    host.transport.unmap((1 << 64) - PAGE, PAGE)


def test_closed(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.enable()
    host.transport.close()
    host.transport.close()
    with pytest.raises(ControllerGone, match="closed"):
        host.transport.read32(CSTS)
    with pytest.raises(ControllerGone):
        host.transport.write32(CC, 0)
    with pytest.raises(ControllerGone):
        host.transport.unmap(IOVA, host.memory.size)
