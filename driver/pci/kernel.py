"""Acting on the kernel: a write to sysfs that cannot hang us, a module, a claim on a block device."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import TransportError

WRITE_BOUND_S = 60.0
MODPROBE_BOUND_S = 30.0
LOOK_AGAIN_S = 0.02
_SBIN = ":/usr/sbin:/sbin"


def program(name: str) -> str | None:
    """Where a program lies, in the directories of administrators too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + _SBIN)


def write_bounded(path: Path, text: str, bound_s: float = WRITE_BOUND_S) -> None:
    """Writes `text` to a file of sysfs, in one write(2).

    A driver may take its time there, in a sleep that no signal ends; so another process writes, and
    is left behind after `bound_s`. Raises TransportError, with the kernel's reason.
    """
    if not path.exists():
        raise TransportError(f"{path}: not there (the device is gone, or its driver changed)")
    with contextlib.ExitStack() as stack:
        writer = subprocess.Popen(
            ["tee", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        for stream in (writer.stdin, writer.stderr):
            if stream is not None:
                stack.enter_context(stream)
        try:
            _, said = writer.communicate(text, timeout=bound_s)
        except subprocess.TimeoutExpired:
            writer.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # asleep in the kernel: left there
                writer.wait(timeout=1)
            raise TransportError(
                f"writing {text.strip()!r} to {path}: the kernel has not come back within "
                f"{bound_s:g} s, and may still do it; see: dmesg"
            ) from None
    if writer.returncode:
        reason = said.strip().rpartition(": ")[2] or f"exit status {writer.returncode}"
        raise TransportError(f"writing {text.strip()!r} to {path}: {reason}; see: dmesg")


def load_module(name: str) -> None:
    """modprobe(8). Raises TransportError."""
    modprobe = program("modprobe")
    if modprobe is None:
        raise TransportError(f"the kernel module {name} is not loaded, and there is no modprobe")
    done = subprocess.run(
        [modprobe, name], capture_output=True, text=True, timeout=MODPROBE_BOUND_S, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise TransportError(f"the kernel module {name} cannot be loaded: {said}")


def claim(node: Path) -> int:
    """A descriptor that keeps exclusive users from a block device: a mount, swap, a volume manager, a mkfs.

    Raises OSError; EBUSY while it or a partition of it has such a user.
    """
    return os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)


def is_claimed(node: Path) -> bool:
    """Whether a block device has an exclusive user."""
    try:
        os.close(claim(node))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def wait_until(condition: Callable[[], bool], bound_s: float) -> bool:
    """Looks until it holds: sysfs tells nobody of a change. False after `bound_s`."""
    deadline = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_AGAIN_S)
    return True
