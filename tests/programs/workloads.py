"""Programs that each work in a directory of their own and check their own result.

All raise AssertionError or DemoError when something is not as it must be. Nothing here knows of nvmefs:
every workload also passes on the host's filesystem.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from io import FileIO
from pathlib import Path

from tests.demo.programs import call

COMMITS = 60
BUSY_BOUND_S = 30
FILES_A_COMMIT = 40
OPEN_FILES = 1000
ROWS_A_COMMIT = 20

C_PROGRAM = r"""
#include <stdio.h>
#include "answer.h"
int main(void) { printf("%d\n", answer()); return 0; }
"""
C_ANSWER = "int answer(void) { return 6 * 7; }\n"


def git_stream() -> Iterator[bytes]:
    """Commits for `git fast-import`: COMMITS of them, each with FILES_A_COMMIT new or changed files."""
    chance = random.Random(2)
    for number in range(COMMITS):
        yield b"commit refs/heads/main\n"
        yield b"committer T <t@localhost> %d +0000\ndata 8\ncommit\n\n" % (1_600_000_000 + number)
        for _ in range(FILES_A_COMMIT):
            name = b"d%d/f%d" % (chance.randrange(30), chance.randrange(200))
            text = b"".join(b"%d\n" % chance.randrange(10**6) for _ in range(200))
            yield b"M 644 inline %s\ndata %d\n%s\n" % (name, len(text), text)
    yield b"done\n"


def make_repository(directory: Path) -> Path:
    """A bare repository of some thousands of objects; gives its path."""
    stream = directory / "stream"
    stream.write_bytes(b"".join(git_stream()))
    origin = directory / "origin.git"
    call("git", "init", "-q", "--bare", "--initial-branch=main", origin)
    script = f'git -C "{origin}" fast-import --quiet --done < "{stream}"'
    call("sh", "-c", script)
    stream.unlink()
    return origin


def git(origin: Path, directory: Path) -> int:
    """Clone, unpack to loose objects, fsck, repack, gc, commit; gives the number of objects."""
    clone = directory / "clone"
    call("git", "clone", "-q", "--no-local", origin, clone)
    packs = clone / ".git/objects/pack"
    outside = directory / "outside"
    packs.rename(outside)
    packs.mkdir()
    for pack in outside.glob("*.pack"):
        call("sh", "-c", f'git -C "{clone}" unpack-objects -q < "{pack}"')
    objects = int(call("git", "-C", clone, "count-objects")[1].split()[0])
    call("git", "-C", clone, "fsck", "--strict", "--full", "--no-progress")
    call("git", "-C", clone, "repack", "-adq")
    (clone / "new").write_text("one more\n")
    call("git", "-C", clone, "add", "new")
    author = ("-c", "user.name=T", "-c", "user.email=t@localhost")
    call("git", "-C", clone, *author, "commit", "-qm", "one more")
    call("git", "-C", clone, "gc", "-q", "--prune=now")
    call("git", "-C", clone, "fsck", "--strict", "--full", "--no-progress")
    assert not call("git", "-C", clone, "status", "--porcelain")[1]
    return objects


def sqlite(path: Path, mode: str, commits: int) -> None:
    """Transactions in journal mode `mode`; a reader beside them must see whole ones only."""
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        with closing(sqlite3.connect(path, timeout=BUSY_BOUND_S)) as database:
            while not stop.is_set():
                seen.append(database.execute("SELECT count(*) FROM entry").fetchone()[0])

    with closing(sqlite3.connect(path, timeout=BUSY_BOUND_S, isolation_level=None)) as database:
        assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == mode
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for first in range(0, commits * ROWS_A_COMMIT, ROWS_A_COMMIT):
                insert(database, first)
        finally:
            stop.set()
            reader.join(BUSY_BOUND_S)
        assert not reader.is_alive()
        assert seen == sorted(seen)
        assert not any(count % ROWS_A_COMMIT for count in seen)
        database.execute("BEGIN")
        database.execute("DELETE FROM entry")
        database.execute("ROLLBACK")
        database.execute("DELETE FROM entry WHERE id % 3 = 0")
        database.execute("VACUUM")
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        left = database.execute("SELECT count(*) FROM entry").fetchone()[0]
        assert left == sum(1 for row in range(commits * ROWS_A_COMMIT) if row % 3)


def insert(database: sqlite3.Connection, first: int) -> None:
    """One transaction: ROWS_A_COMMIT rows from number `first` on; durable on return."""
    rows = range(first, first + ROWS_A_COMMIT)
    database.execute("BEGIN IMMEDIATE")
    database.executemany(
        "INSERT INTO entry VALUES (?, ?)", [(row, f"{row * 7919:0100d}") for row in rows]
    )
    database.execute("COMMIT")


def compile_and_run(directory: Path) -> None:
    """A program of two files: compiled, put into a library, linked, run from there."""
    (directory / "main.c").write_text(C_PROGRAM)
    (directory / "answer.c").write_text(C_ANSWER)
    (directory / "answer.h").write_text("int answer(void);\n")
    call("gcc", "-O2", "-c", "-fPIC", "answer.c", "main.c", cwd=directory)
    call("ar", "rcs", "libanswer.a", "answer.o", cwd=directory)
    call("gcc", "-o", "static", "main.o", "libanswer.a", cwd=directory)
    call("gcc", "-shared", "-o", "libanswer.so", "answer.o", cwd=directory)
    call("gcc", "-o", "shared", "main.o", "-L.", "-lanswer", "-Wl,-rpath,$ORIGIN", cwd=directory)
    for program in ("static", "shared"):
        assert call(directory / program)[1] == "42\n"


def mapped(path: Path, size_bytes: int) -> None:
    """Write through a shared mapping in random places, read back by read(), and the other way."""
    chance = random.Random(3)
    expected = bytearray(size_bytes)
    with open(path, "x+b", buffering=0) as file:
        file.truncate(size_bytes)
        with mmap.mmap(file.fileno(), size_bytes) as view:
            for _ in range(500):
                at = chance.randrange(size_bytes - 9000)
                piece = chance.randbytes(chance.randrange(1, 9000))
                view[at : at + len(piece)] = piece
                expected[at : at + len(piece)] = piece
            view.flush()
            assert path.read_bytes() == expected
            for _ in range(100):
                at = chance.randrange(size_bytes - 9000)
                piece = chance.randbytes(chance.randrange(1, 9000))
                assert os.pwrite(file.fileno(), piece, at) == len(piece)
                expected[at : at + len(piece)] = piece
            assert view[:] == expected
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert path.read_bytes() == expected


@contextmanager
def open_file_limit(wanted: int) -> Iterator[None]:
    """At least `wanted` descriptors for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def many_open_files(directory: Path) -> None:
    """1,000 files open at once, written in turns; every third is unlinked, renamed over, or left."""
    with open_file_limit(OPEN_FILES + 200), ExitStack() as stack:
        files = [
            stack.enter_context(FileIO(directory / f"f{number}", "x+"))
            for number in range(OPEN_FILES)
        ]
        for turn in range(3):
            for number, file in enumerate(files):
                file.write(b"%d %d\n" % (number, turn) * 100)
        unlinked = range(0, OPEN_FILES - 1, 3)
        for number in unlinked:
            (directory / f"f{number}").unlink()
            (directory / f"f{number + 1}").rename(directory / f"f{number}")
        for number, file in enumerate(files):
            file.seek(0)
            expected = b"".join(b"%d %d\n" % (number, turn) * 100 for turn in range(3))
            assert file.read() == expected
            assert os.fstat(file.fileno()).st_nlink == (number not in unlinked)
    assert len(os.listdir(directory)) == OPEN_FILES - len(unlinked)


def attributes(directory: Path) -> None:
    """User attributes on some hundred files: many of them, large ones, replaced and removed ones.

    All attributes of one file stay below what ext4, which holds the copy, has room for.
    """
    chance = random.Random(4)
    for number in range(300):
        path = directory / f"f{number}"
        path.write_bytes(b"x" * (number * 10))
        for index in range(number % 12):
            os.setxattr(path, f"user.name{index}", chance.randbytes(chance.randrange(200)))
        if number % 50 == 0:
            os.setxattr(path, "user.large", chance.randbytes(1200))
        if number % 12 > 4:
            os.removexattr(path, "user.name0")
            os.setxattr(path, "user.name1", b"replaced", os.XATTR_REPLACE)
    os.setxattr(directory, "user.of a directory", b"\0\xff")
