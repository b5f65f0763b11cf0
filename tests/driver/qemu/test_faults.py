"""What goes wrong below QEMU's controller: failing media, slow and suspended I/O, QEMU killed.

blkdebug and throttle are block drivers between the image and the namespace.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from driver import (
    CommandError,
    CommandTimeout,
    ControllerFailed,
    ControllerGone,
    DriverOptions,
    open_controller,
)
from driver.transports.qtest import open_qtest

from .conftest import Open, until

EIO, ENOSPC = 5, 28
QUICK = DriverOptions(command_timeout_s=0.4, admin_timeout_s=5.0)


def failing(kind: str, *, once: bool = False, errno: int = EIO) -> dict[str, object]:
    """A medium on which I/O of one kind fails."""
    rule = {"event": "none", "iotype": kind, "errno": errno, "once": once}
    return {"driver": "blkdebug", "inject-error": [rule]}


@pytest.mark.parametrize(
    ("kind", "errno", "name", "sct", "sc"),
    [
        ("read", EIO, "Read: Unrecovered Read Error", 2, 0x81),
        ("write", EIO, "Write: Write Fault", 2, 0x80),
        ("write", ENOSPC, "Write: Write Fault", 2, 0x80),
        ("flush", EIO, "Flush: Write Fault", 2, 0x80),
    ],
)
async def test_a_failing_medium_is_named(
    kind: str, errno: int, name: str, sct: int, sc: int, opened: Open
) -> None:
    async with opened(filters=[failing(kind, errno=errno)]) as (controller, _):
        namespace = await controller.namespace()
        calls = {
            "read": lambda: namespace.read(7, bytearray(4096)),
            "write": lambda: namespace.write(7, bytes(4096)),
            "flush": namespace.flush,
        }
        for other, call in calls.items():
            if other != kind:
                await call()
        with pytest.raises(CommandError, match=name) as caught:
            await calls[kind]()
        assert (caught.value.sct, caught.value.sc) == (sct, sc)
        assert controller.statistics().queues[1].retried == controller.options.retries
        assert controller.failure is None


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
async def test_an_error_that_passes_is_not_seen(kind: str, opened: Open) -> None:
    """QEMU leaves Do Not Retry clear: the command is sent again."""
    async with opened(filters=[failing(kind, once=True)]) as (controller, _):
        namespace = await controller.namespace()
        await namespace.write(3, b"x" * 512)
        await namespace.flush()
        out = bytearray(512)
        await namespace.read(3, out)
        assert out == b"x" * 512
        assert controller.statistics().queues[1].retried == 1


async def test_one_bad_sector_among_many(image: Path, opened: Open) -> None:
    """The request that touches it fails, the others do not; in a long one the first error counts."""
    rule = {"event": "none", "iotype": "read", "errno": EIO, "sector": 100}
    image.write_bytes(os.urandom(1 << 20))
    async with opened({"mdts": 1}, filters=[{"driver": "blkdebug", "inject-error": [rule]}]) as (
        controller,
        _,
    ):
        namespace = await controller.namespace()
        outcome: dict[int, bool] = {}

        async def read(lba: int) -> None:
            try:
                await namespace.read(lba, bytearray(512))
                outcome[lba] = True
            except CommandError:
                outcome[lba] = False

        async with trio.open_nursery() as nursery:
            for lba in range(64, 164):
                nursery.start_soon(read, lba)
        assert [lba for lba, fine in outcome.items() if not fine] == [100]
        with pytest.raises(CommandError, match="Unrecovered Read Error"):
            await namespace.read(0, bytearray(1 << 20))


async def test_a_slow_medium_is_aborted_in_vain_reset_and_used_again(
    image: Path, opened: Open
) -> None:
    """QEMU 7.2 answers Abort and does nothing; a reset drains what was throttled."""
    image.write_bytes(os.urandom(1 << 20))
    async with opened({}, QUICK, filters=[]) as (controller, transport):
        namespace = await controller.namespace()
        limits = dict.fromkeys(["bps", "bps_rd", "bps_wr", "iops_rd", "iops_wr"], 0)
        transport.qemu.qmp("block_set_io_throttle", id="ns1", iops=1, **limits)
        outcome: list[str] = []

        async def read(lba: int) -> None:
            out = bytearray(512)
            try:
                await namespace.read(lba, out)
            except CommandTimeout:
                outcome.append("timeout")
            else:
                assert out == image.read_bytes()[lba * 512 : lba * 512 + 512]
                outcome.append("read")

        async with trio.open_nursery() as nursery:
            for lba in range(6):
                nursery.start_soon(read, lba)
            await until(lambda: controller.statistics().aborts > 0)
            await until(lambda: controller.statistics().resets > 0)
            transport.qemu.qmp("block_set_io_throttle", id="ns1", iops=0, **limits)
        stats = controller.statistics()
        assert len(outcome) == 6
        assert "timeout" in outcome
        assert stats.resets >= 1
        assert controller.failure is None
        await namespace.write(9, b"after" + bytes(507))
        out = bytearray(512)
        await namespace.read(9, out)
        assert out[:5] == b"after"
        assert image.read_bytes()[9 * 512 : 9 * 512 + 5] == b"after"


async def test_a_suspended_write_that_comes_back_in_time(image: Path, opened: Open) -> None:
    """Past its deadline, aborted in vain, and then it completes: no error and no reset."""
    options = DriverOptions(command_timeout_s=1.0)
    async with opened({}, options, filters=[{"driver": "blkdebug"}]) as (controller, transport):
        namespace = await controller.namespace()
        assert "error" not in transport.qemu.monitor('qemu-io disk1 "break write_aio held"').lower()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.write, 4, b"late" * 128)
            await until(lambda: controller.statistics().aborts == 1)
            # The others have not to wait for it.
            await namespace.read(0, bytearray(4096))
            assert image.read_bytes()[2048:2052] == bytes(4)
            transport.qemu.monitor('qemu-io disk1 "resume held"')
        assert image.read_bytes()[2048:2560] == b"late" * 128
        stats = controller.statistics()
        assert (stats.aborts, stats.resets) == (1, 0)
        assert stats.queues[1].bad_completions == 0


@pytest.mark.parametrize("shadow", [True, False], ids=["shadow", "messages"])
@pytest.mark.parametrize("interrupts", ["on", "off"], ids=["interrupts", "polling"])
async def test_qemu_killed_under_load(shadow: bool, interrupts: str, image: Path) -> None:
    options = DriverOptions(command_timeout_s=0.5, shadow_doorbells=shadow)
    transport = open_qtest([image], {"interrupts": interrupts})
    ended = 0

    with trio.fail_after(30):
        async with await open_controller(transport, options=options) as controller:
            namespace = await controller.namespace()

            async def writer(number: int) -> None:
                nonlocal ended
                data = bytes([number]) * 4096
                try:
                    while True:
                        await namespace.write(8 * number, data)
                except (ControllerGone, ControllerFailed):
                    ended += 1

            async with trio.open_nursery() as nursery:
                for number in range(24):
                    nursery.start_soon(writer, number)
                await until(lambda: controller.statistics().queues[1].completed > 200)
                os.kill(transport.qemu.pid, signal.SIGKILL)
            assert ended == 24
            with pytest.raises((ControllerGone, ControllerFailed)):
                await namespace.read(0, bytearray(512))
            assert controller.failure is not None
    with pytest.raises(ControllerGone):
        transport.read32(0)
