"""nvmefs dump: show what is on the disk, for who learns from it and for who looks for a fault.

Below: subjects.py (what is shown).  Above: nvmefs.cli.

Nothing is written. What is damaged is shown as it is, with a line that says what is wrong with it.
Exit codes: 0 shown, 1 there is nothing that could be shown, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from mkfs import cli, opening
from mkfs.check.findings import Findings
from mkfs.check.load import Unusable, load
from mkfs.cli import ToolError, UsageError
from mkfs.describe import Values
from mkfs.subjects import SUBJECTS, Output, View, show_superblocks
from nvmefs.device import Device
from nvmefs.errors import Corrupted

TOOL = "nvmefs dump"
SCHEMA_VERSION = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; its exit status."""

    async def work() -> int:
        return await dump(parse(argv))

    return cli.run(
        TOOL, work, failed=cli.EXIT_FAILED, usage=cli.EXIT_USAGE, cancelled=cli.EXIT_FAILED
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises UsageError; exits after --help and --version."""
    parser = cli.Parser(
        prog=TOOL,
        description="Show what is on the disk. Nothing is written.",
        epilog="Subjects: super (all superblocks), state, group N, inode N, path PATH, tree [INODES] "
        "(17, 17-20, 17-), block N, journal, free.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("device", metavar="IMAGE_OR_ADDRESS", help="disk.img, file:disk.img or 0000:01:00.0")
    add("subject", nargs="?", choices=("super", *SUBJECTS), default="super", metavar="SUBJECT",
        help="what to show (super)")  # fmt: skip
    add("which", nargs="?", metavar="WHICH", help="which one of them")
    add("-b", dest="superblock_at", type=int, metavar="BLOCK",
        help="believe the superblock copy in this 4 KiB block")  # fmt: skip
    add(
        "--raw", action="store_true", help="blocks as they stand on the device, not as after replay"
    )
    add("--json", action="store_true", help="as JSON")
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    given = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    wanted = SUBJECTS[given.subject][1] if given.subject in SUBJECTS else None
    if wanted is not None and given.which is None:
        raise UsageError(f"{given.subject} needs {wanted}")
    if wanted is None and given.which is not None and given.subject != "tree":
        raise UsageError(f"{given.subject} takes no {given.which!r}")
    return given


async def dump(given: argparse.Namespace) -> int:
    """All of it. Raises ToolError, UsageError, DriverError, FsError, OSError."""
    output = JsonOutput(given.device, given.subject) if given.json else TextOutput()
    async with opening.device(given.device, read_only=True) as device:
        if given.subject == "super":
            valid = await show_superblocks(device, output)
            output.end()
            return cli.EXIT_OK if valid else cli.EXIT_FAILED
        await show_subject(device, given, output)
    output.end()
    return cli.EXIT_OK


async def show_subject(device: Device, given: argparse.Namespace, output: Output) -> None:
    """What needs a superblock to be found. Raises ToolError."""
    try:
        source = await load(device, Findings(), given.superblock_at)
        await SUBJECTS[given.subject][0](View(source, output, given.raw), given.which)
    except (Unusable, Corrupted) as error:
        raise ToolError(f"{given.device}: {error}") from error


class TextOutput:
    """For people: the head one fact a line, then one row a line."""

    def head(self, values: Values) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                value = _line(value)
            if name == "faults":
                for each in value:
                    print(f"{'FAULT':16} {cli.printable(each)}")
            else:
                print(f"{'FAULT' if name == 'fault' else name:16} {_word(value)}")

    def row(self, kind: str, values: Values) -> None:
        if kind == "bytes":
            print(values["hex"])
            return
        entries = values.get("entries")
        rest = {
            name: value
            for name, value in values.items()
            if not isinstance(entries, list) or name != "entries"
        }
        print(f"{'FAULT' if kind == 'fault' else kind:10} {_line(rest)}")
        for entry in entries if isinstance(entries, list) else ():
            print(f"{'':10}   {_line(entry)}")

    def end(self) -> None:
        """There is nothing left to close."""


def _line(values: Values) -> str:
    shown = []
    for name, value in values.items():
        if name in ("what", "why", "hex"):
            shown.append(_word(value))
        elif name == "fault":
            shown.append(f"FAULT {_word(value)}")
        else:
            shown.append(f"{name} {_word(value)}")
    return "  ".join(shown)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return cli.printable(", ".join(map(str, value))) or "none"
    return cli.printable(str(value)) or "none"


class JsonOutput:
    """One object: the head's values, and the rows as a list that is written as they come."""

    def __init__(self, device: str, subject: str) -> None:
        self.first: Values = {
            "schema_version": SCHEMA_VERSION,
            "device": device,
            "subject": subject,
        }
        self.rows = 0

    def head(self, values: Values) -> None:
        self.first |= values

    def row(self, kind: str, values: Values) -> None:
        self._open()
        print(f"{',' if self.rows else ''}\n  {json.dumps({'kind': kind, **values})}", end="")
        self.rows += 1

    def end(self) -> None:
        """Close the list and the object."""
        self._open()
        print("\n]}")

    def _open(self) -> None:
        if self.first:
            print(f'{json.dumps(self.first)[:-1]}, "rows": [', end="")
            self.first = {}


if __name__ == "__main__":
    sys.exit(main())
