"""Queue pairs: from an awaited call to ring entries and back.

Below: driver/core/ring.h (`_core`), which owns the rings, the ids and the PRPs; rings.py. Above:
namespace.py for I/O, controller.py for the admin queue.

    queues.submit       push, doorbell; alone: spin a little in C; else park the task
    queues.complete     the piece's request has one piece less; at none its task runs again

One awaited call is one Request of one or more Pieces (a transfer beyond the controller's limit
has several). Pieces that find the ring full wait in a backlog, first in first out. A Request
exists only when its task has to sleep: the common case, one small command and nothing else in
flight, is three calls of C.

Polling and concurrency: spinning in one task keeps the others from submitting, so it is done only
while this queue pair sees one command at a time. Every 32nd command parks all the same, to let
others show themselves (and to keep trio's other tasks alive); two in flight turn spinning off for
a while.

Cancellation: a cancelled task leaves at once. Its pieces not yet in the ring are dropped; those
in flight run to their end and hold their buffers until then (memory.py).

A queue pair belongs to the thread that runs trio; the C calls release Python's lock but not that
rule.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from . import trace
from ._core import ffi, lib
from .commands import opcode_name
from .errors import (
    CommandError,
    CommandTimeout,
    DriverError,
    InvalidRequest,
    TransportError,
)
from .requests import Piece, QueueStatistics, Request, worth_repeating
from .rings import Ring

if TYPE_CHECKING:
    from .memory import DmaBuffer

_log = logging.getLogger("nvmefs.driver")

_SLOT_MASK = 0xFFF
_PROBE_EVERY = 32  # polled commands between two that park
_CROWD = 16  # commands that park after two were seen in flight
_ABORT_REQUESTED = 0x07
_PUSH_ERRORS = {
    lib.NV_PRP_UNALIGNED: "a buffer that is not aligned to 4 bytes, or has a seam inside a page",
    lib.NV_PRP_TOO_LONG: "a buffer longer than the PRP list of this queue pair",
    lib.NV_PRP_EMPTY: "a buffer of no bytes",
}


class QueuePair(Ring):
    """A queue pair and the tasks that wait on it.

    `on_park` is called when a task goes to sleep, `on_broken` when a doorbell cannot be rung.
    """

    def __init__(self, qid: int, depth: int, *, retries: int, **ring: Any) -> None:
        super().__init__(qid, depth, **ring)
        self.retries = retries
        self.retry_delays_ms: tuple[int, int, int] = (0, 0, 0)
        self.resident = 0  # commands that stay in flight by design (asynchronous event requests)
        self.spawn: Callable[..., object] = trio.lowlevel.spawn_system_task
        self.on_park: Callable[[], None] = lambda: None
        self.on_broken: Callable[[DriverError], None] = lambda _error: None
        self.retried = 0
        self.parked = 0
        self._capacity = depth - 1
        self._pieces: list[Piece | None] = [None] * depth
        self._backlog: deque[Piece] = deque()
        self._delayed: list[Piece] = []
        self._stranded: list[Piece] = []
        self._by_message = ffi.new("int *")
        self._bad_seen = 0
        self._probe = _PROBE_EVERY
        self._crowd = 0
        self._suspended = False
        self._failure: DriverError | None = None

    @property
    def busy(self) -> bool:
        """Whether anything with a deadline is in flight or waits for a place."""
        return self.inflight > self.resident or bool(self._backlog)

    # ---- submission ----------------------------------------------------------------------------

    async def submit(
        self,
        command: bytes,
        iova: int = 0,
        nbytes: int = 0,
        holds: tuple[DmaBuffer, ...] = (),
        timeout_ns: int | None = None,
    ) -> int:
        """Sends one command with a buffer contiguous for the device; returns dword 0 of its
        completion.

        timeout_ns None: the queue pair's own; 0: none, and it is not polled for.
        Raises CommandError, CommandTimeout, ControllerFailed, ControllerGone.
        """
        if trace.enabled:
            trace.hop("queues.submit", qid=self.qid, opcode=command[0], nbytes=nbytes)
        ring = self._ring
        if self._failure is None and not self._suspended and not self._backlog:
            timeout = self.timeout_ns if timeout_ns is None else timeout_ns
            cid = lib.nv_ring_push(ring, command, iova, nbytes, timeout)
            if cid >= 0:
                if trace.enabled:
                    trace.hop("ring_push", cid=cid)
                    trace.hop("ring_doorbell", tail=ring.sq_tail)
                if lib.nv_ring_doorbell(ring):
                    self._tell(self._sq_register, ring.sq_tail)
                packed = -1 if timeout_ns == 0 else self._spin(cid)
                if packed >= 0 and not packed & 0xFFFF:
                    return packed >> 16
                piece = Piece(command, iova, nbytes, holds, timeout_ns=timeout_ns)
                if packed < 0:
                    self._own(piece, cid)
                else:
                    self._failed(piece, packed & 0xFFFF)
                return await self._finish(piece.request)
            if cid != lib.NV_RING_FULL:
                raise self._refusal(cid, command)
        piece = Piece(command, iova, nbytes, holds, timeout_ns=timeout_ns)
        self._enqueue((piece,), piece.request)
        return await self._finish(piece.request)

    async def submit_all(self, pieces: list[Piece]) -> None:
        """Sends several commands together and waits for all; the first error is raised at the
        end.
        """
        request = Request(len(pieces))
        if trace.enabled:
            for piece in pieces:
                trace.hop("queues.submit", qid=self.qid, opcode=piece.command[0])
        self._enqueue(pieces, request)
        await self._finish(request)

    def _spin(self, cid: int) -> int:
        """Waits in C if that is worth it. Returns status | result << 16, or -1: sleep."""
        ring = self._ring
        if self._capacity - ring.free_count - self.resident > 1:
            self._crowd = _CROWD
            return -1
        if self._crowd:
            self._crowd -= 1
            return -1
        self._probe -= 1
        if not self._probe:
            self._probe = _PROBE_EVERY
            return -1
        packed = int(lib.nv_ring_wait(ring, cid, self._by_message))
        if self._by_message[0]:
            self._tell(self._cq_register, ring.cq_head)
        if packed >= 0 and trace.enabled:
            trace.hop("ring_reap", cid=cid)
            trace.hop("queues.complete", cid=cid, status=packed & 0xFFFF)
        if ring.done_count:
            self._dispatch()
        return packed

    def _own(self, piece: Piece, cid: int) -> None:
        """The piece is in the ring from now on, under this id."""
        for buffer in piece.holds:
            buffer.hold()
        self._pieces[cid & _SLOT_MASK] = piece

    def _enqueue(self, pieces: Iterable[Piece], request: Request) -> None:
        if self._failure is not None:
            raise type(self._failure)(str(self._failure)) from self._failure
        for piece in pieces:
            piece.request = request
        self._backlog.extend(pieces)
        self._pump()

    def _pump(self) -> None:
        """Moves the backlog into the ring as far as it goes."""
        ring = self._ring
        backlog = self._backlog
        pushed = False
        number = 0
        while backlog and not self._suspended and ring.free_count:
            piece = backlog.popleft()
            number = piece.request.number
            timeout = self.timeout_ns if piece.timeout_ns is None else piece.timeout_ns
            if piece.segments is None:
                cid = lib.nv_ring_push(ring, piece.command, piece.iova, piece.nbytes, timeout)
            else:
                cid = lib.nv_ring_push_segments(
                    ring, piece.command, piece.segments, piece.count, timeout
                )
            if cid < 0:
                self.lose(piece, self._refusal(cid, piece.command))
                continue
            if trace.enabled:
                trace.hop_of(number, "ring_push", cid=cid)
            self._own(piece, cid)
            pushed = True
        if pushed:
            if trace.enabled:
                trace.hop_of(number, "ring_doorbell", tail=ring.sq_tail)
            if lib.nv_ring_doorbell(ring):
                self._tell(self._sq_register, ring.sq_tail)

    def _tell(self, register: int, value: int) -> None:
        """A doorbell by message."""
        try:
            self._transport.write32(register, value)
        except TransportError as error:
            self.on_broken(error)
            raise

    def _refusal(self, code: int, command: bytes) -> InvalidRequest:
        what = _PUSH_ERRORS.get(code, f"error {code}")
        return InvalidRequest(f"{self.where}: {opcode_name(command, self.qid == 0)} with {what}")

    # ---- waiting -------------------------------------------------------------------------------

    async def _finish(self, request: Request) -> int:
        """Parks until no piece of the request is left."""

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            request.task = None
            self._abandon(request)
            return trio.lowlevel.Abort.SUCCEEDED

        if request.pending:
            request.task = trio.lowlevel.current_task()
            self.parked += 1
            if self.vector is not None:
                self.vector.arm()
            self.on_park()
            try:
                await trio.lowlevel.wait_task_rescheduled(abort)
            finally:
                self.parked -= 1
        if request.error is not None:
            raise request.error
        return request.result

    def _abandon(self, request: Request) -> None:
        request.abandoned = True
        if any(piece.request is request for piece in self._backlog):
            self._backlog = deque(p for p in self._backlog if p.request is not request)

    # ---- completion ----------------------------------------------------------------------------

    def reap(self) -> int:
        """Takes what the controller has completed and wakes who waited. Returns how many."""
        ring = self._ring
        count = int(lib.nv_ring_reap(ring))
        if count & 0x80000000:
            self._tell(self._cq_register, ring.cq_head)
            count &= 0x7FFFFFFF
        if count:
            self._dispatch()
        if ring.bad_cid != self._bad_seen or ring.kick_errno:
            self._report()
        return count

    def _dispatch(self) -> None:
        ring = self._ring
        pieces = self._pieces
        done: list[tuple[Piece, int, int, int]] = []
        # All of them are taken out first: what is sent again below is given their ids.
        for d in ffi.unpack(ring.done, ring.done_count):
            piece = pieces[d.cid & _SLOT_MASK]
            if piece is not None:
                pieces[d.cid & _SLOT_MASK] = None
                done.append((piece, d.cid, d.status, d.result))
        ring.done_count = 0
        for piece, cid, status, result in done:
            for buffer in piece.holds:
                buffer.unhold()
            if trace.enabled:
                trace.hop_of(piece.request.number, "ring_reap", cid=cid)
                trace.hop_of(piece.request.number, "queues.complete", cid=cid, status=status)
            if status:
                self._failed(piece, status)
            else:
                piece.request.result = result
                self._settle(piece.request)
        if self._backlog:
            self._pump()

    def _settle(self, request: Request) -> None:
        request.pending -= 1
        if request.pending == 0 and request.task is not None:
            trio.lowlevel.reschedule(request.task)
            request.task = None

    def _failed(self, piece: Piece, status: int) -> None:
        """Sends the piece again, now or later, or lets its request fail."""
        request = piece.request
        name = opcode_name(piece.command, self.qid == 0)
        if request.abandoned:
            _log.debug("%s: %s failed after its waiter had left", self.where, name)
        elif piece.aborted and status & 0x7FF == _ABORT_REQUESTED:
            self._lose(
                request,
                CommandTimeout(f"{self.where}: {name} did not complete in time and was aborted"),
            )
        elif piece.attempts < self.retries and worth_repeating(status):
            piece.attempts += 1
            self.retried += 1
            delay = status >> 11 & 3
            delay_ms = self.retry_delays_ms[delay - 1] if delay else 0
            if delay_ms:
                self._delayed.append(piece)
                self.spawn(self._later, piece, delay_ms)
            else:
                self._backlog.append(piece)
                self._pump()
            return
        else:
            self._lose(request, CommandError(status, f"{self.where}: {name}"))
        self._settle(request)

    @staticmethod
    def _lose(request: Request, error: DriverError) -> None:
        if request.error is None:
            request.error = error

    async def _later(self, piece: Piece, delay_ms: int) -> None:
        """A command retry delay: the controller asked not to be asked at once."""
        await trio.sleep(delay_ms / 1000)
        if piece not in self._delayed:
            return  # failed with everything else meanwhile
        self._delayed.remove(piece)
        if not piece.request.abandoned:
            self._backlog.append(piece)
            self._pump()

    def _report(self) -> None:
        ring = self._ring
        if ring.bad_cid != self._bad_seen:
            _log.warning(
                "%s: the controller completed %d commands that are not in flight (last id %#06x)",
                self.where,
                ring.bad_cid - self._bad_seen,
                ring.last_bad_cid,
            )
            self._bad_seen = ring.bad_cid
        if ring.kick_errno:
            ring.kick_errno = 0
            self.on_broken(
                TransportError(f"{self.where}: the doorbell's eventfd cannot be written")
            )

    # ---- deadlines, reset, failure -------------------------------------------------------------

    def overdue(self) -> dict[int, int]:
        """Looks at the deadlines: commands that have missed some, after one more look at the
        completions: id -> how many deadlines.
        """
        ring = self._ring
        if not lib.nv_ring_due(ring, lib.nv_now_ns()):
            return {}
        if self.reap():
            ring.lost_interrupts += 1
        lib.nv_ring_overdue(ring, lib.nv_now_ns(), self.grace_ns)
        return self.late()

    def piece(self, cid: int) -> Piece | None:
        """The piece in flight under this id."""
        return self._pieces[cid & _SLOT_MASK]

    def name_of(self, cid: int) -> str:
        piece = self.piece(cid)
        return "command" if piece is None else opcode_name(piece.command, self.qid == 0)

    def suspend(self) -> None:
        """Sends nothing any more; what is submitted waits in the backlog."""
        self._suspended = True

    def take_inflight(self) -> list[Piece]:
        """For a reset, after the controller was disabled: forgets the ring's content, gives back
        what was in flight (with its buffers no longer held).
        """
        pieces = [piece for piece in self._pieces if piece is not None]
        self._pieces = [None] * self.depth
        for piece in pieces + self._stranded:
            for buffer in piece.holds:
                buffer.unhold()
        self._stranded.clear()
        lib.nv_ring_reset(self._ring)
        return [piece for piece in pieces if not piece.request.abandoned]

    def lose(self, piece: Piece, error: DriverError) -> None:
        """One piece will not be sent again."""
        self._lose(piece.request, error)
        self._settle(piece.request)

    def resume(self, pieces: Iterable[Piece] = ()) -> None:
        """After a reset: sends these again, then the backlog. Not those whose waiter has left
        meanwhile: nothing held their buffers.
        """
        self._suspended = False
        wanted = [piece for piece in pieces if not piece.request.abandoned]
        self._backlog.extendleft(reversed(wanted))
        self._pump()

    def fail(self, error: DriverError) -> None:
        """Everything waiting fails, now and later. Buffers of commands in flight stay held: the
        device may still write to them until it was reset.
        """
        if self._failure is not None:
            return
        self._failure = error
        inflight = [piece for piece in self._pieces if piece is not None]
        self._stranded += inflight
        self._pieces = [None] * self.depth
        waiting = inflight + list(self._backlog) + self._delayed
        self._backlog.clear()
        self._delayed.clear()
        for piece in waiting:
            self._lose(piece.request, type(error)(str(error)))
            self._settle(piece.request)

    def release(self) -> None:
        """As for any ring; what was in flight lets go of its buffers."""
        for piece in self._stranded:
            for buffer in piece.holds:
                buffer.unhold()
        self._stranded.clear()
        super().release()

    def statistics(self) -> QueueStatistics:
        """A snapshot."""
        return replace(
            super().statistics(),
            backlog=len(self._backlog),
            parked=self.parked,
            retried=self.retried,
        )
