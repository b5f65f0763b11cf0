"""How noisy the machine was: load average, steal, what ran while the bench did nothing, a fixed piece of work.

noise = Noise(); noise.look(); ... a round ...; noise.look(); print(noise.lines())
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.figures import Spread

QUIET_S = 0.3
PROC_STAT = Path("/proc/stat")
IDLE, IOWAIT, STEAL = 3, 4, 7  # fields of the first line of /proc/stat


@dataclass(frozen=True)
class Ticks:
    """Of all CPUs since boot."""

    total: int
    idle: int
    stolen: int

    @classmethod
    def parse(cls, text: str) -> Ticks:
        """The first line of /proc/stat. Guest time is within user time (proc(5))."""
        fields = [int(word) for word in text.splitlines()[0].split()[1:9]]
        return cls(sum(fields), fields[IDLE] + fields[IOWAIT], fields[STEAL])

    def __sub__(self, before: Ticks) -> Ticks:
        return Ticks(
            self.total - before.total, self.idle - before.idle, self.stolen - before.stolen
        )

    @property
    def busy_percent(self) -> float:
        return 100 * (self.total - self.idle) / max(self.total, 1)

    @property
    def stolen_percent(self) -> float:
        return 100 * self.stolen / max(self.total, 1)


@dataclass
class Noise:
    """Looked at before each round and after the last."""

    load: list[float] = field(default_factory=list)
    busy_percent: list[float] = field(default_factory=list)
    work_ms: list[float] = field(default_factory=list)
    start: Ticks = field(default_factory=lambda: Ticks.parse(PROC_STAT.read_text()))

    def look(self) -> None:
        self.load.append(os.getloadavg()[0])
        self.work_ms.append(_work_ms())
        before = Ticks.parse(PROC_STAT.read_text())
        time.sleep(QUIET_S)  # what is busy now is somebody else
        self.busy_percent.append((Ticks.parse(PROC_STAT.read_text()) - before).busy_percent)

    def stolen_percent(self) -> float:
        return (Ticks.parse(PROC_STAT.read_text()) - self.start).stolen_percent

    def lines(self) -> list[str]:
        return [
            f"noise: load average {Spread.of(self.load)} on {os.cpu_count()} CPUs, 1 to 2 by the bench",
            f"  others' share of the CPUs while the bench did nothing: {Spread.of(self.busy_percent)} %",
            f"  stolen by the host: {self.stolen_percent():.1f} %",
            f"  a fixed piece of work took {Spread.of(self.work_ms)} ms",
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "load_average": self.load,
            "others_busy_percent": self.busy_percent,
            "fixed_work_ms": self.work_ms,
            "stolen_percent": self.stolen_percent(),
        }


def _work_ms() -> float:
    started = time.perf_counter()
    sum(number * number for number in range(300_000))
    return (time.perf_counter() - started) * 1e3


def facts() -> dict[str, Any]:
    """What is needed to read numbers later."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
    }


def cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
