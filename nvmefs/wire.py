"""Requests and replies of /dev/fuse as bytes: what <linux/fuse.h> lays out, protocol 7.31, little-endian.

Below: struct.  Above: shortcut.py and upcalls.py, which answer requests without pyfuse3.

    request = Request.of(message)                         struct fuse_in_header, and what follows it
    message = reply(request.unique, entry_out(entry))     struct fuse_out_header, and a body
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from pyfuse3 import EntryAttributes, FileInfo

from nvmefs.device import Data
from nvmefs.errors import FsError
from nvmefs.inodes import Inode
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE
from nvmefs.layout import Buffer

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")
_INVAL_INODE = struct.Struct("<Qqq")
_STATX_OUT = struct.Struct("<QII16x")
_STATX = struct.Struct("<IIQIIIHHQQQQ")
_SX_TIME = struct.Struct("<qIi")
_STATX_END = struct.Struct("<IIII112x")
assert (IN_HEADER.size, _ATTR.size, _ENTRY.size, _DIRENT.size) == (40, 88, 40, 24)

NOTIFY_INVAL_INODE = 2
FOPEN_KEEP_CACHE = 2
NS = 1_000_000_000
STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800  # the attribute bits are those of FS_IOC_GETFLAGS


@dataclass(slots=True)
class Request:
    """One request: the inode it is about, who asks, and what follows the header.

    It stands for pyfuse3.RequestContext, too; `umask` is set by the requests that tell it. `missing`: how many
    bytes of it are not in the message, the data of a WRITE; then `data` is where they are (frontend.py).
    """

    opcode: int
    unique: int
    inode: int
    uid: int
    gid: int
    pid: int
    body: bytes
    umask: int = 0
    missing: int = 0
    data: Data = b""

    @classmethod
    def of(cls, message: Buffer) -> Request:
        """The request in a message that has at least a header; the message's memory is free again."""
        length, opcode, unique, inode, uid, gid, pid, _, _ = IN_HEADER.unpack_from(message)
        body = bytes(message[IN_HEADER.size :])
        return cls(opcode, unique, inode, uid, gid, pid, body, 0, length - len(message))

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The fixed part of the body. Raises FsError(EINVAL) if it is cut short."""
        if len(self.body) < layout.size:
            raise FsError(errno.EINVAL, f"request {self.opcode} of {len(self.body)} bytes")
        return layout.unpack_from(self.body)

    def names(self, at: int, count: int = 1) -> list[bytes]:
        """`count` names from byte `at` of the body on, each ended by a NUL byte. Raises FsError(EINVAL)."""
        found = self.body[at:].split(b"\0", count)
        if len(found) <= count:
            raise FsError(errno.EINVAL, f"request {self.opcode} with fewer than {count} names")
        return found[:count]


def reply(unique: int, body: bytes) -> bytes:
    """The answer to request `unique`."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def inval_inode(number: int, offset: int) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE: attributes and what is cached from byte `offset` on are old."""
    body = _INVAL_INODE.pack(number, offset, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_INODE, 0) + body


def failure(unique: int, code: int) -> bytes:
    """The answer that it failed, with errno `code`."""
    return OUT_HEADER.pack(OUT_HEADER.size, -code, unique)


def _attr(entry: EntryAttributes) -> bytes:
    """struct fuse_attr."""
    atime, mtime, ctime = entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns
    return _ATTR.pack(
        entry.st_ino, entry.st_size, entry.st_blocks, atime // NS, mtime // NS, ctime // NS,
        atime % NS, mtime % NS, ctime % NS, entry.st_mode, entry.st_nlink, entry.st_uid,
        entry.st_gid, entry.st_rdev, entry.st_blksize, 0,
    )  # fmt: skip


def attr_out(entry: EntryAttributes) -> bytes:
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


def opendir_out(handle: int) -> bytes:
    """struct fuse_open_out of a directory.

    Without FOPEN_CACHE_DIR: from its own copy of a listing the kernel cannot go on behind a name that is gone.
    """
    return _OPEN_OUT.pack(handle, 0, 0)


def dirent(number: int, cookie: int, type_: int, name: bytes) -> bytes:
    """struct fuse_dirent, padded: a name, its inode's number and type (mode >> 12), and where to go on."""
    length = len(name)
    return _DIRENT.pack(number, cookie, length, type_) + name + bytes(-length % 8)


def direntplus(entry: EntryAttributes, cookie: int, name: bytes) -> bytes:
    """struct fuse_direntplus: a name with all that a lookup of it tells."""
    return entry_out(entry) + dirent(entry.st_ino, cookie, entry.st_mode >> 12, name)
