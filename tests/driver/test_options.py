"""driver.options: what is refused, and the deadlines that follow from them."""

from __future__ import annotations

import math

import pytest

from driver import Controller, DriverOptions, open_controller
from driver.identify import EBS_VENDOR

from .fake import FakeController, identify_controller

SECOND = 1_000_000_000


def of_vendor(vendor: int, model: str) -> FakeController:
    raw = identify_controller()
    raw[0:2] = vendor.to_bytes(2, "little")
    raw[24:64] = model.encode().ljust(40)
    return FakeController(controller=raw)


def deadlines(controller: Controller) -> tuple[int, int]:
    return controller.admin.timeout_ns, controller.io.timeout_ns


@pytest.mark.parametrize(
    ("vendor", "model", "options", "expected"),
    [
        (0x1234, "fake", DriverOptions(), (60 * SECOND, 30 * SECOND)),
        (EBS_VENDOR, "Amazon Elastic Block Store", DriverOptions(), (60 * SECOND, 0)),
        (
            EBS_VENDOR,
            "Amazon EC2 NVMe Instance Storage",
            DriverOptions(),
            (60 * SECOND, 30 * SECOND),
        ),
        (
            EBS_VENDOR,
            "Amazon Elastic Block Store",
            DriverOptions(command_timeout_s=5),
            (60 * SECOND, 5 * SECOND),
        ),
        (0x1234, "fake", DriverOptions(command_timeout_s=None, admin_timeout_s=None), (0, 0)),
    ],
)
async def test_deadlines(
    vendor: int, model: str, options: DriverOptions, expected: tuple[int, int]
) -> None:
    async with await open_controller(of_vendor(vendor, model), options=options) as controller:
        assert deadlines(controller) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command_timeout_s", 0),
        ("command_timeout_s", -1.0),
        ("command_timeout_s", math.inf),
        ("command_timeout_s", math.nan),
        ("command_timeout_s", "never"),
        ("admin_timeout_s", "auto"),
        ("keep_alive_s", -1),
        ("queue_depth", 1),
        ("io_queues", 0),
        ("poll_ns", -1),
        ("max_transfer_bytes", 512),
        ("retries", 256),
    ],
)
def test_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        DriverOptions(**{name: value})  # type: ignore[arg-type]
