"""`nvmefs perf`: what the driver's C core and the device behind it can do, and nothing else.

A queue pair of its own is taken, and a thread keeps `depth` commands in flight on it in C
(core/perf.h). Neither trio, nor Python, nor a filesystem is on the way of a command. The thread runs where
its interrupts arrive, if the transport knows: to wake a thread on another CPU takes an interrupt of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from .._core import ffi, lib
from ..errors import ControllerError, InvalidRequest, Unsupported, status_name
from ..requests import latency_summary
from .blank import refuse_unless_blank

if TYPE_CHECKING:
    from ..controller import Controller
    from ..leases import LeasedQueue
    from ..memory import DmaBuffer
    from ..namespace import Namespace

_SLICE_NS = 100_000_000
_WARM_UP_NS = 100_000_000
_LOST_NS = 2_000_000_000
_OPCODES = {"write": 1, "read": 2}
_WAITS = {
    "adaptive": lib.NV_PERF_ADAPTIVE,
    "poll": lib.NV_PERF_POLL,
    "interrupt": lib.NV_PERF_INTERRUPT,
}
PATTERNS = ("randread", "randwrite", "read", "write")


@dataclass(frozen=True)
class Job:
    """What is measured: block_bytes per command, depth commands in flight, for seconds."""

    pattern: str
    block_bytes: int
    depth: int
    seconds: float
    wait: str = "adaptive"  # or "poll": never sleep, or "interrupt": never spin
    force: bool = False

    @property
    def writes(self) -> bool:
        """Whether it destroys what is on the namespace."""
        return self.pattern.endswith("write")


async def measure(controller: Controller, nsid: int | None, job: Job) -> dict[str, Any]:
    """Runs the job. Times in microseconds, CPU in percent of one core.

    Raises InvalidRequest for what does not fit the namespace, or a namespace that is not blank;
    Unsupported where doorbells are not mapped; ControllerError when commands stay out.
    """
    namespace = await controller.namespace(nsid)
    _check(namespace, job)
    if job.writes and not job.force:
        await refuse_unless_blank(namespace, "writing")
    queue = await controller.take_queue(job.depth + 1, interrupts=job.wait != "poll")
    if queue.depth < job.depth + 1:
        raise InvalidRequest(
            f"{namespace.where}: queues have {queue.depth} entries at most: --qd is at most "
            f"{queue.depth - 1}"
        )
    pages = -(-job.block_bytes // 4096)
    with controller.dma.allocate(pages * 4096 * job.depth) as data:
        data.view[:] = os.urandom(4096) * (pages * job.depth)
        async with _running(namespace, queue, job, data, pages * 4096) as state:
            await _work(namespace, queue, state, _WARM_UP_NS)
            _forget(queue, state)
            before_ns, device_ns = lib.nv_now_ns(), _device_cpu_ns(controller)
            await _work(namespace, queue, state, int(job.seconds * 1e9))
            if not state.completed:
                raise ControllerError(f"{namespace.where}: no command completed")
            elapsed_ns = lib.nv_now_ns() - before_ns
            device_ns = _device_cpu_ns(controller) - device_ns
            return _result(job, queue, state, elapsed_ns, device_ns)


def _check(namespace: Namespace, job: Job) -> None:
    size, limit = namespace.lba_bytes, namespace.max_transfer_bytes
    if job.block_bytes % size:
        raise InvalidRequest(f"{namespace.where}: --bs is not a multiple of {size} bytes")
    limit = min(limit or 1 << 62, namespace.controller.options.max_transfer_bytes, 65536 * size)
    if job.block_bytes > limit:
        raise InvalidRequest(f"{namespace.where}: --bs is at most {limit} bytes (MDTS)")
    if job.block_bytes > namespace.size_bytes:
        raise InvalidRequest(f"{namespace.where}: smaller than --bs")


@asynccontextmanager
async def _running(
    namespace: Namespace, queue: LeasedQueue, job: Job, data: DmaBuffer, buffer_bytes: int
) -> AsyncIterator[Any]:
    state = ffi.new("struct nv_perf *")
    state.nsid = namespace.nsid
    state.block_bytes = namespace.lba_bytes
    state.blocks = job.block_bytes // namespace.lba_bytes
    state.depth = job.depth
    state.lba_count = namespace.lba_count
    state.data_iova = data.iova
    state.buffer_bytes = buffer_bytes
    state.opcode = _OPCODES[job.pattern.removeprefix("rand")]
    state.random = job.pattern.startswith("rand")
    state.wait = _WAITS[job.wait]
    state.wakeup_fd = queue.wakeup_fd
    state.timeout_ns, state.grace_ns = queue.timeout_ns, queue.grace_ns
    state.state = 0x9E3779B97F4A7C15 if state.random else 0
    state.instructions_fd = -1
    data.hold()
    try:
        yield state
    finally:
        with trio.CancelScope(shield=True):
            # Until nothing is in flight the device may write to the buffers.
            if await trio.to_thread.run_sync(_drain, queue, state) == 0:
                data.unhold()


def _drain(queue: LeasedQueue, state: Any) -> int:
    ring = ffi.cast("struct nv_ring *", queue.ring_address)
    while (code := int(lib.nv_perf_run(state, ring, 0, 0))) == -errno.EAGAIN:
        pass  # a reset is under way, and bounded
    return code


def _slice(queue: LeasedQueue, state: Any, until_ns: int, cpus: set[int]) -> int:
    """In a thread; the counter of instructions belongs to the thread that opens it."""
    state.instructions_fd = lib.nv_perf_count_instructions()
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, (allowed & cpus) or allowed)
        ring = ffi.cast("struct nv_ring *", queue.ring_address)
        return int(lib.nv_perf_run(state, ring, until_ns, 1))
    finally:
        if state.instructions_fd >= 0:
            os.close(state.instructions_fd)
        state.instructions_fd = -1
        os.sched_setaffinity(0, allowed)  # the thread goes back to trio


def _interrupt_cpus(controller: Controller, queue: LeasedQueue) -> set[int]:
    """Where the queue's interrupts arrive; empty where nobody knows, or there are none."""
    find = getattr(controller.transport, "vector_cpus", None)
    if find is None or queue.vector is None or queue.vector.fd < 0:
        return set()
    return set(find(queue.vector.index))


