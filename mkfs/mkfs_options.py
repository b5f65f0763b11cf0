"""The command line of mkfs.nvmefs.

Below: cli, settings (words to values).  Above: mkfs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkfs import cli, settings
from mkfs.cli import UsageError, parse_size
from mkfs.settings import FeatureChanges, Reserve
from nvmefs.layout import BLOCK_BYTES, GROUP_ALIGNMENT, ErrorPolicy

TOOL = "mkfs.nvmefs"


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    spec: str
    size: int | None
    label: bytes
    uuid: bytes | None
    journal_size: int
    reserve: Reserve
    errors: ErrorPolicy
    features: FeatureChanges
    lba_size: int | None
    alignment: int | None
    discard: bool
    undo_file: Path | None
    seed: str | None
    source: str | None
    root_owner: tuple[int, int] | None
    root_mode: int | None
    dry_run: bool
    force: bool
    quiet: bool
    verbose: bool
    json: bool


def parse(argv: Sequence[str] | None) -> Options:
    """The options. Raises UsageError; exits after --help, --version and -O list."""
    given = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    if given.undo_file is not None and given.dry_run:
        raise UsageError("-n changes nothing: no undo file is written")
    return Options(
        spec=given.device,
        size=given.size,
        label=given.label,
        uuid=given.uuid,
        journal_size=given.journal_size,
        reserve=given.reserve,
        errors=given.errors,
        features=given.features,
        lba_size=given.lba_size,
        alignment=given.alignment,
        discard=given.discard and given.undo_file is None,  # what is discarded cannot be put back
        undo_file=given.undo_file,
        seed=given.seed,
        source=given.source,
        root_owner=given.root_owner,
        root_mode=given.root_mode,
        dry_run=given.dry_run,
        force=given.force,
        quiet=given.quiet,
        verbose=given.verbose,
        json=given.json,
    )


def make_parser() -> argparse.ArgumentParser:
    """The options of mkfs.nvmefs, as the manual lists them."""
    parser = cli.Parser(
        prog=TOOL,
        description="Make an nvmefs filesystem on an NVMe controller or in an image file.",
        epilog="SIZE: bytes, or 512M, 8G, 1.5TiB. Exit codes: 0 made, 1 failed or refused, 2 wrong usage.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("device", metavar="IMAGE_OR_ADDRESS", help="disk.img, file:disk.img or 0000:01:00.0")
    add_identity(parser.add_argument_group("what it is called"))
    add_layout(parser.add_argument_group("how it is laid out"))
    add_contents(parser.add_argument_group("what is in it"))
    add_running(parser.add_argument_group("how it is made"))
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser


def add_identity(group: Any) -> None:
    add = group.add_argument
    add("-L", "--label", type=settings.parse_label, default=b"", help="name of at most 64 bytes")
    add("-U", "--uuid", type=settings.parse_uuid, metavar="UUID", help="instead of a random one")
    add("--seed", metavar="TEXT", help="derive all random numbers from TEXT: with "
        "SOURCE_DATE_EPOCH set, the same bytes come out each time")  # fmt: skip


def add_layout(group: Any) -> None:
    add = group.add_argument
    add("--size", type=parse_size, help="create an image of this size, or extend it")
    add("--journal-size", type=parse_size, default=0, metavar="SIZE",
        help="4M to 1G (default: by size; at most 125M without -O long_journal)")  # fmt: skip
    add("--lba-size", type=int, choices=(512, 4096), help="of an image's controller (512)")
    add(
        "--alignment",
        type=parse_alignment,
        metavar="SIZE",
        help="where large files begin: 4K to 2M, a power of two (default: as the drive says)",
    )
    add("-m", "--reserve", type=settings.parse_reserve, default=settings.NO_RESERVE,
        metavar="PERCENT_OR_SIZE", help="space for root alone (0)")  # fmt: skip
    add("-e", "--errors", type=settings.parse_errors, default=ErrorPolicy.CONTINUE,
        metavar="POLICY", help="what mounts do on corruption: continue (default) or remount-ro")  # fmt: skip
    add("-O", "--features", action=Features, default=settings.NO_CHANGES, metavar="NAME,^NAME",
        help="switch features on and off; 'list' shows them")  # fmt: skip


def add_contents(group: Any) -> None:
    add = group.add_argument
    add("-d", "--directory", dest="source", metavar="SOURCE", help="fill it with a copy of a directory, "
        "or of a tar archive (plain, gz, bz2, xz, zst; '-': standard input)")  # fmt: skip
    add("--root-owner", type=parse_owner, metavar="UID:GID",
        help="owner of the root directory (default: as in SOURCE, or you)")  # fmt: skip
    add("--root-mode", type=parse_mode, metavar="MODE",
        help="its permissions, octal (as in SOURCE, or 0755)")  # fmt: skip


def add_running(group: Any) -> None:
    add = group.add_argument
    add("-n", "--dry-run", action="store_true", help="show the layout and write nothing")
    add("--json", action="store_true", help="show the layout as JSON")
    add("-f", "--force", action="store_true", help="overwrite whatever is there")
    add("--no-discard", "-K", dest="discard", action="store_false",
        help="do not discard old contents")  # fmt: skip
    add("--undo-file", type=Path, metavar="FILE", help="keep there what is overwritten, for "
        "fsck.nvmefs --undo; nothing is discarded")  # fmt: skip
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="say when it is done")


class Features(argparse.Action):
    """-O NAME,^NAME, which may be repeated; -O list answers and ends, as --help does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values == "list":
            print(*settings.feature_table(), sep="\n")
            parser.exit()
        before: FeatureChanges = getattr(namespace, self.dest)
        try:
            wanted = settings.parse_features(values)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        on, off = before.on - wanted.off | wanted.on, before.off - wanted.on | wanted.off
        setattr(namespace, self.dest, FeatureChanges(on, off))


def parse_owner(text: str) -> tuple[int, int]:
    uid, colon, gid = text.partition(":")
    numbers = uid + gid
    if not (colon and uid and gid and numbers.isascii() and numbers.isdecimal()) or (
        max(int(uid), int(gid)) >= 2**32 - 1
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not UID:GID in numbers")
    return int(uid), int(gid)


def parse_mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode from 0000 to 7777")
    return mode


def parse_alignment(text: str) -> int:
    """A power of two that groups can meet, in bytes, given as 64K. Raises argparse.ArgumentTypeError."""
    wanted = parse_size(text)
    if wanted & (wanted - 1) or not BLOCK_BYTES <= wanted <= GROUP_ALIGNMENT * BLOCK_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no power of two from 4K to 2M")
    return wanted
