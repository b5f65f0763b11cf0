"""A device in memory, sparse, for the tests of the tools: what nvmefs.device.Device offers them."""

from __future__ import annotations

from collections.abc import Sequence

from nvmefs.errors import DeviceFailed
from nvmefs.layout import BLOCK_BYTES, Buffer


class RamDevice:
    """`block_count` zeroed blocks. `log` is what was done; after `fail_after` writes they fail."""

    def __init__(self, block_count: int, *, discards: bool = True) -> None:
        self.block_count = block_count
        self.lba_bytes = 512
        self.alignment_blocks = 1
        self.description = "ram"
        self.discards = discards
        self.blocks: dict[int, bytes] = {}
        self.log: list[tuple[str, int, int]] = []
        self.fail_after: int | None = None
        self.unreadable: set[int] = set()

    def _check(self, block: int, count: int) -> None:
        if not 0 <= block <= block + count <= self.block_count:
            raise DeviceFailed(f"blocks {block}+{count} of {self.block_count}")

    async def read(self, block: int, count: int = 1) -> bytes:
        self._check(block, count)
        if self.unreadable.intersection(range(block, block + count)):
            raise DeviceFailed(f"reading block {block}: unrecovered read error")
        zero = bytes(BLOCK_BYTES)
        return b"".join(self.blocks.get(number, zero) for number in range(block, block + count))

    async def write(self, block: int, data: Buffer, *, fua: bool = False) -> None:
        assert len(data) % BLOCK_BYTES == 0
        count = len(data) // BLOCK_BYTES
        self._check(block, count)
        if self.fail_after is not None:
            if not self.fail_after:
                raise DeviceFailed(f"writing block {block}: cut")
            self.fail_after -= 1
        for index in range(count):
            self.put(block + index, bytes(data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]))
        self.log.append(("write", block, count))

    async def flush(self) -> None:
        self.log.append(("flush", 0, 0))

    async def discard(self, runs: Sequence[tuple[int, int]]) -> None:
        if not self.discards:
            raise DeviceFailed("no discard here")
        for block, count in runs:
            self._check(block, count)
            for number in [each for each in self.blocks if block <= each < block + count]:
                del self.blocks[number]
            self.log.append(("discard", block, count))

    def put(self, block: int, data: bytes) -> None:
        """Set a block, past all checks; zeroes are not kept."""
        assert len(data) == BLOCK_BYTES
        if any(data):
            self.blocks[block] = data
        else:
            self.blocks.pop(block, None)

    def put_bytes(self, at: int, data: bytes) -> None:
        """Set some bytes at byte `at`; negative: from the end."""
        at += self.block_count * BLOCK_BYTES if at < 0 else 0
        while data:
            block, inside = divmod(at, BLOCK_BYTES)
            part = data[: BLOCK_BYTES - inside]
            old = bytearray(self.get(block))
            old[inside : inside + len(part)] = part
            self.put(block, bytes(old))
            at, data = at + len(part), data[len(part) :]

    def get(self, block: int) -> bytes:
        return self.blocks.get(block, bytes(BLOCK_BYTES))
