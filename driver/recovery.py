"""Deadlines, and what is done when one passes: the ladder.

    1. look at the completion queue once more: an interrupt may have been lost 2. Abort, and a
    grace time for it to work (once per command) 3. reset the controller; the command that ran out
    of time fails with CommandTimeout, everything else
       in flight is sent again (reads, writes, flushes and the rest of the NVM command set have
       the same effect twice)
    4. give the controller up: everything fails with ControllerFailed or ControllerGone, and
    memory that
       the device may still write stays untouched

One task watches all queue pairs of a controller. It sleeps without a timer while nothing is in
flight; otherwise it looks at an eighth of the shortest deadline, at most once a second.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from . import commands
from .errors import CommandError, CommandTimeout, ControllerFailed, DriverError

if TYPE_CHECKING:
    from .controller import Controller
    from .queues import QueuePair
    from .requests import Piece

_log = logging.getLogger("nvmefs.driver")

_SHORTEST_TICK_S = 0.005
_LONGEST_TICK_S = 1.0
_LONGEST_GRACE_NS = 2_000_000_000
_MAX_RESETS = 3  # in a row, without a command completed between them


class Watchdog:
    """Watches the deadlines of one controller's queue pairs."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._sleeping: trio.lowlevel.Task | None = None
        self.resets = 0
        self.aborts = 0
        self._resets_in_vain = 0
        self._completed = 0

    def poke(self) -> None:
        """Something with a deadline may be in flight now."""
        if self._sleeping is not None:
            trio.lowlevel.reschedule(self._sleeping)
            self._sleeping = None

    async def watch(self) -> None:
        """The task; runs until cancelled."""
        while True:
            deadlines = [q.timeout_ns for q in self._controller.queues if q.timeout_ns and q.busy]
            if not deadlines:
                await self._sleep()
                continue
            tick_s = min(deadlines) / 8e9
            await trio.sleep(min(max(tick_s, _SHORTEST_TICK_S), _LONGEST_TICK_S))
            for queue in self._controller.queues:
                late = queue.expired()
                if late:
                    await self._climb(queue, late)

    async def _sleep(self) -> None:
        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._sleeping = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sleeping = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _climb(self, queue: QueuePair, late: list[tuple[int, Piece]]) -> None:
        found = queue.reap()
        if found:
            queue.lost_interrupts += 1
            late = queue.expired()
            if not late:
                return
        queue.timeouts += len(late)
        self._controller.hardware.check_alive()
        if not self._controller.started:
            name = commands.opcode_name(late[0][1].command, queue.qid == 0)
            raise ControllerFailed(
                f"{queue.where}: {name} did not complete within {queue.timeout_ns / 1e9:g} s while "
                "the controller was brought up"
            )
        fresh = [(cid, piece) for cid, piece in late if not piece.aborted]
        if queue.qid == 0 or len(fresh) < len(late):
            # Those whose time is over only now are sent again with the innocent.
            await self._reset(queue, [it for it in late if it[1].aborted or queue.qid == 0])
            return
        grace_ns = min(_LONGEST_GRACE_NS, queue.timeout_ns)
        for cid, piece in fresh:
            piece.aborted = True
            queue.extend(cid, grace_ns)
        for cid, piece in fresh:
            await self._abort(queue, cid, piece, grace_ns)

    async def _abort(self, queue: QueuePair, cid: int, piece: Piece, grace_ns: int) -> None:
        name = commands.opcode_name(piece.command, queue.qid == 0)
        _log.warning(
            "%s: %s (queue %d, id %#06x) passed its deadline: aborting it",
            self._controller.where,
            name,
            queue.qid,
            cid,
        )
        self.aborts += 1
        with trio.move_on_after(grace_ns / 1e9):
            try:
                await self._controller.admin.submit(commands.abort(queue.qid, cid))
            except CommandError as error:
                _log.warning("%s: %s", self._controller.where, error)

    async def _reset(self, queue: QueuePair, late: list[tuple[int, Piece]]) -> None:
        controller = self._controller
        completed = sum(q.statistics().completed for q in controller.queues if q.qid)
        self._resets_in_vain = 1 + (self._resets_in_vain if completed == self._completed else 0)
        self._completed = completed
        text = ", ".join(
            commands.opcode_name(piece.command, queue.qid == 0) for _, piece in late[:4]
        )
        _log.error(
            "%s: %s on queue %d passed its deadline and Abort did not help: resetting",
            controller.where,
            text,
            queue.qid,
        )
        if self._resets_in_vain > _MAX_RESETS:
            raise ControllerFailed(
                f"{controller.where}: {_MAX_RESETS} resets in a row completed nothing: given up"
            )
        self.resets += 1
        expired = {id(piece) for _, piece in late}
        await controller.reset(lambda piece: self._verdict(queue, piece, expired))

    @staticmethod
    def _verdict(queue: QueuePair, piece: Piece, expired: set[int]) -> DriverError | None:
        """What a piece in flight fails with, or None: it is sent again."""
        if id(piece) in expired:
            name = commands.opcode_name(piece.command, queue.qid == 0)
            seconds = queue.timeout_ns / 1e9
            return CommandTimeout(
                f"{queue.where}: {name} did not complete within {seconds:g} s; controller reset"
            )
        return None
