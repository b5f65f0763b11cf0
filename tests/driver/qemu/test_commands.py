"""Commands beyond reads and writes, namespaces, what is refused, events, and how QEMU is kept."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from driver import (
    AddressError,
    CommandError,
    ControllerError,
    DeviceBusy,
    DriverOptions,
    Namespace,
    TransportError,
    open_controller,
)
from driver.transports.qtest import open_qtest, parse_endpoint

from .conftest import MIB, Open, until

ROOT = Path(__file__).resolve().parents[3]
BLOCK = {"logical_block_size": 4096, "physical_block_size": 4096}


@pytest.mark.parametrize("options", [{}, BLOCK], ids=["512", "4096"])
async def test_zeroes_deallocate_compare_flush(
    options: dict[str, int], image: Path, opened: Open
) -> None:
    async with opened(options) as (controller, _):
        namespace = await controller.namespace()
        size = namespace.lba_bytes
        data = os.urandom(600 * size)
        await namespace.write(0, data)
        await namespace.flush()
        await namespace.compare(0, data)
        with pytest.raises(CommandError, match="Compare Failure"):
            await namespace.compare(1, data)
        expected = bytearray(data)
        await namespace.write_zeroes(3, 70)
        await namespace.write_zeroes(100, 1, deallocate=False)
        expected[3 * size : 73 * size] = bytes(70 * size)
        expected[100 * size : 101 * size] = bytes(size)
        assert image.read_bytes()[: len(data)] == expected
        # More ranges than one command takes; a neighbour of each must survive.
        await namespace.deallocate([(200 + 2 * i, 1) for i in range(190)])
        await namespace.deallocate([(10_000 + 2 * i, 1) for i in range(300)])
        out = bytearray(len(data))
        await namespace.read(0, out)
        for i in range(600):
            if not (200 <= i < 580 and i % 2 == 0):
                assert out[i * size : (i + 1) * size] == expected[i * size : (i + 1) * size], i


async def test_writes_zeroes_beyond_one_command(image: Path, opened: Open) -> None:
    async with opened() as (controller, _):
        namespace = await controller.namespace()
        for first in (1, 70_000, namespace.lba_count - 2):
            await namespace.write(first, b"x" * 512)
        await namespace.write_zeroes(0, namespace.lba_count)
        assert not any(image.read_bytes())


async def test_blocks_beyond_the_end_named_by_the_controller(opened: Open) -> None:
    """The driver refuses them; the controller's own refusal is understood as well."""
    async with opened() as (controller, _):
        namespace = await controller.namespace()
        namespace.lba_count += 8
        with pytest.raises(CommandError, match="LBA Out of Range") as caught:
            await namespace.read(namespace.lba_count - 8, bytearray(512))
        assert (caught.value.sct, caught.value.sc, caught.value.dnr) == (0, 0x80, True)


async def test_two_namespaces(image: Path, tmp_path: Path, opened: Open) -> None:
    second = tmp_path / "second,with comma.img"
    second.write_bytes(bytes(8 * MIB))
    async with opened(images=[image, second]) as (controller, _):
        assert await controller.namespaces() == [1, 2]
        one, two = await controller.namespace(1), await controller.namespace(2)
        assert (one.size_bytes, two.size_bytes) == (64 * MIB, 8 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.write, 5, b"1" * MIB)
            nursery.start_soon(two.write, 5, b"2" * MIB)
        for path, byte in ((image, b"1"), (second, b"2")):
            assert path.read_bytes()[: 2560 + MIB] == bytes(2560) + byte * MIB
        with pytest.raises(ControllerError, match="no such namespace"):
            await controller.namespace(3)


async def test_two_controllers(image: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(bytes(8 * MIB))
    async with (
        await open_controller(f"qtest:{image}?mdts=2") as a,
        await open_controller(f"qtest:{second}?interrupts=off") as b,
    ):
        for controller, byte in ((a, b"a"), (b, b"b")):
            await (await controller.namespace()).write(0, byte * 512)
    assert image.read_bytes()[:512] + second.read_bytes()[:512] == b"a" * 512 + b"b" * 512


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ms": 8}, "8 bytes of metadata per block: not supported"),
        ({"ms": 16, "mset": 1}, "16 bytes of metadata per block: not supported"),
        ({"ms": 8, "pi": 1}, "metadata"),
        ({"zoned": "on", "zoned.zone_size": "4M"}, r"I/O command set 2 \(2 is zoned\)"),
    ],
)
async def test_formats_that_are_refused(
    options: dict[str, str | int], words: str, opened: Open
) -> None:
    async with opened(options) as (controller, _):
        with pytest.raises(ControllerError, match=words) as caught:
            await controller.namespace()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"cmb_size_mb": 4},
        {"ioeventfd": "on"},
        {"use-intel-id": "on", "num_queues": 4},
        {"aerl": 0},
        {"vsl": 1},
        {"msix_qsize": 2048},
        {"write-cache": "off"},
        {"memory": 8},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
