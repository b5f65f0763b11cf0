"""Entries of a source become files of a filesystem that is being made.

Below: the filesystem's own operations (namei.py, attributes.py, extents.py, allocator.py), bulk.py.
Above: mkfs.py.

    filled = await fill(device, superblock, state, source, born)     raises ToolError naming the entry
    filled.next_seq, filled.counts

Each entry is one operation, or several if its data is long: name, inode, attributes, and the blocks of its
data, which are written after they are mapped. The order that protects a mounted filesystem from crashes is not
needed: until mkfs has written the superblock there is none.

Times of change and of birth are `born`, when the filesystem was made; of directories too, whatever is put in.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee
from typing import TypeVar

from mkfs.cli import ToolError, show_size
from mkfs.populate.bulk import Unlogged
from mkfs.populate.source import Data, Entry, Range, Source, shown
from nvmefs import acl
from nvmefs.allocator import Allocator
from nvmefs.clock import Timestamp
from nvmefs.device import Device
from nvmefs.errors import DeviceFailed, FsError, NoSpace
from nvmefs.filesystem import Filesystem, Options
from nvmefs.inline import write_inline
from nvmefs.inodes import Inode
from nvmefs.items import INODE_INLINE, Extent
from nvmefs.layout import BLOCK_BYTES, INLINE_BYTES, MAX_FILE_BYTES, ROOT_INODE, State, Superblock
from nvmefs.transaction import Transaction

STEP_BLOCKS = 8192  # that one operation maps
PIECE_BLOCKS = 256  # 1 MiB: what is read and written at once
KNOWN_DIRECTORIES = 1024
XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
ACLS = (acl.ACCESS, acl.DEFAULT)

T = TypeVar("T")


@dataclass
class Filled:
    """What was put in. `next_seq` is for the journal superblocks; `left_out` what the format cannot keep."""

    next_seq: int = 1
    counts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, None] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


@dataclass(frozen=True)
class RootWishes:
    """What is wanted of the root directory, whatever the source says of it."""

    owner: tuple[int, int] | None = None
    mode: int | None = None


async def fill(
    device: Device,
    superblock: Superblock,
    state: State,
    source: Source,
    born: Timestamp,
    *,
    latest: Timestamp | None = None,
    root: RootWishes | None = None,
) -> Filled:
    """Put everything into the empty filesystem and bring it home. `latest`: no time is later than that, and
    access times are those of modification. Raises ToolError, OSError, FsError.
    """
    journal = Unlogged(device, superblock, state, Allocator(superblock, state), born[0])
    filler = Filler(Filesystem(device, superblock, state, journal, Options()), born, latest, root)
    for entry in source.entries():
        try:
            await filler.put(entry)
        except NoSpace as error:
            size = show_size(superblock.block_count * BLOCK_BYTES)
            raise ToolError(
                f"{entry.shown}: does not fit, the filesystem of {size} is full: make a larger one"
            ) from error
        except DeviceFailed:
            raise
        except FsError as error:
            raise ToolError(f"{entry.shown}: {error}") from error
    await filler.finish()
    return filler.filled


class Filler:
    """The filesystem while it is filled."""

    def __init__(
        self,
        filesystem: Filesystem,
        born: Timestamp,
        latest: Timestamp | None,
        root: RootWishes | None,
    ) -> None:
        self.fs = filesystem
        self.born = born
        self.latest = latest
        self.root = root or RootWishes()
        self.filled = Filled()
        self.directories: dict[bytes, int] = {}
        self.pending = bytearray()
        self.pending_at = 0

    async def finish(self) -> None:
        """Everything stands where it belongs."""
        await self._write_pending()
        journal = self.fs.journal
        journal.force()
        await self.fs.transactions.commit()
        await journal.checkpoint()
        self.filled.next_seq = journal.open.seq

    # --- entries ------------------------------------------------------------------------------------

    async def put(self, entry: Entry) -> None:
        """One entry of the source."""
        if not entry.path:
            await self.fs.transactions.run(lambda tx: self._set_root(tx, entry))
            return
        parent_path, _, name = entry.path.rpartition(b"/")
        parent = await self._directory(parent_path)
        if entry.link_to is not None:
            await self._link(entry, parent, name)
            return
        existing = await self.fs.lookup(parent, name)
        if existing is not None and existing.is_dir and entry.is_dir:
            number = existing.number
            await self.fs.transactions.run(lambda tx: self._describe(tx, number, entry))
            return
        if existing is not None:
            await self._remove(parent, name)
        number = await self._create(entry, parent, name)
        if entry.is_dir:
            self._remember(entry.path, number)

    async def _directory(self, path: bytes) -> int:
        """The number of a directory; of archives, it is made if it has not come before."""
        known, missing = path, []
        while known and known not in self.directories:
            known, _, name = known.rpartition(b"/")
            missing.append(name)
        number = self.directories.get(known, ROOT_INODE)
        if known:
            self._remember(known, number)
        for name in reversed(missing):
            known = os.path.join(known, name)
            inode = await self.fs.lookup(number, name)
            if inode is None:
                made = Entry(known, shown(known), stat.S_IFDIR | 0o755)
                made.mtime = made.atime = self.born
                number = await self._create(made, number, name)
            elif inode.is_dir:
                number = inode.number
            else:
                raise FsError(errno.ENOTDIR, f"{shown(known)} is not a directory in the source")
            self._remember(known, number)
        return number

    def _remember(self, path: bytes, number: int) -> None:
        """Those that were not asked for longest are forgotten."""
        self.directories.pop(path, None)
        self.directories[path] = number
        if len(self.directories) > KNOWN_DIRECTORIES:
            del self.directories[next(iter(self.directories))]

    async def _create(self, entry: Entry, parent: int, name: bytes) -> int:
        small = await self._read_small(entry)
        ahead, ranges = tee(entry.data.ranges() if entry.data and small is None else ())
        steps = block_runs(ahead)
        first = next(steps, None)

        def apply(tx: Transaction) -> tuple[int, list[Extent]]:
            inode = self._new_inode(tx, entry, parent, name)
            if small:
                write_inline(self.fs.tree, tx, inode.number, small)
                inode.flags |= INODE_INLINE
            inode.size_bytes = len(entry.target) or entry.size
            self._describe(tx, inode.number, entry)
            return inode.number, self._map(tx, inode.number, *first) if first else []

        number, extents = await self._run(parent, apply)
        self.filled.count(KINDS[stat.S_IFMT(entry.mode)])
        if first is not None:
            assert entry.data is not None
            window = DataWindow(entry.data, ranges)
            await self._write(extents, window)
            for run in steps:
                await self._write(await self._grow(number, *run), window)
        return number

    def _new_inode(self, tx: Transaction, entry: Entry, parent: int, name: bytes) -> Inode:
        if stat.S_ISLNK(entry.mode):
            return self.fs.namei.symlink(tx, parent, name, entry.target, entry.uid, entry.gid)
        return self.fs.namei.create(tx, parent, name, entry.mode, entry.uid, entry.gid, entry.rdev)

    async def _link(self, entry: Entry, parent: int, name: bytes) -> None:
        assert entry.link_to is not None
        directory, _, old_name = entry.link_to.rpartition(b"/")
        inode = await self.fs.lookup(await self._directory(directory), old_name)
        if inode is None:
            raise FsError(errno.ENOENT, f"a link to {shown(entry.link_to)}, which is not there")
        existing = await self.fs.lookup(parent, name)
        if existing is not None:
            if existing.number == inode.number:
                return
            await self._remove(parent, name)
        number = inode.number

        def apply(tx: Transaction) -> None:
            linked = self.fs.namei.link(tx, number, parent, name)
            linked.ctime_s, linked.ctime_ns = self.born

        await self._run(parent, apply)
        self.filled.count("hard links")

    async def _remove(self, parent: int, name: bytes) -> None:
        """An archive may hold the same name twice: the later entry counts."""

        def apply(tx: Transaction) -> Inode:
            existing = self.fs.namei.lookup(tx, parent, name)
            assert existing is not None
            remove = self.fs.namei.rmdir if existing.is_dir else self.fs.namei.unlink
            removed = remove(tx, parent, name)
            removed.ctime_s, removed.ctime_ns = self.born
            return removed

        removed = await self._run(parent, apply)
        if not removed.nlink:
            await self._write_pending()
            await self.fs.reap(removed.number)
            self.directories.clear()

    # --- attributes ---------------------------------------------------------------------------------

    def _set_root(self, tx: Transaction, entry: Entry) -> None:
        """The root directory is there already; the command line has the last word about it."""
        inode = self._describe(tx, ROOT_INODE, entry)
        wanted = self.root
        if wanted.owner is not None:
            inode.uid, inode.gid = wanted.owner
        if wanted.mode is not None:
            inode.mode = stat.S_IFDIR | wanted.mode

    def _describe(self, tx: Transaction, number: int, entry: Entry) -> Inode:
        """Everything that the entry says beside its data."""
        inode = self.fs.inodes.get(tx, number)
        tx.touch(inode)
        inode.uid, inode.gid = entry.uid, entry.gid
        inode.mode = entry.mode  # not as a set-group-ID directory would have it
        for name, value in entry.xattrs.items():
            if name.startswith(XATTR_PREFIXES) or name in ACLS:
                self.fs.attributes.set_xattr(tx, inode.number, name, value)
            else:
                self.filled.left_out[f"{entry.shown}: attribute {shown(name)}"] = None
        mtime, atime = entry.mtime, entry.atime
        if self.latest is not None:
            mtime = atime = min(mtime, self.latest)
        inode.mtime_s, inode.mtime_ns = mtime
        inode.atime_s, inode.atime_ns = atime
        inode.ctime_s, inode.ctime_ns = self.born
        inode.btime_s, inode.btime_ns = self.born
        return inode

    async def _run(self, directory: int, operation: Callable[[Transaction], T]) -> T:
        """An operation on the names of a directory, whose times know nothing of it."""

        def apply(tx: Transaction) -> T:
            inode = self.fs.inodes.directory(tx, directory)
            modified = inode.mtime_s, inode.mtime_ns
            result = operation(tx)
            inode.mtime_s, inode.mtime_ns = modified
            inode.ctime_s, inode.ctime_ns = self.born
            return result

        return await self.fs.transactions.run(apply)

    # --- data ---------------------------------------------------------------------------------------

    async def _read_small(self, entry: Entry) -> bytes | None:
        """The data of a file that lives in the tree; None if it does not, or if there is none."""
        if entry.size > MAX_FILE_BYTES:
            raise FsError(errno.EFBIG, f"a file of {entry.size} bytes is too large")
        if not stat.S_ISREG(entry.mode) or not 0 < entry.size <= INLINE_BYTES:
            return None
        small = bytearray(entry.size)
        for start, length in entry.data.ranges() if entry.data else ():
            small[start : start + length] = entry.data.read(start, length) if entry.data else b""
        return bytes(small)

    async def _grow(self, number: int, first: int, count: int) -> list[Extent]:
        return await self.fs.transactions.run(lambda tx: self._map(tx, number, first, count))

    def _map(self, tx: Transaction, number: int, first: int, count: int) -> list[Extent]:
        """Map `count` blocks of the file to free ones, from its block `first` on."""
        fs = self.fs
        inode = fs.inodes.get(tx, number)
        tx.touch(inode)
        mapped: list[Extent] = []
        goal = fs.extents.goal(tx, number, first) if inode.blocks else 0
        while count:
            for start, length in fs.allocator.reserve(tx, count, goal):
                extent = Extent(first, start, length)
                fs.allocator.claim(tx, start, length)
                fs.extents.map_write(tx, inode, extent)
                mapped.append(extent)
                first, count, goal = first + length, count - length, start + length
        return mapped

    async def _write(self, extents: Iterable[Extent], data: DataWindow) -> None:
        for extent in extents:
            for at in range(0, extent.count, PIECE_BLOCKS):
                count = min(PIECE_BLOCKS, extent.count - at)
                await self._put(extent.start + at, data.blocks(extent.file_block + at, count))

    async def _put(self, block: int, data: bytearray) -> None:
        """Write, together with what goes right before it: small files are neighbours."""
        end = self.pending_at + len(self.pending) // BLOCK_BYTES
        if block != end or len(self.pending) >= PIECE_BLOCKS * BLOCK_BYTES:
            await self._write_pending()
            self.pending_at = block
        self.pending += data

    async def _write_pending(self) -> None:
        if self.pending:
            await self.fs.device.write(self.pending_at, self.pending)
            self.pending = bytearray()


KINDS = {
    stat.S_IFREG: "files",
    stat.S_IFDIR: "directories",
    stat.S_IFLNK: "symbolic links",
    stat.S_IFCHR: "devices",
    stat.S_IFBLK: "devices",
    stat.S_IFIFO: "fifos",
    stat.S_IFSOCK: "sockets",
}


class DataWindow:
    """The data of an entry in whole blocks, from its beginning to its end."""

    def __init__(self, data: Data, ranges: Iterator[Range]) -> None:
        self.data = data
        self.rest = ranges
        self.at, self.end = 0, 0

    def blocks(self, first: int, count: int) -> bytearray:
        """`count` blocks from `first` on, not before what was asked for last. Zeroes where there is no data."""
        result = bytearray(count * BLOCK_BYTES)
        begin = first * BLOCK_BYTES
        limit = begin + len(result)
        while self.at < limit:
            if self.at >= self.end:
                start, length = next(self.rest, (limit, 0))
                self.at, self.end = start, start + length
                continue
            length = min(self.end, limit) - self.at
            result[self.at - begin : self.at - begin + length] = self.data.read(self.at, length)
            self.at += length
        return result


def block_runs(ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
    """The runs (file block, count) of blocks that ranges of bytes touch, none longer than STEP_BLOCKS."""
    first, end = 0, 0
    for start, length in ranges:
        if not length:
            continue
        begin, behind = start // BLOCK_BYTES, -(-(start + length) // BLOCK_BYTES)
        if begin > end:
            yield from _steps(first, end)
            first = begin
        end = max(end, behind)
        while end - first > STEP_BLOCKS:
            yield first, STEP_BLOCKS
            first += STEP_BLOCKS
    yield from _steps(first, end)


def _steps(first: int, end: int) -> Iterator[tuple[int, int]]:
    if end > first:
        yield first, end - first
