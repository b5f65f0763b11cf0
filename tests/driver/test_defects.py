"""Defects that drivers of this kind have had, a test by the name of each.

All of them stay hidden from a driver that is tried on one well-behaved controller only.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
import trio.testing

from driver import (
    CommandError,
    CommandTimeout,
    Controller,
    ControllerError,
    ControllerFailed,
    ControllerGone,
    DriverOptions,
    InvalidRequest,
    Namespace,
    open_controller,
)
from driver.requests import worth_repeating
from driver.transports import Transport
from driver.transports.embedded import open_embedded

from .fake import FakeController, Fate, identify_controller, identify_namespace

KIB, MIB = 1 << 10, 1 << 20
CORE = Path(__file__).resolve().parents[2] / "driver" / "core"
QUICK = DriverOptions(
    command_timeout_s=0.08, admin_timeout_s=0.3, shutdown_timeout_s=0.2, poll_ns=0
)
Opened: TypeAlias = "tuple[Controller, Namespace]"


@asynccontextmanager
async def opened(
    transport: Transport, options: DriverOptions | None = None
) -> AsyncIterator[Opened]:
    with trio.fail_after(40):
        async with await open_controller(transport, options=options) as controller:
            yield controller, await controller.namespace()


def image(tmp_path: Path, nbytes: int = 16 * MIB) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, nbytes)
    return path


# ---- Number of Queues read as 1-based, the grant ignored -----------------------------------------


class Granting(FakeController):
    """Grants (submission, completion) queues as told, whatever was asked for."""

    grant = (1, 1)

    def _admin(self, command: bytes) -> tuple[int, int]:
        if command[0] == 0x09 and command[40] == 7:
            return 0, (self.grant[1] - 1) << 16 | self.grant[0] - 1
        return super()._admin(command)


@pytest.mark.parametrize("grant", [(1, 1), (1, 4), (3, 2), (5, 5), (8, 8), (64, 64), (65536, 1)])
async def test_the_queues_granted_are_the_queues_used(grant: tuple[int, int]) -> None:
    transport = Granting(io_queues=min(grant), vectors=9)
    transport.grant = grant
    async with opened(transport, DriverOptions(io_queues=8, poll_ns=0)) as (controller, namespace):
        usable = min(*grant, 8)
        assert controller.io_queues_granted == usable
        for _ in range(usable - 1):
            await controller.take_queue()
        with pytest.raises(ControllerError, match=f"{usable} I/O queues were granted"):
            await controller.take_queue()
        await namespace.read(0, bytearray(512))
    created = {c[40] | c[41] << 8 for qid, c in transport.log if qid == 0 and c[0] == 0x01}
    assert created == set(range(1, usable + 1))


# ---- more vectors asked for than the MSI-X table has ---------------------------------------------


@pytest.mark.parametrize(("queues", "vectors"), [(1, 1), (2, 1), (2, 2), (2, 3), (16, 3), (3, 0)])
async def test_vectors_are_shared_when_there_are_few(
    queues: int, vectors: int, tmp_path: Path
) -> None:
    """Two I/O queues and three vectors is what some clouds give."""
    transport = open_embedded(image(tmp_path), queues=queues, vectors=max(vectors, 1))
    if not vectors:
        transport.vectors = 0  # none: the driver looks by itself
    async with opened(transport, DriverOptions(poll_ns=0)) as (controller, namespace):
        data = os.urandom(64 * KIB)
        await namespace.write(7, data)
        out = bytearray(len(data))
        await namespace.read(7, out)
        assert out == data
        stats = controller.statistics()
        assert all((queue.vector or 0) < max(vectors, 1) for queue in stats.queues)
        assert (stats.interrupts > 0) == bool(vectors)
        assert sum(queue.lost_interrupts for queue in stats.queues) == 0


# ---- interrupt coalescing forced on every drive --------------------------------------------------


async def test_interrupt_coalescing_is_left_alone() -> None:
    transport = FakeController()
    async with opened(transport) as (_, namespace):
        await namespace.write(0, bytes(512))
    features = {c[40] for qid, c in transport.log if qid == 0 and c[0] == 0x09}
    assert features <= {0x07, 0x0B}  # Number of Queues, Asynchronous Event Configuration


# ---- only the first page of a buffer translated --------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_buffers_that_cross_and_scatter_pages(seed: int) -> None:
    """The fake controller walks PRPs by code of its own."""
    rng = random.Random(seed)
    transport = FakeController()
    async with opened(transport) as (_, namespace):
        pool = namespace.dma.allocate(64 * 4096)
        pages = [pool[at : at + 4096] for at in range(0, len(pool), 4096)]
        for _ in range(30):
            count = rng.randint(2, 32)
            parts = rng.sample(pages, count)
            first = 4 * rng.randrange(128, 1024)  # the first page from any dword on
            head = 4096 - first
            if head % 512:
                parts.append(rng.choice([p for p in pages if p not in parts])[: 512 - head % 512])
            parts[0] = parts[0][first:]
            nbytes = sum(part.nbytes for part in parts)
            data, lba = rng.randbytes(nbytes), rng.randrange(4000)
            at = 0
            for part in parts:
                part.view[:] = data[at : at + part.nbytes]
                at += part.nbytes
            await namespace.write(lba, parts)
            assert transport.data[lba * 512 : lba * 512 + nbytes] == data
            transport.data[lba * 512 : lba * 512 + nbytes] = data = data[::-1]
            await namespace.read(lba, parts)
            assert b"".join(bytes(part.view) for part in parts) == data


# ---- MDTS 0 taken for one page, 2 MiB an assertion -----------------------------------------------


@pytest.mark.parametrize("mdts", [0, 1, 5, 9])
async def test_lengths_around_every_limit(mdts: int, tmp_path: Path) -> None:
    limit = 4096 << mdts if mdts else 0
    path = image(tmp_path)
    async with opened(open_embedded(path, mdts=limit)) as (_, namespace):
        assert namespace.max_transfer_bytes == limit
        for mark in {limit, 2 * limit, 2 * MIB, 4 * MIB} - {0}:
            for nbytes in (mark - 512, mark, mark + 512):
                data = os.urandom(nbytes)
                await namespace.write(3, data)
                with path.open("rb") as file:
                    file.seek(3 * 512)
                    assert file.read(nbytes) == data
                out = bytearray(nbytes)
                await namespace.read(3, out)
                assert out == data


# ---- 4 KiB blocks: misaligned requests that never complete ---------------------------------------


@pytest.mark.parametrize("shift", [9, 12])
async def test_misaligned_requests_are_refused_at_once(shift: int) -> None:
    transport = FakeController(namespace=identify_namespace(shift=shift, blocks=1024))
    async with opened(transport) as (_, namespace):
        size = 1 << shift
        assert namespace.lba_bytes == size
        sent = len(transport.log)
        for nbytes in (1, size // 2, size - 1, size + 1, 3 * size // 2, 0):
            with pytest.raises(InvalidRequest):
                await namespace.write(0, bytes(nbytes))
            with pytest.raises(InvalidRequest):
                await namespace.read(0, bytearray(nbytes))
        for lba in (-1, 1024, 1 << 64):
            with pytest.raises(InvalidRequest):
                await namespace.read(lba, bytearray(size))
        assert len(transport.log) == sent
        await namespace.write(1023, b"z" * size)
        assert transport.data[-size:] == b"z" * size


# ---- no Flush and no FUA with the write cache on -------------------------------------------------


class Caching(FakeController):
    """Writes stay in a cache until Flush, or go through it with FUA; cut() loses the cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.medium = bytearray(self.data)

    def _io(self, command: bytes) -> tuple[int, int]:
        status = super()._io(command)
        first = struct.unpack_from("<Q", command, 40)[0] * self.block
        if command[0] == 0x00:
            self.medium[:] = self.data
        elif command[0] == 0x01 and command[51] & 0x40:
            length = (struct.unpack_from("<H", command, 48)[0] + 1) * self.block
            self.medium[first : first + length] = self.data[first : first + length]
        return status

    def cut(self) -> None:
        self.data[:] = self.medium


