"""The writing half of mkfs: old superblocks go first, the new one comes last.

Below: the device, layout.py.  Above: mkfs.py.

    await write_filesystem(device, plan, root, fresh=True, discard=True)

Interrupted at any moment, the device holds what it held before, or no filesystem, or the whole new
one: nothing half made can be mounted.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from mkfs.geometry import Plan
from mkfs.nodes import encode_leaf
from mkfs.signatures import FAR_MAGICS, HEAD_BLOCKS, TAIL_BLOCKS
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.items import InodeRecord
from nvmefs.layout import (
    BLOCK_BYTES,
    FIRST_FREE_INODE,
    GROUP_BLOCKS,
    JOURNAL_START,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    TREE_MAIN,
    Buffer,
    JournalSuper,
    Kind,
    Root,
    State,
    StateFlag,
    Superblock,
    bitmap_block,
    encode_bitmap,
    fixed_bits,
    fresh_bitmap,
    group_of,
    key,
    superblock_places,
    usable_blocks,
)
from nvmefs.superblock import protective_mbr

EAGER_GROUPS = 64  # bitmaps written at once: 8 GiB; of the others an all-zero block says the same
CHUNK_BLOCKS = 256
DISCARD_BLOCKS = 1 << 27  # one range of a deallocation holds at most 2^32 - 1 LBAs
READERS = 16


class WritableDevice(Protocol):
    """What writing needs of a device. Each method raises DeviceFailed."""

    @property
    def block_count(self) -> int: ...
    async def read(self, block: int, count: int = 1) -> bytes: ...
    async def write(self, block: int, data: Buffer, *, fua: bool = False) -> None: ...
    async def flush(self) -> None: ...
    async def discard(self, runs: Sequence[tuple[int, int]]) -> None: ...


# Fills the empty filesystem whose state it is given; the sequence of the first record that may follow.
Populate = Callable[[State], Awaitable[int]]


@dataclass(frozen=True)
class RootDirectory:
    """The owner and permissions of the new root directory."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o755


async def write_filesystem(
    device: WritableDevice,
    plan: Plan,
    root: RootDirectory,
    *,
    fresh: bool,
    discard: bool,
    note: Callable[[str], None],
    populate: Populate | None = None,
) -> None:
    """Write a new filesystem; durable on return. `fresh`: the device reads as zeroes."""
    await wipe_superblocks(device)
    if discard and not fresh:
        await discard_all(device, note)
    await wipe_signatures(device)
    await write_bitmaps(device, plan, fresh=fresh)
    state = await write_tree(device, plan, root)
    next_seq = await populate(state) if populate is not None else 1
    await write_journal(device, plan, next_seq)
    await device.flush()
    await write_superblocks(device, plan)


async def wipe_superblocks(device: WritableDevice) -> None:
    """Zero whatever could be taken for a superblock of ours; durable on return."""
    places = {0, *superblock_places(usable_blocks(device.block_count))}
    places |= {device.block_count - 1, SUPERBLOCK_COPY}
    for place in (SUPERBLOCK, SUPERBLOCK_COPY):
        if place < device.block_count:
            try:
                old = Superblock.decode(await device.read(place), place)
            except Corrupted:
                continue  # no superblock there
            places |= set(superblock_places(old.block_count))
    for place in sorted(places):
        if place < device.block_count:
            await zero(device, place, 1)
    await device.flush()


async def discard_all(device: WritableDevice, note: Callable[[str], None]) -> None:
    """Tell the drive that nothing of it is needed; a drive that cannot is no failure."""
    runs = [
        (first, min(DISCARD_BLOCKS, device.block_count - first))
        for first in range(0, device.block_count, DISCARD_BLOCKS)
    ]
    try:
        await device.discard(runs)
    except DeviceFailed as error:
        note(f"the drive does not discard, old data stays until overwritten: {error}")


