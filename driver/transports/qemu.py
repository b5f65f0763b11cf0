"""One QEMU process without a guest: started, spoken to over qtest and QMP, killed and reaped.

    with Qemu(arguments, memory_bytes, label="qtest:disk.img") as qemu:
        qemu.qtest("readl 0xe0000000")

The machine is a q35 whose processor never runs (-S). Its memory is the memfd `memory_fd`, the two
sockets are inherited, and what QEMU says on stderr goes to another memfd: nothing of it has a name
in any directory. QEMU is killed by the kernel when the thread that started it ends
(PR_SET_PDEATHSIG, by setpriv), so that nothing outlives a killed test.

Every exchange is bounded. An end of file or a passed bound is ControllerGone.

Below: QEMU's qtest protocol (text lines) and QMP (JSON lines). Above: qtest.py.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

from ..errors import ControllerGone, DeviceBusy, TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

QEMU = "qemu-system-x86_64"
START_BOUND_S = 20.0
ANSWER_BOUND_S = 20.0
_END_BOUND_S = 5.0
_MAX_LINE_BYTES = 1 << 20


def missing() -> str:
    """Why no QEMU can be started here, with the cure, or ""."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed: apt-get install qemu-system-x86"
    if shutil.which("setpriv") is None:
        return "setpriv is not installed: apt-get install util-linux"
    return ""


class Line:
    """A stream socket of QEMU's, line by line."""

    def __init__(self, ours: socket.socket, label: str) -> None:
        self._socket = ours
        self._label = label
        self._rest = b""
        ours.settimeout(START_BOUND_S)

    def set_bound(self, seconds: float) -> None:
        """The longest wait for one line."""
        self._socket.settimeout(seconds)

    def send(self, line: str) -> None:
        """Sends one line. Raises ControllerGone."""
        try:
            self._socket.sendall(line.encode() + b"\n")
        except OSError as error:
            raise ControllerGone(f"{self._label}: QEMU has ended: {error}") from error

    def receive(self) -> str:
        """The next line. Raises ControllerGone at the end of the stream or of the time."""
        while b"\n" not in self._rest:
            try:
                more = self._socket.recv(65536)
            except TimeoutError as error:
                raise ControllerGone(f"{self._label}: QEMU does not answer") from error
            except OSError as error:
                raise ControllerGone(f"{self._label}: QEMU has ended: {error}") from error
            if not more or len(self._rest) > _MAX_LINE_BYTES:
                raise ControllerGone(f"{self._label}: QEMU has ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Closes our end."""
        self._socket.close()


class Qemu:
    """A running QEMU.

    Raises TransportError when it cannot be started, with QEMU's own reason; DeviceBusy when an
    image is in use.
    """

    def __init__(self, arguments: Sequence[str], memory_bytes: int, *, label: str) -> None:
        reason = missing()
        if reason:
            raise TransportError(f"{label}: {reason}")
        self._label = label
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[Line] = []
        self._stderr_fd = os.memfd_create("qemu-stderr", os.MFD_CLOEXEC)
        self.memory_fd = os.memfd_create("qemu-memory", os.MFD_CLOEXEC)
        """The machine's physical memory from address 0 on; closed by close()."""
        try:
            os.ftruncate(self.memory_fd, memory_bytes)
            self._start(arguments, memory_bytes)
        except BaseException as error:
            said = self._last_words()
            self.close()
            if 'Failed to get "write" lock' in said:
                raise DeviceBusy(f"{label}: an image is in use: {said}") from error
            if isinstance(error, ControllerGone):
                raise TransportError(f"{label}: QEMU does not start: {said or error}") from error
            raise

    def _start(self, arguments: Sequence[str], memory_bytes: int) -> None:
        ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
        self._lines = [Line(end, self._label) for end in ours]
        qtest_fd, qmp_fd = (end.fileno() for end in theirs)
        machine = (
            f"setpriv --pdeathsig KILL {QEMU} -machine q35,memory-backend=ram -accel tcg -S "
            f"-display none -nodefaults -no-user-config -m {memory_bytes >> 20}M "
            f"-object memory-backend-file,id=ram,size={memory_bytes},share=on,"
            f"mem-path=/proc/self/fd/{self.memory_fd} "
            f"-chardev socket,id=qtest,fd={qtest_fd} -qtest chardev:qtest -qtest-log none "
            f"-chardev socket,id=qmp,fd={qmp_fd} -mon chardev=qmp,mode=control"
        ).split()
        try:
            self._process = subprocess.Popen(
                [*machine, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr_fd,
                stderr=self._stderr_fd,
                pass_fds=(self.memory_fd, qtest_fd, qmp_fd),
            )
        except OSError as error:
            raise TransportError(f"{self._label}: QEMU does not start: {error.strerror}") from error
        finally:
            for end in theirs:
                end.close()
        self.qtest("endianness")
        self._qmp_line().receive()  # the greeting
        self.qmp("qmp_capabilities")
        for line in self._lines:
            line.set_bound(ANSWER_BOUND_S)

    @property
    def pid(self) -> int:
        """Its process id, for messages and tests. Raises ControllerGone after close()."""
        if self._process is None:
            raise ControllerGone(f"{self._label}: QEMU has ended")
        return self._process.pid

    def qtest(self, command: str) -> str:
        """One qtest command; what follows the OK. Raises ControllerGone, TransportError."""
        if not self._lines:
            raise ControllerGone(f"{self._label}: QEMU has ended")
        line = self._lines[0]
        line.send(command)
        answer = line.receive()
        if not answer.startswith("OK"):
            raise TransportError(f"{self._label}: qtest {command!r} was answered {answer!r}")
        return answer[2:].strip()

    def _qmp_line(self) -> Line:
        if not self._lines:
            raise ControllerGone(f"{self._label}: QEMU has ended")
        return self._lines[1]

    def qmp(self, command: str, **arguments: object) -> Any:
        """One QMP command; what it returns. Events are skipped. Raises as qtest() does."""
        line = self._qmp_line()
        line.send(json.dumps({"execute": command, "arguments": arguments}))
        while True:
            answer = json.loads(line.receive())
            if "error" in answer:
                raise TransportError(f"{self._label}: QMP {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def monitor(self, command: str) -> str:
        """One command of the human monitor, for what QMP does not have."""
        return str(self.qmp("human-monitor-command", **{"command-line": command}))

    def _last_words(self) -> str:
        """What QEMU wrote, as one line, once it has ended by itself."""
        if self._process is not None:
            try:
                self._process.wait(_END_BOUND_S)
            except subprocess.TimeoutExpired:
                return ""
        text = os.pread(self._stderr_fd, 65536, 0).decode("utf-8", "replace").strip()
        return "; ".join(line.removeprefix(f"{QEMU}: ") for line in text.split("\n")[-3:])

    def close(self) -> None:
        """Kills and reaps it. What it had written to the image is in the host's page cache.
        Idempotent.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        for line in self._lines:
            line.close()
        self._lines = []
        for name in ("memory_fd", "_stderr_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Qemu:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()
