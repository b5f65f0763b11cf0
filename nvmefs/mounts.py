"""What is mounted, and unmounting.

Below: the kernel.  Above: mount.py, frontend.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
MNT_DETACH = 2
UNMOUNT_BOUND_S = 60.0


@dataclass(frozen=True)
class Mounted:
    """A line of /proc/self/mountinfo."""

    device: str
    mountpoint: str
    type: str
    source: str


def mounts() -> list[Mounted]:
    """What this process sees mounted, in the order of mounting."""
    found = []
    for line in MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, (type_, source, *_) = left.split(" "), right.split(" ")
        found.append(Mounted(fields[2], _unescape(fields[4]), type_, _unescape(source)))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounted_at(mountpoint: str) -> Mounted | None:
    """The uppermost mount at a path without symbolic links."""
    return next((each for each in reversed(mounts()) if each.mountpoint == mountpoint), None)


def unmount(path: str, *, lazily: bool = False) -> None:
    """umount2(2), or fusermount3 for users. Raises OSError (EBUSY...). May block: not for the trio thread."""
    if os.geteuid():
        command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", path]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=UNMOUNT_BOUND_S, check=False
        )
        if done.returncode:
            busy = "busy" in done.stderr.lower()
            raise OSError(errno.EBUSY if busy else errno.EPERM, done.stderr.strip(), path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), MNT_DETACH if lazily else 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
