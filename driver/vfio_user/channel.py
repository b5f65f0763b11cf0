"""Messages over a UNIX stream socket: framing, file descriptors, bounded waits.

    channel.send(header, payload, fds, bound_s)
    message = channel.receive(bound_s)          or channel.take(): what is there already, or None

Descriptors belong to the message that they arrived with, because no read goes beyond the end of a
message. Who receives a message closes it; Message.close() closes what was not taken.

Raises Disconnected when the other side is gone, TimeoutError when it does not answer, ProtocolError
when what it sends cannot be a message: the stream is of no use afterwards.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .messages import HEADER_BYTES, MAX_MESSAGE_FDS, Header, ProtocolError

__all__ = ["Channel", "Disconnected", "Message"]

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_MESSAGE_FDS * 4)
_LONGEST_READ_BYTES = 1 << 16
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)


class Disconnected(Exception):
    """The other side closed the connection, or died."""


@dataclass
class Message:
    """One message and the descriptors that came along."""

    header: Header
    payload: bytes
    fds: list[int] = field(default_factory=list)

    def take_fds(self) -> list[int]:
        """The descriptors; they are the caller's from now on."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Closes descriptors that nobody took."""
        for fd in self.take_fds():
            os.close(fd)


class Channel:
    """One end of a connection. `max_bytes`: of a message, with its header."""

    def __init__(self, connected: socket.socket, max_bytes: int) -> None:
        self._socket = connected
        self._socket.setblocking(False)
        self.max_bytes = max_bytes
        self._buffer = bytearray()
        self._header: Header | None = None
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor, or -1 after close()."""
        return self._socket.fileno()

    # ---- sending -------------------------------------------------------------------------------

    def send(
        self, header: Header, payload: bytes = b"", fds: Sequence[int] = (), bound_s: float = 5.0
    ) -> None:
        """Sends a whole message; `header.size` must be right. Raises OSError for a bad fd too."""
        rest = memoryview(header.pack() + payload)
        end = time.monotonic() + bound_s
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while rest:
            try:
                sent = self._socket.sendmsg([rest], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(select.POLLOUT, end)
                continue
            except OSError as error:
                if error.errno in _GONE:
                    raise Disconnected(error.strerror) from error
                raise
            rest, ancillary = rest[sent:], []

    def _wait(self, events: int, end: float) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        if not poll.poll(max(end - time.monotonic(), 0) * 1000):
            raise TimeoutError

    # ---- receiving -----------------------------------------------------------------------------

    def receive(self, bound_s: float) -> Message:
        """The next message."""
        end = time.monotonic() + bound_s
        while True:
            message = self.take()
            if message is not None:
                return message
            self._wait(select.POLLIN, end)

    def take(self) -> Message | None:
        """The next message if all of it has arrived."""
        while True:
            missing = self._missing()
            if missing == 0:
                return self._complete()
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    min(missing, _LONGEST_READ_BYTES), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            except OSError as error:
                raise Disconnected(error.strerror) from error
            self._keep(ancillary)
            if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_MESSAGE_FDS:
                raise ProtocolError(f"a message with more than {len(self._fds)} descriptors")
            if not data:
                where = "inside a message" if self._buffer or self._header else "no more messages"
                raise Disconnected(f"end of file, {where}")
            self._buffer += data

    def _missing(self) -> int:
        """Bytes of the present message that are still to come."""
        if self._header is None:
            if len(self._buffer) < HEADER_BYTES:
                return HEADER_BYTES - len(self._buffer)
            header = Header.parse(bytes(self._buffer))
            if not HEADER_BYTES <= header.size <= self.max_bytes:
                raise ProtocolError(
                    f"a message of {header.size} bytes: from {HEADER_BYTES} to {self.max_bytes}"
                )
            self._header = header
            self._buffer.clear()
        return self._header.size - HEADER_BYTES - len(self._buffer)

    def _complete(self) -> Message:
        assert self._header is not None
        message = Message(self._header, bytes(self._buffer), self._fds)
        self._header, self._fds = None, []
        self._buffer.clear()
        return message

    def _keep(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds += fds

    def close(self) -> None:
        """Closes the socket and what arrived of a message. Idempotent."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()
