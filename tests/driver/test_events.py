"""driver.events: each kind of event is understood, logged and acted on, and none ends the watching."""

from __future__ import annotations

import logging
import os
import re
import struct
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from driver import ControllerFailed, DriverOptions, InvalidRequest, open_controller
from driver.registers import CSTS
from driver.transports.embedded import open_embedded

from .fake import FakeController, Fate, identify_controller

MIB = 1 << 20
FAST = DriverOptions(shutdown_timeout_s=0.2, identify_patience_s=0)
SET_FEATURES, GET_LOG = 0x09, 0x02


def logs_read(transport: FakeController) -> list[int]:
    return [c[40] for q, c in transport.log if q == 0 and c[0] == GET_LOG]


async def tell(transport: FakeController, kind: int, info: int, page: int) -> None:
    await trio.testing.wait_all_tasks_blocked()
    transport.event(kind | info << 8 | page << 16)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("offered", "chosen"), [(0, 0x1F), (0x100, 0x11F), (0x300, 0x31F), (0xFFFFFFFF, 0x31F)]
)
async def test_what_is_asked_for(offered: int, chosen: int) -> None:
    raw = identify_controller()
    struct.pack_into("<I", raw, 92, offered)
    transport = FakeController(controller=raw)
    async with await open_controller(transport, options=FAST) as controller:
        await controller.reset(lambda _piece: None)
    asked = [
        struct.unpack_from("<I", c, 44)[0]
        for q, c in transport.log
        if q == 0 and c[0] == SET_FEATURES and c[40] == 0x0B
    ]
    assert asked == [chosen, chosen], "once at the start, and again after the reset"


