"""The client's end of a connection: one request at a time, each bounded.

    session = Session("/run/x/cntrl", "vfio-user:/run/x/cntrl", memory)
    message = session.request(Command.REGION_READ, payload)

A reply is known by its id. What else comes meanwhile is dealt with: the server's own commands are
answered (DMA_READ, DMA_WRITE) or refused, replies to nothing that is waited for are dropped. The
end of the connection, a bound that passes, or bytes that are no messages are final: from then on
every request raises ControllerGone.

Below: channel. Above: driver/transports/vfio_user.py.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from ..errors import ControllerGone, DeviceBusy, DriverError, TransportError
from . import messages as m
from .channel import Channel, Disconnected, Message
from .messages import Command, Header, ProtocolError
from .server import describe_peer

__all__ = ["ClientMemory", "Refused", "Session"]

_log = logging.getLogger("nvmefs.driver")

VERSION_BOUND_S = 5.0
REQUEST_BOUND_S = 20.0
_CONNECT_BOUND_S = 1.0
MAX_MESSAGE_BYTES = m.HEADER_BYTES + m.DmaAccess.SIZE + m.DEFAULT_TRANSFER_BYTES
_MOST_STRAYS = 64
_START = "start it first (nvmefs controller IMAGE --socket PATH, or another vfio-user server)"


class Refused(TransportError):
    """The server answered a request with an error; `errno` is its reason, 0 if it gave none."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.errno = code


class ClientMemory(Protocol):
    """DMA memory as the server may ask for it by message. Raises KeyError: not mapped so."""

    def load(self, address: int, count: int) -> bytes:
        """Reads."""

    def store(self, address: int, data: bytes) -> None:
        """Writes."""


