"""A mounted filesystem: opening and closing it, and every operation on it by inode number.

Below: namei.py (names), file.py (bytes), attributes.py (the rest); transaction.py runs their operations and
journal.py makes them durable.  Above: operations.py, which speaks FUSE.

    async with trio.open_nursery() as nursery:
        filesystem = await Filesystem.open(device, Options())
        nursery.start_soon(filesystem.run)                 commits in the background
        inode = await filesystem.create(ROOT_INODE, b"name", 0o100644, uid, gid)
        await filesystem.write(inode.number, 0, b"hello")
        await filesystem.fsync(inode.number)
        ...
        await filesystem.close()

Prefix consistency: after a crash the filesystem is as it was after some number of whole operations, and
not fewer than the last fsync covered.
"""

from __future__ import annotations

import errno
import logging
import stat
import time
from dataclasses import dataclass
from typing import TypeVar

import trio

from nvmefs import opening
from nvmefs.allocator import Usage
from nvmefs.atime import AccessTimes
from nvmefs.attributes import AttributeChanges, Attributes
from nvmefs.cache import Cache
from nvmefs.device import Data, Device
from nvmefs.directories import Directories
from nvmefs.errors import Corrupted, DeviceFailed, FsError, MountRefused, ReadOnly
from nvmefs.extents import Extents
from nvmefs.file import Files
from nvmefs.inline import read_inline
from nvmefs.inodes import Inode, Inodes
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE, Dirent
from nvmefs.journal import Journal
from nvmefs.layout import (
    BLOCK_BYTES,
    ROOT_INODE,
    ErrorPolicy,
    State,
    StateFlag,
    Superblock,
)
from nvmefs.namei import Namei
from nvmefs.orphans import Orphans
from nvmefs.regions import Regions
from nvmefs.transaction import Transaction, Transactions
from nvmefs.tree import Tree
from nvmefs.trim import trim
from nvmefs.xattrs import Xattrs

