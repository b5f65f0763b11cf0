"""The control socket of a mount: a line of JSON asks its daemon for something, a line answers.

Below: filesystem.py, grow.py.  Above: mount.py, which serves; mounted.py and the offline tools, which ask.

    value = ask("/mnt", "trim", min_length=1 << 20)             raises FsError, also what the daemon says

    -> {"verb": "trim", "arguments": {"min_length": 1048576}}
    <- {"value": {"trimmed_bytes": 734003200}}                  or
    <- {"error": {"errno": 30, "message": "the filesystem is mounted read-only"}}

The socket is /run/nvmefs/control/MAJOR:MINOR, by the mount's device number; a user's own mounts have theirs in
$XDG_RUNTIME_DIR. Nobody but the user who mounted, and root, gets at it. One request a connection; who hangs up
before the answer takes the request back.
"""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from driver.mountinfo import Mounted
from nvmefs.errors import FsError
from nvmefs.mounts import mounted_at

log = logging.getLogger("nvmefs.control")

Value = dict[str, Any]
Handler = Callable[..., Awaitable[Value]]

SYSTEM = Path("/run/nvmefs/control")
MOST_BYTES = 64 << 10  # of a request
MOST_CLIENTS = 16
REQUEST_BOUND_S = 10.0
ANSWER_BOUND_S = 60.0


class NotServed(FsError):
    """No daemon of ours answers for that path. The message says why."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.ENOTCONN, what)


def directory() -> Path | None:
    """Where this user's daemons have their sockets; None if there is no such place."""
    if os.geteuid() == 0:
        return SYSTEM
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "nvmefs" if runtime else None


# --- the daemon's side ---------------------------------------------------------------------------------


async def serve(
    mounted: Mounted,
    verbs: dict[str, Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Where no socket can be, a line in the log says so and the mount lives on."""
    place = directory()
    if place is None or place.is_relative_to(mounted.mountpoint):
        log.info("%s: no place for a control socket", mounted.mountpoint)
        task_status.started()
        return
    try:
        with _listening(place / mounted.device) as listener:
            task_status.started()
            await _accept(listener, verbs)
    except OSError as error:
        log.warning("%s: no control socket: %s", place / mounted.device, error.strerror)
        task_status.started()


@contextmanager
def _listening(path: Path) -> Iterator[trio.SocketListener]:
    """A socket that only its owner can connect to. One that lies there is of a daemon that was killed: the
    device number is this mount's now.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as plain:
        plain.bind(os.fspath(path))
        try:
            path.chmod(0o600)
            plain.listen(MOST_CLIENTS)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(plain))
        finally:
            path.unlink(missing_ok=True)


async def _accept(listener: trio.SocketListener, verbs: dict[str, Handler]) -> None:
    clients = trio.CapacityLimiter(MOST_CLIENTS)
    await trio.serve_listeners(partial(_client, verbs, clients), [listener])


async def _client(
    verbs: dict[str, Handler], clients: trio.CapacityLimiter, stream: trio.SocketStream
) -> None:
    """One connection: one request, one answer."""
    async with stream, clients:
        try:
            with trio.fail_after(REQUEST_BOUND_S):
                request = await _request(stream)
            await _work(verbs, request, stream)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("control: the client is gone or silent: %s", error)


async def _request(stream: trio.SocketStream) -> bytes:
    """A line, or what came until the client said that there is no more."""
    data = b""
    while b"\n" not in data and len(data) <= MOST_BYTES:
        part = await stream.receive_some(4096)
        if not part:
            break
        data += part
    return data


async def _work(verbs: dict[str, Handler], request: bytes, stream: trio.SocketStream) -> None:
    """Do it and answer; stop when the client hangs up."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_end, stream, nursery.cancel_scope)
        answer = await _answer(verbs, request)
        await stream.send_all(json.dumps(answer).encode() + b"\n")
        nursery.cancel_scope.cancel()


async def _cancel_at_end(stream: trio.SocketStream, work: trio.CancelScope) -> None:
    while True:
        try:
            if not await stream.receive_some(4096):
                break
        except trio.BrokenResourceError:
            break
    work.cancel()


async def _answer(verbs: dict[str, Handler], request: bytes) -> Value:
    """What the request comes to."""
    try:
        handler, arguments = _parse(verbs, request)
        return {"value": await handler(**arguments)}
    except FsError as error:
        return {"error": {"errno": error.errno, "message": str(error)}}
    except Exception as error:
        log.exception("a control request failed by a fault of nvmefs")
        message = f"a fault of nvmefs, see its log: {type(error).__name__}"
        return {"error": {"errno": errno.EIO, "message": message}}


def _parse(verbs: dict[str, Handler], request: bytes) -> tuple[Handler, Value]:
    """The handler and its arguments. Raises FsError(EINVAL)."""
    try:
        asked = json.loads(request)
        verb, arguments = asked["verb"], asked.get("arguments", {})
        handler = verbs[verb]
        inspect.signature(handler).bind(**arguments)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        shown = request[:80].decode(errors="backslashreplace").strip()
        raise FsError(
            errno.EINVAL, f"no request that is known: {shown!r} ({type(error).__name__}: {error})"
        ) from error
    return handler, arguments


# --- who asks ------------------------------------------------------------------------------------------


def ask(
    mountpoint: str, verb: str, *, bound_s: float | None = ANSWER_BOUND_S, **arguments: Any
) -> Value:
    """What the daemon of the mount at `mountpoint` answers. Raises FsError: the daemon's, or NotServed.

    `bound_s` None: for what may take as long as it takes.
    """
    path = os.path.realpath(mountpoint)
    mounted = mounted_at(path)
    if mounted is None or not mounted.type.startswith("fuse.nvmefs"):
        raise NotServed(f"{path}: no filesystem of nvmefs is mounted there")
    with _connected(path, mounted) as connection:
        connection.settimeout(bound_s)
        try:
            connection.sendall(json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline() or b"{}")
        except TimeoutError as error:
            raise NotServed(f"{path}: its daemon has not answered in {bound_s:g} s") from error
        except (OSError, ValueError) as error:
            raise NotServed(f"{path}: its daemon does not answer: {error}") from error
    if "value" in answer:
        value: Value = answer["value"]
        return value
    if "error" in answer:
        raise FsError(answer["error"]["errno"], f"{path}: {answer['error']['message']}")
    raise NotServed(f"{path}: its daemon has ended without an answer")


def _connected(path: str, mounted: Mounted) -> socket.socket:
    """A connection to the daemon. Raises NotServed."""
    places = {place / mounted.device for place in (directory(), SYSTEM) if place is not None}
    reasons = set()
    for place in places:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(place))
        except OSError as error:
            connection.close()
            reasons.add(error.errno)
            continue
        return connection
    if errno.EACCES in reasons:
        raise NotServed(f"{path}: only root, or who has mounted it, may ask its daemon")
    raise NotServed(f"{path}: its daemon has no control socket, or has ended")
