"""What ioctl(2) says and is told: FITRIM, and the flags of an inode in its two forms.

Below: inodes.py.  Above: upcalls.py.  <linux/fs.h>

    flags = unpack_flags(SETFLAGS, data, inode)      items.INODE_IMMUTABLE | items.INODE_APPEND
    data = pack_flags(FSGETXATTR, inode)
"""

from __future__ import annotations

import errno
import struct

from nvmefs.errors import FsError
from nvmefs.inodes import Inode
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE

FITRIM = 0xC0185879
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820

FSTRIM_RANGE = struct.Struct("<QQQ")
_FSXATTR = struct.Struct("<IIIII8x")
_FLAGS = struct.Struct("<I")

# The least that is passed. The flags are an int, whatever the size in the number of the call.
ARGUMENT_BYTES = {
    FITRIM: FSTRIM_RANGE.size,
    GETFLAGS: _FLAGS.size,
    SETFLAGS: _FLAGS.size,
    FSGETXATTR: _FSXATTR.size,
    FSSETXATTR: _FSXATTR.size,
}

_XFLAGS = {INODE_IMMUTABLE: 0x08, INODE_APPEND: 0x10}


def pack_flags(command: int, inode: Inode) -> bytes:
    """The answer to GETFLAGS or FSGETXATTR."""
    if command == GETFLAGS:
        return _FLAGS.pack(inode.user_flags)
    xflags = sum(xflag for flag, xflag in _XFLAGS.items() if inode.flags & flag)
    return _FSXATTR.pack(xflags, 0, 0, inode.projid, 0)


def unpack_flags(command: int, data: bytes, inode: Inode) -> int:
    """The flags that SETFLAGS or FSSETXATTR asks for. Raises FsError(EOPNOTSUPP) for all but two."""
    if command == SETFLAGS:
        return int(_FLAGS.unpack_from(data)[0])
    xflags, extsize, _, projid, cowextsize = _FSXATTR.unpack_from(data)
    if xflags & ~sum(_XFLAGS.values()) or extsize or cowextsize or projid != inode.projid:
        raise FsError(errno.EOPNOTSUPP, f"file attributes {xflags:#x}, project {projid}")
    return sum(flag for flag, xflag in _XFLAGS.items() if xflags & xflag)