log = logging.getLogger("nvmefs")

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How a filesystem is mounted. `atime` is relatime, noatime or strictatime (mount(8)); `on_error` None:
    as its superblock says.
    """

    read_only: bool = False
    commit_s: float = 5.0
    cache_mb: int = 64
    discard: bool = False
    atime: str = "relatime"
    on_error: ErrorPolicy | None = None


class Filesystem:
    """A filesystem that is open on a device. Every method may raise FsError; see errors.py."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        state: State,
        journal: Journal,
        options: Options,
    ) -> None:
        self.device = device
        self.superblock = superblock
        self.state = state
        self.journal = journal
        self.options = options
        self.allocator = journal.allocator
        cache_blocks = options.cache_mb * 1024 * 1024 // BLOCK_BYTES
        self.cache = Cache(device, superblock, journal.images, cache_blocks, journal.replayed)
        self.tree = Tree(state.roots[0])
        self.transactions = Transactions(self.cache, self.allocator, state, journal)
        journal.cache = self.cache
        journal.bound_memory(self.cache.capacity_blocks)
        journal.write_inodes = self.transactions.write_inodes
        self.inodes = Inodes(self.tree, state)
        self.transactions.between = self.inodes.trim
        self.directories = Directories(self.tree, superblock.hash_seed)
        self.xattrs = Xattrs(self.tree, superblock.hash_seed, self.inodes.take_number)
        self.attributes = Attributes(self.inodes, self.xattrs)
        self.extents = Extents(self.tree, superblock, self.allocator)
        self.namei = Namei(self.tree, self.inodes, self.directories, self.allocator)
        self.files = Files(
            device, self.tree, self.inodes, self.extents, self.allocator, self.transactions, journal
        )
        self.orphans = Orphans(
            self.tree, self.inodes, self.xattrs, self.extents, self.files, self.transactions
        )
        self.access_times = AccessTimes(self.inodes, self.transactions, options.atime)
        self.regions = Regions(self.files, self.extents, self.allocator, self.transactions)

    # --- opening and closing ------------------------------------------------------------------------

    @classmethod
    async def open(cls, device: Device, options: Options, *, mounting: bool = True) -> Filesystem:
        """Read and verify the superblock, replay the journal, finish what a crash has left half done.

        `mounting`: the state block counts it as a mount.
        Raises MountRefused with the reason, Corrupted, DeviceFailed.
        """
        journal = await opening.load(device, read_only=options.read_only, discard=options.discard)
        filesystem = cls(device, journal.superblock, journal.state, journal, options)
        root = await filesystem.transactions.read(lambda tx: filesystem.inodes.get(tx, ROOT_INODE))
        if not root.is_dir:
            raise MountRefused("the root inode is not a directory: run fsck.nvmefs")
        if not options.read_only:
            await filesystem._start_writing(mounting)
        return filesystem

    async def _start_writing(self, mounting: bool) -> None:
        """Bring home what was replayed, say on the disk that it is in use, finish orphans."""
        await self.journal.recover()
        self.state.flags &= ~StateFlag.CLEAN
        if mounting:
            self.state.mount_time_s = int(time.time())
            self.state.mount_count = min(self.state.mount_count + 1, 2**32 - 1)
        await self.journal.commit_state()
        await self.orphans.finish()

    async def run(self) -> None:
        """Commit and discard in the background, for ever; the caller cancels it before close()."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.journal.commit_every, self.options.commit_s)
            if self.journal.discards is not None:
                nursery.start_soon(self.journal.discards.run)

    async def close(self) -> None:
        """Make everything durable and mark the filesystem clean. Raises ReadOnly after a failure."""
        if self.journal.read_only:
            return
        if self.journal.halted is None:
            await self.orphans.finish()
            await self.access_times.save()
            await self.transactions.commit()
            self.state.flags |= StateFlag.CLEAN
        await self.journal.commit_state()
        await self.journal.checkpoint()
        if self.journal.discards is not None:
            await self.journal.discards.drain()

    def note_error(self, error: Corrupted) -> None:
        """Keep on the disk that something is wrong, so that the next mount and fsck know; then do as the
        policy says: this mount's, or the filesystem's own.
        """
        chosen = self.options.on_error
        policy = self.superblock.on_error if chosen is None else chosen
        self.journal.note_error(error, halt=policy == ErrorPolicy.REMOUNT_RO)

    # --- names --------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode that `name` stands for, or None."""
        return await self.transactions.read(lambda tx: self.namei.lookup(tx, parent, name))

    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        *,
        umask: int = 0,
        privileged: bool = True,
    ) -> Inode:
        """A new file, directory, device, fifo or socket; `mode` with its type bits.

        `umask` takes bits from it, unless the directory has a default access list (acl(5)).
        `privileged`: may use the space that is reserved for root.
        """

        def apply(tx: Transaction) -> Inode:
            inode = self.namei.create(tx, parent, name, mode, uid, gid, rdev)
            inode.data_seq = self.journal.open.seq  # without its inode a file has no data
            self.attributes.inherit_acl(tx, parent, inode, umask)
            return inode

        return await self.transactions.run(apply, privileged=privileged)

    async def tmpfile(
        self,
        parent: int,
        mode: int,
        uid: int,
        gid: int,
        *,
        umask: int = 0,
        linkable: bool = True,
        privileged: bool = True,
    ) -> Inode:
        """A new file without a name (O_TMPFILE); reap() as for unlink. `linkable`: link() may name it."""

        def apply(tx: Transaction) -> Inode:
            inode = self.namei.tmpfile(tx, parent, mode, uid, gid)
            inode.data_seq = self.journal.open.seq
            inode.linkable = linkable
            self.attributes.inherit_acl(tx, parent, inode, umask)
            return inode

        return await self.transactions.run(apply, privileged=privileged)

    async def symlink(
        self,
        parent: int,
        name: bytes,
        target: bytes,
        uid: int,
        gid: int,
        *,
        privileged: bool = True,
    ) -> Inode:
        """A new symbolic link."""
        return await self.transactions.run(
            lambda tx: self.namei.symlink(tx, parent, name, target, uid, gid), privileged=privileged
        )

    async def link(
        self, number: int, parent: int, name: bytes, *, privileged: bool = True
    ) -> Inode:
        """One more name for an inode, or the first one of a tmpfile()."""
        return await self.transactions.run(
            lambda tx: self.namei.link(tx, number, parent, name), privileged=privileged
        )

    async def unlink(self, parent: int, name: bytes) -> Inode:
        """Remove a name. If the inode returned has nlink 0, the caller calls reap() when nobody uses it."""
        return await self.transactions.run(lambda tx: self.namei.unlink(tx, parent, name))

    async def rmdir(self, parent: int, name: bytes) -> Inode:
        """Remove an empty directory; reap() as for unlink."""
        return await self.transactions.run(lambda tx: self.namei.rmdir(tx, parent, name))

    async def rename(
        self,
        old_parent: int,
        old_name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        uid: int = 0,
        gid: int = 0,
        *,
        privileged: bool = True,
    ) -> Inode | None:
        """renameat2(2) with all its flags. The inode replaced; reap() as for unlink."""
        return await self.transactions.run(
            lambda tx: self.namei.rename(
                tx, old_parent, old_name, new_parent, new_name, flags, uid, gid
            ),
            privileged=privileged,
        )

    async def reap(self, number: int) -> None:
        """Delete an inode that has no name left and that nobody uses any more; in bounded steps."""
        await self.forgotten(number)
        await self.orphans.reap(number)

    async def forgotten(self, number: int) -> None:
        """The kernel has no use for the inode any more: what was set up for many requests can go."""
        inode = self.inodes.known.get(number)
        if inode is not None:
            await self.files.withdraw(inode)

    async def readlink(self, number: int) -> bytes:
        """The target of a symbolic link."""

        def look(tx: Transaction) -> bytes:
            inode = self.inodes.get(tx, number)
            if not stat.S_ISLNK(inode.mode):
                raise FsError(errno.EINVAL, f"inode {number} is not a symbolic link")
            return read_inline(self.tree, tx, number, inode.size_bytes)

        return await self.transactions.read(look)

    async def readdir(self, number: int, after: int, limit: int) -> list[tuple[int, Dirent]]:
        """Up to `limit` (cookie, entry) of a directory with cookies above `after`; without '.' and '..'."""

        def look(tx: Transaction) -> list[tuple[int, Dirent]]:
            self.inodes.directory(tx, number)
            found = []
            for item in self.directories.entries(tx, number, after):
                found.append(item)
                if len(found) >= limit:
                    break
            return found

        return await self.transactions.read(look)

    # --- attributes ---------------------------------------------------------------------------------

    async def getattr(self, number: int) -> Inode:
        """The inode; its fields are what stat(2) needs."""
        return await self.transactions.read(lambda tx: self.inodes.get(tx, number))

    async def setattr(
        self, number: int, changes: AttributeChanges, *, privileged: bool = True
    ) -> Inode:
        """chmod, chown, utimensat and truncate, in one call as the kernel sends them."""
        self.collect_reads(await self.getattr(number))
        if changes.size is not None:
            await self._resize(number, changes.size, privileged)
        return await self.transactions.run(lambda tx: self.attributes.change(tx, number, changes))

    async def _resize(self, number: int, size: int, privileged: bool) -> None:
        inode = await self.getattr(number)
        if inode.is_dir:
            raise FsError(errno.EISDIR, f"inode {number} is a directory")
        if not stat.S_ISREG(inode.mode) or size < 0:
            raise FsError(errno.EINVAL, f"inode {number} cannot have size {size}")
        if inode.flags & (INODE_IMMUTABLE | INODE_APPEND):
            raise FsError(errno.EPERM, f"inode {number} is immutable or append-only")
        await self.files.truncate(number, size, privileged=privileged)

    async def set_flags(self, number: int, flags: int, *, privileged: bool) -> None:
        """Immutable and append-only, of a file or directory. Raises FsError(EPERM, EOPNOTSUPP, ENOTTY)."""
        inode = await self.getattr(number)
        self.attributes.require_flags_settable(inode, flags, privileged=privileged)
        await self.files.withdraw(inode)
        await self.transactions.run(lambda tx: self.attributes.set_flags(tx, number, flags))

    async def access_time(self, number: int) -> None:
        """A read has reached us: atime, by the mount's policy."""
        if self.journal.writable:
            await self.access_times.read(number)

    def collect_reads(self, inode: Inode) -> bool:
        """Before attributes are told or set: atime as what the front end has read wants it.

        False: it will be, but is not yet, as nothing may wait here.
        """
        plane = self.files.plane
        read_ns = plane.take_read(inode) if plane is not None and inode.published else 0
        return not read_ns or self.access_times.served(inode.number, read_ns)

    # --- bytes --------------------------------------------------------------------------------------

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        return await self.files.read(number, offset, size)

    async def write(
        self,
        number: int,
        offset: int,
        data: Data,
        *,
        update_times: bool = True,
        privileged: bool = True,
    ) -> int:
        """Write all of `data` at `offset`; see file.py."""
        return await self.files.write(
            number, offset, data, update_times=update_times, privileged=privileged
        )

    async def fallocate(
        self, number: int, mode: int, offset: int, length: int, *, privileged: bool = True
    ) -> None:
        """fallocate(2); see regions.py."""
        await self.regions.fallocate(number, mode, offset, length, privileged=privileged)

    async def seek(self, number: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; see regions.py."""
        return await self.regions.seek(number, offset, whence)

    async def copy_range(
        self,
        source: int,
        source_offset: int,
        target: int,
        target_offset: int,
        length: int,
        *,
        privileged: bool = True,
    ) -> int:
        """copy_file_range(2): how many bytes were copied; see regions.py."""
        return await self.regions.copy(
            source, source_offset, target, target_offset, length, privileged=privileged
        )

    async def trim(self, start: int, length: int, min_length: int) -> int:
        """FITRIM: discard what is free in a region of the device; all in bytes, as is what is returned.

        Raises FsError(EINVAL, EOPNOTSUPP), ReadOnly, DeviceFailed.
        """
        if refusal := self.journal.refusal:
            raise ReadOnly(refusal)
        return await trim(self.transactions, self.device, start, length, min_length)

    async def fsync(self, number: int, *, data_only: bool = False) -> None:
        """The file's data, and every operation up to its last change, are durable on return.

        With `data_only` (fdatasync) changes of times and modes alone do not cause a commit; the names in
        a directory are its data.
        """
        inode = await self.getattr(number)
        inode.note_sync()
        known = inode.written >= 0 and not inode.published
        written = inode.written if known else self.device.written
        if self.journal.read_only:
            return
        only_data = data_only and not inode.is_dir
        await self.journal.commit_through(inode.data_seq if only_data else inode.seq)
        await self._flush(written)

    async def _flush(self, ticket: int) -> None:
        """A flush that failed is final: nobody knows what of the cache it has lost."""
        try:
            await self.device.flush_through(ticket)
        except DeviceFailed as error:
            self.journal.fail(str(error))
            raise

    async def sync(self) -> None:
        """Everything that has returned is durable on return."""
        await self.access_times.save()
        await self.transactions.commit()
        await self._flush(self.device.written)

    def statfs(self) -> Usage:
        """Space and inodes."""
        return self.allocator.usage()

    # --- extended attributes --------------------------------------------------------------------------

    async def getxattr(self, number: int, name: bytes) -> bytes | None:
        """The value of an attribute, or None."""

        def look(tx: Transaction) -> bytes | None:
            self.inodes.get(tx, number)
            return self.xattrs.get(tx, number, name)

        return await self.transactions.read(look)

    async def setxattr(
        self,
        number: int,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        privileged: bool = True,
    ) -> None:
        """Set an attribute, as setxattr(2) with its flags."""
        await self.transactions.run(
            lambda tx: self.attributes.set_xattr(tx, number, name, value, flags),
            privileged=privileged,
        )

    async def removexattr(self, number: int, name: bytes) -> None:
        """Remove an attribute. Raises FsError(ENODATA)."""
        await self.transactions.run(lambda tx: self.attributes.remove_xattr(tx, number, name))

    async def listxattr(self, number: int) -> list[bytes]:
        """The names of all attributes."""

        def look(tx: Transaction) -> list[bytes]:
            self.inodes.get(tx, number)
            return self.xattrs.names(tx, number)

        return await self.transactions.read(look)
