"""A guard over DMA memory that was given back: who writes to it afterwards is found.

Freed pages are filled with a pattern, which must be there when they are handed out again or looked at. A
controller that reads freed pages stores the pattern, which no test writes: the oracle finds it in the blocks.
"""

from __future__ import annotations

from driver.memory import DmaBuffer, DmaPool

POISON = 0xDD


class FreedMemoryTouched(AssertionError):
    """Memory was written after it had been given back to the pool."""


class Guard:
    """Watches one pool from now on."""

    def __init__(self, pool: DmaPool) -> None:
        self._pool = pool
        self._page = bytes([POISON]) * pool.page_bytes
        self._free: set[tuple[int, int]] = set()  # region, first byte
        self._buffer, self._give_back = pool._buffer, pool._give_back
        pool._buffer = self._take  # type: ignore[method-assign]
        pool._give_back = self._release  # type: ignore[method-assign]

    def _take(self, run: tuple[int, int], order: int, nbytes: int) -> DmaBuffer:
        region, first = run
        for at in range(first, first + (self._pool.page_bytes << order), self._pool.page_bytes):
            if (region, at) in self._free:
                self._check(region, at)
                self._free.discard((region, at))
        return self._buffer(run, order, nbytes)

    def _release(self, buffer: DmaBuffer) -> None:
        if not self._pool._closed:
            region, first, order = self._pool._where[buffer.iova]
            view, step = self._pool._regions[region].view, self._pool.page_bytes
            for at in range(first, first + (step << order), step):
                view[at : at + step] = self._page
                self._free.add((region, at))
        self._give_back(buffer)

    def _check(self, region: int, at: int) -> None:
        page = self._pool._regions[region].view[at : at + self._pool.page_bytes]
        if bytes(page) != self._page:  # a memoryview would be compared byte by byte
            iova = self._pool._regions[region].iova + at
            raise FreedMemoryTouched(f"the page at IOVA {iova:#x} was written after its release")

    def check(self) -> None:
        """Looks at all freed pages. Raises FreedMemoryTouched."""
        for region, at in self._free:
            self._check(region, at)
