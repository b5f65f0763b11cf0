"""Who has a device node open, by a look at every process' descriptors."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from ..holders import command_of, descriptors
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
    pids = set()
    for pid, descriptor in descriptors(machine.proc):
        try:
            if os.readlink(descriptor) in wanted:  # stat(2) might wait for a filesystem that hangs
                pids.add(pid)
        except OSError:
            continue  # closed meanwhile
    return [Process(pid, command_of(pid, machine.proc)) for pid in sorted(pids)]
