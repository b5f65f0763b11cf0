"""A program that says what it has made durable, and the check of that after a crash.

    python -m tests.programs.writer KIND DIRECTORY FACTS SEED

works in DIRECTORY for ever. After each fsync (or commit) has returned, it appends a line to the file
FACTS, which is on another filesystem. When DIRECTORY's filesystem is gone it exits with status GONE.
Before it changes what an earlier fact speaks of, it says so: between `leaving` and the next fact the
old and the new state are both right.

    problems(DIRECTORY, read_facts(FACTS)) == []       after the crash, on the filesystem mounted again
"""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.programs.workloads import ROWS_A_COMMIT, insert

GONE = 7
GONE_ERRORS = {
    errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT,
    errno.ECANCELED,  # of a request on its way to a thread's io_uring when the daemon is killed
}  # fmt: skip
LARGEST_BYTES = 300_000
NAMES_A_SYNC = 40
STREAM_UNIT = b"%015d\n"

Fact = dict[str, Any]
Tell = Callable[..., None]


def content(seed: int, size: int) -> bytes:
    """The bytes of a file, known from two numbers."""
    return random.Random(seed).randbytes(size)


def stream(size: int) -> bytes:
    """The first `size` bytes of an endless file in which each 16 bytes say where they are."""
    return b"".join(STREAM_UNIT % unit for unit in range(size // 16 + 1))[:size]


def sync(path: Path) -> None:
    """fsync of a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: Path, data: bytes, *, at: int = 0, create: bool = True) -> None:
    """Write `data` at `at` and fsync; durable on return."""
    fd = os.open(path, os.O_WRONLY | (os.O_CREAT if create else 0), 0o644)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], at + done)
        os.fsync(fd)
    finally:
        os.close(fd)


# --- the writers --------------------------------------------------------------------------


def write_files(top: Path, chance: random.Random, tell: Tell) -> None:
    """Files that are created, overwritten in place, cut and removed; each step is synced."""
    sizes: dict[str, int] = {}
    for number in range(10**9):
        seed = chance.randrange(1 << 32)
        what = chance.choice(("create", "create", "overwrite", "cut", "remove"))
        name = chance.choice(sorted(sizes)) if sizes else ""
        if what == "create" or not name:
            name, size = f"f{number}", chance.choice((0, 50, 900, 5000, LARGEST_BYTES))
            size = chance.randrange(size + 1)
            write(top / name, content(seed, size))
        elif what == "overwrite":
            tell(leaving=name)
            size = sizes[name]
            write(top / name, content(seed, size), create=False)
        elif what == "cut":
            tell(leaving=name)
            size = chance.randrange(sizes[name] + 1)
            with open(top / name, "r+b", buffering=0) as file:
                file.truncate(0)
                file.truncate(size)
            write(top / name, content(seed, size), create=False)
        else:
            tell(leaving=name)
            (top / name).unlink()
            sync(top)
            del sizes[name]
            tell(removed=name)
            continue
        sizes[name] = size
        tell(file=name, seed=seed, size=size)


def write_log(top: Path, chance: random.Random, tell: Tell) -> None:
    """Files that grow by odd lengths, fdatasync after each step."""
    whole = stream(4 << 20)
    for number in range(10**9):
        size = 0
        with open(top / f"log{number}", "xb", buffering=0) as file:
            while size < len(whole):
                size += file.write(whole[size : size + chance.randrange(1, 20_000)])
                os.fdatasync(file.fileno())
                tell(log=f"log{number}", size=size)


def write_replaced(top: Path, chance: random.Random, tell: Tell) -> None:
    """The classic way to replace a file: write another, sync it, rename it over, sync the directory."""
    for version in range(10**9):
        write(top / "new", content(version, 1000 + version % 7000))
        (top / "new").rename(top / "target")
        sync(top)
        tell(replaced="target", version=version)


def write_names(top: Path, chance: random.Random, tell: Tell) -> None:
    """Names in sequence, synced now and then: after a crash there is no gap among them."""
    (top / "names").mkdir()
    for number in range(10**9):
        if number % 7:
            os.close(os.open(top / "names" / f"n{number}", os.O_CREAT | os.O_EXCL, 0o600))
        else:
            (top / "names" / f"n{number}").mkdir()
        if number % NAMES_A_SYNC == 0:
            sync(top / "names")
            tell(names="names", count=number + 1)


def write_wal(top: Path, chance: random.Random, tell: Tell) -> None:
    write_database(top / "wal.sqlite", "wal", tell)


def write_rollback(top: Path, chance: random.Random, tell: Tell) -> None:
    write_database(top / "delete.sqlite", "delete", tell)


def write_database(path: Path, mode: str, tell: Tell) -> None:
    """Transactions of ROWS_A_COMMIT rows each.

    With a rollback journal it is the removal of that journal that commits, and SQLite leaves it to luck
    whether that is durable: with synchronous = FULL it does not sync the directory, with EXTRA it takes a
    directory that cannot be opened any more for success. So we do it ourselves.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
        for first in range(0, 10**9, ROWS_A_COMMIT):
            insert(database, first)
            if first == 0 or mode == "delete":
                sync(path.parent)
            tell(database=path.name, rows=first + ROWS_A_COMMIT)


WRITERS = {
    "files": write_files,
    "log": write_log,
    "replaced": write_replaced,
    "names": write_names,
    "wal": write_wal,
    "rollback": write_rollback,
}


def main(kind: str, directory: str, facts: str, seed: str) -> int:
    """Write until the filesystem is gone."""
    fd = os.open(facts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def tell(**fact: Any) -> None:
        os.write(fd, json.dumps(fact).encode() + b"\n")

    try:
        WRITERS[kind](Path(directory), random.Random(int(seed)), tell)
    except OSError as error:
        if error.errno not in GONE_ERRORS:
            raise
        return GONE
    except sqlite3.OperationalError as error:
        print(f"{kind}: {error}", file=sys.stderr)
        return GONE
    return 0


# --- the check ----------------------------------------------------------------------------


def read_facts(path: Path) -> list[Fact]:
    """The whole lines of a file of facts; the last may be half written just now."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def problems(top: Path, facts: Iterable[Fact]) -> list[str]:
    """What was durable and is not as it was, one line each."""
    last: dict[str, Fact] = {}
    for fact in facts:
        subject = next(iter(fact.values()))
        last[subject] = fact
    found: list[str] = []
    for name, fact in last.items():
        kind = next(iter(fact))
        if kind != "leaving":
            found += [f"{top / name}: {wrong} ({fact})" for wrong in CHECKS[kind](top / name, fact)]
    return found


def check_file(path: Path, fact: Fact) -> list[str]:
    if not path.exists():
        return ["missing"]
    if path.read_bytes() != content(fact["seed"], fact["size"]):
        return [f"other bytes, {path.stat().st_size} of them"]
    return []


def check_removed(path: Path, fact: Fact) -> list[str]:
    return ["still there"] if path.exists() else []


def check_log(path: Path, fact: Fact) -> list[str]:
    data = path.read_bytes()
    if len(data) < fact["size"]:
        return [f"only {len(data)} bytes"]
    size = fact["size"]
    return [] if data[:size] == stream(size) else ["other bytes"]


def check_replaced(path: Path, fact: Fact) -> list[str]:
    data = path.read_bytes()
    versions = range(fact["version"], fact["version"] + 3)
    if data in [content(version, 1000 + version % 7000) for version in versions]:
        return []
    return ["neither this version nor the next"]


def check_names(path: Path, fact: Fact) -> list[str]:
    names = set(os.listdir(path))
    if len(names) < fact["count"]:
        return [f"only {len(names)} names"]
    missing = {f"n{number}" for number in range(len(names))} - names
    return [f"a gap: {sorted(missing)[:5]}"] if missing else []


def check_database(path: Path, fact: Fact) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        rows = database.execute("SELECT count(*) FROM entry").fetchone()[0]
    wrong = [] if verdict == "ok" else [f"integrity_check: {verdict}"]
    if rows < fact["rows"] or rows % ROWS_A_COMMIT:
        wrong.append(f"{rows} rows")
    return wrong


CHECKS: dict[str, Callable[[Path, Fact], list[str]]] = {
    "file": check_file,
    "removed": check_removed,
    "log": check_log,
    "replaced": check_replaced,
    "names": check_names,
    "database": check_database,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
