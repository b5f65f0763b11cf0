"""Operations on attributes: mode, owner, times, extended attributes, access control lists.

Below: inodes.py, xattrs.py, acl.py.  Above: filesystem.py, which runs them. Each public function that takes an
inode's number is one atomic operation.

Who may change what is the kernel's part (default_permissions), but for immutable and append-only files, whose
flags the kernel does not see.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from nvmefs import acl
from nvmefs.clock import Timestamp, now
from nvmefs.errors import FsError
from nvmefs.inodes import Inode, Inodes
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE, INODE_INLINE
from nvmefs.layout import MAX_NAME_BYTES, MAX_XATTR_BYTES
from nvmefs.transaction import Transaction
from nvmefs.xattrs import Xattrs


@dataclass(frozen=True)
class AttributeChanges:
    """What setattr changes; None leaves a field as it is. Times are (seconds, nanoseconds)."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: Timestamp | None = None
    mtime: Timestamp | None = None
    ctime: Timestamp | None = None

    @property
    def permissions(self) -> bool:
        return self.mode is not None or self.uid is not None or self.gid is not None

    @property
    def by_user(self) -> bool:
        """False for the times that the kernel has kept for us and tells later, without an atime."""
        return self.permissions or self.size is not None or not self.mtime or bool(self.atime)


class Attributes:
    """What inodes say of themselves."""

    def __init__(self, inodes: Inodes, xattrs: Xattrs) -> None:
        self.inodes = inodes
        self.xattrs = xattrs

    def change(self, tx: Transaction, number: int, changes: AttributeChanges) -> Inode:
        """chmod, chown and utimensat; the size is file.py's."""
        inode = self.inodes.get(tx, number)
        if changes.by_user and inode.flags & INODE_IMMUTABLE:
            raise FsError(errno.EPERM, f"inode {number} is immutable")
        if changes.permissions and inode.flags & INODE_APPEND:
            raise FsError(errno.EPERM, f"inode {number} is append-only")
        tx.touch(inode)
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | changes.mode & 0o7777
            self._keep_acl_in_step(tx, inode)
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        inode.changed(changes.ctime or now())
        if changes.atime is not None:
            inode.atime_s, inode.atime_ns = changes.atime
        if changes.mtime is not None:
            inode.mtime_s, inode.mtime_ns = changes.mtime
        return inode

    def require_flags_settable(self, inode: Inode, flags: int, *, privileged: bool) -> None:
        """Immutable and append-only are for files and directories, and for root to change.

        Raises FsError(EPERM, EOPNOTSUPP, ENOTTY).
        """
        if not (inode.is_dir or stat.S_ISREG(inode.mode)):
            raise FsError(errno.ENOTTY, f"inode {inode.number} is neither file nor directory")
        if flags & ~(INODE_IMMUTABLE | INODE_APPEND):
            raise FsError(errno.EOPNOTSUPP, f"inode flags {flags:#x}")
        if not privileged and inode.user_flags != flags:
            raise FsError(errno.EPERM, f"inode {inode.number}: only root changes these flags")

    def set_flags(self, tx: Transaction, number: int, flags: int) -> None:
        """Set what chattr(1) sets, and nothing else."""
        inode = self.inodes.get(tx, number)
        tx.touch(inode)
        inode.flags = inode.flags & INODE_INLINE | flags
        inode.changed(now())

    def set_xattr(
        self, tx: Transaction, number: int, name: bytes, value: bytes, flags: int = 0
    ) -> None:
        """Set an attribute. An access control list changes the mode with it.

        `flags` (setxattr(2)): with XATTR_CREATE it must be new, with XATTR_REPLACE it must not; with both,
        which Linux allows, it is never right.
        """
        if len(name) > MAX_NAME_BYTES:
            raise FsError(errno.ERANGE, f"an attribute name of {len(name)} bytes")
        if len(value) > MAX_XATTR_BYTES:
            raise FsError(errno.E2BIG, f"an attribute value of {len(value)} bytes")
        inode = self._changeable(tx, number)
        if flags:
            self._require_presence(tx, number, name, flags)
        keep = True
        if name in (acl.ACCESS, acl.DEFAULT):
            keep = self._set_acl(inode, name, value)
        if keep:
            self.xattrs.set(tx, number, name, value)
        else:
            self.xattrs.remove(tx, number, name)
        inode.changed(now())

    def _require_presence(self, tx: Transaction, number: int, name: bytes, flags: int) -> None:
        if self.xattrs.get(tx, number, name) is None:
            if flags & os.XATTR_REPLACE:
                raise FsError(errno.ENODATA, f"inode {number} has no attribute {name!r}")
        elif flags & os.XATTR_CREATE:
            raise FsError(errno.EEXIST, f"inode {number} has an attribute {name!r}")

    def remove_xattr(self, tx: Transaction, number: int, name: bytes) -> None:
        """Remove an attribute. Raises FsError(ENODATA)."""
        inode = self._changeable(tx, number)
        if not self.xattrs.remove(tx, number, name):
            raise FsError(errno.ENODATA, f"inode {number} has no attribute {name!r}")
        inode.changed(now())

    def _changeable(self, tx: Transaction, number: int) -> Inode:
        inode = self.inodes.get(tx, number)
        if inode.flags & (INODE_IMMUTABLE | INODE_APPEND):
            raise FsError(errno.EPERM, f"inode {number} is immutable or append-only")
        tx.touch(inode)
        return inode

    # --- access control lists -------------------------------------------------------------------------

    def _set_acl(self, inode: Inode, name: bytes, value: bytes) -> bool:
        """Check a list, and let an access list set the mode. False if there is nothing to keep."""
        entries = acl.decode(value)
        if name == acl.DEFAULT:
            if not inode.is_dir:
                raise FsError(errno.EACCES, f"inode {inode.number} is not a directory")
            return bool(entries)
        if not entries:
            return False
        inode.mode = acl.merge_mode(inode.mode, entries)
        return not acl.is_minimal(entries)

    def _keep_acl_in_step(self, tx: Transaction, inode: Inode) -> None:
        """After chmod: the access list, if there is one, says what the mode says."""
        value = self.xattrs.get(tx, inode.number, acl.ACCESS)
        if value is not None:
            entries = acl.with_mode(acl.decode(value), inode.mode)
            self.xattrs.set(tx, inode.number, acl.ACCESS, acl.encode(entries))

    def inherit_acl(self, tx: Transaction, parent: int, inode: Inode, umask: int) -> None:
        """What is created in a directory with a default list gets its access list from it."""
        value = self.xattrs.get(tx, parent, acl.DEFAULT)
        if value is None:
            inode.mode &= ~(umask & 0o777)
            return
        entries = acl.inherited(acl.decode(value), inode.mode)
        inode.mode = acl.merge_mode(inode.mode, entries)
        if not acl.is_minimal(entries):
            self.xattrs.set(tx, inode.number, acl.ACCESS, acl.encode(entries))
        if inode.is_dir:
            self.xattrs.set(tx, inode.number, acl.DEFAULT, value)