async def _work(namespace: Namespace, queue: LeasedQueue, state: Any, for_ns: int) -> None:
    progress_ns, cpus = lib.nv_now_ns(), _interrupt_cpus(namespace.controller, queue)
    end_ns = progress_ns + for_ns
    while (now_ns := lib.nv_now_ns()) < end_ns:
        until_ns, before = min(now_ns + _SLICE_NS, end_ns), state.completed
        code = await trio.to_thread.run_sync(_slice, queue, state, until_ns, cpus)
        if namespace.controller.failure is not None:
            raise namespace.controller.failure
        if state.completed > before:
            progress_ns = lib.nv_now_ns()
        elif lib.nv_now_ns() > progress_ns + _LOST_NS:
            code = -errno.ETIMEDOUT
        if code not in (0, -errno.EAGAIN):
            raise _error(namespace, -code)


def _error(namespace: Namespace, code: int) -> Exception:
    if code == errno.EOPNOTSUPP:
        return Unsupported(
            f"{namespace.where}: doorbells are messages on this transport: nothing to measure"
        )
    if code == errno.ETIMEDOUT:
        return ControllerError(f"{namespace.where}: no command completed for two seconds")
    return ControllerError(f"{namespace.where}: {os.strerror(code)}")


def _forget(queue: LeasedQueue, state: Any) -> None:
    """Counters of the warm-up."""
    ring = ffi.cast("struct nv_ring *", queue.ring_address)
    ffi.memmove(ring.latency_ns, bytes(ffi.sizeof(ring.latency_ns)), ffi.sizeof(ring.latency_ns))
    for name in ("completed", "failed", "sleeps", "cpu_ns", "instructions"):
        setattr(state, name, 0)


def _device_cpu_ns(controller: Controller) -> int:
    """CPU time of a controller made of software, in this process; 0 for others."""
    read = getattr(controller.transport, "cpu_ns", None)
    return int(read()) if read is not None else 0


def _per(instructions: int, count: int) -> float | None:
    """None where the system counts no instructions for us (perf_event_paranoid, a guest)."""
    return instructions / count if instructions and count else None


def _result(
    job: Job, queue: LeasedQueue, state: Any, elapsed_ns: int, device_ns: int
) -> dict[str, Any]:
    ring = ffi.cast("struct nv_ring *", queue.ring_address)
    kind = lib.NV_WRITE if job.writes else lib.NV_READ
    latency = latency_summary(ring.latency_ns[kind])
    count = int(state.completed)
    return {
        "pattern": job.pattern,
        "block_bytes": job.block_bytes,
        "depth": job.depth,
        "wait": job.wait,
        "seconds": elapsed_ns / 1e9,
        "commands": count,
        "failed": int(state.failed),
        "last_failure": status_name(state.last_status) if state.failed else None,
        "iops": count / (elapsed_ns / 1e9),
        "mib_per_second": count * job.block_bytes / (1 << 20) / (elapsed_ns / 1e9),
        "latency_us": {
            name: latency[name] / 1000 for name in ("mean", "p50", "p99", "p999", "max")
        },
        "sleeps": int(state.sleeps),
        "cpu_percent": 100 * int(state.cpu_ns) / elapsed_ns,
        "device_cpu_percent": 100 * device_ns / elapsed_ns,
        "instructions_per_command": _per(int(state.instructions), count),
    }
