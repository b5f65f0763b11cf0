"""What waits on a queue pair: requests, their pieces, and when a failed one is worth repeating.

One awaited call is one Request of one or more Pieces; queues.py moves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import trace
from ._core import ffi, lib

if TYPE_CHECKING:
    import trio

    from .errors import DriverError
    from .memory import DmaBuffer


def worth_repeating(status: int) -> bool:
    """Whether a failed command may succeed when sent again: DNR clear and the cause transient."""
    if status & 0x4000:
        return False
    sct, sc = status >> 8 & 7, status & 0xFF
    if status >> 11 & 3:  # CRD: the controller names a delay
        return True
    if sct == 0:
        return sc in (0x04, 0x06, 0x08, 0x21, 0x22, 0x24, 0x82, 0x84)
    if sct == 2:
        return sc in (0x80, 0x81)
    return sct == 3


class Request:
    """One awaited call. `result` is dword 0 of the last completion."""

    __slots__ = ("abandoned", "error", "number", "pending", "result", "task")

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.result = 0
        self.error: DriverError | None = None
        self.task: trio.lowlevel.Task | None = None
        self.abandoned = False
        self.number = trace.request_number.get() if trace.enabled else 0


class Piece:
    """One command, with all that is needed to send it again."""

    __slots__ = (
        "aborted",
        "attempts",
        "command",
        "count",
        "holds",
        "iova",
        "nbytes",
        "request",
        "segments",
        "timeout_ns",
    )

    def __init__(
        self,
        command: bytes,
        iova: int = 0,
        nbytes: int = 0,
        holds: tuple[DmaBuffer, ...] = (),
        segments: Any = None,
        timeout_ns: int | None = None,
    ) -> None:
        self.command = command
        self.timeout_ns = timeout_ns  # None: the queue pair's; 0: no deadline
        self.iova = iova
        self.nbytes = nbytes
        self.segments = segments  # a cffi array of struct nv_segment instead of iova and nbytes
        self.count = len(segments) if segments is not None else 0
        self.holds = holds
        self.attempts = 0
        self.aborted = False
        self.request: Request = Request(1)

    @classmethod
    def scattered(
        cls, command: bytes, parts: Iterable[tuple[int, int]], holds: tuple[DmaBuffer, ...]
    ) -> Piece:
        """A command whose buffer is several (iova, nbytes) parts."""
        return cls(command, holds=holds, segments=ffi.new("struct nv_segment[]", list(parts)))


@dataclass(frozen=True)
class QueueStatistics:
    """Counters since the queue pair was made, and what is in it now. Times in nanoseconds."""

    qid: int
    depth: int
    vector: int | None
    inflight: int
    backlog: int
    parked: int
    submitted: int
    completed: int
    failed: int
    retried: int
    polled: int
    poll_misses: int
    doorbells: int
    doorbells_saved: int
    kicks: int
    bad_completions: int
    lost_interrupts: int
    timeouts: int
    latency_ns: dict[str, dict[str, int]]


def latency_summary(histogram: Any) -> dict[str, int]:
    """A struct nv_histogram in a few numbers, nanoseconds each but the count."""

    def at(share_1e5: int) -> int:
        return int(lib.nv_histogram_percentile(ffi.addressof(histogram), share_1e5))

    count = int(lib.nv_histogram_count(ffi.addressof(histogram)))
    return {
        "count": count,
        "mean": int(histogram.sum) // count if count else 0,
        "p50": at(50_000),
        "p99": at(99_000),
        "p999": at(99_900),
        "max": int(histogram.max),
    }
