"""Interrupt vectors: an eventfd each, one task each, shared by any number of queue pairs.

The task is a trio system task: it needs no nursery of the caller's and lives until the controller
is closed. It watches its eventfd only while somebody sleeps: commands that were polled for leave
their interrupts in the eventfd's counter, where they cost nothing, and after one such spurious
wake-up with nobody waiting the task goes to sleep itself ("disarmed") until the next one parks.
The admin queue's vector stays armed, because asynchronous events come unasked.

Without vectors (a transport that has none) the task looks at the rings at growing intervals.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .queues import QueuePair

_FIRST_NAP_S = 50e-6
_LONGEST_NAP_S = 0.002


class Vector:
    """One interrupt vector; `fd` is its eventfd, or -1 to look instead of being told."""

    def __init__(self, index: int, *, interrupts: bool = True, always: bool = False) -> None:
        self.index = index
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if interrupts else -1
        self.queues: list[QueuePair] = []
        self.interrupts = 0
        self.spurious = 0
        self._always = always
        self._sleeping: trio.lowlevel.Task | None = None

    def arm(self) -> None:
        """Somebody sleeps on one of the queue pairs."""
        if self._sleeping is not None:
            trio.lowlevel.reschedule(self._sleeping)
            self._sleeping = None

    async def watch(self) -> None:
        """The task; runs until cancelled."""
        if self.fd < 0:
            await self._look()
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
            self.interrupts += 1
            if not self._reap():
                self.spurious += 1
                if not self._always and not self._waited_for():
                    await self._sleep()

    async def _look(self) -> None:
        nap_s = _FIRST_NAP_S
        while True:
            if not self._waited_for():
                await self._sleep()
                nap_s = _FIRST_NAP_S
            nap_s = _FIRST_NAP_S if self._reap() else min(nap_s * 1.5, _LONGEST_NAP_S)
            await trio.sleep(nap_s)

    def _reap(self) -> int:
        return sum([queue.reap() for queue in self.queues])

    def _waited_for(self) -> bool:
        return any(queue.parked for queue in self.queues)

    async def _sleep(self) -> None:
        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._sleeping = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sleeping = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def close(self) -> None:
        """Closes the eventfd; the task must be over."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
