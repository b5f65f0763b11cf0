"""What one operation on a directory costs as its names grow from a thousand to a million: O(log n).

    python -m tests.bench.growth [--most 1000000] [--directory DIR] [--json FILE]

For each decade: the directory is filled up to it, then samples are taken of creating, looking up (of names that
the kernel has forgotten), listing (for each name) and unlinking. The cache is large enough for the tree, as the
work is to be compared, not how much of it is in memory. At the end stands how many times the first number the
last one is; 2 is the bound.

`cold` are the first lookups of a new mount, each of which reads its leaves from the drive where there are many;
that has no bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.scale import high_water_mib
from tests.mount.conftest import Mount, make_mount

LEAST, MOST = 1_000, 1_000_000
SAMPLES = 400
CACHE_MB = 4096  # a million names and inodes take some hundred
QUIET_S, PATIENCE_S = 0.3, 120
BOUND = 2.0
OPERATIONS = ("create", "lookup", "readdir", "unlink")
COLD = "cold"
Rows = dict[str, dict[int, float]]  # operation: number of names: microseconds an operation


def timed(work: Callable[[str], object], names: list[str]) -> float:
    """Microseconds that `work` takes for one of the names."""
    began = time.perf_counter()
    for name in names:
        work(name)
    return (time.perf_counter() - began) / len(names) * 1e6


def create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def forget_names(mount: Mount) -> None:
    """The kernel drops what it knows of names and inodes, and the daemon has heard of it."""
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
    deadline = time.monotonic() + PATIENCE_S
    before, used = -1.0, mount.cpu_s()
    while used > before:
        if time.monotonic() > deadline:
            raise SystemExit("the daemon does not come to rest")
        time.sleep(QUIET_S)
        before, used = used, mount.cpu_s()


def measure(mount: Mount, most: int = MOST) -> Rows:
    """All rows, on a mount that is empty."""
    rows: Rows = {operation: {} for operation in (*OPERATIONS, COLD)}
    directory = mount.path / "names"
    directory.mkdir()
    place = f"{directory}/name-"
    rng = random.Random(1)
    there, size = 0, LEAST
    while size <= most:
        for number in range(there, size):
            create(f"{place}{number}")
        there = size
        new = [f"{place}new-{number}" for number in range(SAMPLES)]
        rows["create"][size] = timed(create, new)
        print(
            f"{size:>8} names: the daemon has had {high_water_mib(mount.pid):.0f} MiB", flush=True
        )
        forget_names(mount)
        known = [f"{place}{number}" for number in rng.sample(range(size), SAMPLES)]
        rows["lookup"][size] = timed(os.lstat, known)
        began = time.perf_counter()
        listed = os.listdir(directory)
        rows["readdir"][size] = (time.perf_counter() - began) / len(listed) * 1e6
        if len(listed) != size + SAMPLES:
            raise SystemExit(f"{len(listed)} names are listed, there are {size + SAMPLES}")
        rows["unlink"][size] = timed(os.unlink, new)
        mount.remount()
        rows[COLD][size] = timed(os.lstat, rng.sample(known, SAMPLES))
        print(line(size, rows), flush=True)
        for name in os.listdir(directory) if 10 * size <= most else ():
            os.lstat(directory / name)  # all of the tree is in memory again
        size *= 10
    return rows


def line(size: int, rows: Rows) -> str:
    return f"{size:>8} names: " + ", ".join(
        f"{operation} {rows[operation][size]:.1f} us" for operation in (*OPERATIONS, COLD)
    )


def growth(row: dict[int, float]) -> float:
    """How many times the first the last is."""
    return row[max(row)] / row[min(row)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="The cost of one name among a thousand to a million."
    )
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument(
        "--directory", type=Path, help="where the image is made (the default for files)"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="growth-", dir=given.directory))
    mount = make_mount(directory, "4G", options=f"cache_mb={CACHE_MB}")
    mount.checked = False
    try:
        rows = measure(mount, given.most)
    finally:
        mount.tidy()
        shutil.rmtree(directory)
    found = {operation: growth(rows[operation]) for operation in OPERATIONS}
    for operation in OPERATIONS:
        print(f"{operation}: x{found[operation]:.2f} (at most {BOUND:.0f})")
    if given.json:
        given.json.write_text(json.dumps({"microseconds": rows, "growth": found}, indent=1) + "\n")
    if max(found.values()) > BOUND:
        sys.exit(1)


if __name__ == "__main__":
    main()
