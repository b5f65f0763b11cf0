"""fsck.nvmefs: check a filesystem that is not mounted.

Below: check/ (the passes), cli.  Above: nothing.

open → load (superblock, journal in memory, state) → scan (tree) → verify (links, counters) →
bitmaps → report.
Exit codes of fsck(8): 0 clean, 4 errors left, 8 cannot check, 16 wrong usage, 32 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driver.address import parse_address
from mkfs import cli
from mkfs.check.bitmaps import check_bitmaps
from mkfs.check.findings import Findings
from mkfs.check.items import ItemCheck
from mkfs.check.load import Source, Unusable, load
from mkfs.check.scan import Walk
from mkfs.check.verify import PASSES, Verification
from mkfs.cli import ToolError, UsageError, show_size
from nvmefs.device import Device, open_device
from nvmefs.layout import BLOCK_BYTES

TOOL = "fsck.nvmefs"


@dataclass(frozen=True)
class Options:
    """The command line. `superblock_at` is a block number, or None for the usual places."""

    spec: str
    superblock_at: int | None
    force: bool
    verbose: bool
    quiet: bool
    json: bool


@dataclass
class Report:
    """What a check came to."""

    findings: Findings
    source: Source
    inodes: int = 0
    names: int = 0
    nodes: int = 0
    seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `fsck.nvmefs`."""

    async def work() -> int:
        return await fsck(parse(argv))

    return cli.run(
        TOOL,
        work,
        failed=cli.FSCK_OPERATIONAL,
        usage=cli.FSCK_USAGE,
        cancelled=cli.FSCK_CANCELLED,
    )


async def fsck(options: Options) -> int:
    """All of fsck -n. Raises ToolError, DriverError, FsError, OSError."""
    address = parse_address(options.spec)
    if address.kind == "file":
        # A missing image must be told as such, before a controller is built around it.
        with open(address.endpoint, "rb"):  # noqa: ASYNC230
            pass
    async with open_device(options.spec, read_only=True) as device:
        try:
            report = await check(device, options.superblock_at)
        except Unusable as error:
            raise ToolError(f"{options.spec}: {error}") from error
    show(options, report)
    return cli.EXIT_OK if report.findings.clean else cli.FSCK_ERRORS_LEFT


async def check(device: Device, superblock_at: int | None = None) -> Report:
    """Every pass over the filesystem on `device`; writes nothing. Raises Unusable, DeviceFailed."""
    began = time.monotonic()
    findings = Findings()
    source = await load(device, findings, superblock_at)
    report = Report(findings, source)
    if source.state is None:
        findings.remark("without a state block the tree cannot be found: nothing else was checked")
        return report
    root = source.state.roots[0]
    items = ItemCheck(source.superblock, source.space, findings)
    walk = Walk(source, root, items)
    await walk.run()
    items.finish()
    verification = Verification(source, root, items.inventory, walk.double + items.double)
    if source.whole:
        for verify in PASSES:
            await verify(verification)
        await check_bitmaps(source)
    else:
        await PASSES[0](verification)
        findings.remark(
            "a part of the tree could not be read: links, counters and bitmaps were not compared"
        )
    report.inodes = len(items.inventory.inodes)
    report.names = len(items.inventory.names)
    report.nodes = walk.nodes
    report.seconds = time.monotonic() - began
    return report


# --- showing ----------------------------------------------------------------------------------


def show(options: Options, report: Report) -> None:
    """Findings and a summary, on standard output."""
    if options.json:
        print(json.dumps(as_json(options, report), indent=2))
        return
    findings = report.findings
    if not options.quiet:
        for remark in findings.remarks:
            print(f"{options.spec}: {cli.printable(remark)}")
    for line in findings.lines():
        print(f"{options.spec}: {cli.printable(line)}")
    if options.verbose:
        print(
            f"{options.spec}: {report.nodes} tree nodes, {report.seconds:.2f} s, "
            f"{show_size(report.source.space.claimed_blocks * BLOCK_BYTES)} in use"
        )
    total = findings.counts.total()
    if total:
        print(f"{options.spec}: {total} error{'s' if total > 1 else ''} found, nothing was changed")
    elif not options.quiet:
        print(f"{options.spec}: clean, {report.inodes} inodes, {report.names} names")


def as_json(options: Options, report: Report) -> dict[str, Any]:
    """The report for programs."""
    superblock = report.source.superblock
    return {
        "schema_version": 1,
        "device": options.spec,
        "uuid": str(uuids.UUID(bytes=superblock.uuid)),
        "label": superblock.label.decode(errors="backslashreplace"),
        "complete": report.source.state is not None and report.source.whole,
        "inodes": report.inodes,
        "names": report.names,
        "nodes": report.nodes,
        "claimed_blocks": report.source.space.claimed_blocks,
        "seconds": round(report.seconds, 3),
        **report.findings.as_json(),
    }


# --- the command line -------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> Options:
    """The options. Raises UsageError; exits after --help and --version."""
    given = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    if given.repair:
        raise UsageError(
            f"repair ({given.repair}) is not available in this version: use -n, which only checks"
        )
    if not given.dry_run:
        raise UsageError("this version only checks: say -n")
    return Options(
        spec=given.device,
        superblock_at=given.superblock_at,
        force=given.force,
        verbose=given.verbose,
        quiet=given.quiet,
        json=given.json,
    )


def make_parser() -> argparse.ArgumentParser:
    """The options of fsck.nvmefs, as the manual lists them."""
    parser = cli.Parser(
        prog=TOOL,
        description="Check an nvmefs filesystem that is not mounted.",
        epilog="Exit codes: 0 clean, 4 errors left, 8 cannot check, 16 wrong usage, 32 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("device", metavar="IMAGE_OR_ADDRESS", help="disk.img, file:disk.img or 0000:01:00.0")
    add("-n", "--dry-run", action="store_true", help="check and change nothing")
    add("-b", dest="superblock_at", type=parse_block, metavar="BLOCK",
        help="believe the superblock copy in this 4 KiB block")  # fmt: skip
    add("-f", "--force", action="store_true", help="check even if it seems clean (always done)")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="print figures as well")
    add("--json", action="store_true", help="report as JSON")
    for flag in ("-a", "-p", "-y"):
        add(flag, dest="repair", action="store_const", const=flag, help=argparse.SUPPRESS)
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser


def parse_block(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a block number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
