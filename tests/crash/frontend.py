"""Workloads whose writes go through the front end in C: published files, a queue pair of its own, lent memory.

The test is the kernel, which sends FUSE requests, and the controller, which takes the commands of the C thread
from its ring and does them on the drive in memory. So the power is cut between a write of the C thread and
whatever else is under way, and fsync, of the thread or of Python, must cover what the other has written.
Writes of new blocks the thread leaves to Python, which writes them from the thread's memory (decision 0020).
"""

from __future__ import annotations

import errno
import random
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, cast

import trio

from driver import DmaBuffer
from driver._core import ffi as ring_ffi
from nvmefs._core import ffi
from nvmefs.dataplane import OFFER_AFTER, DataPlane
from nvmefs.errors import NoSpace
from nvmefs.frontend import Frontend
from nvmefs.layout import BLOCK_BYTES
from nvmefs.operations import Operations
from nvmefs.shortcut import Shortcut
from nvmefs.upcalls import Upcalls
from nvmefs.wire import Request
from tests.crash.workloads import Operation, Recorder
from tests.nvmefs.frontbench import DEPTH, OUT_HEADER, WRITE, Bench, wait_until

FLUSH_COMMAND, WRITE_COMMAND = 0x00, 0x01
MEMORY_AT, LISTS_AT = 1 << 32, 0x100000  # where the bench tells the thread that its memory is
PUBLISHED_SHARE = 0.5
MOST_BLOCKS = 4
LOG_SHARE, LOG_WRITES = 0.1, 5
LENT_BLOCKS = (4, 6)  # of a write that is lent, at least and at most


