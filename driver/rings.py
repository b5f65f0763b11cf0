"""The memory of one queue pair, its doorbells and its counters, whoever drives it.

Below: driver/core/queue.h (`_core`), memory.py. Above: queues.py, whose rings belong to the thread
that runs trio, and leases.py, whose rings belong to threads in C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import ffi, lib
from .commands import CQE_BYTES, SQE_BYTES
from .errors import ControllerError
from .requests import QueueStatistics, latency_summary

if TYPE_CHECKING:
    from .interrupts import Vector
    from .memory import DmaPool
    from .registers import Capabilities
    from .transports import Transport

_LONGEST_GRACE_NS = 2_000_000_000
KINDS = {"read": lib.NV_READ, "write": lib.NV_WRITE, "other": lib.NV_OTHER}
_NAMES = {number: name for name, number in KINDS.items()}


class Ring:
    """A submission and a completion queue in DMA memory, known to the controller as `qid`."""

    def __init__(
        self,
        qid: int,
        depth: int,
        *,
        pool: DmaPool,
        transport: Transport,
        capabilities: Capabilities,
        page_bytes: int,
        list_pages: int,
        timeout_ns: int,
        poll: str,
        poll_ns: int,
    ) -> None:
        self.qid = qid
        self.poll = poll  # see DriverOptions
        self.depth = depth
        self.timeout_ns = timeout_ns
        self.grace_ns = min(_LONGEST_GRACE_NS, timeout_ns)
        self.vector: Vector | None = None
        self.where = f"{transport.address}: queue {qid}"
        self._transport = transport
        self._sq_register = capabilities.sq_doorbell(qid)
        self._cq_register = capabilities.cq_doorbell(qid)
        self._memory = [
            pool.allocate(depth * SQE_BYTES),
            pool.allocate(depth * CQE_BYTES),
            pool.allocate((depth - 1) * list_pages * page_bytes),
        ]
        sq, cq, lists = self._memory
        self._ring = ffi.gc(
            lib.nv_ring_new(
                qid,
                depth,
                ffi.cast("void *", sq.address),
                ffi.cast("void *", cq.address),
                ffi.cast("void *", lists.address),
                lists.iova,
                list_pages,
                page_bytes,
            ),
            lib.nv_ring_free,
        )
        if self._ring == ffi.NULL:
            raise ControllerError(f"{self.where}: no memory for {depth} entries")
        self._lease: Any = ffi.addressof(self._ring, "lease")
        self._ring.poll_max_ns = 0 if poll == "never" else poll_ns
        self._map_doorbells()
        self._late = ffi.new("struct nv_late[]", depth)

    @property
    def sq_iova(self) -> int:
        """Where the controller finds the submission queue."""
        return self._memory[0].iova

    @property
    def cq_iova(self) -> int:
        """Where the controller finds the completion queue."""
        return self._memory[1].iova

    @property
    def ring_address(self) -> int:
        """The address of the struct nv_ring, for another extension that drives this queue pair."""
        return int(ffi.cast("uintptr_t", self._ring))

    @property
    def inflight(self) -> int:
        """Commands in the ring."""
        return int(self._ring.capacity - self._ring.free_count)

    @property
    def completed(self) -> int:
        """Commands that have completed so far, well or not."""
        return int(self._ring.completed)

    @property
    def sgl(self) -> int:
        """What it takes beside PRPs: NV_SGL_NONE, NV_SGL_BYTE or NV_SGL_DWORD (core/sgl.h)."""
        return int(self._ring.sgl)

    @sgl.setter
    def sgl(self, mode: int) -> None:
        self._ring.sgl = mode

    # ---- doorbells -----------------------------------------------------------------------------

    def _map_doorbells(self) -> None:
        page = self._transport.doorbells
        if page is None:
            return
        last = self._cq_register - 0x1000 + 4
        if last > page.length:
            return  # beyond what is mapped: by message
        for name, register in (("sq", self._sq_register), ("cq", self._cq_register)):
            pointer = ffi.cast("volatile uint32_t *", page.address + register - 0x1000)
            setattr(self._ring, f"{name}_doorbell", pointer)
        self._ring.kick_fd = page.kick_fd

    def set_shadow(self, shadow_address: int, event_address: int, stride_bytes: int) -> None:
        """Use shadow doorbells: two pages laid out as the doorbell registers are (0: no such
        page).
        """
        for name, index in (("sq", 2 * self.qid), ("cq", 2 * self.qid + 1)):
            offset = index * stride_bytes
            told = ffi.addressof(self._ring, f"{name}_rung")
            shadow = ffi.cast("volatile uint32_t *", shadow_address and shadow_address + offset)
            event = ffi.cast("volatile uint32_t *", event_address and event_address + offset)
            if shadow:
                shadow[0] = told[0]
            if event:
                event[0] = 0
            setattr(self._ring, f"{name}_shadow", shadow)
            setattr(self._ring, f"{name}_event", event or told)

    # ---- deadlines and the end -----------------------------------------------------------------

    def late(self) -> dict[int, int]:
        """Commands in flight that have missed deadlines: id -> how many. From any thread."""
        count = lib.nv_ring_late(self._ring, self._late, self.depth)
        return {each.cid: each.missed for each in ffi.unpack(self._late, count)}

    def name_of(self, cid: int) -> str:
        """What a late command is, for messages."""
        kinds = {each.cid: _NAMES[each.kind] for each in self._late[0 : self.depth]}
        return kinds.get(cid, "command")

    def extend_all(self) -> None:
        """Gives every command in flight that has a deadline its whole time again, from now."""
        if self.timeout_ns:
            lib.nv_ring_extend(self._ring, lib.nv_now_ns(), self.timeout_ns)

    def release(self) -> None:
        """Gives the memory back, after the controller was disabled or is gone."""
        # The views stay: the ring points there, and statistics() may still be asked for.
        for buffer in self._memory:
            buffer.release()

    def statistics(self) -> QueueStatistics:
        """A snapshot."""
        ring = self._ring
        return QueueStatistics(
            qid=self.qid,
            depth=self.depth,
            vector=None if self.vector is None else self.vector.index,
            inflight=self.inflight,
            backlog=0,
            parked=0,
            submitted=ring.submitted,
            completed=ring.completed,
            failed=ring.failed,
            retried=0,
            polled=ring.polled,
            poll_misses=ring.poll_misses,
            doorbells=ring.doorbells,
            doorbells_saved=ring.doorbells_saved,
            kicks=ring.kicks,
            bad_completions=ring.bad_cid,
            lost_interrupts=ring.lost_interrupts,
            timeouts=ring.timeouts,
            latency_ns={
                name: latency_summary(ring.latency_ns[kind]) for name, kind in KINDS.items()
            },
        )
