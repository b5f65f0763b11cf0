"""FUSE over io_uring: whether the kernel offers it, and how many threads and entries its queues want.

Below: the kernel.  Above: frontend.py, mount.py.

    if reason := missing(): ...                 one line: what is missing and what to do about it
    plan = Plan.for_queues(possible_cpus(), granted)

The kernel has a queue for each CPU that it may ever have, and uses none before all have an entry. A thread of
ours has the queues of one CPU; where the drive grants fewer queue pairs than there are CPUs it has several.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")
DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
POSSIBLE = Path("/sys/devices/system/cpu/possible")

MOST_THREADS = 16
ALL_ENTRIES = (
    60  # of all queues together, as far as each has the fewest; each is 1 MiB of DMA memory
)
MOST_ENTRIES, FEWEST_ENTRIES = 30, 2  # of a queue
SPARES, MOST_SPARES = 96, 800  # of a queue; of a thread: ten bits count its entries


def missing() -> str | None:
    """Why FUSE over io_uring cannot be had here, as far as that can be known before mounting."""
    if not PARAMETER.exists():
        return "the kernel has no FUSE over io_uring; Linux 6.14 with CONFIG_FUSE_IO_URING has it"
    if PARAMETER.read_text().strip() != "Y":
        return f"the kernel does not offer it; let it: echo Y > {PARAMETER}"
    if DISABLED.exists() and DISABLED.read_text().strip() == "2":
        return "io_uring is disabled; allow it: sysctl kernel.io_uring_disabled=0"
    return None


def possible_cpus() -> int:
    """How many queues the kernel has."""
    count = 0
    for part in POSSIBLE.read_text().strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


@dataclass(frozen=True)
class Plan:
    """`entries` and `spares`: of each thread, for all of its queues; spares are in ordinary memory."""

    queues: int
    threads: int
    entries: int
    spares: int

    @classmethod
    def for_queues(cls, queues: int, threads: int) -> Plan:
        """With at most so many threads."""
        threads = min(queues, threads)
        each = max(FEWEST_ENTRIES, min(MOST_ENTRIES, ALL_ENTRIES // queues))
        share = -(-queues // threads)
        return cls(queues, threads, each * share, min(SPARES * share, MOST_SPARES))
