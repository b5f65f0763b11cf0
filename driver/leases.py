"""Queue pairs of threads in C, and how the driver gets them back when it has to reset.

    queue = await controller.take_queue()
    a thread: nv_lease_enter(), push, doorbell, reap, sleep on queue.wakeup_fd, nv_lease_leave()

The thread owns the ring and looks at one word between two commands (core/lease.h). The driver asks
for the ring by that word and a wake-up, waits until the thread has left, resets the controller,
empties the ring and lets the thread in again, which sends again what it had in flight: it alone
knows what its commands were. Deadlines are in the ring; the thread marks the commands that have
missed theirs and tells the driver, which reads the marks and climbs the ladder (recovery.py). A
command that has missed two is the reason of a reset; its owner lets it fail instead of repeating it.

Below: rings.py, core/lease.h, core/deadline.h. Above: queueset.py, recovery.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from ._core import lib
from .errors import ControllerFailed
from .interrupts import Wakeup
from .rings import Ring

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARK_BOUND_S = 5.0  # a thread looks at its lease many times a second, unless it has crashed


class LeasedQueue(Ring):
    """A queue pair that a thread in C drives. Made by Controller.take_queue().

    `naps`: no interrupt wakes the thread, it has to look by itself while commands are in flight.
    """

    naps = False
    _wakeup: Wakeup | None = None

    def attach(self, attention: Attention, vector_fd: int) -> None:
        """What the thread is woken by, and whom it tells."""
        self._wakeup = Wakeup(vector_fd)
        self.naps = vector_fd < 0
        self._lease.attention_fd = attention.fd

    @property
    def wakeup_fd(self) -> int:
        """What the thread sleeps on: see core/wakeup.h."""
        assert self._wakeup is not None
        return self._wakeup.fd

    @property
    def used(self) -> bool:
        """Whether a thread is using the ring."""
        return bool(lib.nv_lease_used(self._lease))

    def _ask(self, wish: int) -> None:
        lib.nv_lease_ask(self._lease, wish)
        if self._wakeup is not None:
            self._wakeup.wake()

    def park(self) -> None:
        """Ask the thread to leave the ring."""
        self._ask(lib.NV_LEASE_PARK)

    def resume(self) -> None:
        """The ring is the thread's again."""
        self._ask(lib.NV_LEASE_USE)

    def end(self) -> None:
        """The thread never gets the ring again; its commands fail."""
        self._ask(lib.NV_LEASE_END)

    def clear(self) -> None:
        """After a reset, while no thread uses it: all commands are forgotten."""
        lib.nv_ring_reset(self._ring)

    def close(self) -> None:
        """After the thread has ended."""
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None


class Attention:
    """An eventfd by which threads say that they have left a ring, or that commands are late."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._changed = trio.lowlevel.ParkingLot()

    async def watch(self, report: Any) -> None:
        """The task: calls `report` after each sign of a thread. Runs until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            os.eventfd_read(self.fd)
            self._changed.unpark_all()
            report()

    async def until_left(self, queues: Sequence[LeasedQueue]) -> None:
        """Returns when no thread uses any of them. Raises ControllerFailed when one does not leave."""
        with trio.move_on_after(_PARK_BOUND_S):
            while any(queue.used for queue in queues):
                await self._changed.park()
        for queue in queues:
            if queue.used:
                raise ControllerFailed(
                    f"{queue.where}: its thread did not leave within {_PARK_BOUND_S:g} s"
                )

    def close(self) -> None:
        """No thread uses a ring any more."""
        os.close(self.fd)
