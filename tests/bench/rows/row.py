"""What a row is, and how much it does."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import Measure
from tests.bench.peers import Peer
from tests.bench.site import Cpu, Site

MIB = 1 << 20
DAEMON = ": daemon's CPU"
DEVICE = ": embedded controller's CPU"


@dataclass(frozen=True)
class Scale:
    """Sizes, the same for all peers."""

    rounds: int = 5
    seconds: float = 3.0
    """Of each run of fio, of a database benchmark, of looking at an idle daemon."""
    random_mib: int = 512
    sequential_mib: int = 1024
    files: int = 20_000
    tree_files: int = 20_000
    transactions: int = 500
    database_scale: int = 5


QUICK = Scale(
    rounds=3,
    seconds=0.6,
    random_mib=64,
    sequential_mib=192,
    files=2_000,
    tree_files=1,  # one copy of the library
    transactions=100,
    database_scale=1,
)


class Row(ABC):
    """Measures that share a mount. `run` gives them one by one; the filesystem is fresh each time."""

    name: str
    image_bytes = 4 << 30
    kinds: tuple[str, ...] = ("ours", "fuse", "kernel")
    """Of peers that take part."""
    excluded: tuple[str, ...] = ("nvmefs-python",)
    """Peers that do not, for their time would say nothing new."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    def takes(self, peer: Peer) -> bool:
        return peer.kind in self.kinds and peer.name not in self.excluded

    def missing(self) -> str:
        """Why it cannot run here, or ""."""
        return ""

    def prepare(self, directory: Path) -> None:
        """Make the input, on the host's filesystem; once."""
        return

    @abstractmethod
    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        """Work on the mount, and say what was measured."""


def timed(
    site: Site,
    name: str,
    unit: str,
    count: float,
    work: Callable[[], object],
    *,
    data: bool = False,
) -> Iterator[tuple[Measure, float]]:
    """How many of `count` things a second `work` does, and what each costs the daemon."""
    before = site.cpu()
    started = time.monotonic()
    work()
    took = time.monotonic() - started
    yield Measure(name, unit, data=data), count / took
    yield from cpu_of(site, name, site.cpu() - before, count)


def cpu_of(site: Site, name: str, used: Cpu, count: float) -> Iterator[tuple[Measure, float]]:
    """Microseconds for each of `count` things. Load on the machine changes them little, unlike rates."""
    if site.peer.pids:
        yield Measure(f"{name}{DAEMON}", "us", less_is_better=True), used.daemon / count * 1e6
