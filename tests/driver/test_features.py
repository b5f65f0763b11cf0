"""driver.features: delays before retries are asked for where there are some; nothing else is touched."""

from __future__ import annotations

import struct

import pytest
import trio
import trio.testing

from driver import DriverOptions, open_controller

from .fake import FakeController, Fate, identify_controller

FAST = DriverOptions(shutdown_timeout_s=0.2, identify_patience_s=0)
SET_FEATURES, GET_FEATURES, HOST_BEHAVIOR = 0x09, 0x0A, 0x16


def with_delays(*delays: int) -> FakeController:
    raw = identify_controller()
    struct.pack_into("<HHH", raw, 128, *delays)
    return FakeController(controller=raw)


def features_set(transport: FakeController) -> list[int]:
    return [c[40] for q, c in transport.log if q == 0 and c[0] == SET_FEATURES]


async def test_delays_are_allowed_and_the_rest_of_the_behaviour_kept() -> None:
    transport = with_delays(1, 2, 3)
    written: list[bytes] = []

    def fate(_qid: int, command: bytes) -> Fate | None:
        if command[0] == GET_FEATURES and command[40] == HOST_BEHAVIOR:
            return Fate(data=bytes([0, 1, 1]).ljust(512, b"\0"))
        if command[0] == SET_FEATURES and command[40] == HOST_BEHAVIOR:
            written.append(transport._from_host(command, 512))
        return None

    transport.fate = fate
    async with await open_controller(transport, options=FAST) as controller:
        await controller.reset(lambda _piece: None)
    assert written == [bytes([1, 1, 1]).ljust(512, b"\0")] * 2


@pytest.mark.parametrize("refused", [GET_FEATURES, SET_FEATURES])
async def test_a_controller_that_refuses(refused: int) -> None:
    transport = with_delays(1, 0, 0)
    transport.fate = lambda _q, c: (
        Fate(status=0x4002) if c[0] == refused and c[40] == HOST_BEHAVIOR else None
    )
    async with await open_controller(transport, options=FAST) as controller:
        await (await controller.namespace()).read(0, bytearray(512))


async def test_power_coalescing_and_the_cache_are_left_alone() -> None:
    transport = with_delays(0, 0, 0)
    async with await open_controller(transport, options=FAST) as controller:
        await (await controller.namespace()).flush()
    assert features_set(transport) == [0x07, 0x0B], "number of queues, choice of events"


@pytest.mark.parametrize(("crd", "delay_s"), [(0, 0.0), (1, 0.1), (2, 1.5), (3, 20.0)])
async def test_a_retry_waits_as_the_controller_says(
    crd: int, delay_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    transport = with_delays(1, 15, 200)
    failures = 2

    def fate(qid: int, _command: bytes) -> Fate | None:
        nonlocal failures
        if qid and failures:
            failures -= 1
            return Fate(status=crd << 11 | 0x21)  # Command Interrupted
        return None

    transport.fate = fate
    async with await open_controller(transport, options=FAST) as controller:
        namespace = await controller.namespace()
        start = trio.current_time()
        await namespace.read(0, bytearray(512))
        assert trio.current_time() - start == pytest.approx(2 * delay_s, abs=0.05)
        assert controller.statistics().queues[1].retried == 2
