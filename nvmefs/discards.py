"""Telling the drive which blocks are free, behind the commits that freed them (`-o discard`).

Below: device.py, the allocator, which keeps the blocks held meanwhile.  Above: journal.py, filesystem.py.

    discards.add(runs)               no crash brings these blocks' old owners back
    await discards.drain()           all of them are discarded, and may be handed out

Nobody waits for a discard but who needs the space, and the unmount. `run` sends what has come together while
the last ones were under way; neighbours go as one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio

from nvmefs.allocator import Allocator
from nvmefs.device import Device
from nvmefs.errors import FsError

log = logging.getLogger("nvmefs")

AT_ONCE = 2048  # runs, in one turn: eight Dataset Management commands

Run = tuple[int, int]  # (first block, count)


class Discards:
    """Runs of blocks that are free, and held until the drive has been told."""

    def __init__(self, device: Device, allocator: Allocator) -> None:
        self.device = device
        self.allocator = allocator
        self.refused = not device.supports_discard
        self.discarded_blocks = 0
        self._waiting: list[Run] = []
        self._any = trio.Event()
        self._under_way: trio.Event | None = None

    def add(self, runs: Iterable[Run]) -> None:
        """Discard blocks that `Allocator.hold_freed` holds, some time, and release them then."""
        if self.refused:
            self._release(runs)
            return
        self._waiting += runs
        self._any.set()

    async def run(self) -> None:
        """Send them in the background, for ever."""
        while True:
            await self._any.wait()
            self._any = trio.Event()
            await self.drain()

    async def drain(self) -> None:
        """Return when all that were added are discarded and released. One turn runs at a time."""
        while self._under_way is not None or self._waiting:
            if self._under_way is not None:
                await self._under_way.wait()
                continue
            self._under_way = trio.Event()
            try:
                with trio.CancelScope(shield=True):
                    await self._turn()
            finally:
                self._under_way.set()
                self._under_way = None

    async def _turn(self) -> None:
        """Discards are advice: a drive that refuses them costs a line in the log, nothing more."""
        runs, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        try:
            if not self.refused:
                await self.device.discard(joined(runs))
                self.discarded_blocks += sum(count for _, count in runs)
        except FsError as error:
            log.warning("discard switched off: %s", error)
            self.refused = True
        finally:
            self._release(runs)

    def _release(self, runs: Iterable[Run]) -> None:
        """They may be handed out."""
        self.allocator.release_freed(runs)


def joined(runs: Iterable[Run]) -> list[Run]:
    """The same blocks in as few runs as possible, in ascending order."""
    result: list[Run] = []
    for start, count in sorted(runs):
        if result and result[-1][0] + result[-1][1] == start:
            result[-1] = (result[-1][0], result[-1][1] + count)
        else:
            result.append((start, count))
    return result
