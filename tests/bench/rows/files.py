"""Names and attributes: many small files, and a source tree."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.figures import Measure
from tests.bench.peers import BenchError
from tests.bench.rows.row import Row, cpu_of, timed
from tests.bench.site import Site, drop_caches
from tests.demo.programs import call
from tests.programs.source_tree import PackedTree, pack


class Files(Row):
    """One directory of small files, from the first to the last."""

    name = "files"
    excluded = ()
    CONTENT = b"x" * 512

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        count = self.scale.files
        directory = site.directory / "many"
        directory.mkdir()
        names = [f"{directory}/file-{number:07d}" for number in range(count)]
        yield from timed(site, "create small files", "1/s", count, partial(self.create, names))
        site.remount_cold()
        listed = partial(self.readdir, directory, count)
        yield from timed(site, "readdir, cold", "names/s", count, listed)
        site.remount_cold()
        random.Random(0).shuffle(names)
        yield from timed(site, "stat, cold", "1/s", count, partial(self.stat, names))
        yield from timed(site, "stat, warm", "1/s", count, partial(self.stat, names))
        yield from timed(site, "unlink", "1/s", count, partial(self.unlink, names))
        started = time.monotonic()
        site.unmount()
        yield Measure("unmount after it", "s", less_is_better=True), time.monotonic() - started
        site.mount()

    def create(self, names: list[str]) -> None:
        for name in names:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, self.CONTENT)
            os.close(descriptor)

    def readdir(self, directory: Path, count: int) -> None:
        if (found := len(os.listdir(directory))) != count:
            raise BenchError(f"{directory.name}: {found} names listed of {count}")

    def stat(self, names: list[str]) -> None:
        for name in names:
            if os.stat(name).st_size != len(self.CONTENT):
                raise BenchError(f"{name}: another size than was written")

    def unlink(self, names: list[str]) -> None:
        for name in names:
            os.unlink(name)


class Tree(Row):
    """A source tree out of a tar file by GNU tar, until it is durable; and removed by rm."""

    name = "tree"

    def prepare(self, directory: Path) -> None:
        self.tree: PackedTree = pack(directory / "source.tar", self.scale.tree_files, odd=False)

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        self.tree.path.read_bytes()  # the tar file comes from memory
        before, started = site.cpu(), time.monotonic()
        call("tar", "-xpf", self.tree.path, "-C", site.directory)
        unpacked = time.monotonic() - started
        name = "unpack a source tree (tar)"
        yield Measure(name, "files/s"), self.tree.files / unpacked
        yield from cpu_of(site, name, site.cpu() - before, self.tree.files)
        site.unmount()
        durable = time.monotonic() - started
        yield Measure("the same, until unmounted", "files/s"), self.tree.files / durable
        drop_caches()
        site.mount()
        tops = [str(path) for path in site.directory.iterdir() if path.name != "lost+found"]
        remove = partial(call, "rm", "-r", *tops)
        yield from timed(site, "remove it, cold (rm -r)", "files/s", self.tree.files, remove)
