"""driver.controller and driver.bringup, against the small controller in Python."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from driver import (
    CommandError,
    Controller,
    ControllerClosed,
    ControllerError,
    ControllerFailed,
    ControllerGone,
    DriverOptions,
    InvalidRequest,
    TransportError,
    open_controller,
)

from .fake import FakeController, Fate, identify_controller, identify_namespace

FAST = DriverOptions(shutdown_timeout_s=0.2, identify_patience_s=0)


@asynccontextmanager
async def opened(
    transport: FakeController, options: DriverOptions = FAST
) -> AsyncIterator[Controller]:
    with trio.fail_after(20):
        controller = await open_controller(transport, options=options)
        async with controller:
            await trio.testing.wait_all_tasks_blocked()
            yield controller
    assert transport.closed == 1
    gc.collect()


async def test_up_and_down_by_the_book() -> None:
    transport = FakeController()
    async with opened(transport) as controller:
        assert controller.identify.model == "fake"
        assert await controller.namespaces() == [1]
        assert (await controller.namespace()).lba_count == 8192
        regions = controller.dma.statistics().region_count
    opcodes = [command[0] for qid, command in transport.log if qid == 0]
    assert opcodes[-2:] == [0x00, 0x04]  # submission queues are deleted first
    assert [cc >> 14 & 3 for cc in transport.cc_writes][-2:] == [1, 0]  # CC.SHN: normal
    assert not transport._regs[0x14] & 1
    assert transport.unmapped == regions
    await controller.close()
    assert transport.closed == 1
    with pytest.raises(ControllerClosed):
        await controller.namespaces()


@pytest.mark.parametrize("granted", [1, 2, 4, 16])
@pytest.mark.parametrize("vectors", [0, 1, 2, 3, 17])
async def test_few_queues_and_few_vectors(granted: int, vectors: int) -> None:
    transport = FakeController(io_queues=granted, vectors=vectors)
    async with opened(transport, DriverOptions(poll_ns=0, io_queues=8)) as controller:
        assert controller.io_queues_granted == min(granted, 8)
        namespace = await controller.namespace()
        await namespace.write(3, b"x" * 512)
        out = bytearray(512)
        await namespace.read(3, out)
        assert out == b"x" * 512


@pytest.mark.parametrize(("command_sets", "chosen"), [(0x01, 0), (0xC1, 0), (0x41, 0), (0x40, 6)])
async def test_command_sets_as_offered(command_sets: int, chosen: int) -> None:
    """QEMU sets every bit, also the one that is meant for controllers without I/O."""
    transport = FakeController(command_sets=command_sets)
    async with opened(transport) as controller:
        await (await controller.namespace()).read(0, bytearray(512))
        assert transport.cc_writes[-1] >> 4 & 7 == chosen


@pytest.mark.parametrize("command_sets", [0x00, 0x80])
async def test_a_controller_without_io_commands(command_sets: int) -> None:
    transport = FakeController(command_sets=command_sets)
    with pytest.raises(ControllerError, match="does not offer the NVM command set"):
        await open_controller(transport, options=FAST)
    assert transport.closed == 1


async def test_depth_is_what_the_controller_allows() -> None:
    async with opened(FakeController(max_entries=2)) as controller:
        assert controller.io.depth == 2
        namespace = await controller.namespace()
        await namespace.write(0, os.urandom(1 << 20))


async def test_never_disabled() -> None:
    transport = FakeController()
    transport._regs[0x14] = 1
    transport.write32 = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(ControllerError, match=r"CSTS.RDY stays 1 .* 500 ms \(CAP.TO\)"):
        await open_controller(transport)
    assert transport.closed == 1


async def test_never_ready() -> None:
    transport = FakeController(ready=False)
    with pytest.raises(ControllerError, match=r"CSTS.RDY stays 0 .* 500 ms \(CAP.TO\)"):
        await open_controller(transport, options=FAST)
    assert transport.closed == 1
    assert transport._memory == {}


async def test_fatal_while_starting() -> None:
    with pytest.raises(ControllerError, match=r"CSTS.CFS came up during enable"):
        await open_controller(FakeController(ready=False, fatal=True), options=FAST)


async def test_gone_from_the_start() -> None:
    transport = FakeController(gone=True)
    with pytest.raises(ControllerGone, match="all-ones"):
        await open_controller(transport)
    assert transport.closed == 1


async def test_gone_later_closes_without_hanging() -> None:
    transport = FakeController()
    async with opened(transport):
        transport.gone = True


async def test_a_shutdown_that_never_completes_is_bounded() -> None:
    transport = FakeController(shutdown_works=False)
    async with opened(transport):
        pass
    assert not transport._regs[0x14] & 1  # disabled all the same


@pytest.mark.parametrize(
    ("raw", "word"),
    [(bytearray(4096), "all zeroes"), (identify_controller(mdts=99), "MDTS is 99")],
)
async def test_bad_identify_is_an_error_not_a_leak(raw: bytearray, word: str) -> None:
    transport = FakeController(controller=raw)
    with pytest.raises(ControllerError, match=word):
        await open_controller(transport, options=FAST)
    assert transport.closed == 1
    assert transport._memory == {}


async def test_identify_fails_with_a_status() -> None:
    transport = FakeController(fate=lambda qid, c: Fate(status=0x4006) if c[0] == 6 else None)
    with pytest.raises(CommandError, match="Identify: Internal Error") as caught:
        await open_controller(transport, options=FAST)
    assert (caught.value.sct, caught.value.sc, caught.value.dnr) == (0, 6, True)


async def test_namespaces_that_are_refused() -> None:
    namespace = identify_namespace()
    namespace[128] = 8
    async with opened(FakeController(namespace=namespace)) as controller:
        with pytest.raises(ControllerError, match="8 bytes of metadata"):
            await controller.namespace()
        with pytest.raises(InvalidRequest, match="no such namespace"):
            await controller.namespace(2)


async def test_a_grown_namespace_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeController()
    served: list[bytes] = []

    def fate(_qid: int, command: bytes) -> Fate | None:
        if command[0] == 0x02:
            served.append(command)
        return None

    transport.fate = fate
    async with opened(transport) as controller:
        namespace = await controller.namespace()
        told: list[int] = []
        namespace.on_change.append(lambda it: told.append(it.lba_count))
        transport.namespace = identify_namespace(blocks=9000)
        log = bytearray(4096)
        log[0] = 1
        page = transport._to_host

        def with_list(command: bytes, data: bytes | bytearray) -> None:
            page(command, bytes(log) if command[0] == 0x02 else data)

        transport._to_host = with_list  # type: ignore[method-assign]
        transport.event(4 << 16 | 2)
        await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert told == [9000]
        assert namespace.lba_count == 9000
        transport.namespace = bytearray(4096)
        transport.event(4 << 16 | 2)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(InvalidRequest, match="the namespace is gone"):
            await namespace.read(0, bytearray(512))
        assert controller.statistics().events == 2
    assert "namespace 1 is gone" in caplog.text


async def test_a_crash_in_a_task_of_the_driver_fails_everything_and_hangs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = FakeController(fate=lambda qid, _c: Fate(hold=True) if qid else None)
    async with opened(transport) as controller:
        namespace = await controller.namespace()

        def crash() -> int:
            raise ZeroDivisionError

        controller.io.reap = crash  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:

            async def victim() -> None:
                with pytest.raises(ControllerFailed, match="internal error"):
                    await namespace.flush()

            nursery.start_soon(victim)
            await trio.testing.wait_all_tasks_blocked()
            transport.finish_held()
        with pytest.raises(ControllerFailed):
            await namespace.flush()
    assert "a task of the driver crashed" in caplog.text


async def test_a_queue_for_a_thread() -> None:
    transport = FakeController(io_queues=2, vectors=3)
    async with opened(transport) as controller:
        queue = await controller.take_queue()
        assert queue.ring_address
        assert queue.vector is not None
        assert queue.vector.fd >= 0
        with pytest.raises(ControllerError, match="2 I/O queues were granted"):
            await controller.take_queue()
    assert [c[0] for q, c in transport.log if q == 0][-4:] == [0, 0, 4, 4]


@pytest.mark.parametrize("fatal", [False, True])
async def test_a_controller_that_was_given_up_is_shut_down_abruptly(fatal: bool) -> None:
    """Nothing more is sent to its queues; one that reports a fatal error is only disabled."""
    transport = FakeController()
    async with opened(transport) as controller:
        sent = len(transport.log)
        controller.fail(ControllerFailed("enough"))
        transport.fatal = fatal
    assert len(transport.log) == sent
    shutdowns = [cc >> 14 & 3 for cc in transport.cc_writes if cc >> 14 & 3]
    assert shutdowns == ([] if fatal else [2])
    assert not transport._regs[0x14] & 1


@pytest.mark.parametrize(("granted", "used"), [(4, 2), (2, 2), (1, 1), (0, 0)])
async def test_fewer_vectors_than_were_offered(
    granted: int, used: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The system may refuse what the table would allow: half as many are asked for, and in the end none."""

    class Stingy(FakeController):
        def enable_interrupts(self, eventfds: Sequence[int]) -> None:
            if len(eventfds) > granted:
                raise TransportError(f"{len(eventfds)} vectors: no space left")
            super().enable_interrupts(eventfds)

    transport = Stingy(vectors=5, io_queues=4)
    async with opened(transport, DriverOptions(io_queues=4, poll_ns=0)) as controller:
        namespace = await controller.namespace()
        await namespace.read(0, bytearray(512))
        queue = await controller.take_queue()
        assert queue.naps == (used == 0)
        assert len(transport._fds) == used
    assert "no space left; trying" in caplog.text
