"""Interrupt vectors: an eventfd each, shared by any number of queue pairs and threads.

Nobody reads the eventfd. Each task or thread that is to be woken has an epoll instance of its own
on it, edge-triggered: every signal wakes all of them, and none can take it away from another. So
queue pairs share a vector at no cost but this: an interrupt for one wakes the threads of the others
too, if they sleep on commands at that moment, to look at their completion queue in vain.

Python's half of a vector is one task, a trio system task: it needs no nursery of the caller's and
lives until the controller is closed. It looks only while somebody sleeps: commands that were polled
for leave their interrupts where they cost nothing, and after one spurious wake-up with nobody
waiting the task goes to sleep itself ("disarmed") until the next one parks. The admin queue's
vector is never disarmed, because asynchronous events come unasked; when threads share it the task
naps after a wake-up in vain, so that their interrupts do not keep Python busy.

Without vectors (a transport that has none, or polling by choice) the task looks at the rings at
growing intervals, or all the time, while somebody waits.
"""

from __future__ import annotations

import math
import os
import select
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .queues import QueuePair

_FIRST_NAP_S = 50e-6
_LONGEST_NAP_S = 0.002
# How much later an asynchronous event is noticed on a vector shared with threads; without vectors.
_EVENT_NAP_S = 0.02
_IDLE_NAP_S = 0.25


class Wakeup:
    """What a task or thread sleeps on: readable after a signal of the vector, or after wake()."""

    def __init__(self, vector_fd: int) -> None:
        self._own_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (self._own_fd, vector_fd):
            if fd >= 0:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    @property
    def fd(self) -> int:
        """The epoll instance."""
        return self._epoll.fileno()

    def wake(self) -> None:
        """Makes it readable."""
        os.eventfd_write(self._own_fd, 1)

    def clear(self) -> None:
        """Forgets what came so far; to be called before looking, not after."""
        self._epoll.poll(0)

    def close(self) -> None:
        """Whoever sleeps on it must be gone."""
        self._epoll.close()
        os.close(self._own_fd)


class Vector:
    """One interrupt vector; `fd` is its eventfd, or -1 to look instead of being told.

    `always`: never disarmed. `restless`: without interrupts, look all the time.
    `threads`: how many of them share it.
    """

    def __init__(
        self, index: int, *, interrupts: bool = True, always: bool = False, restless: bool = False
    ) -> None:
        self.index = index
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if interrupts else -1
        self.queues: list[QueuePair] = []
        self.threads = 0
        self.interrupts = 0
        self.spurious = 0
        self._always = always
        self._restless = restless
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
        wakeup = Wakeup(self.fd)
        try:
            while True:
                await trio.lowlevel.wait_readable(wakeup.fd)
                wakeup.clear()
                self.interrupts += 1
                if not self._reap():
                    self.spurious += 1
                    await self._calm_down()
        finally:
            wakeup.close()

    async def _calm_down(self) -> None:
        """After a wake-up in vain."""
        if self._awaited():
            return
        if not self._always:
            await self._sleep()
        elif self.threads:
            await self._sleep(_EVENT_NAP_S)

    async def _look(self) -> None:
        nap_s = _FIRST_NAP_S
        while True:
            if not self._awaited():
                await self._sleep(_IDLE_NAP_S if self._always else math.inf)
                nap_s = _FIRST_NAP_S
            nap_s = _FIRST_NAP_S if self._reap() else min(nap_s * 1.5, _LONGEST_NAP_S)
            await trio.sleep(0 if self._restless else nap_s)

    def _reap(self) -> int:
        return sum([queue.reap() for queue in self.queues])

    def _awaited(self) -> bool:
        """Whether somebody sleeps on a command that is not there to stay in flight."""
        return any(queue.parked > queue.resident for queue in self.queues)

    async def _sleep(self, seconds: float = math.inf) -> None:
        """Until arm(), or for so long."""

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._sleeping = None
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.move_on_after(seconds):
            self._sleeping = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    def close(self) -> None:
        """Closes the eventfd; the task must be over."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
