"""Both ends against what no honest peer sends: neither crashes, hangs or keeps a descriptor.

The server answers with an error or closes the connection, and serves the next client. The client
raises an error of the driver's.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.errors import DriverError
from driver.transports.vfio_user import open_vfio_user
from driver.vfio_user import client as client_module
from tests.driver.vfio_user import raw as r
from tests.driver.vfio_user.conftest import Hosted
from tests.driver.vfio_user.raw import RawClient

VERSION = struct.pack("<HH", 0, 1) + b"{}\0"
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def message(command: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("<HHIII", 1, command, 16 + len(payload), flags, 0) + payload


SANE = [
    (r.GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
    (r.REGION_INFO, struct.pack("<IIIIQQ", 256, 0, 0, 0, 0, 0)),
    (r.REGION_IO_FDS, struct.pack("<IIII", 4096, 0, 0, 0)),
    (r.IRQ_INFO, struct.pack("<IIII", 16, 0, 2, 0)),
    (r.SET_IRQS, struct.pack("<IIIII", 20, 36, 2, 0, 1)),
    (r.SET_IRQS, struct.pack("<IIIII", 22, 34, 2, 0, 2) + b"\1\1"),
    (r.REGION_READ, struct.pack("<QII", 0, 0, 8)),
    (r.REGION_WRITE, struct.pack("<QIII", 0x14, 0, 4, 0)),
    (r.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x100000, 4096)),
    (r.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x100000, 4096)),
    (r.RESET, b""),
    (r.WRITE_MULTI, struct.pack("<QQII8s", 1, 0x14, 0, 4, bytes(8))),
]

# Values at the edges of what lengths, counts and offsets can be.
EDGES = [0, 1, 3, 4, 7, 8, 15, 16, 4095, 4096, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


def mutated(choose: random.Random, raw: bytes) -> bytes:
    """Some bytes or words of it are others; perhaps it is cut, perhaps longer."""
    out = bytearray(raw)
    for _ in range(choose.randint(0, 4)):
        at = choose.randrange(len(out))
        if choose.random() < 0.5:
            out[at] = choose.randrange(256)
        else:
            out[at : at + 4] = struct.pack("<I", choose.choice(EDGES))
    cut = choose.choice((0, 0, 0, 1, 4, 8, -1, -4, -8))
    return bytes(out[:cut] if cut < 0 else out + bytes(cut))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def settle(count: int) -> None:
    """Returns once no more descriptors are open than that: connections end on both sides."""
    end = time.monotonic() + 10
    while descriptors() > count:
        assert time.monotonic() < end, "a descriptor was kept"
        gc.collect()
        time.sleep(0.001)


@pytest.fixture
def hosted(host: Callable[..., Hosted]) -> Iterator[Hosted]:
    """A server that must serve at the end, and has as many descriptors as before."""
    hosted = host(queues=2)
    before = descriptors()
    yield hosted
    with RawClient(hosted.path) as client:
        assert client.read(0, 8, 4) == struct.pack("<I", 0x10400)
        assert client.read(0, 0x14, 12) == bytes(12), "reset"
    settle(before)


def talk(path: str, raw: bytes, fds: list[int], *, negotiate: bool) -> None:
    """Says that, then nothing any more; reads all that comes until the server closes."""
    with RawClient(path, negotiate=negotiate) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send_raw(raw, fds)
            client.socket.shutdown(socket.SHUT_WR)
        while (answer := client.receive()) is not None:
            for fd in answer.fds:
                os.close(fd)


@FUZZ
@given(raw=st.binary(min_size=1, max_size=300), negotiate=st.booleans())
def test_server_random_bytes(hosted: Hosted, raw: bytes, negotiate: bool) -> None:
    talk(hosted.path, raw, [], negotiate=negotiate)


@FUZZ
@given(seed=st.integers(0, 1 << 32))
def test_server_mutated_messages(hosted: Hosted, seed: int) -> None:
    choose = random.Random(seed)
    fds = [os.eventfd(0), os.memfd_create("fuzz"), os.open("/dev/null", os.O_RDWR)]
    os.ftruncate(fds[1], 1 << 16)
    chosen = choose.choices(fds, k=choose.randrange(5))
    stream = b"".join(
        mutated(choose, message(*choose.choice(SANE))) for _ in range(choose.randint(1, 5))
    )
    talk(hosted.path, stream, chosen, negotiate=choose.random() < 0.9)
    for fd in fds:
        os.close(fd)


@FUZZ
@given(seed=st.integers(0, 1 << 32))
def test_server_mutated_fields_of_whole_messages(hosted: Hosted, seed: int) -> None:
    """The framing stays right, so that every field gets to who has to judge it."""
    choose = random.Random(seed)
    with RawClient(hosted.path) as client:
        for _ in range(8):
            command, payload = choose.choice(SANE)
            payload = mutated(choose, payload + bytes(1))[: len(payload) + 4]
            client.send(command, payload)
            answer = client.receive()
            assert answer is not None, "only the framing is a reason to close"
            for fd in answer.fds:
                os.close(fd)


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 33, 1 << 31, (1 << 32) - 1])
def test_server_absurd_sizes(hosted: Hosted, size: int) -> None:
    talk(hosted.path, struct.pack("<HHIII", 1, r.GET_INFO, size, 0, 0), [], negotiate=True)


def test_server_every_prefix(hosted: Hosted) -> None:
    for command, payload in SANE[:8]:
        whole = message(command, payload)
        for length in range(0, len(whole), 5):
            talk(hosted.path, whole[:length] or b"\0", [], negotiate=True)


def test_server_replies_to_nothing(hosted: Hosted) -> None:
    talk(hosted.path, message(r.GET_INFO, b"", flags=1) * 50, [], negotiate=True)
    talk(hosted.path, message(r.GET_INFO, b"", flags=2) * 5, [], negotiate=True)


def test_server_a_client_that_does_not_read(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driver.vfio_user.server._SEND_BOUND_S", 0.3)
    with RawClient(hosted.path) as client:
        burst = message(r.REGION_READ, struct.pack("<QII", 0, 7, 4096)) * 2000
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.socket.sendall(burst)


# ---- the client ------------------------------------------------------------------------------------


Answer = Callable[[int, int, bytes], "tuple[bytes, list[int]] | None"]


class FakePeer:
    """Listens on a socket and hands each request's (id, command, payload) to `answer`, which returns
    raw bytes and descriptors, or None to close. `before` may use the connection before that, and returns
    what is sent first.
    """

    def __init__(
        self,
        path: str,
        answer: Answer,
        before: Callable[[int, int, bytes, socket.socket], bytes] = lambda *_: b"",
    ) -> None:
        self._before = before
        self.replies: list[tuple[int, int, bytes]] = []
        """To commands of ours: command, errno, payload."""
        self._answer = answer
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(path)
        self._listening.listen(8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connected, _ = self._listening.accept()
        with connected, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while head := connected.recv(16, socket.MSG_WAITALL):
                identity, command, size, flags, error = struct.unpack("<HHIII", head)
                payload = connected.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""
                if flags & 1:
                    self.replies.append((command, error, payload))
                    continue
                first = self._before(identity, command, payload, connected)
                reply = self._answer(identity, command, payload)
                if reply is None:
                    return
                raw, fds = first + reply[0], reply[1]
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                if raw:
                    connected.sendmsg([raw], rights if fds else [])

    def close(self) -> None:
        self._listening.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


def sane_reply(identity: int, command: int, payload: bytes) -> tuple[bytes, list[int]]:
    """What a server of an NVMe function says; the doorbells are a memfd of two pages."""
    fds: list[int] = []
    if command == r.VERSION:
        capabilities = {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}
        text = json.dumps({"capabilities": capabilities}).encode()
        payload = struct.pack("<HH", 0, 1) + text + b"\0"
    elif command == r.GET_INFO:
        payload = struct.pack("<IIII", 16, 3, 9, 5)
    elif command == r.REGION_INFO:
        fd = os.memfd_create("doorbells")
        os.ftruncate(fd, 0x2000)
        fds = [fd]
        payload = struct.pack("<IIIIQQ", 64, 15, 0, 32, 0x4000, 0)
        payload += struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, 0x1000, 0x1000)
    elif command == r.REGION_IO_FDS:
        fds = [os.eventfd(0)]
        payload = struct.pack("<IIII", 56, 0, 0, 1) + struct.pack(
            "<QQIIIIQ", 4096, 4, 0, 0, 0, 0, 0
        )
    elif command == r.IRQ_INFO:
        payload = struct.pack("<IIII", 16, 1, 2, 5)
    elif command == r.REGION_READ:
        offset, region, count = struct.unpack("<QII", payload)
        config = bytearray(4096)
        config[8:12] = bytes.fromhex("00020801")
        config[0x34], config[0x40] = 0x40, 0x11
        data = (
            config
            if region == 7
            else struct.pack("<Q", 1 << 37 | 1 << 24 | 0xFF).ljust(0x4000, b"\0")
        )
        payload += bytes(data[offset : offset + count])
    elif command == r.REGION_WRITE:
        payload = payload[:16]
    else:
        payload = b""
    return struct.pack("<HHIII", identity, command, 16 + len(payload), 1, 0) + payload, fds


def bring_up(path: Path, answer: Answer) -> None:
    """The client's whole way, from VERSION to a first mapping, against that answer."""
    sent: list[int] = []

    def remembering(identity: int, command: int, payload: bytes) -> tuple[bytes, list[int]] | None:
        reply = answer(identity, command, payload)
        if reply is not None:
            sent.extend(reply[1])
        return reply

    path.unlink(missing_ok=True)
    peer = FakePeer(str(path), remembering)
    eventfds = [os.eventfd(0) for _ in range(3)]
    fd = os.memfd_create("dma")
    os.ftruncate(fd, 1 << 16)
    try:
        transport = open_vfio_user(str(path))
        try:
            transport.read64(0)
            transport.write32(0x14, 0)
            transport.map(fd, 0, 1 << 16, 0x100000)
            transport.enable_interrupts(eventfds[: min(3, transport.vectors)])
            transport.disable_interrupts()
            transport.unmap(0x100000, 1 << 16)
        finally:
            transport.close()
    finally:
        peer.close()
        for each in (*sent, *eventfds, fd):
            os.close(each)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is never answered takes a moment only."""
    monkeypatch.setattr(client_module, "VERSION_BOUND_S", 0.05)
    monkeypatch.setattr(client_module, "REQUEST_BOUND_S", 0.05)


def test_client_and_a_sane_peer(tmp_path: Path) -> None:
    """What the mutations start from."""
    bring_up(tmp_path / "socket", sane_reply)


@FUZZ
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.usefixtures("impatient")
def test_client_mutated_replies(tmp_path: Path, seed: int) -> None:
    """One reply, or all from one on, are not what they should be."""
    choose = random.Random(seed)
    victim, once = choose.randrange(19), choose.random() < 0.5
    count = 0

    def answer(identity: int, command: int, payload: bytes) -> tuple[bytes, list[int]] | None:
        nonlocal count
        count += 1
        raw, fds = sane_reply(identity, command, payload)
        if count == victim or (count > victim and not once):
            raw = mutated(choose, raw)
        return raw, fds

    before = descriptors()
    with contextlib.suppress(DriverError):
        bring_up(tmp_path / "socket", answer)
    settle(before)


@FUZZ
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.usefixtures("impatient")
def test_client_mutated_payloads(tmp_path: Path, seed: int) -> None:
    """The framing stays right: every field gets to who has to judge it. Descriptors come or not."""
    choose = random.Random(seed)
    victim = choose.randrange(19)
    count = 0

    def answer(identity: int, command: int, payload: bytes) -> tuple[bytes, list[int]] | None:
        nonlocal count
        count += 1
        raw, fds = sane_reply(identity, command, payload)
        if count < victim:
            return raw, fds
        body = mutated(choose, raw[16:] + b"\0")[: len(raw) - 16]
        chance = choose.randrange(4)
        if chance == 0:
            for fd in fds:
                os.close(fd)
            fds = []
        elif chance == 1:
            fds = [*fds, os.eventfd(0), os.open("/dev/null", os.O_RDWR)]
        return struct.pack("<HHIII", identity, command, 16 + len(body), 1, 0) + body, fds

    before = descriptors()
    with contextlib.suppress(DriverError):
        bring_up(tmp_path / "socket", answer)
    settle(before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("impatient")
def test_client_random_bytes(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    with pytest.raises(DriverError):
        bring_up(tmp_path / "socket", lambda *_: (choose.randbytes(100), []))
