"""Who has a device node open, by a look at every process' descriptors."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from ..holders import command_of, descriptors
from .sysfs import Machine

_OF_EVERYBODY = frozenset({"/dev/null", "/dev/zero", "/dev/urandom", "/dev/tty"})


@dataclass(frozen=True, order=True)
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
    found = open_nodes(machine)
    return sorted({process for node in nodes for process in found.get(node, ())})


def open_nodes(machine: Machine) -> dict[str, list[Process]]:
    """All that is open below /dev, and in whom: one look at all descriptors."""
    pids: dict[str, set[int]] = {}
    for pid, descriptor in descriptors(machine.proc):
        try:
            path = os.readlink(descriptor)  # stat(2) might wait for a filesystem that hangs
        except OSError:
            continue  # closed meanwhile
        if path.startswith("/dev/"):
            pids.setdefault(path, set()).add(pid)
    return {
        path: [Process(pid, command_of(pid, machine.proc)) for pid in sorted(found)]
        for path, found in pids.items()
        if path not in _OF_EVERYBODY
    }
