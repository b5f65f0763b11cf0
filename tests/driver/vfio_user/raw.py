"""A client of vfio-user that shares nothing with ours.

Messages are packed with struct, so that both ends of the protocol can be wrong only one at a time.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, REGION_IO_FDS = 1, 2, 3, 4, 5, 6
IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, RESET, WRITE_MULTI = 7, 8, 9, 10, 13, 15
BOUND_S = 20.0


class Answer(NamedTuple):
    """A reply; `error` is 0 unless its error bit is set. The descriptors are the caller's."""

    id: int
    command: int
    error: int
    payload: bytes
    fds: list[int]


class RawClient:
    """A connection. call() raises OSError for an error reply."""

    def __init__(self, path: str, *, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(BOUND_S)
        self.socket.connect(path)
        self._id = 0
        if negotiate:
            self.call(VERSION, struct.pack("<HH", 0, 1) + json.dumps({}).encode() + b"\0")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> int:
        """Sends a command; its id."""
        self._id = (self._id + 1) & 0xFFFF
        head = struct.pack("<HHIII", self._id, command, 16 + len(payload), flags, 0)
        self.send_raw(head + payload, fds)
        return self._id

    def send_raw(self, raw: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([raw], rights)
        if sent < len(raw):
            self.socket.sendall(raw[sent:])

    def receive(self) -> Answer | None:
        """The next reply, None at the end of the stream."""
        fds: list[int] = []
        head = self._exactly(16, fds)
        if head is None:
            return None
        identity, command, size, flags, error = struct.unpack("<HHIII", head)
        assert flags & 0xF == 1, "a reply"
        assert size >= 16
        payload = self._exactly(size - 16, fds)
        assert payload is not None
        failed = bool(flags & 0x20)
        assert failed or not error
        assert not failed or size == 16, "an error reply is the header alone"
        return Answer(identity, command, error if failed else 0, payload, fds)

    def _exactly(self, nbytes: int, fds: list[int]) -> bytes | None:
        raw = b""
        while len(raw) < nbytes:
            try:
                more, ancillary, _, _ = self.socket.recvmsg(nbytes - len(raw), 1024)
            except ConnectionResetError:
                return None
            for _, _, data in ancillary:
                fds += array.array("i", data)
            if not more:
                return None
            raw += more
        return raw

    def call(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Answer:
        identity = self.send(command, payload, fds)
        answer = self.receive()
        assert answer is not None, "the server closed the connection"
        assert (answer.id, answer.command) == (identity, command)
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer

    # ---- what is often needed

    def read(self, region: int, offset: int, count: int) -> bytes:
        answer = self.call(REGION_READ, struct.pack("<QII", offset, region, count))
        assert answer.payload[:16] == struct.pack("<QII", offset, region, count)
        return answer.payload[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.call(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)

    def map(self, fd: int | None, offset: int, iova: int, size: int, flags: int = 3) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset, iova, size)
        self.call(DMA_MAP, payload, () if fd is None else (fd,))

    def unmap(self, iova: int, size: int, flags: int = 0) -> bytes:
        return self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, flags, iova, size)).payload

    def set_irqs(
        self, flags: int, start: int, count: int, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        payload = struct.pack("<IIIII", 20 + len(data), flags, 2, start, count) + data
        self.call(SET_IRQS, payload, fds)
