"""driver.queues: many tasks, a full ring, cancellation, polling; against the controller in Python."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from driver import (
    CommandError,
    Controller,
    ControllerClosed,
    DriverOptions,
    Namespace,
    open_controller,
    trace,
)

from .fake import FakeController, Fate

QUICK = DriverOptions(shutdown_timeout_s=0.2, poll_ns=0)


@asynccontextmanager
async def opened(
    transport: FakeController, options: DriverOptions = QUICK
) -> AsyncIterator[tuple[Controller, Namespace]]:
    with trio.fail_after(20):
        async with await open_controller(transport, options=options) as controller:
            namespace = await controller.namespace()
            yield controller, namespace
            stats = controller.statistics()
            assert stats.queues[1].inflight == 0
            assert stats.pool.held_buffers == 0


def holding(qid: int, _command: bytes) -> Fate | None:
    return Fate(hold=True) if qid else None


async def test_more_commands_than_the_ring_holds() -> None:
    transport = FakeController(max_entries=4, fate=holding)
    async with opened(transport) as (controller, namespace):
        done: list[int] = []

        async def one(lba: int) -> None:
            await namespace.write(lba, bytes([lba]) * 512)
            done.append(lba)

        async with trio.open_nursery() as nursery:
            for lba in range(40):
                nursery.start_soon(one, lba)
            await trio.testing.wait_all_tasks_blocked()
            stats = controller.statistics().queues[1]
            assert (stats.inflight, stats.backlog, stats.parked) == (3, 37, 40)
            while len(done) < 40:
                transport.finish_held(2)
                await trio.testing.wait_all_tasks_blocked()
        assert all(transport.data[lba * 512] == lba for lba in range(40))


async def test_pieces_of_one_request_are_in_flight_together() -> None:
    transport = FakeController(fate=holding)  # MDTS is 128 KiB
    async with opened(transport) as (_, namespace):
        data = bytes(range(256)) * 4096
        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.write, 0, data)
            await trio.testing.wait_all_tasks_blocked()
            assert transport.held == 8
            transport.finish_held()
        assert transport.data[: 1 << 20] == data


async def test_the_first_error_of_several_pieces_comes_when_all_are_over() -> None:
    transport = FakeController()
    async with opened(transport) as (_, namespace):

        def fate(qid: int, command: bytes) -> Fate | None:
            lba = struct.unpack_from("<Q", command, 40)[0]
            return Fate(hold=True) if qid and lba != 256 else Fate(status=0x4280) if qid else None

        transport.fate = fate
        async with trio.open_nursery() as nursery:

            async def fails() -> None:
                with pytest.raises(CommandError, match="Write: Write Fault"):
                    await namespace.write(0, bytes(1 << 20))

            nursery.start_soon(fails)
            await trio.testing.wait_all_tasks_blocked()
            assert transport.held == 7
            transport.finish_held()


async def test_a_retry_does_not_take_the_place_of_one_that_completed_beside_it() -> None:
    """Completions are reaped in batches: the id that a retry gets may be that of a later entry."""

    def fate(qid: int, command: bytes) -> Fate | None:
        lba = struct.unpack_from("<Q", command, 40)[0]
        return Fate(hold=True, status=0x281 if lba == 4 else 0) if qid else None

    transport = FakeController(fate=fate)
    async with opened(transport) as (controller, namespace):
        transport.data[:5120] = b"".join(bytes([lba]) * 512 for lba in range(10))
        out = {lba: bytearray(512) for lba in range(10)}
        async with trio.open_nursery() as nursery:
            for lba in range(10):
                nursery.start_soon(namespace.read, lba, out[lba])
            await trio.testing.wait_all_tasks_blocked()
            transport.fate = lambda _qid, _command: None
            transport.finish_held()
        assert all(out[lba] == bytes([lba]) * 512 for lba in range(10))
        assert controller.statistics().queues[1].retried == 1


async def test_a_cancelled_task_leaves_and_its_buffer_stays() -> None:
    transport = FakeController(fate=holding)
    async with opened(transport) as (controller, namespace):
        transport.data[:512] = b"n" * 512
        buffer = controller.dma.allocate(4096)
        with trio.move_on_after(0.02) as scope:
            await namespace.read(0, buffer)
        assert scope.cancelled_caught
        buffer.release()
        assert buffer.busy
        others = [controller.dma.allocate(4096) for _ in range(200)]
        assert buffer.iova not in [other.iova for other in others]
        transport.finish_held()
        await trio.testing.wait_all_tasks_blocked()
        controller.io.reap()
        assert not buffer.busy
        assert buffer.iova in [controller.dma.allocate(4096).iova for _ in range(400)]


async def test_a_cancelled_bounce_buffer_is_not_reused_while_it_is_written() -> None:
    transport = FakeController(fate=holding)
    async with opened(transport) as (controller, namespace):
        target = bytearray(512)
        with trio.move_on_after(0.02):
            await namespace.read(0, target)
        assert controller.statistics().pool.held_buffers == 1
        transport.data[:512] = b"x" * 512
        transport.finish_held()
        controller.io.reap()
        assert target == bytes(512)


async def test_cancelling_drops_what_was_not_sent() -> None:
    transport = FakeController(max_entries=4, fate=holding)
    async with opened(transport) as (controller, namespace):
        with trio.move_on_after(0.02):
            await namespace.write(0, b"z" * (1 << 20))
        assert controller.statistics().queues[1].backlog == 0
        assert transport.held == 3
        transport.finish_held()
        controller.io.reap()
        assert transport.data.count(b"z") == 3 * (128 << 10)


async def test_closing_with_commands_in_flight() -> None:
    transport = FakeController(fate=holding)
    with trio.fail_after(20):
        controller = await open_controller(transport, options=QUICK)
        namespace = await controller.namespace()

        async def victim() -> None:
            with pytest.raises(ControllerClosed):
                await namespace.write(0, bytes(512))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim)
            await trio.testing.wait_all_tasks_blocked()
            await controller.close()
    assert transport.closed == 1


async def test_polling_parks_now_and_then_and_crowds_turn_it_off() -> None:
    transport = FakeController()
    async with opened(transport, DriverOptions(poll_ns=50_000)) as (controller, namespace):
        buffer = controller.dma.allocate(512)
        ran = 0

        async def other() -> None:
            nonlocal ran
            while True:
                await trio.lowlevel.checkpoint()
                ran += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(200):
                await namespace.read(0, buffer)
            nursery.cancel_scope.cancel()
        polled = controller.statistics().queues[1].polled
        assert 150 < polled < 200
        assert ran >= 5  # nobody starves
        async with trio.open_nursery() as nursery:
            transport.fate = holding
            nursery.start_soon(namespace.read, 0, buffer)
            nursery.start_soon(namespace.read, 1, buffer[0:512])
            await trio.testing.wait_all_tasks_blocked()
            transport.finish_held()
        transport.fate = lambda _qid, _command: None
        for _ in range(8):
            await namespace.read(0, buffer)
        assert controller.statistics().queues[1].polled == polled


async def test_latency_histogram_counts_each_command() -> None:
    async with opened(FakeController()) as (controller, namespace):
        for lba in range(10):
            await namespace.write(lba, bytes(512))
        latency = controller.statistics().queues[1].latency_ns["write"]
        assert latency["count"] == 10
        assert 0 < latency["p50"] <= latency["p999"] <= latency["max"]


async def test_hops() -> None:
    async with opened(FakeController()) as (controller, namespace):
        buffer = controller.dma.allocate(512)
        with trace.collected() as hops, trace.request(7):
            await namespace.write(1, buffer, fua=True)
            await namespace.flush()
        names = [hop.name for hop in hops]
        common = ["queues.submit", "ring_push", "ring_doorbell", "ring_reap", "queues.complete"]
        assert names == [
            *["namespace.write", "commands.write", *common],
            *["namespace.flush", "commands.flush", *common],
        ]
        assert {hop.request for hop in hops} == {7}
        assert str(hops[1]) == "#7 commands.write nsid=1 lba=1 blocks=1 fua=True"
        assert not trace.enabled


async def test_hops_of_a_parked_command_keep_their_number() -> None:
    transport = FakeController()
    async with opened(transport) as (controller, namespace):
        with trace.collected() as hops:
            transport.fate = holding

            async def numbered(number: int) -> None:
                with trace.request(number):
                    await namespace.read(number, controller.dma.allocate(512))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(numbered, 5)
                nursery.start_soon(numbered, 6)
                await trio.testing.wait_all_tasks_blocked()
                transport.finish_held()
        for number in (5, 6):
            names = [hop.name for hop in hops if hop.request == number]
            assert names[2:] == [
                "queues.submit",
                "ring_push",
                "ring_doorbell",
                "ring_reap",
                "queues.complete",
            ]


async def test_two_controllers_side_by_side() -> None:
    async with opened(FakeController()) as (_, a), opened(FakeController()) as (_, b):
        await a.write(0, b"a" * 512)
        await b.write(0, b"b" * 512)
        out = bytearray(512)
        await a.read(0, out)
        assert out == b"a" * 512
