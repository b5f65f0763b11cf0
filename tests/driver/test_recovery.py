"""driver.recovery and retries: what happens when commands do not come back, or come back wrong."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from driver import (
    CommandError,
    CommandTimeout,
    Controller,
    ControllerFailed,
    ControllerGone,
    DriverOptions,
    Namespace,
    open_controller,
)

from .fake import FakeController, Fate, identify_controller

QUICK = DriverOptions(
    command_timeout_s=0.08, admin_timeout_s=0.2, shutdown_timeout_s=0.2, poll_ns=0
)


@asynccontextmanager
async def opened(
    transport: FakeController, options: DriverOptions = QUICK
) -> AsyncIterator[tuple[Controller, Namespace]]:
    with trio.fail_after(20):
        async with await open_controller(transport, options=options) as controller:
            yield controller, await controller.namespace()


class Once:
    """A fate for the first n I/O commands of an opcode."""

    def __init__(self, opcode: int, fate: Fate, times: int = 1) -> None:
        self.opcode, self.fate, self.left = opcode, fate, times

    def __call__(self, qid: int, command: bytes) -> Fate | None:
        if qid and command[0] == self.opcode and self.left:
            self.left -= 1
            return self.fate
        return None


async def test_a_lost_interrupt_costs_time_and_nothing_else() -> None:
    transport = FakeController(fate=Once(2, Fate(hold=True)))
    async with opened(transport) as (controller, namespace):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.read, 0, bytearray(512))
            await trio.testing.wait_all_tasks_blocked()
            transport.finish_held(quiet=True)
        assert controller.io.statistics().lost_interrupts == 1
        assert controller.statistics().aborts == controller.statistics().resets == 0


async def test_a_command_that_can_be_aborted() -> None:
    transport = FakeController(fate=Once(2, Fate(hold=True)))
    async with opened(transport) as (controller, namespace):
        with pytest.raises(CommandTimeout, match="was aborted"):
            await namespace.read(0, bytearray(512))
        assert (controller.statistics().aborts, controller.statistics().resets) == (1, 0)
        await namespace.read(0, bytearray(512))


async def test_a_command_that_is_lost_resets_and_the_others_are_sent_again() -> None:
    transport = FakeController(fate=Once(2, Fate(drop=True)))
    async with opened(transport) as (controller, namespace):
        transport.data[512:1024] = b"b" * 512

        async def lost() -> None:
            with pytest.raises(CommandTimeout, match=r"did not complete within 0\.08 s"):
                await namespace.read(0, bytearray(512))

        async def other(transport: FakeController) -> None:
            await trio.sleep(0.1)  # its deadline is later
            transport.fate = Once(2, Fate(hold=True))
            out = bytearray(512)
            await namespace.read(1, out)
            assert out == b"b" * 512

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            nursery.start_soon(other, transport)
        assert controller.statistics().resets == 1
        assert controller.failure is None
        assert controller.dma.statistics().held_buffers == 0
        await namespace.write(5, b"y" * 512)
    assert transport.resets == 2


async def test_a_controller_that_never_answers_is_given_up() -> None:
    transport = FakeController(fate=lambda qid, _c: Fate(drop=True) if qid else None)
    async with opened(transport) as (controller, namespace):
        for _ in range(3):
            with pytest.raises(CommandTimeout):
                await namespace.flush()
        with pytest.raises(ControllerFailed, match="3 resets in a row"):
            await namespace.flush()
        with pytest.raises(ControllerFailed):
            await namespace.read(0, bytearray(512))
        assert controller.failure is not None


async def test_a_vanished_controller_is_an_error_and_no_hang() -> None:
    transport = FakeController(fate=lambda qid, _c: Fate(drop=True) if qid else None)
    async with opened(transport) as (controller, namespace):
        buffer = controller.dma.allocate(4096)
        async with trio.open_nursery() as nursery:

            async def victim() -> None:
                with pytest.raises(ControllerGone, match="all-ones"):
                    await namespace.write(0, buffer)

            nursery.start_soon(victim)
            await trio.testing.wait_all_tasks_blocked()
            transport.gone = True
        buffer.release()
        # The device may still have it: it does not come back to the pool.
        assert buffer.busy
        assert controller.dma.statistics().held_buffers == 1


async def test_a_fatal_status_is_named() -> None:
    transport = FakeController(fate=lambda qid, _c: Fate(drop=True) if qid else None)
    async with opened(transport) as (_, namespace):
        transport.fatal = True
        with pytest.raises(ControllerFailed, match=r"CSTS\.CFS"):
            await namespace.flush()


async def test_no_deadline_waits() -> None:
    transport = FakeController(fate=Once(2, Fate(hold=True)))
    options = DriverOptions(command_timeout_s=None, admin_timeout_s=None, shutdown_timeout_s=0.2)
    async with opened(transport, options) as (controller, namespace):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.read, 0, bytearray(512))
            await trio.sleep(0.2)
            transport.finish_held()
        assert controller.io.statistics().timeouts == 0


@pytest.mark.parametrize("wrong", [Fate(wrong_cid=0xFFFE), Fate(wrong_cid=0x0FF), Fate(twice=True)])
async def test_wrong_and_double_completions_are_counted(
    wrong: Fate, caplog: pytest.LogCaptureFixture
) -> None:
    transport = FakeController(fate=Once(2, wrong))
    async with opened(transport) as (controller, namespace):
        if wrong.twice:
            await namespace.read(0, bytearray(512))
        else:
            with pytest.raises(CommandTimeout):
                await namespace.read(0, bytearray(512))
        assert controller.statistics().queues[1].bad_completions == 1
        await namespace.read(0, bytearray(512))
    assert "completed 1 commands that are not in flight" in caplog.text


@pytest.mark.parametrize("poll_ns", [0, 50_000])
@pytest.mark.parametrize(
    ("status", "again"),
    [
        (0x0006, True),  # Internal Error
        (0x4006, False),  # the same, DNR
        (0x0002, False),  # Invalid Field stays invalid
        (0x0281, True),  # Unrecovered Read Error
        (0x4281, False),
        (0x0285, False),  # Compare Failure is an answer
        (0x0802, True),  # any status with a retry delay
        (0x0300, True),  # path
    ],
)
async def test_retry_by_status(status: int, again: bool, poll_ns: int) -> None:
    transport = FakeController(
        fate=Once(2, Fate(status=status), times=2), controller=identify_controller()
    )
    transport.controller[128] = 1  # CRDT1: 100 ms
    options = DriverOptions(retries=2, poll_ns=poll_ns)
    async with opened(transport, options) as (controller, namespace):
        before = trio.current_time()
        if again:
            await namespace.read(0, bytearray(512))
            assert controller.io.retried == 2
            assert (trio.current_time() - before >= 0.2) == (status == 0x0802)
        else:
            with pytest.raises(CommandError) as caught:
                await namespace.read(0, bytearray(512))
            assert caught.value.status == status
            assert controller.io.retried == 0


async def test_retries_end() -> None:
    transport = FakeController(fate=Once(2, Fate(status=0x0281), times=99))
    async with opened(transport, DriverOptions(retries=3)) as (controller, namespace):
        with pytest.raises(CommandError, match="Unrecovered Read Error"):
            await namespace.read(0, bytearray(512))
        assert controller.io.retried == 3


@pytest.mark.parametrize("opcode", [0x00, 0x01, 0x02, 0x05, 0x08, 0x09])
@pytest.mark.parametrize("status", [0x4080, 0x4280, 0x4281, 0x4106, 0x4700])
async def test_every_command_reports_its_status(opcode: int, status: int) -> None:
    transport = FakeController(fate=Once(opcode, Fate(status=status)))
    async with opened(transport) as (controller, namespace):
        calls: dict[int, Callable[[], Awaitable[None]]] = {
            0x00: namespace.flush,
            0x01: lambda: namespace.write(0, bytes(512)),
            0x02: lambda: namespace.read(0, bytearray(512)),
            0x05: lambda: namespace.compare(0, bytes(512)),
            0x08: lambda: namespace.write_zeroes(0, 8),
            0x09: lambda: namespace.deallocate([(0, 8)]),
        }
        with pytest.raises(CommandError) as caught:
            await calls[opcode]()
        assert caught.value.status == status
        await calls[opcode]()
        stats = controller.statistics()
        assert stats.queues[1].inflight == 0
        assert stats.pool.held_buffers == 0


async def test_an_admin_command_lost_during_bring_up() -> None:
    transport = FakeController(
        fate=lambda qid, command: Fate(drop=True) if qid == 0 and command[0] == 9 else None
    )
    with trio.fail_after(10), pytest.raises(ControllerFailed, match=r"Set features .* brought up"):
        await open_controller(transport, options=QUICK)
    assert transport.closed == 1


async def test_a_controller_that_does_not_come_back_from_a_reset() -> None:
    transport = FakeController(fate=Once(2, Fate(drop=True)))
    async with opened(transport) as (controller, namespace):

        async def lost() -> None:
            with pytest.raises(CommandTimeout):
                await namespace.read(0, bytearray(512))

        async def innocent() -> None:
            await trio.sleep(0.1)
            transport.fate = Once(1, Fate(hold=True))
            with pytest.raises(ControllerFailed, match="reset failed"):
                await namespace.write(0, bytes(512))

        async def never_again() -> None:
            await trio.sleep(0.12)
            transport.ready = False
            transport.resets = 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            nursery.start_soon(innocent)
            nursery.start_soon(never_again)
        with pytest.raises(ControllerFailed, match=r"CSTS\.RDY stays 0"):
            await namespace.flush()
        assert controller.failure is not None


async def test_a_reset_that_gets_no_answers_is_bounded() -> None:
    def fate(qid: int, command: bytes) -> Fate | None:
        return Fate(drop=True) if qid or transport.resets else None

    transport = FakeController(fate=fate)
    async with opened(transport) as (_, namespace):
        with pytest.raises(CommandTimeout):
            await namespace.flush()
        with pytest.raises(ControllerFailed, match="does not answer after a reset"):
            await namespace.flush()


async def test_failing_while_a_retry_is_delayed() -> None:
    transport = FakeController(fate=Once(2, Fate(status=0x0802)))
    transport.controller[128] = 255
    async with opened(transport) as (controller, namespace), trio.open_nursery() as nursery:

        async def victim() -> None:
            with pytest.raises(ControllerFailed):
                await namespace.read(0, bytearray(512))

        nursery.start_soon(victim)
        await trio.testing.wait_all_tasks_blocked()
        controller.fail(ControllerFailed("enough"))


async def test_shadow_doorbells_that_were_refused_stay_allocated() -> None:
    """The controller may have executed the command all the same, and write event indexes for ever."""
    transport = FakeController(
        fate=lambda qid, c: Fate(status=0x4006) if not qid and c[0] == 0x7C else None,
        controller=identify_controller(oacs=0x100),
    )
    async with opened(transport) as (controller, namespace):
        assert not controller.statistics().shadow_doorbells
        admin = [command for qid, command in transport.log if qid == 0]
        (refused,) = [command for command in admin if command[0] == 0x7C]
        pages = set(struct.unpack_from("<QQ", refused, 24))
        queues = {struct.unpack_from("<Q", c, 24)[0] for c in admin if c[0] in (0x01, 0x05)}
        buffers = [controller.dma.allocate(4096) for _ in range(64)]
        assert not pages & (queues | {buffer.iova for buffer in buffers})
        for buffer in buffers:
            buffer.release()
        await namespace.read(0, bytearray(512))
        await controller.reset(lambda _piece: None)
        await namespace.read(0, bytearray(512))
