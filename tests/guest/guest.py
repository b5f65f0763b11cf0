"""What tests do with a guest: run programs, read and write its files, give devices to drivers, look
at what its kernel has said.

    guest.run(["nvmefs", "list"], check=True).stdout
    with guest.start([...]) as job:          beside what follows; killed at the end if it still runs
        job.wait_for("ready")                a line that it writes
        guest.machine.qmp("device_del", id="c0")
        assert job.wait().status == 1
    with guest.bound("c0") as bdf:           on vfio-pci, and back on the kernel's nvme afterwards
        guest.nvmefs("id-ctrl", bdf)
    guest.mark(); ...; guest.check()         fails when the kernel has complained meanwhile

Below: machine.py. Above: conftest.py and the tests.
"""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .machine import ANSWER_BOUND_S, LOOK_EVERY_S, GuestError, Machine

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(ROOT / ".venv/bin/python")
RUN_BOUND_S = 120.0
_GRACE_S = 15.0

_DRIVERS = "/sys/bus/pci/drivers"
_DEVICES = "/sys/bus/pci/devices"
COMPLAINTS = re.compile(
    r"DMAR: .*fault (addr|index|status)|\bBUG\b|"
    r"\bWARNING:|\bOops\b|general protection fault|Call Trace|blocked for more than|"
    r"soft lockup|refcount_t|list_(add|del) corruption|unchecked MSR|bad page"
)


@dataclass(frozen=True)
class Result:
    """How a program ended in the guest. status < 0: by that signal."""

    argv: Sequence[str]
    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"{' '.join(self.argv)}: status {self.status}\n{self.stdout}{self.stderr}"


