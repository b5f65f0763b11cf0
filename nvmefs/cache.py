"""Metadata blocks in memory: verified when they are read, bounded in number, never evicted while dirty.

Below: the device, and the journal's images of blocks that are not home yet.
Above: transaction.py, which hands blocks to the tree and the allocator.

    block = cache.get(number, BlockType.NODE)        raises BlockMiss: not in memory
    await cache.load(number, BlockType.NODE)         reads and verifies; then get() succeeds

Eviction is by second chance: `get` sets a mark, the sweep clears it and takes what it finds unmarked.
A list ordered by last use would cost a move on every hit; the mark costs an assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import trio

from nvmefs._core import ffi, lib
from nvmefs.device import Device
from nvmefs.errors import Corrupted
from nvmefs.layout import (
    BITMAP_AT,
    BITMAP_BITS,
    BLOCK_BYTES,
    BlockType,
    Superblock,
    bitmap_block,
    fresh_bitmap,
    verify,
)
from nvmefs.node import node_error

MIN_CAPACITY_BLOCKS = 512


class BlockMiss(Exception):
    """A block is needed that is not in memory. Caught by the runner of operations, never by them."""

    def __init__(self, number: int, kind: BlockType) -> None:
        super().__init__(number, kind)
        self.number = number
        self.kind = kind


class Block:
    """A metadata block in memory. `ptr` points at `data` for the C functions."""

    __slots__ = ("data", "dirty", "number", "ptr", "referenced", "type")

    def __init__(self, number: int, kind: BlockType, data: bytearray) -> None:
        self.number = number
        self.type = kind
        self.data = data
        self.ptr: Any = ffi.from_buffer("uint8_t[]", data)
        self.dirty = False
        self.referenced = True


class Cache:
    """Blocks by number. `images` are committed blocks whose home on the device is still stale, and `places`
    where the journal has more of them, from before the mount.
    """

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        images: Mapping[int, bytes],
        capacity_blocks: int = 16384,
        places: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self.device = device
        self.superblock = superblock
        self.images = images
        self.places = places
        self.capacity_blocks = max(capacity_blocks, MIN_CAPACITY_BLOCKS)
        self.blocks: dict[int, Block] = {}
        self.loading: dict[int, trio.Event] = {}
        self.loads = 0
        self.evictions = 0

    def get(self, number: int, kind: BlockType) -> Block:
        """The block `number`, of type `kind`. Raises BlockMiss, or Corrupted if it is of another type."""
        block = self.blocks.get(number)
        if block is None:
            raise BlockMiss(number, kind)
        if block.type is not kind:
            raise Corrupted(number, f"a {block.type.name} block where {kind.name} must be")
        block.referenced = True
        return block

    def add(self, number: int, kind: BlockType) -> Block:
        """A new zeroed block, for a place just allocated. A read of that place under way is disowned."""
        self.loading.pop(number, None)
        block = Block(number, kind, bytearray(BLOCK_BYTES))
        self.blocks[number] = block
        return block

    def drop(self, number: int) -> None:
        """Forget a block that was freed, or whose creation was rolled back."""
        self.blocks.pop(number, None)

    async def load(self, number: int, kind: BlockType, *, evict: bool = True) -> None:
        """Read block `number` and verify it. Raises Corrupted or DeviceFailed.

        Another block may go for it, unless `evict` is false: then the cache exceeds its bound for a while.
        One read a block at a time: a second caller waits for the first. If the block was allocated anew
        while it was read, what was read is thrown away.
        """
        under_way = self.loading.get(number)
        if under_way is not None:
            await under_way.wait()
            return
        if number in self.blocks:
            return
        if not 0 < number < self.superblock.block_count:
            raise Corrupted(-1, f"reference to block {number}, which is outside of the filesystem")
        done = self.loading[number] = trio.Event()
        try:
            image = self.images.get(number)
            if image is None:
                image = await self.device.read(self.places.get(number, number))
            data = bytearray(image)
            data = self._check(number, kind, data)
            if self.loading.get(number) is done:
                if evict:
                    self.make_room(1)
                self.blocks[number] = Block(number, kind, data)
                self.loads += 1
        finally:
            if self.loading.get(number) is done:
                del self.loading[number]
            done.set()

    def _check(self, number: int, kind: BlockType, data: bytearray) -> bytearray:
        """What was read, after every check that needs this block alone."""
        superblock = self.superblock
        if kind is BlockType.BITMAP and not any(data):
            return fresh_bitmap(number // (BITMAP_BITS), superblock)
        header = verify(
            data, number, kind, seed=superblock.checksum_seed, uuid=superblock.meta_uuid
        )
        if kind is BlockType.NODE:
            code = lib.node_check(ffi.from_buffer("uint8_t[]", data))
            if code:
                raise Corrupted(number, f"tree node: {node_error(code)}")
        elif kind is BlockType.BITMAP:
            if bitmap_block(header.owner) != number:
                raise Corrupted(number, f"bitmap of group {header.owner} stands in another place")
            free = (BLOCK_BYTES - BITMAP_AT) * 8 - int.from_bytes(
                data[BITMAP_AT:], "little"
            ).bit_count()
            if header.items != free:
                raise Corrupted(number, f"bitmap says {header.items} free blocks, {free} are")
        return data

    def statistics(self) -> dict[str, int]:
        """Counters since the mount, and what is in memory now."""
        return {
            "blocks": len(self.blocks),
            "capacity_blocks": self.capacity_blocks,
            "dirty_blocks": sum(block.dirty for block in self.blocks.values()),
            "loads": self.loads,
            "evictions": self.evictions,
        }

    def make_room(self, more: int) -> None:
        """Evict clean blocks until `more` have room; dirty ones are never evicted.

        To be called between operations only: within one, its blocks may be clean as yet. So what `add`
        puts in finds its room when the journal has it.
        """
        excess = len(self.blocks) + more - self.capacity_blocks
        if excess <= 0:
            return
        excess += self.capacity_blocks // 16
        for _ in range(2):
            for number, block in list(self.blocks.items()):
                if block.dirty:
                    continue
                if block.referenced:
                    block.referenced = False
                    continue
                del self.blocks[number]
                self.evictions += 1
                excess -= 1
                if not excess:
                    return
