"""A controller, from its address to namespaces that can be read and written.

    controller = await open_controller("file:disk.img")
    namespace = await controller.namespace(1)
    ...
    await controller.close()

Opening: find the transport; disable; admin queue; enable (bringup.py); Identify; ask for queues
and take what is granted; shadow doorbells if offered; I/O queue 1 for Python. Further I/O queue
pairs are made by take_queue() for threads in C. System tasks of trio watch the interrupt vectors
(interrupts.py), the deadlines (recovery.py) and the asynchronous events (events.py), so the
caller needs no nursery; close() ends them.

Interrupt vectors are shared when there are fewer than queues: vector 0 is the admin queue's, the
others go round among the I/O queues.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from . import commands, events, features, keepalive
from .address import Address, parse_address
from .bringup import Hardware
from .commands import Feature
from .errors import (
    CommandError,
    ControllerClosed,
    ControllerError,
    ControllerFailed,
    ControllerGone,
    DriverError,
    TransportError,
)
from .identify import CommandSetLimits, IdentifyController
from .interrupts import Vector
from .management import Management
from .memory import DmaBuffer, DmaPool, PoolStatistics
from .namespace import Namespace
from .options import DriverOptions
from .queries import Queries
from .queues import QueuePair
from .recovery import Watchdog
from .requests import Piece, QueueStatistics
from .transports import LossNotifier
from .transports.open import open_transport

if TYPE_CHECKING:
    from types import TracebackType

    from .transports import Transport

_log = logging.getLogger("nvmefs.driver")

_RESET_BOUND_S = 60.0


@dataclass(frozen=True)
class ControllerStatistics:
    """Counters since the controller was opened."""

    queues: tuple[QueueStatistics, ...]
    pool: PoolStatistics
    interrupts: int
    spurious_interrupts: int
    events: int
    aborts: int
    resets: int
    shadow_doorbells: bool


class Controller:
    """An NVMe controller that was brought up. Made by open_controller(); an async context
    manager.
    """

    def __init__(self, transport: Transport, options: DriverOptions, nsid: int) -> None:
        self.where = transport.address
        self.options = options
        self.default_nsid = nsid
        self.transport = transport
        self.hardware = Hardware(transport)
        self.version = self.hardware.version
        self.opened: dict[int, Namespace] = {}
        self.events = 0
        self.io_queues_granted = 0
        self.limits = CommandSetLimits()
        self.dma = DmaPool(transport, options.dma_bytes, self.hardware.page_bytes)
        self.queues: list[QueuePair] = []
        self.started = False
        self.manage = Management(self)
        self._failure: DriverError | None = None
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._watchdog = Watchdog(self)
        self._shadow: tuple[DmaBuffer, DmaBuffer] | None = None
        self._taken: list[QueuePair] = []
        self._vectors = self._make_vectors()
        self.admin = self._make_queue(0, options.admin_depth)
        self.query: Queries  # these three are set by _start()
        self.identify: IdentifyController
        self.io: QueuePair

    # ---- bring-up ------------------------------------------------------------------------------

    def _make_vectors(self) -> list[Vector]:
        count = min(self.transport.vectors, 1 + self.options.io_queues)
        if count < 1:
            return [Vector(0, interrupts=False)]
        return [Vector(i, always=i == 0) for i in range(count)]

    def _vector(self, qid: int) -> Vector:
        if qid == 0 or len(self._vectors) == 1:
            return self._vectors[0]
        return self._vectors[1 + (qid - 1) % (len(self._vectors) - 1)]

    def _make_queue(self, qid: int, depth: int) -> QueuePair:
        options, page_bytes = self.options, self.hardware.page_bytes
        # PRP entries beyond the first page of the longest transfer at the worst offset.
        entries = max(options.max_transfer_bytes // page_bytes, 1)
        per_page = page_bytes // 8
        pages = 1 if entries <= per_page else -(-(entries - 1) // (per_page - 1))
        queue = QueuePair(
            qid,
            depth,
            pool=self.dma,
            transport=self.transport,
            capabilities=self.hardware.capabilities,
            page_bytes=page_bytes,
            list_pages=pages if qid else 1,
            timeout_ns=options.deadline_ns(self.identify if qid else None),
            poll_ns=options.poll_ns,
            retries=options.retries,
        )
        queue.spawn = self._spawn
        queue.on_park = self._watchdog.poke
        queue.on_broken = self.fail
        return queue

    def _adopt(self, queue: QueuePair) -> None:
        """From now on the vector's task and the watchdog look after it."""
        queue.vector = self._vector(queue.qid)
        if not queue.vector.queues:
            self._spawn(queue.vector.watch)
        queue.vector.queues.append(queue)
        self.queues.append(queue)

    async def _supervise(self, started: trio.Event) -> None:
        """The one system task; all other tasks of this controller are its children."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                started.set()
                await trio.sleep_forever()
        finally:
            self._ended.set()

    def _spawn(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Starts a task that ends with the controller; its failure is the controller's."""

        async def guarded() -> None:
            try:
                await task(*args)
            except DriverError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - logged, and everybody who waits is told
                _log.exception("%s: a task of the driver crashed", self.where)
                self.fail(ControllerFailed(f"{self.where}: internal error: {error!r}"))

        if self._nursery is not None:
            self._nursery.start_soon(guarded, name=f"{self.where}: {task.__qualname__}")

    async def _start(self) -> None:
        started = trio.Event()
        trio.lowlevel.spawn_system_task(self._supervise, started, name=self.where)
        await started.wait()
        await self.hardware.disable()
        if self._vectors[0].fd >= 0:
            self.transport.enable_interrupts([vector.fd for vector in self._vectors])
        self._adopt(self.admin)
        await self.hardware.enable(self.admin)
        self._spawn(self._watchdog.watch)
        if isinstance(self.transport, LossNotifier):
            self._spawn(self.hardware.watch_loss, self.transport.lost_fd)
        self.query = Queries(self.admin, self.dma, self.hardware, self.options.identify_patience_s)
        self.identify = await self.query.controller()
        await self._configure()
        depth = min(self.options.queue_depth, self.hardware.capabilities.max_queue_entries)
        self.io = self._make_queue(1, depth)
        self._adopt(self.io)
        await self._create(self.io)
        self.limits = await self.query.limits()
        self.started = True
        self._spawn(events.watch, self)
        self._spawn(keepalive.watch, self)

    async def _configure(self) -> None:
        """What a reset undoes: number of queues, choice of events, shadow doorbells."""
        delays = self.identify.retry_delays_ms
        for queue in self.queues:
            queue.retry_delays_ms = delays
        wanted = self.options.io_queues - 1
        granted = await self.admin.submit(
            commands.set_features(Feature.NUMBER_OF_QUEUES, wanted << 16 | wanted)
        )
        # Both halves are 0-based; a controller may grant more than was asked for, or less.
        count = min((granted & 0xFFFF) + 1, (granted >> 16) + 1, wanted + 1)
        if self.io_queues_granted > count:
            _log.warning(
                "%s: %d I/O queues granted after a reset, %d before",
                self.where,
                count,
                self.io_queues_granted,
            )
        self.io_queues_granted = count
        await features.configure(self)
        if self.identify.doorbell_buffers and self.options.shadow_doorbells:
            await self._share_doorbells()

    async def _share_doorbells(self) -> None:
        """Doorbell Buffer Config (section 5.8)."""
        page_bytes = self.hardware.page_bytes
        if self._shadow is None:
            self._shadow = (self.dma.allocate(page_bytes), self.dma.allocate(page_bytes))
        for buffer in self._shadow:
            buffer.view[:] = bytes(page_bytes)
        shadow, event = self._shadow
        stride = self.hardware.capabilities.doorbell_stride_bytes
        # The admin queue's tail must be right in the shadow before the controller may look there.
        self.admin.set_shadow(shadow.address, 0, stride)
        parts = [(buffer.iova, page_bytes) for buffer in self._shadow]
        command = commands.doorbell_buffer_config()
        try:
            await self.admin.submit_all([Piece.scattered(command, parts, self._shadow)])
        except CommandError as error:
            _log.warning("%s: going on without shadow doorbells: %s", self.where, error)
            self.admin.set_shadow(0, 0, stride)
            shadow.release()
            event.release()
            self._shadow = None

    async def _create(self, queue: QueuePair) -> None:
        """Create I/O Completion Queue, then Submission Queue."""
        page_bytes = self.hardware.page_bytes
        if self._shadow is not None:
            shadow, event = self._shadow
            stride = self.hardware.capabilities.doorbell_stride_bytes
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
        queue.retry_delays_ms = self.identify.retry_delays_ms
        queue.sgl = self.identify.sgl_mode if self.options.sgls else 0

    # ---- what users call -----------------------------------------------------------------------

    async def namespaces(self) -> list[int]:
        """The ids of all active namespaces, ascending. Raises CommandError, ControllerError."""
        return await self.query.active_namespaces()

    async def namespace(self, nsid: int | None = None) -> Namespace:
        """A namespace, ready for I/O; None: the one that the address named (1 unless it says so).

        Raises InvalidRequest when there is none of that id, ControllerError when it is of a kind
        that is not supported (metadata, another command set, absurd sizes).
        """
        nsid = self.default_nsid if nsid is None else nsid
        known = self.opened.get(nsid)
        if known is not None:
            return known
        identify = await self.query.namespace(nsid)
        cache = self.identify.volatile_write_cache and await self.query.write_cache()
        namespace = Namespace(self, nsid, identify, volatile_write_cache=cache)
        self.opened[nsid] = namespace
        return namespace

    async def log_page(self, log: int, nbytes: int) -> bytes:
        """Get Log Page: the first nbytes (a multiple of 4) of it. Raises CommandError."""
        return await self.query.log_page(log, nbytes)

    async def take_queue(self, depth: int | None = None, *, interrupts: bool = True) -> QueuePair:
        """A new I/O queue pair that belongs to the caller alone, for a thread in C.

        `ring_address` is its struct nv_ring; `vector.fd` the eventfd to sleep on, which no task
        of the driver reads; without interrupts `vector` is None. Its deadlines are the caller's
        business. Raises ControllerError when the controller granted no more queues, or has no
        interrupt vector left for it alone.
        """
        qid = 2 + len(self._taken)
        if qid > self.io_queues_granted:
            raise ControllerError(
                f"{self.where}: {self.io_queues_granted} I/O queues were granted, all are in use"
            )
        if interrupts and 1 + qid > len(self._vectors):
            raise ControllerError(
                f"{self.where}: no interrupt vector left: {len(self._vectors)} are there"
            )
        limit = self.hardware.capabilities.max_queue_entries
        queue = self._make_queue(qid, min(depth or self.options.queue_depth, limit))
        if interrupts:
            queue.vector = Vector(qid, interrupts=False)
            queue.vector.fd = self._vectors[qid].fd
        await self._create(queue)
        self._taken.append(queue)
        return queue

    def statistics(self) -> ControllerStatistics:
        """A snapshot."""
        return ControllerStatistics(
            queues=tuple(queue.statistics() for queue in [*self.queues, *self._taken]),
            pool=self.dma.statistics(),
            interrupts=sum(vector.interrupts for vector in self._vectors),
            spurious_interrupts=sum(vector.spurious for vector in self._vectors),
            events=self.events,
            aborts=self._watchdog.aborts,
            resets=self._watchdog.resets,
            shadow_doorbells=self._shadow is not None,
        )

    # ---- reset, failure, end -------------------------------------------------------------------

    @property
    def failure(self) -> DriverError | None:
        """Why the controller was given up or closed, or None."""
        return self._failure

    async def reset(self, verdict: Callable[[Piece], DriverError | None]) -> None:
        """Quiesce, disable, start again, send again what was in flight.

        `verdict` says for each piece in flight what it fails with, or None. Raises
        ControllerError when the controller does not come back.
        """
        if self._taken:
            raise ControllerFailed(
                f"{self.where}: a reset is needed while C threads own queue pairs: given up"
            )
        for queue in self.queues:
            queue.suspend()
        await self.hardware.disable()
        again: list[tuple[QueuePair, Piece]] = []
        for queue in self.queues:
            for piece in queue.take_inflight():
                error = verdict(piece)
                if error is None:
                    piece.aborted = False
                    again.append((queue, piece))
                else:
                    queue.lose(piece, error)
            if self._shadow is not None:
                queue.set_shadow(0, 0, 4)
        try:
            # The watchdog, which bounds everybody else's waiting, is the one that waits here.
            bound_s = self.options.admin_timeout_s or _RESET_BOUND_S
            with trio.fail_after(bound_s + self.hardware.ready_timeout_ms / 1000):
                await self._start_again()
        except BaseException as error:
            for queue, piece in again:
                queue.lose(piece, ControllerFailed(f"{self.where}: reset failed: {error!r}"))
            if isinstance(error, trio.TooSlowError):
                raise ControllerFailed(f"{self.where}: does not answer after a reset") from error
            raise
        for queue in self.queues:
            queue.resume([piece for owner, piece in again if owner is queue])

    async def _start_again(self) -> None:
        await self.hardware.enable(self.admin)
        self.admin.resume()
        await self._configure()
        for queue in self.queues[1:]:
            await self._create(queue)

    def fail(self, error: DriverError) -> None:
        """Gives the controller up: all that waits fails, now and later."""
        if self._failure is not None:
            return
        fatal = error if isinstance(error, (ControllerFailed, ControllerGone)) else None
        self._failure = fatal or ControllerFailed(f"{self.where}: given up: {error}")
        _log.error("%s", self._failure)
        for queue in [*self.queues, *self._taken]:
            queue.fail(self._failure)

    async def close(self) -> None:
        """Deletes the queues, shuts the controller down and releases it. Idempotent.

        Bounded in time and not cancellable. Who still waits for I/O gets ControllerClosed.
        """
        if isinstance(self._failure, ControllerClosed):
            return
        healthy = self._failure is None and self.hardware.enabled
        self._failure = ControllerClosed(f"{self.where}: closed")
        bound_s = self.options.shutdown_timeout_s
        quiet = False
        with trio.CancelScope(shield=True):
            try:
                if healthy:
                    with trio.move_on_after(bound_s):
                        await self._delete_queues()
                await self._end_tasks()  # nothing may ring a doorbell from here on
                if healthy:
                    await self.hardware.shutdown(self._shutdown_ms())
                await self.hardware.disable()
                quiet = True
            except (TransportError, ControllerError) as error:
                _log.warning("%s: not shut down cleanly: %s", self.where, error)
            finally:
                await self._end_tasks()
                self._release(quiet)

    async def _end_tasks(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            await self._ended.wait()

    def _shutdown_ms(self) -> float:
        named_us = getattr(getattr(self, "identify", None), "shutdown_timeout_us", 0)
        return max(named_us / 1000, self.options.shutdown_timeout_s * 1000)

    async def _delete_queues(self) -> None:
        queues = [*self.queues[1:], *self._taken]
        for queue in queues:
            queue.suspend()
        try:
            for queue in queues:
                await self.admin.submit(commands.delete_sq(queue.qid))
            for queue in queues:
                queue.reap()
                await self.admin.submit(commands.delete_cq(queue.qid))
        except CommandError as error:
            _log.warning("%s: %s", self.where, error)

    def _release(self, quiet: bool) -> None:
        """Lets go of everything. Memory that the device may still touch (it could not
        be disabled) is unmapped by closing the transport before it is given back.
        """
        closed = ControllerClosed(f"{self.where}: closed")
        for queue in [*self.queues, *self._taken]:
            queue.fail(closed)
        try:
            if quiet:
                self.transport.disable_interrupts()
                for queue in {*self.queues, *self._taken, self.admin}:
                    queue.release()
                self.dma.close()
        finally:
            self.transport.close()
            self.dma.abandon()
            for vector in self._vectors:
                vector.close()

    async def __aenter__(self) -> Controller:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.close()


async def open_controller(
    spec: str | Address | Transport, *, options: DriverOptions | None = None
) -> Controller:
    """Opens a controller and brings it up; an open transport may be given instead of an address.

    Raises AddressError, DeviceBusy, TransportError, ControllerError, CommandError. Whatever
    happens, the transport is closed again unless a Controller is returned.
    """
    options = options or DriverOptions()
    nsid = 1
    if isinstance(spec, str):
        spec = parse_address(spec)
    if isinstance(spec, Address):
        nsid = spec.nsid
        transport = open_transport(spec, options)
    else:
        transport = spec
    try:
        controller = Controller(transport, options, nsid)
    except BaseException:
        transport.close()
        raise
    try:
        await controller._start()
    except BaseException:
        await controller.close()
        raise
    return controller