async def test_other_kinds_of_controller(
    options: dict[str, str | int], image: Path, opened: Open
) -> None:
    async with opened(options) as (controller, _):
        namespace = await controller.namespace()
        data = os.urandom(3 * MIB)
        await namespace.write(1, data)
        await namespace.flush()
        assert image.read_bytes()[512 : 512 + len(data)] == data
        out = bytearray(len(data))
        await namespace.read(1, out)
        assert out == data


async def test_a_health_event_is_logged(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (controller, transport):
        await (await controller.namespace()).flush()
        path = "/machine/peripheral/nvme"
        transport.qemu.qmp("qom-set", path=path, property="smart_critical_warning", value=4)
        await until(lambda: controller.events == 1 and "health event" in caplog.text)
        assert (await controller.log_page(2, 512))[0] == 4
    assert "health event: reliability degraded" in caplog.text
    caplog.clear()


async def test_shadow_doorbells_save_messages(opened: Open) -> None:
    """With several in flight the controller says by its event index what it need not be told."""
    saved = {}
    for shadow in (True, False):
        options = DriverOptions(shadow_doorbells=shadow, poll_ns=0)
        async with opened({}, options) as (controller, _):
            namespace = await controller.namespace()

            async def reader(namespace: Namespace) -> None:
                for lba in range(40):
                    await namespace.read(lba, bytearray(512))

            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(reader, namespace)
            queue = controller.statistics().queues[1]
            saved[shadow] = queue.doorbells_saved
            assert queue.lost_interrupts == queue.timeouts == 0
    assert saved[True] > saved[False] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mdst": 5}, "does not start: .*mdst.* not found"),
        ({"max_ioqpairs": 0}, "does not start: .*max_ioqpairs must be between"),
        ({"logical_block_size": 513}, "does not start: .*logical_block_size"),
        ({"msix-exclusive-bar": "on"}, "the MSI-X table is in BAR 4"),
    ],
)
def test_qemus_own_reasons(options: dict[str, str | int], words: str, image: Path) -> None:
    with pytest.raises(TransportError, match=words) as caught:
        open_qtest([image], options)
    assert "\n" not in str(caught.value)


def test_an_image_in_use(image: Path) -> None:
    transport = open_qtest([image])
    try:
        with pytest.raises(DeviceBusy, match=r'Failed to get "write" lock; Is another process'):
            open_qtest([image])
    finally:
        transport.close()
    transport.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.img?mdts", "not an option"),
        ("a.img?mdts=5,drive=x", "not an option"),
        ("a.img?mdts=5&mdts=6", "once"),
        ("a.img,,b.img", "an image is missing"),
    ],
)
def test_addresses_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        parse_endpoint(text)


def test_guest_memory_that_is_too_small(image: Path) -> None:
    async def main() -> None:
        options = DriverOptions(dma_bytes=64 * MIB)
        async with await open_controller(f"qtest:{image}?memory=8", options=options) as controller:
            with pytest.raises(TransportError, match="give memory=MIB"):
                controller.dma.allocate(16 * MIB)

    trio.run(main)
    with pytest.raises(AddressError, match="from 8 to 2048"):
        open_qtest([image], {"memory": 4})
    with pytest.raises(AddressError, match="on or off"):
        open_qtest([image], {"interrupts": "maybe"})


def test_qemu_ends_with_the_process_that_started_it(image: Path) -> None:
    code = (
        "import sys, time\n"
        "from driver.transports.qtest import open_qtest\n"
        "print(open_qtest([sys.argv[1]]).qemu.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(image)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert "qemu" in Path(f"/proc/{pid}/comm").read_text()
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    end = time.monotonic() + 20
    while (
        os.path.exists(f"/proc/{pid}")
        and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    ):
        assert time.monotonic() < end, "QEMU outlived its parent"
        time.sleep(0.01)


async def test_the_log_is_quiet(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of QEMU's controller is worth a warning."""
    async with opened() as (controller, _):
        await (await controller.namespace()).write(0, b"x" * 512)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
