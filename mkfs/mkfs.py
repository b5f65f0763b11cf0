"""mkfs.nvmefs: make a filesystem on an image or a controller.

Below: geometry (what goes where), probe (what is there), image (files), write.  Above: nothing.

parse → open → probe → calculate → show → self-test → write.
Exit codes: 0 made, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid as uuids
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from mkfs import cli, probe
from mkfs.cli import ToolError, parse_size
from mkfs.geometry import Identity, Plan, Wishes, calculate, make_identity
from mkfs.image import Image
from mkfs.selftest import self_test
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import Device, open_device
from nvmefs.layout import BLOCK_BYTES

TOOL = "mkfs.nvmefs"
LABEL_BYTES = 64


@dataclass(frozen=True)
class Options:
    """The command line."""

    spec: str
    size: int | None
    label: bytes
    uuid: bytes | None
    journal_size: int
    lba_size: int | None
    discard: bool
    seed: str | None
    root: RootDirectory
    dry_run: bool
    force: bool
    quiet: bool
    verbose: bool
    json: bool


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `mkfs.nvmefs`."""

    async def work() -> int:
        return await make(parse(argv))

    return cli.run(
        TOOL, work, failed=cli.EXIT_FAILED, usage=cli.EXIT_USAGE, cancelled=cli.EXIT_FAILED
    )


async def make(options: Options) -> int:
    """All of mkfs, in order. Raises ToolError, UsageError, DriverError, FsError, OSError."""
    identity = make_identity(options.uuid, options.seed)
    image = Image.at(options.spec, options.size)
    if image is not None and image.is_new and options.dry_run:
        plan = lay_out(options, identity, image.size_bytes // BLOCK_BYTES, None)
        show(options, plan, [])
        return cli.EXIT_OK
    if image is not None and image.grows and not options.dry_run:
        # A file that is refused must not have grown.
        async with opened(options, read_only=True) as device:
            refuse(options, await probe.signatures(device, str(image.path)))
    with image.sized() if image is not None and not options.dry_run else nullcontext():
        async with opened(options, read_only=options.dry_run) as device:
            await make_on(options, identity, image, device)
    return cli.EXIT_OK


async def make_on(
    options: Options, identity: Identity, image: Image | None, device: Device
) -> None:
    """The part of mkfs that needs the open device."""
    path = str(image.path) if image is not None else None
    fresh = image is not None and image.is_new
    found = [] if fresh else await probe.signatures(device, path)
    if not options.dry_run:
        refuse(options, found)
    blocks = image.size_bytes // BLOCK_BYTES if image is not None else device.block_count
    plan = lay_out(options, identity, blocks, device)
    show(options, plan, found)
    self_test()
    if options.dry_run:
        return
    await write_filesystem(
        device,
        plan,
        options.root,
        fresh=fresh,
        discard=options.discard,
        note=partial(note, options),
    )
    if options.verbose:
        note(options, f"{options.spec}: filesystem made")


@asynccontextmanager
async def opened(options: Options, *, read_only: bool) -> AsyncIterator[Device]:
    """The device, as the command line wants it. Raises DriverError."""
    async with open_device(options.spec, read_only=read_only, lba_bytes=options.lba_size) as device:
        yield device


def lay_out(options: Options, identity: Identity, blocks: int, device: Device | None) -> Plan:
    """The filesystem that the command line describes, on `blocks` blocks. Raises ToolError."""
    wishes = Wishes(
        label=options.label,
        journal_bytes=options.journal_size,
        lba_bytes=device.lba_bytes if device is not None else options.lba_size or 512,
        alignment_blocks=device.alignment_blocks if device is not None else 1,
        creator=f"nvmefs {cli.version()}".encode(),
    )
    return calculate(blocks, wishes, identity)


def refuse(options: Options, found: list[str]) -> None:
    """Raise ToolError if something is on the device, unless forced or told to go on."""
    if not found or options.force:
        return
    what = f"{options.spec} holds {'; '.join(found)}"
    if cli.ask(f"{TOOL}: {what}. Overwrite all of it?"):
        return
    raise ToolError(f"{what}: not overwritten; use --force (-f) if nothing of it is needed")


def show(options: Options, plan: Plan, found: list[str]) -> None:
    """The layout, on standard output."""
    if options.json:
        print(json.dumps({"device": options.spec, "found": found, **plan.as_json()}, indent=2))
    elif not options.quiet:
        title = (
            f"{options.spec}: a dry run, nothing is written" if options.dry_run else options.spec
        )
        print(title, *(f"  {line}" for line in plan.lines()), sep="\n", flush=True)
        if found and options.dry_run:
            print(f"  {'in the way':12} {'; '.join(found)} (--force would be needed)")


def note(options: Options, message: str) -> None:
    """A remark that is no error."""
    if not options.quiet:
        cli.complain(TOOL, message)


# --- the command line ---------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> Options:
    """The options. Raises UsageError; exits after --help and --version."""
    given = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    return Options(
        spec=given.device,
        size=given.size,
        label=given.label,
        uuid=given.uuid,
        journal_size=given.journal_size,
        lba_size=given.lba_size,
        discard=given.discard,
        seed=given.seed,
        root=RootDirectory(given.root_owner[0], given.root_owner[1], given.root_mode),
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
        epilog="Exit codes: 0 made, 1 failed or refused, 2 wrong usage.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("device", metavar="IMAGE_OR_ADDRESS", help="disk.img, file:disk.img or 0000:01:00.0")
    add(
        "--size", type=parse_size, metavar="SIZE", help="create an image of this size, or extend it"
    )
    add("-L", "--label", type=parse_label, default=b"", help="name of at most 64 bytes")
    add("-U", "--uuid", type=parse_uuid, metavar="UUID", help="instead of a random one")
    add("--journal-size", type=parse_size, default=0, metavar="SIZE", help="default: by size")
    add("--lba-size", type=int, choices=(512, 4096), help="of an image's controller (512)")
    add("--root-owner", type=parse_owner, metavar="UID:GID", default=(os.getuid(), os.getgid()),
        help="owner of the root directory (default: you)")  # fmt: skip
    add("--root-mode", type=parse_mode, metavar="MODE", default=0o755,
        help="its permissions, octal (0755)")  # fmt: skip
    add("--no-discard", dest="discard", action="store_false", help="do not discard old contents")
    add("--seed", metavar="TEXT", help="derive all random numbers from TEXT: with "
        "SOURCE_DATE_EPOCH set, the same bytes come out each time")  # fmt: skip
    add("-n", "--dry-run", action="store_true", help="show the layout and write nothing")
    add("--json", action="store_true", help="show the layout as JSON")
    add("-f", "--force", action="store_true", help="overwrite whatever is there")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="say when it is done")
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser


def parse_label(text: str) -> bytes:
    label = os.fsencode(text)
    if len(label) > LABEL_BYTES or b"\0" in label:
        raise argparse.ArgumentTypeError(
            f"a label of {len(label)} bytes: at most {LABEL_BYTES} are possible"
        )
    return label


def parse_uuid(text: str) -> bytes:
    try:
        return uuids.UUID(text).bytes
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from error


def parse_owner(text: str) -> tuple[int, int]:
    uid, colon, gid = text.partition(":")
    if not (colon and uid.isdecimal() and gid.isdecimal()) or max(int(uid), int(gid)) >= 2**32 - 1:
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


if __name__ == "__main__":
    sys.exit(main())
