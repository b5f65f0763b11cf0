"""What all request handlers have in common: errors become an errno, faults a log line, hops a number.

Below: errors.py, the trace switch.  Above: operations.py.

    @handler
    async def getattr(self, inode, ctx): ...       may raise FsError
"""

from __future__ import annotations

import errno
import functools
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from driver import trace
from nvmefs.errors import Corrupted, DeviceFailed, FsError

log = logging.getLogger("nvmefs.operations")

SAME_MESSAGE_S = 60.0
REMEMBERED_MESSAGES = 1024


class Complaints:
    """Log lines about what is the disk's fault and not the caller's: the same one once a minute at most."""

    def __init__(self, on_corruption: Callable[[Corrupted], None]) -> None:
        self._told: dict[str, float] = {}
        self.on_corruption = on_corruption

    def about(self, name: str, error: FsError) -> None:
        """Log `error`, which request `name` met, if it is one of the disk; corruption is passed on too."""
        if not isinstance(error, (Corrupted, DeviceFailed)):
            return
        message = str(error)
        now = time.monotonic()
        if now - self._told.get(message, -SAME_MESSAGE_S) < SAME_MESSAGE_S:
            return
        if len(self._told) >= REMEMBERED_MESSAGES:
            self._told.clear()
        self._told[message] = now
        advice = ": run fsck.nvmefs" if isinstance(error, Corrupted) else ""
        log.error("%s: %s%s", name, message, advice)
        if isinstance(error, Corrupted):
            self.on_corruption(error)


class Handlers(Protocol):
    """What a class of handlers has."""

    request_numbers: itertools.count[int]
    complaints: Complaints


P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Handlers)


def handler(
    method: Callable[Concatenate[H, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[H, P], Coroutine[Any, Any, R]]:
    """A request handler: FsError becomes FUSEError, a fault of ours EIO with a traceback in the log.

    Anything else that left a handler would end pyfuse3's main loop, and with it the mount.
    """
    name = f"operations.{method.__name__}"
    parameters = list(inspect.signature(method).parameters)[1:]

    @functools.wraps(method)
    async def wrapper(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if trace.enabled:
                return await traced(self, *args, **kwargs)
            return await method(self, *args, **kwargs)
        except FsError as error:
            self.complaints.about(name, error)
            raise FUSEError(error.errno) from None
        except FUSEError:
            raise
        except Exception:
            log.exception("%s failed by a fault of nvmefs; the answer is EIO", name)
            raise FUSEError(errno.EIO) from None

    async def traced(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with trace.request(next(self.request_numbers)):
            trace.hop(name, **_told(parameters, args))
            return await method(self, *args, **kwargs)

    return wrapper


def _told(parameters: list[str], args: tuple[object, ...]) -> dict[str, object]:
    """What a trace line says of a request: numbers and names, of data the length."""
    told: dict[str, object] = {}
    for name, value in zip(parameters, args, strict=False):
        if name in ("buf", "value") and isinstance(value, bytes):
            told["bytes"] = len(value)
        elif isinstance(value, (int, bytes)):
            told[name] = value
    return told
