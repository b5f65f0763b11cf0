"""What is measured. A row prepares its input once, then runs on a fresh mount of each peer in turn.

A row is added by a subclass and its name in ROWS. `run` gives one number for each of its `measures`;
larger is better.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import BenchError, Peer
from tests.demo.programs import call
from tests.programs.source_tree import PackedTree, pack

MIB = 1 << 20
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Measure:
    """One line of the table."""

    name: str
    unit: str


class Site:
    """A peer's image and mountpoint during one run of a row."""

    def __init__(self, peer: Peer, image: Path, directory: Path, size_bytes: int) -> None:
        self.peer = peer
        self.image = image
        self.directory = directory
        peer.make(image, size_bytes)
        self.mount()

    def mount(self) -> None:
        self.peer.mount(self.image, self.directory)

    def unmount(self) -> None:
        self.peer.unmount(self.directory)

    def remount_cold(self) -> None:
        """Mount anew with nothing of the filesystem or of its image in the page cache."""
        self.unmount()
        drop_caches()
        self.mount()


class Row(ABC):
    """A measurement."""

    name: str
    measures: tuple[Measure, ...]
    image_bytes: int

    @abstractmethod
    def prepare(self, directory: Path) -> None:
        """Make the input, on the host's filesystem; once."""

    @abstractmethod
    def run(self, site: Site) -> list[float]:
        """One number for each measure, from a fresh mount. What `site` holds is removed by the caller."""


class Unpack(Row):
    """A source tree out of a tar file, by GNU tar."""

    name = "unpack"
    measures = (
        Measure("unpack a source tree (tar)", "files/s"),
        Measure("the same, until unmounted", "files/s"),
    )
    image_bytes = 2 << 30

    def __init__(self, files: int) -> None:
        self.files = files
        self.tree: PackedTree | None = None

    def prepare(self, directory: Path) -> None:
        self.tree = pack(directory / "source.tar", self.files)

    def run(self, site: Site) -> list[float]:
        assert self.tree is not None
        self.tree.path.read_bytes()  # the tar file comes from memory
        started = time.monotonic()
        quiet = "--warning=no-unknown-keyword"
        call("tar", quiet, "-xpf", self.tree.path, "-C", site.directory)
        unpacked = time.monotonic() - started
        site.unmount()
        durable = time.monotonic() - started
        return [self.tree.files / unpacked, self.tree.files / durable]


class Sequential(Row):
    """A large file: written in pieces of 1 MiB and synced; read back after a cold remount."""

    name = "sequential"
    measures = (
        Measure("write a large file, fsync", "MiB/s"),
        Measure("read it back, cold", "MiB/s"),
    )
    image_bytes = 4 << 30

    def __init__(self, mib: int) -> None:
        self.mib = mib
        self.pieces: list[bytes] = []

    def prepare(self, directory: Path) -> None:
        self.pieces = [os.urandom(MIB) for _ in range(16)]

    def run(self, site: Site) -> list[float]:
        path = site.directory / "large"
        written = self.write(path)
        site.remount_cold()
        return [self.mib / written, self.mib / self.read(path)]

    def write(self, path: Path) -> float:
        """Seconds until the file is written and synced."""
        started = time.monotonic()
        with open(path, "xb", buffering=0) as file:
            for number in range(self.mib):
                if file.write(self.pieces[number % len(self.pieces)]) != MIB:
                    raise BenchError(f"{path}: a short write at {number} MiB")
            os.fsync(file.fileno())
        return time.monotonic() - started

    def read(self, path: Path) -> float:
        """Seconds to read it all; a sample of it is compared."""
        buffer = bytearray(MIB)
        started = time.monotonic()
        with open(path, "rb", buffering=0) as file:
            for number in range(self.mib):
                if file.readinto(buffer) != MIB:
                    raise BenchError(f"{path}: a short read at {number} MiB")
                if number % 64 == 0 and buffer != self.pieces[number % len(self.pieces)]:
                    raise BenchError(f"{path}: other bytes read than written at {number} MiB")
        return time.monotonic() - started


def drop_caches() -> None:
    """Write back and forget what the kernel holds of files. Needs root."""
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError as error:
        raise BenchError(f"{DROP_CACHES}: {error.strerror}; a cold read needs root") from error
