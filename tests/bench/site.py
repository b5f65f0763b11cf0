"""A peer's image and mountpoint during one run of a row, and how long that may last."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.compiled import build_flushes
from tests.bench.peers import BenchError, Peer

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
DEVICE_THREAD = "nvme-controller"
"""The embedded controller: it stands for a device, and its CPU time is not the daemon's."""
FLUSHES_FIELD = 15  # of /sys/block/*/stat: flush requests completed


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of a daemon, its kernel time included."""

    daemon: float
    device: float

    def __sub__(self, before: Cpu) -> Cpu:
        return Cpu(self.daemon - before.daemon, self.device - before.device)


class Site:
    """What a row works on. Made and mounted when it is entered, gone afterwards."""

    def __init__(self, peer: Peer, work: Path, bound_s: float) -> None:
        self.peer = peer
        self.work = work
        self.image = work / "image"
        self.directory = work / "mnt"
        self.bound_s = bound_s
        self.flushes_file: Path | None = None
        self.options = ""
        self.late = False

    @contextmanager
    def used(self, image_bytes: int) -> Iterator[Site]:
        """A fresh filesystem. A daemon that is too slow is killed, which ends whoever waits for it."""
        os.sync()
        watchdog = threading.Timer(self.bound_s, self._too_late)
        watchdog.start()
        try:
            self.peer.make(self.image, image_bytes)
            self.mount()
            yield self
            self.unmount()
        except Exception as error:
            if self.late:
                raise BenchError(f"{self.peer.name}: not done in {self.bound_s:g} s") from error
            raise
        finally:
            watchdog.cancel()
            self.peer.abandon(self.directory)
            self.peer.remove(self.image)

    def _too_late(self) -> None:
        self.late = True
        self.peer.kill()

    def mount(self) -> None:
        self.peer.mount(self.image, self.directory, self.options, self._preload())

    def unmount(self) -> None:
        self.peer.unmount(self.directory)

    def remount(self, options: str = "") -> None:
        """Mount anew, with other options."""
        self.unmount()
        self.options = options
        self.mount()

    def remount_cold(self) -> None:
        """Mount anew with nothing of the filesystem or of its image in the page cache."""
        self.unmount()
        drop_caches()
        self.mount()

    # ---- CPU time ------------------------------------------------------------------------------

    def cpu(self) -> Cpu:
        """What the daemon has used so far."""
        device = total = 0.0
        for pid in self.peer.pids:
            total += process_cpu_s(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                if (task / "comm").read_text().strip() == DEVICE_THREAD:
                    device += int((task / "schedstat").read_text().split()[0]) / 1e9
        return Cpu(total - device, device)

    def pin(self, cpu: int) -> None:
        """All threads of the daemon to one CPU."""
        for pid in self.peer.pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {cpu})

    # ---- flushes -------------------------------------------------------------------------------

    def count_flushes(self) -> None:
        """From the next mount on."""
        self.flushes_file = self.work / "flushes"
        self.flushes_file.write_bytes(bytes(mmap.PAGESIZE))

    def _preload(self) -> Mapping[str, str]:
        if self.flushes_file is None:
            return {}
        return {"LD_PRELOAD": str(build_flushes()), "FLUSHES": str(self.flushes_file)}

    def flushes(self) -> int:
        """How often something was made durable so far: by the daemon, or by the loop device."""
        if loop := getattr(self.peer, "loop", ""):
            fields = Path(f"/sys/block/{Path(loop).name}/stat").read_text().split()
            return int(fields[FLUSHES_FIELD])
        assert self.flushes_file is not None
        with open(self.flushes_file, "rb") as file:
            return int.from_bytes(file.read(8), "little")


def process_cpu_s(pid: int) -> float:
    """User and system time of all threads a process has had, to the nanosecond (proc(5) has ticks of 10 ms).

    The clock is what clock_getcpuclockid(3) gives for the process: CPUCLOCK_SCHED is 2.
    """
    return time.clock_gettime(~pid << 3 | 2)


def drop_caches() -> None:
    """Write back and forget what the kernel holds of files. Needs root."""
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError as error:
        raise BenchError(f"{DROP_CACHES}: {error.strerror}; a cold read needs root") from error
