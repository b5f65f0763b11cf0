"""Real mounts for tests: made, served by a daemon of their own, unmounted, and checked by fsck.

    def test_x(place: Path)             a fresh directory on a mount that the tests of a file share
    def test_y(new_mount)               mount = new_mount(size="64M", options="ro"); mount.path, .pid, ...

Whatever a test leaves mounted is unmounted; a daemon that does not end within the bound is killed, and the
test that owned it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import mounts_below
from tests.support.uring import offered

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 40
NOBODY = 65534

T = TypeVar("T")


def run(*command: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program to its end, its output as text; ours are found in this tree. Bounded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [str(word) for word in command],
        env=environment,
        check=check,
        text=True,
        errors="surrogateescape",
        capture_output=True,
        timeout=BOUND_S,
        **options,
    )


def python_module(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", module, *(str(word) for word in arguments)]


def mkfs(image: Path, size: str, *arguments: str) -> None:
    run(*python_module("mkfs.mkfs", "-q", "--size", size, *arguments, image))


def fsck(image: Path) -> subprocess.CompletedProcess[str]:
    return run(*python_module("mkfs.fsck", "-n", image), check=False)


def ended(pid: int, seconds: float = BOUND_S) -> bool:
    """Wait for the end of any process of which we may know; False if it lives on after `seconds`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def wait_until(condition: Callable[[], bool], seconds: float = BOUND_S) -> None:
    """Look again until it holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@dataclass
class Mount:
    """An image and the directory where it is mounted at times."""

    image: Path
    path: Path
    log: Path
    options: str = ""
    pid: int = 0
    checked: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    module: str = "nvmefs.cli"

    def command(self, *arguments: str, options: str | None = None) -> list[str]:
        words = [f"log={self.log}", self.options if options is None else options]
        listed = ",".join(word for word in words if word)
        return python_module(self.module, self.image, self.path, "-o", listed, *arguments)

    def mount(self, options: str | None = None) -> None:
        """Mount in the background; raises CalledProcessError if the command fails."""
        command = self.command(options=options)
        with offered() if "frontend=uring" in command[-1] else contextlib.nullcontext():
            run(*command, env=self.environment)
        mounted = re.findall(r"nvmefs\[(\d+)\] INFO nvmefs: .*: mounted at", self.log.read_text())
        self.pid = int(mounted[-1])

    def unmount(self) -> None:
        """umount(8), and wait until the daemon has written everything and ended."""
        run(*(["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]), self.path)
        assert ended(self.pid), "the daemon lives on after the unmount"
        self.pid = 0

    def remount(self, options: str | None = None) -> None:
        self.unmount()
        self.mount(options)

    def kill(self) -> None:
        """The daemon dies as in a crash; what is left of the mount is cleared away."""
        os.kill(self.pid, signal.SIGKILL)
        self._died()

    def _died(self) -> None:
        assert ended(self.pid)
        self.pid = 0
        run("umount", "-l", self.path)

    def cut_power(self) -> None:
        """Of the module tests.mount.faulty: what its volatile cache holds is lost."""
        os.kill(self.pid, signal.SIGUSR2)
        self._died()

    @property
    def mounted(self) -> bool:
        return str(self.path) in mounts_below(self.path)

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def cpu_s(self) -> float:
        """CPU time of all threads of the daemon so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tidy(self) -> None:
        """Leave nothing behind; what was found wrong is asserted at the end."""
        faults = []
        if self.mounted and self.pid:
            done = run("umount", self.path, check=False)
            if done.returncode:
                faults.append(done.stderr)
                run("umount", "-l", self.path)
        if self.pid and not ended(self.pid):
            faults.append(f"daemon {self.pid} did not end; killed")
            os.kill(self.pid, signal.SIGKILL)
        while self.mounted:
            run("umount", "-l", self.path)
        if self.checked and self.image.exists():
            done = fsck(self.image)
            if done.returncode:
                faults.append(f"fsck: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        if "by a fault of nvmefs" in self.logged() or "Traceback" in self.logged():
            faults.append(self.logged())
        assert not faults, "\n".join(faults)


def make_mount(directory: Path, size: str = "256M", options: str = "", mount: bool = True) -> Mount:
    made = Mount(directory / "disk.img", directory / "mnt", directory / "log", options)
    made.path.mkdir()
    mkfs(made.image, size)
    if mount:
        made.mount()
    return made


@pytest.fixture
def new_mount(tmp_path: Path) -> Iterator[Callable[..., Mount]]:
    """Makes and mounts filesystems of the test's own: new_mount(size=, options=, mount=)."""
    made: list[Mount] = []

    def factory(**arguments: Any) -> Mount:
        directory = tmp_path / f"fs{len(made)}"
        directory.mkdir()
        made.append(make_mount(directory, **arguments))
        return made[-1]

    yield factory
    for mount in reversed(made):
        mount.tidy()


def faulty(
    new_mount: Callable[..., Mount], *rules: str, options: str = "frontend=c", **embedded: object
) -> Mount:
    """A mount whose controller follows these rules."""
    mount = new_mount(mount=False)
    mount.module = "tests.mount.faulty"
    mount.environment = {
        "FAULTS": ";".join(rules),
        "DEADLINE": "0.4",
        "EMBEDDED": json.dumps(embedded),
    }
    mount.mount(options)
    return mount


def counted(mount: Mount, name: str) -> int:
    """A counter of the statistics that the daemon logs at its end."""
    return sum(map(int, re.findall(rf"'{name}': (\d+)", mount.logged())))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that the tests of one file share, each in its own `place`."""
    mount = make_mount(tmp_path_factory.mktemp("shared"), size="1G")
    yield mount
    mount.tidy()


@pytest.fixture
def place(shared: Mount, request: pytest.FixtureRequest) -> Path:
    """A new directory on the shared mount, open to all users."""
    name = re.sub(r"\W+", "_", request.node.name)[:80]
    path = shared.path / f"{name}-{len(os.listdir(shared.path))}"
    path.mkdir()
    path.chmod(0o777)
    return path


def as_user(place: Path, function: Callable[[], T], uid: int = NOBODY, gid: int | None = None) -> T:
    """What `function` returns or raises when an ordinary user calls it inside `place`.

    It runs in a child; the directories above `place` belong to root alone, so paths have to be relative.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        outcome: tuple[bool, Any] = (False, AssertionError("the child failed, not the system call"))
        try:
            os.chdir(place)
            os.setgroups([])
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            outcome = (True, function())
        except OSError as error:
            outcome = (False, error)
        finally:
            os.write(write_end, pickle.dumps(outcome))
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        good, value = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    if not good:
        raise value
    result: T = value
    return result
