"""What the kernel asks about extended attributes.

Below: filesystem.py.  Above: operations.py, of whose handlers these are a part.
"""

from __future__ import annotations

import errno
import itertools
import stat
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FUSEError, InodeT, RequestContext, XAttrNameT

from nvmefs import acl
from nvmefs.answers import Caller, is_in_group, may_use_reserve
from nvmefs.attributes import AttributeChanges
from nvmefs.filesystem import Filesystem
from nvmefs.requests import Complaints, handler

XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")


class XattrRequests(pyfuse3.Operations):
    """Handlers for getxattr, setxattr, listxattr and removexattr."""

    fs: Filesystem
    request_numbers: itertools.count[int]
    complaints: Complaints

    @handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        _require_known_namespace(name)
        value = await self.fs.getxattr(inode, name)
        if value is None:
            # The kernel asks for security.capability before each write: the dear path through
            # FsError is spared.
            raise FUSEError(errno.ENODATA)
        return value

    @handler
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        await self.set_attribute(inode, name, value, 0, ctx)

    @handler
    async def set_attribute(
        self, number: int, name: bytes, value: bytes, flags: int, who: Caller
    ) -> None:
        """setxattr(2) with its flags. pyfuse3 looks at those itself, one of them at most."""
        _require_known_namespace(name)
        privileged = may_use_reserve(self.fs.superblock, who)
        await self.fs.setxattr(number, name, value, flags, privileged=privileged)
        if name == acl.ACCESS:
            await self._drop_setgid(number, who)

    async def _drop_setgid(self, number: int, ctx: Caller) -> None:
        """Who changes the permissions of a file of a group that is not his loses set-group-ID (chmod(2))."""
        inode = await self.fs.getattr(number)
        if inode.mode & stat.S_ISGID and not is_in_group(ctx, inode.gid):
            mode = stat.S_IMODE(inode.mode) & ~stat.S_ISGID
            await self.fs.setattr(number, AttributeChanges(mode=mode))

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = await self.fs.listxattr(inode)
        return [
            XAttrNameT(name) for name in names if not (ctx.uid and name.startswith(b"trusted."))
        ]

    @handler
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        _require_known_namespace(name)
        if name in (acl.ACCESS, acl.DEFAULT) and await self.fs.getxattr(inode, name) is None:
            return  # without a list the mode is the list: that may be removed again and again
        await self.fs.removexattr(inode, name)


def _require_known_namespace(name: bytes) -> None:
    """As Linux filesystems do: FUSEError(EOPNOTSUPP) for attributes that are not kept, EINVAL for no name."""
    if name in XATTR_PREFIXES:
        raise FUSEError(errno.EINVAL)
    if not name.startswith(XATTR_PREFIXES) and name not in (acl.ACCESS, acl.DEFAULT):
        raise FUSEError(errno.EOPNOTSUPP)
