"""Skipped, with the reason, where there is no QEMU; what all tests here share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from driver import Controller, DriverOptions, open_controller
from driver.transports.qemu import missing
from driver.transports.qtest import QtestTransport, open_qtest

MIB = 1 << 20
Opened: TypeAlias = "tuple[Controller, QtestTransport]"
Open: TypeAlias = "Callable[..., AbstractAsyncContextManager[Opened]]"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of 64 MiB."""
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 64 * MIB)
    return path


@pytest.fixture
def opened(image: Path) -> Open:
    """opened({"mdts": 5}, driver_options, filters=..., images=...): a controller and its transport."""

    @asynccontextmanager
    async def opened(
        options: Mapping[str, str | int] | None = None,
        driver_options: DriverOptions | None = None,
        *,
        filters: Sequence[Mapping[str, object]] = (),
        images: Sequence[Path] = (),
    ) -> AsyncIterator[Opened]:
        transport = open_qtest(images or [image], options, filters=filters)
        pid = transport.qemu.pid
        with trio.fail_after(100):
            async with await open_controller(transport, options=driver_options) as controller:
                yield controller, transport
                assert controller.dma.statistics().held_buffers == 0
        assert not os.path.exists(f"/proc/{pid}"), "QEMU was not reaped"

    return opened


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that nothing tells of, ten seconds at most."""
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.sleep(0.005)
