"""Deadlines, and what is done when one passes: the ladder.

    1. look at the completion queue once more: an interrupt may have been lost
    2. Abort, and a grace time for it to work (once per command)
    3. reset the controller; the command that ran out of time fails with CommandTimeout, everything
       else in flight is sent again (reads, writes, flushes and the rest of the NVM command set have
       the same effect twice)
    4. give the controller up: everything fails with ControllerFailed or ControllerGone, and memory
       that the device may still write stays untouched

One task watches all queue pairs of a controller. It sleeps without a timer while nothing is in
flight; otherwise it looks at an eighth of the shortest deadline, at most once a second. The threads
in C look after the deadlines of their own queue pairs, take the first step themselves, and report
here (leases.py).
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import trio

from . import commands
from .errors import CommandError, CommandTimeout, ControllerFailed, DriverError
from .queues import QueuePair

if TYPE_CHECKING:
    from .controller import Controller
    from .requests import Piece
    from .rings import Ring

_log = logging.getLogger("nvmefs.driver")

_SHORTEST_TICK_S = 0.005
_LONGEST_TICK_S = 1.0
_MAX_RESETS = 3  # in a row, without a command completed between them
_ABORTS_AT_ONCE = 4  # what the specification recommends controllers to allow (ACL)


class Watchdog:
    """Watches the deadlines of one controller's queue pairs."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._sleeping: trio.lowlevel.Task | None = None
        self._idle = False
        self._reported = False
        self.resets = 0
        self.aborts = 0
        self._aborted: set[tuple[int, int]] = set()  # (queue, command) in flight
        self._resets_in_vain = 0
        self._completed = -1
        self._stalled_at = -1

    def poke(self) -> None:
        """Something with a deadline may be in flight now."""
        if self._idle:
            self._wake()

    def report(self) -> None:
        """A thread has something to say about its queue pair."""
        self._reported = True
        self._wake()

    def _wake(self) -> None:
        if self._sleeping is not None:
            trio.lowlevel.reschedule(self._sleeping)
            self._sleeping = None

    async def watch(self) -> None:
        """The task; runs until cancelled."""
        queues = self._controller.queue_set
        while True:
            deadlines = [q.timeout_ns for q in queues.tasks if q.timeout_ns and q.busy]
            self._idle = not deadlines
            if not self._reported:
                tick_s = min(deadlines) / 8e9 if deadlines else math.inf
                bound_s = max(min(tick_s, _LONGEST_TICK_S), _SHORTEST_TICK_S)
                await self._sleep(bound_s if deadlines else math.inf)
            if self._idle and not self._reported:
                continue  # something was sent just now
            self._reported = False
            self._look_for_life()
            for queue in queues.all:
                late = queue.overdue() if isinstance(queue, QueuePair) else queue.late()
                if late:
                    await self._climb(queue, late)

    async def _sleep(self, seconds: float) -> None:
        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._sleeping = None
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.move_on_after(seconds):
            self._sleeping = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    def _look_for_life(self) -> None:
        """Where nothing completes: a controller that is gone is not waited for until the deadline."""
        completed = sum(queue.completed for queue in self._controller.queue_set.all)
        if completed == self._stalled_at:
            self._controller.hardware.check_alive()
        self._stalled_at = completed

    async def _climb(self, queue: Ring, late: dict[int, int]) -> None:
        self._controller.hardware.check_alive()
        if not self._controller.started:
            raise ControllerFailed(
                f"{queue.where}: {queue.name_of(next(iter(late)))} did not complete within "
                f"{queue.timeout_ns / 1e9:g} s while the controller was brought up"
            )
        lost = [cid for cid, missed in late.items() if missed > 1 or queue.qid == 0]
        if lost:
            # Those whose time is over only now are sent again with the innocent.
            await self._reset(queue, lost)
            return
        self._aborted &= {(queue.qid, cid) for cid in late} | {
            key for key in self._aborted if key[0] != queue.qid
        }
        fresh = [cid for cid in late if (queue.qid, cid) not in self._aborted]
        with trio.move_on_after(queue.grace_ns / 1e9):
            for at in range(0, len(fresh), _ABORTS_AT_ONCE):
                async with trio.open_nursery() as nursery:
                    for cid in fresh[at : at + _ABORTS_AT_ONCE]:
                        nursery.start_soon(self._abort, queue, cid)

    async def _abort(self, queue: Ring, cid: int) -> None:
        _log.warning(
            "%s: %s (queue %d, id %#06x) passed its deadline: aborting it",
            self._controller.where,
            queue.name_of(cid),
            queue.qid,
            cid,
        )
        self.aborts += 1
        self._aborted.add((queue.qid, cid))
        piece = queue.piece(cid) if isinstance(queue, QueuePair) else None
        if piece is not None:
            piece.aborted = True
        try:
            await self._controller.admin.submit(commands.abort(queue.qid, cid))
        except CommandError as error:
            _log.warning("%s: %s", self._controller.where, error)

    async def _reset(self, queue: Ring, lost: list[int]) -> None:
        controller = self._controller
        completed = sum(q.completed for q in controller.queue_set.all[1:])
        self._resets_in_vain = 1 + (self._resets_in_vain if completed == self._completed else 0)
        self._completed = completed
        _log.error(
            "%s: %s on queue %d passed its deadline and Abort did not help: resetting",
            controller.where,
            ", ".join(queue.name_of(cid) for cid in lost[:4]),
            queue.qid,
        )
        if self._resets_in_vain > _MAX_RESETS:
            raise ControllerFailed(
                f"{controller.where}: {_MAX_RESETS} resets in a row completed nothing: given up"
            )
        self.resets += 1
        self._aborted.clear()
        pieces = (queue.piece(cid) for cid in lost) if isinstance(queue, QueuePair) else ()
        expired = {id(piece): queue.name_of(cid) for cid, piece in zip(lost, pieces, strict=False)}
        await controller.reset(lambda piece: self._verdict(queue, piece, expired))

    @staticmethod
    def _verdict(queue: Ring, piece: Piece, expired: dict[int, str]) -> DriverError | None:
        """What a piece in flight fails with, or None: it is sent again."""
        if id(piece) in expired:
            return CommandTimeout(
                f"{queue.where}: {expired[id(piece)]} did not complete within "
                f"{queue.timeout_ns / 1e9:g} s; controller reset"
            )
        return None
