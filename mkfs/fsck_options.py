"""The command line of fsck.nvmefs.

Below: cli.  Above: fsck.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mkfs import cli
from mkfs.cli import UsageError
from mkfs.repair.policy import terminal

TOOL = "fsck.nvmefs"


class Mode(Enum):
    """What is done about what is found."""

    CHECK = "-n"
    SAFE = "-p"
    YES = "-y"
    ASK = ""
    UNDO = "--undo"


@dataclass(frozen=True)
class Options:
    """The command line. `superblock_at` is a block number, or None for the usual places; `given` is the
    option that chose the mode.
    """

    spec: str
    mode: Mode
    given: str
    superblock_at: int | None
    force: bool
    verbose: bool
    quiet: bool
    json: bool
    timing: bool
    progress_fd: int | None
    undo_file: Path | None


def parse(argv: Sequence[str] | None) -> Options:
    """The options. Raises UsageError; exits after --help and --version."""
    given = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    mode = chosen_mode(given)
    if mode is Mode.ASK and (given.json or not terminal()):
        raise UsageError("there is no terminal to ask on: say -n, -p or -y")
    if mode is Mode.UNDO and given.undo_file is None:
        raise UsageError("--undo needs the file that --undo-file has written")
    if mode is Mode.CHECK and given.undo_file is not None:
        raise UsageError("-n changes nothing: no undo file is written")
    return Options(
        spec=given.device,
        mode=mode,
        given=given.answers[0] if given.answers else "",
        superblock_at=given.superblock_at,
        force=given.force,
        verbose=given.verbose,
        quiet=given.quiet,
        json=given.json,
        timing=given.timing,
        progress_fd=given.progress_fd,
        undo_file=given.undo_file,
    )


def chosen_mode(given: argparse.Namespace) -> Mode:
    """The one mode that the options name. Raises UsageError if it is more than one."""
    modes = {Mode.SAFE if flag == "-a" else Mode(flag) for flag in given.answers or ()}
    if given.undo:
        modes.add(Mode.UNDO)
    if len(modes) > 1:
        raise UsageError("only one of -a, -p, -n, -y and --undo can be given")
    return modes.pop() if modes else Mode.ASK


def make_parser() -> argparse.ArgumentParser:
    """The options of fsck.nvmefs, as the manual lists them."""
    parser = cli.Parser(
        prog=TOOL,
        description="Check and repair an nvmefs filesystem that is not mounted.",
        epilog="Exit codes: 0 clean, 1 repaired, 4 errors left, 8 cannot check, 16 wrong usage, "
        "32 interrupted. Without -n, -p and -y each repair is asked for.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("device", metavar="IMAGE_OR_ADDRESS", help="disk.img, file:disk.img or 0000:01:00.0")
    add("-n", "--dry-run", dest="answers", action="append_const", const="-n",
        help="check and change nothing")  # fmt: skip
    for flag in ("-a", "-p"):
        add(flag, dest="answers", action="append_const", const=flag,
            help="repair what is safe to repair, without a question")  # fmt: skip
    add("-y", dest="answers", action="append_const", const="-y", help="repair everything")
    add("-f", "--force", action="store_true", help="with -a, -p: check even if it says it is clean")
    add("-b", dest="superblock_at", type=parse_number, metavar="BLOCK",
        help="believe the superblock copy in this 4 KiB block")  # fmt: skip
    add("-C", dest="progress_fd", type=parse_number, metavar="FD",
        help="show progress: on file descriptor FD, or, if 0, as a bar")  # fmt: skip
    add("-t", dest="timing", action="store_true", help="print time and memory used")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="print figures as well")
    add("--undo-file", type=Path, metavar="FILE", help="keep there what stood in changed blocks")
    add(
        "--undo", action="store_true", help="put back what the undo file holds, and do nothing else"
    )
    add("--json", action="store_true", help="report as JSON")
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser


def parse_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)
