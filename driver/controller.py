"""A controller, from its address to namespaces that can be read and written.

    controller = await open_controller("file:disk.img")
    namespace = await controller.namespace(1)
    ...
    await controller.close()

Opening: find the transport; disable; admin queue; enable (bringup.py); Identify; ask for queues
and take what is granted; shadow doorbells if offered; I/O queue 1 for Python (queueset.py). Further
I/O queue pairs are made by take_queue() for threads in C. System tasks of trio watch the interrupt
vectors (interrupts.py), the deadlines (recovery.py) and the asynchronous events (events.py), so the
caller needs no nursery; close() ends them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from . import events, features, keepalive
from .address import Address, parse_address
from .bringup import Hardware
from .errors import (
    ControllerClosed,
    ControllerError,
    ControllerFailed,
    ControllerGone,
    DriverError,
    TransportError,
)
from .identify import CommandSetLimits, IdentifyController
from .leases import LeasedQueue
from .management import Management
from .memory import DmaPool, PoolStatistics
from .namespace import Namespace
from .options import DriverOptions
from .queries import Queries
from .queueset import QueueSet
from .recovery import Watchdog
from .requests import Piece, QueueStatistics
from .transports import LossNotifier
from .transports.open import open_transport

if TYPE_CHECKING:
    from types import TracebackType

    from .queues import QueuePair
    from .transports import Transport

_log = logging.getLogger("nvmefs.driver")

_RESET_BOUND_S = 60.0
left_in_use: list[Controller] = []
"""Closed under a thread: what it may touch lives as long as this list."""


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

    @property
    def recovery(self) -> dict[str, int]:
        """What the ladder has done (recovery.py)."""
        return {
            "aborts": self.aborts,
            "resets": self.resets,
            "timeouts": sum(queue.timeouts for queue in self.queues),
            "lost_interrupts": sum(queue.lost_interrupts for queue in self.queues),
            "bad_completions": sum(queue.bad_completions for queue in self.queues),
        }


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
        self.limits = CommandSetLimits()
        self.dma = DmaPool(transport, options.dma_bytes, self.hardware.page_bytes)
        self.queue_set = QueueSet(transport, options, self.hardware, self.dma)
        self.admin = self.queue_set.admin
        self.started = False
        self.manage = Management(self)
        self._failure: DriverError | None = None
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._watchdog = Watchdog(self)
        self._one_reset = trio.Lock()
        self.query: Queries  # these three are set by _start()
        self.identify: IdentifyController
        self.io: QueuePair

    @property
    def queues(self) -> list[QueuePair]:
        """The queue pairs of tasks, the admin queue first."""
        return self.queue_set.tasks

    @property
    def io_queues_granted(self) -> int:
        """I/O queue pairs that the controller allows, Python's included."""
        return self.queue_set.granted

    # ---- bring-up ------------------------------------------------------------------------------

    def _adopt(self, queue: QueuePair) -> None:
        """From now on the vector's task and the watchdog look after it."""
        queue.spawn = self._spawn
        queue.on_park = self._watchdog.poke
        queue.on_broken = self.fail
        if self.queue_set.adopt(queue) and queue.vector is not None:
            self._spawn(queue.vector.watch)

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
        self.queue_set.enable_interrupts()
        self._adopt(self.admin)
        await self.hardware.enable(self.admin)
        self._spawn(self._watchdog.watch)
        self._spawn(self.queue_set.attention.watch, self._watchdog.report)
        if isinstance(self.transport, LossNotifier):
            self._spawn(self.hardware.watch_loss, self.transport.lost_fd)
        self.query = Queries(self.admin, self.dma, self.hardware, self.options.identify_patience_s)
        self.identify = await self.query.controller()
        await self._configure()
        self.io = self.queue_set.make_io()
        self._adopt(self.io)
        await self.queue_set.create(self.io)
        self.limits = await self.query.limits()
        self.started = True
        self._spawn(events.watch, self)
        self._spawn(keepalive.watch, self)

    async def _configure(self) -> None:
        """What a reset undoes."""
        await self.queue_set.negotiate(self.identify)
        await features.configure(self)
        await self.queue_set.share_doorbells()

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

    async def take_queue(self, depth: int | None = None, *, interrupts: bool = True) -> LeasedQueue:
        """A new I/O queue pair for a thread in C, which obeys core/lease.h and ends before close().

        `ring_address` is its struct nv_ring, `wakeup_fd` what to sleep on. Without interrupts, or
        where there are no vectors, `naps` is true: nothing but the driver wakes the thread then.
        Raises ControllerError when the controller granted no more queues.
        """
        polled = self.options.poll == "always"
        return await self.queue_set.lease(depth, interrupts=interrupts and not polled)

    def statistics(self) -> ControllerStatistics:
        """A snapshot."""
        return ControllerStatistics(
            queues=tuple(queue.statistics() for queue in self.queue_set.all),
            pool=self.dma.statistics(),
            interrupts=sum(vector.interrupts for vector in self.queue_set.vectors),
            spurious_interrupts=sum(vector.spurious for vector in self.queue_set.vectors),
            events=self.events,
            aborts=self._watchdog.aborts,
            resets=self._watchdog.resets,
            shadow_doorbells=self.queue_set.shadow_doorbells,
        )

    # ---- reset, failure, end -------------------------------------------------------------------

    @property
    def failure(self) -> DriverError | None:
        """Why the controller was given up or closed, or None."""
        return self._failure

    async def reset(self, verdict: Callable[[Piece], DriverError | None]) -> None:
        """Quiesce, disable, start again, send again what was in flight.

        `verdict` says for each piece in flight what it fails with, or None. Threads in C send again
        what they had in flight themselves. Raises ControllerError when the controller does not come
        back; it is given up then.
        """
        async with self._one_reset:
            if self._failure is not None:
                raise type(self._failure)(str(self._failure)) from self._failure
            try:
                await self._reset(verdict)
            except DriverError as error:
                self.fail(error)
                raise

    async def _reset(self, verdict: Callable[[Piece], DriverError | None]) -> None:
        await self.queue_set.quiesce()
        await self.hardware.disable()
        again: list[tuple[QueuePair, Piece]] = []
        for queue, piece in self.queue_set.clear():
            error = verdict(piece)
            if error is None:
                piece.aborted = False
                again.append((queue, piece))
            else:
                queue.lose(piece, error)
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
        self.queue_set.resume(again)

    async def _start_again(self) -> None:
        await self.hardware.enable(self.admin)
        self.admin.resume()
        await self._configure()
        await self.queue_set.create_again()

    def fail(self, error: DriverError) -> None:
        """Gives the controller up: all that waits fails, now and later."""
        if self._failure is not None:
            return
        fatal = error if isinstance(error, (ControllerFailed, ControllerGone)) else None
        self._failure = fatal or ControllerFailed(f"{self.where}: given up: {error}")
        _log.error("%s", self._failure)
        self.queue_set.fail(self._failure)

    async def close(self) -> None:
        """Deletes the queues, shuts the controller down and releases it. Idempotent.

        Bounded in time and not cancellable. Who still waits for I/O gets ControllerClosed. After a
        failure the shutdown is the abrupt one: nothing is sent to the queues any more.
        """
        if isinstance(self._failure, ControllerClosed):
            return
        healthy = self._failure is None and self.hardware.enabled
        self._failure = ControllerClosed(f"{self.where}: closed")
        quiet = False
        with trio.CancelScope(shield=True):
            try:
                await self._leave_queues(healthy)
                await self._end_tasks()  # nothing may ring a doorbell from here on
                if self.hardware.enabled and self.hardware.sound():
                    await self.hardware.shutdown(self._shutdown_ms(), abrupt=not healthy)
                await self.hardware.disable()
                quiet = True
            except (TransportError, ControllerError) as error:
                _log.warning("%s: not shut down cleanly: %s", self.where, error)
            finally:
                await self._end_tasks()
                self._release(quiet)

    async def _leave_queues(self, healthy: bool) -> None:
        """Nobody uses them any more, and the controller forgets them."""
        try:
            await self.queue_set.quiesce()
        except ControllerFailed as error:
            _log.error("%s", error)
        if not healthy:
            return
        with trio.move_on_after(self.options.shutdown_timeout_s):
            self.admin.resume()
            await self.queue_set.delete()

    async def _end_tasks(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            await self._ended.wait()

    def _shutdown_ms(self) -> float:
        named_us = getattr(getattr(self, "identify", None), "shutdown_timeout_us", 0)
        return max(named_us / 1000, self.options.shutdown_timeout_s * 1000)

    def _release(self, quiet: bool) -> None:
        """Lets go of everything. Memory that the device may still touch (it could not
        be disabled) is unmapped by closing the transport before it is given back. What a thread
        may still touch stays until the process ends, and the device with it.
        """
        self.queue_set.fail(ControllerClosed(f"{self.where}: closed"))
        used = ", ".join(queue.where for queue in self.queue_set.in_use)
        if used:
            kept = "its memory and the device are kept until this process ends"
            _log.error("%s: a thread has not left it: %s", used, kept)
            left_in_use.append(self)
            return
        try:
            if quiet:
                self.transport.disable_interrupts()
                self.queue_set.release()
                self.dma.close()
        finally:
            self.transport.close()
            self.dma.abandon()
            self.queue_set.close()

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
