"""The front end's Python half: it mounts, starts the C threads, and answers what pyfuse3 has no handler for.

Below: core/frontend.c, dataplane.py, upcalls.py.  Above: mount.py.

    async with Frontend.opened(filesystem, mountpoint, words) as frontend:
        pyfuse3.init(operations, frontend.session_path, words)
        nursery.start_soon(frontend.run, ...)

libfuse takes a descriptor as its session when the mountpoint is called /dev/fd/N, and never mounts. So the
kernel's /dev/fuse stays with us, and pyfuse3 gets one end of a socket pair over which requests and replies
travel unchanged.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

import driver
from nvmefs._core import ffi, lib
from nvmefs.answers import WITHOUT_ATIME
from nvmefs.dataplane import EXTENT_BYTES, DataPlane
from nvmefs.filesystem import Filesystem
from nvmefs.layout import BLOCK_BYTES
from nvmefs.place import Place, Unavailable, clone, owned
from nvmefs.relay import relayed
from nvmefs.rings import MOST_THREADS as MOST_RINGS
from nvmefs.rings import Plan, possible_cpus
from nvmefs.shortcut import Shortcut
from nvmefs.upcalls import Upcalls
from nvmefs.wire import Request

log = logging.getLogger("nvmefs.frontend")

MOST_THREADS = 4  # unless asked for: decision 0017
SLOTS = 30  # requests a thread has under way at once: they fit in one DMA region of 32 MiB
ALL_SLOTS = 60  # of all threads together
SOCKET_BUFFER_BYTES = 8 << 20
MESSAGE_BYTES = lib.FE_MAX_WRITE + 4096
SPIN_NS = 30_000
MIB = 1 << 20
MAPS_SHARE = 8  # published maps take an eighth of what the cache may take, and not from it
LAST_WAIT_NS = (
    10_000_000_000  # for commands under way when the mount has ended; and what the ladder takes
)
LENT = struct.Struct("<II")  # struct fe_lent
LINGER_NS = 50_000  # less than what a turn of trio's loop takes
BURST = 64  # requests answered before other tasks have their turn
MAX_BACKGROUND = 128
CONGESTION_THRESHOLD = 96
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # <asm-generic/socket.h>

# FUSE_INIT flags (<linux/fuse.h>) that libfuse does not ask for, or asks for only when told.
READDIRPLUS_AUTO = 1 << 14  # attributes come with the names only where they are asked for
DONT_MASK = 1 << 6  # we apply the umask, because a default access list overrides it
PARALLEL_DIROPS = 1 << 18
CACHE_SYMLINKS = 1 << 23
EXPLICIT_INVAL_DATA = 1 << 25
HANDLE_KILLPRIV_V2 = 1 << 28  # without it the kernel asks for security.capability before each write
WANTED = (
    READDIRPLUS_AUTO | DONT_MASK | PARALLEL_DIROPS | CACHE_SYMLINKS | EXPLICIT_INVAL_DATA
    | HANDLE_KILLPRIV_V2
)  # fmt: skip
OVER_IO_URING = 1 << 41
# Nobody but the kernel changes a file: a new mtime is no reason to read it again.
AUTO_INVAL_DATA = 1 << 12


@dataclass
class Frontend:
    """One mounted front end. `session_path` is what pyfuse3.init takes for a mountpoint; from then on the
    descriptor behind it is libfuse's, which closes it: `session_taken` says so.
    """

    handle: Any
    plane: DataPlane
    upcalls: Upcalls
    shortcut: Shortcut
    upcall_socket: socket.socket
    ended_fd: int
    session_fd: int
    session_number: int  # of the same descriptor, also when it is libfuse's
    place: Place
    memory: list[driver.DmaBuffer]  # the slots of each thread
    rings_fd: int | None = None  # tells that fe_rings_error() is known
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(MESSAGE_BYTES)))

    @property
    def session_path(self) -> str:
        return f"/dev/fd/{self.session_fd}"

    def session_taken(self) -> None:
        self.session_fd = -1

    async def run(self, unmounted: Callable[[], None]) -> None:
        """Answer upcalls and drain, until the kernel has unmounted: then `unmounted` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.plane.drain)
            nursery.start_soon(self.take_requests, nursery)
            await trio.lowlevel.wait_readable(self.ended_fd)
            self.place.unmounted = True
            self.plane.end()
            unmounted()
            nursery.cancel_scope.cancel()

    async def rings_missing(self) -> str | None:
        """After FUSE_INIT: why the kernel does not use the rings; None if it does, or none were asked for."""
        if self.rings_fd is None:
            return None
        await trio.lowlevel.wait_readable(self.rings_fd)
        code = lib.fe_rings_error(self.handle)
        if code == errno.EOPNOTSUPP:
            return "the kernel has stopped offering FUSE over io_uring"
        return (
            f"the kernel refuses the entries of its queues: {os.strerror(code)}" if code else None
        )

    async def end(self) -> None:
        """Returns when the thread on /dev/fuse has ended; it bounds how long it waits for what is under way.

        The driver works on meanwhile: commands that do not come back need it.
        """
        lib.fe_end(self.handle)
        await trio.lowlevel.wait_readable(self.ended_fd)

    async def take_requests(self, nursery: trio.Nursery) -> None:
        """Take requests and answer them, one after the other; while one waits another task takes more."""
        relieved = False

        def relieve() -> None:
            nonlocal relieved
            relieved = True
            lib.fe_taken(self.handle)
            nursery.start_soon(self.take_requests, nursery)

        while not relieved:
            await trio.lowlevel.wait_readable(self.upcall_socket)
            for _ in range(BURST):
                length = self._next()
                if length < 0:
                    return  # the other end is closed
                if not length:
                    break
                request = Request.of(self.buffer[:length])
                await relayed(self._answer(request), relieve)
                if relieved:
                    return
            lib.fe_taken(self.handle)

    def _next(self) -> int:
        """The length of the next request: it mostly follows an answer sooner than trio's loop comes round.

        0: there is none yet, or pyfuse3 has one. From fe_taken() on the threads in C look for it again.
        """
        upcalls, other = self.upcall_socket.fileno(), self.session_number
        memory = ffi.from_buffer("uint8_t[]", self.buffer)
        return int(lib.fe_take(self.handle, upcalls, other, LINGER_NS, memory, MESSAGE_BYTES))

    async def _answer(self, request: Request) -> None:
        if request.missing:
            await self.answer_lent(request)
        elif self.shortcut.knows(request):
            self._send(await self.shortcut.answer(request))
        else:
            self._send(await self.upcalls.answer(request))

    async def answer_lent(self, request: Request) -> None:
        """A WRITE whose data is where a thread in C has read it to: it is given back when it is written.

        After a command that has failed for good the drive may still read it: that memory is not used again.
        """
        channel, slot = lent = LENT.unpack(request.body[-LENT.size :])
        size = request.missing + LENT.size
        begin = slot * lib.FE_SLOT_BYTES + BLOCK_BYTES
        request.data = self.memory[channel][begin : begin + size]
        reply = await self.shortcut.answer(request)
        if self.upcalls.fs.journal.failure is None:
            lib.fe_give_back(self.handle, lent)
        elif code := lib.fe_forsake(self.handle, lent):
            log.error("no memory instead of what the drive may still read: %s", os.strerror(code))
            return
        self._send(reply)

    def _send(self, reply: bytes) -> None:
        if not reply:
            return
        code = lib.fe_reply(self.handle, reply, len(reply))
        if code not in (0, errno.ENOENT, errno.ENODEV):  # interrupted, or unmounted meanwhile
            log.warning("the kernel refused an answer: %s", os.strerror(code))

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        out = ffi.new("struct fe_statistics *")
        lib.fe_statistics(self.handle, out)
        fields = ffi.typeof("struct fe_statistics").fields
        return {name: int(getattr(out, name)) for name, _ in fields}


