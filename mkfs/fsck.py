"""fsck.nvmefs: check a filesystem that is not mounted, and repair it.

Below: check/ (what is looked at), repair/ (what is done about it), fsck_options.py, cli.  Above: nothing.

open → check: superblock, journal, state → tree → links, counters → bitmaps
     → repair the most basic of it → check → ... → report
Exit codes of fsck(8): 0 clean, 1 repaired, 4 errors left, 8 cannot check, 16 wrong usage, 32 interrupted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import uuid as uuids
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from driver.address import parse_address
from mkfs import cli
from mkfs.check.findings import Finding, Findings
from mkfs.check.load import Unusable, load
from mkfs.check.run import Progress, Report, check, silent
from mkfs.cli import ToolError, show_size
from mkfs.fsck_options import TOOL, Mode, Options, parse
from mkfs.repair import policy
from mkfs.repair.engine import Outcome, repair
from mkfs.repair.progress import Shown
from mkfs.undo import Recorded, UndoFile, restore
from nvmefs.device import Device, open_device
from nvmefs.layout import BLOCK_BYTES, StateFlag


@dataclass
class Result:
    """What is told at the end. `report` is the last check; `findings` those of all checks, `remarks` those
    of the first: what is said of the filesystem as it was found.
    """

    report: Report
    findings: list[Finding]
    remarks: list[str]
    repaired: int = 0
    rounds: int = 0
    skipped: bool = False
    failures: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.report.findings.counts.total()

    @property
    def code(self) -> int:
        corrected = cli.FSCK_CORRECTED if self.repaired else cli.EXIT_OK
        return corrected | (cli.FSCK_ERRORS_LEFT if self.left else cli.EXIT_OK)


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
    """All of fsck. Raises ToolError, DriverError, FsError, OSError."""
    address = parse_address(options.spec)
    if address.kind == "file":
        # A missing image must be told as such, before a controller is built around it.
        with open(address.endpoint, "rb"):  # noqa: ASYNC230
            pass
    began = time.monotonic()
    progress = Shown(options.progress_fd, options.spec) if options.progress_fd is not None else None
    async with open_device(options.spec, read_only=options.mode is Mode.CHECK) as device:
        if options.mode is Mode.UNDO:
            assert options.undo_file is not None
            blocks = await restore(options.undo_file, device)
            print(f"{options.spec}: {blocks} blocks put back from {options.undo_file}")
            return cli.EXIT_OK
        try:
            result = await work_on(device, options, progress or silent)
        except Unusable as error:
            raise ToolError(f"{options.spec}: {error}") from error
        finally:
            if progress is not None:
                progress.clear()
    show(options, result, time.monotonic() - began)
    return result.code


async def work_on(device: Device, options: Options, progress: Progress) -> Result:
    """Check, or repair, as the options say. Raises Unusable, ToolError, FsError, OSError."""
    if options.mode is Mode.CHECK:
        report = await check(device, options.superblock_at, progress=progress)
        return Result(report, report.findings.kept, report.findings.remarks)
    if options.mode is Mode.SAFE and not options.force:
        report = await glance(device, options.superblock_at)
        if report.complete:
            return Result(report, [], [], skipped=True)
    with ExitStack() as stack:
        if options.undo_file is not None:
            undo = stack.enter_context(UndoFile.create(options.undo_file, device.block_count))
            device = Recorded(device, undo)
        outcome: Outcome = await repair(
            device,
            policy.Asking(options.spec) if options.mode is Mode.ASK else policy.everything,
            options.superblock_at,
            gate=policy.only_safe if options.mode is Mode.SAFE else lambda report: True,
            progress=progress,
        )
    return Result(
        outcome.last,
        list(outcome.found.values()),
        outcome.first.findings.remarks,
        outcome.repaired,
        outcome.rounds,
        failures=outcome.failures,
    )


async def glance(device: Device, superblock_at: int | None) -> Report:
    """Whether the filesystem says itself that it is in order (`complete`), as at boot."""
    findings = Findings()
    source = await load(device, findings, superblock_at)
    report = Report(findings, source)
    state = source.state
    if state is not None and findings.clean and not source.replay.records:
        report.complete = state.flags == StateFlag.CLEAN
        report.inodes = state.inode_count
    return report


# --- showing ----------------------------------------------------------------------------------


def show(options: Options, result: Result, seconds: float) -> None:
    """Findings and a summary, on standard output."""
    if options.json:
        print(json.dumps(as_json(options, result), indent=2))
        return
    for line in lines(options, result):
        print(f"{options.spec}: {cli.printable(line)}")
    if options.timing:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(
            f"{options.spec}: {seconds:.2f} s, {usage.ru_utime:.2f} user, {usage.ru_stime:.2f} "
            f"system, {show_size(usage.ru_maxrss * 1024)} of memory"
        )


def lines(options: Options, result: Result) -> list[str]:
    """What is told, line by line."""
    report, told = result.report, []
    if not options.quiet:
        told += result.remarks
    if options.mode is Mode.CHECK:
        told += report.findings.lines()
    else:
        told += repaired_lines(result)
    if options.verbose:
        used = show_size(report.source.space.claimed_blocks * BLOCK_BYTES)
        told.append(f"{report.nodes} tree nodes, {report.seconds:.2f} s, {used} in use")
    if result.left:
        told.append(summary(options, result))
    elif result.repaired:
        told.append(f"{counted(result.repaired)} found and repaired")
    elif not options.quiet:
        names = "" if result.skipped else f", {report.names} names"
        told.append(f"clean, {report.inodes} inodes{names}")
    return told


def repaired_lines(result: Result) -> list[str]:
    """One line a finding and what became of it, bounded as those of a check."""
    findings = Findings()
    for finding in result.findings:
        text = f"{finding.text}: {'repaired' if finding.repaired else 'left'}"
        findings.add(finding.name, text, **finding.where)
    return [*findings.lines(), *(f"not possible: {failure}" for failure in result.failures[-10:])]


def summary(options: Options, result: Result) -> str:
    """The last line when errors are left."""
    if options.mode is Mode.CHECK:
        return f"{counted(result.left)} found, nothing was changed"
    if options.mode is Mode.SAFE:
        return f"{counted(result.left)} left: run fsck.nvmefs by hand, without {options.given}"
    return f"{counted(result.repaired)} repaired, {result.left} left"


def counted(errors: int) -> str:
    return f"{errors} error{'' if errors == 1 else 's'}"


def as_json(options: Options, result: Result) -> dict[str, Any]:
    """The report for programs."""
    report = result.report
    superblock = report.source.superblock
    return {
        "schema_version": 2,
        "device": options.spec,
        "uuid": str(uuids.UUID(bytes=superblock.uuid)),
        "label": superblock.label.decode(errors="backslashreplace"),
        "complete": report.complete,
        "clean": not result.left,
        "skipped": result.skipped,
        "repaired": result.repaired,
        "left": result.left,
        "rounds": result.rounds,
        "inodes": report.inodes,
        "names": report.names,
        "nodes": report.nodes,
        "claimed_blocks": report.source.space.claimed_blocks,
        "seconds": round(report.seconds, 3),
        "findings": [finding.as_json() for finding in result.findings],
        "counts": dict(report.findings.counts),
        "remarks": result.remarks,
        "failures": result.failures,
    }


if __name__ == "__main__":
    sys.exit(main())
