"""The drive as the filesystem sees it: 4 KiB blocks, a volatile cache to flush, errors as DeviceFailed.

Below: a `driver.Namespace`.  Above: cache (metadata), journal, file (data), and the offline tools.

    async with open_device("file:disk.img") as device:
        data = await device.read(16)                 4,096 bytes
        await device.write(4096, data)               may still be in the drive's volatile cache
        await device.flush()                         now it is not
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

import driver
from driver import trace
from nvmefs._core import ffi, lib
from nvmefs.errors import DeviceFailed
from nvmefs.layout import BLOCK_BYTES, GROUP_ALIGNMENT, Buffer

Data = Buffer | driver.DmaBuffer  # of DMA memory no copy is made


class NamespaceLike(Protocol):
    """What is asked of a namespace; `driver.Namespace` has more."""

    nsid: int
    lba_bytes: int
    lba_count: int
    max_transfer_bytes: int
    volatile_write_cache: bool
    dma: Any
    on_change: list[Callable[[Any], None]]

    async def read(self, lba: int, buffer: Any) -> None: ...
    async def write(self, lba: int, data: Any, *, fua: bool = False) -> None: ...
    async def flush(self) -> None: ...
    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    async def rescan(self) -> None: ...
    async def write_zeroes(self, lba: int, count: int, *, deallocate: bool = True) -> None: ...


class Device:
    """A namespace in blocks of 4,096 bytes.

    `block_count` is what fits whole; `alignment_blocks` what large writes best begin at a multiple of.
    Every method raises DeviceFailed when the drive reports an error or is gone.

    Completed writes are counted, so that a caller can ask for just the flush it needs:
    `ticket = device.written` after a write, later `await device.flush_through(ticket)`.
    """

    def __init__(
        self,
        namespace: NamespaceLike,
        description: str,
        *,
        fua: bool = True,
        controller: driver.Controller | None = None,
    ) -> None:
        self.namespace = namespace
        self.controller = controller
        self.description = description
        self.lba_bytes = namespace.lba_bytes
        self.lbas_per_block = BLOCK_BYTES // namespace.lba_bytes
        self.alignment_blocks = _alignment_bytes(namespace) // BLOCK_BYTES
        self.fua = fua
        self.ledger: Any = ffi.gc(lib.ledger_new(), lib.ledger_free)
        self.flush_commands = 0

    @property
    def block_count(self) -> int:
        """A namespace may grow while it is in use."""
        return self.namespace.lba_count // self.lbas_per_block

    @property
    def written(self) -> int:
        """Writes that have completed: ours, and those of the front end's own queue pairs."""
        return int(lib.ledger_written(self.ledger))

    @property
    def has_volatile_cache(self) -> bool:
        return self.namespace.volatile_write_cache

    @property
    def supports_discard(self) -> bool:
        return bool(getattr(self.namespace, "supports_deallocate", True))

    async def read(
        self, block: int, count: int = 1, skip: int = 0, length: int | None = None
    ) -> bytes:
        """`count` blocks from `block` on, or `length` bytes of them after the first `skip`."""
        end = count * BLOCK_BYTES if length is None else skip + length
        with await self.namespace.dma.allocate_wait(count * BLOCK_BYTES) as buffer:
            await self.read_into(block, buffer)
            return bytes(buffer.view[skip:end])

    async def read_into(self, block: int, buffer: Any) -> None:
        """Fill `buffer` (a multiple of 4,096 bytes; DMA memory is not copied) from `block` on."""
        if trace.enabled:
            trace.hop("device.read", block=block, blocks=len(buffer) // BLOCK_BYTES)
        try:
            await self.namespace.read(block * self.lbas_per_block, buffer)
        except driver.DriverError as error:
            raise DeviceFailed(f"reading block {block}: {error}") from error

    async def write(self, block: int, data: Buffer | Any, *, fua: bool = False) -> None:
        """Write `data` (a multiple of 4,096 bytes) from `block` on.

        With `fua` it is durable on return: by Force Unit Access, or by a Flush where that is not honoured.
        Not cancellable: the command would go on, and its blocks might be another's when it is done.
        """
        if trace.enabled:
            trace.hop("device.write", block=block, blocks=len(data) // BLOCK_BYTES, fua=fua)
        try:
            with trio.CancelScope(shield=True):
                await self.namespace.write(block * self.lbas_per_block, data, fua=fua and self.fua)
        except driver.DriverError as error:
            raise DeviceFailed(f"writing block {block}: {error}") from error
        if not fua:
            lib.ledger_wrote(self.ledger)
        elif not self.fua:
            lib.ledger_wrote(self.ledger)
            await self.flush()

    async def flush(self) -> None:
        """Make every write that has completed durable."""
        await self.flush_through(self.written)

    async def flush_through(self, ticket: int) -> None:
        """Make the writes up to `ticket` (a value `written` had) durable; no command if they are.

        A failure is final: nobody knows what the cache has lost, whatever a later Flush says.
        """
        if not self.has_volatile_cache or lib.ledger_flushed(self.ledger) >= ticket:
            return
        if lib.ledger_failed(self.ledger):
            raise DeviceFailed("flushing the write cache: it has failed before")
        covered = self.written
        if trace.enabled:
            trace.hop("device.flush")
        try:
            await self.namespace.flush()
        except driver.DriverError as error:
            lib.ledger_fail(self.ledger)
            raise DeviceFailed(f"flushing the write cache: {error}") from error
        self.flush_commands += 1
        lib.ledger_cover(self.ledger, covered)

    async def rescan(self) -> None:
        """Ask how large the namespace is now; also an image file that has grown is noticed."""
        try:
            await self.namespace.rescan()
        except driver.DriverError as error:
            raise DeviceFailed(f"looking at the namespace again: {error}") from error

    async def discard(self, runs: Sequence[tuple[int, int]]) -> None:
        """Tell the drive that the blocks of `runs` (block, count) hold nothing any more.

        Not cancellable, as write.
        """
        scale = self.lbas_per_block
        try:
            with trio.CancelScope(shield=True):
                await self.namespace.deallocate(
                    [(block * scale, count * scale) for block, count in runs]
                )
        except driver.DriverError as error:
            raise DeviceFailed(f"discarding {len(runs)} runs of blocks: {error}") from error


def _alignment_bytes(namespace: NamespaceLike) -> int:
    """What large writes best begin at a multiple of: NPWG, NPWA, and NOIOB if groups can meet that too."""
    granularity, alignment, boundary = (
        getattr(namespace, f"{name}_bytes", 0) or BLOCK_BYTES
        for name in ("write_granularity", "write_alignment", "boundary")
    )
    preferred = math.lcm(BLOCK_BYTES, granularity, alignment)
    at_boundary = math.lcm(preferred, boundary)
    return preferred if GROUP_ALIGNMENT * BLOCK_BYTES % at_boundary else at_boundary


@asynccontextmanager
async def open_device(spec: str, *, fua: bool = True, **options: Any) -> AsyncIterator[Device]:
    """The device at `spec` (see driver.address), closed in order at the end.

    `options` are those of driver.DriverOptions. Raises driver.DriverError.
    """
    controller = await driver.open_controller(spec, options=driver.DriverOptions(**options))
    try:
        namespace = await controller.namespace()
        yield Device(namespace, spec, fua=fua, controller=controller)
    finally:
        await controller.close()
