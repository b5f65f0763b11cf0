"""The driver on `nvmefs controller`: bring-up, I/O verified by the image, each kind of doorbell, queues."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from driver import DriverOptions, open_controller
from driver.errors import CommandError, ControllerError
from driver.transports.vfio_user import open_vfio_user
from tests.driver.vfio_user.conftest import MIB, Hosted, Server

Start = Callable[..., Server]
Host = Callable[..., Hosted]

# (mapped, kicked, shadow doorbells)
DOORBELLS = {
    "kicked": (True, True, True),
    "shadow": (True, False, True),
    "messages": (False, False, False),
    "shadow-messages": (False, False, True),
    "kicked-only": (True, True, False),
    "memory-only": (True, False, False),
}


def without_kick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client stores doorbells into the mapped page and tells nobody."""
    monkeypatch.setattr(
        "driver.transports.vfio_user.VfioUserTransport._find_kick", lambda _self, nbytes: nbytes
    )


@pytest.mark.parametrize("mode", DOORBELLS)
async def test_each_way_to_ring(
    host: Host, image: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, kick, shadow = DOORBELLS[mode]
    hosted = host(on_image=True, map_doorbells=mapped, shadow_doorbells=shadow)
    if not kick:
        without_kick(monkeypatch)
    random_data = random.Random(mode)
    with trio.fail_after(40):
        async with await open_controller(hosted.address) as controller:
            doorbells = controller.transport.doorbells
            assert (doorbells is not None) == mapped
            assert doorbells is None or (doorbells.kick_fd >= 0) == kick
            assert controller.statistics().shadow_doorbells == shadow
            namespace = await controller.namespace(1)
            expected = {}
            for _ in range(20):
                lba = random_data.randrange(0, 60 * MIB // 512)
                data = random_data.randbytes(512 * random_data.choice((1, 7, 8, 129, 2049)))
                await namespace.write(lba, data)
                expected[lba] = data
                back = bytearray(len(data))
                await namespace.read(lba, back)
                assert back == data
            async with trio.open_nursery() as nursery:
                for i in range(30):
                    nursery.start_soon(namespace.write, 124000 + 8 * i, bytes([i]) * 4096)
            await namespace.flush()
    raw = image.read_bytes()
    for i in range(30):
        assert raw[(124000 + 8 * i) * 512 :][:4096] == bytes([i]) * 4096
    lba, data = expected.popitem()
    assert raw[lba * 512 :][: len(data)] == data


@pytest.mark.parametrize(("vectors", "queues"), [(1, 1), (1, 2), (2, 2), (3, 2), (40, 1)])
async def test_vectors_and_queues(host: Host, vectors: int, queues: int) -> None:
    hosted = host(on_image=True, queues=queues, vectors=vectors, queue_entries=8)
    options = DriverOptions(poll_ns=0, io_queues=8)
    with trio.fail_after(40):
        async with await open_controller(hosted.address, options=options) as controller:
            assert controller.transport.vectors == vectors
            assert controller.io_queues_granted == queues
            namespace = await controller.namespace(1)
            await namespace.write(8, bytes(range(256)) * 64)
            back = bytearray(16384)
            await namespace.read(8, back)
            assert back == bytes(range(256)) * 64


@pytest.mark.parametrize(("lba_size", "mdts"), [(512, 8192), (4096, 128 << 10), (4096, 0)])
async def test_shapes(host: Host, image: Path, lba_size: int, mdts: int) -> None:
    server = host(on_image=True, lba_size=lba_size, mdts=mdts)
    data = os.urandom(3 * MIB)
    with trio.fail_after(40):
        async with await open_controller(server.address) as controller:
            namespace = await controller.namespace(1)
            assert namespace.lba_bytes == lba_size
            await namespace.write(5, data)
            back = bytearray(len(data))
            await namespace.read(5, back)
    assert back == data
    assert image.read_bytes()[5 * lba_size :][: len(data)] == data


async def test_read_only(host: Host) -> None:
    server = host(on_image=True, read_only=True)
    async with await open_controller(server.address) as controller:
        namespace = await controller.namespace(1)
        with pytest.raises((CommandError, ControllerError, ValueError)):
            await namespace.write(0, bytes(512))
        back = bytearray(512)
        await namespace.read(0, back)


async def test_reset_with_commands_in_flight(start: Start) -> None:
    """A command that is lost climbs the ladder to the reset; what was in flight is sent again."""
    server = start("--fault", "io:write nth=5 drop", "--fault", "admin:abort status=6")
    options = DriverOptions(command_timeout_s=0.3)
    with trio.fail_after(40):
        async with await open_controller(server.address, options=options) as controller:
            namespace = await controller.namespace(1)
            failed = []

            async def write(i: int) -> None:
                try:
                    await namespace.write(8 * i, bytes([i]) * 4096)
                except Exception as error:  # noqa: BLE001 - looked at below
                    failed.append((i, error))

            async with trio.open_nursery() as nursery:
                for i in range(1, 30):
                    nursery.start_soon(write, i)
            assert controller.statistics().resets == 1
            assert len(failed) <= 1
            lost = {i for i, _ in failed}
            back = bytearray(4096)
            for i in set(range(1, 30)) - lost:
                await namespace.read(8 * i, back)
                assert back == bytes([i]) * 4096


async def test_queue_pairs_of_others(host: Host) -> None:
    """take_queue(): a thread in C would have it; its vector and its doorbells are its own."""
    server = host(queues=3)
    async with await open_controller(server.address) as controller:
        taken = [await controller.take_queue(), await controller.take_queue(interrupts=False)]
        assert [queue.qid for queue in taken] == [2, 3]
        assert all(queue.ring_address for queue in taken)
        with pytest.raises(ControllerError, match="3 I/O queues were granted"):
            await controller.take_queue()


async def test_clients_one_after_the_other(host: Host) -> None:
    server = host(on_image=True)
    for i in range(3):
        async with await open_controller(server.address) as controller:
            namespace = await controller.namespace(1)
            back = bytearray(512)
            await namespace.read(7, back)
            assert back == bytes([i]) * 512
            await namespace.write(7, bytes([i + 1]) * 512)


async def test_a_client_that_leaves_without_a_word(start: Start) -> None:
    """The connection closes under an enabled controller: the next client finds it as after power-up."""
    server = start()
    transport = open_vfio_user(server.path)
    transport.write64(0x28, 0x100000)
    transport.write32(0x14, 1)  # enabled with admin queues in memory that is not there
    transport.close()
    server.until("left:")
    transport = open_vfio_user(server.path)
    assert transport.read32(0x14) == transport.read32(0x1C) == 0
    assert transport.read64(0x28) == 0
    transport.close()
