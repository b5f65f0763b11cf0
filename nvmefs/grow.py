"""Growing a filesystem that is open, to the size of its device or a part of it.

Below: the journal, which carries the superblock; allocator.py.  Above: control.py (while mounted) and
mkfs/resize.py.

    growth = await grow(filesystem)             raises FsError; growth.before, growth.after in blocks

First what lies behind the old end is made ready, where nothing refers to it yet; then one transaction changes
everything that knows the size: superblock and copies, state, the bitmap of the group that was the last. A
crash before it leaves the old size, a crash after it the new one.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from nvmefs.device import Device
from nvmefs.errors import FsError, ReadOnly
from nvmefs.filesystem import Filesystem
from nvmefs.layout import (
    BITMAP_AT,
    BLOCK_BYTES,
    MAX_BLOCKS,
    BlockType,
    bitmap_block,
    encode_bitmap,
    fixed_bits,
    free_blocks_when_fresh,
    group_count,
    group_of,
    usable_blocks,
)
from nvmefs.superblock import protective_mbr
from nvmefs.transaction import Transaction

log = logging.getLogger("nvmefs")

READERS = 16
ZERO = bytes(BLOCK_BYTES)


@dataclass(frozen=True)
class Growth:
    """The size before and after, in blocks; the same if there was nothing to gain."""

    before: int
    after: int


async def grow(filesystem: Filesystem, wanted_blocks: int | None = None) -> Growth:
    """Grow to `wanted_blocks`, or to all that the device has; durable on return.

    Raises FsError: EINVAL for a size that is smaller or that the device does not have, ReadOnly, DeviceFailed.
    """
    device, superblock = filesystem.device, filesystem.superblock
    if refusal := filesystem.journal.refusal:
        raise ReadOnly(refusal)
    await device.rescan()
    before = superblock.block_count
    after = new_size(before, device.block_count, wanted_blocks)
    if after == before:
        return Growth(before, before)
    await _clear_bitmaps(device, range(group_count(before), group_count(after)))
    await device.flush()
    await filesystem.transactions.run(lambda tx: _enlarge(filesystem, tx, after))
    await filesystem.transactions.commit()
    await filesystem.journal.checkpoint()
    await device.write(0, protective_mbr(device.block_count, device.lba_bytes), fua=True)
    log.info("%s: grown from %d to %d blocks", device.description, before, after)
    return Growth(before, superblock.block_count)


def new_size(before: int, device_blocks: int, wanted: int | None) -> int:
    """The size to grow to, in blocks; `before` if there is nothing to gain. Raises FsError(EINVAL)."""
    if wanted is None:
        return max(min(usable_blocks(device_blocks), MAX_BLOCKS), before)
    if wanted > device_blocks:
        raise FsError(
            errno.EINVAL,
            f"a size of {wanted} blocks: the device has {device_blocks}: grow it first",
        )
    if wanted < before:
        raise FsError(
            errno.EINVAL,
            f"a size of {wanted} blocks: the filesystem has {before} and cannot shrink: make a smaller one "
            "and copy the files",
        )
    return max(usable_blocks(wanted), before)


async def _clear_bitmaps(device: Device, groups: range) -> None:
    """What an older filesystem has left where bitmaps will be: zeroes stand for a fresh one."""
    rest = iter(groups)
    async with trio.open_nursery() as nursery:
        for _ in range(min(READERS, len(groups))):
            nursery.start_soon(_clear_some, device, rest)


async def _clear_some(device: Device, groups: Iterator[int]) -> None:
    """One of several that share `groups`."""
    for group in groups:
        if await device.read(bitmap_block(group)) != ZERO:
            await device.write(bitmap_block(group), ZERO)


def _enlarge(filesystem: Filesystem, tx: Transaction, after: int) -> None:
    """Operation: from here on the filesystem has `after` blocks."""
    superblock, allocator, state = filesystem.superblock, filesystem.allocator, filesystem.state
    before = superblock.block_count
    if after <= before:
        return  # another has grown it meanwhile
    old_copy = before - 1
    group = group_of(old_copy)
    bitmap = tx.get(bitmap_block(group), BlockType.BITMAP)
    tx.modify(bitmap)
    bits = int.from_bytes(bitmap.data[BITMAP_AT:], "little") & ~fixed_bits(group, superblock)
    free_before = free_blocks_when_fresh(superblock)
    tx.on_undo(allocator.resized)
    tx.change_superblock(block_count=after)
    allocator.resized()
    bits |= fixed_bits(group, superblock)
    bitmap.data[:] = encode_bitmap(group, bits, superblock)
    state.free_blocks += free_blocks_when_fresh(superblock) - free_before
    allocator.full.discard(group)
    # An image of the old copy may still be on its way home: nothing else may be written there before that.
    allocator.hold_freed(tx, old_copy, 1)
    tx.freed_nodes.append(old_copy)


def watch(filesystem: Filesystem) -> None:
    """Tell in the log when the namespace's size changes while the filesystem is mounted."""
    device, superblock = filesystem.device, filesystem.superblock

    def tell(_namespace: object) -> None:
        if device.block_count < superblock.block_count:
            log.error(
                "%s: the namespace has %d blocks now, the filesystem on it %d: what lies behind is lost",
                device.description, device.block_count, superblock.block_count,
            )  # fmt: skip
        elif usable_blocks(device.block_count) > superblock.block_count:
            log.warning(
                "%s: the namespace has grown to %d blocks, the filesystem on it has %d: "
                "`nvmefs resize` makes it as large",
                device.description, device.block_count, superblock.block_count,
            )  # fmt: skip

    device.namespace.on_change.append(tell)
