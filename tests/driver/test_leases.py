"""Queue pairs of threads: vectors shared with them, deadlines, and resets while they are in use.

The test is the thread (owner.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from driver import (
    CommandTimeout,
    Controller,
    ControllerClosed,
    ControllerFailed,
    ControllerGone,
    DeviceBusy,
    DriverOptions,
    leases,
    open_controller,
)
from driver import controller as controllers
from driver._core import lib
from driver.registers import CSTS
from driver.transports import Transport
from driver.transports.embedded import open_embedded
from tests.driver.owner import Owner

from .fake import FakeController, Fate

QUICK = DriverOptions(
    command_timeout_s=0.08, admin_timeout_s=0.4, shutdown_timeout_s=0.2, poll_ns=0
)
ABORTED = 0x07


@asynccontextmanager
async def opened(
    transport: Transport, options: DriverOptions = QUICK
) -> AsyncIterator[tuple[Controller, Owner, int]]:
    """A controller, a leased queue pair, and the address of a page."""
    with trio.fail_after(20):
        async with await open_controller(transport, options=options) as controller:
            owner = Owner(await controller.take_queue(), transport)
            with controller.dma.allocate(4096) as buffer:
                yield controller, owner, buffer.iova


class Held:
    """A fate for the first n reads of queue 2."""

    def __init__(self, fate: Fate, times: int = 1) -> None:
        self.fate, self.left = fate, times

    def __call__(self, qid: int, command: bytes) -> Fate | None:
        if qid != 2 or command[0] != 2 or not self.left:
            return None
        self.left -= 1
        return self.fate


async def test_a_reset_takes_the_ring_and_gives_it_back() -> None:
    transport = FakeController(fate=Held(Fate(hold=True)))
    async with opened(transport) as (controller, owner, iova):
        assert owner.enter()
        epoch = owner.lease.epoch
        cid = owner.send_read(0, iova)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(controller.reset, lambda _piece: None)
            await owner.until_wished(lib.NV_LEASE_PARK)
            await trio.sleep(0.05)
            assert transport.resets == 0  # not while the thread has it
            owner.leave()
            await owner.until_wished(lib.NV_LEASE_USE)
        assert transport.resets == 1
        assert owner.enter()
        assert owner.lease.epoch == epoch + 1
        assert lib.nv_ring_inflight(owner.ring) == 0
        again = owner.send_read(0, iova)
        assert again != cid
        assert await owner.completed(again) == 0
        owner.leave()
    created = [c[40] for qid, c in transport.log if qid == 0 and c[0] == 0x01]
    assert created == [1, 2, 1, 2]


async def test_a_late_command_is_aborted() -> None:
    transport = FakeController(fate=Held(Fate(hold=True)))
    async with opened(transport) as (controller, owner, iova):
        assert owner.enter()
        cid = owner.send_read(0, iova)
        await trio.sleep(0.1)
        owner.report_overdue()
        assert await owner.completed(cid) == ABORTED
        owner.report_overdue()
        await trio.testing.wait_all_tasks_blocked()
        stats = controller.statistics()
        assert (stats.aborts, stats.resets, stats.queues[2].timeouts) == (1, 0, 1)
        owner.leave()


async def test_a_lost_command_of_a_thread_resets_and_tasks_notice_nothing() -> None:
    transport = FakeController(fate=Held(Fate(drop=True)))
    async with opened(transport) as (controller, owner, iova):
        namespace = await controller.namespace()
        transport.data[512:1024] = b"b" * 512
        assert owner.enter()
        lost = owner.send_read(0, iova)

        async def reader() -> None:
            out = bytearray(512)
            while not transport.resets:
                await namespace.read(1, out)
                assert out == b"b" * 512
            await namespace.read(1, out)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            while owner.wish == lib.NV_LEASE_USE:
                await trio.sleep(0.02)
                owner.report_overdue()
            assert owner.queue.late() == {lost: 2}
            owner.leave()
            await owner.until_wished(lib.NV_LEASE_USE)
        stats = controller.statistics()
        assert (stats.aborts, stats.resets) == (1, 1)
        assert controller.failure is None
        assert owner.enter()
        assert await owner.completed(owner.send_read(0, iova)) == 0
        owner.leave()


async def test_a_lost_command_of_a_task_resets_beside_a_thread() -> None:
    dropped = iter([Fate(drop=True)])
    transport = FakeController(
        fate=lambda qid, c: next(dropped, None) if qid == 1 and c[0] == 2 else None
    )
    async with opened(transport) as (controller, owner, iova):
        namespace = await controller.namespace()
        resets = 0

        async def thread() -> None:
            nonlocal resets
            while True:
                epoch = owner.lease.epoch
                while not owner.enter():
                    await owner.woken()
                resets += owner.lease.epoch != epoch
                assert await owner.completed(owner.send_read(0, iova, timeout_ns=0)) == 0
                owner.leave()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread)
            with pytest.raises(CommandTimeout):
                await namespace.read(0, bytearray(512))
            await namespace.read(0, bytearray(512))
            nursery.cancel_scope.cancel()
        owner.leave()
        assert controller.statistics().resets == 1


async def test_a_thread_that_does_not_obey_gives_the_controller_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "_PARK_BOUND_S", 0.2)
    transport = FakeController()
    async with opened(transport) as (controller, owner, _iova):
        assert owner.enter()
        with pytest.raises(ControllerFailed, match="queue 2: its thread did not leave"):
            await controller.reset(lambda _piece: None)
        assert transport.resets == 0
        with pytest.raises(ControllerFailed):
            await (await controller.namespace()).flush()
        assert owner.wish == lib.NV_LEASE_END
        owner.leave()
        assert not owner.enter()


async def test_closed_under_a_thread_that_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The controller is quiet then, and all that the thread may touch is there as long as the process."""
    monkeypatch.setattr(leases, "_PARK_BOUND_S", 0.2)
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    transport = open_embedded(path)
    async with opened(transport) as (controller, owner, iova):
        assert owner.enter()
    assert "queue 2: a thread has not left it" in caplog.text
    owner.send_read(0, iova)  # into a ring that nobody reads any more
    assert transport.read32(CSTS) & 1 == 0
    assert not owner.queue.wakeup_fd < 0
    with pytest.raises(DeviceBusy):
        open_embedded(path)
    owner.leave()
    assert not owner.enter()
    await controller.close()
    with pytest.raises(ControllerClosed):
        await controller.reset(lambda _piece: None)
    controllers.left_in_use.remove(controller)
    controller._release(quiet=True)
    open_embedded(path).close()


