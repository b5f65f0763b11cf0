"""Who has a file or a device node open, as far as /proc lets this user see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def descriptors(proc: Path = _PROC) -> Iterator[tuple[int, Path]]:
    """(pid, /proc/PID/fd/N) of every open descriptor that this user may see."""
    for directory in proc.glob("[0-9]*/fd"):
        try:
            names = os.listdir(directory)
        except OSError:
            continue  # ended meanwhile, or not ours to look into
        for name in names:
            yield int(directory.parent.name), directory / name


def openers(status: os.stat_result) -> list[int]:
    """The process of each open descriptor of that inode: one entry per descriptor."""
    wanted = (status.st_dev, status.st_ino)
    found = []
    for pid, descriptor in descriptors():
        try:
            other = os.stat(descriptor)
        except OSError:
            continue  # closed meanwhile
        if (other.st_dev, other.st_ino) == wanted:
            found.append(pid)
    return found


def describe_process(pid: int | None) -> str:
    """`process 42 (qemu)`, for the end of a sentence."""
    if pid is None:
        return "a process that cannot be seen from here"
    if pid == os.getpid():
        return "this process itself"
    command = command_of(pid)
    return f"process {pid} ({command})" if command else f"process {pid}"


def command_of(pid: int, proc: Path = _PROC) -> str:
    """The name of its program, "" if it has ended."""
    try:
        return (proc / f"{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
