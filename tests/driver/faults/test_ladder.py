"""The driver's deadlines, aborts and resets on a faulty controller: what the campaign has found."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from driver import (
    CommandTimeout,
    Controller,
    DriverError,
    DriverOptions,
    Namespace,
    open_controller,
)
from driver.tools.perf import Job, measure
from driver.transports.embedded import EmbeddedTransport, open_embedded
from tests.driver.faults.guard import Guard
from tests.driver.faults.rules import CLAIMS

OPTIONS = DriverOptions(command_timeout_s=0.1, admin_timeout_s=0.5, shutdown_timeout_s=0.5)
BLOCK = 512


@asynccontextmanager
async def opened(
    tmp_path: Path, *rules: str, **options: object
) -> AsyncIterator[tuple[EmbeddedTransport, Controller, Namespace]]:
    """A controller on a fresh image; the rules count from here on."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    transport = open_embedded(image, **options)  # type: ignore[arg-type]
    async with await open_controller(transport, options=OPTIONS) as controller:
        namespace = await controller.namespace()
        transport.set_faults(rules)
        yield transport, controller, namespace


async def until(condition: Callable[[], object]) -> None:
    """Until this is true."""
    with trio.fail_after(5):
        while True:
            if condition():
                return
            await trio.sleep(0.001)


async def test_who_leaves_during_a_reset_takes_his_command_along(tmp_path: Path) -> None:
    """It was sent again, from memory that had been given back."""
    rules = ("io:read nth=1 drop", "io:write nth=1 never", "enable nth=1 delay=50ms")
    async with opened(tmp_path, *rules) as (transport, controller, namespace):
        guard = Guard(controller.dma)
        buffer = namespace.dma.allocate(BLOCK)
        buffer.view[:] = b"x" * BLOCK

        async def lost() -> None:
            with pytest.raises(CommandTimeout):
                await namespace.read(0, bytearray(BLOCK))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            await until(lambda: controller.statistics().aborts)
            await trio.sleep(0.05)  # half of the time that is left before the reset
            leaving = trio.CancelScope()

            async def leave() -> None:
                with leaving:
                    await namespace.write(5, buffer)

            nursery.start_soon(leave)
            await until(lambda: buffer.busy)
            await until(lambda: not buffer.busy)  # the controller is off, and not on again
            leaving.cancel()
            await trio.testing.wait_all_tasks_blocked()
            buffer.release()
        seen = transport.statistics()["writes"]
        out = bytearray(BLOCK)
        await namespace.read(5, out)
        assert out == bytes(BLOCK)
        assert transport.statistics()["writes"] == seen == 0
        guard.check()
        assert controller.failure is None


@pytest.mark.parametrize("claim", CLAIMS)
async def test_what_a_controller_claims_is_an_error_or_works(claim: str, tmp_path: Path) -> None:
    """Doorbells that a stride of 128 KiB puts behind the end of the registers were no error of ours."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    rules = ["controller to=1", f"controller {claim}"]
    try:
        controller = await open_controller(open_embedded(image, faults=rules), options=OPTIONS)
    except DriverError:
        return
    async with controller:
        with contextlib.suppress(DriverError):
            namespace = await controller.namespace()
            await namespace.write(1, b"a" * BLOCK)
            out = bytearray(BLOCK)
            await namespace.read(1, out)
            assert out == b"a" * BLOCK


async def test_the_queue_pair_of_a_c_thread_survives_what_loses_nothing(tmp_path: Path) -> None:
    rules = (
        "io p=0.01 duplicate=2",
        "io p=0.01 delay=500us",
        "io p=0.01 behind=5",
        "io p=0.01 quiet",
        "io p=0.01 spurious",
        "io p=0.01 sqhead=0xffff",
    )
    async with opened(tmp_path, *rules) as (transport, controller, _):
        found = await measure(controller, None, Job("randread", 4096, 8, 0.5))
        assert found["commands"] > 100
        assert found["failed"] == 0
        counts = transport.statistics()
        assert counts["fault_hits"] > 20
        assert counts["stray_accesses"] == 0
        assert controller.failure is None
