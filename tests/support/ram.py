"""A namespace in memory, for tests of everything above the driver: what nvmefs.device.Device asks of one.

Below: nothing.  Above: tests of nvmefs, tests/crash.

    namespace = RamNamespace(4096)                     16 MiB of zeroes
    device = Device(namespace, "ram")
    namespace.log = []                                 from now on commands are recorded
    namespace.before = hook                            awaited before each command: may wait, may raise
    namespace.during = hook                            awaited between its start and its end

Nothing here waits of its own accord, so what runs on it is as deterministic as its own code. The log is
what crash.py builds crash images from: each command when it starts and when it ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import trio

import driver
from driver import trace
from nvmefs.device import Device
from nvmefs.errors import DeviceFailed
from nvmefs.layout import BLOCK_BYTES

ZERO = bytes(BLOCK_BYTES)


@dataclass(slots=True, eq=False)
class Command:
    """One command to the drive. `data` of a write: one entry a block, from block `block` on."""

    kind: str  # "write", "flush" or "discard"
    block: int = 0
    data: tuple[bytes, ...] = ()
    fua: bool = False


@dataclass(slots=True, frozen=True)
class Event:
    """A command was started (`ended` False: the drive may have done any part of it) or has ended."""

    command: Command
    ended: bool


class RamBuffer:
    """What DmaPool.allocate_wait gives: memory with a `view`."""

    def __init__(self, nbytes: int) -> None:
        self.view = memoryview(bytearray(nbytes))

    def __len__(self) -> int:
        return len(self.view)

    def __enter__(self) -> RamBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Nothing to give back."""


class RamDma:
    """The part of a DmaPool that is used above the driver."""

    def allocate(self, nbytes: int) -> RamBuffer:
        return RamBuffer(nbytes)

    async def allocate_wait(self, nbytes: int) -> RamBuffer:
        return RamBuffer(nbytes)


class InjectedError(driver.DriverError):
    """A command that a test made fail."""


class RamDevice(Device):
    """A device whose single blocks are read without a buffer, which is dear where millions are."""

    namespace: Any

    async def read(
        self, block: int, count: int = 1, skip: int = 0, length: int | None = None
    ) -> bytes:
        namespace = self.namespace
        if count > 1 or skip or length is not None or trace.enabled or namespace.before is not None:
            return await super().read(block, count, skip, length)
        if not 0 <= block < namespace.block_count:
            raise DeviceFailed(f"reading block {block}: LBA out of range")
        namespace.reads += 1
        found: bytes = namespace.blocks.get(block, ZERO)
        return found


Hook = Callable[[str, int, int], Awaitable[None]]  # kind, first block, number of blocks


class RamNamespace:
    """`block_count` blocks of 4 KiB, sparse. `blocks` is what a read returns."""

    def __init__(
        self,
        block_count: int,
        blocks: dict[int, bytes] | None = None,
        *,
        lba_bytes: int = 512,
        volatile_write_cache: bool = True,
    ) -> None:
        self.block_count = block_count
        self.blocks: dict[int, bytes] = {} if blocks is None else blocks
        self.nsid = 1
        self.max_transfer_bytes = 0
        self.lba_bytes = lba_bytes
        self.lba_count = block_count * BLOCK_BYTES // lba_bytes
        self.volatile_write_cache = volatile_write_cache
        self.dma = RamDma()
        self.log: list[Event] | None = None
        self.before: Hook | None = None
        self.during: Hook | None = None
        self.on_change: list[Callable[[Any], None]] = []
        self.reads = 0
        self.writes = 0
        self.flushes = 0

    def copy(self) -> RamNamespace:
        """Another namespace with the same contents; neither sees what is written to the other."""
        return RamNamespace(
            self.block_count,
            dict(self.blocks),
            lba_bytes=self.lba_bytes,
            volatile_write_cache=self.volatile_write_cache,
        )

    def device(self, *, fua: bool = True) -> Device:
        """A fresh device over this namespace."""
        return RamDevice(self, "ram", fua=fua)

    def grow(self, block_count: int) -> None:
        """The drive has more blocks from now on, and says so; the new ones are zeroes."""
        assert block_count > self.block_count
        self.block_count = block_count
        self.lba_count = block_count * BLOCK_BYTES // self.lba_bytes
        for told in self.on_change:
            told(self)

    async def rescan(self) -> None:
        """Its size is always the one it says."""

    def _place(self, lba: int, nbytes: int) -> tuple[int, int]:
        assert lba * self.lba_bytes % BLOCK_BYTES == nbytes % BLOCK_BYTES == 0, "not whole blocks"
        block, count = lba * self.lba_bytes // BLOCK_BYTES, nbytes // BLOCK_BYTES
        if not 0 <= block <= block + count <= self.block_count:
            raise InjectedError(f"LBA out of range: block {block}+{count}")
        return block, count

    async def _start(self, command: Command, count: int) -> None:
        if self.before is not None:
            await self.before(command.kind, command.block, count)
        if self.log is not None:
            self.log.append(Event(command, ended=False))

    async def _end(self, command: Command) -> None:
        if self.during is not None:
            await self.during(command.kind, command.block, len(command.data))
        if self.log is not None:
            self.log.append(Event(command, ended=True))

    async def read(self, lba: int, buffer: Any) -> None:
        view = buffer.view if hasattr(buffer, "view") else memoryview(buffer)
        block, count = self._place(lba, len(view))
        if self.before is not None:
            await self.before("read", block, count)
        self.reads += 1
        get = self.blocks.get
        if count == 1:
            view[:] = get(block, ZERO)
        else:
            view[:] = b"".join([get(number, ZERO) for number in range(block, block + count)])

    async def write(self, lba: int, data: Any, *, fua: bool = False) -> None:
        payload = bytes(data.view if hasattr(data, "view") else data)
        block, count = self._place(lba, len(payload))
        parts = tuple(payload[at : at + BLOCK_BYTES] for at in range(0, len(payload), BLOCK_BYTES))
        command = Command("write", block, parts, fua)
        await self._start(command, count)
        self.writes += 1
        for index, part in enumerate(parts):
            self.blocks[block + index] = part
        await self._end(command)

    async def flush(self) -> None:
        command = Command("flush")
        await self._start(command, 0)
        self.flushes += 1
        await self._end(command)

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        for lba, count in ranges:
            await self.write_zeroes(lba, count)

    async def write_zeroes(self, lba: int, count: int, *, deallocate: bool = True) -> None:
        block, blocks = self._place(lba, count * self.lba_bytes)
        command = Command("discard", block, (ZERO,) * blocks)
        await self._start(command, blocks)
        for number in range(block, block + blocks):
            self.blocks.pop(number, None)
        await self._end(command)


class Gate:
    """A hook that holds up every command of a kind that touches given blocks, until `open` is set."""

    def __init__(self, kind: str, first: int, last: int) -> None:
        self.kind = kind
        self.first = first
        self.last = last
        self.reached = trio.Event()
        self.open = trio.Event()

    async def __call__(self, kind: str, block: int, count: int) -> None:
        if kind == self.kind and block <= self.last and self.first < block + max(count, 1):
            self.reached.set()
            await self.open.wait()


@asynccontextmanager
async def held_up(
    namespace: RamNamespace, kind: str, first: int = 0, last: int = 2**62
) -> AsyncIterator[tuple[trio.Nursery, Gate]]:
    """A nursery for tasks that meet the gate. It opens when the body ends, however it ends."""
    async with trio.open_nursery() as nursery:
        gate = namespace.before = Gate(kind, first, last)
        try:
            yield nursery, gate
        finally:
            namespace.before = None
            gate.open.set()
