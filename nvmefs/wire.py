"""The commonest requests as bytes: decoded for the handlers of operations.py, their answers encoded.

Below: operations.py, whose handlers pyfuse3 calls as well.  Above: frontend.py.

    answer = shortcut.try_answer(message)      bytes to send; b"" for none; None: it would have to wait

pyfuse3 costs two task switches and two locks a request, several times what looking a name up takes. A request
about names or attributes that finds all it needs in memory needs neither: its handler runs to its end at once.
One that would have to wait is taken back (transaction.py) and starts again in a task of its own.

Layouts: <linux/fuse.h>, protocol 7.31, little-endian.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from nvmefs.inodes import Inode
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE
from nvmefs.operations import Operations
from nvmefs.transaction import Impatient

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_SETATTR = struct.Struct("<IIQQQqqqIIIIIIII")
_XATTR_OUT = struct.Struct("<II")
_FORGET_ONE = struct.Struct("<QQ")
_STATX_OUT = struct.Struct("<QII16x")
_STATX = struct.Struct("<IIQIIIHHQQQQ")
_SX_TIME = struct.Struct("<qIi")
_STATX_END = struct.Struct("<IIII112x")
assert (IN_HEADER.size, _ATTR.size, _ENTRY.size, _SETATTR.size) == (40, 88, 40, 88)

FOPEN_KEEP_CACHE = 2
NS = 1_000_000_000
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = 1, 2, 4, 8, 16, 32
FATTR_FH, FATTR_ATIME_NOW, FATTR_CTIME = 64, 128, 1024  # "now" comes with the time filled in
STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800  # the attribute bits are those of FS_IOC_GETFLAGS


@dataclass(slots=True)
class Context:
    """Who asks; what pyfuse3.RequestContext has."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


@dataclass(slots=True)
class Request:
    """A request without its header."""

    inode: int
    context: Context
    body: bytes


@dataclass(slots=True)
class Changed:
    """Which attributes a SETATTR sets; what pyfuse3.SetattrFields has."""

    update_mode: bool
    update_uid: bool
    update_gid: bool
    update_size: bool
    update_atime: bool
    update_mtime: bool
    update_ctime: bool


Answer = Coroutine[Any, Any, bytes | None]


class Shortcut:
    """The handlers of `operations`, called with requests as the kernel wrote them."""

    def __init__(self, operations: Operations) -> None:
        self.operations: Any = operations
        self.transactions = operations.fs.transactions
        self.handlers: dict[int, Callable[[Request], Answer]] = {
            1: self._lookup,
            2: self._forget,
            3: self._getattr,
            4: self._setattr,
            8: self._mknod,
            9: self._mkdir,
            10: self._unlink,
            14: self._open,
            18: self._release,
            22: self._getxattr,
            27: self._opendir,
            29: self._releasedir,
            35: self._create,
            42: self._batch_forget,
        }

    def knows(self, message: bytes) -> bool:
        """Whether the request is one of those."""
        return int.from_bytes(message[4:8], "little") in self.handlers

    def try_answer(self, message: bytes) -> bytes | None:
        """The reply, if all that is needed is in memory; None if not: nothing has changed then."""
        coroutine = self.answer(message)
        self.transactions.patient = False
        try:
            coroutine.send(None)
        except StopIteration as done:
            result: bytes = done.value
            return result
        except Impatient:
            return None
        finally:
            self.transactions.patient = True
            coroutine.close()
        raise RuntimeError(f"a request waited that must not: {message[: IN_HEADER.size].hex()}")

    async def answer(self, message: bytes) -> bytes:
        """The reply to a request, empty where the kernel expects none."""
        _, opcode, unique, inode, uid, gid, pid, _, _ = IN_HEADER.unpack_from(message)
        request = Request(inode, Context(uid, gid, pid), message[IN_HEADER.size :])
        try:
            body = await self.handlers[opcode](request)
        except FUSEError as error:
            return OUT_HEADER.pack(OUT_HEADER.size, -error.errno, unique)
        if body is None:
            return b""
        return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body

    def _take_time(self) -> None:
        """The request moves data: it belongs into a task of its own."""
        if not self.transactions.patient:
            raise Impatient

    # --- requests -----------------------------------------------------------------------------------

    async def _lookup(self, request: Request) -> bytes:
        entry = await self.operations.lookup(request.inode, _name(request.body), request.context)
        return entry_out(entry)

    async def _getattr(self, request: Request) -> bytes:
        return _attributes(await self.operations.getattr(request.inode, request.context))

    async def _setattr(self, request: Request) -> bytes:
        (
            valid, _, handle, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            mode, _, uid, gid, _,
        ) = _SETATTR.unpack_from(request.body)  # fmt: skip
        if valid & FATTR_SIZE:
            self._take_time()
        touch = valid & FATTR_ATIME_NOW and valid & FATTR_MTIME
        if valid & FATTR_ATIME and not touch:
            await self.operations.require_settable_times(request.inode)
        changed = Changed(
            bool(valid & FATTR_MODE), bool(valid & FATTR_UID), bool(valid & FATTR_GID),
            bool(valid & FATTR_SIZE), bool(valid & FATTR_ATIME), bool(valid & FATTR_MTIME),
            bool(valid & FATTR_CTIME),
        )  # fmt: skip
        attr = EntryAttributes()
        attr.st_mode, attr.st_size = mode, size
        attr.st_uid, attr.st_gid = uid, gid
        attr.st_atime_ns = atime * NS + atime_ns
        attr.st_mtime_ns = mtime * NS + mtime_ns
        attr.st_ctime_ns = ctime * NS + ctime_ns
        file = handle if valid & FATTR_FH else None
        answer = await self.operations.setattr(request.inode, attr, changed, file, request.context)
        return _attributes(answer)

    async def _mknod(self, request: Request) -> bytes:
        mode, rdev, request.context.umask = struct.unpack_from("<III", request.body)
        name = _name(request.body[16:])
        return entry_out(
            await self.operations.mknod(request.inode, name, mode, rdev, request.context)
        )

    async def _mkdir(self, request: Request) -> bytes:
        mode, request.context.umask = struct.unpack_from("<II", request.body)
        name = _name(request.body[8:])
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return entry_out(await self.operations.mkdir(request.inode, name, mode, request.context))

    async def _unlink(self, request: Request) -> bytes:
        await self.operations.unlink(request.inode, _name(request.body), request.context)
        return b""

    async def _open(self, request: Request) -> bytes:
        (flags,) = struct.unpack_from("<I", request.body)
        if flags & os.O_TRUNC:
            self._take_time()
        return open_out(await self.operations.open(request.inode, flags, request.context))

    async def _opendir(self, request: Request) -> bytes:
        handle = await self.operations.opendir(request.inode, request.context)
        return _OPEN_OUT.pack(handle, 0, 0)

    async def _release(self, request: Request) -> bytes:
        (handle,) = struct.unpack_from("<Q", request.body)
        await self.operations.release(handle)
        return b""

    async def _releasedir(self, request: Request) -> bytes:
        return b""

    async def _create(self, request: Request) -> bytes:
        flags, mode, request.context.umask = struct.unpack_from("<III", request.body)
        name = _name(request.body[16:])
        info, entry = await self.operations.create(
            request.inode, name, mode, flags, request.context
        )
        return entry_out(entry) + open_out(info)

    async def _getxattr(self, request: Request) -> bytes:
        (size,) = struct.unpack_from("<I", request.body)
        name = _name(request.body[8:])
        value: bytes = await self.operations.getxattr(request.inode, name, request.context)
        if not size:
            return _XATTR_OUT.pack(len(value), 0)
        if len(value) > size:
            raise FUSEError(errno.ERANGE)
        return value

    async def _forget(self, request: Request) -> None:
        (count,) = struct.unpack_from("<Q", request.body)
        await self.operations.forget([(request.inode, count)])

    async def _batch_forget(self, request: Request) -> None:
        (count,) = struct.unpack_from("<I", request.body)
        forgotten = list(_FORGET_ONE.iter_unpack(request.body[8 : 8 + count * _FORGET_ONE.size]))
        await self.operations.forget(forgotten)