class FrontRecorder(Recorder):
    """A Recorder with a data plane. `served` counts what C has done, `lent` the writes from its memory."""

    served = lent = 0
    ahead: Sequence[Operation] = ()  # chosen already
    bench: Bench
    frontend: Frontend

    async def long_run(self, seed: str, operations: int) -> None:
        filesystem, journal = self.filesystem, self.filesystem.journal
        transaction = filesystem.transactions.transaction
        plane = DataPlane()
        self.bench = Bench(
            8,
            10**10,
            1,
            False,
            True,
            upcalls=1 << WRITE,
            files=plane.map,
            ledger=filesystem.device.ledger,
        )
        self.frontend = self.python_half(plane)
        filesystem.files.plane = plane
        journal.on_commit, transaction.on_change = plane.committed, plane.changed
        plane.committed(journal.committed_seq)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.drain)
                await super().long_run(seed, operations)
                for number in self.model.files():
                    await filesystem.files.withdraw(await filesystem.getattr(number))
                nursery.cancel_scope.cancel()
        finally:
            filesystem.files.plane = None
            journal.on_commit, transaction.on_change = lambda _: None, lambda _: None
            left = self.bench.stop()
            plane.close()
        assert not left

    def python_half(self, plane: DataPlane) -> Frontend:
        """As it is in a mount, but for who takes the requests."""
        operations = Operations(self.filesystem)
        view = memoryview(ffi.buffer(self.bench.memory))
        memory = [DmaBuffer(cast(Any, None), view, MEMORY_AT, None)]
        return Frontend(
            self.bench.handle,
            plane,
            Upcalls(operations),
            Shortcut(operations),
            self.bench.caller,
            -1,
            -1,
            -1,
            cast(Any, None),
            memory,
        )

    def choose(self, rng: random.Random) -> Operation:
        """Between all other operations, those that a published file sees; of few files, and more overwrites."""
        if self.ahead:
            operation, *self.ahead = self.ahead
            return operation
        files = [path for path in self.paths() if self.number(path) in self.model.files()]
        if not files or rng.random() > PUBLISHED_SHARE:
            return super().choose(rng)
        extend = ("extend", rng.choice(files), rng.randrange(2), rng.randint(*LENT_BLOCKS))
        if rng.random() < LOG_SHARE:  # each write of a file is followed by an fsync
            path, at = rng.choice(files), rng.randrange(64)
            write = rng.choice([("extend", path, 1, 1), ("overwrite", path, at, 1)])
            self.ahead = [write, ("fdatasync", path)] * LOG_WRITES
        paths = [path for path in files if len(self.model.nodes[self.number(path)].places) > 1]
        if not paths:
            return extend
        path = rng.choice(paths[:3])
        overwrite = ("overwrite", path, rng.randrange(64), rng.randrange(1, MOST_BLOCKS + 1))
        others = [("fsync", path), ("fdatasync", path), ("chmod", path, rng.choice((0o600, 0o640)))]
        return rng.choice([overwrite, overwrite, overwrite, extend, extend, *others])

    async def do_overwrite(self, path: str, at: int, count: int) -> None:
        """Whole blocks inside of the file, by the front end if it has the map."""
        number = self.file(path)
        node = self.model.nodes[number]
        whole = len(node.content) // BLOCK_BYTES
        if not whole:
            raise KeyError(path)
        first = at % whole
        count = min(count, whole - first)
        data = self.data(count * BLOCK_BYTES)
        inode = await self.filesystem.getattr(number)
        for _ in range(OFFER_AFTER):
            if not inode.published:
                await self.filesystem.read(number, 0, BLOCK_BYTES)
        await self.through_c(self.bench.ask_write(first, data, number))
        self.model.write(number, first * BLOCK_BYTES, data)
        if self.moved(node, number):
            self.note(number, mapped=True)

    async def do_extend(self, path: str, aligned: int, count: int) -> None:
        """New blocks at the end, from where the kernel has put their data."""
        number = self.file(path)
        node = self.model.nodes[number]
        offset = len(node.content)
        if aligned:
            offset += -offset % BLOCK_BYTES
        data = self.data(count * BLOCK_BYTES)
        await self.through_c(self.bench.ask_write_at(offset, data, number))
        if offset >= BLOCK_BYTES:
            self.spill_first(number)
        self.model.write(number, offset, data)
        self.note(number, mapped=True)

    async def fsync(self, number: int, covered: dict[int, int], *, data_only: bool) -> None:
        promise, now = covered.get(number, 0), self.now
        if not await self.through_c(self.bench.ask_fsync(data_only, number)):
            await self.filesystem.fsync(number, data_only=data_only)
        self.promise(number, promise, now)

    async def through_c(self, unique: int) -> bool:
        """A request of the kernel has been sent: do the commands that follow from it, and take its answer.

        A write that the thread leaves to Python is done as well; False of other requests that it leaves.
        """
        bench = self.bench
        ends = (bench.python, bench.caller, bench.kernel)
        while True:
            wait_until(lambda: bench.has_command or any(readable(end) for end in ends))
            if bench.has_command:
                opcode, cid = bench.command()
                if opcode == FLUSH_COMMAND:
                    await self.namespace.flush()
                else:
                    await self.namespace.write(*self.payload(), fua=bench.has_fua)
                bench.complete(cid)
            elif readable(bench.kernel):
                answered, error, _ = bench.answer()
                assert (answered, error) == (unique, 0)
                self.served += 1
                return True
            elif readable(bench.caller):
                await self.write_in_python(Request.of(bench.caller.recv(2 << 20)))
                return True
            else:
                assert bench.forwarded()[1] == unique
                bench.python.send(OUT_HEADER.pack(OUT_HEADER.size, 0, unique))
                bench.answer()
                return False

    async def write_in_python(self, request: Request) -> None:
        if request.missing:
            self.lent += 1
            await self.frontend.answer_lent(request)
        else:
            self.bench.reply(await self.frontend.shortcut.answer(request))
        answered, error, _ = self.bench.answer()
        assert answered == request.unique
        if error == errno.ENOSPC:
            raise NoSpace
        assert not error

    def payload(self) -> tuple[int, bytes]:
        """Where the last command taken writes, and what: read through its PRPs, as a controller does."""
        at = (self.bench.taken - 1) % DEPTH * 64
        command: Any = ring_ffi.buffer(self.bench.sq)[at : at + 64]
        prp1, prp2, lba, count = struct.unpack_from("<QQQH", command, 24)
        assert command[0] == WRITE_COMMAND
        pages = (count + 1) * self.namespace.lba_bytes // BLOCK_BYTES
        places = [prp1]
        if pages == 2:
            places.append(prp2)
        elif pages > 2:
            start = prp2 - LISTS_AT
            listed = ring_ffi.buffer(self.bench.lists)[start : start + 8 * (pages - 1)]
            places += struct.unpack(f"<{pages - 1}Q", listed)
        memory = ffi.buffer(self.bench.memory)
        parts = [memory[place - MEMORY_AT : place - MEMORY_AT + BLOCK_BYTES] for place in places]
        return lba, b"".join(parts)


def readable(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 0)[0])
