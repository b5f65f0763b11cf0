"""`nvmefs perf` on our driver beside fio on the kernel's, each on a controller of one guest.

Code runs slower under TCG by a factor of ten or more, and so do the controllers, so that no number of
these means anything: their ratio does. All contenders take turns, and of each what QEMU's controller
has counted is read at short intervals. Two things are asked:

* Reads in a second. An interval counts when the host's CPUs were the guest's alone: with others beside
  it, what is measured is how the host schedules QEMU's threads. What the others did is looked at over
  each interval, whatever came out of it, and turns are repeated until enough intervals count; on a host
  that is never quiet the test is skipped, with what was measured.
* CPU time of QEMU for a read with many in flight, of the guest's processors and the controller
  together: that can be asked of a busy host, too. With one in flight most of it is sleeping and waking
  of QEMU's threads, which depends on who else wants the CPUs.

The ratios are printed (pytest -rP).
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .conftest import FREE_PORT, SECOND_FREE_PORT
from .guest import ROOT, Guest
from .host import Watch
from .machine import NULL, Controller, Namespace

START_BOUND_S = 120.0
INTERVAL_S = 0.5
INTERVALS = 4  # of a turn
ENOUGH = 10
QUIET_CPUS = 0.15
"""What others may have: a shell, a look at the clock."""
BOUND_S = 120.0
"""For more turns than the first."""
ENGINES = ("psync", "libaio", "io_uring")
WAITS = {"adaptive": [], "poll": ["--poll"], "interrupt": ["--interrupt"]}
FIO = "fio --name=kernel --thread --direct=1 --rw=randread --bs=4k --time_based --runtime=1000"


@dataclass(frozen=True)
class Interval:
    """What was seen in one."""

    reads_per_s: float
    cpu_us: float
    """Of QEMU, for a read."""
    others: float
    """CPUs that others have had."""


@dataclass
class Contender:
    """One way to read."""

    controller: str
    command: Sequence[str | Path]
    seen: list[Interval] = field(default_factory=list)

    def take_turn(self, guest: Guest) -> None:
        """Starts it, looks at it for some intervals, ends it."""
        machine = guest.machine
        with guest.start(self.command, timeout_s=1000) as job:
            before = machine.reads(self.controller)
            guest.until(
                lambda: machine.reads(self.controller) > before + 200 or job.ended(),
                str(self.command),
                START_BOUND_S,
            )
            for _ in range(INTERVALS):
                watch, reads = Watch(machine.pids), machine.reads(self.controller)
                time.sleep(INTERVAL_S)
                reads = machine.reads(self.controller) - reads
                assert reads, f"{self.command} reads nothing"
                span, own, others = watch.spent()
                self.seen.append(Interval(reads / span, own / reads * 1e6, others / span))

    @property
    def quiet(self) -> list[float]:
        """Reads in a second, of the intervals that count."""
        return [each.reads_per_s for each in self.seen if each.others <= QUIET_CPUS]

    @property
    def cpu_us(self) -> float:
        """For a read."""
        return statistics.median(each.cpu_us for each in self.seen)

    def __str__(self) -> str:
        rates = sorted(each.reads_per_s for each in self.seen)
        others = statistics.mean(each.others for each in self.seen)
        return (
            f"{self.cpu_us:7.0f} us of CPU, {statistics.median(rates):9.0f}/s ({rates[0]:.0f} to "
            f"{rates[-1]:.0f}, others had {others:.2f} CPUs), quiet {len(self.quiet)} of {len(rates)}"
        )


@pytest.fixture
def contenders(guest: Guest, depth: int) -> Iterator[dict[str, Contender]]:
    """On two controllers without a medium: what takes time is the way to them, and not the host's disk."""
    properties: dict[str, str | int] = {"logical_block_size": 4096, "physical_block_size": 4096}
    for name, port in {"theirs": FREE_PORT, "ours": SECOND_FREE_PORT}.items():
        guest.machine.add_controller(Controller(name, [Namespace(NULL)], properties), port)
        bdf = guest.bdf(name)
        guest.until(lambda bdf=bdf: guest.exists(f"/sys/bus/pci/devices/{bdf}/nvme"), bdf)
    (disk,) = guest.disks(guest.bdf("theirs"), 1)
    fio = [*FIO.split(), "--norandommap", f"--filename={disk}", f"--iodepth={depth}"]
    with guest.bound("ours") as bdf:
        perf: list[str | Path] = [
            ROOT / ".venv/bin/nvmefs",
            "perf",
            bdf,
            "--qd",
            str(depth),
            "--time",
            "1000",
        ]
        yield {
            engine: Contender("theirs", [*fio, f"--ioengine={engine}"])
            for engine in (ENGINES if depth == 1 else ENGINES[1:])
        } | {wait: Contender("ours", [*perf, *words]) for wait, words in WAITS.items()}
    for name in ("theirs", "ours"):
        guest.machine.remove_controller(name)


@pytest.mark.timeout(BOUND_S + 600)
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.parametrize("depth", [1, 32])
def test_beside_the_kernels_driver(
    guest: Guest, contenders: dict[str, Contender], depth: int
) -> None:
    end, enough = time.monotonic() + BOUND_S, False
    while not enough:
        for each in contenders.values():
            each.take_turn(guest)
        enough = all(len(each.quiet) >= ENOUGH for each in contenders.values())
        if time.monotonic() > end:
            break
    report = "\n".join(f"{name:10}{each}" for name, each in contenders.items())
    print(f"kernel {guest.machine.kernel.name}, {depth} in flight\n{report}")
    theirs = [each for each in contenders.values() if each.controller == "theirs"]
    if depth > 1:
        assert contenders["interrupt"].cpu_us <= min(each.cpu_us for each in theirs)
    if not enough:
        pytest.skip(f"others had more than {QUIET_CPUS} of the host's CPUs too often:\n{report}")
    medians = {name: statistics.median(each.quiet) for name, each in contenders.items()}
    best = max(statistics.median(each.quiet) for each in theirs)
    for name, rate in medians.items():
        print(f"{name:10} {rate:9.0f}/s   {rate / best:5.2f} of fio")
    assert medians["adaptive"] >= best
