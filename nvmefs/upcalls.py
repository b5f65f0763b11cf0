"""Requests that pyfuse3 has no handler for, from their bytes to their bytes.

Below: filesystem.py.  Above: frontend.py, which receives and sends them.

A request is struct fuse_in_header and a body, a reply struct fuse_out_header and a body (<linux/fuse.h>).
What is not in the table is answered ENOSYS, which the kernel remembers and does not ask again.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from driver import trace
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem

log = logging.getLogger("nvmefs.upcalls")

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")

SYNCFS = 50


@dataclass(frozen=True)
class Request:
    """One request: the inode it is about, who asks, and what follows the header."""

    opcode: int
    unique: int
    inode: int
    uid: int
    gid: int
    pid: int
    body: bytes


class Upcalls:
    """Handlers by opcode. Each takes a Request and returns the reply's body, or raises FsError."""

    def __init__(self, filesystem: Filesystem) -> None:
        self.fs = filesystem
        self.handlers: dict[int, Callable[[Request], Awaitable[bytes]]] = {SYNCFS: self.syncfs}

    async def answer(self, message: bytes) -> bytes:
        """The reply to a request."""
        _, opcode, unique, inode, uid, gid, pid, _, _ = _IN.unpack_from(message)
        request = Request(opcode, unique, inode, uid, gid, pid, message[_IN.size :])
        code, body = 0, b""
        try:
            body = await self._dispatch(request)
        except FsError as error:
            code = error.errno
        except Exception:
            log.exception("request %d failed by a fault of nvmefs; the answer is EIO", opcode)
            code = errno.EIO
        return _OUT.pack(_OUT.size + len(body), -code, unique) + body

    async def _dispatch(self, request: Request) -> bytes:
        handler = self.handlers.get(request.opcode)
        if handler is None:
            raise FsError(errno.ENOSYS, f"request {request.opcode} is not known")
        if trace.enabled:
            trace.hop(f"upcalls.{handler.__name__}", inode=request.inode)
        return await handler(request)

    async def syncfs(self, request: Request) -> bytes:
        """syncfs(2), sync(2): everything that has returned is durable."""
        await self.fs.sync()
        return b""
