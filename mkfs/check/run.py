"""All passes of a check, in order.

Below: the passes.  Above: fsck.py, repair/.

    report = await check(device)          raises Unusable, DeviceFailed; writes nothing
    report.findings.clean
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mkfs.check.bitmaps import check_bitmaps
from mkfs.check.findings import SHOWN_PER_NAME, Findings
from mkfs.check.items import ItemCheck
from mkfs.check.load import Source, load
from mkfs.check.scan import Walk
from mkfs.check.verify import PASSES, Verification
from nvmefs.device import Device

Progress = Callable[[int, int, int], None]
"""Called with the number of the pass, what is done of it, and of how much."""


def silent(number: int, done: int, total: int) -> None:
    """No progress is shown."""


@dataclass
class Report:
    """What a check came to. `complete`: every pass ran, because the whole tree could be read."""

    findings: Findings
    source: Source
    inodes: int = 0
    names: int = 0
    nodes: int = 0
    orphans: int = 0
    highest_inode: int = 0
    free_blocks: int = 0
    complete: bool = False
    elsewhere: bool = False
    seconds: float = 0.0


async def check(
    device: Device,
    superblock_at: int | None = None,
    *,
    limit: int = SHOWN_PER_NAME,
    progress: Progress = silent,
) -> Report:
    """Every pass over the filesystem on `device`; of each kind of finding the first `limit` are kept.

    Raises Unusable, DeviceFailed.
    """
    began = time.monotonic()
    findings = Findings(limit)
    progress(1, 0, 1)
    source = await load(device, findings, superblock_at)
    progress(1, 1, 1)
    report = Report(findings, source)
    if source.state is None:
        findings.remark("without a state block the tree cannot be found: nothing else was checked")
        return report
    root, expected = source.state.roots[0], max(1, source.state.inode_count)
    items = ItemCheck(
        source.superblock,
        source.space,
        findings,
        lambda done: progress(2, min(done, expected), expected),
    )
    walk = Walk(source, root, items)
    await walk.run()
    items.finish()
    verification = Verification(source, root, items.inventory, walk.double + items.double)
    report.complete, report.elsewhere = source.whole, walk.elsewhere
    if source.whole:
        for number, verify in enumerate(PASSES):
            progress(3, number, len(PASSES))
            await verify(verification)
        groups = source.superblock.group_count
        report.free_blocks = await check_bitmaps(source, lambda done: progress(4, done, groups))
    else:
        await PASSES[0](verification)
        findings.remark(
            "a part of the tree could not be read: links, counters and bitmaps were not compared"
        )
    report.inodes = len(items.inventory.inodes)
    report.names = len(items.inventory.names)
    report.orphans = len(items.inventory.orphans)
    report.highest_inode = items.inventory.highest
    report.nodes = walk.nodes
    report.seconds = time.monotonic() - began
    return report
