"""Who has a device node open, by a look at every process' descriptors."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .sysfs import Machine


@dataclass(frozen=True)
class Process:
    """A process, as messages name it: fio (pid 1234)."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def holders(machine: Machine, nodes: Collection[str]) -> list[Process]:
    """The processes that have any of `nodes` (/dev/vfio/7, /dev/nvme0n1) open.

    Only those of the same user are seen without privilege.
    """
    wanted = set(nodes)
    found = []
    for path in machine.proc.glob("[0-9]*"):
        if wanted & _open_files(path):
            try:
                command = (path / "comm").read_text(errors="replace").strip()
            except OSError:
                continue  # it has ended
            found.append(Process(int(path.name), command))
    return sorted(found, key=lambda process: process.pid)


def _open_files(process: Path) -> set[str]:
    """What its descriptors lead to; nothing for one that has ended or is not ours to look into."""
    found = set()
    try:
        for descriptor in os.scandir(process / "fd"):
            found.add(os.readlink(descriptor.path))
    except OSError:
        return found
    return found
