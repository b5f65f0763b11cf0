"""What the kernel asks over /dev/fuse, answered by the filesystem; errors become an errno here.

Below: filesystem.py.  Above: pyfuse3, which calls one handler per request; mount.py starts it.

Each handler decodes, calls one method of Filesystem, encodes. None waits where the answer is in memory:
an await that suspends costs more than the whole request otherwise.

Lookup counts: each answer that gives the kernel an inode (lookup, create, mknod, mkdir, symlink, link, each
name of readdir but '.' and '..') counts one; forget gives them back. An inode without names is deleted when
its count reaches zero: only then does no open file use it. A look at the count and what follows from it have
no await between them.

The kernel's caches are used to the full, because nobody but this process writes: attributes, names and
the absence of names stay valid for years, pages over opens, and with the writeback cache the kernel keeps size,
mtime and ctime of regular files and tells them later (setattr). What it cannot know is how many blocks a file
takes: inodes whose writes allocated go to `stale`, and once a second it is told to ask anew (references.py).

Set-user-ID bits go when an ordinary user changes a file's bytes. With the C front end the kernel says so
with each write that has to (upcalls.py). pyfuse3 does not pass that on, and the kernel may leave it to us: the
bits go when an ordinary user opens the file for writing (`kills_at_open`). Not when the data arrives: written
pages may come much later, after a chmod(2) that they must not undo.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from collections.abc import Callable, Sequence

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from nvmefs.answers import (
    SETXID,
    WITHOUT_ATIME,
    WITHOUT_RESERVE,
    WRITING,
    Caller,
    attributes,
    file_info,
    forget_attributes,
    is_in_group,
    may_use_reserve,
    require_writable,
    space,
    timestamp,
    without_setxid,
)
from nvmefs.attributes import AttributeChanges
from nvmefs.device import Data
from nvmefs.directories import COOKIE_DOT, COOKIE_DOTDOT
from nvmefs.errors import Corrupted, FsError
from nvmefs.filesystem import Filesystem
from nvmefs.inodes import Inode
from nvmefs.items import INODE_APPEND, Dirent
from nvmefs.layout import MAX_INODE
from nvmefs.lookups import Lookups
from nvmefs.references import References, StaleAttributes
from nvmefs.requests import Complaints, handler
from nvmefs.xattr_requests import XattrRequests

log = logging.getLogger("nvmefs.operations")

FOR_YEARS_S = 10 * 365 * 86400.0
READDIR_BATCH = 32  # about as many entries as fit in the page that the kernel asks for


class Operations(XattrRequests):
    """The handlers of one mounted filesystem.

    `on_init` is called when the kernel has opened the conversation: from then on requests are served.
    """

    supports_dot_lookup = True
    enable_acl = True

    def __init__(
        self,
        filesystem: Filesystem,
        *,
        writeback_cache: bool = True,
        attribute_timeout_s: float = FOR_YEARS_S,
        entry_timeout_s: float = FOR_YEARS_S,
        on_init: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.fs = filesystem
        self.enable_writeback_cache = writeback_cache
        self.attribute_timeout_s = attribute_timeout_s
        self.entry_timeout_s = entry_timeout_s
        self.on_init = on_init
        self.kills_at_open = True
        self.lookups = Lookups()
        self.writers: dict[int, int] = {}
        self.request_numbers = itertools.count(1)
        self.complaints = Complaints(filesystem.note_error)
        self.references = References(filesystem, self.lookups, self.complaints)
        self.stale = StaleAttributes()
        self._absent = EntryAttributes()
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = entry_timeout_s

    def init(self) -> None:
        """The kernel has sent FUSE_INIT."""
        self.on_init()

    async def run(self) -> None:
        """Tell the kernel, for ever, what it could not know: see references.py."""
        await self.stale.run()

    # --- attributes ---------------------------------------------------------------------------------

    def attributes(self, inode: Inode) -> EntryAttributes:
        """stat(2) of an inode, with how long the kernel may believe it."""
        if inode.published and not self.fs.collect_reads(inode):
            self.stale.add(inode.number)
        return attributes(inode, self.attribute_timeout_s, self.entry_timeout_s)

    def counted(self, inode: Inode) -> EntryAttributes:
        """stat(2) of an inode that the kernel learns of: its lookup count rises by one."""
        self.count((inode.number,))
        return self.attributes(inode)

    @handler
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if name == b".":  # an NFS server asks so for an inode of which it has but the number
            inode: Inode | None = await self.fs.getattr(parent_inode)
            if inode is not None and not inode.nlink:
                inode = None  # removed, though the kernel's FORGET may still be on its way
        else:
            inode = await self.fs.lookup(parent_inode, name)
        return self._absent if inode is None else self.counted(inode)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel drops references. This has no answer, so no error may leave it."""
        for number, count in inode_list:
            await self.references.forget(number, count)

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self.attributes(await self.fs.getattr(inode))

    @handler
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
        chown = fields.update_uid or fields.update_gid or not _changes_anything(fields)
        if chown or fields.update_size:
            before = await self.fs.getattr(inode)
            in_group = not before.mode & stat.S_ISGID or is_in_group(ctx, before.gid)
            left = without_setxid(before, ctx.uid, chown=chown, in_group=in_group)
            if left is not None:  # what the kernel has taken of itself is in `mode`
                mode = left if mode is None else mode & left
        changes = AttributeChanges(
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=timestamp(attr.st_atime_ns) if fields.update_atime else None,
            mtime=timestamp(attr.st_mtime_ns) if fields.update_mtime else None,
            ctime=timestamp(attr.st_ctime_ns) if fields.update_ctime else None,
        )
        privileged = not fields.update_size or may_use_reserve(self.fs.superblock, ctx)
        return self.attributes(await self.fs.setattr(inode, changes, privileged=privileged))

    @handler
    async def require_settable_times(self, number: int) -> None:
        """Before utimensat(2) with times of the caller's own: append-only files may be touched, no more.

        mtime alone is never refused: the kernel sends it so when it writes back.
        """
        if (await self.fs.getattr(number)).flags & INODE_APPEND:
            raise FsError(errno.EPERM, f"inode {number} is append-only")

    @handler
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Never asked with default_permissions, where the kernel decides."""
        return True

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return space(self.fs.statfs())

    # --- names --------------------------------------------------------------------------------------

    @handler
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self.counted(
            await self.fs.create(
                parent_inode, name, mode, ctx.uid, ctx.gid, rdev,
                umask=ctx.umask, privileged=may_use_reserve(self.fs.superblock, ctx),
            )
        )  # fmt: skip

    @handler
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self.counted(
            await self.fs.create(
                parent_inode, name, mode, ctx.uid, ctx.gid,
                umask=ctx.umask, privileged=may_use_reserve(self.fs.superblock, ctx),
            )
        )  # fmt: skip

    @handler
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        privileged = may_use_reserve(self.fs.superblock, ctx)
        return self.counted(
            await self.fs.symlink(
                parent_inode, name, target, ctx.uid, ctx.gid, privileged=privileged
            )
        )

    @handler
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        privileged = may_use_reserve(self.fs.superblock, ctx)
        return self.counted(
            await self.fs.link(inode, new_parent_inode, new_name, privileged=privileged)
        )

    @handler
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self.references.reap_unused(await self.fs.unlink(parent_inode, name))

    @handler
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self.references.reap_unused(await self.fs.rmdir(parent_inode, name))

    @handler
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        replaced = await self.fs.rename(
            parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx.uid, ctx.gid,
            privileged=may_use_reserve(self.fs.superblock, ctx),
        )  # fmt: skip
        await self.references.reap_unused(replaced)

    @handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        target = await self.fs.readlink(inode)
        await self._accessed(inode)
        return FileNameT(target)

    # --- directories --------------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        return

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self.fs.fsync(fh, data_only=datasync)

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Names with all their attributes from `start_id` on, until the kernel's buffer is full.

        The kernel holds the directory's lock meanwhile: no name in it changes.
        """
        while names := await self.names(fh, start_id, READDIR_BATCH):
            for start_id, entry in names:
                inode = await self.readable(fh, entry.inode)
                if inode is None:
                    continue
                name = FileNameT(entry.name)
                if not pyfuse3.readdir_reply(token, name, self.attributes(inode), start_id):
                    return
                if start_id > COOKIE_DOTDOT:
                    self.count([entry.inode])

    @handler
    async def names(self, number: int, after: int, limit: int) -> list[tuple[int, Dirent]]:
        """Up to `limit` (cookie, entry) of a directory with cookies above `after`, '.' and '..' first."""
        found: list[tuple[int, Dirent]] = []
        if after < COOKIE_DOTDOT:
            await self._accessed(number)
            inode = await self.fs.getattr(number)
            parent = inode.parent if inode.nlink else number
            directory = stat.S_IFDIR >> 12
            dots = (
                (COOKIE_DOT, Dirent(number, directory, 0, b".")),
                (COOKIE_DOTDOT, Dirent(parent, directory, 0, b"..")),
            )
            found = [dot for dot in dots if dot[0] > after][:limit]
        if limit > len(found):
            after = max(after, COOKIE_DOTDOT)
            found += await self.fs.readdir(number, after, limit - len(found))
        return found

    async def readable(self, directory: int, number: int) -> Inode | None:
        """An inode for readdir; None where it is damaged: the other names are listed all the same."""
        try:
            return await self.fs.getattr(number)
        except Corrupted as error:
            self.complaints.about("operations.readdir", error)
        except FsError as error:
            if error.errno != errno.ESTALE:
                raise
            missing = Corrupted(
                -1, f"directory {directory} names inode {number}, which does not exist"
            )
            self.complaints.about("operations.readdir", missing)
        return None

    def count(self, numbers: Sequence[int]) -> None:
        """The kernel has learnt of these inodes by names in a listing."""
        for number in numbers:
            self.lookups.add(number)

    # --- files --------------------------------------------------------------------------------------

    @handler
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        mode = ModeT(stat.S_IFREG | stat.S_IMODE(mode))
        privileged = may_use_reserve(self.fs.superblock, ctx)
        inode = await self.fs.create(
            parent_inode, name, mode, ctx.uid, ctx.gid, umask=ctx.umask, privileged=privileged
        )
        entry = self.counted(inode)
        self.note_writer(inode.number, flags)
        return file_info(inode.number, flags, may_use_reserve=privileged), entry

    def note_writer(self, number: int, flags: int) -> None:
        """Count who has the inode open for writing."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.writers[number] = self.writers.get(number, 0) + 1

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            if not self.fs.journal.writable:
                raise FsError(errno.EROFS, "the filesystem is read-only")
            require_writable(await self.fs.getattr(inode), flags)
            if ctx.uid and (self.kills_at_open or flags & os.O_TRUNC):
                await self.kill_setxid(inode, ctx)
        if flags & os.O_TRUNC:
            await self.fs.setattr(inode, AttributeChanges(size=0))
        self.note_writer(inode, flags)
        return file_info(inode, flags, may_use_reserve=may_use_reserve(self.fs.superblock, ctx))

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        number = fh & MAX_INODE
        data = await self.fs.read(number, off, size)
        if not fh & WITHOUT_ATIME:
            await self._accessed(number)
        return data

    @handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self.write_data(fh, off, buf)

    async def write_data(self, fh: int, off: int, buf: Data) -> int:
        """Write all of `buf`. Raises FsError."""
        number = fh & MAX_INODE
        inode = await self.fs.getattr(number)
        before = inode.blocks, inode.flags
        done = await self.fs.write(
            number, off, buf,
            update_times=not self.enable_writeback_cache, privileged=not fh & WITHOUT_RESERVE,
        )  # fmt: skip
        if (inode.blocks, inode.flags) != before:
            self.stale.add(number)
        return done

    @handler
    async def flush(self, fh: FileHandleT) -> None:
        """close(2) has nothing to do here; ENOSYS spares the kernel asking ever again."""
        raise FUSEError(errno.ENOSYS)

    @handler
    async def release(self, fh: FileHandleT) -> None:
        if fh & WRITING:
            number = fh & MAX_INODE
            left = self.writers.get(number, 0) - 1
            if left > 0:
                self.writers[number] = left
            else:
                self.writers.pop(number, None)

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self.fs.fsync(fh & MAX_INODE, data_only=datasync)

    async def _accessed(self, number: int) -> None:
        """atime, by the mount's policy. That it cannot be written is no fault of the reader's."""
        if self.fs.options.atime == "noatime":
            return
        try:
            await self.fs.access_time(number)
        except FsError as error:
            self.complaints.about("operations.read", error)

    async def kill_setxid(self, number: int, who: Caller) -> None:
        """Clear set-user-ID and set-group-ID of a file that an ordinary user writes."""
        inode = await self.fs.getattr(number)
        if not inode.mode & SETXID:
            return
        mode = without_setxid(inode, uid=-1, in_group=is_in_group(who, inode.gid))
        if mode is not None:
            await self.fs.setattr(number, AttributeChanges(mode=mode))
            forget_attributes(number)


def _changes_anything(fields: SetattrFields) -> bool:
    """False for a chown(2) to nobody new: of it the kernel passes on that there was one, and ctime."""
    return bool(
        fields.update_mode or fields.update_uid or fields.update_gid or fields.update_size
        or fields.update_atime or fields.update_mtime
    )  # fmt: skip
