"""driver.management: what is sent, what is refused before, and what becomes of namespaces in use."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from driver import (
    CommandError,
    ControllerError,
    DriverOptions,
    InvalidRequest,
    Unsupported,
    open_controller,
)
from driver.management import ERASE_DATA, ERASE_KEY
from driver.transports.embedded import open_embedded

from .fake import FakeController, Fate, identify_controller, identify_namespace

MIB = 1 << 20
FAST = DriverOptions(shutdown_timeout_s=0.2, identify_patience_s=0)
FORMAT, MANAGEMENT, ATTACHMENT = 0x80, 0x0D, 0x15


def fake(oacs: int = 0x0A, fna: int = 0, formats: int = 2) -> FakeController:
    controller = identify_controller(oacs=oacs)
    controller[524] = fna
    struct.pack_into("<H", controller, 78, 7)
    struct.pack_into("<I", controller, 516, 4)
    namespace = identify_namespace()
    namespace[25] = formats - 1
    struct.pack_into("<II", namespace, 132, 12 << 16, 12 << 16 | 8)
    return FakeController(controller=controller, namespace=namespace)


def admin(transport: FakeController, opcode: int) -> list[bytes]:
    return [command for qid, command in transport.log if qid == 0 and command[0] == opcode]


@pytest.mark.parametrize("erase", [0, 1])
async def test_format_of_the_embedded_controller(tmp_path: Path, erase: int) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"x" * 4 * MIB)
    async with await open_controller(open_embedded(path)) as controller:
        before = await controller.namespace()
        assert (before.lba_bytes, before.identify.format_index) == (512, 0)
        for index, size in ((1, 4096), (None, 4096), (0, 512), (1, 4096)):
            await controller.manage.format(1, index, erase=erase)
            assert path.read_bytes() == bytes(4 * MIB)
            with pytest.raises(InvalidRequest, match=r"the namespace is gone: it was formatted"):
                await before.read(0, bytearray(4096))
            before = await controller.namespace()
            assert (before.lba_bytes, before.size_bytes) == (size, 4 * MIB)
            data = os.urandom(16 * size)
            await before.write(3, data)
            assert path.read_bytes()[3 * size : 19 * size] == data


async def test_what_is_sent() -> None:
    transport = fake(fna=4)
    async with await open_controller(transport, options=FAST) as controller:
        await controller.manage.format(1, 1, erase=ERASE_KEY)
        (command,) = admin(transport, FORMAT)
        assert struct.unpack_from("<I", command, 4)[0] == 1
        assert struct.unpack_from("<I", command, 40)[0] == 1 | 2 << 9


@pytest.mark.parametrize(
    ("oacs", "fna", "index", "erase", "error", "words"),
    [
        (0x08, 0, 0, 0, Unsupported, "no Format NVM"),
        (0x0A, 0, 0, ERASE_KEY, Unsupported, "erase by its key"),
        (0x0A, 0, 3, 0, InvalidRequest, "no format 3: there are 0 to 2"),
        (0x0A, 0, -1, 0, InvalidRequest, "no format -1"),
        (0x0A, 0, 2, 0, InvalidRequest, "format 2: 8 bytes of metadata"),
        (0x0A, 0, 0, 3, InvalidRequest, "erase is 3"),
        (0x0A, 1, 0, 0, InvalidRequest, "all namespaces at once.*others: 2, 4"),
        (0x0A, 2, 0, ERASE_DATA, InvalidRequest, "all namespaces at once"),
    ],
)
async def test_formats_that_are_refused(
    oacs: int, fna: int, index: int, erase: int, error: type[Exception], words: str
) -> None:
    transport = fake(oacs, fna, formats=3)

    def fate(_qid: int, command: bytes) -> Fate | None:
        active = command[0] == 6 and command[40] == 2
        return Fate(data=struct.pack("<III", 1, 2, 4).ljust(4096, b"\0")) if active else None

    transport.fate = fate
    async with await open_controller(transport, options=FAST) as controller:
        namespace = await controller.namespace()
        with pytest.raises(error, match=words):
            await controller.manage.format(1, index, erase=erase)
        assert admin(transport, FORMAT) == []
        await namespace.read(0, bytearray(512))


async def test_a_format_that_fails_leaves_the_namespace() -> None:
    transport = fake()
    transport.fate = lambda _qid, c: Fate(status=0x410A) if c[0] == FORMAT else None
    async with await open_controller(transport, options=FAST) as controller:
        namespace = await controller.namespace()
        with pytest.raises(CommandError, match="Invalid Format"):
            await controller.manage.format(1, 1)
        await namespace.read(0, bytearray(512))


async def test_a_namespace_with_metadata_is_formatted_to_one_without() -> None:
    transport = fake(formats=3)
    transport.namespace[26] = 2
    async with await open_controller(transport, options=FAST) as controller:
        with pytest.raises(ControllerError, match=r"8 bytes of metadata.*nvmefs format"):
            await controller.namespace()
        await controller.manage.format(1, 1)
        assert len(admin(transport, FORMAT)) == 1


async def test_namespaces_come_and_go() -> None:
    transport = fake()
    lists: list[bytes] = []

    def fate(_qid: int, command: bytes) -> Fate | None:
        if command[0] == MANAGEMENT:
            if not command[40]:
                lists.append(transport._from_host(command, 4096))
            return Fate(result=3)
        if command[0] == ATTACHMENT:
            lists.append(transport._from_host(command, 4096))
            return Fate(result=0)
        return None

    transport.fate = fate
    async with await open_controller(transport, options=FAST) as controller:
        assert await controller.manage.create(5000, 1) == 3
        assert struct.unpack_from("<QQ", lists[-1]) == (5000, 5000)
        assert (lists[-1][26], any(lists[-1][27:])) == (1, False)
        await controller.manage.attach(3)
        assert struct.unpack_from("<HHH", lists[-1]) == (1, 7, 0)
        await controller.manage.attach(3, [9, 2])
        assert struct.unpack_from("<HHHH", lists[-1]) == (2, 2, 9, 0)
        namespace = await controller.namespace(1)
        await controller.manage.detach(1, [2])
        await namespace.read(0, bytearray(512))
        await controller.manage.detach(1)
        with pytest.raises(InvalidRequest, match="it was detached"):
            await namespace.read(0, bytearray(512))
        namespace = await controller.namespace(1)
        await controller.manage.delete(1)
        with pytest.raises(InvalidRequest, match="it was deleted"):
            await namespace.read(0, bytearray(512))
        selectors = [
            (c[0], struct.unpack_from("<I", c, 4)[0], c[40])
            for q, c in transport.log
            if q == 0 and c[0] in (MANAGEMENT, ATTACHMENT)
        ]
        assert selectors == [
            (MANAGEMENT, 0, 0),
            (ATTACHMENT, 3, 0),
            (ATTACHMENT, 3, 0),
            (ATTACHMENT, 1, 1),
            (ATTACHMENT, 1, 1),
            (MANAGEMENT, 1, 1),
        ]


async def test_management_that_is_refused() -> None:
    async with await open_controller(fake(oacs=0x02), options=FAST) as controller:
        for call in (
            controller.manage.create(1),
            controller.manage.delete(1),
            controller.manage.attach(1),
            controller.manage.detach(1),
        ):
            with pytest.raises(Unsupported, match="does not manage namespaces"):
                await call
    async with await open_controller(fake(formats=3), options=FAST) as controller:
        for blocks, form in ((0, 0), (9, 3), (9, 2)):
            with pytest.raises(InvalidRequest, match="format"):
                await controller.manage.create(blocks, form)
        with pytest.raises(InvalidRequest, match="list of 0 controllers"):
            await controller.manage.attach(1, [])
