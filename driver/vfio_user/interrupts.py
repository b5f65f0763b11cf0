"""The interrupt vectors of a served function: the eventfd of each, and whether it is masked.

A masked vector signals an eventfd of our own instead, which remembers that something was due: that
is its pending bit, and unmasking passes it on. A client's MSI-X table is not looked at: monitors
keep the real one, and tell by SET_IRQS what comes of it.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Sequence

from .messages import (
    IRQ_ACTION_MASK,
    IRQ_DATA_BOOL,
    IRQ_DATA_EVENTFD,
    IRQ_DATA_MASK,
    IRQ_DATA_NONE,
    IRQ_MASK,
    IRQ_TRIGGER,
    IRQ_UNMASK,
    IrqSet,
    ProtocolError,
)


class Vectors:
    """`count` vectors; `apply` is told the eventfd of each, -1 for none, after every change."""

    def __init__(self, count: int, apply: Callable[[Sequence[int]], None]) -> None:
        self.count = count
        self._apply = apply
        self._eventfds = [-1] * count
        self._held = [-1] * count  # of masked vectors: what their interrupts go to

    def configure(self, request: IrqSet, data: bytes, fds: Sequence[int]) -> None:
        """SET_IRQS. The descriptors stay the caller's. Raises ProtocolError."""
        kind, action = request.flags & IRQ_DATA_MASK, request.flags & IRQ_ACTION_MASK
        if (
            request.flags & ~(IRQ_DATA_MASK | IRQ_ACTION_MASK)
            or kind not in (IRQ_DATA_NONE, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD)
            or action not in (IRQ_MASK, IRQ_UNMASK, IRQ_TRIGGER)
        ):
            raise ProtocolError(f"interrupt flags {request.flags:#x}: one kind of data, one action")
        if request.start + request.count > self.count:
            raise ProtocolError(f"vectors {request.start}+{request.count} of {self.count}")
        if request.count == 0:
            if (kind, action, request.start) != (IRQ_DATA_NONE, IRQ_TRIGGER, 0):
                raise ProtocolError("no vectors: only all of them can be disabled so")
            self.disable()
            return
        vectors = range(request.start, request.start + request.count)
        if kind == IRQ_DATA_EVENTFD:
            self._assign(vectors, action, fds)
            return
        if kind == IRQ_DATA_BOOL:
            if len(data) != request.count:
                raise ProtocolError(f"{len(data)} booleans for {request.count} vectors")
            chosen = [vector for vector, wanted in zip(vectors, data, strict=True) if wanted]
        else:
            chosen = list(vectors)
        self._act(action, chosen)

    def _assign(self, vectors: range, action: int, fds: Sequence[int]) -> None:
        """No descriptors at all: these vectors signal nothing any more."""
        if action != IRQ_TRIGGER:
            raise ProtocolError("eventfds that tell of masking are not supported", errno.ENOTSUP)
        if fds and len(fds) != len(vectors):
            raise ProtocolError(f"{len(fds)} eventfds for {len(vectors)} vectors")
        for fd in fds:
            # The controller writes there without waiting for anybody: nothing else will do.
            if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
                raise ProtocolError("a descriptor that is no eventfd")
        fresh = [os.dup(fd) for fd in fds] or [-1] * len(vectors)
        for vector, fd in zip(vectors, fresh, strict=True):
            fresh[vector - vectors.start], self._eventfds[vector] = self._eventfds[vector], fd
        self._tell()
        _close(fresh)

    def _act(self, action: int, chosen: Sequence[int]) -> None:
        if action == IRQ_TRIGGER:
            for vector in chosen:
                _signal(self._held[vector] if self._held[vector] >= 0 else self._eventfds[vector])
            return
        if action == IRQ_MASK:
            for vector in chosen:
                if self._held[vector] < 0:
                    self._held[vector] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._tell()
            return
        held = [(vector, self._held[vector]) for vector in chosen if self._held[vector] >= 0]
        for vector, _ in held:
            self._held[vector] = -1
        self._tell()  # first: from here on nothing is added to what was held
        for vector, fd in held:
            if _ready(fd):
                _signal(self._eventfds[vector])
            os.close(fd)

    def pending(self, vector: int) -> bool:
        """The vector's pending bit."""
        return self._held[vector] >= 0 and _ready(self._held[vector])

    def disable(self) -> None:
        """No vector signals anything, none is masked."""
        gone = self._eventfds + self._held
        self._eventfds, self._held = [-1] * self.count, [-1] * self.count
        self._tell()
        _close(gone)

    def _tell(self) -> None:
        pairs = zip(self._eventfds, self._held, strict=True)
        self._apply([held if held >= 0 else eventfd for eventfd, held in pairs])


def _ready(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _signal(fd: int) -> None:
    """A counter that is full has a signal in it already."""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLOUT)
        if poll.poll(0):
            os.eventfd_write(fd, 1)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
