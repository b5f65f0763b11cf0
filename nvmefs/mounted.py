"""The verbs of `nvmefs` about a filesystem that is mounted: stat, trim.

Below: control.py, which asks the mount's daemon.  Above: cli.py, which hands over a first word that is a verb.

Exit status: 0 done, 1 refused or failed (one line on stderr says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from driver.tools.show import text
from nvmefs.control import Value, ask
from nvmefs.errors import FsError
from nvmefs.units import parse_size, show_size

EXIT_FAILED = 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="nvmefs")
    verbs = parser.add_subparsers(dest="verb", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("mountpoint", metavar="DIR", help="where it is mounted")
    shared.add_argument("--json", action="store_true", help="as JSON")
    words = "what a mount counts: space, journal, cache, front end, driver"
    verbs.add_parser("stat", parents=[shared], help=words, description=words)
    words = "tell the drive which blocks are free, as fstrim(8) does"
    trimming = verbs.add_parser("trim", parents=[shared], help=words, description=words)
    trimming.add_argument(
        "-o", "--offset", type=parse_size, metavar="SIZE", help="from there on (0)"
    )
    trimming.add_argument(
        "-l", "--length", type=parse_size, metavar="SIZE", help="so much of it (all)"
    )
    trimming.add_argument(
        "-m", "--minimum", type=parse_size, metavar="SIZE", help="runs of at least that (a block)"
    )
    trimming.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def main(words: Sequence[str]) -> int:
    """One verb; its exit status."""
    arguments = build_parser().parse_args(words)
    try:
        value = _trim(arguments) if arguments.verb == "trim" else ask(arguments.mountpoint, "stat")
    except FsError as error:
        print(f"nvmefs {arguments.verb}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"nvmefs {arguments.verb}: interrupted", file=sys.stderr)
        return EXIT_FAILED
    if arguments.json:
        print(json.dumps(value, indent=2))
    elif arguments.verb == "stat":
        print(text(value))
    elif not arguments.quiet:
        trimmed = value["trimmed_bytes"]
        print(f"{arguments.mountpoint}: {show_size(trimmed)} ({trimmed} bytes) trimmed")
    return 0


def _trim(arguments: argparse.Namespace) -> Value:
    chosen = {
        "start": arguments.offset,
        "length": arguments.length,
        "min_length": arguments.minimum,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return {
        "schema_version": 1,
        "mountpoint": arguments.mountpoint,
        **ask(arguments.mountpoint, "trim", bound_s=None, **given),
    }