@asynccontextmanager
async def opened(
    filesystem: Filesystem,
    mountpoint: str,
    words: Iterable[str],
    upcalls: Upcalls,
    shortcut: Shortcut,
    threads: int | None = None,
    *,
    rings: bool = False,
) -> AsyncIterator[Frontend]:
    """Mount `mountpoint` and start the threads. Raises Unavailable, with nothing left behind.

    `threads` None: as many as this machine has use for. `rings`: requests come through an io_uring for each CPU
    (rings.py). A mount that is still there at the end, because something else failed, is detached.
    """
    usual = min(possible_cpus(), MOST_RINGS) if rings else _threads_for(os.cpu_count() or 1)
    count = min(threads or usual, possible_cpus()) if rings else threads or usual
    queues = await _take_queues(filesystem, count)
    plan = Plan.for_queues(possible_cpus(), len(queues)) if rings else None
    with ExitStack() as stack:
        plane = DataPlane(filesystem.options.cache_mb * MIB // MAPS_SHARE // EXTENT_BYTES)
        stack.callback(plane.close)
        ours, theirs = _socket_pair(stack)
        calls, answers = _socket_pair(stack)
        ended_fd = owned(stack, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        place = Place(mountpoint)
        stack.callback(place.leave)
        fuse_fd = place.mount(stack, words)
        config = ffi.new("struct fe_config *")
        config.ended_fd = ended_fd
        config.requests_fd, config.upcalls_fd = ours.fileno(), calls.fileno()
        config.upcalls = sum(1 << opcode for opcode in (*shortcut.handlers, *upcalls.handlers))
        config.map = plane.map
        count = (
            plan.threads + 1 if plan else len(queues)
        )  # one more for what comes through /dev/fuse
        channels = ffi.new("struct fe_channel_config[]", count)
        config.channels, config.channel_count = channels, count
        for index, channel in enumerate(channels[0:count]):
            channel.fuse_fd = fuse_fd if plan or not index else clone(stack, fuse_fd)
        memory = _configure(config, filesystem, queues, plan)
        rings_fd = None
        if plan:
            rings_fd = owned(stack, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            config.rings_fd = rings_fd
        handle = lib.fe_start(config)
        if handle == ffi.NULL:
            _release(memory)
            raise Unavailable(f"its threads cannot be started: {os.strerror(ffi.errno)}")
        session = theirs.detach()
        frontend = Frontend(
            handle,
            plane,
            upcalls,
            shortcut,
            answers,
            ended_fd,
            session,
            session,
            place,
            memory,
            rings_fd,
        )
        stack.callback(_stop, filesystem, frontend, memory)
        _connect(filesystem, frontend)
        upcalls.notify = partial(_notify, fuse_fd)
        upcalls.operations.kills_at_open = False  # HANDLE_KILLPRIV_V2
        try:
            yield frontend
        finally:
            with trio.CancelScope(shield=True):
                await frontend.end()


def _threads_for(cores: int) -> int:
    """The programs that ask need cores too."""
    return max(1, min(cores // 2, MOST_THREADS))


async def _take_queues(filesystem: Filesystem, count: int) -> list[driver.LeasedQueue]:
    """A queue pair for each thread in C; at least one, and at most `count`."""
    controller = filesystem.device.controller
    if os.geteuid():
        raise Unavailable("only root mounts without fusermount3")
    if controller is None:
        raise Unavailable("the device has no controller of its own")
    if controller.transport.doorbells is None:
        raise Unavailable("the controller's doorbells are no memory that a thread could write")
    queues: list[driver.LeasedQueue] = []
    try:
        while len(queues) < count:
            queues.append(await controller.take_queue())
    except driver.DriverError as error:
        if not queues:
            raise Unavailable(f"no queue pair for it: {error}") from error
        log.info("%d of %d threads: %s", len(queues), count, error)
    return queues


def _configure(
    config: Any, filesystem: Filesystem, queues: list[driver.LeasedQueue], plan: Plan | None
) -> list[driver.DmaBuffer]:
    """All of the configuration but its descriptors. The memory of the requests, to be released."""
    device, namespace, queue = filesystem.device, filesystem.device.namespace, queues[0]
    config.slots = plan.entries if plan else min(SLOTS, ALL_SLOTS // len(queues))
    config.ring_queues, config.spare_slots = (plan.queues, plan.spares) if plan else (0, 0)
    memory = []
    for index, own in enumerate(queues):
        channel = config.channels[index]
        memory.append(namespace.dma.allocate(config.slots * lib.FE_SLOT_BYTES))
        channel.ring = ffi.cast("void *", own.ring_address)
        channel.wakeup_fd = own.wakeup_fd
        channel.naps = own.naps and own.poll != "always"
        channel.memory = ffi.cast("uint8_t *", memory[-1].address)
        channel.memory_iova = memory[-1].iova
    limit = namespace.max_transfer_bytes or lib.FE_MAX_WRITE
    config.want_flags = WANTED | (OVER_IO_URING if plan else 0)
    config.refuse_flags = AUTO_INVAL_DATA
    config.max_background, config.congestion_threshold = MAX_BACKGROUND, CONGESTION_THRESHOLD
    config.unmarked_handles = 2**64 - 1 if filesystem.options.atime == "noatime" else WITHOUT_ATIME
    config.ledger, config.volatile_cache = device.ledger, device.has_volatile_cache
    config.fua = device.fua
    config.restless = queue.poll == "always"
    config.timeout_ns, config.grace_ns = queue.timeout_ns, queue.grace_ns
    config.last_wait_ns = LAST_WAIT_NS + 3 * (queue.timeout_ns + queue.grace_ns)
    config.nsid = namespace.nsid
    config.lbas_per_block = device.lbas_per_block
    config.max_transfer_blocks = max(1, min(limit, lib.FE_MAX_WRITE) // 4096)
    config.spin_ns = 0 if queue.poll == "never" else SPIN_NS
    return memory


def _connect(filesystem: Filesystem, frontend: Frontend) -> None:
    """The filesystem publishes files from now on, and counts what is written without it."""
    handle, plane, journal = frontend.handle, frontend.plane, filesystem.journal

    def require_all_answered() -> None:
        if lost := lib.fe_lost(handle):
            journal.fail(f"{lost} commands of the front end never completed")

    plane.before_waking = require_all_answered
    plane.on_read = filesystem.access_times.served
    frontend.upcall_socket.setblocking(False)
    filesystem.files.plane = plane
    journal.on_failure, journal.on_commit = plane.disable, plane.committed
    plane.committed(journal.committed_seq)
    filesystem.transactions.transaction.on_change = plane.changed


def _release(memory: list[driver.DmaBuffer]) -> None:
    for buffer in memory:
        buffer.release()


def _stop(filesystem: Filesystem, frontend: Frontend, memory: list[driver.DmaBuffer]) -> None:
    """End the threads. Memory that the drive may still use is not given back."""
    log.info("front end: %s", frontend.statistics())
    frontend.plane.collect()
    if (controller := filesystem.device.controller) is not None:
        log.info("driver: %s", controller.statistics().recovery)
    filesystem.files.plane = None
    filesystem.journal.on_failure, filesystem.journal.on_commit = lambda: None, lambda _: None
    filesystem.transactions.transaction.on_change = lambda _: None
    left = lib.fe_stop(frontend.handle)
    if frontend.session_fd >= 0:
        os.close(frontend.session_fd)
    if left:
        filesystem.journal.fail(f"{left} commands of the front end never completed")
    else:
        _release(memory)


def _notify(fuse_fd: int, message: bytes) -> None:
    """Tell the kernel something, in a thread: it may have to ask much before this returns.

    Not through libfuse: the thread that carries its messages must go on carrying its answers.
    """
    try:
        os.write(fuse_fd, message)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # not in its cache, or unmounted
            raise


def _socket_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """SOCK_SEQPACKET, with room for several of the largest messages; closed at the end."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        stack.enter_context(end)
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)
    return pair
