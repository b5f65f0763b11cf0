"""What the tools' command lines share: exit codes, units, one-line errors.

Below: argparse.  Above: mkfs.py and fsck.py, whose main() is

    return run("mkfs.nvmefs", lambda: work(parse(argv)), failed=EXIT_FAILED)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import NoReturn

import trio

from driver import DriverError
from nvmefs.errors import FsError
from nvmefs.units import parse_size as parse_size
from nvmefs.units import show_size as show_size

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

# fsck(8)
FSCK_CORRECTED = 1
FSCK_ERRORS_LEFT = 4
FSCK_OPERATIONAL = 8
FSCK_USAGE = 16
FSCK_CANCELLED = 32


class ToolError(Exception):
    """The tool cannot do what was asked; the message is one line: what, which value, what to do."""


class UsageError(Exception):
    """The command line asks for the impossible."""


class Parser(argparse.ArgumentParser):
    """argparse with the tool's own way to say that the command line is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def version() -> str:
    """The version of the installed package."""
    try:
        return metadata.version("nvmefs")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"


def complain(tool: str, message: object) -> None:
    """One line on standard error."""
    print(f"{tool}: {printable(str(message))}", file=sys.stderr)


def printable(text: str) -> str:
    """One line that no terminal obeys: control characters, from names on the disk, are escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def ask(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def run(
    tool: str,
    work: Callable[[], Awaitable[int]],
    *,
    failed: int,
    usage: int,
    cancelled: int,
) -> int:
    """Run `work` under trio; errors that a user can meet become one line and an exit code."""
    try:
        return trio.run(work)
    except BaseException as error:
        cause = innermost(error)
        if isinstance(cause, KeyboardInterrupt):
            complain(tool, "interrupted")
            return cancelled
        if isinstance(cause, UsageError):
            complain(tool, f"{cause} (see {tool} --help)")
            return usage
        if isinstance(cause, BrokenPipeError):
            return failed
        if isinstance(cause, OSError):
            where = f"{cause.filename}: " if cause.filename else ""
            complain(tool, f"{where}{cause.strerror or cause}")
            return failed
        if isinstance(cause, (ToolError, DriverError, FsError)):
            complain(tool, cause)
            return failed
        raise


def innermost(error: BaseException) -> BaseException:
    """The first exception inside of the groups that nurseries make (no built-in before 3.11)."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error
