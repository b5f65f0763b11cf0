"""Requests that pyfuse3 has no handler for, from their bytes to their bytes.

Below: filesystem.py, the lookup counts of operations.py.  Above: frontend.py, which receives and sends.

A request is struct fuse_in_header and a body, a reply struct fuse_out_header and a body (<linux/fuse.h>).
What is not in the table is answered ENOSYS, which the kernel remembers and does not ask again.

What the kernel does of itself: it writes back the pages of a region before FALLOCATE with a hole or zeroes
and before COPY_FILE_RANGE, and drops them after; it refuses to collapse and insert ranges; it asks for STATX
only when a birth time is wanted. It writes nothing back before LSEEK, so a file that somebody has open for
writing may have data that only the kernel knows of: there we ask for it first.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Awaitable, Callable

import trio

from driver import trace
from nvmefs import ioctls, wire
from nvmefs.answers import file_info, forget_attributes, may_use_reserve
from nvmefs.errors import FsError
from nvmefs.items import INODE_IMMUTABLE
from nvmefs.operations import Operations
from nvmefs.wire import Request

log = logging.getLogger("nvmefs.upcalls")

_FALLOCATE = struct.Struct("<QQQII")
_LSEEK = struct.Struct("<QqII")
_COPY = struct.Struct("<QQQQQQQ")
_TMPFILE = struct.Struct("<IIII")
_STATX = struct.Struct("<IIQII")
_IOCTL = struct.Struct("<QIIQII")
_IOCTL_OUT = struct.Struct("<iIII")

IOCTL, FALLOCATE, LSEEK, COPY_FILE_RANGE, SYNCFS, TMPFILE, STATX = 39, 43, 46, 47, 50, 51, 52


class Upcalls:
    """Handlers by opcode. Each takes a Request and returns the reply's body, or raises FsError.

    `notify` sends a notification to the kernel, and returns when the kernel has done what it says; it is called
    in a thread, because that can be writing pages back, with requests that are answered meanwhile.
    """

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.fs = operations.fs
        self.notify: Callable[[bytes], None] | None = None
        self.handlers: dict[int, Callable[[Request], Awaitable[bytes]]] = {
            IOCTL: self.ioctl,
            FALLOCATE: self.fallocate,
            LSEEK: self.lseek,
            COPY_FILE_RANGE: self.copy_file_range,
            SYNCFS: self.syncfs,
            TMPFILE: self.tmpfile,
            STATX: self.statx,
        }

    async def answer(self, request: Request) -> bytes:
        """The reply to a request."""
        code, body = 0, b""
        try:
            body = await self._dispatch(request)
        except FsError as error:
            self.operations.complaints.about(f"upcalls.{request.opcode}", error)
            code = error.errno
        except Exception:
            log.exception(
                "request %d failed by a fault of nvmefs; the answer is EIO", request.opcode
            )
            code = errno.EIO
        return wire.failure(request.unique, code) if code else wire.reply(request.unique, body)

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

    # --- regions ------------------------------------------------------------------------------------

    async def fallocate(self, request: Request) -> bytes:
        """fallocate(2)."""
        _, offset, length, mode, _ = request.unpack(_FALLOCATE)
        privileged = may_use_reserve(self.fs.superblock, request)
        await self.fs.fallocate(request.inode, mode, offset, length, privileged=privileged)
        await self._modified(request.inode, request)
        return b""

    async def copy_file_range(self, request: Request) -> bytes:
        """copy_file_range(2) within this filesystem; the kernel has refused overlaps."""
        _, source_offset, target, _, target_offset, length, flags = request.unpack(_COPY)
        if flags:
            raise FsError(errno.EINVAL, f"copy_file_range flags {flags:#x}")
        copied = await self.fs.copy_range(
            request.inode, source_offset, target, target_offset, length,
            privileged=may_use_reserve(self.fs.superblock, request),
        )  # fmt: skip
        if copied:
            await self._modified(target, request)
        return struct.pack("<II", copied, 0)

    async def _modified(self, number: int, request: Request) -> None:
        """An ordinary user's change takes set-user-ID away."""
        if request.uid:
            await self.operations.kill_setxid(number, request)

    async def lseek(self, request: Request) -> bytes:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        _, offset, whence, _ = request.unpack(_LSEEK)
        if offset < 0:
            raise FsError(errno.ENXIO, f"offset {offset}")
        await self._write_back(request.inode, offset)
        return struct.pack("<Q", await self.fs.seek(request.inode, offset, whence))

    async def _write_back(self, number: int, offset: int) -> None:
        """What the kernel has cached of the file from `offset` on, and not written yet, is written.

        Only while it is open for writing is there such a thing: close(2) and munmap(2) write everything.
        """
        if self.notify is None or not self.operations.writers.get(number):
            return
        message = wire.inval_inode(number, offset)
        await trio.to_thread.run_sync(self.notify, message, abandon_on_cancel=True)

    # --- inodes -------------------------------------------------------------------------------------

    async def tmpfile(self, request: Request) -> bytes:
        """open(2) with O_TMPFILE."""
        flags, mode, umask, _ = request.unpack(_TMPFILE)
        privileged = may_use_reserve(self.fs.superblock, request)
        inode = await self.fs.tmpfile(
            request.inode, mode, request.uid, request.gid,
            umask=umask, linkable=not flags & os.O_EXCL, privileged=privileged,
        )  # fmt: skip
        entry = self.operations.counted(inode)
        self.operations.note_writer(inode.number, flags)
        info = file_info(inode.number, flags, may_use_reserve=privileged)
        return wire.entry_out(entry) + wire.open_out(info)

    async def statx(self, request: Request) -> bytes:
        """statx(2), with the birth time."""
        request.unpack(_STATX)
        inode = await self.fs.getattr(request.inode)
        return wire.statx_out(self.operations.attributes(inode), inode)

    # --- ioctl --------------------------------------------------------------------------------------

    async def ioctl(self, request: Request) -> bytes:
        """FITRIM (fstrim), inode flags (lsattr, chattr). Others: ENOTTY."""
        _, _, command, _, in_size, out_size = request.unpack(_IOCTL)
        data = request.body[_IOCTL.size : _IOCTL.size + in_size]
        size = ioctls.ARGUMENT_BYTES.get(command)
        if size is None:
            raise FsError(errno.ENOTTY, f"ioctl {command:#x}")
        if len(data) != in_size or max(in_size, out_size) < size:
            raise FsError(errno.EINVAL, f"ioctl {command:#x} with {in_size} bytes")
        if command == ioctls.FITRIM:
            answer = await self._trim(data, request.uid)
        elif command in (ioctls.SETFLAGS, ioctls.FSSETXATTR):
            await self._set_flags(request, command, data)
            answer = b""
        else:
            answer = ioctls.pack_flags(command, await self.fs.getattr(request.inode))
        return _IOCTL_OUT.pack(0, 0, 0, 0) + answer.ljust(out_size, b"\0")[:out_size]

    async def _trim(self, data: bytes, uid: int) -> bytes:
        if uid:
            raise FsError(errno.EPERM, "only root trims")
        start, length, min_length = ioctls.FSTRIM_RANGE.unpack_from(data)
        trimmed = await self.fs.trim(start, length, min_length)
        return ioctls.FSTRIM_RANGE.pack(start, trimmed, min_length)

    async def _set_flags(self, request: Request, command: int, data: bytes) -> None:
        """Dirty pages are written first: what was written before chattr(1) is none of its business."""
        inode = await self.fs.getattr(request.inode)
        flags = ioctls.unpack_flags(command, data, inode)
        if flags & INODE_IMMUTABLE:
            await self._write_back(inode.number, 0)
        await self.fs.set_flags(inode.number, flags, privileged=not request.uid)
        forget_attributes(inode.number)
