"""What a row is, and how much it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import Measure
from tests.bench.peers import Peer
from tests.bench.site import Site

MIB = 1 << 20


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
