"""Work that goes on in the task that began it, and says so when it has to wait.

Below: trio.  Above: frontend.py.

    reply = await relayed(work(), when_waiting)     calls when_waiting() at most once: before the first wait

Most requests find all they need in memory and end without a wait: a task for each would cost more than the
answer. So whoever takes requests answers them itself, and only when it must wait somebody else takes the next.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def relayed(
    work: Coroutine[Any, Any, T], when_waiting: Callable[[], None]
) -> Generator[Any, Any, T]:
    """What `work` returns, or raises; it runs in the present task, and what it yields reaches trio as it is."""
    step, value = work.send, None
    waited = False
    while True:
        try:
            wait = step(value)
        except StopIteration as done:
            result: T = done.value
            return result
        if not waited:
            waited = True
            when_waiting()
        try:
            step, value = work.send, (yield wait)
        except BaseException as error:  # noqa: BLE001 it is the work's
            step, value = work.throw, error
