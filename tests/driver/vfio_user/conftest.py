"""Servers: `nvmefs controller` in a process of its own, and the same in a thread of this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from driver.transports.embedded import open_embedded
from driver.vfio_user.function import NvmeFunction
from driver.vfio_user.server import ListeningSocket, serve
from tests.driver.vfio_user.raw import RawClient

MIB = 1 << 20
IMAGE_BYTES = 64 * MIB
START_BOUND_S = 30.0
END_BOUND_S = 30.0
_COMMAND = "import sys; from driver.tools.cli import main; sys.exit(main(sys.argv[1:]))"


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that nothing tells of, ten seconds at most."""
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


class Server:
    """`nvmefs controller IMAGE --socket PATH ...`, started."""

    def __init__(self, image: Path, path: str, log: Path, *options: str) -> None:
        self.image, self.path, self._log = image, path, log
        self.address = f"vfio-user:{path}"
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, "controller", image, "--socket", path, *options],
                stderr=stderr,
            )

    def wait_until_serving(self) -> None:
        """Returns once the socket is there and listened to."""
        self.until("serves")

    def until(self, text: str, times: int = 1) -> None:
        """Waits until the log has that text so many times."""
        end = time.monotonic() + START_BOUND_S
        while self.log().count(text) < times:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, f"no {text!r} in: {self.log()}"
            time.sleep(0.005)

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(END_BOUND_S)

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_BOUND_S)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of 64 MiB."""
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, IMAGE_BYTES)
    return path


@pytest.fixture
def start(image: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """start("--queues", "2"): a server, which ends with the test."""
    servers: list[Server] = []

    def start(*options: str, path: str | None = None, wait: bool = True) -> Server:
        socket_path = path or str(tmp_path / "cntrl")
        log = tmp_path / f"server{len(servers)}.log"
        server = Server(image, socket_path, log, *options)
        servers.append(server)
        if wait:
            server.wait_until_serving()
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.end()
            server.kill()


class Hosted:
    """A server in a thread of this process: what it raises is seen."""

    def __init__(
        self,
        image: str,
        path: str,
        *,
        map_doorbells: bool = True,
        kind: type[NvmeFunction] = NvmeFunction,
        **options: int,
    ) -> None:
        self.path = path
        self.transport = open_embedded(image, **options)  # type: ignore[arg-type]
        self.address = f"vfio-user:{path}"
        self.function = kind(
            self.transport, queues=options.get("queues", 16), map_doorbells=map_doorbells
        )
        self.listening = ListeningSocket(path)
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            serve(self.listening, self.function, self.stop_fd)
        except BaseException as error:
            self.error = error
            raise

    def close(self) -> None:
        """Ends it; it must have lived until now."""
        alive = self.thread.is_alive()
        os.eventfd_write(self.stop_fd, 1)
        self.thread.join(END_BOUND_S)
        assert not self.thread.is_alive(), "the server hangs"
        self.listening.close()
        self.transport.close()
        os.close(self.stop_fd)
        assert alive, f"the server died of {self.error!r}"


@pytest.fixture
def host(image: Path, tmp_path: Path) -> Iterator[Callable[..., Hosted]]:
    """host(queues=2): a server in a thread, on a null drive of 1 GiB unless on_image=True."""
    hosted: list[Hosted] = []

    def host(
        *,
        on_image: bool = False,
        map_doorbells: bool = True,
        kind: type[NvmeFunction] = NvmeFunction,
        **options: int,
    ) -> Hosted:
        medium = str(image) if on_image else "null:1G"
        path = str(tmp_path / f"hosted{len(hosted)}")
        hosted.append(Hosted(medium, path, map_doorbells=map_doorbells, kind=kind, **options))
        return hosted[-1]

    yield host
    for server in hosted:
        server.close()


@pytest.fixture
def client(host: Callable[..., Hosted]) -> Iterator[RawClient]:
    """A raw client of a function with four I/O queue pairs and five vectors."""
    with RawClient(host(queues=4, vectors=5).path) as client:
        yield client
