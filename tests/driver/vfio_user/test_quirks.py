"""The driver on a server with the quirks of the widest-used one, as they were measured there.

It tells of nothing mappable to a client that asks with argsz 32; takes 64 DMA regions, with read and
write set and no other flag, each with a file that is long enough; takes 8 descriptors a message; reads
and writes registers by 4 or 8 bytes; has no I/O descriptors; and its reply to VERSION names a capability
that nobody asked for. CAP.MQES is 255, MDTS 128 KiB.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from driver import DriverOptions, open_controller
from driver.bringup import Hardware
from driver.errors import ControllerGone, TransportError
from driver.transports.vfio_user import open_vfio_user
from driver.vfio_user import messages as m
from driver.vfio_user.channel import Message
from driver.vfio_user.function import NvmeFunction, Reply
from driver.vfio_user.messages import Command, ProtocolError
from tests.driver.vfio_user.conftest import MIB, Hosted, until
from tests.driver.vfio_user.test_fuzz import FakePeer, sane_reply

Host = Callable[..., Hosted]
MAX_REGIONS = 64
SHAPE: dict[str, int] = {"queue_entries": 256, "mdts": 128 << 10, "queues": 127, "vectors": 32}


class Quirky(NvmeFunction):
    """Refuses what that server refuses, and remembers what it was asked."""

    def begin(self) -> None:
        super().begin()
        self.asked: list[tuple[int, bytes]] = []
        self.mapped: dict[int, int] = {}
        self.most_mapped = 0

    def execute(self, message: Message) -> Reply:
        command, payload = message.header.command, message.payload
        self.asked.append((command, payload))
        if command == Command.VERSION:
            return self._greet(message)
        if command == Command.GET_REGION_IO_FDS:
            raise ProtocolError("not supported", errno.ENOTSUP)
        if command == Command.SET_IRQS and len(message.fds) > 8:
            raise ProtocolError("too many descriptors")
        if command in (Command.REGION_READ, Command.REGION_WRITE):
            access = m.RegionAccess.parse(payload)
            if access.region == m.REGION_BAR0 and access.count not in (4, 8):
                raise ProtocolError("a register of an odd size")
        if command == Command.DMA_MAP:
            self._look_at_map(message)
        if command == Command.DMA_UNMAP:
            request = m.DmaUnmap.parse(payload)
            assert self.mapped.pop(request.address) == request.size, "not exactly as it was mapped"
        return super().execute(message)

    def _greet(self, message: Message) -> Reply:
        version = m.Version.parse(super().execute(message).payload)
        capabilities = {
            "max_msg_fds": 8,
            "max_data_xfer_size": 1 << 20,
            "migration": {"pgsize": 4096},
        }
        text = json.dumps({"capabilities": capabilities}).encode()
        return Reply(version.minor.to_bytes(4, "big")[:2] + b"\1\0" + text + b"\0")

    def _look_at_map(self, message: Message) -> None:
        request = m.DmaMap.parse(message.payload)
        if request.flags != 3 or request.argsz != 32 or len(message.fds) != 1:
            raise ProtocolError("flags or descriptors")
        if os.fstat(message.fds[0]).st_size < request.offset + request.size:
            raise AssertionError("the real one hangs now")
        if len(self.mapped) >= MAX_REGIONS:
            raise ProtocolError("too many regions")
        self.mapped[request.address] = request.size
        self.most_mapped = max(self.most_mapped, len(self.mapped))


async def test_the_driver_gets_along(host: Host) -> None:
    hosted = host(on_image=True, kind=Quirky, **SHAPE)
    function = hosted.function
    assert isinstance(function, Quirky)
    options = DriverOptions(io_queues=31, queue_depth=1024, dma_bytes=512 * MIB)
    data = os.urandom(3 * MIB)
    with trio.fail_after(40):
        async with await open_controller(hosted.address, options=options) as controller:
            doorbells = controller.transport.doorbells
            assert doorbells is not None
            assert doorbells.kick_fd == -1
            assert controller.transport.vectors == 32
            assert controller.io.depth == 256
            assert controller.identify.max_transfer_bytes == 128 << 10
            namespace = await controller.namespace(1)
            buffers = [controller.dma.allocate(4 * MIB) for _ in range(100)]
            await namespace.write(16, data)
            back = bytearray(len(data))
            await namespace.read(16, back)
            assert back == data
            for buffer in buffers:
                buffer.release()
    assert function.most_mapped <= 24, "few and large"
    assert not function.mapped, "each region is taken back"
    commands = [command for command, _ in function.asked]
    shutdown = max(
        i
        for i, (command, payload) in enumerate(function.asked)
        if command == Command.REGION_WRITE and payload[:4] == b"\x14\0\0\0"
    )
    assert shutdown < commands.index(Command.DMA_UNMAP), "quiet first, then the memory"
    sets = [m.IrqSet.parse(p) for c, p in function.asked if c == Command.SET_IRQS]
    assert [(s.start, s.count) for s in sets] == [(0, 8), (8, 8), (16, 8), (24, 8), (0, 0)]
    assert {s.flags for s in sets[:4]} == {0x24}
    assert {s.index for s in sets} == {2}
    read = [m.RegionAccess.parse(p) for c, p in function.asked if c == Command.REGION_READ]
    assert any((a.region, a.offset) == (m.REGION_BAR0, 0) for a in read), "CAP, never from the file"
    asked = [m.RegionInfo.parse(p) for c, p in function.asked if c == Command.GET_REGION_INFO]
    assert any(info.argsz >= 64 for info in asked), "room for capabilities"
    written = [
        (access.offset, payload[m.RegionAccess.SIZE :])
        for command, payload in function.asked
        if command == Command.REGION_WRITE
        and (access := m.RegionAccess.parse(payload)).region == m.REGION_CONFIG
    ]
    assert int.from_bytes(written[0][1], "little") & 0x404 == 0x404, "bus master, no INTx"
    assert written[0][0] == 4
    enabled = [offset for offset, data in written if int.from_bytes(data, "little") & 0x8000]
    assert enabled, "MSI-X"


async def test_no_register_is_touched_on_the_way_of_a_command(host: Host) -> None:
    """A message takes a millisecond there: with mapped doorbells there is none."""
    hosted = host(kind=Quirky, **SHAPE)
    async with await open_controller(hosted.address) as controller:
        namespace = await controller.namespace(1)
        await namespace.read(0, bytearray(4096))
        assert isinstance(hosted.function, Quirky)
        before = len(hosted.function.asked)
        for i in range(100):
            await namespace.read(8 * i, bytearray(4096))
        assert len(hosted.function.asked) == before


def test_more_regions_than_it_takes(host: Host) -> None:
    """Refused here, with what to do, not there."""
    hosted = host(kind=Quirky, **SHAPE)
    transport = open_vfio_user(hosted.path)
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4096)
    for i in range(MAX_REGIONS):
        transport.map(fd, 0, 4096, (i + 1) << 20)
    with pytest.raises(TransportError, match="takes 64 DMA regions and has them: lower dma_bytes"):
        transport.map(fd, 0, 4096, 1 << 40)
    transport.unmap(1 << 20, 4096)
    with pytest.raises(TransportError, match="beyond the end"):
        transport.map(fd, 0, 8192, 1 << 40)
    transport.close()
    os.close(fd)


def test_a_server_that_asks_for_memory_by_message(tmp_path: Path) -> None:
    """Its commands come in front of the reply to ours: answered, or refused with an errno."""
    path = str(tmp_path / "socket")
    answers: list[tuple[int, int, bytes]] = []
    questions = [
        (11, struct.pack("<QQ", 0x100008, 4), b""),
        (12, struct.pack("<QQ", 0x100010, 5), b"there"),
        (11, struct.pack("<QQ", 0x10FFF0, 32), b""),  # leaves the region
        (11, struct.pack("<QQ", 0x100000, 1 << 40), b""),
        (12, struct.pack("<QQ", 0x100000, 9), b"short"),
        (99, b"", b""),
        (11, b"", b""),
    ]

    def interrupting(identity: int, command: int, payload: bytes, peer: socket.socket) -> bytes:
        if (command, payload[:12]) != (9, struct.pack("<QI", 0x1C, 0)):
            return b""
        for number, head, data in questions:
            size = 16 + len(head) + len(data)
            peer.sendall(struct.pack("<HHIII", 7, number, size, 0, 0) + head + data)
            _, back, size, flags, error = struct.unpack("<HHIII", peer.recv(16))
            assert (back, flags & 1) == (number, 1)
            answers.append((number, error, peer.recv(size - 16) if size > 16 else b""))
        return struct.pack("<HHIII", 0x7777, 9, 16, 1, 0)  # a reply to nothing

    peer = FakePeer(path, sane_reply, interrupting)
    transport = open_vfio_user(path)
    fd = os.memfd_create("dma")
    os.ftruncate(fd, 1 << 16)
    os.pwrite(fd, b"here", 8)
    transport.map(fd, 0, 1 << 16, 0x100000)
    assert transport.read32(0x1C) == 0
    assert os.pread(fd, 5, 0x10) == b"there"
    assert answers == [
        (11, 0, struct.pack("<QQ", 0x100008, 4) + b"here"),
        (12, 0, struct.pack("<QQ", 0x100010, 5)),
        (11, errno.EFAULT, b""),
        (11, errno.EINVAL, b""),
        (12, errno.EINVAL, b""),
        (99, errno.ENOTSUP, b""),
        (11, errno.EINVAL, b""),
    ]
    transport.close()
    peer.close()
    os.close(fd)


async def test_a_question_while_nobody_asks_anything(tmp_path: Path) -> None:
    """It is answered at once, not with the next request; the end of the connection is noticed after it."""
    path = str(tmp_path / "socket")
    connections: list[socket.socket] = []

    def remember(_identity: int, _command: int, _payload: bytes, connected: socket.socket) -> bytes:
        connections[:] = [connected]
        return b""

    peer = FakePeer(path, sane_reply, remember)
    transport = open_vfio_user(path)
    hardware = Hardware(transport)
    noticed = trio.Event()

    async def watch() -> None:
        with pytest.raises(ControllerGone):
            await hardware.watch_loss(transport.lost_fd)
        noticed.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for i in range(1, 4):
                connections[0].sendall(struct.pack("<HHIIIQQ", 7, 11, 32, 0, 0, 0x5000, 8))
                await until(lambda i=i: len(peer.replies) == i)  # type: ignore[misc]
            connections[0].shutdown(socket.SHUT_RDWR)
            await noticed.wait()
    assert set(peer.replies) == {(11, errno.EFAULT, b"")}
    transport.close()
    peer.close()


@pytest.mark.parametrize(
    "kind", ["sparse area elsewhere", "whole region", "odd start", "too short"]
)
def test_what_may_be_mapped(host: Host, kind: str) -> None:
    """Doorbells are mapped where the server's words allow it, and only there."""
    flags = m.REGION_READ | m.REGION_WRITE | m.REGION_MMAP

    class Other(NvmeFunction):
        def _get_region_info(self, message: Message) -> Reply:
            fd = self._controller.doorbell_fd
            if kind == "whole region":  # of two pages: what the file has
                return Reply(m.RegionInfo(32, flags, 0, 0, 0x2000, 0).pack(), (fd,))
            place = {"sparse area elsewhere": (0x2000, 0x1000), "odd start": (0xF00, 0x1100)}
            area = m.SparseArea(*place.get(kind, (0x1000, 0x2000)))
            info = m.RegionInfo(64, flags | m.REGION_CAPS, 0, 32, 0x4000, 0)
            return Reply(m.pack_region_info(info, [area]), (fd,))

    transport = open_vfio_user(host(kind=Other).path)
    assert (transport.doorbells is not None) == (kind in ("whole region", "odd start"))
    assert transport.read32(8) == 0x10400
    transport.close()