async def test_what_was_flushed_or_forced_survives_a_power_cut() -> None:
    transport = Caching()
    async with opened(transport) as (_, namespace):
        assert namespace.volatile_write_cache
        await namespace.write(0, b"a" * 512)
        await namespace.flush()
        await namespace.write(1, b"b" * 512, fua=True)
        await namespace.write(2, b"c" * 512)
        await namespace.write(1000, b"d" * 200 * KIB, fua=True)  # in two: both are forced
        transport.cut()
        assert transport.data[:1536] == b"a" * 512 + b"b" * 512 + bytes(512)
        assert transport.data[512_000 : 512_000 + 200 * KIB] == b"d" * 200 * KIB


async def test_nothing_is_flushed_without_a_write_cache() -> None:
    transport = FakeController(controller=identify_controller(vwc=0))
    async with opened(transport) as (_, namespace):
        await namespace.write(0, bytes(512))
        await namespace.flush()
    assert not [c for qid, c in transport.log if qid and c[0] == 0x00]


# ---- no barriers ---------------------------------------------------------------------------------

_BARRIERS = """
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#undef __x86_64__
#define __aarch64__ 1
#include "ring.h"
int submit(struct nv_ring *r, const void *c) { nv_ring_push(r, c, 4096, 512, 0); return nv_ring_doorbell(r); }
uint32_t take(struct nv_ring *r) { return nv_ring_reap(r); }
"""


