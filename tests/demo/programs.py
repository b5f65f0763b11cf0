"""Ordinary programs run in a directory, each giving lines of account: what, how much, how long.

Each program checks its own result (a comparison, an fsck, an integrity check) and raises DemoError
if it is wrong, so that a fast answer is also a right one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
PROGRAM_BOUND_S = 300
HEADINGS = ("what", "size", "files", "time", "rate")


class DemoError(Exception):
    """A program failed, or its result is wrong; the message is for the user."""


@dataclass(frozen=True)
class Scale:
    """How much the programs do."""

    sequential_mib: int = 256
    synced_files: int = 200
    transactions: int = 200
    rows_per_transaction: int = 100
    tree_files: int | None = None
    """Upper bound of files in the source tree; None: all there are."""


@dataclass(frozen=True)
class Line:
    """One line of the account. The rate is `count` per second in `unit`, if a unit is given."""

    what: str
    seconds: float
    size_bytes: int = 0
    files: int = 0
    count: float = 0
    unit: str = ""

    def __str__(self) -> str:
        size = f"{self.size_bytes / MIB:,.1f} MiB" if self.size_bytes else ""
        files = f"{self.files:,}" if self.files else ""
        rate = f"{self.count / max(self.seconds, 1e-6):,.0f} {self.unit}" if self.unit else ""
        return columns(self.what, size, files, f"{self.seconds:,.3f} s", rate)


def columns(what: str, size: str, files: str, seconds: str, rate: str) -> str:
    return f"  {what:<44}{size:>12}{files:>8}{seconds:>11}   {rate}".rstrip()


Program = Callable[[Path, Scale], Iterator[Line]]


def call(*command: str | Path, cwd: Path | None = None) -> tuple[float, str]:
    """Run a command to its end; gives seconds and its output, raises DemoError if it fails."""
    words = [str(word) for word in command]
    environment = os.environ | {
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    started = time.monotonic()
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PROGRAM_BOUND_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{' '.join(words)}: not done after {PROGRAM_BOUND_S} s") from error
    except OSError as error:
        raise DemoError(f"{words[0]}: {error.strerror}") from error
    seconds = time.monotonic() - started
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise DemoError(f"{' '.join(words)}: exit status {done.returncode}\n{last}")
    return seconds, done.stdout


def source_files(limit: int | None) -> list[Path]:
    """The .py files of Python's standard library: a source tree that every machine has."""
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__"}
    found = []
    for directory, subdirectories, names in os.walk(library):
        subdirectories[:] = sorted(set(subdirectories) - left_out)
        paths = (Path(directory, name) for name in sorted(names) if name.endswith(".py"))
        found += [path for path in paths if path.is_file()]
    return found[:limit]


def run_source_tree(directory: Path, scale: Scale) -> Iterator[Line]:
    """Copy a tar file in, unpack it, copy the tree, compare the two."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = source_files(scale.tree_files)
    files = len(paths)
    size_bytes = sum(path.stat().st_size for path in paths)
    with tempfile.TemporaryDirectory() as outside:
        packed = Path(outside, "source.tar")
        with tarfile.open(packed, "w") as archive:
            for path in paths:
                archive.add(path, arcname=Path("tree", path.relative_to(library)))
        packed_bytes = packed.stat().st_size
        seconds, _ = call("cp", packed, directory)
    mib = packed_bytes / MIB
    yield Line("copy a tar file of sources in (cp)", seconds, packed_bytes, 1, mib, "MiB/s")

    seconds, _ = call("tar", "-xf", "source.tar", cwd=directory)
    yield Line("unpack it (tar x)", seconds, size_bytes, files, files, "files/s")
    seconds, _ = call("cp", "-a", "tree", "copy", cwd=directory)
    yield Line("copy the tree (cp -a)", seconds, size_bytes, files, files, "files/s")
    seconds, _ = call("diff", "-r", "tree", "copy", cwd=directory)
    yield Line(
        "compare the two (diff -r)", seconds, 2 * size_bytes, 2 * files, 2 * files, "files/s"
    )


def run_git(directory: Path, scale: Scale) -> Iterator[Line]:
    """Make a repository of the source tree, clone it, repack the clone, check it."""
    tree = directory / "tree"
    size_bytes = sum(path.stat().st_size for path in tree.rglob("*.py"))
    files = sum(1 for _ in tree.rglob("*.py"))
    seconds, _ = call("git", "init", "-q", tree)
    seconds += call("git", "-C", tree, "add", ".")[0]
    yield Line("git init, git add", seconds, size_bytes, files, files, "files/s")
    author = ("-c", "user.name=demo", "-c", "user.email=demo@localhost")
    seconds, _ = call("git", "-C", tree, *author, "commit", "-q", "-m", "The source tree")
    yield Line("git commit", seconds, size_bytes, files, files, "files/s")
    seconds, _ = call("git", "clone", "-q", "--no-local", tree, directory / "clone")
    yield Line("git clone", seconds, size_bytes, files, files, "files/s")
    seconds, _ = call("git", "-C", directory / "clone", "fsck", "--strict", "--no-progress")
    yield Line("git fsck", seconds)
    status = call("git", "-C", directory / "clone", "status", "--porcelain")[1]
    if status:
        raise DemoError(f"git status of the clone is not empty:\n{status}")


def run_sqlite(directory: Path, scale: Scale) -> Iterator[Line]:
    """Many small transactions, each on disk before the next, in both journal modes of SQLite."""
    try:
        import sqlite3
    except ImportError:
        yield Line("SQLite: left out, this Python lacks it", 0)
        return
    rows = scale.transactions * scale.rows_per_transaction
    for mode in ("wal", "delete"):
        path = directory / f"{mode}.sqlite"
        database = sqlite3.connect(path, isolation_level=None)
        try:
            database.execute(f"PRAGMA journal_mode = {mode}")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
            started = time.monotonic()
            for number in range(scale.transactions):
                first = number * scale.rows_per_transaction
                database.execute("BEGIN")
                database.executemany(
                    "INSERT INTO entry VALUES (?, ?)",
                    (
                        (row, f"{row * 7919 % rows:032d}")
                        for row in range(first, first + scale.rows_per_transaction)
                    ),
                )
                database.execute("COMMIT")
            seconds = time.monotonic() - started
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
            stored = database.execute("SELECT count(*) FROM entry").fetchone()[0]
        except sqlite3.Error as error:
            raise DemoError(f"{path}: {error}") from error
        finally:
            database.close()
        if verdict != "ok" or stored != rows:
            raise DemoError(f"{path}: {stored} rows of {rows}, integrity_check: {verdict}")
        name = "write-ahead log" if mode == "wal" else "rollback journal"
        size_bytes = path.stat().st_size
        yield Line(f"SQLite, {name}", seconds, size_bytes, 1, scale.transactions, "commits/s")


C_PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LENGTH = 4 << 20 };

static char back[LENGTH];

int main(int argc, char **argv)
{
    int fd = open(argv[argc - 1], O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ftruncate(fd, LENGTH) != 0)
        return 1;
    char *map = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return 2;
    for (int i = 0; i < LENGTH; i++)
        map[i] = (char)(i * 2654435761u >> 24);
    if (msync(map, LENGTH, MS_SYNC) != 0)
        return 3;
    if (pread(fd, back, LENGTH, 0) != LENGTH || memcmp(map, back, LENGTH) != 0)
        return 4;
    puts("same");
    return 0;
}
"""


