"""A million of each: files, extents of one file; and a filesystem of 100 TiB. With bounds for memory and time.

    make scale [T="files extents sparse"]        some ten minutes; what is over a bound ends with exit status 1

What a daemon and a check have used is the most that they ever had resident (VmHWM, getrusage). The growth of
directories is in growth.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.mount.conftest import Mount, make_mount, python_module

MILLION = 1_000_000
DAEMON_MIB, FSCK_MIB = 200, 500
MOUNT_S = 2.0
KEEP_SIZE = 1
BLOCK = 4096


@dataclass
class Record:
    """Numbers with their bounds; what is above one is told."""

    numbers: dict[str, float] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)

    def add(self, name: str, number: float, unit: str, most: float | None = None) -> None:
        self.numbers[name] = round(number, 2)
        bound = "" if most is None else f" (at most {most:g})"
        print(f"{name}: {number:.4g} {unit}{bound}", flush=True)
        if most is not None and number > most:
            self.over.append(name)


def high_water_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def fsck_mib(image: Path) -> tuple[float, float]:
    """(MiB, seconds) of `fsck.nvmefs -n`, which must find nothing."""
    began = time.monotonic()
    process = subprocess.Popen(
        python_module("mkfs.fsck", "-n", image), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"fsck: exit status {process.returncode}\n{said}")
    return usage.ru_maxrss / 1024, time.monotonic() - began


@contextmanager
def mounted(directory: Path | None, size: str, options: str = "") -> Iterator[Mount]:
    """A filesystem of that size in a directory of its own, both gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="scale-", dir=directory))
    mount = make_mount(place, size, options)
    mount.checked = False
    try:
        yield mount
    finally:
        mount.tidy()
        shutil.rmtree(place)


def each_us(record: Record, name: str, count: int, work: Callable[[], object]) -> None:
    began = time.monotonic()
    work()
    record.add(f"{name} us each", (time.monotonic() - began) / count * 1e6, "us")


# --- files ------------------------------------------------------------------------------------------


def files(record: Record, directory: Path | None, count: int) -> None:
    """Create, walk, check, remove, with the default cache."""
    per_directory = 1000
    with mounted(directory, "8G") as mount:

        def create() -> None:
            for number in range(count):
                if number % per_directory == 0:
                    os.mkdir(mount.path / f"d{number // per_directory}")
                path = f"{mount.path}/d{number // per_directory}/f{number}"
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

        def walk() -> None:
            seen = 0
            for place, _, names in os.walk(mount.path):
                seen += sum(os.lstat(f"{place}/{name}").st_nlink for name in names)
            if seen != count:
                raise SystemExit(f"walked over {seen} files of {count}")

        each_us(record, "create", count, create)
        record.add("daemon after creating MiB", high_water_mib(mount.pid), "MiB", DAEMON_MIB)
        mount.unmount()
        mib, seconds = fsck_mib(mount.image)
        record.add("fsck of the files MiB", mib, "MiB", FSCK_MIB)
        record.add("fsck of the files s", seconds, "s")
        mount.mount()
        each_us(record, "walk and stat", count, walk)
        record.add("daemon after the walk MiB", high_water_mib(mount.pid), "MiB", DAEMON_MIB)
        each_us(record, "remove", count, lambda: subprocess.run(
            ["find", mount.path, "-mindepth", "1", "-delete"], check=True))  # fmt: skip
        record.add("daemon after removing MiB", high_water_mib(mount.pid), "MiB", DAEMON_MIB)
        mount.unmount()
        fsck_mib(mount.image)


# --- extents ----------------------------------------------------------------------------------------


def extents(record: Record, directory: Path | None, count: int) -> None:
    """A file whose every other block is there: no two make one extent."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mounted(directory, "8G") as mount:
        path = mount.path / "extents"
        with path.open("w+b", buffering=0) as file:
            file.truncate(count * 2 * BLOCK)

            def allocate() -> None:
                for number in range(count):
                    at = ctypes.c_long(number * 2 * BLOCK)
                    if libc.fallocate(file.fileno(), KEEP_SIZE, at, ctypes.c_long(BLOCK)):
                        raise OSError(ctypes.get_errno(), "fallocate")

            each_us(record, "extent", count, allocate)
            places = [number * 2 * BLOCK for number in range(0, count, max(count // 2000, 1))]

            def write() -> None:
                for at in places:
                    os.pwrite(file.fileno(), b"x" * BLOCK, at)
                os.fsync(file.fileno())

            def read() -> None:
                if any(os.pread(file.fileno(), BLOCK, at) != b"x" * BLOCK for at in places):
                    raise SystemExit("an extent has lost its data")

            each_us(record, "write into an extent", len(places), write)
        if path.stat().st_blocks != count * BLOCK // 512:
            raise SystemExit(f"{path.stat().st_blocks} sectors are allocated")
        record.add("daemon with the extents MiB", high_water_mib(mount.pid), "MiB", DAEMON_MIB)
        mount.unmount()
        mib, seconds = fsck_mib(mount.image)
        record.add("fsck of the extents MiB", mib, "MiB", FSCK_MIB)
        record.add("fsck of the extents s", seconds, "s")
        mount.mount()
        with path.open("rb", buffering=0) as file:
            each_us(record, "read of an extent", len(places), read)
        each_us(record, "extent truncated", count, lambda: os.truncate(mount.path / "extents", 0))
        record.add("daemon after truncating MiB", high_water_mib(mount.pid), "MiB", DAEMON_MIB)
        mount.unmount()
        fsck_mib(mount.image)


# --- a sparse image ---------------------------------------------------------------------------------


def sparse(record: Record, directory: Path | None, count: int) -> None:
    """100 TiB on a host's filesystem that has files so large (ext4 has not, tmpfs has)."""
    began = time.monotonic()
    with mounted(directory or Path("/dev/shm"), "100T") as mount:
        record.add("100 TiB made and mounted s", time.monotonic() - began, "s")
        for number in range(100):
            (mount.path / f"file-{number}").write_bytes(b"x" * (number * 5000))
        with (mount.path / "far").open("w+b") as far:
            far.seek(2**62)
            far.write(b"far")
        mount.unmount()
        mib, seconds = fsck_mib(mount.image)
        record.add("fsck of 100 TiB MiB", mib, "MiB", FSCK_MIB)
        record.add("fsck of 100 TiB s", seconds, "s")
        began = time.monotonic()
        mount.mount()
        record.add("mount of 100 TiB s", time.monotonic() - began, "s", MOUNT_S)
        record.add("daemon of 100 TiB MiB", high_water_mib(mount.pid), "MiB", DAEMON_MIB)
        for number in range(100):
            if len((mount.path / f"file-{number}").read_bytes()) != number * 5000:
                raise SystemExit(f"file-{number} has another size")


PARTS = {"files": files, "extents": extents, "sparse": sparse}


def main() -> None:
    """The command line of `make scale`."""
    parser = argparse.ArgumentParser(description="A million files, a million extents, 100 TiB.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=MILLION, help="instead of a million")
    parser.add_argument("--directory", type=Path, help="where the images are made")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    record = Record()
    for part in given.parts:
        PARTS[part](record, given.directory, given.count)
    if given.json:
        given.json.write_text(json.dumps(record.numbers, indent=1) + "\n")
    if record.over:
        sys.exit(f"over the bound: {', '.join(record.over)}")


if __name__ == "__main__":
    main()
