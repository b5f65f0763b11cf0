"""Memory that the controller can read and write: regions, and buffers cut from them.

Regions are memfds, few and large (some transports allow 64), mapped here and into the
controller's address space at an IOVA inside the transport's ranges; a transport whose controller
reaches certain memory only gives them itself (MemoryOwner). Buffers are powers of two of
pages, contiguous for both sides, page aligned. Freed buffers are kept per size and joined with
their buddies only when a larger one is wanted. Regions live until the pool is closed.

    with pool.allocate(4096) as buffer:
        buffer.view[:5] = b"hello"
        await namespace.write(0, buffer)

A buffer that was released while a command still owns it (its waiter was cancelled, or the command
timed out) goes back to the pool when that command is over, never before.

Below: a transport's map(). Above: queues.py (queue memory), namespace.py (bounce buffers), nvmefs
(cache).
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from ._core import ffi
from .errors import ControllerClosed, PoolExhausted
from .transports import MemoryOwner

if TYPE_CHECKING:
    from types import TracebackType

    from .transports import Transport


MIN_REGION_BYTES = 2 << 20
MAX_REGION_BYTES = 32 << 20
_LOWEST_IOVA = 1 << 20  # address 0 means "none" in a PRP; the first MiB is left alone with it


@dataclass(frozen=True)
class PoolStatistics:
    """All in bytes but the counts."""

    region_count: int
    region_bytes: int
    limit_bytes: int
    used_bytes: int
    peak_bytes: int
    buffers: int
    held_buffers: int  # released by their owner, still owned by a command
    waiters: int


class DmaBuffer:
    """Contiguous memory that both sides see, or a slice of such.

    `view`: writable memoryview of bytes. `iova`: where the controller sees the first byte. Slices
    (`buffer[512:1024]`) share the memory and its life: releasing one is an error, release the
    whole.
    """

    __slots__ = ("_free", "_holds", "_pool", "_root", "iova", "nbytes", "view")

    def __init__(self, pool: DmaPool, view: memoryview, iova: int, root: DmaBuffer | None) -> None:
        self.view = view
        self.iova = iova
        self.nbytes = len(view)
        self._pool = pool
        self._root = root
        self._holds = 0
        self._free = False

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, part: slice) -> DmaBuffer:
        first, last, step = part.indices(self.nbytes)
        if step != 1:
            raise ValueError("a slice of DMA memory has step 1")
        return DmaBuffer(self._pool, self.view[first:last], self.iova + first, self._root or self)

    def __enter__(self) -> DmaBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def root(self) -> DmaBuffer:
        """The allocation that this is a slice of, or itself."""
        return self._root or self

    @property
    def address(self) -> int:
        """The virtual address of the first byte, for C."""
        return int(ffi.cast("uintptr_t", ffi.from_buffer(self.view)))

    @property
    def busy(self) -> bool:
        """Whether a command may still read or write this memory."""
        return self.root._holds > 0

    def hold(self) -> None:
        """A command takes the memory: release() does not give it back before unhold()."""
        self.root._holds += 1

    def unhold(self) -> None:
        """The command is over."""
        root = self.root
        root._holds -= 1
        if root._free and root._holds == 0:
            root._pool._held.discard(root)
            root._pool._give_back(root)

    def release(self) -> None:
        """Gives the memory back; the views must not be used any more. A second call is an error."""
        if self._root is not None:
            raise ValueError("a slice cannot be released: release the buffer it was cut from")
        if self._free:
            raise ValueError("this DMA buffer has been released before")
        self._free = True
        if self._holds:
            self._pool._held.add(self)
        else:
            self._pool._give_back(self)


@dataclass
class _Region:
    fd: int
    memory: mmap.mmap
    view: memoryview
    iova: int
    nbytes: int


class DmaPool:
    """All DMA memory of one controller, at most limit_bytes of it."""

    def __init__(self, transport: Transport, limit_bytes: int, page_bytes: int = 4096) -> None:
        self._transport = transport
        self.limit_bytes = limit_bytes
        self.page_bytes = page_bytes
        self._regions: list[_Region] = []
        self._region_bytes = 0
        # Free runs by order (2^order pages): (region, first byte).
        self._free: list[list[tuple[int, int]]] = [[] for _ in range(40)]
        self._where: dict[int, tuple[int, int, int]] = {}  # iova -> region, first byte, order
        self._used_bytes = 0
        self._peak_bytes = 0
        self._held: set[DmaBuffer] = set()
        self._waiters: deque[trio.lowlevel.Task] = deque()
        self._ranges = [tuple(r) for r in transport.iova_ranges]
        self._next_iova = _LOWEST_IOVA
        self._closed = False

    # ---- allocation ----------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> DmaBuffer:
        """A page-aligned buffer of exactly nbytes, contents undefined; costs a power of two of
        pages.

        Raises PoolExhausted when the bound is reached: allocate_wait() waits instead.
        """
        order = self._order(nbytes)
        run = self._take(order)
        if run is None:
            raise PoolExhausted(
                f"DMA pool: no room for {nbytes} bytes: {self._used_bytes} of at most "
                f"{self.limit_bytes} are in use; raise the pool's limit or lower the concurrency"
            )
        return self._buffer(run, order, nbytes)

    async def allocate_wait(self, nbytes: int) -> DmaBuffer:
        """As allocate(), but waits, first come first served, until others have released enough.

        Raises PoolExhausted only when nbytes can never fit.
        """
        order = self._order(nbytes)
        if self.page_bytes << order > self.limit_bytes:
            raise PoolExhausted(
                f"DMA pool: {nbytes} bytes can never fit into a pool of {self.limit_bytes}"
            )
        if not self._waiters:
            run = self._take(order)
            if run is not None:
                return self._buffer(run, order, nbytes)
        woken = False
        while True:
            await self._park(first=woken)
            woken = True
            run = self._take(self._order(nbytes))
            if run is not None:
                self._wake_next()  # what was released may be enough for another one
                return self._buffer(run, order, nbytes)

    async def _park(self, *, first: bool) -> None:
        """Sleeps until something was released; a waiter that woke in vain stays the first one."""
        task = trio.lowlevel.current_task()

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._waiters.remove(task)
            self._wake_next()
            return trio.lowlevel.Abort.SUCCEEDED

        if first:
            self._waiters.appendleft(task)
        else:
            self._waiters.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake_next(self) -> None:
        if self._waiters:
            trio.lowlevel.reschedule(self._waiters.popleft())

    def _order(self, nbytes: int) -> int:
        if nbytes < 1:
            raise ValueError(f"a DMA buffer of {nbytes} bytes")
        if self._closed:
            raise ControllerClosed("DMA pool: the controller has been closed")
        return (-(-nbytes // self.page_bytes) - 1).bit_length()

    def _buffer(self, run: tuple[int, int], order: int, nbytes: int) -> DmaBuffer:
        region = self._regions[run[0]]
        first = run[1]
        iova = region.iova + first
        self._where[iova] = (run[0], first, order)
        self._used_bytes += self.page_bytes << order
        if self._used_bytes > self._peak_bytes:
            self._peak_bytes = self._used_bytes
        return DmaBuffer(self, region.view[first : first + nbytes], iova, None)

    def _give_back(self, buffer: DmaBuffer) -> None:
        if self._closed:
            return
        region, first, order = self._where.pop(buffer.iova)
        self._free[order].append((region, first))
        self._used_bytes -= self.page_bytes << order
        self._wake_next()

    def _take(self, order: int) -> tuple[int, int] | None:
        free = self._free[order]
        if free:
            return free.pop()
        return self._split(order) or self._join(order) or self._grow(order)

    def _split(self, order: int) -> tuple[int, int] | None:
        """Cuts the smallest larger run; the halves that are left over become free."""
        for larger in range(order + 1, len(self._free)):
            if self._free[larger]:
                region, first = self._free[larger].pop()
                while larger > order:
                    larger -= 1
                    self._free[larger].append((region, first + (self.page_bytes << larger)))
                return region, first
        return None

    def _join(self, order: int) -> tuple[int, int] | None:
        """Joins free buddies, smallest first, until a run of that order exists."""
        for k in range(order):
            nbytes = self.page_bytes << k
            runs = set(self._free[k])
            if len(runs) < 2:
                continue
            kept: list[tuple[int, int]] = []
            for region, first in sorted(runs):
                if (region, first) not in runs:
                    continue
                buddy = (region, first ^ nbytes)
                if buddy in runs:
                    runs -= {(region, first), buddy}
                    self._free[k + 1].append((region, min(first, buddy[1])))
                else:
                    kept.append((region, first))
            self._free[k] = kept
        return self._free[order].pop() if self._free[order] else self._split(order)

    # ---- regions -------------------------------------------------------------------------------

    def _grow(self, order: int) -> tuple[int, int] | None:
        need = self.page_bytes << order
        room = self.limit_bytes - self._region_bytes
        # Each region doubles the pool, between the smallest and the largest size: few and large.
        wish = max(need, min(max(self._region_bytes, MIN_REGION_BYTES), MAX_REGION_BYTES))
        nbytes = 1 << (wish - 1).bit_length()
        owner = self._transport if isinstance(self._transport, MemoryOwner) else None
        largest = owner.largest_dma_bytes if owner else room
        while nbytes > min(room, largest) and nbytes // 2 >= need:
            nbytes //= 2
        if nbytes > room:
            return None
        index = len(self._regions)
        self._regions.append(self._map(nbytes))
        self._region_bytes += nbytes
        top = (nbytes // self.page_bytes).bit_length() - 1
        self._free[top].append((index, 0))
        return self._free[order].pop() if top == order else self._split(order)

    def _map(self, nbytes: int) -> _Region:
        if isinstance(self._transport, MemoryOwner):
            return self._borrow(self._transport, nbytes)
        iova = self._iova(nbytes)
        fd = os.memfd_create("nvmefs-dma", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, nbytes)
            memory = mmap.mmap(fd, nbytes)
            self._transport.map(fd, 0, nbytes, iova)
        except BaseException:
            os.close(fd)
            raise
        return _Region(fd, memory, memoryview(memory), iova, nbytes)

    def _borrow(self, owner: MemoryOwner, nbytes: int) -> _Region:
        """A region of memory that is the transport's."""
        fd, offset, iova = owner.allocate_dma(nbytes)
        fd = os.dup(fd)
        try:
            memory = mmap.mmap(fd, nbytes, offset=offset)
        except BaseException:
            os.close(fd)
            raise
        return _Region(fd, memory, memoryview(memory), iova, nbytes)

    def _iova(self, nbytes: int) -> int:
        """The next free device address, aligned to the region's size (a power of two)."""
        for first, last in self._ranges:
            start = -(-max(first, self._next_iova) // nbytes) * nbytes
            if start + nbytes - 1 <= last:
                self._next_iova = start + nbytes
                return start
        raise PoolExhausted(
            f"{self._transport.address}: no device address left for {nbytes} bytes of DMA memory"
        )

    def translate(self, iova: int) -> memoryview:
        """The memory from a device address to the end of its region. Raises KeyError."""
        for region in self._regions:
            if region.iova <= iova < region.iova + region.nbytes:
                return region.view[iova - region.iova :]
        raise KeyError(hex(iova))

    def statistics(self) -> PoolStatistics:
        """A snapshot."""
        return PoolStatistics(
            region_count=len(self._regions),
            region_bytes=self._region_bytes,
            limit_bytes=self.limit_bytes,
            used_bytes=self._used_bytes,
            peak_bytes=self._peak_bytes,
            buffers=len(self._where),
            held_buffers=len(self._held),
            waiters=len(self._waiters),
        )

    def close(self) -> None:
        """Unmaps everything. The controller must be quiet: disabled, or gone. Idempotent.

        Views that somebody still has stay readable (the memory itself lives as long as they do).
        """
        if self._closed:
            return
        try:
            for region in self._regions:
                self._transport.unmap(region.iova, region.nbytes)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """As close(), without a word to the transport: it has been closed itself. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for region in self._regions:
            os.close(region.fd)
        self._regions.clear()
        while self._waiters:
            trio.lowlevel.reschedule(self._waiters.popleft())
