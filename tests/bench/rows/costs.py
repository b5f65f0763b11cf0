"""CPU time of the daemon: for each request about a name, and for none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from tests.bench.figures import Measure
from tests.bench.rows.row import Row, cpu_of
from tests.bench.site import Site

FOREVER_S = 86400


class Names(Row):
    """What a lookup, a getattr and a create cost the daemon, beside a filesystem that does nothing.

    The kernel is kept from answering itself: names expire at once, or attributes do.
    """

    name = "names"
    kinds = ("ours", "null")
    excluded = ("null-c",)

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        count = max(2_000, self.scale.files // 4)
        names = [f"{site.directory}/file-{number:07d}" for number in range(count)]
        for what, entry_s, attr_s in (("lookup", 0, FOREVER_S), ("getattr", FOREVER_S, 0)):
            site.remount(f"entry_timeout={entry_s},attr_timeout={attr_s}")
            # The null filesystem forgets: the names are made anew, which is the third measure.
            create = cpu_of_each(site, "one create", count, lambda: self.create(names))
            if what == "lookup":
                yield from create
            self.stat(names)
            yield from cpu_of_each(site, f"one {what}", count, lambda: self.stat(names))
            for name in names if site.peer.kind == "ours" else ():
                os.unlink(name)

    def create(self, names: list[str]) -> None:
        for name in names:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def stat(self, names: list[str]) -> None:
        for name in names:
            os.stat(name)


class Idle(Row):
    """CPU time while nothing is asked for, after some work."""

    name = "idle"
    kinds = ("ours", "fuse")
    excluded = ()

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        for number in range(100):
            (site.directory / f"file{number}").write_bytes(b"x")
        descriptor = os.open(site.directory / "file0", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        before = site.cpu()
        watched_s = 3 * self.scale.seconds
        time.sleep(watched_s)  # the measure itself: nothing happens
        used = site.cpu() - before
        ms = (used.daemon + used.device) * 1e3 / watched_s
        yield Measure("CPU while idle", "ms/s", less_is_better=True), ms


def cpu_of_each(
    site: Site, name: str, count: int, work: Callable[[], None]
) -> list[tuple[Measure, float]]:
    """What each of `count` things that `work` does costs the daemon."""
    before = site.cpu()
    work()
    return list(cpu_of(site, name, site.cpu() - before, count))
