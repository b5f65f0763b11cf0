"""What request handlers answer with: attributes, file handles, and the mode that a change leaves.

Below: inodes.py.  Above: operations.py.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from pathlib import Path
from typing import Protocol

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, InodeT, ModeT, StatvfsData

from nvmefs.allocator import Usage
from nvmefs.clock import Timestamp
from nvmefs.errors import FsError
from nvmefs.inodes import Inode
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE, INODE_INLINE
from nvmefs.layout import BLOCK_BYTES, MAX_NAME_BYTES, Superblock

log = logging.getLogger("nvmefs.operations")

NS = 1_000_000_000
WRITING = 1 << 61  # in a file handle, beside the inode number
WITHOUT_RESERVE = 1 << 60
WITHOUT_ATIME = 1 << 59
CAP_SYS_RESOURCE = 24
SETXID = stat.S_ISUID | stat.S_ISGID


def attributes(inode: Inode, attribute_timeout_s: float, entry_timeout_s: float) -> EntryAttributes:
    """stat(2) of an inode.

    Inline data counts as one block, and so does a directory: they take room in the tree, and programs
    take a file of size > 0 without blocks for one that is all hole.
    """
    entry = EntryAttributes()
    mode = inode.mode
    entry.st_ino = InodeT(inode.number)
    entry.st_mode = ModeT(mode)
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    if stat.S_ISDIR(mode):
        entry.st_size = BLOCK_BYTES
        entry.st_blocks = 8
    else:
        entry.st_size = inode.size_bytes
        entry.st_blocks = 8 if inode.flags & INODE_INLINE else inode.blocks * 8
    entry.st_atime_ns = inode.atime_s * NS + inode.atime_ns
    entry.st_mtime_ns = inode.mtime_s * NS + inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_s * NS + inode.ctime_ns
    entry.attr_timeout = attribute_timeout_s
    entry.entry_timeout = entry_timeout_s
    return entry


def space(usage: Usage) -> StatvfsData:
    """statvfs(3); inodes have no limit of their own."""
    result = StatvfsData()
    result.f_bsize = result.f_frsize = BLOCK_BYTES
    result.f_blocks = usage.blocks
    result.f_bfree = usage.free_blocks
    result.f_bavail = usage.available_blocks
    result.f_files = usage.inodes
    result.f_ffree = result.f_favail = usage.free_inodes
    result.f_namemax = MAX_NAME_BYTES
    return result


def file_info(number: int, flags: int, *, may_use_reserve: bool = True) -> FileInfo:
    """The handle of an open file: its inode number, whether it may be written, and also into the space that
    is reserved for root, and whether reading it leaves its access time alone.
    """
    handle = number | (WITHOUT_ATIME if flags & os.O_NOATIME else 0)
    if flags & os.O_ACCMODE != os.O_RDONLY:
        handle |= WRITING
        handle |= 0 if may_use_reserve else WITHOUT_RESERVE
    return FileInfo(fh=FileHandleT(handle), keep_cache=True)


def require_writable(inode: Inode, flags: int) -> None:
    """Open for writing, against the flags of chattr(1), of which the kernel knows nothing.

    Raises FsError(EPERM).
    """
    if inode.flags & INODE_IMMUTABLE:
        raise FsError(errno.EPERM, f"inode {inode.number} is immutable")
    if inode.flags & INODE_APPEND and (not flags & os.O_APPEND or flags & os.O_TRUNC):
        raise FsError(errno.EPERM, f"inode {inode.number} is append-only")


def without_setxid(
    inode: Inode, uid: int, *, chown: bool = False, in_group: bool = True
) -> int | None:
    """The permission bits after a change by `uid` (0: privileged), None if they stay.

    As in Linux, setattr_should_drop_sgid(): set-group-ID without group execution stays, unless an ordinary
    user who is not `in_group`, the file's group, makes the change. A privileged user's write leaves all, his
    chown does not; a write is to a regular file, a chown may be of anything but a directory.
    """
    if stat.S_ISDIR(inode.mode) or not (chown or (uid and stat.S_ISREG(inode.mode))):
        return None
    cleared = stat.S_ISUID
    if inode.mode & stat.S_IXGRP or (uid and not in_group):
        cleared |= stat.S_ISGID
    return stat.S_IMODE(inode.mode) & ~cleared if inode.mode & cleared else None


class Caller(Protocol):
    """Who asks: a RequestContext of pyfuse3, or a request as it came."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def pid(self) -> int: ...


def is_in_group(who: Caller, gid: int) -> bool:
    """Whether the caller may do what members of a group may; root may."""
    if not who.uid or who.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(who.pid)
    except OSError:  # the process is not visible from here: not known to be in the group
        return False


def may_use_reserve(superblock: Superblock, who: Caller) -> bool:
    """Whether what the caller does may use the last blocks, where some are reserved for root."""
    return not superblock.reserved_blocks or has_resource_privilege(who)


def has_resource_privilege(who: Caller) -> bool:
    """Whether the caller may use what is reserved for root: root, or who has CAP_SYS_RESOURCE."""
    if not who.uid:
        return True
    try:
        status = Path(f"/proc/{who.pid}/status").read_text()
    except OSError:  # not visible from here, or gone: not known to be privileged
        return False
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> CAP_SYS_RESOURCE & 1)


def timestamp(ns: int) -> Timestamp:
    return divmod(ns, NS)


def forget_attributes(number: int) -> None:
    """Tell the kernel that the attributes it holds are old. It may not know the inode any more."""
    try:
        pyfuse3.invalidate_inode(InodeT(number), attr_only=True)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.warning("inode %d: the kernel keeps old attributes: %s", number, error)
