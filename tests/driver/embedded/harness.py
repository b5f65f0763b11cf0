"""A host for the embedded controller, made of registers and memory alone.

It shares nothing with the driver proper, so that the two check each other: commands are packed with
struct, queues are slices of one memfd, and completions are found by their phase bit.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import struct
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from driver.transports.embedded import EmbeddedTransport, open_embedded

PAGE = 4096
CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0, 8, 0xC, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
CC_ENABLE = 1 | 6 << 16 | 4 << 20
RDY, CFS, SHST_COMPLETE = 1, 2, 8
DEADLINE_S = 10.0
IOVA = 0x100000

DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY = 0, 1, 2, 4, 5, 6
ABORT, SET_FEATURES, GET_FEATURES, ASYNC_EVENT, DOORBELL_BUFFER = 8, 9, 0xA, 0xC, 0x7C
FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY = 0, 1, 2, 5, 8, 9, 0xC
COPY, FORMAT, SGL = 0x19, 0x80, 0x40
FUA, DEAC = 1 << 30, 1 << 25


class Completion(NamedTuple):
    """One completion queue entry; `status` is (type << 8 | code), `dnr` its do-not-retry bit."""

    cid: int
    status: int
    dnr: bool
    result: int
    sq_head: int
    sq_id: int


class Memory:
    """A memfd mapped here and, at `iova`, in the controller; pages are handed out upwards."""

    def __init__(self, size: int, iova: int = IOVA) -> None:
        self.fd = os.memfd_create("harness", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.words = memoryview(self.map).cast("I")
        self.size, self.iova, self.used = size, iova, 0

    def take(self, nbytes: int) -> int:
        """Offset of fresh zeroed pages."""
        offset = self.used
        self.used += -(-nbytes // PAGE) * PAGE
        assert self.used <= self.size, "harness memory is too small for this test"
        self.map[offset : self.used] = bytes(self.used - offset)
        return offset

    def close(self) -> None:
        self.words.release()
        self.map.close()
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Queue:
    """A queue pair: ring memory, doorbells, phase."""

    def __init__(
        self, host: Host, qid: int, entries: int, cq_entries: int, sq: int, cq: int
    ) -> None:
        self.host, self.qid, self.entries, self.cq_entries = host, qid, entries, cq_entries
        self.sq, self.cq = sq, cq
        self.tail = self.head = 0
        self.phase = 1

    def push(self, command: bytes) -> None:
        """Into the ring, without a doorbell."""
        at = self.sq + self.tail * 64
        self.host.memory.map[at : at + 64] = command
        self.tail = (self.tail + 1) % self.entries

    def ring(self) -> None:
        self.host.doorbell(2 * self.qid, self.tail)

    def poll(self, *, ring_head: bool = True) -> Completion | None:
        """The next completion, if it is there."""
        at = self.cq + self.head * 16
        if self.host.memory.map[at + 14] & 1 != self.phase:
            return None
        # Only now: what was read before the phase bit may be of the last round.
        fields = struct.unpack_from("<IIHHHH", self.host.memory.map, at)
        result, _, sq_head, sq_id, cid, status = fields
        self.head += 1
        if self.head == self.cq_entries:
            self.head, self.phase = 0, self.phase ^ 1
        if ring_head:
            self.ring_head()
        status >>= 1
        return Completion(cid, status & 0x7FF, bool(status & 0x4000), result, sq_head, sq_id)

    def ring_head(self) -> None:
        self.host.doorbell(2 * self.qid + 1, self.head)

    def reap(self, count: int = 1, *, ring_head: bool = True) -> list[Completion]:
        """Exactly `count` completions, within the deadline."""
        found: list[Completion] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < count:
            completion = self.poll(ring_head=ring_head)
            if completion is not None:
                found.append(completion)
                continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"queue {self.qid}: {len(found)} of {count} completions")
            time.sleep(0)
        return found

    def run(self, command: bytes) -> Completion:
        """One command from push to completion."""
        self.push(command)
        self.ring()
        return self.reap()[0]


def command(
    opcode: int,
    *,
    cid: int = 1,
    nsid: int = 0,
    prp1: int = 0,
    prp2: int = 0,
    flags: int = 0,
    cdw: Sequence[int] = (),
) -> bytes:
    """64 bytes; `cdw` are dwords 10 and on."""
    dwords = [*cdw, *[0] * (6 - len(cdw))]
    return struct.pack("<BBHIQQQQ6I", opcode, flags, cid, nsid, 0, 0, prp1, prp2, *dwords)


def rw(
    opcode: int, lba: int, blocks: int, *, cid: int = 1, prp1: int = 0, prp2: int = 0, bits: int = 0
) -> bytes:
    """A command that names blocks: `bits` go into dword 12."""
    dwords = (lba & 0xFFFFFFFF, lba >> 32, (blocks - 1) | bits)
    return command(opcode, cid=cid, nsid=1, prp1=prp1, prp2=prp2, cdw=dwords)


class Host:
    """An embedded controller with DMA memory, an admin queue and, on demand, I/O queues."""

    def __init__(self, path: str, *, memory_bytes: int = 8 << 20, **options: Any) -> None:
        self.transport: EmbeddedTransport = open_embedded(path, **options)
        self.memory = Memory(memory_bytes)
        self.transport.map(self.memory.fd, 0, memory_bytes, IOVA)
        doorbells = self.transport.doorbells
        assert doorbells is not None
        self.doorbells = (ctypes.c_uint32 * 1024).from_address(doorbells.address)
        self.kick_fd = doorbells.kick_fd
        self.shadow = self.events = -1
        self.kicks = 0
        self.eventfds: list[int] = []
        self.admin = self.make_queue(0, 32)

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.transport.close()
        self.memory.close()
        for fd in self.eventfds:
            os.close(fd)
        self.eventfds = []

    # ---- registers

    def wait_csts(self, mask: int, value: int) -> int:
        deadline = time.monotonic() + DEADLINE_S
        while (csts := self.transport.read32(CSTS)) & mask != value:
            if time.monotonic() > deadline:
                raise TimeoutError(f"CSTS is {csts:#x}, wanted {value:#x} in {mask:#x}")
            time.sleep(0.0005)
        return csts

    def enable(self, cc: int = CC_ENABLE, *, wait: bool = True) -> None:
        self.admin = Queue(
            self, 0, self.admin.entries, self.admin.cq_entries, self.admin.sq, self.admin.cq
        )
        self.memory.map[self.admin.cq : self.admin.cq + PAGE] = bytes(PAGE)
        self.transport.write32(AQA, (self.admin.cq_entries - 1) << 16 | (self.admin.entries - 1))
        self.transport.write64(ASQ, IOVA + self.admin.sq)
        self.transport.write64(ACQ, IOVA + self.admin.cq)
        self.transport.write32(CC, cc)
        if wait:
            self.wait_csts(RDY | CFS, RDY)

    def disable(self) -> None:
        self.transport.write32(CC, CC_ENABLE & ~1)
        self.wait_csts(RDY, 0)
        self.shadow = self.events = -1

    # ---- queues

    def make_queue(self, qid: int, entries: int, cq_entries: int | None = None) -> Queue:
        cq_entries = entries if cq_entries is None else cq_entries
        sq, cq = self.memory.take(entries * 64), self.memory.take(cq_entries * 16)
        return Queue(self, qid, entries, cq_entries, sq, cq)

    def create_queue(
        self,
        qid: int,
        entries: int = 64,
        cq_entries: int | None = None,
        *,
        vector: int | None = None,
    ) -> Queue:
        queue = self.make_queue(qid, entries, cq_entries)
        bits = 1 if vector is None else 3 | vector << 16
        size = (queue.cq_entries - 1) << 16
        create = command(CREATE_CQ, prp1=IOVA + queue.cq, cdw=(qid | size, bits))
        assert self.admin.run(create).status == 0
        create = command(
            CREATE_SQ, prp1=IOVA + queue.sq, cdw=(qid | (entries - 1) << 16, 1 | qid << 16)
        )
        assert self.admin.run(create).status == 0
        return queue

    def start(self, entries: int = 64, **kwargs: int | None) -> Queue:
        """Enabled, with I/O queue pair 1."""
        self.enable()
        return self.create_queue(1, entries, **kwargs)

    def interrupts(self, count: int) -> list[int]:
        fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
        self.eventfds += fds
        self.transport.enable_interrupts(fds)
        return fds

    # ---- doorbells

    def use_shadow(self) -> None:
        self.shadow, self.events = self.memory.take(PAGE), self.memory.take(PAGE)
        reply = self.admin.run(
            command(DOORBELL_BUFFER, prp1=IOVA + self.shadow, prp2=IOVA + self.events)
        )
        assert reply.status == 0

    def doorbell(self, index: int, value: int) -> None:
        """By shadow and event index where they are on (I/O queues), by register elsewhere."""
        if self.shadow >= 0 and index >= 2:
            # In one store each: struct.pack_into would let a zero be seen before the value.
            words, shadow, events = self.memory.words, self.shadow // 4, self.events // 4
            old = words[shadow + index]
            words[shadow + index] = value
            full_fence()
            event = words[events + index]
            if (value - event - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
        self.doorbells[index] = value
        self.kick()

    def kick(self) -> None:
        self.kicks += 1
        os.eventfd_write(self.kick_fd, 1)

    # ---- data

    def iova(self, offset: int) -> int:
        return IOVA + offset

    def identify(self, cns: int, nsid: int = 0) -> tuple[Completion, bytes]:
        at = self.memory.take(PAGE)
        reply = self.admin.run(command(IDENTIFY, nsid=nsid, prp1=IOVA + at, cdw=(cns,)))
        return reply, bytes(self.memory.map[at : at + PAGE])

    def error_log(self) -> list[tuple[int, int, int, int]]:
        """(count, queue id, command id, status) of each entry that is used, newest first."""
        at = self.memory.take(PAGE)
        reply = self.admin.run(command(GET_LOG, prp1=IOVA + at, cdw=(1 | 1023 << 16,)))
        assert reply.status == 0
        entries = [struct.unpack_from("<QHHH", self.memory.map, at + 64 * i) for i in range(64)]
        return [(count, sq, cid, status >> 1) for count, sq, cid, status in entries if count]


_FENCE_LOCK = threading.Lock()


def full_fence() -> None:
    """Taking a lock is a locked instruction: a full barrier on every machine this runs on."""
    with _FENCE_LOCK:
        pass


def signalled(fd: int, timeout_s: float = DEADLINE_S) -> int:
    """Counter of an eventfd once it is above zero; 0 when it stayed silent that long."""
    if not select.select([fd], [], [], timeout_s)[0]:
        return 0
    return os.eventfd_read(fd)
