"""Who has a file or a device node open, as far as /proc lets this user see."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def openers(status: os.stat_result) -> list[int]:
    """The process of each open descriptor of that inode: one entry per descriptor."""
    wanted = (status.st_dev, status.st_ino)
    found = []
    for directory in _PROC.glob("[0-9]*/fd"):
        try:
            names = os.listdir(directory)
        except OSError:
            continue  # ended meanwhile, or not ours to look into
        for name in names:
            try:
                other = os.stat(directory / name)
            except OSError:
                continue  # closed meanwhile
            if (other.st_dev, other.st_ino) == wanted:
                found.append(int(directory.parent.name))
    return found


def describe_process(pid: int | None) -> str:
    """`process 42 (qemu)`, for the end of a sentence."""
    if pid is None:
        return "a process that cannot be seen from here"
    if pid == os.getpid():
        return "this process itself"
    try:
        command = (_PROC / f"{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({command})"
