"""Bugs to be put into the driver on purpose, each with rules under which the campaign must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from driver import CommandTimeout, DmaBuffer, commands, queues
from driver.queues import QueuePair
from driver.recovery import Watchdog
from driver.requests import Piece, worth_repeating
from driver.rings import Ring

Patch = Callable[[object, str, Any], None]


@dataclass(frozen=True)
class Bug:
    """What is wrong, how to make it so (with pytest's monkeypatch.setattr), and when it shows."""

    name: str
    plant: Callable[[Patch], None]
    rules: tuple[str, ...]
    cuts: float = 0.12


def _buffers_are_not_held(patch: Patch) -> None:
    """Memory goes back to the pool while a command still owns it."""
    patch(DmaBuffer, "hold", lambda _self: None)
    patch(DmaBuffer, "unhold", lambda _self: None)


def _dnr_is_ignored(patch: Patch) -> None:
    honest = worth_repeating
    patch(queues, "worth_repeating", lambda status: honest(status & ~0x4000))


def _abort_is_taken_for_the_end(patch: Patch) -> None:
    """A command whose Abort succeeded is over, whether or not it has completed."""
    honest = Watchdog._abort

    async def abort(self: Watchdog, queue: Ring, cid: int) -> None:
        assert isinstance(queue, QueuePair)
        piece = queue.piece(cid)
        await honest(self, queue, cid)
        if piece is not None and piece in queue._pieces:
            queue._pieces[queue._pieces.index(piece)] = None
            for buffer in piece.holds:
                buffer.unhold()
            queue.lose(piece, CommandTimeout("aborted"))

    patch(Watchdog, "_abort", abort)


def _reset_finishes(patch: Patch, opcode: int) -> None:
    """Commands that were in flight at a reset pass for done."""
    honest = QueuePair.take_inflight

    def take(self: QueuePair) -> list[Piece]:
        again = []
        for piece in honest(self):
            if self.qid and piece.command[0] == opcode and not piece.aborted:
                self._settle(piece.request)
            else:
                again.append(piece)
        return again

    patch(QueuePair, "take_inflight", take)


def _reset_forgets_the_backlog(patch: Patch) -> None:
    honest = QueuePair.resume
    patch(QueuePair, "resume", lambda self, _pieces=(): honest(self))


def _reset_leaks_holds(patch: Patch) -> None:
    honest = QueuePair.take_inflight

    def take(self: QueuePair) -> list[Piece]:
        for piece in self._pieces:
            if piece is not None:
                for buffer in piece.holds:
                    buffer.hold()
        return honest(self)

    patch(QueuePair, "take_inflight", take)


def _nobody_watches(patch: Patch) -> None:
    async def watch(_self: Watchdog) -> None:
        await trio.sleep_forever()

    patch(Watchdog, "watch", watch)


BUGS = [
    Bug("buffers are not held", _buffers_are_not_held, ("io p=0.5 delay=5ms",)),
    Bug("DNR is ignored", _dnr_is_ignored, ("io:write nth=1 status=0x280 dnr",)),
    Bug(
        "Abort is taken for the end",
        _abort_is_taken_for_the_end,
        ("admin:abort lost", "io every=3 delay=35ms"),
    ),
    Bug(
        "a flush passes for done at a reset",
        lambda patch: _reset_finishes(patch, commands.Io.FLUSH),
        ("io:read nth=1 drop", "io:flush limit=3 never"),
        cuts=1.0,
    ),
    Bug(
        "a read passes for done at a reset",
        lambda patch: _reset_finishes(patch, commands.Io.READ),
        ("io:write nth=1 drop", "io:read limit=3 never"),
    ),
    Bug(
        "a write passes for done at a reset",
        lambda patch: _reset_finishes(patch, commands.Io.WRITE),
        ("io:read nth=1 drop", "io:write limit=3 never"),
    ),
    Bug(
        "a reset forgets what was in flight",
        _reset_forgets_the_backlog,
        ("io nth=1 drop", "io limit=3 never"),
    ),
    Bug("a reset leaks buffers", _reset_leaks_holds, ("io nth=1 drop",)),
    Bug("no deadline is watched", _nobody_watches, ("io nth=3 drop",)),
]
