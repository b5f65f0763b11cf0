"""How connections and servers end: killed clients, killed servers, sockets left behind, two at a time."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from driver import DriverOptions, open_controller
from driver.errors import ControllerGone, DeviceBusy, DriverError, TransportError
from driver.tools import cli
from driver.transports.vfio_user import open_vfio_user
from driver.vfio_user import client as client_module
from tests.driver.vfio_user.conftest import MIB, Server, until
from tests.driver.vfio_user.raw import RawClient

Start = Callable[..., Server]

# Writes for ever: block i of the disk's first half holds its round, and says so.
_LOAD = """
import sys, trio
from driver import open_controller

async def main():
    async with await open_controller(sys.argv[1]) as controller:
        namespace = await controller.namespace(1)

        async def write(lane):
            for round in range(1 << 30):
                data = round.to_bytes(4, "little") * 1024
                await namespace.write(8 * lane, data)
                if round == 20 and lane == 0:
                    print("busy", flush=True)

        async with trio.open_nursery() as nursery:
            for lane in range(32):
                nursery.start_soon(write, lane)

trio.run(main)
"""


def load(server: Server) -> subprocess.Popen[bytes]:
    """A client in a process of its own, which is writing when this returns."""
    client = subprocess.Popen([sys.executable, "-c", _LOAD, server.address], stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"busy\n"
    return client


async def test_a_client_killed_under_load_and_the_next_one(start: Start) -> None:
    server = start()
    for times in range(1, 4):
        client = load(server)
        client.kill()
        client.wait(20)
        assert client.stdout is not None
        client.stdout.close()
        with trio.fail_after(20):
            async with await open_controller(server.address) as controller:
                namespace = await controller.namespace(1)
                for lane in range(32):
                    block = bytearray(4096)
                    await namespace.read(8 * lane, block)
                    assert block == block[:4] * 1024, "a block that was written whole is whole"
                    assert lane or any(block), "nothing was written"
        server.until("left:", 2 * times)
    assert server.end() == 0


@pytest.mark.parametrize("poll_ns", [0, 60_000])
async def test_a_server_killed_under_load(start: Start, poll_ns: int) -> None:
    """Everybody who waits gets ControllerGone at once, long before any deadline."""
    server = start()
    options = DriverOptions(command_timeout_s=None, admin_timeout_s=None, poll_ns=poll_ns)
    failed: list[BaseException] = []
    with trio.fail_after(20):
        controller = await open_controller(server.address, options=options)
        namespace = await controller.namespace(1)

        async def write(lane: int) -> None:
            try:
                while True:
                    await namespace.write(8 * lane, bytes([lane]) * 4096)
            except DriverError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for lane in range(16):
                nursery.start_soon(write, lane)
            await trio.sleep(0.2)
            server.kill()
            killed = time.monotonic()
        assert time.monotonic() - killed < 5
        assert len(failed) == 16
        assert {type(error) for error in failed} == {ControllerGone}
        assert "is gone" in str(failed[0])
        await controller.close()


async def test_a_server_that_dies_while_nobody_asks(start: Start) -> None:
    server = start()
    with trio.fail_after(20):
        controller = await open_controller(server.address)
        server.kill()
        await until(lambda: controller.failure is not None)
        assert isinstance(controller.failure, ControllerGone)
        await controller.close()


async def test_a_server_that_ends_by_request(start: Start) -> None:
    """What was written and not flushed is durable, and the client is told."""
    server = start("--write-cache", "volatile")
    with trio.fail_after(20):
        controller = await open_controller(server.address)
        namespace = await controller.namespace(1)
        await namespace.write(0, b"kept" * 1024)
        assert server.end() == 0
        with pytest.raises(ControllerGone):
            await namespace.read(0, bytearray(512))
        await controller.close()
    assert server.image.read_bytes()[:4096] == b"kept" * 1024
    assert not os.path.exists(server.path)


def test_a_stopped_server_gives_an_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    monkeypatch.setattr(client_module, "REQUEST_BOUND_S", 0.3)
    transport = open_vfio_user(server.path)
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ControllerGone, match=r"does not answer REGION_READ within 0.3 s"):
            transport.read32(0x1C)
        before = time.monotonic()
        with pytest.raises(ControllerGone, match="does not answer"):
            transport.read32(0x1C)
        assert time.monotonic() - before < 0.2, "it is lost for good"
        transport.close()
    finally:
        server.process.send_signal(signal.SIGCONT)


# ---- one client at a time --------------------------------------------------------------------------


def test_the_second_client_waits_for_the_first(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    first = open_vfio_user(server.path)
    with monkeypatch.context() as patience:
        patience.setattr(client_module, "VERSION_BOUND_S", 0.3)
        with pytest.raises(DeviceBusy, match=r"process \d+ .* serves another client"):
            open_vfio_user(server.path)
    opened = []
    waiting = threading.Thread(target=lambda: opened.append(open_vfio_user(server.path)))
    waiting.start()
    first.close()
    waiting.join(20)
    assert opened[0].read32(8) == 0x10400
    opened[0].close()


def test_too_many_wait(start: Start) -> None:
    server = start()
    clients = [open_vfio_user(server.path)]
    waiting = []
    try:
        for _ in range(100):
            guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            waiting.append(guest)
            guest.setblocking(False)
            try:
                guest.connect(server.path)
            except BlockingIOError:
                break
        with pytest.raises(DeviceBusy, match="too many clients wait"):
            open_vfio_user(server.path)
    finally:
        for guest in waiting:
            guest.close()
        clients[0].close()
    open_vfio_user(server.path).close()


# ---- the socket's file -----------------------------------------------------------------------------


def test_a_socket_left_by_a_killed_server_is_replaced(start: Start) -> None:
    first = start()
    first.kill()
    assert stat.S_ISSOCK(os.stat(first.path).st_mode)
    second = start(path=first.path)
    assert "left by a server that is gone" in second.log()
    open_vfio_user(second.path).close()
    assert second.end() == 0
    assert not os.path.exists(second.path)


def refused_to_serve(
    capsys: pytest.CaptureFixture[str], image: object, path: object, *options: str
) -> str:
    """What `nvmefs controller` says that does not serve: one line."""
    assert cli.main(["controller", str(image), "--socket", str(path), *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_socket_that_is_served_is_not(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start()
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    assert f"process {first.process.pid}" in refused_to_serve(capsys, other, first.path)
    open_vfio_user(first.path).close()
    second = tmp_path / "second"
    words = refused_to_serve(capsys, first.image, second)
    assert f"in use by process {first.process.pid}" in words
    assert not second.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "missing", "long"])
def test_where_no_socket_can_be(
    image: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "place"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "missing":
        path = tmp_path / "no" / "place"
    else:
        path = tmp_path / ("x" * 120)
    assert str(path) in refused_to_serve(capsys, image, path)
    if kind == "file":
        assert path.read_text() == "precious"


@pytest.mark.parametrize("rule", ["io:nonsense drop", "nonsense"])
def test_a_rule_that_cannot_be_understood(
    image: Path, tmp_path: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nonsense" in refused_to_serve(capsys, image, tmp_path / "s", "--fault", rule)


def test_a_file_put_in_the_place_of_the_socket_stays(start: Start) -> None:
    server = start()
    os.unlink(server.path)
    Path(server.path).write_text("somebody's")
    assert server.end() == 0
    assert Path(server.path).read_text() == "somebody's"


# ---- what is no server of NVMe controllers ---------------------------------------------------------


def refusal(path: object) -> str:
    with pytest.raises(TransportError) as caught:
        open_vfio_user(str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"vfio-user:{path}: ")
    return text


def test_no_such_socket(tmp_path: Path) -> None:
    assert "start it first (nvmefs controller" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is no socket" in refusal(tmp_path / "file")
    assert "is no socket" in refusal(tmp_path)
    assert "there is no such socket" in refusal(tmp_path / "file" / "below")
    assert "too long" in refusal(tmp_path / ("x" * 120))


def test_sockets_of_other_kinds(tmp_path: Path) -> None:
    for kind, words in (
        (socket.SOCK_DGRAM, "another type"),
        (socket.SOCK_SEQPACKET, "another type"),
    ):
        with socket.socket(socket.AF_UNIX, kind) as other:
            path = tmp_path / str(int(kind))
            other.bind(str(path))
            assert words in refusal(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "stale"))
    assert "its server has ended" in refusal(tmp_path / "stale")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (b"220 mail.example.org ESMTP\r\n", "is no vfio-user server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no vfio-user server"),
        (struct.pack("<HHIIIHH", 1, 1, 20, 1, 0, 1, 0), "version 1.0"),
        (struct.pack("<HHIII", 1, 1, 16, 0x21, 22), "refuses VERSION: Invalid argument"),
        (struct.pack("<HHIII", 1, 1, 16, 0x21, 16), "refuses VERSION: Device or resource busy"),
        (struct.pack("<HHIII", 1, 3, 16, 1, 0), "DMA_UNMAP in reply to VERSION"),
    ],
)
def test_servers_of_other_protocols(tmp_path: Path, answer: bytes, words: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connected, _ = listening.accept()
            with connected:
                connected.recv(4096)
                connected.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert words in refusal(path)
        thread.join(20)


def test_one_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "VERSION_BOUND_S", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        with pytest.raises(DeviceBusy, match=rf"process {os.getpid()} .*has to leave first"):
            open_vfio_user(str(tmp_path / "socket"))


# ---- memory that a client takes away ---------------------------------------------------------------


def wait_for(client: RawClient, mask: int) -> None:
    end = time.monotonic() + 20
    while not client.read(0, 0x1C, 1)[0] & mask:
        assert time.monotonic() < end, f"CSTS never has {mask:#x}"


def test_memory_that_is_cut_short(start: Start) -> None:
    """Its file is truncated under the controller: that client has lost its device, and no more."""
    server = start()
    fd = os.memfd_create("cut")
    os.ftruncate(fd, 1 << 16)
    with RawClient(server.path) as client:
        client.map(fd, 0, 0x100000, 1 << 16)
        client.write(0, 0x24, struct.pack("<I", 0x001F001F))
        client.write(0, 0x28, struct.pack("<Q", 0x100000))
        client.write(0, 0x30, struct.pack("<Q", 0x101000))
        client.write(0, 0x14, struct.pack("<I", 1 | 6 << 16 | 4 << 20))
        wait_for(client, 1)
        os.ftruncate(fd, 0)
        client.write(0, 0x1000, struct.pack("<I", 1))
        wait_for(client, 2)
    os.close(fd)
    open_vfio_user(server.path).close()
    assert server.end() == 0
