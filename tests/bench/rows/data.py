"""Reading and writing one file: small requests by fio, a stream, a database's commits."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench import fio
from tests.bench.figures import Measure
from tests.bench.fio import KIB, Job
from tests.bench.peers import BenchError
from tests.bench.rows.row import DEVICE, MIB, Row, Scale, cpu_of, timed
from tests.bench.site import Site, drop_caches


class OnAFile(Row):
    """A row that needs fio and a file that is there."""

    def missing(self) -> str:
        return fio.missing()

    def lay_out(self, site: Site, mib: int) -> Path:
        """Random bytes, written in order and durable."""
        path = site.directory / "data"
        with open(path, "wb", buffering=0) as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        os.sync()
        return path


class Random(OnAFile):
    """4 KiB at random places past the page cache, and what CPU time the daemon needs for it."""

    name = "random"
    kinds = ("ours", "fuse", "kernel", "null")
    excluded = ("null-python",)

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        path = self.lay_out(site, self.scale.random_mib)
        for kind in ("read", "write"):
            for depth in (1, 32):
                before = site.cpu()
                outcome = Job(f"rand{kind}", depth).run(path, self.scale.seconds)
                used = site.cpu() - before
                name = f"4 KiB random {kind}, QD{depth}"
                yield Measure(name, "1/s", data=True), outcome.rate
                yield from cpu_of(site, name, used, outcome.requests)
                if used.device:
                    us = used.device / outcome.requests * 1e6
                    yield Measure(f"{name}{DEVICE}", "us", less_is_better=True), us


class Cores(OnAFile):
    """One request at a time, with program and daemon on one CPU and on two."""

    name = "cores"
    kinds = ("ours", "fuse", "null")
    excluded = ("null-python",)

    def missing(self) -> str:
        cpus = os.cpu_count() or 1
        return super().missing() or ("" if cpus > 1 else "one CPU only")

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        path = self.lay_out(site, min(64, self.scale.random_mib))
        mine, other = sorted(os.sched_getaffinity(0))[:2]
        for where, cpu in (("same CPU", mine), ("other CPU", other)):
            site.pin(cpu)
            for kind in ("read", "write"):
                job = Job(f"rand{kind}", cpu=mine)
                rate = job.run(path, self.scale.seconds).rate
                yield (
                    Measure(f"4 KiB random {kind}, QD1, daemon on {where}", "1/s", data=True),
                    rate,
                )


class Sequential(Row):
    """A stream in pieces of 1 MiB: past the page cache and through it; what is read is compared."""

    name = "sequential"
    PIECES = 8

    def __init__(self, scale: Scale) -> None:
        super().__init__(scale)
        # O_DIRECT wants aligned memory, which a private mapping is.
        self.pieces = [mmap.mmap(-1, MIB) for _ in range(self.PIECES)]
        for piece in self.pieces:
            piece[:] = os.urandom(MIB)
        self.buffer = mmap.mmap(-1, MIB)

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        mib, hows = self.scale.sequential_mib, (("O_DIRECT", os.O_DIRECT), ("buffered", 0))
        for how, flag in hows:
            name = f"1 MiB sequential write, {how}, fsync"
            write = partial(self.write, site.directory / how, flag)
            os.sync()
            yield from timed(site, name, "MiB/s", mib, write, data=True)
        # The image stays in the page cache, as with the random requests: the way to it is measured.
        site.remount()
        for how, flag in hows:
            read = partial(self.read, site.directory / how, flag)
            yield from timed(site, f"1 MiB sequential read, {how}", "MiB/s", mib, read, data=True)
        site.remount_cold()
        name = "1 MiB sequential read, buffered, from the disk"
        read = partial(self.read, site.directory / "buffered", 0)
        yield from timed(site, name, "MiB/s", mib, read, data=True)

    def write(self, path: Path, flag: int) -> None:
        """Until the file is durable."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flag, 0o644)
        try:
            for number in range(self.scale.sequential_mib):
                if os.write(descriptor, self.pieces[number % self.PIECES]) != MIB:
                    raise BenchError(f"{path.name}: a short write at {number} MiB")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, path: Path, flag: int) -> None:
        """All of it; a sample of it is compared."""
        descriptor = os.open(path, os.O_RDONLY | flag)
        try:
            for number in range(self.scale.sequential_mib):
                if os.readv(descriptor, [self.buffer]) != MIB:
                    raise BenchError(f"{path.name}: a short read at {number} MiB")
                if number % 61 == 0 and self.buffer[:] != self.pieces[number % self.PIECES][:]:
                    raise BenchError(f"{path.name}: other bytes read than written at {number} MiB")
        finally:
            os.close(descriptor)


class Commit(OnAFile):
    """What a log and a database do: a little, then make it durable; and what flushes that took."""

    name = "commit"
    excluded = ()
    WRITERS = 8

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        site.count_flushes()
        site.remount()
        yield Measure("4 KiB append + fsync", "1/s", data=True), self.append(site)
        path = self.lay_out(site, min(64, self.scale.random_mib))
        drop_caches()
        path.read_bytes()  # the pages are there, as in a database that runs
        for writers in (1, self.WRITERS):
            job = Job("randwrite", block=16 * KIB, direct=False, writers=writers, fdatasync=True)
            before = site.flushes()
            outcome = job.run(path, self.scale.seconds)
            flushes = site.flushes() - before
            who = "" if writers == 1 else f", {writers} writers"
            yield Measure(f"16 KiB random write + fdatasync{who}", "1/s", data=True), outcome.rate
            name = f"flushes for each fdatasync{who}"
            yield Measure(name, "", less_is_better=True), flushes / outcome.requests

    def append(self, site: Site) -> float:
        """Appends a second."""
        piece = os.urandom(4 * KIB)
        started = time.monotonic()
        done = 0
        with open(site.directory / "log", "xb", buffering=0) as file:
            while time.monotonic() - started < self.scale.seconds:
                file.write(piece)
                os.fsync(file.fileno())
                done += 1
        return done / (time.monotonic() - started)