async def test_a_controller_that_vanishes_is_noticed_before_the_deadline() -> None:
    transport = FakeController(fate=Held(Fate(drop=True)))
    options = DriverOptions(command_timeout_s=1000.0, shutdown_timeout_s=0.2)
    async with opened(transport, options) as (controller, owner, iova):
        assert owner.enter()
        owner.send_read(0, iova)
        transport.gone = True
        while owner.wish == lib.NV_LEASE_USE:  # it tells of its silence once a second
            owner.report_overdue()
            await trio.sleep(0.02)
        assert owner.wish == lib.NV_LEASE_END
        owner.leave()
        with pytest.raises(ControllerGone, match="all-ones"):
            await (await controller.namespace()).read(0, bytearray(512))


async def test_closing_takes_the_ring_for_ever() -> None:
    transport = FakeController()
    async with opened(transport) as (_controller, owner, _iova):
        pass
    assert not owner.enter()
    assert [c[0] for q, c in transport.log if q == 0 and c[0] in (0, 4)] == [0, 0, 4, 4]


async def test_a_queue_pair_asked_for_during_a_reset() -> None:
    transport = FakeController()
    async with opened(transport) as (controller, owner, iova):
        assert owner.enter()
        more: list[Owner] = []

        async def take() -> None:
            more.append(Owner(await controller.take_queue(), transport))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(controller.reset, lambda _piece: None)
            await owner.until_wished(lib.NV_LEASE_PARK)
            nursery.start_soon(take)
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            owner.leave()
        assert sorted(each.queue.qid for each in more) == [3, 4]
        for each in [owner, *more]:
            assert each.enter()
            assert await each.completed(each.send_read(0, iova)) == 0
            each.leave()


@pytest.mark.parametrize("vectors", [0, 1, 2, 3, 4])
async def test_threads_share_vectors(vectors: int, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    transport = open_embedded(image, queues=3, vectors=max(vectors, 1))
    if not vectors:
        transport.vectors = 0
    options = DriverOptions(poll_ns=0)
    async with opened(transport, options) as (controller, first, iova):
        second = Owner(await controller.take_queue(), transport)
        assert first.queue.naps == second.queue.naps == (vectors == 0)
        namespace = await controller.namespace()

        async def thread(owner: Owner) -> None:
            assert owner.enter()
            for _ in range(50):
                assert await owner.completed(owner.send_read(0, iova)) == 0
            owner.leave()

        async def task() -> None:
            for _ in range(50):
                await namespace.read(0, bytearray(512))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread, first)
            nursery.start_soon(thread, second)
            nursery.start_soon(task)
        stats = controller.statistics()
        assert sum(queue.lost_interrupts + queue.timeouts for queue in stats.queues) == 0
        used = {queue.vector for queue in stats.queues}
        assert len(used) == max(min(vectors, 4), 1) or (vectors == 0 and used == {0})


async def test_interrupts_of_threads_do_not_keep_python_busy(tmp_path: Path) -> None:
    """One vector for all: the task of the admin queue naps after being woken in vain."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    async with opened(open_embedded(image, vectors=1)) as (controller, owner, iova):
        before = controller.statistics().interrupts
        assert owner.enter()
        started = trio.current_time()
        for _ in range(300):
            assert await owner.completed(owner.send_read(0, iova, timeout_ns=0)) == 0
        took_s = trio.current_time() - started
        owner.leave()
        assert controller.statistics().interrupts - before <= took_s / 0.02 + 2


@pytest.mark.parametrize("poll", ["always", "never"])
async def test_the_mode_of_completion(poll: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    options = DriverOptions(poll=poll)
    async with opened(open_embedded(image), options) as (controller, owner, iova):
        namespace = await controller.namespace()
        async with trio.open_nursery() as nursery:
            for lba in range(8):
                nursery.start_soon(namespace.read, lba, bytearray(512))
        await namespace.read(0, bytearray(512))
        assert owner.enter()
        assert await owner.completed(owner.send_read(0, iova)) == 0
        owner.leave()
        stats = controller.statistics()
        assert (stats.interrupts == 0) == (poll == "always")
        assert owner.queue.naps == (poll == "always")
        if poll == "never":
            assert stats.queues[1].polled == stats.queues[1].poll_misses == 0


def test_modes_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="one of adaptive, always, never"):
        DriverOptions(poll="sometimes")
