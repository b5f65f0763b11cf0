"""driver.keepalive: at half of the controller's time, only where a timer runs, and again after a reset."""

from __future__ import annotations

import itertools
import struct

import pytest
import trio

from driver import DriverOptions, open_controller

from .fake import FakeController, Fate, identify_controller

KEEP_ALIVE, SET_FEATURES, GET_FEATURES, KATO = 0x18, 0x09, 0x0A, 0x0F


class Timed:
    """A controller whose Keep Alive timer is as it should be, and the moments at which it was told."""

    def __init__(self, granularity: int, default_ms: int) -> None:
        raw = identify_controller()
        struct.pack_into("<H", raw, 320, granularity)
        self.transport = FakeController(controller=raw, fate=self.fate)
        self.default_ms = self.timer_ms = default_ms
        self.told: list[float] = []

    def fate(self, qid: int, command: bytes) -> Fate | None:
        if qid == 0 and command[0] == KEEP_ALIVE:
            self.told.append(trio.current_time())
            return Fate(result=0)
        if qid == 0 and command[0] in (SET_FEATURES, GET_FEATURES) and command[40] == KATO:
            if command[0] == SET_FEATURES:
                self.timer_ms = struct.unpack_from("<I", command, 44)[0]
            return Fate(result=self.timer_ms)
        return None


async def lived(timed: Timed, keep_alive_s: float, seconds: float) -> list[float]:
    """The pauses between Keep Alives, in seconds."""
    options = DriverOptions(keep_alive_s=keep_alive_s, identify_patience_s=0)
    async with await open_controller(timed.transport, options=options):
        start = trio.current_time()
        await trio.sleep(seconds)
    times = [start, *timed.told]
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize(
    ("granularity", "default_ms", "asked_s", "timer_ms"),
    [
        (1, 0, 2.0, 2000),
        (1, 0, 2.05, 2100),  # in whole units of 100 ms
        (10, 0, 1.5, 2000),
        (1, 3000, 0.0, 3000),  # the controller turned it on by itself
        (1, 3000, 2.0, 2000),
    ],
)
async def test_at_half_of_the_time(
    granularity: int,
    default_ms: int,
    asked_s: float,
    timer_ms: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    timed = Timed(granularity, default_ms)
    pauses = await lived(timed, asked_s, 10.0)
    assert timed.timer_ms == timer_ms
    assert pauses[0] < 0.05
    assert set(pauses[1:]) == {timer_ms / 2000}
    assert len(pauses) == pytest.approx(10_000 * 2 / timer_ms, abs=1)


@pytest.mark.parametrize(("granularity", "asked_s"), [(1, 0.0), (0, 0.0), (0, 5.0)])
async def test_none_where_no_timer_runs(
    granularity: int,
    asked_s: float,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    timed = Timed(granularity, 0)
    assert await lived(timed, asked_s, 60.0) == []
    assert ("no Keep Alive (KAS is 0)" in caplog.text) is bool(asked_s)


async def test_a_reset_undoes_the_timer_and_the_next_turn_sets_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    timed = Timed(1, 0)
    options = DriverOptions(keep_alive_s=2.0, identify_patience_s=0)
    async with await open_controller(timed.transport, options=options) as controller:
        await trio.sleep(3.5)
        await controller.reset(lambda _piece: None)
        timed.timer_ms = timed.default_ms
        await trio.sleep(1.0)
        assert timed.timer_ms == 2000


async def test_a_refusal_is_logged_and_tried_again(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    timed = Timed(1, 2000)
    refused = 3

    def fate(qid: int, command: bytes) -> Fate | None:
        nonlocal refused
        if qid == 0 and command[0] == KEEP_ALIVE and refused:
            refused -= 1
            return Fate(status=0x4001)
        return timed.fate(qid, command)

    timed.transport.fate = fate
    assert len(await lived(timed, 0.0, 5.0)) >= 4
    assert caplog.text.count("keep alive: ") == 3
