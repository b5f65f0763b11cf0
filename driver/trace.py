"""The trace switch: one line per hop of a request through the layers.

    if trace.enabled:
        trace.hop("queues.submit", cid=cid)

Callers look at `enabled` first, so that nothing is formatted or even called while it is off. The
number of the request travels in a context variable: `with trace.request(unique): ...` numbers
everything that is awaited inside. Lines go to `sink`, by default a logger named nvmefs.trace;
tests collect them.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

enabled: bool = False
request_number: contextvars.ContextVar[int] = contextvars.ContextVar("request_number", default=0)

_log = logging.getLogger("nvmefs.trace")


@dataclass(frozen=True)
class Hop:
    """One hop: the number of the request (0: none), the verb, and what it was called with."""

    request: int
    name: str
    values: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        values = " ".join(f"{key}={value}" for key, value in self.values.items())
        return f"#{self.request} {self.name} {values}".rstrip()


def _to_log(hop: Hop) -> None:
    _log.info("%s", hop)


_sink: Callable[[Hop], None] = _to_log


def hop(name: str, /, **values: object) -> None:
    """Reports one hop. Call it only when `enabled`."""
    _sink(Hop(request_number.get(), name, values))


def hop_of(number: int, name: str, /, **values: object) -> None:
    """Reports one hop of a request by its number: for tasks that work on behalf of others."""
    _sink(Hop(number, name, values))


def enable(sink: Callable[[Hop], None] | None = None) -> None:
    """Turns tracing on, to `sink` or to the logger."""
    global enabled, _sink
    _sink = sink or _to_log
    enabled = True


def disable() -> None:
    """Turns tracing off."""
    global enabled, _sink
    enabled = False
    _sink = _to_log


@contextlib.contextmanager
def request(number: int) -> Iterator[None]:
    """Numbers all hops of what runs inside."""
    token = request_number.set(number)
    try:
        yield
    finally:
        request_number.reset(token)


@contextlib.contextmanager
def collected() -> Iterator[list[Hop]]:
    """Tracing into a list, for the time of a with block."""
    hops: list[Hop] = []
    enable(hops.append)
    try:
        yield hops
    finally:
        disable()
