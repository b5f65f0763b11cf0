"""Operations on names: create, link, unlink, rename. Each function here is one atomic operation.

Below: directories.py, inodes.py, of allocator.py the choice of a group.  Above: filesystem.py, which runs them.

Permission to search and write directories, sticky bits and read-only mounts are the kernel's part
(default_permissions). What is checked here is what the kernel cannot know or what would break the tree.
"""

from __future__ import annotations

import errno
import stat
from functools import partial

from driver import trace
from nvmefs.allocator import Allocator
from nvmefs.clock import Timestamp, now
from nvmefs.directories import Directories
from nvmefs.errors import Corrupted, FsError
from nvmefs.inline import write_inline
from nvmefs.inodes import Inode, Inodes
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE, INODE_INLINE, Dirent
from nvmefs.layout import (
    MAX_LINKS,
    MAX_NAME_BYTES,
    MAX_SYMLINK_BYTES,
    ROOT_INODE,
    Kind,
    key,
)
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
RENAME_MODES = (
    0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE,
)  # fmt: skip
MAX_DEPTH = 1 << 20  # of directories; a chain of parents longer than that is a cycle
HINT_DEPTH = 64  # up to which a directory is looked for that says where data goes


class Namei:
    """The names of the filesystem and the inodes they stand for."""

    def __init__(
        self, tree: Tree, inodes: Inodes, directories: Directories, allocator: Allocator
    ) -> None:
        self.tree = tree
        self.inodes = inodes
        self.directories = directories
        self.allocator = allocator

    # --- looking ------------------------------------------------------------------------------------

    def lookup(self, tx: Transaction, parent: int, name: bytes) -> Inode | None:
        """The inode that `name` in directory `parent` stands for; None if there is no such name."""
        directory = self.inodes.directory(tx, parent)
        if name == b".":
            return directory
        if name == b"..":
            return self.inodes.get(tx, directory.parent)
        if len(name) > MAX_NAME_BYTES:
            raise FsError(errno.ENAMETOOLONG, f"a name of {len(name)} bytes")
        entry = self.directories.find(tx, parent, name)
        return None if entry is None else self._target(tx, parent, entry)

    def _target(self, tx: Transaction, parent: int, entry: Dirent) -> Inode:
        """The inode of an entry. That it is missing, or of another type, is corruption."""
        try:
            inode = self.inodes.get(tx, entry.inode)
        except FsError as error:
            if error.errno == errno.ESTALE:
                raise Corrupted(
                    -1, f"directory {parent}: {entry.name!r} names inode {entry.inode}, "
                    "which does not exist"
                ) from error  # fmt: skip
            raise
        if inode.type != entry.type:
            raise Corrupted(
                -1,
                f"directory {parent}: {entry.name!r} has type {entry.type}, its inode {inode.type}",
            )
        return inode

    def _present(self, tx: Transaction, parent: int, name: bytes) -> tuple[Inode, Inode]:
        """(directory, inode) of a name that must exist and may be removed."""
        directory = self.inodes.directory(tx, parent)
        inode = self.lookup(tx, parent, name)
        if inode is None:
            raise FsError(errno.ENOENT, f"no {name!r} in directory {parent}")
        if name in (b".", b".."):
            raise FsError(errno.EINVAL, f"{name!r} cannot be removed or renamed")
        if (directory.flags | inode.flags) & (INODE_APPEND | INODE_IMMUTABLE):
            raise FsError(errno.EPERM, f"{name!r} or its directory is immutable or append-only")
        return directory, inode

    def _vacant(self, tx: Transaction, parent: int, name: bytes) -> Inode:
        """The directory, after checks that `name` may be added to it."""
        directory = self.inodes.directory(tx, parent)
        if len(name) > MAX_NAME_BYTES:
            raise FsError(errno.ENAMETOOLONG, f"a name of {len(name)} bytes")
        if name in (b".", b"..") or self.directories.find(tx, parent, name) is not None:
            raise FsError(errno.EEXIST, f"{name!r} exists in directory {parent}")
        if not directory.nlink:
            raise FsError(errno.ENOENT, f"directory {parent} has been removed")
        if directory.flags & INODE_IMMUTABLE:
            raise FsError(errno.EPERM, f"directory {parent} is immutable")
        return directory

    # --- adding -------------------------------------------------------------------------------------

    def create(
        self,
        tx: Transaction,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
    ) -> Inode:
        """A new inode of any type but symlink, with one name. A set-group-ID directory passes its group on."""
        if trace.enabled:
            trace.hop("namei.create", parent=parent, name=name, mode=mode)
        directory = self._vacant(tx, parent, name)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        when = now()
        inode = self.inodes.create(tx, mode, uid, gid, when)
        inode.rdev = rdev
        inode.group = self._group_below(directory)
        if stat.S_ISDIR(mode):
            inode.nlink = 1  # its own '.'; the name makes two
            inode.parent = parent
        self._add_name(tx, directory, name, inode, when)
        return inode

    def _group_below(self, directory: Inode) -> int:
        """Where the data of what is in a directory best goes: with all below the same directory of the root.

        A hint: it looks at what is in memory alone. -1: anywhere.
        """
        at: Inode | None = directory
        for _ in range(HINT_DEPTH):
            if at is None or at.number == ROOT_INODE:
                return -1
            if at.group < 0 and at.parent == ROOT_INODE:
                at.group = self.allocator.group_for(at.number)
            if at.group >= 0:
                directory.group = at.group
                return at.group
            at = self.inodes.known.get(at.parent)
        return -1

    def symlink(
        self, tx: Transaction, parent: int, name: bytes, target: bytes, uid: int, gid: int
    ) -> Inode:
        """A new symbolic link."""
        if len(target) > MAX_SYMLINK_BYTES:
            raise FsError(errno.ENAMETOOLONG, f"a link target of {len(target)} bytes")
        if not target:
            raise FsError(errno.ENOENT, "an empty link target")
        inode = self.create(tx, parent, name, stat.S_IFLNK | 0o777, uid, gid)
        inode.size_bytes = len(target)
        inode.flags |= INODE_INLINE
        write_inline(self.tree, tx, inode.number, target)
        return inode

    def link(self, tx: Transaction, number: int, parent: int, name: bytes) -> Inode:
        """One more name for an inode that is no directory and still has a name, or never had one."""
        inode = self.inodes.get(tx, number)
        directory = self._vacant(tx, parent, name)
        if inode.is_dir:
            raise FsError(errno.EPERM, "a directory has one name only")
        if inode.flags & (INODE_APPEND | INODE_IMMUTABLE):
            raise FsError(errno.EPERM, f"inode {number} is immutable or append-only")
        if not inode.nlink:
            self._adopt(tx, inode)
        if inode.nlink >= MAX_LINKS:
            raise FsError(errno.EMLINK, f"inode {number} has {inode.nlink} links")
        when = now()
        tx.touch(inode)
        inode.changed(when)
        self._add_name(tx, directory, name, inode, when)
        return inode

    def tmpfile(self, tx: Transaction, parent: int, mode: int, uid: int, gid: int) -> Inode:
        """A new file without a name, an orphan from the start. `parent` passes its group on."""
        directory = self.inodes.directory(tx, parent)
        if not directory.nlink:
            raise FsError(errno.ENOENT, f"directory {parent} has been removed")
        if directory.flags & INODE_IMMUTABLE:
            raise FsError(errno.EPERM, f"directory {parent} is immutable")
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
        inode = self.inodes.create(tx, mode, uid, gid, now())
        inode.group = self._group_below(directory)
        self.tree.put(tx, key(0, Kind.ORPHAN, inode.number), b"")
        return inode

    def _adopt(self, tx: Transaction, inode: Inode) -> None:
        """A file made by O_TMPFILE gets its first name: an orphan no longer, unless it is being truncated."""
        if not inode.linkable:
            raise FsError(errno.ENOENT, f"inode {inode.number} has been removed")
        if not inode.truncating:
            self.tree.delete(tx, key(0, Kind.ORPHAN, inode.number))
        inode.linkable = False
        tx.on_undo(partial(setattr, inode, "linkable", True))

    def _add_name(
        self, tx: Transaction, directory: Inode, name: bytes, inode: Inode, when: Timestamp
    ) -> None:
        """The name, and all that follows from it in the directory and the inode's link count."""
        self.directories.add(tx, directory.number, name, inode.number, inode.type)
        inode.nlink += 1
        tx.touch(directory)
        self._count_name(directory, 1)
        if inode.is_dir:
            self._count_subdirectory(directory, 1)
        directory.changed(when, content=True)

    def _count_subdirectory(self, directory: Inode, delta: int) -> None:
        """A subdirectory's '..' is a link to its parent."""
        links = directory.nlink + delta
        if links > MAX_LINKS:
            raise FsError(errno.EMLINK, f"directory {directory.number} has too many subdirectories")
        if links < 2:
            raise Corrupted(
                -1, f"directory {directory.number} has a subdirectory that no link counts"
            )
        directory.nlink = links

    def _count_name(self, directory: Inode, delta: int) -> None:
        if directory.entries + delta < 0:
            raise Corrupted(-1, f"directory {directory.number} has a name, and counts none")
        directory.entries += delta

    # --- removing -----------------------------------------------------------------------------------

    def unlink(self, tx: Transaction, parent: int, name: bytes) -> Inode:
        """Remove a name of an inode that is no directory. Without names the inode becomes an orphan."""
        tx.may_use_reserve = True
        directory, inode = self._present(tx, parent, name)
        if inode.is_dir:
            raise FsError(errno.EISDIR, f"{name!r} is a directory")
        self._remove_name(tx, directory, name, inode, now())
        return inode

    def rmdir(self, tx: Transaction, parent: int, name: bytes) -> Inode:
        """Remove an empty directory."""
        tx.may_use_reserve = True
        if name == b".":
            raise FsError(errno.EINVAL, "'.' cannot be removed")
        if name == b"..":
            raise FsError(errno.ENOTEMPTY, "'..' cannot be removed")
        directory, inode = self._present(tx, parent, name)
        self._require_empty(inode)
        self._remove_name(tx, directory, name, inode, now())
        return inode

    def _require_empty(self, inode: Inode) -> None:
        if not inode.is_dir:
            raise FsError(errno.ENOTDIR, f"inode {inode.number} is not a directory")
        if inode.entries:
            raise FsError(errno.ENOTEMPTY, f"directory {inode.number} holds {inode.entries} names")

    def _remove_name(
        self, tx: Transaction, directory: Inode, name: bytes, inode: Inode, when: Timestamp
    ) -> None:
        self.directories.remove(tx, directory.number, name)
        tx.touch(directory)
        self._count_name(directory, -1)
        directory.changed(when, content=True)
        self._drop_link(tx, directory, inode, when)

    def _drop_link(self, tx: Transaction, directory: Inode, inode: Inode, when: Timestamp) -> None:
        """One name less for `inode`, which stood in `directory`; with the last it becomes an orphan."""
        tx.touch(inode)
        inode.changed(when)
        if inode.is_dir:
            self._count_subdirectory(directory, -1)
            inode.nlink = 0
        elif not inode.nlink:
            raise Corrupted(-1, f"inode {inode.number} has a name, and a link count of 0")
        else:
            inode.nlink -= 1
        if not inode.nlink:
            self.tree.put(tx, key(0, Kind.ORPHAN, inode.number), b"")

    # --- renaming -----------------------------------------------------------------------------------

    def rename(
        self,
        tx: Transaction,
        old_parent: int,
        old_name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        uid: int = 0,
        gid: int = 0,
    ) -> Inode | None:
        """rename(2) and renameat2(2). The inode that lost the name `new_name`, if one did.

        With RENAME_WHITEOUT a character device 0:0 of `uid` and `gid` takes the old name, for overlayfs.
        """
        if flags not in RENAME_MODES:
            raise FsError(errno.EINVAL, f"rename flags {flags:#x}")
        old_directory, inode = self._present(tx, old_parent, old_name)
        new_directory = self.inodes.directory(tx, new_parent)
        replaced = self.lookup(tx, new_parent, new_name)
        if inode.is_dir:
            self._refuse_cycle(tx, inode, new_directory)
        if flags & RENAME_EXCHANGE:
            self._exchange(tx, old_directory, old_name, new_directory, new_name)
            return None
        if replaced is None:
            self._vacant(tx, new_parent, new_name)
        elif flags & RENAME_NOREPLACE:
            raise FsError(errno.EEXIST, f"{new_name!r} exists in directory {new_parent}")
        elif replaced is inode:
            return None
        else:
            self._present(tx, new_parent, new_name)
            self._require_replaceable(inode, replaced)
        self._move(tx, old_directory, old_name, new_directory, new_name, inode, replaced)
        if flags & RENAME_WHITEOUT:
            self.create(tx, old_parent, old_name, stat.S_IFCHR, uid, gid)
        return replaced

    def _require_replaceable(self, inode: Inode, replaced: Inode) -> None:
        if inode.is_dir:
            self._require_empty(replaced)
        elif replaced.is_dir:
            raise FsError(errno.EISDIR, "a directory cannot be replaced by another kind of file")

    def _move(
        self,
        tx: Transaction,
        old_directory: Inode,
        old_name: bytes,
        new_directory: Inode,
        new_name: bytes,
        inode: Inode,
        replaced: Inode | None,
    ) -> None:
        when = now()
        tx.touch(old_directory)
        tx.touch(new_directory)
        tx.touch(inode)
        self.directories.remove(tx, old_directory.number, old_name)
        self._count_name(old_directory, -1)
        if inode.is_dir:
            self._count_subdirectory(old_directory, -1)
            self._count_subdirectory(new_directory, 1)
            inode.parent = new_directory.number
        if replaced is None:
            self.directories.add(tx, new_directory.number, new_name, inode.number, inode.type)
            self._count_name(new_directory, 1)
        else:
            self.directories.redirect(tx, new_directory.number, new_name, inode.number, inode.type)
            self._drop_link(tx, new_directory, replaced, when)
        inode.changed(when)
        old_directory.changed(when, content=True)
        new_directory.changed(when, content=True)

    def _exchange(
        self,
        tx: Transaction,
        old_directory: Inode,
        old_name: bytes,
        new_directory: Inode,
        new_name: bytes,
    ) -> None:
        """The two names, of any types, change their inodes."""
        _, first = self._present(tx, old_directory.number, old_name)
        _, second = self._present(tx, new_directory.number, new_name)
        if second.is_dir:
            self._refuse_cycle(tx, second, old_directory)
        if first is second:
            return
        when = now()
        for inode in (first, second, old_directory, new_directory):
            tx.touch(inode)
        self.directories.redirect(tx, old_directory.number, old_name, second.number, second.type)
        self.directories.redirect(tx, new_directory.number, new_name, first.number, first.type)
        for inode, source, target in (
            (first, old_directory, new_directory),
            (second, new_directory, old_directory),
        ):
            inode.changed(when)
            if inode.is_dir and source is not target:
                self._count_subdirectory(source, -1)
                self._count_subdirectory(target, 1)
                inode.parent = target.number
        old_directory.changed(when, content=True)
        new_directory.changed(when, content=True)

    def _refuse_cycle(self, tx: Transaction, moved: Inode, target: Inode) -> None:
        """A directory must not move into itself or below. Raises FsError(EINVAL)."""
        at = target
        for _ in range(MAX_DEPTH):
            if at is moved:
                raise FsError(errno.EINVAL, f"directory {moved.number} cannot move into itself")
            if at.number == ROOT_INODE:
                return
            at = self.inodes.directory(tx, at.parent)
        raise Corrupted(-1, f"directory {target.number}: its parents form a cycle")