@pytest.mark.parametrize(
    ("kind", "info", "page", "words", "level"),
    [
        (0, 0, 1, "the doorbell of no queue", logging.ERROR),
        (0, 4, 1, "transient internal error", logging.ERROR),
        (0, 77, 1, "error event: code 0x4d", logging.ERROR),
        (1, 0, 2, r"reliability degraded \(spare below threshold, read only\)", logging.WARNING),
        (1, 1, 2, "temperature threshold", logging.WARNING),
        (2, 1, 3, "firmware activation starting", logging.WARNING),
        (2, 5, 0x0E, "LBA status information", logging.WARNING),
        (3, 0, 0, "the subsystem is shut down", logging.WARNING),
        (6, 1, 0x81, "sanitize operation completed", logging.WARNING),
        (7, 9, 0xC0, "vendor event: code 0x9", logging.WARNING),
        (5, 9, 0x01, "type 5 event: code 0x9", logging.WARNING),
    ],
)
async def test_each_kind(
    kind: int, info: int, page: int, words: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    transport = FakeController()
    smart = bytes([0b1001]).ljust(512, b"\0")
    transport.fate = lambda _q, c: Fate(data=smart) if c[0] == GET_LOG and c[40] == 2 else None
    async with await open_controller(transport, options=FAST) as controller:
        await tell(transport, kind, info, page)
        assert logs_read(transport) == ([page] if page else [])
        await tell(transport, kind, info, page)
        assert controller.statistics().events == 2
    records = [r for r in caplog.records if r.levelno == level]
    assert len(records) == 2
    assert caplog.text.count("\n") == len(caplog.records)
    assert re.search(words, caplog.text)


async def test_an_internal_error_of_a_failed_controller() -> None:
    transport = FakeController()
    async with await open_controller(transport, options=FAST) as controller:
        namespace = await controller.namespace()
        await trio.testing.wait_all_tasks_blocked()
        transport.fatal = True
        await tell(transport, 0, 3, 1)
        with pytest.raises(ControllerFailed, match=r"CSTS.CFS"):
            await namespace.read(0, bytearray(512))


async def test_a_persistent_internal_error_is_answered_by_a_reset_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    transport = FakeController()
    async with await open_controller(transport, options=FAST) as controller:
        namespace = await controller.namespace()
        await namespace.write(0, b"a" * 512)
        for times in (1, 2):
            await trio.sleep(100)
            resets = transport.resets
            await tell(transport, 0, 3, 1)
            await trio.sleep(1)
            assert transport.resets == resets + 1, times
            out = bytearray(512)
            await namespace.read(0, out)
            assert out == b"a" * 512
        await tell(transport, 0, 3, 1)
        await trio.sleep(1)
        with pytest.raises(ControllerFailed, match=r"persistent internal error again, 1 s after"):
            await namespace.read(0, bytearray(512))


async def test_a_log_page_that_is_refused_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeController()
    transport.fate = lambda _q, c: Fate(status=0x4109) if c[0] == GET_LOG else None
    async with await open_controller(transport, options=FAST) as controller:
        for _ in range(3):
            await tell(transport, 1, 1, 2)
        assert controller.statistics().events == 3
    assert caplog.text.count("Invalid Log Page") == 3


async def test_a_controller_without_events(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeController(fate=lambda q, c: Fate(status=0x4001) if c[0] == 0x0C else None)
    async with await open_controller(transport, options=FAST) as controller:
        await trio.testing.wait_all_tasks_blocked()
        await (await controller.namespace()).read(0, bytearray(512))
    assert caplog.text.count("no asynchronous events: ") == 1


async def test_no_deadline_passes_while_firmware_is_activated() -> None:
    transport = FakeController()
    options = DriverOptions(command_timeout_s=0.2, poll_ns=0, shutdown_timeout_s=0.2)
    async with await open_controller(transport, options=options) as controller:
        namespace = await controller.namespace()
        await trio.testing.wait_all_tasks_blocked()
        paused = True
        read = transport.read32

        def activating(offset: int) -> int:
            return read(offset) | (0x20 if offset == CSTS and paused else 0)

        transport.read32 = activating  # type: ignore[method-assign]
        transport.fate = lambda q, _c: Fate(hold=True) if q else None
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(namespace.read, 0, bytearray(512))
                await tell(transport, 2, 1, 3)
                await trio.sleep(1.0)
                assert controller.statistics().aborts == controller.statistics().resets == 0
                assert logs_read(transport) == []
                paused = False
                transport.finish_held()
        await trio.sleep(0.2)  # it looks twenty times a second
        assert logs_read(transport) == [3]


async def test_the_embedded_controllers_image_grows_and_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(bytes(4 * MIB))
    transport = open_embedded(path)
    async with await open_controller(transport) as controller:
        namespace = await controller.namespace()
        told = trio.Event()
        namespace.on_change.append(lambda _namespace: told.set())
        with trio.fail_after(10):
            os.truncate(path, 8 * MIB)
            transport.resize()
            await told.wait()
            assert namespace.size_bytes == 8 * MIB
            await namespace.write(8 * MIB // 512 - 1, b"e" * 512)
            told = trio.Event()
            os.truncate(path, 2 * MIB)
            transport.resize()
            await told.wait()
        assert namespace.size_bytes == 2 * MIB
        with pytest.raises(InvalidRequest, match="are outside"):
            await namespace.read(2 * MIB // 512, bytearray(512))


async def test_a_namespace_that_came_back() -> None:
    transport = FakeController()
    async with await open_controller(transport, options=FAST) as controller:
        namespace = await controller.namespace()
        good, transport.namespace = transport.namespace, bytearray(4096)
        everything = b"\xff" * 4 + bytes(4092)
        transport.fate = lambda _q, c: Fate(data=everything) if c[0] == GET_LOG else None
        await tell(transport, 2, 0, 4)
        with pytest.raises(InvalidRequest, match="the namespace is gone"):
            await namespace.read(0, bytearray(512))
        transport.namespace = good
        again = await controller.namespace()
        assert again is not namespace
        await again.read(0, bytearray(512))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=8), st.binary(min_size=64, max_size=64))
def test_any_event_and_any_page(events: list[int], noise: bytes) -> None:
    transport = FakeController()
    transport.fate = lambda _q, c: Fate(data=noise * 64) if c[0] == GET_LOG else None

    def page(command: bytes, data: bytes | bytearray) -> None:
        size = (struct.unpack_from("<I", command, 40)[0] >> 16) + 1
        to_host(command, data[: size * 4] if command[0] == GET_LOG else data)

    to_host = transport._to_host
    transport._to_host = page  # type: ignore[method-assign]

    async def main() -> None:
        with trio.fail_after(20):
            async with await open_controller(transport, options=FAST) as controller:
                namespace = await controller.namespace()
                for event in events:
                    await trio.testing.wait_all_tasks_blocked()
                    transport.event(event)
                await trio.testing.wait_all_tasks_blocked()
                assert controller.failure is None
                assert controller.statistics().events == len(events)
                await namespace.read(0, bytearray(512))

    trio.run(main)
