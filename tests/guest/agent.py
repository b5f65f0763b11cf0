"""The guest's end: runs what the host asks for. The guest's process 1, with nothing but Python's own
library.

A request is a line of JSON on a virtio-serial port, its answer is another with the same `id`; they
may overtake one another, for each request has a thread:

    {"id": 1, "run": {"argv": [...], "cwd": ..., "env": {...}, "input": ..., "timeout_s": 60}}
                                             -> {"status", "stdout", "stderr", "timed_out"}
    {"id": 2, "output": 1}                   -> {"stdout", "stderr"}: what 1 has written so far
    {"id": 3, "kill": 1, "signal": 9}        -> {}: to the process alone, not to its children
    {"id": 4, "read": path}                  -> {"text"}
    {"id": 5, "write": path, "text": ...}    -> {}
    {"id": 6, "list": path}                  -> {"names"}

What fails is answered {"error": words, "errno": number}.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from typing import IO, Any

_OUTPUT_BOUND = 8 << 20


class Job:
    """One running program; what it writes goes to files without a name."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._stdout: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._timeout_s = float(request["timeout_s"])
        with tempfile.TemporaryFile() as stdin:
            stdin.write((request.get("input") or "").encode())
            stdin.seek(0)
            self.process = subprocess.Popen(
                request["argv"],
                cwd=request.get("cwd"),
                env={**os.environ, **(request.get("env") or {})},
                stdin=stdin,
                stdout=self._stdout,
                stderr=self._stderr,
                start_new_session=True,
            )

    def output(self) -> dict[str, str]:
        """What it has written so far."""
        return {
            name: os.pread(file.fileno(), _OUTPUT_BOUND, 0).decode("utf-8", "replace")
            for name, file in (("stdout", self._stdout), ("stderr", self._stderr))
        }

    def wait(self) -> dict[str, Any]:
        """Its end, which is brought about when the time is over."""
        timed_out = False
        try:
            self.process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(self.process.pid, signal.SIGKILL)
            # Not even SIGKILL ends a process that waits in the kernel; the host has its own bound.
            self.process.wait()
        return {"status": self.process.returncode, "timed_out": timed_out, **self.output()}

    def close(self) -> None:
        """Forgets what was written."""
        self._stdout.close()
        self._stderr.close()


class Agent:
    """Serves one port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}

    def serve(self) -> None:
        """Until the host has gone."""
        with os.fdopen(os.dup(self._port), "rb") as lines:
            for line in lines:
                request = json.loads(line)
                work = self._started(request) if "run" in request else partial(self._do, request)
                arguments = (request["id"], work)
                threading.Thread(target=self._answer, args=arguments, daemon=True).start()

    def _answer(self, number: int, work: Callable[[], dict[str, Any]]) -> None:
        try:
            answer = work()
        except OSError as error:
            answer = {"error": str(error), "errno": error.errno}
        except Exception as error:  # noqa: BLE001 - the host raises it again
            answer = {"error": repr(error), "errno": None}
        line = json.dumps({"id": number, **answer}).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._port, line) :]

    def _started(self, request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """What waits for a program that runs already: the next request may be about it."""
        number = request["id"]
        try:
            job = self._jobs[number] = Job(request["run"])
        except OSError as error:
            return partial(_raise, error)

        def wait() -> dict[str, Any]:
            try:
                return job.wait()
            finally:
                del self._jobs[number]
                job.close()

        return wait

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        if "output" in request:
            return dict(self._job(request["output"]).output())
        if "kill" in request:
            self._job(request["kill"]).process.send_signal(request["signal"])
            return {}
        if "read" in request:
            with open(request["read"], errors="replace") as file:
                return {"text": file.read()}
        if "write" in request:
            with open(request["write"], "w", encoding="utf-8") as file:
                file.write(request["text"])
            return {}
        return {"names": sorted(os.listdir(request["list"]))}

    def _job(self, number: int) -> Job:
        try:
            return self._jobs[number]
        except KeyError:
            raise ProcessLookupError(errno.ESRCH, "the program has ended") from None


def _raise(error: OSError) -> dict[str, Any]:
    raise error


def main() -> None:
    """Process 1. Its end is the guest's."""
    (path,) = glob.glob("/dev/vport*p*")
    port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.write(port, b'{"id": 0}\n')
    Agent(port).serve()


if __name__ == "__main__":
    main()