class Job:
    """A program that runs in the guest."""

    def __init__(self, guest: Guest, number: int, argv: Sequence[str], bound_s: float) -> None:
        self._guest = guest
        self._number = number
        self._argv = argv
        self._end = time.monotonic() + bound_s
        self._result: Result | None = None

    def output(self) -> str:
        """What it has written to stdout so far. Raises ProcessLookupError once it has ended."""
        answer = self._guest.ask(output=self._number)
        return str(answer["stdout"])

    def wait_for(self, text: str, bound_s: float = 60.0) -> str:
        """Waits until its output so far, which is returned, has `text` in it."""
        end = time.monotonic() + min(bound_s, self._end - time.monotonic())
        while True:
            try:
                output = self.output()
            except ProcessLookupError:
                result = self.wait()
                if text in result.stdout:
                    return result.stdout
                raise GuestError(f"ended without {text!r}: {result}") from None
            if text in output:
                return output
            if time.monotonic() > end:
                raise GuestError(f"{' '.join(self._argv)}: no {text!r} in {output!r}")
            time.sleep(LOOK_EVERY_S)

    def ended(self) -> bool:
        """Whether it has."""
        try:
            self.output()
        except ProcessLookupError:
            return True
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the process. Raises ProcessLookupError once it has ended."""
        self._guest.ask(kill=self._number, signal=int(number))

    def wait(self) -> Result:
        """Its end. Raises GuestError when its time was over, with what it had written."""
        if self._result is None:
            answer = self._guest.answer(self._number, self._end + _GRACE_S - time.monotonic())
            result = Result(self._argv, answer["status"], answer["stdout"], answer["stderr"])
            self._result = result
            if answer["timed_out"]:
                raise GuestError(f"killed after its time was over: {result}")
        return self._result

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._result is None:
            with suppress(ProcessLookupError):
                self.kill()
            self.wait()


class Guest:
    """A machine with an agent that answers."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._mark = ""

    # ---- the agent -----------------------------------------------------------------------------

    def _send(self, request: dict[str, Any]) -> int:
        number = next(self._numbers)
        self.machine.agent.send({"id": number, **request})
        return number

    def answer(self, number: int, bound_s: float) -> dict[str, Any]:
        """The answer to a request. Raises GuestError; OSError when that is what the guest has had."""
        end = time.monotonic() + bound_s
        while number not in self._answers:
            answer = self.machine.agent.receive(max(0.0, end - time.monotonic()))
            self._answers[answer["id"]] = answer
        answer = self._answers.pop(number)
        if "error" in answer:
            if answer["errno"] is not None:
                raise OSError(answer["errno"], f"in the guest: {answer['error']}")
            raise GuestError(f"in the guest: {answer['error']}")
        return answer

    def ask(self, bound_s: float = ANSWER_BOUND_S, **request: Any) -> dict[str, Any]:
        """A request and its answer."""
        return self.answer(self._send(request), bound_s)

    # ---- programs and files --------------------------------------------------------------------

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        input: str = "",
        cwd: Path = ROOT,
        timeout_s: float = RUN_BOUND_S,
    ) -> Job:
        """Starts a program and returns. Its time is bounded in the guest, too."""
        words = [str(word) for word in argv]
        run = {"argv": words, "env": dict(env or {}), "input": input, "cwd": str(cwd)}
        return Job(self, self._send({"run": {**run, "timeout_s": timeout_s}}), words, timeout_s)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        input: str = "",
        timeout_s: float = RUN_BOUND_S,
    ) -> Result:
        """Runs a program to its end. check: raises GuestError unless it succeeds."""
        result = self.start(argv, env=env, input=input, timeout_s=timeout_s).wait()
        if check and result.status:
            raise GuestError(str(result))
        return result

    def python(self, code: str, *arguments: str | Path, timeout_s: float = RUN_BOUND_S) -> str:
        """What a Python program writes, run by the project's Python. Raises GuestError."""
        return self.run([PYTHON, "-c", code, *arguments], check=True, timeout_s=timeout_s).stdout

    def nvmefs(self, *arguments: str | Path, timeout_s: float = RUN_BOUND_S) -> Result:
        """The project's command line."""
        return self.run([ROOT / ".venv/bin/nvmefs", *arguments], timeout_s=timeout_s)

    def read(self, path: str) -> str:
        """A file of the guest's, also of /sys and /proc. Raises OSError."""
        return str(self.ask(read=path)["text"])

    def write(self, path: str, text: str) -> None:
        """Writes to a file of the guest's in one go. Raises OSError."""
        self.ask(write=path, text=text)

    def names(self, path: str) -> list[str]:
        """What is in a directory. Raises OSError."""
        return list(self.ask(list=path)["names"])

    def exists(self, path: str) -> bool:
        """Whether a file or directory is there."""
        directory, _, name = path.rpartition("/")
        try:
            return name in self.names(directory)
        except FileNotFoundError:
            return False

    # ---- devices -------------------------------------------------------------------------------

    def bdf(self, name: str) -> str:
        """The PCI address of the controller of that name, from where QEMU has put it."""
        for bus in self.machine.qmp("query-pci"):
            for bridge in bus["devices"]:
                for device in bridge.get("pci_bridge", {}).get("devices", ()):
                    if device["qdev_id"] == name:
                        return f"0000:{device['bus']:02x}:{device['slot']:02x}.0"
        raise GuestError(f"QEMU has no controller {name}")

    def driver(self, bdf: str) -> str:
        """The name of the driver that has the device, or ""."""
        line = self.read(f"{_DEVICES}/{bdf}/uevent").split("\n")[0]
        return line.removeprefix("DRIVER=") if line.startswith("DRIVER=") else ""

    def give(self, bdf: str, driver: str) -> None:
        """Gives a device to a driver ("vfio-pci", "nvme"), and waits until that has it."""
        if self.driver(bdf):
            self.write(f"{_DEVICES}/{bdf}/driver/unbind", bdf)
        self.write(f"{_DEVICES}/{bdf}/driver_override", "\n" if driver == "nvme" else driver)
        self.write("/sys/bus/pci/drivers_probe", bdf)
        self.until(lambda: self.driver(bdf) == driver, f"{bdf} on {driver}")

    @contextmanager
    def bound(self, name: str, driver: str = "vfio-pci") -> Iterator[str]:
        """A controller on another driver than the kernel's nvme, and back; its PCI address."""
        bdf = self.bdf(name)
        self.give(bdf, driver)
        try:
            yield bdf
        finally:
            if self.exists(f"{_DEVICES}/{bdf}"):
                self.give(bdf, "nvme")

    def disks(self, bdf: str, count: int = 2) -> list[str]:
        """The namespaces that the kernel's driver offers ("/dev/nvme0n2"), by their ids: the names
        come as they are found. Waits for `count`.
        """

        def found() -> list[str]:
            base = f"{_DEVICES}/{bdf}/nvme"
            controllers = self.names(base) if self.exists(base) else []
            return [
                name
                for controller in controllers
                for name in self.names(f"{base}/{controller}")
                if re.fullmatch(r"nvme\d+n\d+", name)
            ]

        self.until(lambda: len(found()) == count, f"{count} namespaces of {bdf}")
        ids = {int(self.read(f"/sys/class/block/{name}/nsid")): name for name in found()}
        return [f"/dev/{ids[number]}" for number in sorted(ids)]

    @staticmethod
    def until(condition: Any, what: str, bound_s: float = 30.0) -> None:
        """Waits for something that nothing tells of. Raises GuestError."""
        end = time.monotonic() + bound_s
        while not condition():
            if time.monotonic() > end:
                raise GuestError(f"waited {bound_s:.0f} s for {what}")
            time.sleep(LOOK_EVERY_S)

    # ---- the kernel's log ----------------------------------------------------------------------

    def log(self) -> list[str]:
        """What the kernel has said since it started."""
        return self.run(["dmesg"], check=True).stdout.split("\n")

    def say(self, line: str) -> None:
        """Adds a line to the kernel's log."""
        self.write("/dev/kmsg", f"{line}\n")  # without the newline it is kept for more to come

    def mark(self) -> None:
        """What the kernel has said until now is no matter of check()."""
        self._mark = f"<mark {next(self._numbers)}>"
        self.say(self._mark)

    def complaints(self) -> list[str]:
        """Where the kernel has spoken of a fault, a bug, a warning since mark()."""
        lines = self.log()
        first = max(number for number, line in enumerate(lines) if self._mark in line)
        return [line for line in lines[first:] if COMPLAINTS.search(line)]

    def check(self) -> None:
        """Raises AssertionError when there are complaints()."""
        found = self.complaints()
        assert not found, "the guest's kernel has complained:\n" + "\n".join(found)