def _name(body: bytes) -> bytes:
    """A name, which ends with a NUL byte."""
    return body[: body.index(0)]


def _attr(entry: EntryAttributes) -> bytes:
    """struct fuse_attr."""
    atime, mtime, ctime = entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns
    return _ATTR.pack(
        entry.st_ino, entry.st_size, entry.st_blocks, atime // NS, mtime // NS, ctime // NS,
        atime % NS, mtime % NS, ctime % NS, entry.st_mode, entry.st_nlink, entry.st_uid,
        entry.st_gid, entry.st_rdev, entry.st_blksize, 0,
    )  # fmt: skip


def _attributes(entry: EntryAttributes) -> bytes:
    """struct fuse_attr_out."""
    return _ATTR_OUT.pack(int(entry.attr_timeout), 0, 0) + _attr(entry)


def entry_out(entry: EntryAttributes) -> bytes:
    """struct fuse_entry_out."""
    head = _ENTRY.pack(
        entry.st_ino, entry.generation, int(entry.entry_timeout), int(entry.attr_timeout), 0, 0
    )
    return head + _attr(entry)


def statx_out(entry: EntryAttributes, inode: Inode) -> bytes:
    """struct fuse_statx_out: all that fuse_attr has, the birth time, and the flags of chattr(1)."""
    times = (
        divmod(entry.st_atime_ns, NS), (inode.btime_s, inode.btime_ns),
        divmod(entry.st_ctime_ns, NS), divmod(entry.st_mtime_ns, NS),
    )  # fmt: skip
    head = _STATX_OUT.pack(int(entry.attr_timeout), 0, 0)
    fixed = _STATX.pack(
        STATX_BASIC_STATS | STATX_BTIME, entry.st_blksize, inode.user_flags, entry.st_nlink,
        entry.st_uid, entry.st_gid, entry.st_mode, 0, entry.st_ino, entry.st_size,
        entry.st_blocks, INODE_IMMUTABLE | INODE_APPEND,
    )  # fmt: skip
    device = os.major(entry.st_rdev), os.minor(entry.st_rdev)
    return b"".join(
        (head, fixed, *(_SX_TIME.pack(*time, 0) for time in times), _STATX_END.pack(*device, 0, 0))
    )


def open_out(info: FileInfo) -> bytes:
    """struct fuse_open_out."""
    return _OPEN_OUT.pack(info.fh, FOPEN_KEEP_CACHE if info.keep_cache else 0, 0)
