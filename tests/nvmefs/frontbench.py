"""A front end with the test as the kernel, as pyfuse3, as the controller and as its driver."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from driver._core import ffi as ring_ffi
from driver._core import lib as ring_lib
from driver.interrupts import Wakeup
from nvmefs._core import ffi, lib
from nvmefs.layout import BLOCK_BYTES

IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>
READ_IN = WRITE_IN = struct.Struct("<QQIIQII")
READLINK, READ, WRITE, FSYNC = 5, 15, 16, 20
ABORTED = 0x07
DEPTH = 64

INODE = 77
FIRST_BLOCK = 1000
BOUND_S = 5.0
LAST_WAIT_NS = 3 * 10**8

QUIET_HANDLE = 1 << 59  # reads by it are not marked


def wait_until(condition: Callable[[], object]) -> None:
    """Look again until it holds; fails after the bound."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Bench:
    """A front end between three ends that are all the test's."""

    def __init__(
        self,
        slots: int,
        timeout_ns: int,
        list_pages: int,
        naps: bool,
        volatile_cache: bool,
        *,
        upcalls: int = 0,
        files: Any = None,
        ledger: Any = None,
        spin_ns: int = 1000,
        fua: bool = True,
    ) -> None:
        """`files` is a map and `ledger` an account of writes that others own; else both are the bench's."""
        self.kernel, self.fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.clone, self.second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.clone.settimeout(BOUND_S)
        self.python, self.requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.caller, self.upcalls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
        self.requests.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 << 20)
        self.kernel.settimeout(BOUND_S)
        self.python.settimeout(BOUND_S)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.drain_fd, self.ended_fd, self.vector_fd = (os.eventfd(0, flags) for _ in range(3))
        self.attention_fd = os.eventfd(0, flags)
        self.wakeup = Wakeup(-1 if naps else self.vector_fd)
        self.owns_map = files is None
        self.map: Any = lib.dm_new(self.drain_fd) if self.owns_map else files
        self.ledger: Any = ledger or ffi.gc(lib.ledger_new(), lib.ledger_free)
        self._make_ring(list_pages)
        self.memory = ffi.new("uint8_t[]", 2 * slots * lib.FE_SLOT_BYTES)
        config = ffi.new("struct fe_config *")
        channel = ffi.new("struct fe_channel_config[2]")
        channel[0].fuse_fd, config.requests_fd = self.fuse.fileno(), self.requests.fileno()
        config.upcalls_fd, config.ended_fd = self.upcalls.fileno(), self.ended_fd
        config.upcalls = upcalls
        config.map = self.map
        config.unmarked_handles = QUIET_HANDLE
        config.channels, config.channel_count = channel, 2
        config.ledger, config.volatile_cache = self.ledger, volatile_cache
        config.fua = fua
        channel[0].ring = ffi.cast("void *", int(ring_ffi.cast("uintptr_t", self.ring)))
        channel[0].wakeup_fd = self.wakeup.fd
        channel[0].naps = naps
        config.grace_ns = timeout_ns
        config.last_wait_ns = LAST_WAIT_NS
        config.nsid = 1
        config.lbas_per_block = 8
        config.max_transfer_blocks = 256
        config.timeout_ns = timeout_ns
        channel[0].memory = self.memory
        channel[0].memory_iova = 1 << 32
        channel[1].fuse_fd, channel[1].wakeup_fd = self.second.fileno(), -1  # and no ring
        channel[1].memory = self.memory + slots * lib.FE_SLOT_BYTES
        config.slots = slots
        config.spin_ns = spin_ns
        self.handle: Any = lib.fe_start(config)
        assert self.handle != ffi.NULL
        self.unique = 0

    def _make_ring(self, list_pages: int) -> None:
        self.sq = ring_ffi.new("char[]", DEPTH * 64)
        self.cq = ring_ffi.new("char[]", DEPTH * 16)
        self.lists = ring_ffi.new("char[]", DEPTH * 4096)
        raw = ring_lib.nv_ring_new(
            1, DEPTH, self.sq, self.cq, self.lists, 0x100000, list_pages, 4096
        )
        self.ring: Any = ring_ffi.gc(raw, ring_lib.nv_ring_free)
        self.bells = ring_ffi.new("uint32_t[2]")
        self.ring.sq_doorbell = self.bells
        self.ring.cq_doorbell = self.bells + 1
        self.lease = ring_ffi.addressof(self.ring, "lease")
        self.lease.attention_fd = self.attention_fd
        self.taken = self.answered = 0

    # the controller

    @property
    def has_command(self) -> bool:
        return bool(self.bells[0] != self.taken % DEPTH)

    def command(self) -> tuple[int, int]:
        """The next command that was submitted: its opcode and id."""
        wait_until(lambda: self.has_command)
        self.taken += 1
        return self._entry(self.taken - 1)

    def sent(self, index: int) -> int:
        """The id of the command that was submitted as `index`."""
        return self._entry(index)[1]

    def _entry(self, index: int) -> tuple[int, int]:
        at = index % DEPTH * 64
        opcode, _, cid = struct.unpack_from("<BBH", ring_ffi.buffer(self.sq)[at : at + 4])
        return opcode, cid

    @property
    def has_fua(self) -> bool:
        """Whether the last command taken is a write with Force Unit Access."""
        at = (self.taken - 1) % DEPTH * 64
        (dword,) = struct.unpack_from("<I", ring_ffi.buffer(self.sq)[at : at + 64], 48)
        return bool(dword >> 30 & 1)

    def complete(self, cid: int, status: int = 0, *, wake: bool = True) -> None:
        phase = 1 ^ self.answered // DEPTH & 1
        at = self.answered % DEPTH * 16
        self.answered += 1
        entry = struct.pack("<IIHHHH", 0, 0, 0, 1, cid, status << 1 | phase)
        ring_ffi.buffer(self.cq)[at : at + 14] = entry[:14]
        ring_ffi.buffer(self.cq)[at + 14 : at + 16] = entry[14:]
        if wake:
            os.eventfd_write(self.vector_fd, 1)

    # the driver

    def want(self, wish: int) -> None:
        ring_lib.nv_lease_ask(self.lease, wish)
        self.wakeup.wake()

    def reset(self) -> None:
        """As the driver does it; what the thread had in flight is forgotten."""
        self.want(ring_lib.NV_LEASE_PARK)
        wait_until(lambda: not ring_lib.nv_lease_used(self.lease))
        ring_lib.nv_ring_reset(self.ring)
        self.bells[0] = self.bells[1] = 0
        self.taken = self.answered = 0
        self.want(ring_lib.NV_LEASE_USE)

    def late(self) -> dict[int, int]:
        found = ring_ffi.new("struct nv_late[]", DEPTH)
        count = ring_lib.nv_ring_late(self.ring, found, DEPTH)
        return {each.cid: each.missed for each in found[0:count]}

    # the kernel

    def ask(self, opcode: int, body: bytes, inode: int = INODE) -> int:
        """Send a request; its unique."""
        self.unique += 2
        head = IN_HEADER.pack(40 + len(body), opcode, self.unique, inode, 0, 0, 0, 0, 0)
        self.kernel.send(head + body)
        return self.unique

    def ask_read(self, block: int, count: int = 1, inode: int = INODE, handle: int = INODE) -> int:
        body = READ_IN.pack(handle, block * BLOCK_BYTES, count * BLOCK_BYTES, 0, 0, 0, 0)
        return self.ask(READ, body, inode)

    def ask_write(self, block: int, data: bytes, inode: int = INODE) -> int:
        return self.ask_write_at(block * BLOCK_BYTES, data, inode)

    def ask_write_at(self, offset: int, data: bytes, inode: int = INODE) -> int:
        body = WRITE_IN.pack(inode, offset, len(data), 0, 0, 0, 0)
        return self.ask(WRITE, body + data, inode)

    def ask_fsync(self, data_only: bool = False, inode: int = INODE) -> int:
        return self.ask(FSYNC, struct.pack("<QII", 0, data_only, 0), inode)

    def write(self, block: int = 0, inode: int = INODE) -> None:
        """A write that is answered: there is something to flush."""
        unique = self.ask_write(block, b"x" * BLOCK_BYTES, inode)
        opcode, cid = self.command()
        assert opcode == 1
        self.complete(cid)
        assert self.answer()[:2] == (unique, 0)

    def answer(self) -> tuple[int, int, bytes]:
        """The next answer: unique, errno, body."""
        message = self.kernel.recv(2 << 20)
        length, error, unique = OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[OUT_HEADER.size :]

    # Python

    def publish(self, blocks: int, inode: int = INODE) -> None:
        table = ffi.new("struct dm_extent[1]")
        table[0].file_block, table[0].start, table[0].count = 0, FIRST_BLOCK, blocks
        assert not lib.dm_publish(self.map, inode, blocks * BLOCK_BYTES, table, 1)
        lib.dm_change(self.map, inode, 0, 0)

    def forwarded(self) -> tuple[int, int]:
        """The next request that reaches pyfuse3: opcode, unique."""
        _, opcode, unique, *_ = IN_HEADER.unpack_from(self.python.recv(2 << 20))
        return opcode, unique

    def reply(self, message: bytes) -> None:
        assert not lib.fe_reply(self.handle, message, len(message))

    def statistics(self) -> Any:
        out = ffi.new("struct fe_statistics *")
        lib.fe_statistics(self.handle, out)
        return out

    def stop(self) -> int:
        left = int(lib.fe_stop(self.handle))
        ends = (self.kernel, self.fuse, self.clone, self.second, self.python, self.requests)
        for each in (*ends, self.caller, self.upcalls):
            each.close()
        if self.owns_map:
            lib.dm_free(self.map)
        self.wakeup.close()
        for fd in (self.drain_fd, self.ended_fd, self.vector_fd, self.attention_fd):
            os.close(fd)
        return left


@contextmanager
def running(
    slots: int = 8,
    timeout_ns: int = 10**10,
    list_pages: int = 1,
    left: int = 0,
    naps: bool = False,
    volatile_cache: bool = True,
    upcalls: int = 0,
    spin_ns: int = 1000,
    fua: bool = True,
) -> Iterator[Bench]:
    """`left`: how many commands are expected to be without an answer in the end. `upcalls`: a bit an opcode."""
    bench = Bench(
        slots, timeout_ns, list_pages, naps, volatile_cache,
        upcalls=upcalls, spin_ns=spin_ns, fua=fua,
    )  # fmt: skip
    try:
        yield bench
    finally:
        assert bench.stop() == left
