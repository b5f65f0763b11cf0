"""What is mounted, as /proc/PID/mountinfo tells it (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mounted:
    """A line of it. `device` is "major:minor", as in st_dev."""

    device: str
    mountpoint: str
    type: str
    source: str


def mounts(path: Path = MOUNTINFO) -> list[Mounted]:
    """What a process (this one) sees mounted, in the order of mounting. Raises OSError."""
    found = []
    for line in path.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, (type_, source, *_) = left.split(" "), right.split(" ")
        found.append(Mounted(fields[2], _unescape(fields[4]), type_, _unescape(source)))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
