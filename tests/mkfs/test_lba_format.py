"""mkfs.nvmefs on a drive that is faster with other blocks says so, and how that is changed."""

from __future__ import annotations

import struct

import pytest

from driver import DriverOptions, open_controller
from mkfs.lba_format import advice
from nvmefs.device import Device
from tests.driver.fake import FakeController, identify_controller, identify_namespace

BEST, BETTER, GOOD, DEGRADED = range(4)
FORMAT_NVM = 0x02
FAST = DriverOptions(shutdown_timeout_s=0.2, identify_patience_s=0)


def drive(
    *formats: tuple[int, int, int], present: int = 0, oacs: int = FORMAT_NVM
) -> FakeController:
    """A drive with formats of (LBADS, metadata bytes, relative performance)."""
    namespace = identify_namespace()
    namespace[25], namespace[26] = len(formats) - 1, present
    for index, (shift, metadata, performance) in enumerate(formats):
        word = performance << 24 | shift << 16 | metadata
        struct.pack_into("<I", namespace, 128 + 4 * index, word)
    return FakeController(controller=identify_controller(oacs=oacs), namespace=namespace)


async def advised(transport: FakeController) -> str:
    async with await open_controller(transport, options=FAST) as controller:
        device = Device(await controller.namespace(), "0000:01:00.0", controller=controller)
        return await advice(device)


async def test_a_faster_one_is_named() -> None:
    text = await advised(drive((9, 0, DEGRADED), (12, 8, BEST), (12, 0, GOOD), (12, 0, BETTER)))
    assert text == (
        "the drive says of blocks of 512 bytes: degraded; of 4096: better; to change that, before there "
        "is data: nvmefs format 0000:01:00.0 --lbaf 3"
    )


@pytest.mark.parametrize(
    "transport",
    [
        drive((9, 0, BEST), (12, 0, BEST)),
        drive((9, 0, GOOD), (12, 0, DEGRADED)),
        drive((9, 0, DEGRADED)),
        drive((9, 0, DEGRADED), (12, 8, BEST)),  # with metadata, which the driver refuses
        drive((9, 0, DEGRADED), (0, 0, BEST)),  # not available
        drive((9, 0, DEGRADED), (12, 0, BETTER), present=1),
        drive((9, 0, DEGRADED), (12, 0, BEST), oacs=0),
    ],
    ids=["equal", "slower", "alone", "metadata", "not-there", "present", "no-format-command"],
)
async def test_there_is_nothing_to_say(transport: FakeController) -> None:
    assert await advised(transport) == ""
