"""Who works on which blocks of a file: many readers or one writer of any block, writers apart do not wait.

A read holds its blocks until its data has arrived, so a truncation cannot free them meanwhile; two writes of
one partly written block follow each other. The free case costs two list operations and no await.

    await inode.ranges.acquire(first, last, exclusive=True)
    try: ...
    finally: inode.ranges.release(first, last, exclusive=True)
"""

from __future__ import annotations

from collections import deque

import trio

END = 2**52  # behind the last block that a file can have


class RangeLock:
    """Locks on inclusive ranges of block numbers. Waiters are served in the order in which they came."""

    __slots__ = ("_held", "_waiters")

    def __init__(self) -> None:
        self._held: list[tuple[int, int, bool]] = []
        self._waiters: deque[tuple[tuple[int, int, bool], trio.lowlevel.Task]] | None = None

    @property
    def busy(self) -> bool:
        return bool(self._held) or bool(self._waiters)

    @property
    def exclusive(self) -> bool:
        """Whether any range is held exclusively."""
        return any(each[2] for each in self._held)

    async def acquire(self, first: int, last: int, *, exclusive: bool) -> None:
        """Wait until nobody else's range conflicts, then hold this one. Cancellation holds nothing."""
        wanted = (first, last, exclusive)
        if not self._waiters and not self._conflicts(wanted):
            self._held.append(wanted)
            return
        if self._waiters is None:
            self._waiters = deque()
        entry = (wanted, trio.lowlevel.current_task())
        self._waiters.append(entry)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            assert self._waiters is not None
            self._waiters.remove(entry)
            self._grant()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def release(self, first: int, last: int, *, exclusive: bool) -> None:
        """Give back what `acquire` got."""
        self._held.remove((first, last, exclusive))
        if self._waiters:
            self._grant()

    def _grant(self) -> None:
        """Serve waiters from the front, up to the first that still has to wait."""
        while self._waiters:
            wanted, task = self._waiters[0]
            if self._conflicts(wanted):
                return
            self._waiters.popleft()
            self._held.append(wanted)
            trio.lowlevel.reschedule(task)

    def _conflicts(self, wanted: tuple[int, int, bool]) -> bool:
        first, last, exclusive = wanted
        return any(
            begin <= last and first <= end and (exclusive or other)
            for begin, end, other in self._held
        )
