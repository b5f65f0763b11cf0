"""What is mounted, as /proc/PID/mountinfo tells it (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .holders import command_of

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mounted:
    """A line of it. `device` is "major:minor", as in st_dev; `options` are this mount's own."""

    device: str
    mountpoint: str
    type: str
    source: str
    options: tuple[str, ...] = ()


def mounts(path: Path = MOUNTINFO) -> list[Mounted]:
    """What a process (this one) sees mounted, in the order of mounting. Raises OSError."""
    found = []
    for line in path.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, (type_, source, *_) = left.split(" "), right.split(" ")
        options = tuple(fields[5].split(","))
        found.append(Mounted(fields[2], unescape(fields[4]), type_, unescape(source), options))
    return found


def everywhere(proc: Path) -> list[tuple[Mounted, str]]:
    """What this process sees mounted, then what others see in mount namespaces of their own, each
    with the name of such a process ("" for this one). As far as /proc lets this user look.
    """
    found = [(each, "") for each in _of(proc / "self")]
    seen = {_namespace(proc / "self")}
    for process in sorted(proc.glob("[0-9]*")):
        namespace = _namespace(process)
        if namespace and namespace not in seen:
            seen.add(namespace)
            known = {(each.device, each.mountpoint) for each, _ in found}
            whose = f"{command_of(int(process.name), proc)} (pid {process.name})"
            found += [
                (each, whose)
                for each in _of(process)
                if (each.device, each.mountpoint) not in known
            ]
    return found


def _of(process: Path) -> list[Mounted]:
    try:
        return mounts(process / "mountinfo")
    except OSError:  # it has ended
        return []


def _namespace(process: Path) -> str:
    try:
        return os.readlink(process / "ns/mnt")
    except OSError:
        return ""


def unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
