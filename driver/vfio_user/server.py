"""Serves a function over vfio-user: the socket's life, one client at a time, replies and refusals.

    with ListeningSocket("/run/disk.sock") as listening:
        serve(listening, function, stop_fd)        until stop_fd can be read

A second client waits in the socket's queue, unanswered, until the first has left; so a daemon that
starts again need not be timed to the end of the one before. A message that cannot be executed gets
an error reply; one after which the stream makes no sense ends the connection. Neither touches what
the next client finds.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
from pathlib import Path
from types import TracebackType

from ..errors import DeviceBusy, TransportError
from . import messages as m
from .channel import Channel, Disconnected, Message
from .function import MAX_MESSAGE_BYTES, NvmeFunction, Reply
from .messages import Header, ProtocolError

__all__ = ["ListeningSocket", "describe_peer", "serve"]

_log = logging.getLogger("nvmefs.vfio_user")

_SEND_BOUND_S = 5.0
_PROBE_BOUND_S = 2.0
_BACKLOG = 16
_MAX_PATH_BYTES = 107


def describe_peer(connected: socket.socket) -> str:
    """The process at the other end: "process 42 (qemu)"."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, _, _ = struct.unpack("3i", raw)
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name})"


class ListeningSocket:
    """A socket file that is ours: made, taken over from a server that died, removed at the end.

    Raises DeviceBusy when a live server has it, TransportError when it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise TransportError(
                f"{path}: a socket's path has {_MAX_PATH_BYTES} bytes at most: use a shorter one"
            )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
            self._identity = os.stat(path)
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    def _bind(self) -> None:
        try:
            self.socket.bind(self.path)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise TransportError(
                    f"{self.path}: cannot make the socket: {error.strerror}; check its directory"
                ) from error
        self._remove_stale()
        try:
            self.socket.bind(self.path)
        except OSError as error:
            raise TransportError(
                f"{self.path}: cannot make the socket: {error.strerror}"
            ) from error

    def _remove_stale(self) -> None:
        """Removes what a server left that was killed, and nothing else."""
        if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
            raise TransportError(
                f"{self.path}: exists and is no socket: choose another path, or remove it"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_BOUND_S)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                _log.warning("%s: left by a server that is gone: replaced", self.path)
                os.unlink(self.path)
            except OSError as error:
                raise DeviceBusy(
                    f"{self.path}: cannot tell whether it is in use ({error.strerror}): "
                    "choose another path, or remove it"
                ) from error
            else:
                raise DeviceBusy(
                    f"{self.path}: {describe_peer(probe)} serves there: choose another path, "
                    "or end that server"
                )

    def close(self) -> None:
        """Stops listening and removes the file, unless somebody has put another one there."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            now = os.lstat(self.path)
            if (now.st_dev, now.st_ino) == (self._identity.st_dev, self._identity.st_ino):
                os.unlink(self.path)

    def __enter__(self) -> ListeningSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def serve(listening: ListeningSocket, function: NvmeFunction, stop_fd: int) -> None:
    """Client after client, until stop_fd can be read."""
    while _wait(listening.socket.fileno(), stop_fd):
        try:
            connected, _ = listening.socket.accept()
        except (BlockingIOError, ConnectionError):
            continue  # it has left already
        client = describe_peer(connected)
        _log.info("%s: %s connected", listening.path, client)
        channel = Channel(connected, MAX_MESSAGE_BYTES)
        function.begin()
        try:
            why = _converse(channel, function, stop_fd)
            _log.info("%s: %s left: %s", listening.path, client, why)
        finally:
            channel.close()
            function.end()


def _wait(fd: int, stop_fd: int) -> bool:
    """True: fd can be read. False: it is time to stop."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(stop_fd, select.POLLIN)
    return stop_fd not in [ready for ready, _ in poll.poll()]


def _converse(channel: Channel, function: NvmeFunction, stop_fd: int) -> str:
    """Answers one client until it is over; returns why it is."""
    try:
        while _wait(channel.fileno(), stop_fd):
            message = channel.take()
            if message is None:
                continue
            try:
                if not _answer(channel, function, message):
                    return "it does not speak this protocol"
            finally:
                message.close()
    except Disconnected as error:
        return str(error)
    except ProtocolError as error:
        return f"sent away: {error}"
    except TimeoutError:
        return "sent away: it does not read its replies"
    return "the server ends"


def _answer(channel: Channel, function: NvmeFunction, message: Message) -> bool:
    """Executes one message. False: a client that failed before it had begun."""
    header = message.header
    if not header.is_command:
        _log.debug("a reply to nothing that was asked (%s)", m.command_name(header.command))
        return function.negotiated
    reply, code = Reply(), 0
    try:
        reply = function.execute(message)
    except ProtocolError as error:
        _log.debug("%s refused: %s", m.command_name(header.command), error)
        code = error.errno
    except OSError as error:
        _log.debug("%s failed: %s", m.command_name(header.command), error)
        code = error.errno or errno.EIO
    if header.wants_reply or not function.negotiated:
        flags = m.FLAG_REPLY | (m.FLAG_ERROR if code else 0)
        size = m.HEADER_BYTES + len(reply.payload)
        back = Header(header.id, header.command, size, flags, code)
        channel.send(back, reply.payload, reply.fds, _SEND_BOUND_S)
    return function.negotiated