async def wipe_signatures(device: WritableDevice) -> None:
    """Zero both ends and the copies between, so that no tool finds what was there before."""
    await zero(device, 0, min(HEAD_BLOCKS, device.block_count))
    tail = min(TAIL_BLOCKS, device.block_count)
    await zero(device, device.block_count - tail, tail)
    for _, place, _ in FAR_MAGICS:
        if place // BLOCK_BYTES < device.block_count:
            await zero(device, place // BLOCK_BYTES, 1)


async def zero(device: WritableDevice, block: int, count: int) -> None:
    """Make blocks read as zeroes; what does already is not written: sparse images stay sparse."""
    for first in range(block, block + count, CHUNK_BLOCKS):
        length = min(CHUNK_BLOCKS, block + count - first)
        if any(await device.read(first, length)):
            await device.write(first, bytes(length * BLOCK_BYTES))


async def write_bitmaps(device: WritableDevice, plan: Plan, *, fresh: bool) -> None:
    """The first groups' bitmaps; of the others those in place of old data (decision 0001)."""
    superblock = plan.superblock
    for group in range(min(EAGER_GROUPS, superblock.group_count)):
        bits = fixed_bits(group, superblock)
        if group == group_of(plan.root_block):
            bits |= 1 << plan.root_block % GROUP_BLOCKS
        await device.write(bitmap_block(group), encode_bitmap(group, bits, superblock))
    if fresh:
        return
    groups = iter(range(EAGER_GROUPS, superblock.group_count))
    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(replace_stale_bitmaps, device, superblock, groups)


async def replace_stale_bitmaps(
    device: WritableDevice, superblock: Superblock, groups: Iterator[int]
) -> None:
    """One of several readers that share `groups`: a block that is not zero is written anew."""
    for group in groups:
        if any(await device.read(bitmap_block(group))):
            await device.write(bitmap_block(group), fresh_bitmap(group, superblock))


async def write_tree(device: WritableDevice, plan: Plan, root: RootDirectory) -> State:
    """The root directory in the tree's first leaf, and the state block that names it."""
    superblock, born = plan.superblock, plan.identity
    record = InodeRecord(
        mode=stat.S_IFDIR | root.mode, nlink=2, uid=root.uid, gid=root.gid, parent=ROOT_INODE,
        atime_s=born.created_s, atime_ns=born.created_ns,
        mtime_s=born.created_s, mtime_ns=born.created_ns,
        ctime_s=born.created_s, ctime_ns=born.created_ns,
        btime_s=born.created_s, btime_ns=born.created_ns,
    )  # fmt: skip
    items = [(key(ROOT_INODE, Kind.INODE), record.encode())]
    leaf = encode_leaf(plan.root_block, items, superblock, owner=TREE_MAIN)
    await device.write(plan.root_block, leaf)
    state = State(
        next_inode=FIRST_FREE_INODE,
        free_blocks=plan.free_blocks,
        inode_count=1,
        roots=[Root(TREE_MAIN, 0, plan.root_block)],
        flags=StateFlag.CLEAN,
        write_time_s=born.created_s,
        check_time_s=born.created_s,
    )
    await device.write(STATE_BLOCK, state.encode(superblock, 0))
    return state


async def write_journal(device: WritableDevice, plan: Plan, next_seq: int) -> None:
    """Both journal superblocks, B older than A, and an end of the journal at its start.

    With a seed given, an older filesystem may have had the same epoch: its records must not count.
    """
    await zero(device, JOURNAL_START, 1)
    for generation in (1, 2):
        journal = JournalSuper(generation, next_seq, 0, plan.identity.epoch)
        place, block = journal.encode(plan.superblock)
        await device.write(place, block)


async def write_superblocks(device: WritableDevice, plan: Plan) -> None:
    """The copies, the partition table and, when all else is durable, the superblock."""
    for place in superblock_places(plan.superblock.block_count)[1:]:
        await device.write(place, plan.superblock.encode(place))
    await device.write(0, protective_mbr(device.block_count, plan.superblock.lba_bytes))
    await device.flush()
    await device.write(SUPERBLOCK, plan.superblock.encode(SUPERBLOCK))
    await device.flush()
