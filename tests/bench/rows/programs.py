"""Programs that people use: git, SQLite, PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import Measure
from tests.bench.peers import BenchError
from tests.bench.rows.row import Row
from tests.bench.site import Site
from tests.demo.programs import Scale as Amounts
from tests.demo.programs import call, run_sqlite, source_files

POSTGRES = "postgres"
CLIENTS = 4


class Git(Row):
    """A clone of a repository of some thousand files, and git status in it."""

    name = "git"

    def missing(self) -> str:
        return "" if shutil.which("git") else "git is not installed (apt-get install git)"

    def prepare(self, directory: Path) -> None:
        self.source = directory / "repository"
        files = source_files(None)
        top = os.path.commonpath([str(path) for path in files])
        for path in files:
            target = self.source / path.relative_to(top)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        self.files = len(files)
        author = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
        call("git", "init", "-q", self.source)
        call("git", "-C", self.source, "add", "-f", ".")
        call("git", "-C", self.source, *author, "commit", "-q", "-m", "The source tree")
        call("git", "-C", self.source, "repack", "-adq")  # what is measured is not packing

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        clone = site.directory / "clone"
        took = call("git", "clone", "-q", "--no-local", self.source, clone)[0]
        yield Measure("git clone", "files/s"), self.files / took
        site.remount_cold()
        for what in ("cold", "warm"):
            took, told = call("git", "-C", clone, "status", "--porcelain")
            if told:
                raise BenchError(
                    f"{site.peer.name}: git status of a clone is not empty: {told[:80]}"
                )
            yield Measure(f"git status, {what}", "files/s"), self.files / took


class Sqlite(Row):
    """Transactions of 100 inserts, each durable, in both journal modes."""

    name = "sqlite"

    def missing(self) -> str:
        return "" if importlib.util.find_spec("_sqlite3") else "this Python has no sqlite3"

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        for line in run_sqlite(site.directory, Amounts(transactions=self.scale.transactions)):
            yield (
                Measure(f"{line.what}, 100 inserts", "commits/s", data=True),
                (line.count / line.seconds),
            )


class Pgbench(Row):
    """PostgreSQL's own benchmark, four clients, with its defaults for durability."""

    name = "pgbench"

    def missing(self) -> str:
        if pg_bin() is None or shutil.which("pgbench") is None:
            return "PostgreSQL is not installed (apt-get install postgresql postgresql-contrib)"
        return "" if shutil.which("runuser") else "runuser is not installed"

    def prepare(self, directory: Path) -> None:
        """A database cluster with pgbench's tables, which is then copied to each filesystem."""
        self.directory = directory
        shutil.chown(directory, POSTGRES, POSTGRES)
        self.cluster = directory / "cluster"
        self.as_postgres("initdb", "-A", "trust", "--no-sync", "-D", str(self.cluster))
        self.start(self.cluster)
        try:
            scale = str(self.scale.database_scale)
            self.client("-i", "-q", "-s", scale)
        finally:
            self.stop(self.cluster)

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        site.directory.chmod(0o755)
        cluster = site.directory / "cluster"
        call("cp", "-a", self.cluster, cluster)
        os.sync()
        self.start(cluster)
        try:
            wanted = max(2, round(self.scale.seconds))
            told = self.client("-n", "-c", str(CLIENTS), "-j", "2", "-T", str(wanted))
        finally:
            self.stop(cluster)
        yield Measure(f"pgbench, {CLIENTS} clients", "tps", data=True), transactions(told)

    def start(self, cluster: Path) -> None:
        options = f"-k {self.directory} -c listen_addresses="
        log = str(self.directory / "log")
        self.as_postgres("pg_ctl", "-D", str(cluster), "-o", options, "-l", log, "-w", "start")

    def stop(self, cluster: Path) -> None:
        self.as_postgres("pg_ctl", "-D", str(cluster), "-m", "fast", "-w", "stop")

    def client(self, *words: str) -> str:
        return self.as_postgres("pgbench", "-h", str(self.directory), *words, "postgres")

    def as_postgres(self, program: str, *words: str) -> str:
        directory = pg_bin()
        assert directory is not None
        return call(
            "runuser", "-u", POSTGRES, "--", str(directory / program), *words, cwd=Path("/")
        )[1]


def pg_bin() -> Path | None:
    """Debian's directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def transactions(output: str) -> float:
    """Transactions a second, as pgbench says."""
    match = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    if match is None:
        raise BenchError(f"pgbench: no tps in {output[-200:]!r}")
    return float(match[1])
