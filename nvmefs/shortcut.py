"""The commonest requests, answered without pyfuse3.

Below: operations.py, whose handlers pyfuse3 calls as well; wire.py, the bytes.  Above: frontend.py.

    message = await shortcut.answer(request)    bytes to send; b"" for none

pyfuse3 costs several task switches and locks a request, several times what looking a name up takes. A request
that finds all it needs in memory needs none: its handler runs to its end at once (relay.py).
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pyfuse3 import EntryAttributes, FUSEError

from nvmefs.directories import COOKIE_DOTDOT
from nvmefs.errors import FsError
from nvmefs.operations import Operations
from nvmefs.wire import (
    NS,
    Request,
    attr_out,
    dirent,
    direntplus,
    entry_out,
    failure,
    open_out,
    opendir_out,
    reply,
)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_THREE = struct.Struct("<III")
_SETATTR = struct.Struct("<IIQQQqqqIIIIIIII")
_READ = struct.Struct(
    "<QQIIQII"
)  # READ, READDIR and, with what they write for what they want, WRITE
_RENAME2 = struct.Struct("<QII")
_FSYNC = struct.Struct("<QII")
_XATTR = struct.Struct("<II")
_FORGET_ONE = struct.Struct("<QQ")
assert (_SETATTR.size, _READ.size) == (88, 40)

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = 1, 2, 4, 8, 16, 32
FATTR_FH, FATTR_ATIME_NOW, FATTR_CTIME = 64, 128, 1024  # "now" comes with the time filled in
FSYNC_FDATASYNC = 1
WRITE_KILL_SUIDGID = 1 << 2
DIRENT_BYTES = 40  # an entry of a listing, about; 128 more with attributes


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
        self.handlers: dict[int, Callable[[Request], Answer]] = {
            1: self._lookup,
            2: self._forget,
            3: self._getattr,
            4: self._setattr,
            5: self._readlink,
            6: self._symlink,
            8: self._mknod,
            9: self._mkdir,
            10: self._unlink,
            11: self._rmdir,
            12: self._rename,
            13: self._link,
            14: self._open,
            15: self._read,
            16: self._write,
            18: self._release,
            20: self._fsync,
            21: self._setxattr,
            22: self._getxattr,
            27: self._opendir,
            28: self._readdir,
            29: self._releasedir,
            35: self._create,
            42: self._batch_forget,
            44: self._readdirplus,
            45: self._rename2,
        }

    def knows(self, request: Request) -> bool:
        """Whether the request is one of those."""
        return request.opcode in self.handlers

    async def answer(self, request: Request) -> bytes:
        """The reply to a request, empty where the kernel expects none."""
        try:
            body = await self.handlers[request.opcode](request)
        except (FUSEError, FsError) as error:
            return failure(request.unique, error.errno)
        return b"" if body is None else reply(request.unique, body)

    # --- attributes ---------------------------------------------------------------------------------

    async def _getattr(self, request: Request) -> bytes:
        return attr_out(await self.operations.getattr(request.inode, request))

    async def _setattr(self, request: Request) -> bytes:
        (
            valid, _, handle, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            mode, _, uid, gid, _,
        ) = request.unpack(_SETATTR)  # fmt: skip
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
        return attr_out(await self.operations.setattr(request.inode, attr, changed, file, request))

    async def _setxattr(self, request: Request) -> bytes:
        """struct fuse_setxattr_in as it was before FUSE_SETXATTR_EXT, which is not asked for."""
        size, flags = request.unpack(_XATTR)
        (name,) = request.names(_XATTR.size)
        value = request.body[_XATTR.size + len(name) + 1 :]
        if len(value) != size:
            raise FsError(errno.EINVAL, f"an attribute of {size} bytes brings {len(value)}")
        await self.operations.set_attribute(request.inode, name, value, flags, request)
        return b""

    async def _getxattr(self, request: Request) -> bytes:
        size, _ = request.unpack(_XATTR)
        (name,) = request.names(_XATTR.size)
        value: bytes = await self.operations.getxattr(request.inode, name, request)
        if not size:
            return _XATTR.pack(len(value), 0)
        if len(value) > size:
            raise FUSEError(errno.ERANGE)
        return value

    async def _forget(self, request: Request) -> None:
        (count,) = request.unpack(_U64)
        await self.operations.forget([(request.inode, count)])

    async def _batch_forget(self, request: Request) -> None:
        (count,) = request.unpack(_U32)
        forgotten = list(_FORGET_ONE.iter_unpack(request.body[8 : 8 + count * _FORGET_ONE.size]))
        await self.operations.forget(forgotten)

    # --- names --------------------------------------------------------------------------------------

    async def _lookup(self, request: Request) -> bytes:
        (name,) = request.names(0)
        return entry_out(await self.operations.lookup(request.inode, name, request))

    async def _mknod(self, request: Request) -> bytes:
        mode, rdev, request.umask = request.unpack(_THREE)
        (name,) = request.names(16)
        return entry_out(await self.operations.mknod(request.inode, name, mode, rdev, request))

    async def _mkdir(self, request: Request) -> bytes:
        mode, request.umask = request.unpack(_XATTR)
        (name,) = request.names(8)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return entry_out(await self.operations.mkdir(request.inode, name, mode, request))

    async def _create(self, request: Request) -> bytes:
        flags, mode, request.umask = request.unpack(_THREE)
        (name,) = request.names(16)
        info, entry = await self.operations.create(request.inode, name, mode, flags, request)
        return entry_out(entry) + open_out(info)

    async def _symlink(self, request: Request) -> bytes:
        name, target = request.names(0, 2)
        return entry_out(await self.operations.symlink(request.inode, name, target, request))

    async def _link(self, request: Request) -> bytes:
        (number,) = request.unpack(_U64)
        (name,) = request.names(_U64.size)
        return entry_out(await self.operations.link(number, request.inode, name, request))

    async def _unlink(self, request: Request) -> bytes:
        (name,) = request.names(0)
        await self.operations.unlink(request.inode, name, request)
        return b""

    async def _rmdir(self, request: Request) -> bytes:
        (name,) = request.names(0)
        await self.operations.rmdir(request.inode, name, request)
        return b""

    async def _rename(self, request: Request) -> bytes:
        (directory,) = request.unpack(_U64)
        return await self._move(request, directory, 0, _U64.size)

    async def _rename2(self, request: Request) -> bytes:
        directory, flags, _ = request.unpack(_RENAME2)
        return await self._move(request, directory, flags, _RENAME2.size)

    async def _move(self, request: Request, directory: int, flags: int, names_at: int) -> bytes:
        old, new = request.names(names_at, 2)
        await self.operations.rename(request.inode, old, directory, new, flags, request)
        return b""

    async def _readlink(self, request: Request) -> bytes:
        target: bytes = await self.operations.readlink(request.inode, request)
        return target

    # --- directories --------------------------------------------------------------------------------

    async def _opendir(self, request: Request) -> bytes:
        return opendir_out(await self.operations.opendir(request.inode, request))

    async def _releasedir(self, request: Request) -> bytes:
        return b""

    async def _readdir(self, request: Request) -> bytes:
        """Names and types alone: what a program gets that does not ask for more."""
        number, after, size, *_ = request.unpack(_READ)
        parts: list[bytes] = []
        room = size
        while names := await self.operations.names(number, after, max(room // DIRENT_BYTES, 1)):
            for cookie, entry in names:
                packed = dirent(entry.inode, cookie, entry.type, entry.name)
                room -= len(packed)
                if room < 0:
                    return b"".join(parts)
                parts.append(packed)
                after = cookie
        return b"".join(parts)

    async def _readdirplus(self, request: Request) -> bytes:
        """Names with attributes. Each but '.' and '..' counts as a lookup, if it is in the answer."""
        number, after, size, *_ = request.unpack(_READ)
        parts: list[bytes] = []
        taken: list[int] = []
        room = size
        while room > 0:
            limit = max(room // (DIRENT_BYTES + 128), 1)
            names = await self.operations.names(number, after, limit)
            if not names:
                break
            for after, entry in names:
                inode = await self.operations.readable(number, entry.inode)
                if inode is None:
                    continue
                packed = direntplus(self.operations.attributes(inode), after, entry.name)
                room -= len(packed)
                if room < 0:
                    break
                parts.append(packed)
                if after > COOKIE_DOTDOT:
                    taken.append(inode.number)
        self.operations.count(taken)
        return b"".join(parts)

    # --- files --------------------------------------------------------------------------------------

    async def _open(self, request: Request) -> bytes:
        (flags,) = request.unpack(_U32)
        return open_out(await self.operations.open(request.inode, flags, request))

    async def _release(self, request: Request) -> bytes:
        (handle,) = request.unpack(_U64)
        await self.operations.release(handle)
        return b""

    async def _read(self, request: Request) -> bytes:
        handle, offset, size, *_ = request.unpack(_READ)
        data: bytes = await self.operations.read(handle, offset, size)
        return data

    async def _write(self, request: Request) -> bytes:
        handle, offset, size, flags, *_ = request.unpack(_READ)
        data = request.data if request.missing else memoryview(request.body)[_READ.size :]
        if len(data) != size:
            raise FsError(errno.EINVAL, f"a write of {size} bytes brings {len(data)}")
        if flags & WRITE_KILL_SUIDGID:  # not from the cache: who asks is who writes
            await self.operations.kill_setxid(request.inode, request)
        return _XATTR.pack(await self.operations.write(handle, offset, data), 0)

    async def _fsync(self, request: Request) -> bytes:
        handle, flags, _ = request.unpack(_FSYNC)
        await self.operations.fsync(handle, bool(flags & FSYNC_FDATASYNC))
        return b""
