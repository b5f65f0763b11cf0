"""What is measured. A row is added by a subclass of row.Row and its name in ROWS."""

from __future__ import annotations

from tests.bench.rows.costs import Idle, Names
from tests.bench.rows.data import Commit, Cores, Random, Sequential
from tests.bench.rows.files import Files, Tree
from tests.bench.rows.programs import Git, Pgbench, Sqlite
from tests.bench.rows.row import QUICK, Row, Scale

ROWS: tuple[type[Row], ...] = (
    Random, Cores, Sequential, Commit, Files, Tree, Git, Sqlite, Pgbench, Names, Idle,
)  # fmt: skip

__all__ = ["QUICK", "ROWS", "Row", "Scale"]
