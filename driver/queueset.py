"""All queue pairs of a controller: how many, which vectors, made and deleted by admin commands.

    vectors     vector 0 is the admin queue's, the others go round among the I/O queues; with one
                vector all share it, with none everybody looks by himself
    negotiate   the number of I/O queues granted, the choice of events, shadow doorbells
    create      Create I/O Completion Queue, then Submission Queue
    lease       one more I/O queue pair, for a thread in C
    quiesce     no task and no thread touches a queue any more: before a reset
    resume      all of them again, after it
    delete      submission queues first

Below: queues.py, leases.py, interrupts.py. Above: controller.py.

NVM Express base specification 2.0, sections 3.3.1 (queues), 5.3-5.6 (their commands), 5.8 (Doorbell
Buffer Config), 5.27.1.5 (Number of Queues).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from . import commands
from .commands import Feature
from .errors import CommandError, ControllerError, ControllerGone, TransportError
from .interrupts import Vector
from .leases import Attention, LeasedQueue
from .queues import QueuePair
from .requests import Piece
from .rings import Ring

if TYPE_CHECKING:
    from .bringup import Hardware
    from .errors import DriverError
    from .identify import IdentifyController
    from .memory import DmaBuffer, DmaPool
    from .options import DriverOptions
    from .transports import Transport

_log = logging.getLogger("nvmefs.driver")

_AnyRing = TypeVar("_AnyRing", bound=Ring)


class QueueSet:
    """The queue pairs of one controller: `tasks` (the admin queue first) and `leased`.

    `shadow_doorbells`: whether they are in use.
    """

    def __init__(
        self, transport: Transport, options: DriverOptions, hardware: Hardware, dma: DmaPool
    ) -> None:
        self.where = transport.address
        self.granted = 0
        self._resets = 0
        self._being_made: set[int] = set()
        self.tasks: list[QueuePair] = []
        self.leased: list[LeasedQueue] = []
        self.attention = Attention()
        self._transport = transport
        self._options = options
        self._hardware = hardware
        self._dma = dma
        self._identify: IdentifyController | None = None
        self._shadow: tuple[DmaBuffer, DmaBuffer] | None = (
            None  # kept once the controller has seen it
        )
        self.shadow_doorbells = False
        self.vectors = self._make_vectors()
        self.admin = self._make(QueuePair, 0, options.admin_depth, retries=options.retries)

    @property
    def all(self) -> list[Ring]:
        """Every queue pair, the admin queue first."""
        return [*self.tasks, *self.leased]

    # ---- vectors -------------------------------------------------------------------------------

    def _make_vectors(self) -> list[Vector]:
        poll = self._options.poll == "always"
        count = 0 if poll else min(self._transport.vectors, 1 + self._options.io_queues)
        if count < 1:
            return [Vector(0, interrupts=False, always=True, restless=poll)]
        return [Vector(i, always=i == 0) for i in range(count)]

    def enable_interrupts(self) -> None:
        """As many vectors as the system gives, half as many each time it refuses. Raises ControllerGone."""
        while self.vectors[0].fd >= 0:
            try:
                self._transport.enable_interrupts([vector.fd for vector in self.vectors])
                return
            except ControllerGone:
                raise
            except TransportError as error:
                left = len(self.vectors) // 2
                _log.warning("%s: %s; trying %d", self.where, error, left)
            for vector in self.vectors[left:]:
                vector.close()
            self.vectors = self.vectors[:left] or [Vector(0, interrupts=False, always=True)]

    def _vector(self, qid: int) -> Vector:
        if qid == 0 or len(self.vectors) == 1:
            return self.vectors[0]
        return self.vectors[1 + (qid - 1) % (len(self.vectors) - 1)]

    # ---- making --------------------------------------------------------------------------------

    def _make(self, kind: type[_AnyRing], qid: int, depth: int, **more: int) -> _AnyRing:
        options, page_bytes = self._options, self._hardware.page_bytes
        # PRP entries beyond the first page of the longest transfer at the worst offset.
        entries = max(options.max_transfer_bytes // page_bytes, 1)
        per_page = page_bytes // 8
        pages = 1 if entries <= per_page else -(-(entries - 1) // (per_page - 1))
        return kind(
            qid,
            depth,
            pool=self._dma,
            transport=self._transport,
            capabilities=self._hardware.capabilities,
            page_bytes=page_bytes,
            list_pages=pages if qid else 1,
            timeout_ns=options.deadline_ns(self._identify if qid else None),
            poll=options.poll,
            poll_ns=options.poll_ns,
            **more,
        )

    def adopt(self, queue: QueuePair) -> bool:
        """Tasks may use it from now on. True: its vector has no other yet, and wants watching."""
        queue.vector = self._vector(queue.qid)
        queue.vector.queues.append(queue)
        self.tasks.append(queue)
        return len(queue.vector.queues) == 1

    def make_io(self) -> QueuePair:
        """The I/O queue pair of the tasks, not yet created on the controller."""
        depth = min(self._options.queue_depth, self._hardware.capabilities.max_queue_entries)
        return self._make(QueuePair, 1, depth, retries=self._options.retries)

    async def lease(self, depth: int | None, *, interrupts: bool) -> LeasedQueue:
        """A new I/O queue pair for a thread. Raises ControllerError when none was granted any more."""
        taken = {queue.qid for queue in self.leased} | self._being_made
        qid = next(qid for qid in range(2, 65537) if qid not in taken)
        if qid > self.granted:
            raise ControllerError(
                f"{self.where}: {self.granted} I/O queues were granted, all are in use"
            )
        limit = self._hardware.capabilities.max_queue_entries
        queue = self._make(LeasedQueue, qid, min(depth or self._options.queue_depth, limit))
        if interrupts:
            queue.vector = self._vector(qid)
            queue.vector.threads += 1
        queue.attach(self.attention, queue.vector.fd if queue.vector else -1)
        self._being_made.add(qid)
        try:
            await self._create_once(queue)
        except BaseException:
            queue.close()
            raise
        finally:
            self._being_made.discard(qid)
        self.leased.append(queue)
        return queue

    async def _create_once(self, queue: Ring) -> None:
        """As create(), but again if a reset has come between its two commands."""
        while True:
            resets = self._resets
            try:
                await self.create(queue)
            except CommandError:
                if resets == self._resets:
                    raise
            else:
                return

    async def negotiate(self, identify: IdentifyController) -> None:
        """What a reset undoes. Raises CommandError."""
        self._identify = identify
        for queue in self.tasks:
            queue.retry_delays_ms = identify.retry_delays_ms
        wanted = self._options.io_queues - 1
        granted = await self.admin.submit(
            commands.set_features(Feature.NUMBER_OF_QUEUES, wanted << 16 | wanted)
        )
        # Both halves are 0-based; a controller may grant more than was asked for, or less.
        count = min((granted & 0xFFFF) + 1, (granted >> 16) + 1, wanted + 1)
        if self.granted > count:
            _log.warning(
                "%s: %d I/O queues granted after a reset, %d before",
                self.where,
                count,
                self.granted,
            )
        self.granted = count

    async def share_doorbells(self) -> None:
        """Doorbell Buffer Config, if it is offered and wanted; to be repeated after a reset."""
        if self._identify is None or not self._identify.doorbell_buffers:
            return
        if not self._options.shadow_doorbells:
            return
        page_bytes = self._hardware.page_bytes
        if self._shadow is None:
            self._shadow = (self._dma.allocate(page_bytes), self._dma.allocate(page_bytes))
        for buffer in self._shadow:
            buffer.view[:] = bytes(page_bytes)
        shadow = self._shadow[0]
        stride = self._hardware.capabilities.doorbell_stride_bytes
        # The admin queue's tail must be right in the shadow before the controller may look there.
        self.admin.set_shadow(shadow.address, 0, stride)
        parts = [(buffer.iova, page_bytes) for buffer in self._shadow]
        command = commands.doorbell_buffer_config()
        try:
            await self.admin.submit_all([Piece.scattered(command, parts, self._shadow)])
        except CommandError as error:
            _log.warning("%s: going on without shadow doorbells: %s", self.where, error)
            self.admin.set_shadow(0, 0, stride)
            return  # the pages stay ours: who says that they were refused may write there all the same
        self.shadow_doorbells = True

    async def create(self, queue: Ring) -> None:
        """On the controller. Raises CommandError."""
        page_bytes = self._hardware.page_bytes
        if self.shadow_doorbells and self._shadow is not None:
            shadow, event = self._shadow
            stride = self._hardware.capabilities.doorbell_stride_bytes
            if (2 * queue.qid + 2) * stride <= page_bytes:
                queue.set_shadow(shadow.address, event.address, stride)
        vector = queue.vector.index if queue.vector and queue.vector.fd >= 0 else None
        # Contiguous queues: PRP1 is the whole address, so a length within a page is all it may say.
        await self.admin.submit(
            commands.create_cq(queue.qid, queue.depth, vector), queue.cq_iova, page_bytes
        )
        await self.admin.submit(
            commands.create_sq(queue.qid, queue.depth, queue.qid), queue.sq_iova, page_bytes
        )
        if self._identify is not None:
            queue.sgl = self._identify.sgl_mode if self._options.sgls else 0
            if isinstance(queue, QueuePair):
                queue.retry_delays_ms = self._identify.retry_delays_ms

    # ---- around a reset ------------------------------------------------------------------------

    async def quiesce(self) -> None:
        """Nobody touches a queue afterwards. Raises ControllerFailed when a thread does not obey."""
        for queue in self.tasks:
            queue.suspend()
        for leased in self.leased:
            leased.park()
        await self.attention.until_left(self.leased)

    def clear(self) -> list[tuple[QueuePair, Piece]]:
        """The controller is disabled: all rings are empty. What tasks had in flight."""
        self._resets += 1
        inflight = [(queue, piece) for queue in self.tasks for piece in queue.take_inflight()]
        for leased in self.leased:
            leased.clear()
        if self.shadow_doorbells:
            for queue in self.all:
                queue.set_shadow(0, 0, 4)
        self.shadow_doorbells = False
        return inflight

    async def create_again(self) -> None:
        """All I/O queues, on the controller that has just been enabled."""
        for queue in self.all[1:]:
            await self.create(queue)

    def resume(self, again: list[tuple[QueuePair, Piece]]) -> None:
        """Sends these again, and lets everybody in."""
        for queue in self.tasks:
            queue.resume([piece for owner, piece in again if owner is queue])
        for leased in self.leased:
            leased.resume()

    # ---- the end -------------------------------------------------------------------------------

    def fail(self, error: DriverError) -> None:
        """All that waits fails, now and later."""
        for queue in self.tasks:
            queue.fail(error)
        for leased in self.leased:
            leased.end()

    @property
    def in_use(self) -> list[LeasedQueue]:
        """Those that a thread uses at the moment."""
        return [leased for leased in self.leased if leased.used]

    async def delete(self) -> None:
        """In order: submission queues, then completion queues."""
        queues = self.all[1:]
        try:
            for queue in queues:
                await self.admin.submit(commands.delete_sq(queue.qid))
            for queue in queues:
                if isinstance(queue, QueuePair):
                    queue.reap()
                await self.admin.submit(commands.delete_cq(queue.qid))
        except CommandError as error:
            _log.warning("%s: %s", self.where, error)

    def release(self) -> None:
        """Gives the queues' memory back: the controller is disabled."""
        for queue in {*self.all, self.admin}:
            queue.release()

    def close(self) -> None:
        """Nobody uses a queue any more, and no task watches the vectors."""
        for leased in self.leased:
            leased.close()
        for vector in self.vectors:
            vector.close()
        self.attention.close()
