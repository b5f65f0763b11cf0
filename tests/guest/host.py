"""How much of the host's CPUs others have had while something was measured.

    watch = Watch(guest.machine.pids)
    ...                                  what is measured: by these processes, and by this one
    span, own, others = watch.spent()    seconds, CPU seconds of the processes, and of anybody else

A hypervisor that gives the host's CPUs to somebody else (steal) is one of the others.

Below: /proc/stat, /proc/PID/stat. Above: test_speed.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _GUEST = 3, 4, 8  # columns of /proc/stat; from the last on, what `user` has in it


class Watch:
    """Begins with its making."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._begin = self._now()

    def _now(self) -> tuple[float, float, float]:
        """The time, CPU seconds of the processes, and of all others but this one."""
        own = sum(map(_used_s, self._pids))
        return time.monotonic(), own, _busy_s() - own - _used_s(os.getpid())

    def spent(self) -> tuple[float, float, float]:
        """Since the beginning: seconds, CPU seconds of the processes, of others."""
        span, own, others = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        return span, own, max(0.0, others)


def _busy_s() -> float:
    """CPU seconds that somebody has had, of all CPUs."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    columns = [int(word) for word in line.split()[1:]]
    return (sum(columns[:_GUEST]) - columns[_IDLE] - columns[_IOWAIT]) / _TICKS_PER_S


def _used_s(pid: int) -> float:
    """CPU seconds of a process, all its threads, and of its children that have ended."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime stime cutime cstime