def test_the_barriers_are_in_the_generated_code(tmp_path: Path) -> None:
    """The code for arm64, with another instruction set around its barriers, to read their order."""
    source = tmp_path / "barriers.c"
    source.write_text(_BARRIERS)
    command = ["cc", "-std=gnu11", "-O2", "-w", "-S", f"-I{CORE}", "-o", "-", str(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    submit, _, rest = done.stdout.partition("\ntake:")
    submit = submit.partition("\nsubmit:")[2]
    # The entry is in memory before the tail is told; the shadow tail before the event index is read.
    assert submit.index("dmb oshst") < submit.index("dmb osh\n")
    # The phase bit is read before the rest; entries are read before the head is given back.
    assert rest.index("dmb oshld") < rest.index("dmb osh\n")


# ---- a completion's command id used unchecked ----------------------------------------------------


@pytest.mark.parametrize("wrong", [0xFFFF, 0x0FFF, 0x0000, 0x7001], ids=hex)
async def test_ids_that_nobody_waits_for(wrong: int, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def fate(qid: int, command: bytes) -> Fate | None:
        if qid and command[0] == 2 and not seen:
            seen.append(1)
            return Fate(wrong_cid=wrong)
        return None

    transport = FakeController(fate=fate)
    async with opened(transport, QUICK) as (controller, namespace):
        with pytest.raises(CommandTimeout):
            await namespace.read(0, bytearray(512))
        assert controller.statistics().queues[1].bad_completions == 1
        transport.data[:512] = b"k" * 512
        out = bytearray(512)
        await namespace.read(0, out)
        assert out == b"k" * 512
    assert "not in flight" in caplog.text


async def test_duplicate_and_stale_ids() -> None:
    """An answer that comes twice does not end the command that has the slot by then."""
    transport = FakeController(fate=lambda qid, _command: Fate(twice=True) if qid else None)
    async with opened(transport, QUICK) as (controller, namespace):
        for lba in range(100):
            await namespace.write(lba, bytes([lba]) * 512)
        assert all(transport.data[lba * 512] == lba for lba in range(100))
        queue = controller.statistics().queues[1]
        assert queue.bad_completions >= 99
        assert queue.inflight == queue.timeouts == 0


# ---- use after free on the error path ------------------------------------------------------------


@pytest.mark.parametrize("kind", range(8))
async def test_every_status_code_once(kind: int) -> None:
    """All codes of a type, without and with Do Not Retry: named, and nothing is left behind."""
    inject: list[int] = []

    def fate(qid: int, _command: bytes) -> Fate | None:
        return Fate(status=inject.pop()) if qid and inject else None

    transport = FakeController(fate=fate)
    async with opened(transport, DriverOptions(poll_ns=0)) as (controller, namespace):
        used = controller.dma.statistics().used_bytes
        for code in range(1 if kind == 0 else 0, 256):
            for dnr in (0, 0x4000):
                status = dnr | kind << 8 | code
                inject.append(status)
                if worth_repeating(status):
                    await namespace.write(0, b"w" * 512)
                    assert not inject
                    continue
                with pytest.raises(CommandError) as caught:
                    await namespace.write(0, b"w" * 512)
                error = caught.value
                assert (error.status, error.sct, error.sc) == (status, kind, code)
                assert error.dnr == bool(dnr)
                assert error.name in str(error)
        pool, queue = controller.dma.statistics(), controller.statistics().queues[1]
        assert (pool.used_bytes, pool.held_buffers, queue.inflight) == (used, 0, 0)
        await namespace.write(9, b"!" * 512)
        assert transport.data[9 * 512 : 10 * 512] == b"!" * 512


# ---- one lost completion hangs the caller for ever -----------------------------------------------


@pytest.mark.parametrize("opcode", [0x00, 0x01, 0x02, 0x05, 0x08, 0x09])
async def test_a_lost_completion_of_each_command(opcode: int) -> None:
    lost: list[int] = []

    def fate(qid: int, command: bytes) -> Fate | None:
        if qid and command[0] == opcode and not lost:
            lost.append(1)
            return Fate(drop=True)
        return None

    transport = FakeController(fate=fate)
    async with opened(transport, QUICK) as (controller, namespace):
        calls: dict[int, Callable[[], Awaitable[None]]] = {
            0x00: namespace.flush,
            0x01: lambda: namespace.write(0, bytes(512)),
            0x02: lambda: namespace.read(0, bytearray(512)),
            0x05: lambda: namespace.compare(0, bytes(512)),
            0x08: lambda: namespace.write_zeroes(0, 1),
            0x09: lambda: namespace.deallocate([(0, 1)]),
        }
        with pytest.raises(CommandTimeout):
            await calls[opcode]()
        for call in calls.values():
            await call()
        assert controller.statistics().resets == 1
        assert controller.dma.statistics().held_buffers == 0


async def test_a_late_completion_is_taken_and_no_error() -> None:
    """It comes between Abort and reset."""
    transport = FakeController(abort_works=False)
    transport.fate = lambda qid, _command: Fate(hold=True) if qid else None
    async with opened(transport, QUICK) as (controller, namespace):
        transport.data[:512] = b"l" * 512
        out = bytearray(512)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.read, 0, out)
            with trio.fail_after(5):
                while not controller.statistics().aborts:  # noqa: ASYNC110 - a counter
                    await trio.sleep(0.002)
            transport.finish_held()
        assert out == b"l" * 512
        assert controller.statistics().resets == 0


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [("fatal", ControllerFailed, "CSTS.CFS"), ("gone", ControllerGone, "all-ones")],
)
async def test_a_controller_that_failed_or_went(
    spoil: str, error: type[Exception], words: str
) -> None:
    transport = FakeController()
    async with opened(transport, QUICK) as (controller, namespace):
        transport.fate = lambda qid, _command: Fate(drop=True) if qid else None
        setattr(transport, spoil, True)
        with pytest.raises(error, match=words):
            await namespace.read(0, bytearray(512))
        with pytest.raises((ControllerFailed, ControllerGone)):
            await namespace.flush()
        assert controller.failure is not None


# ---- a completion that wanders through an interrupt and another thread ---------------------------


async def test_the_task_that_waits_takes_its_completion_itself() -> None:
    transport = FakeController()
    async with opened(transport, DriverOptions(poll_ns=1_000_000)) as (controller, namespace):
        before = controller.statistics()
        with namespace.dma.allocate(512) as buffer:
            for lba in range(320):
                await namespace.read(lba, buffer)
        after = controller.statistics()
        polled = after.queues[1].polled - before.queues[1].polled
        # One in 32 parks on purpose, so that other tasks run.
        assert polled >= 300
        assert after.interrupts - before.interrupts <= 2 * (320 - polled)
