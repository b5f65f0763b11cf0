"""Repairs of space: blocks that two have, and bitmaps.

Below: writer.py, check.explain.  Above: fixes.py, engine.py.

Blocks that two files have: nobody can tell whose they are. The first, in the order of the tree, keeps them;
each other one gets a copy (as with e2fsck). Blocks of a file over a tree node: what the file had there is gone;
it gets a hole, which reads as zeroes.
"""

from __future__ import annotations

from functools import partial

from mkfs.check import explain
from mkfs.check.findings import Finding
from mkfs.check.run import Report
from mkfs.check.space import Double
from mkfs.repair.writer import Writer
from nvmefs.errors import DeviceFailed, NoSpace
from nvmefs.items import EXTENT_UNWRITTEN, Extent, decode_extent
from nvmefs.layout import BLOCK_BYTES, OFFSET_MASK, Kind, key
from nvmefs.transaction import Transaction

COPY_BLOCKS = 256  # copied at once


async def fix_bitmaps(writer: Writer, findings: list[Finding]) -> None:
    """Write the bitmaps of the groups in which something is wrong as the tree says they must be."""
    space = writer.report.source.space
    for group in sorted({finding.number("group") for finding in findings}):
        await writer.put_bitmap(group, space.used_bits(group))


async def shares(report: Report, findings: list[Finding]) -> list[Finding]:
    """The findings of shared blocks, each as one of an extent, and whether a tree node is there (`node`)."""
    source = report.source
    assert source.state is not None
    wanted = [(each.number("start"), each.number("count")) for each in findings]
    owners = await explain.owners_of(source, source.state.roots[0], wanted)
    result = []
    for finding in findings:
        users = owners[finding.number("start")]
        if finding.number("inode") >= 0:
            finding.where["node"] = int(any(user.inode < 0 for user in users))
            result.append(finding)
            continue
        start = finding.number("start")
        for user in users:
            if user.inode >= 0:
                where: dict[str, int | bytes | None] = {"start": start, "count": 1, "node": 1}
                where |= {"inode": user.inode, "block": user.file_block + start - user.start}
                result.append(Finding(finding.name, finding.text, where))
    return result


async def unshare(writer: Writer, finding: Finding) -> None:
    """One file's extents over blocks that are another's: a copy of the blocks, or a hole."""
    shared = Double(
        finding.number("start"),
        finding.number("count"),
        finding.number("inode"),
        finding.number("block"),
    )
    while (part := await writer.run(partial(_next_part, writer, shared))) is not None:
        if finding.where["node"] or not await _copy(writer, shared.inode, part):
            await writer.run(partial(_replace, writer, shared.inode, part, None))


def _next_part(writer: Writer, shared: Double, tx: Transaction) -> Extent | None:
    """Operation: what the file still maps to the shared blocks, in one piece, of bounded length."""
    first, last = shared.file_block, shared.file_block + shared.count - 1
    for part in writer.filesystem.extents.map_range(tx, shared.inode, first, shared.count):
        if part.start == shared.start + part.file_block - shared.file_block:
            count = min(part.count, COPY_BLOCKS, last + 1 - part.file_block)
            return Extent(part.file_block, part.start, count, part.flags)
    return None


async def _copy(writer: Writer, number: int, part: Extent) -> bool:
    """Give the file blocks of its own for `part`, with the same content; False: that is not possible."""
    try:
        start, count = await writer.reserve(part.count)
    except NoSpace:
        return False
    copy = Extent(part.file_block, start, count, part.flags)
    if not part.flags & EXTENT_UNWRITTEN:
        try:
            data = await writer.device.read(part.start, copy.count)
        except DeviceFailed:
            data = bytes(copy.count * BLOCK_BYTES)
        await writer.device.write(start, data)
    old = Extent(part.file_block, part.start, copy.count, part.flags)
    await writer.run(partial(_replace, writer, number, old, copy))
    return True


def _replace(
    writer: Writer, number: int, part: Extent, copy: Extent | None, tx: Transaction
) -> None:
    """Operation: `part` of an extent is mapped to the blocks of `copy`, or to none."""
    found = writer.tree.floor(tx, key(number, Kind.EXTENT, part.file_block))
    assert found is not None
    (_, rest), value = found
    whole = decode_extent(number, rest & OFFSET_MASK, value, writer.superblock.block_count)
    writer.tree.delete(tx, (number, rest))
    before, behind = part.file_block - whole.file_block, whole.end - part.end
    pieces = [copy] if copy is not None else []
    if before:
        pieces.append(Extent(whole.file_block, whole.start, before, whole.flags))
    if behind:
        start = whole.start + before + part.count
        pieces.append(Extent(part.end, start, behind, whole.flags))
    for piece in pieces:
        writer.tree.put(tx, key(number, Kind.EXTENT, piece.file_block), piece.encode())
    if copy is not None:
        writer.filesystem.allocator.claim(tx, copy.start, copy.count)
