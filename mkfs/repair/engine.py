"""Check, repair the most basic of what was found, check again; until nothing is found.

Below: check.run, fixes.py, structure.py, writer.py.  Above: fsck.py.

    outcome = await repair(device, policy)          raises Unusable, FsError
    outcome.left                                    what is still wrong

Each round sees the device as the next program will: nothing is carried over in memory. So a run that was
interrupted is simply continued by the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mkfs.check.findings import REPAIRED_PER_NAME, Finding
from mkfs.check.run import Progress, Report, check, silent
from mkfs.repair.fixes import FIXES, SUPERBLOCKS, Stage, in_order, stage_of
from mkfs.repair.space import fix_bitmaps, shares
from mkfs.repair.structure import rebuild, write_superblocks
from mkfs.repair.writer import Writer
from nvmefs.device import Device
from nvmefs.errors import Corrupted, NoSpace

MAX_ROUNDS = 100
TRIES = 3  # of one repair: what one has mended another may break again
MAX_RECORDED = 200_000  # findings of all rounds that are kept to be told

Policy = Callable[[Finding], bool]
"""Whether a finding is to be repaired."""
Gate = Callable[[Report], bool]
"""Whether anything is to be repaired where a check has found that."""


@dataclass
class Outcome:
    """What a repair came to. `first` is the check before any change, `last` the one after all of them."""

    first: Report
    last: Report
    found: dict[tuple[Any, ...], Finding] = field(default_factory=dict)
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    unrecorded: int = 0

    @property
    def left(self) -> list[Finding]:
        """What is still wrong."""
        return self.last.findings.kept

    @property
    def repaired(self) -> int:
        """How many findings are gone."""
        told = sum(finding.repaired for finding in self.found.values())
        return told + (0 if self.left else self.unrecorded)

    def take(self, report: Report) -> None:
        """The findings of one more check: what was found before and is not any more is repaired."""
        self.last = report
        now = {finding.identity for finding in report.findings.kept}
        for identity, finding in self.found.items():
            finding.repaired = identity not in now
        for finding in report.findings.kept:
            if len(self.found) < MAX_RECORDED:
                self.found.setdefault(finding.identity, finding)
            else:
                self.unrecorded += finding.identity not in self.found


async def repair(
    device: Device,
    policy: Policy,
    superblock_at: int | None = None,
    *,
    gate: Gate = lambda report: True,
    progress: Progress = silent,
) -> Outcome:
    """Repair what `gate` and `policy` allow. Raises Unusable, and FsError when the device fails."""
    outcome: Outcome | None = None
    refused: set[tuple[Any, ...]] = set()
    tried: Counter[tuple[Any, ...]] = Counter()
    for number in range(MAX_ROUNDS):
        report = await check(device, superblock_at, limit=REPAIRED_PER_NAME, progress=progress)
        if outcome is None:
            outcome = Outcome(report, report)
        outcome.take(report)
        outcome.rounds = number
        if report.findings.clean:
            if not await finish(report):
                break
            continue
        if not gate(report):
            break
        stage, todo = chosen(report, policy, refused)
        if not todo:
            break
        tried.update(finding.identity for finding in todo)
        refused |= {finding.identity for finding in todo if tried[finding.identity] >= TRIES}
        await repair_stage(report, stage, todo, outcome)
    assert outcome is not None
    return outcome


def chosen(
    report: Report, policy: Policy, refused: set[tuple[Any, ...]]
) -> tuple[Stage, list[Finding]]:
    """The findings to be repaired now: those of the lowest stage of which any is not refused.

    What others stand on is repaired first or not at all: refused there, or tried in vain, nothing is.
    """
    stages: dict[Stage, list[Finding]] = {}
    for finding in report.findings.kept:
        stages.setdefault(stage_of(finding), []).append(finding)
    for stage in sorted(stages):
        todo = []
        for finding in stages[stage]:
            if finding.identity in refused:
                continue
            if policy(finding):
                todo.append(finding)
            else:
                refused.add(finding.identity)
        if todo or (stage in (Stage.STRUCTURE, Stage.BITMAPS)):
            return stage, todo
    return Stage.COUNTS, []


async def repair_stage(report: Report, stage: Stage, todo: list[Finding], outcome: Outcome) -> None:
    """One stage. What cannot be repaired, for want of space, is told and left."""
    if stage is Stage.STRUCTURE:
        await write_superblocks(
            report.source, [finding for finding in todo if finding.name in SUPERBLOCKS]
        )
    writer = await Writer.open(report)
    try:
        if stage is Stage.STRUCTURE:
            if not report.complete:
                await rebuild(writer)
        elif stage is Stage.BITMAPS:
            await fix_bitmaps(writer, todo)
        else:
            await repair_findings(writer, stage, todo, outcome)
    except NoSpace as error:
        outcome.failures.append(str(error))
    await writer.close()


async def repair_findings(
    writer: Writer, stage: Stage, todo: list[Finding], outcome: Outcome
) -> None:
    """The findings of a stage, one after the other."""
    shared = [finding for finding in todo if finding.name == "block-shared"]
    if shared:
        todo = [finding for finding in todo if finding.name != "block-shared"]
        todo += await shares(writer.report, shared)
    for finding in in_order(todo):
        try:
            await FIXES[stage][finding.name](writer, finding)
        except (Corrupted, NoSpace) as error:
            outcome.failures.append(f"{finding.name}: {error}")


async def finish(report: Report) -> bool:
    """Finish orphans, bring the journal home, mark the filesystem clean; whether that needs another look.

    What is in order already is not written to.
    """
    source = report.source
    if source.unmounted_in_order and not source.replay.records and not report.orphans:
        return False
    writer = await Writer.open(report)
    await writer.finish()
    return bool(report.orphans)