def run_compiler(directory: Path, scale: Scale) -> Iterator[Line]:
    """Compile a C program and run it; it writes through a shared mapping and reads back."""
    (directory / "mapped.c").write_text(C_PROGRAM)
    seconds, _ = call("gcc", "-O2", "-o", "mapped", "mapped.c", cwd=directory)
    yield Line("compile a C program (gcc)", seconds)
    seconds, output = call("./mapped", "mapped.data", cwd=directory)
    if output != "same\n":
        raise DemoError(f"the compiled program says {output!r}")
    written = (directory / "mapped.data").stat().st_size
    yield Line("run it: mmap, write, msync, read", seconds, written, 1)


def run_synced_files(directory: Path, scale: Scale) -> Iterator[Line]:
    """Small files, each on disk before the next is begun, as a mail server does."""
    (directory / "mail").mkdir()
    text = b"x" * 4096
    started = time.monotonic()
    for number in range(scale.synced_files):
        with open(directory / "mail" / f"{number:05d}", "xb", buffering=0) as file:
            file.write(text)
            os.fsync(file.fileno())
    seconds = time.monotonic() - started
    files = scale.synced_files
    yield Line("create small files, fsync each", seconds, files * 4096, files, files, "files/s")


def run_sequential(directory: Path, scale: Scale) -> Iterator[Line]:
    """Write a large file and fsync it, read it back past the page cache, compare."""
    mib = scale.sequential_mib
    pattern = os.urandom(MIB - 8)
    path = directory / "large"
    started = time.monotonic()
    with open(path, "xb", buffering=0) as file:
        for number in range(mib):
            write_all(file.fileno(), number.to_bytes(8, "little") + pattern)
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    yield Line("write a large file, fsync", seconds, mib * MIB, 1, mib, "MiB/s")

    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.monotonic()
        for number in range(mib):
            block = read_all(file.fileno(), MIB)
            if block != number.to_bytes(8, "little") + pattern:
                raise DemoError(f"{path}: other bytes read than written at {number} MiB")
        seconds = time.monotonic() - started
    yield Line("read it back, not from the page cache", seconds, mib * MIB, 1, mib, "MiB/s")


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_all(fd: int, length: int) -> bytes:
    """`length` bytes from `fd`, fewer only at the end of the file."""
    data = os.read(fd, length)
    while len(data) < length and (more := os.read(fd, length - len(data))):
        data += more
    return data


def run_removal(directory: Path, scale: Scale) -> Iterator[Line]:
    """Remove one of the two copies of the tree."""
    files = sum(1 for path in (directory / "copy").rglob("*") if path.is_file())
    seconds, _ = call("rm", "-r", "copy", cwd=directory)
    if (directory / "copy").exists():
        raise DemoError("rm -r left the copy of the tree")
    yield Line("remove the copy of the tree (rm -r)", seconds, 0, files, files, "files/s")


PROGRAMS: tuple[Program, ...] = (
    run_source_tree,
    run_git,
    run_sqlite,
    run_compiler,
    run_synced_files,
    run_sequential,
    run_removal,
)


def run_programs(directory: Path, scale: Scale, tell: Callable[[str], None]) -> None:
    """Run all programs in `directory`, which they fill; each line of account goes to `tell`."""
    for command in ("cp", "diff", "gcc", "git", "tar"):
        if shutil.which(command) is None:
            raise DemoError(f"{command}: not installed")
    for program in PROGRAMS:
        try:
            for line in program(directory, scale):
                tell(str(line))
        except OSError as error:
            raise DemoError(f"{program.__name__}: {error}") from error
