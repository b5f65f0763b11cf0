"""The owner of a leased queue pair, in Python: what a thread in C does, one step at a time.

It also rings doorbells by message, where they are not mapped.
"""

from __future__ import annotations

import os
import select
from typing import Any

import trio

from driver import LeasedQueue, commands
from driver._core import ffi, lib
from driver.transports import Transport


class Owner:
    """Between enter() and leave() the ring is the test's."""

    def __init__(self, queue: LeasedQueue, transport: Transport, stride_bytes: int = 4) -> None:
        self.queue = queue
        self.transport = transport
        self.ring: Any = ffi.cast("struct nv_ring *", queue.ring_address)
        self.lease: Any = ffi.addressof(self.ring, "lease")
        self._registers = [0x1000 + (2 * queue.qid + i) * stride_bytes for i in range(2)]

    def enter(self) -> bool:
        return bool(lib.nv_lease_enter(self.lease))

    def leave(self) -> None:
        lib.nv_lease_leave(self.lease)

    @property
    def wish(self) -> int:
        return int(lib.nv_lease_wish(self.lease))

    def send_read(
        self, lba: int, iova: int, nbytes: int = 512, timeout_ns: int | None = None
    ) -> int:
        """The id of a Read that is on its way."""
        timeout_ns = self.queue.timeout_ns if timeout_ns is None else timeout_ns
        command = commands.read(1, lba, nbytes // 512)
        cid = lib.nv_ring_push(self.ring, command, iova, nbytes, timeout_ns)
        assert cid >= 0
        if lib.nv_ring_doorbell(self.ring):
            self.transport.write32(self._registers[0], self.ring.sq_tail)
        return int(cid)

    def reap(self) -> dict[int, int]:
        """What has completed: id -> status."""
        if lib.nv_ring_reap(self.ring) & 0x80000000:
            self.transport.write32(self._registers[1], self.ring.cq_head)
        done = {each.cid: each.status for each in self.ring.done[0 : self.ring.done_count]}
        self.ring.done_count = 0
        return done

    async def completed(self, cid: int) -> int:
        """Waits for a command as a thread does; its status."""
        while True:
            done = self.reap()
            if cid in done:
                return done[cid]
            if self.queue.naps:
                await trio.sleep(0.001)
            else:
                await self.woken()

    async def woken(self) -> None:
        """Sleeps until there is an interrupt, or the driver wants something."""
        await trio.lowlevel.wait_readable(self.queue.wakeup_fd)
        with select.epoll.fromfd(os.dup(self.queue.wakeup_fd)) as epoll:
            epoll.poll(0)

    async def until_wished(self, wish: int) -> None:
        while self.wish != wish:
            await self.woken()

    def report_overdue(self) -> None:
        """What a thread does when it has slept for a while."""
        now = lib.nv_now_ns()
        if lib.nv_ring_due(self.ring, now) and not self.reap():
            lib.nv_ring_overdue(self.ring, now, self.queue.grace_ns)
        lib.nv_lease_report(self.lease)
