"""A controller in plain Python for unit tests: small, synchronous, and willing to misbehave.

It acts inside write32() of a doorbell, in the thread of the test, so every test is deterministic. It has no
mapped doorbells: it also tests the way by messages. PRPs are walked here by code that shares nothing with
driver/core/prp.h.

What it may do to a command is decided by `fate`, a function of (queue id, 64-byte command) that returns
None (serve it) or a Fate:
    status       complete with this status field, serve nothing
    drop         never complete
    hold         complete when finish_held() is called (with the status, if there is one)
    quiet        serve and complete, but do not signal the interrupt
    twice        complete two times
    wrong_cid    complete with this command id instead
    data         serve by returning these bytes
    result       dword 0 of the completion
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from driver.transports import Doorbells

PAGE = 4096
Command = bytes


@dataclass
class Fate:
    """See the top of the file."""

    status: int = 0
    drop: bool = False
    hold: bool = False
    quiet: bool = False
    twice: bool = False
    wrong_cid: int | None = None
    data: bytes | None = None
    result: int | None = None


@dataclass
class _Queue:
    iova: int
    entries: int
    cqid: int = 0
    vector: int | None = 0
    head: int = 0
    tail: int = 0
    phase: int = 1


def identify_controller(
    *, mdts: int = 5, oncs: int = 0x0D, vwc: int = 1, oacs: int = 0
) -> bytearray:
    """The 4,096 bytes of a sane controller, to be spoilt by tests."""
    raw = bytearray(4096)
    struct.pack_into(
        "<HH20s40s8s", raw, 0, 0x1234, 0x1234, b"S1".ljust(20), b"fake".ljust(40), b"1"
    )
    raw[77] = mdts
    struct.pack_into("<I", raw, 80, 0x10400)
    struct.pack_into("<H", raw, 256, oacs)
    raw[258], raw[259] = 3, 3
    raw[512], raw[513] = 0x66, 0x44
    struct.pack_into("<I", raw, 516, 1)
    struct.pack_into("<H", raw, 520, oncs)
    raw[525] = vwc
    return raw


def identify_namespace(*, blocks: int = 8192, shift: int = 9, noiob: int = 0) -> bytearray:
    """The 4,096 bytes of a sane namespace."""
    raw = bytearray(4096)
    struct.pack_into("<QQQ", raw, 0, blocks, blocks, blocks)
    struct.pack_into("<H", raw, 46, noiob)
    struct.pack_into("<I", raw, 128, shift << 16)
    return raw


@dataclass
class FakeController:
    """A Transport with a controller behind it."""

    name: str = "fake"
    address: str = "fake:0"
    vectors: int = 4
    io_queues: int = 4
    max_entries: int = 64
    controller: bytearray = field(default_factory=identify_controller)
    namespace: bytearray = field(default_factory=identify_namespace)
    fate: Callable[[int, Command], Fate | None] = lambda _qid, _command: None
    ready: bool = True
    fatal: bool = False
    gone: bool = False
    shutdown_works: bool = True
    abort_works: bool = True
    version: int = 0x10400
    timeout_units: int = 1
    command_sets: int = 0x01
    iova_ranges: Sequence[tuple[int, int]] = ((0x10000, (1 << 40) - 1),)
    doorbells: Doorbells | None = None

    def __post_init__(self) -> None:
        shift = self.namespace[130]
        blocks = int.from_bytes(self.namespace[0:8], "little")
        self.block = 1 << shift
        self.data = bytearray(min(blocks << shift, 64 << 20))
        self.log: list[tuple[int, Command]] = []
        self.cc_writes: list[int] = []
        self.closed = 0
        self.resets = 0
        self.unmapped = 0
        self.events: list[int] = []
        self._held: list[tuple[int, Command]] = []
        self._held_status: dict[tuple[int, Command], int] = {}
        self._async: list[tuple[int, Command]] = []
        self._regs = {0x14: 0, 0x24: 0, 0x28: 0, 0x30: 0}
        self._memory: dict[int, tuple[mmap.mmap, int]] = {}
        self._sq: dict[int, _Queue] = {}
        self._cq: dict[int, _Queue] = {}
        self._fds: list[int] = []

    # ---- transport -----------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        if self.gone:
            return 0xFFFFFFFF
        if offset == 0x08:
            return self.version
        if offset == 0x1C:
            enabled = self._regs[0x14] & 1
            csts = int(bool(enabled and self.ready)) | int(self.fatal) << 1
            if self._regs[0x14] >> 14 & 3 and self.shutdown_works:
                csts |= 2 << 2
            return csts
        return self._regs.get(offset, 0) & 0xFFFFFFFF

    def read64(self, offset: int) -> int:
        if self.gone:
            return (1 << 64) - 1
        if offset == 0:
            return (
                self.max_entries - 1 | 1 << 16 | self.timeout_units << 24 | self.command_sets << 37
            )
        return self._regs.get(offset, 0)

    def write32(self, offset: int, value: int) -> None:
        if self.gone:
            return
        if offset >= 0x1000:
            self._doorbell((offset - 0x1000) // 4, value)
            return
        before, self._regs[offset] = self._regs.get(offset, 0), value
        if offset == 0x14:
            self.cc_writes.append(value)
        if offset == 0x14 and value & 1 and not before & 1:
            self._enable()
        if offset == 0x14 and before & 1 and not value & 1:
            self.resets += 1
            self._sq.clear()
            self._cq.clear()
            self._held.clear()
            self._async.clear()

    def write64(self, offset: int, value: int) -> None:
        self._regs[offset] = value

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        assert iova % PAGE == length % PAGE == offset % PAGE == 0
        for first, (memory, _) in self._memory.items():
            assert iova + length <= first or iova >= first + len(memory), "regions overlap"
        self._memory[iova] = (mmap.mmap(fd, length, offset=offset), length)

    def unmap(self, iova: int, length: int) -> None:
        memory, mapped = self._memory.pop(iova)
        assert mapped == length
        memory.close()
        self.unmapped += 1

    def enable_interrupts(self, eventfds: Sequence[int]) -> None:
        assert len(eventfds) <= self.vectors
        self._fds = list(eventfds)

    def disable_interrupts(self) -> None:
        self._fds = []

    def close(self) -> None:
        self.closed += 1
        for memory, _ in self._memory.values():
            memory.close()
        self._memory.clear()

    # ---- memory --------------------------------------------------------------------------------

    def _at(self, iova: int, length: int) -> tuple[mmap.mmap, int]:
        for first, (memory, size) in self._memory.items():
            if first <= iova and iova + length <= first + size:
                return memory, iova - first
        raise AssertionError(f"DMA to {iova:#x}+{length}, which is not mapped")

    def _pages(self, command: Command, length: int) -> list[tuple[int, int]]:
        """(iova, bytes) of a data buffer, by the words of the specification."""
        prp1, prp2 = struct.unpack_from("<QQ", command, 24)
        first = min(PAGE - prp1 % PAGE, length)
        out, length = [(prp1, first)], length - first
        if length <= PAGE:
            return out + ([(prp2, length)] if length else [])
        at = prp2
        while length:
            memory, offset = self._at(at, 8)
            (entry,) = struct.unpack_from("<Q", memory, offset)
            if at % PAGE == PAGE - 8 and length > PAGE:
                assert entry % PAGE == 0
                at = entry
                continue
            assert entry % PAGE == 0, "a PRP list entry with an offset"
            out.append((entry, min(PAGE, length)))
            length -= min(PAGE, length)
            at += 8
        return out

    def _to_host(self, command: Command, data: bytes | bytearray) -> None:
        done = 0
        for iova, n in self._pages(command, len(data)):
            memory, offset = self._at(iova, n)
            memory[offset : offset + n] = bytes(data[done : done + n])
            done += n

    def _from_host(self, command: Command, length: int) -> bytes:
        out = bytearray()
        for iova, n in self._pages(command, length):
            memory, offset = self._at(iova, n)
            out += memory[offset : offset + n]
        return bytes(out)

    # ---- queues --------------------------------------------------------------------------------

    def _enable(self) -> None:
        aqa = self._regs[0x24]
        self._sq[0] = _Queue(self._regs[0x28], (aqa & 0xFFF) + 1)
        self._cq[0] = _Queue(self._regs[0x30], (aqa >> 16 & 0xFFF) + 1)

    def _doorbell(self, index: int, value: int) -> None:
        qid = index // 2
        if index % 2:
            assert value < self._cq[qid].entries
            return
        queue = self._sq[qid]
        assert value < queue.entries
        queue.tail = value
        while qid in self._sq and queue.head != queue.tail:
            memory, offset = self._at(queue.iova + 64 * queue.head, 64)
            command = bytes(memory[offset : offset + 64])
            queue.head = (queue.head + 1) % queue.entries
            self.log.append((qid, command))
            self._serve(qid, command)

    def _serve(self, qid: int, command: Command) -> None:
        fate = self.fate(qid, command) or Fate()
        if fate.drop:
            return
        if fate.hold:
            self._held.append((qid, command))
            self._held_status[qid, command] = fate.status
            return
        if qid == 0 and command[0] == 0x0C and not fate.status:
            self._async.append((qid, command))
            return
        status, result = fate.status, fate.result or 0
        if fate.data is not None:
            self._to_host(command, fate.data)
        elif not status and fate.result is None:
            status, result = (self._admin if qid == 0 else self._io)(command)
        cid = struct.unpack_from("<H", command, 2)[0] if fate.wrong_cid is None else fate.wrong_cid
        for _ in range(2 if fate.twice else 1):
            self._complete(qid, cid, status, result, fate.quiet)

    def _complete(self, qid: int, cid: int, status: int, result: int, quiet: bool = False) -> None:
        sq = self._sq[qid]
        cq = self._cq[sq.cqid]
        memory, offset = self._at(cq.iova + 16 * cq.tail, 16)
        entry = struct.pack("<IIHHHH", result, 0, sq.head, qid, cid, status << 1 | cq.phase)
        memory[offset : offset + 16] = entry
        cq.tail += 1
        if cq.tail == cq.entries:
            cq.tail, cq.phase = 0, cq.phase ^ 1
        if cq.vector is not None and not quiet and self._fds:
            os.eventfd_write(self._fds[cq.vector], 1)

    def finish_held(self, count: int | None = None, *, quiet: bool = False) -> None:
        """Serves what was held, in the order of arrival."""
        held, self._held = self._held[:count], self._held[len(self._held[:count]) :]
        for qid, command in held:
            status, result = self._held_status.pop((qid, command)), 0
            if not status:
                status, result = self._io(command)
            cid = struct.unpack_from("<H", command, 2)[0]
            self._complete(qid, cid, status, result, quiet)

    @property
    def held(self) -> int:
        return len(self._held)

    def event(self, result: int) -> None:
        """Completes an outstanding Asynchronous Event Request."""
        qid, command = self._async.pop(0)
        self._complete(qid, struct.unpack_from("<H", command, 2)[0], 0, result)

    # ---- commands ------------------------------------------------------------------------------

    def _admin(self, command: Command) -> tuple[int, int]:
        opcode = command[0]
        cdw10, cdw11 = struct.unpack_from("<II", command, 40)
        prp1 = struct.unpack_from("<Q", command, 24)[0]
        if opcode == 0x06:
            cns = cdw10 & 0xFF
            pages = {0: self.namespace, 1: self.controller, 2: bytearray(struct.pack("<I", 1))}
            if cns not in pages:
                return 0x4002, 0
            self._to_host(command, pages[cns].ljust(4096, b"\0"))
        elif opcode in (0x01, 0x05):
            qid, entries = cdw10 & 0xFFFF, (cdw10 >> 16) + 1
            if not 1 <= qid <= self.io_queues or entries > self.max_entries:
                return 0x4101, 0
            if opcode == 0x05:
                vector = cdw11 >> 16 if cdw11 & 2 else None
                assert vector is None or vector < self.vectors
                self._cq[qid] = _Queue(prp1, entries, vector=vector)
            else:
                self._sq[qid] = _Queue(prp1, entries, cqid=cdw11 >> 16)
        elif opcode == 0x00:
            del self._sq[cdw10 & 0xFFFF]
        elif opcode == 0x04:
            assert not any(q.cqid == cdw10 & 0xFFFF for i, q in self._sq.items() if i)
            del self._cq[cdw10 & 0xFFFF]
        elif opcode == 0x09 and cdw10 & 0xFF == 7:
            granted = min((cdw11 & 0xFFFF) + 1, self.io_queues) - 1
            return 0, granted << 16 | granted
        elif opcode == 0x0A:
            return 0, 1
        elif opcode == 0x02:
            self._to_host(command, bytes(((cdw10 >> 16) + 1) * 4))
        elif opcode == 0x08:
            return self._abort(cdw10)
        return 0, 0

    def _abort(self, cdw10: int) -> tuple[int, int]:
        for i, (qid, command) in enumerate(self._held):
            cid = struct.unpack_from("<H", command, 2)[0]
            if self.abort_works and qid == cdw10 & 0xFFFF and cid == cdw10 >> 16:
                del self._held[i]
                self._complete(qid, cid, 0x07, 0)
                return 0, 0
        return 0, 1

    def _io(self, command: Command) -> tuple[int, int]:
        opcode = command[0]
        lba, cdw12 = struct.unpack_from("<QI", command, 40)
        first, length = lba * self.block, ((cdw12 & 0xFFFF) + 1) * self.block
        if opcode in (0x01, 0x02, 0x05, 0x08) and first + length > len(self.data):
            return 0x4080, 0
        if opcode == 0x02:
            self._to_host(command, self.data[first : first + length])
        elif opcode == 0x01:
            self.data[first : first + length] = self._from_host(command, length)
        elif opcode == 0x08:
            self.data[first : first + length] = bytes(length)
        elif (
            opcode == 0x05 and self._from_host(command, length) != self.data[first : first + length]
        ):
            return 0x285, 0
        elif opcode == 0x09:
            count = (lba & 0xFF) + 1
            for _, n, at in struct.iter_unpack("<IIQ", self._from_host(command, 16 * count)):
                self.data[at * self.block : (at + n) * self.block] = bytes(n * self.block)
        return 0, 0
