"""One image and the controllers that serve it one after the other, driven under faults and watched.

    bench = Bench(seed)
    await bench.schedule(rng, rules)       any number of times
    await bench.end()

A schedule: rules are set; tasks use their areas of the drive; the rules are taken back, everything comes to
rest, and what is left is looked at. Broken promises are raised as Failure (or by the oracle and the guard).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from driver import (
    CommandError,
    CommandTimeout,
    Controller,
    ControllerError,
    ControllerFailed,
    ControllerGone,
    DmaBuffer,
    DriverError,
    DriverOptions,
    InvalidRequest,
    Namespace,
    PoolExhausted,
    Unsupported,
    commands,
    open_controller,
)
from driver.registers import CSTS
from driver.transports.embedded import EmbeddedTransport, open_embedded
from tests.driver.faults.guard import Guard
from tests.driver.faults.oracle import Area, WrongData

T = TypeVar("T")

BOUND_S = 10.0  # for one call; the ladder of deadlines takes a fraction of it
OPEN_BOUND_S = 30.0
AREAS = 3
BLOCKS = 48  # of an area
OPERATIONS = 5  # of a task
PATIENCE = 4
_COMPARE_FAILURE = 0x285


class Failure(AssertionError):
    """The driver broke a promise."""


class Bench:
    """See the top of the file."""

    def __init__(self, seed: str, *, cuts: float = 0.12) -> None:
        """cuts: the share of schedules that end in a power cut."""
        rng = random.Random(seed)
        self.volatile = rng.random() < max(cuts, 0.4)
        self._cut_share = cuts / max(cuts, 0.4)
        self.lba_bytes = rng.choice([512, 512, 4096])
        self._fd = os.memfd_create("campaign")
        os.ftruncate(self._fd, AREAS * BLOCKS * self.lba_bytes + (256 << 10))
        self.areas = [Area(i * BLOCKS, BLOCKS, self.lba_bytes) for i in range(AREAS)]
        self._hardware = {
            "lba_size": self.lba_bytes,
            "queues": rng.choice([1, 2, 4]),
            "vectors": rng.choice([1, 2, 3]),
            "mdts": rng.choice([8192, 16384, 65536, 0]),
            "queue_entries": rng.choice([4, 16, 64]),
            "shadow_doorbells": rng.random() < 0.7,
            "poll_us": rng.choice([0, 20]),
            "write_cache": "volatile" if self.volatile else "host",
        }
        self._options = DriverOptions(
            io_queues=2,
            queue_depth=32,
            admin_depth=8,
            command_timeout_s=0.02,
            admin_timeout_s=0.1,
            shutdown_timeout_s=0.1,
            identify_patience_s=0,
            retries=rng.choice([0, 2, 4]),
            poll_ns=rng.choice([0, 20_000]),
            dma_bytes=8 << 20,
            max_transfer_bytes=64 << 10,
        )
        self.transport: EmbeddedTransport | None = None
        self.controller: Controller | None = None
        self.namespace: Namespace | None = None
        self.doing = ""
        self.resets = self.failures = self.hits = 0
        self._guard: Guard | None = None
        self._rest = 0
        self._lies = False
        self._final_errors = self._left = 0

    # ---- life ----------------------------------------------------------------------------------

    async def _open(self, rules: tuple[str, ...], seed: int) -> None:
        """Raises DriverError when the rules do not let it; Failure when it cannot be without."""
        path = f"/proc/self/fd/{self._fd}"
        claims = ("controller to=1", *rules)  # half a second for RDY and SHST
        transport = open_embedded(path, faults=claims, seed=seed, **self._hardware)  # type: ignore[arg-type]
        try:
            with trio.fail_after(OPEN_BOUND_S):
                controller = await open_controller(transport, options=self._options)
        except trio.TooSlowError:
            raise Failure("open_controller() hangs") from None
        self.transport, self.controller = transport, controller
        self._guard = Guard(controller.dma)
        self.namespace = await self._bounded("namespace()", controller.namespace)
        self._rest = controller.dma.statistics().used_bytes

    async def _shut(self) -> None:
        """Closes the controller, healthy or not."""
        controller = self.controller
        if controller is None:
            return
        assert self._guard is not None
        assert self.transport is not None
        self._guard.check()
        self.resets += controller.statistics().resets
        self.hits += self.transport.statistics()["fault_hits"]
        await self._bounded("close()", controller.close)
        self.controller = self.namespace = None
        if self.volatile:
            self._power_lost()

    def _power_lost(self) -> None:
        for area in self.areas:
            area.power_lost()

    async def end(self) -> None:
        """Closes everything."""
        await self._shut()
        os.close(self._fd)

    async def abandon(self) -> None:
        """The same after a failure, without looking at anything."""
        if self.controller is not None:
            with trio.move_on_after(BOUND_S):
                await self.controller.close()
        os.close(self._fd)

    async def _bounded(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        used_s = time.process_time()
        with trio.move_on_after(BOUND_S):
            return await call()
        used_s = time.process_time() - used_s
        raise Failure(
            f"{what} has not ended after {BOUND_S:g} s ({used_s:.1f} s of CPU): {self._state()}"
        )

    def _state(self) -> str:
        if self.controller is None or self.transport is None:
            return "no controller"
        queues = "; ".join(
            f"queue {queue.qid}: {queue.inflight} in flight, {queue.parked} parked, "
            f"{queue.statistics().backlog} in the backlog, {len(queue.late())} late"
            for queue in self.controller.queues
        )
        counts = self.controller.statistics()
        return (
            f"{queues}; {counts.aborts} aborts, {counts.resets} resets, "
            f"{self.controller.failure!r}; CSTS {self.transport.read32(CSTS):#x}, "
            f"{self.transport.statistics()}"
        )

    @staticmethod
    async def _until(done: Callable[[], bool]) -> None:
        while True:
            if done():
                return
            await trio.sleep(0.0005)

    # ---- a schedule ----------------------------------------------------------------------------

    async def schedule(
        self, rng: random.Random, rules: tuple[str, ...], *, opening: bool, lies: bool
    ) -> None:
        """Runs one. opening: the rules act on a controller that is opened for it."""
        seed, cut = rng.getrandbits(64), rng.random() < self._cut_share
        self._lies = lies
        self._final_errors = self._left = 0
        if opening:
            await self._shut()
        if self.controller is None and not opening:
            await self._verify()
        elif self.controller is None:
            try:
                await self._open(rules, seed)
            except DriverError:
                await self._shut()
        if self.controller is not None:
            assert self.transport is not None
            self.transport.set_faults(("controller to=1", *rules), seed=seed)
            before = self.transport.statistics()["fault_hits"]
            await self._work(rng)
            failed = self.transport.statistics()["fault_hits"] - before
            for_good = all(rule.startswith("io") and rule.endswith(" dnr") for rule in rules)
            if failed and for_good and not self._final_errors and not self._left:
                raise Failure("a command that failed with DNR succeeded: it was sent again")
            await self._come_to_rest()
            if cut:
                await self._cut_power(seed)
        if lies:
            await self._start_over()
        else:
            await self._verify()

    async def _cut_power(self, seed: int) -> None:
        if self.controller is not None and self.volatile:
            assert self.transport is not None
            self.transport.power_cut(seed)
            await self._shut()

    async def _work(self, rng: random.Random) -> None:
        """The tasks; their choices are made before, so that time does not change them."""
        with trio.move_on_after(BOUND_S * 4) as scope:
            async with trio.open_nursery() as nursery:
                for area in self.areas:
                    nursery.start_soon(self._use, area, random.Random(rng.getrandbits(64)))
                nursery.start_soon(self._ask, random.Random(rng.getrandbits(64)))
        if scope.cancelled_caught:
            raise Failure("the tasks do not end")

    async def _come_to_rest(self) -> None:
        """No rules any more: commands end, ids and memory come back, or the controller was given up."""
        controller, transport = self.controller, self.transport
        assert controller is not None
        assert transport is not None
        assert self._guard is not None
        transport.set_faults(("controller to=1",))
        end = trio.current_time() + BOUND_S
        while True:
            if isinstance(controller.failure, (ControllerFailed, ControllerGone)):
                if "internal error" in str(controller.failure):
                    raise Failure(f"a task of the driver crashed: {controller.failure}")
                self.failures += 1
                await self._refused()
                await self._shut()
                return
            left = self._left_over()
            if not left:
                break
            if trio.current_time() > end:
                raise Failure(f"left over at rest: {left}")
            await trio.sleep(0.001)
        self._guard.check()
        strays = transport.statistics()["stray_accesses"]
        if strays and not self._lies:
            raise Failure(f"{strays} commands named memory that is not mapped")

    def _left_over(self) -> str:
        controller = self.controller
        assert controller is not None
        left = [
            f"queue {queue.qid}: {queue.inflight} in flight, {queue.parked} parked"
            for queue in controller.queues
            if queue.busy or queue.parked > queue.resident
        ]
        pool = controller.dma.statistics()
        used = pool.used_bytes
        if used > self._rest or pool.held_buffers or pool.waiters:
            left.append(f"{pool}, {used - self._rest} bytes more than before")
        self._rest = min(self._rest, used)  # an event was being looked into before
        return "; ".join(left)

    async def _refused(self) -> None:
        """A controller that was given up says so at once."""
        assert self.namespace is not None
        try:
            await self._bounded("a read", lambda: self._read(0, bytearray(self.lba_bytes)))
        except (ControllerFailed, ControllerGone):
            return
        raise Failure("a controller that was given up still serves reads")

    async def _read(self, lba: int, buffer: bytearray) -> None:
        assert self.namespace is not None
        await self.namespace.read(lba, buffer)

    async def _verify(self) -> None:
        """All blocks, on an honest controller."""
        for attempt in range(PATIENCE):
            try:
                if self.controller is None:
                    await self._open((), 0)
                for area in self.areas:
                    data = bytearray(BLOCKS * self.lba_bytes)
                    await self._bounded("a read", partial(self._read, area.first, data))
                    area.check(area.first, data)
                return
            except (CommandTimeout, ControllerError, ControllerGone) as error:
                # The machine may have been busy for longer than a deadline, or nothing was in flight
                # to show that the last rule took the controller away: once, not again and again.
                await self._shut()
                if attempt == PATIENCE - 1:
                    raise Failure(f"an honest controller is not usable: {error!r}") from error

    async def _start_over(self) -> None:
        """After lies: an honest controller, and blocks whose content is known."""
        await self._shut()
        os.pwrite(self._fd, bytes(AREAS * BLOCKS * self.lba_bytes), 0)
        self.areas = [Area(i * BLOCKS, BLOCKS, self.lba_bytes) for i in range(AREAS)]

    # ---- tasks ---------------------------------------------------------------------------------

    async def _use(self, area: Area, rng: random.Random) -> None:
        """Reads and writes one area."""
        calls = [
            (self._write, 5),
            (self._read_back, 3),
            (self._flush, 2),
            (self._compare, 1),
            (self._zero, 1),
            (self._trim, 1),
            (self._leave, 1),
            (self._send_verify, 1),
        ]
        kinds = rng.choices([c for c, _ in calls], [weight for _, weight in calls], k=OPERATIONS)
        for call in kinds:
            lba = area.first + rng.randrange(BLOCKS)
            count = rng.randint(1, area.first + BLOCKS - lba)
            if rng.random() < 0.6:
                count = min(count, 4)
            try:
                await self._bounded(call.__name__, partial(call, area, rng, lba, count))
            except (InvalidRequest, PoolExhausted) as error:
                if not self._lies:
                    raise Failure(f"{call.__name__}: {error!r}") from error
            except WrongData:
                if not self._lies:
                    raise
            except CommandError as error:
                self._final_errors += error.dnr
            except DriverError:
                continue

    async def _write(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        assert self.namespace is not None
        tags, fua = area.fresh(count), rng.random() < 0.3
        area.begin(lba, tags)
        await self.namespace.write(lba, area.data(tags), fua=fua)
        area.done(lba, tags, durable=fua)

    async def _read_back(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        data = bytearray(count * self.lba_bytes)
        await self._read(lba, data)
        area.check(lba, data)

    async def _flush(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        assert self.namespace is not None
        before = [set(tags) for tags in area.now]
        await self.namespace.flush()
        area.flushed(before)

    async def _compare(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        assert self.namespace is not None
        tags = area.known(lba, count)
        if tags is None:
            return
        same = rng.random() < 0.5
        wanted = tags if same else area.fresh(count)
        try:
            await self.namespace.compare(lba, area.data(wanted))
        except CommandError as error:
            if error.status & 0x7FF == _COMPARE_FAILURE and same:
                raise WrongData(f"blocks {lba}+{count} compare as different") from error
            raise
        if not same:
            raise WrongData(f"blocks {lba}+{count} compare as equal to what was never written")

    async def _zero(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        assert self.namespace is not None
        tags = [0] * count
        area.begin(lba, tags)
        await self.namespace.write_zeroes(lba, count, deallocate=rng.random() < 0.5)
        area.done(lba, tags)

    async def _trim(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        assert self.namespace is not None
        area.begin(lba, [0] * count)
        await self.namespace.deallocate([(lba, count)])

    async def _leave(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        """A write or read whose caller leaves; the buffer is given back while a command owns it."""
        assert self.namespace is not None
        tags = area.fresh(count)
        write, patience_s = rng.random() < 0.6, rng.choice([0.0, 0.001, 0.01])
        buffer: DmaBuffer = await self.namespace.dma.allocate_wait(count * self.lba_bytes)
        try:
            with trio.move_on_after(patience_s):
                if write:
                    area.begin(lba, tags)
                    buffer.view[:] = area.data(tags)
                    await self.namespace.write(lba, buffer)
                else:
                    await self.namespace.read(lba, buffer)
                self._left -= 1
        finally:
            self._left += 1
            buffer.release()
        controller = self.namespace.controller
        await self._until(lambda: not buffer.busy or controller.failure is not None)

    async def _send_verify(self, area: Area, rng: random.Random, lba: int, count: int) -> None:
        assert self.controller is not None
        assert self.namespace is not None
        await self.controller.io.submit(commands.verify(self.namespace.nsid, lba, count))

    async def _ask(self, rng: random.Random) -> None:
        """Admin commands beside the I/O."""
        controller = self.controller
        assert controller is not None
        for _ in range(2):
            question: Callable[[], Awaitable[object]] = rng.choice(
                [
                    controller.namespaces,
                    lambda: controller.log_page(2, 512),
                    controller.query.write_cache,
                    controller.query.controller,
                ]
            )
            try:
                await self._bounded("an admin command", question)
            except (Unsupported, DriverError):
                continue