class Session:
    """A connection to a vfio-user server that agreed on a version.

    Raises TransportError (no such socket, not a vfio-user server), DeviceBusy (no answer: another
    client has it).
    """

    def __init__(self, path: str, where: str, memory: ClientMemory) -> None:
        self.where = where
        self._memory = memory
        self._lock = threading.Lock()
        self._lost: DriverError | None = None
        self._next_id = 0
        connected = _connect(path, where)
        self.server = describe_peer(connected)
        self._channel = Channel(connected, MAX_MESSAGE_BYTES)
        self._epoll = select.epoll()
        try:
            self._epoll.register(self._channel, select.EPOLLIN | select.EPOLLRDHUP)
            self._negotiate()
        except BaseException:
            self.close()
            raise

    @property
    def lost_fd(self) -> int:
        """Readable when something unasked has come: the end, or a command of the server's."""
        return self._epoll.fileno()

    def _negotiate(self) -> None:
        wanted = {
            "max_msg_fds": 16,
            "max_data_xfer_size": m.DEFAULT_TRANSFER_BYTES,
            "max_dma_maps": 65535,
        }
        proposal = m.Version(0, 1, wanted).pack()
        stranger = f"{self.where}: {self.server} is no vfio-user server"
        try:
            answer = self._exchange(Command.VERSION, proposal, (), VERSION_BOUND_S)
            answer.close()
            version = m.Version.parse(answer.payload)
            self.max_fds = version.number("max_msg_fds", 1, 1, m.MAX_MESSAGE_FDS)
            self.max_maps = version.number("max_dma_maps", 64, 1, 65535)
        except TimeoutError as error:
            raise DeviceBusy(
                f"{self.where}: {self.server} does not answer within {VERSION_BOUND_S:g} s: "
                "it serves another client, which has to leave first, or it is stopped"
            ) from error
        except Disconnected as error:
            raise TransportError(
                f"{stranger}, or has a client already: it closed the connection"
            ) from error
        except ProtocolError as error:
            raise TransportError(f"{stranger}: {error}; give the socket of one") from error
        if version.major != 0:
            raise TransportError(
                f"{self.where}: {self.server} speaks version {version.major}.{version.minor} of "
                "vfio-user: 0.1 is needed"
            )

    # ---- requests ------------------------------------------------------------------------------

    def request(self, command: Command, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Sends a command and returns its reply, which the caller closes.

        Raises Refused, ControllerGone.
        """
        with self._lock:
            if self._lost is not None:
                raise ControllerGone(str(self._lost)) from self._lost
            try:
                return self._exchange(command, payload, fds, REQUEST_BOUND_S)
            except Disconnected as error:
                raise self._lose(f"{self.server} is gone ({error}): start it again") from error
            except TimeoutError as error:
                raise self._lose(
                    f"{self.server} does not answer {command.name} within {REQUEST_BOUND_S:g} s: "
                    "it is stopped or hangs; end it and start it again"
                ) from error
            except ProtocolError as error:
                raise self._lose(f"{self.server} breaks the protocol: {error}") from error

    def _lose(self, what: str) -> ControllerGone:
        self._lost = ControllerGone(f"{self.where}: {what}")
        return ControllerGone(str(self._lost))

    def _exchange(
        self, command: Command, payload: bytes, fds: Sequence[int], bound_s: float
    ) -> Message:
        end = time.monotonic() + bound_s
        self._next_id = (self._next_id + 1) & 0xFFFF
        header = Header(self._next_id, command, m.HEADER_BYTES + len(payload), 0)
        self._channel.send(header, payload, fds, bound_s)
        reply = self._await_reply(end)
        if reply.header.command not in (command, 0):  # some servers leave it zero
            reply.close()
            raise ProtocolError(
                f"{m.command_name(reply.header.command)} in reply to {command.name}"
            )
        if reply.header.failed:
            reply.close()
            code = reply.header.error
            reason = os.strerror(code) if 0 < code < 4096 else f"error {code}"
            raise Refused(f"{self.where}: {self.server} refuses {command.name}: {reason}", code)
        return reply

    def _await_reply(self, end: float) -> Message:
        strays = 0
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            message = self._channel.receive(left)
            header = message.header
            if header.is_reply and header.id == self._next_id:
                return message
            message.close()
            if header.is_command:
                self._obey(message)
                continue
            strays += 1
            if not header.is_reply or strays > _MOST_STRAYS:
                raise ProtocolError(f"reply {header.id:#x} to nothing that was asked")
            _log.warning("%s: dropped a reply that nobody waits for", self.where)

    def _obey(self, message: Message) -> None:
        """A command of the server's."""
        header, payload, code = message.header, b"", 0
        try:
            payload = self._access(header.command, message.payload)
        except ProtocolError as error:
            _log.warning("%s: refused the server's %s", self.where, error)
            code = error.errno
        except (KeyError, OSError):
            code = errno.EFAULT
        if header.wants_reply:
            flags = m.FLAG_REPLY | (m.FLAG_ERROR if code else 0)
            size = m.HEADER_BYTES + len(payload)
            self._channel.send(Header(header.id, header.command, size, flags, code), payload)

    def _access(self, command: int, payload: bytes) -> bytes:
        if command not in (Command.DMA_READ, Command.DMA_WRITE):
            raise ProtocolError(m.command_name(command), errno.ENOTSUP)
        access = m.DmaAccess.parse(payload)
        if access.count > m.DEFAULT_TRANSFER_BYTES:
            raise ProtocolError(f"{m.command_name(command)} of {access.count} bytes")
        if command == Command.DMA_READ:
            return access.pack() + self._memory.load(access.address, access.count)
        self._memory.store(access.address, m.parse_data(payload, access))
        return access.pack()

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        with self._lock:
            if self._lost is None:
                self._lost = ControllerGone(f"{self.where}: closed")
            self._epoll.close()
            self._channel.close()


def _connect(path: str, where: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # As long as the queue of waiting clients is full the kernel lets us wait, so long.
        seconds, fraction = divmod(_CONNECT_BOUND_S, 1)
        bound = struct.pack("@ll", int(seconds), int(fraction * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
        connected.connect(path)
    except OSError as error:
        connected.close()
        raise _explain(path, where, error) from error
    return connected


def _explain(path: str, where: str, error: OSError) -> DriverError:
    if error.errno == errno.ENOENT or error.errno == errno.ENOTDIR:
        return TransportError(f"{where}: there is no such socket: no server runs; {_START}")
    if error.errno == errno.ECONNREFUSED:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return TransportError(f"{where}: is no socket: give the one that a server made")
        return TransportError(f"{where}: nobody listens there: its server has ended; {_START}")
    if error.errno == errno.EAGAIN:
        return DeviceBusy(f"{where}: too many clients wait for the server: end some of them")
    if error.errno in (errno.EACCES, errno.EPERM):
        return TransportError(f"{where}: not permitted: its owner must give write permission on it")
    if error.errno == errno.EPROTOTYPE:
        return TransportError(f"{where}: is a socket of another type, not a vfio-user server's")
    return TransportError(f"{where}: cannot connect: {error.strerror or error}")
