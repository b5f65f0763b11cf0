"""FITRIM: telling the drive which blocks are free.

Below: the allocator's bitmaps, device.py.  Above: filesystem.py.

    trimmed = await trim(transactions, device, start, length, min_length)      all in bytes

Blocks that are being discarded are held like reserved ones: nobody may write them meanwhile. So that this is
not felt, an eighth of what is available at most is held at a time.
"""

from __future__ import annotations

import errno
import re
from functools import partial

import trio

from nvmefs.allocator import Allocator
from nvmefs.device import Device
from nvmefs.errors import FsError
from nvmefs.layout import (
    BITMAP_AT,
    BITMAP_BITS,
    BLOCK_BYTES,
    GROUP_BLOCKS,
    BlockType,
    bitmap_block,
    group_of,
)
from nvmefs.transaction import Transaction, Transactions

MAX_RUNS = 256  # as one Dataset Management command takes

_FREE = re.compile("0+")


async def trim(
    transactions: Transactions, device: Device, start: int, length: int, min_length: int
) -> int:
    """Discard the free runs of at least `min_length` in a region of the device; how many bytes that were.

    Raises FsError(EINVAL, EOPNOTSUPP), DeviceFailed.
    """
    if not device.supports_discard:
        raise FsError(errno.EOPNOTSUPP, f"{device.description}: no Dataset Management")
    first, count = -(-start // BLOCK_BYTES), transactions.allocator.superblock.block_count
    last = min((start + length) // BLOCK_BYTES, count) - 1
    if start < 0 or first >= count or min_length > GROUP_BLOCKS * BLOCK_BYTES:
        raise FsError(errno.EINVAL, f"trim from byte {start}, runs of {min_length} bytes")
    min_blocks = max(-(-min_length // BLOCK_BYTES), 1)
    return await _trim(transactions, device, first, last, min_blocks) * BLOCK_BYTES


async def _trim(
    transactions: Transactions, device: Device, first: int, last: int, min_blocks: int
) -> int:
    """The same in blocks. What is freed but not committed yet is left alone: a crash may bring it back."""
    allocator = transactions.allocator
    trimmed = 0
    at = first
    while at <= last:
        runs, at = await transactions.read(partial(_hold_runs, allocator, at, last, min_blocks))
        if not runs:
            await trio.lowlevel.checkpoint()
            continue
        try:
            await device.discard(runs)
        finally:
            for start, count in runs:
                allocator.release(start, count)
        trimmed += sum(count for _, count in runs)
    return trimmed


def _hold_runs(
    allocator: Allocator, first: int, last: int, min_blocks: int, tx: Transaction
) -> tuple[list[tuple[int, int]], int]:
    """Operation: hold free runs of the group of `first`, from there on; and the block to go on with."""
    group = group_of(first)
    base = group * GROUP_BLOCKS
    block = tx.get(bitmap_block(group), BlockType.BITMAP)
    used = int.from_bytes(block.data[BITMAP_AT:], "little")
    if group in allocator.held:
        used |= int.from_bytes(bytes(allocator.held[group]), "little")
    bits = format(used, f"0{BITMAP_BITS}b")[::-1]
    budget = max(min(GROUP_BLOCKS, allocator.available(tx) // 8), 1)
    runs: list[tuple[int, int]] = []
    end = min(last - base + 1, GROUP_BLOCKS)
    for found in _FREE.finditer(bits, first - base, end):
        start, count = found.start(), found.end() - found.start()
        if count < min_blocks:
            continue
        count = min(count, budget)
        allocator.hold(base + start, count)
        runs.append((base + start, count))
        budget -= count
        if not budget or len(runs) == MAX_RUNS:
            return runs, base + start + count
    return runs, base + GROUP_BLOCKS
