"""What the golden images hold, and what the filesystem says of an image; see the package's own words."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from nvmefs.attributes import AttributeChanges
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem
from nvmefs.grow import grow
from nvmefs.inodes import Inode
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE, INODE_INLINE
from tests.reader import DIGEST_BYTES
from tests.support.ram import InjectedError, RamNamespace

BLOCK = 4096
FALLOC_KEEP_SIZE = 1
GROWN_BLOCKS = 33_300
_NOBODY = 2**32 - 1
_ACL_ENTRIES = (
    (1, 7, _NOBODY),
    (2, 4, 1000),
    (4, 5, _NOBODY),
    (0x10, 5, _NOBODY),
    (0x20, 5, _NOBODY),
)
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in _ACL_ENTRIES)


def text(name: str, size: int) -> bytes:
    """Data that is told apart by its place and compresses well."""
    line = f"{name} %015d\n"
    length = len(line % 0)
    return b"".join((line % at).encode() for at in range(size // length + 1))[:size]


async def _file(fs: Filesystem, parent: int, name: bytes, data: bytes) -> Inode:
    inode = await fs.create(parent, name, stat.S_IFREG | 0o640, 1000, 100)
    if data:
        await fs.write(inode.number, 0, data)
    return inode


async def kinds(fs: Filesystem) -> None:
    """Every kind of inode, of name, of time, of attribute and of block map."""
    for size in (0, 1, 900, 901, 1800, 4095, 4096, 4097, 100_000, 2_000_000):
        await _file(fs, 1, b"size-%d" % size, text("size", size))
    sparse = await _file(fs, 1, b"sparse", b"")
    for at in (0, 1 << 20, 1 << 40, (1 << 63) - 1 - 2 * BLOCK):
        await fs.write(sparse.number, at, text("sparse", 5000))
    kept = await _file(fs, 1, b"kept-space", text("kept", 3000))
    await fs.fallocate(kept.number, FALLOC_KEEP_SIZE, 0, 1 << 20)
    unwritten = await _file(fs, 1, b"unwritten", b"")
    await fs.fallocate(unwritten.number, 0, 0, 1 << 20)
    await fs.write(unwritten.number, 300_000, text("unwritten", 10_000))
    await fs.link(kept.number, 1, b"kept-space-again")
    await _names(fs)
    await _attributes(fs)


async def _names(fs: Filesystem) -> None:
    await fs.symlink(1, b"short-link", b"size-1", 0, 0)
    await fs.symlink(1, b"long-link", b"x/" * 2000 + b"end", 1, 2)
    for kind, rdev in (("IFCHR", os.makedev(1, 3)), ("IFBLK", os.makedev(259, 70000))):
        mode = getattr(stat, "S_" + kind) | 0o600
        await fs.create(1, kind.encode(), mode, 0, 0, rdev)
    await fs.create(1, b"fifo", stat.S_IFIFO | 0o644, 0, 0)
    await fs.create(1, b"socket", stat.S_IFSOCK | 0o777, 0, 0)
    await _file(fs, 1, b"n" * 255, b"long name")
    await _file(fs, 1, b"\xff\xfe not utf-8 \n", b"bytes")
    await _file(fs, 1, "žluťoučký".encode(), b"utf-8")
    parent = 1
    for depth in range(40):
        parent = (await fs.create(parent, b"d%d" % depth, stat.S_IFDIR | 0o2755, 5, 6)).number
    await _file(fs, parent, b"bottom", b"deep")
    many = (await fs.create(1, b"many", stat.S_IFDIR | 0o1777, 0, 0)).number
    for i in range(600):
        await _file(fs, many, b"file-%04d" % i, text("many", i % 50))
    for i in range(0, 600, 3):
        await fs.rename(many, b"file-%04d" % i, 1 if i % 2 else many, b"moved-%04d" % i)


async def _attributes(fs: Filesystem) -> None:
    named = await _file(fs, 1, b"attributes", b"")
    for name, value in (
        ("user.short", b"v"),
        ("user.long", text("x", 60_000)),
        ("user.empty", b""),
    ):
        await fs.setxattr(named.number, name.encode(), value)
    await fs.setxattr(named.number, b"system.posix_acl_access", ACL)
    for fixed, flags in ((b"immutable", INODE_IMMUTABLE), (b"append-only", INODE_APPEND)):
        inode = await _file(fs, 1, fixed, b"fixed")
        await fs.set_flags(inode.number, flags, privileged=True)
    for year, seconds in (
        (b"1901", -(2**31)),
        (b"1677", -9_223_372_036),
        (b"2500", 16_725_225_600),
    ):
        inode = await _file(fs, 1, year, b"time")
        changes = AttributeChanges(atime=(seconds, 1), mtime=(seconds, 999_999_999))
        await fs.setattr(inode.number, changes)


async def crashed(fs: Filesystem) -> None:
    """Cut off: records in the journal, a file that was open without a name, one being cut short."""
    await kinds(fs)
    await fs.sync()
    doomed = await _file(fs, 1, b"doomed", text("doomed", 50_000))
    await fs.unlink(1, b"doomed")
    await _file(fs, 1, b"only-in-the-journal", text("journal", 9000))
    await fs.unlink(1, b"size-901")
    await fs.tmpfile(1, stat.S_IFREG | 0o600, 0, 0)
    await fs.fsync(doomed.number)


async def grown(fs: Filesystem) -> None:
    """The power went when growing had committed: the superblock of the new size is in the journal alone."""
    await _file(fs, 1, b"before", text("before", 300_000))
    await fs.sync()
    namespace = fs.device.namespace
    assert isinstance(namespace, RamNamespace)
    namespace.grow(GROWN_BLOCKS)

    async def cut(kind: str, block: int, count: int) -> None:
        if kind == "write" and block <= 20:
            raise InjectedError("the power is gone")

    namespace.before = cut
    try:
        await grow(fs)
    except FsError as error:
        namespace.before = None
        if error.errno != errno.EIO:
            raise


async def long_journal(fs: Filesystem) -> None:
    """Cut off: records on both sides of what stands in a long journal's way, and around its end."""
    for i in range(40):
        await _file(fs, 1, b"file-%d" % i, text("file", i * 100))
        await fs.sync()


CONTENTS: dict[str, Callable[[Filesystem], Awaitable[None]]] = {
    "kinds": kinds,
    "crashed": crashed,
    "grown": grown,
    "long-journal": long_journal,
}
UNCLEAN = frozenset(("crashed", "grown", "long-journal"))


# ---- what the filesystem says -------------------------------------------------------------------------


async def _data(fs: Filesystem, inode: Inode) -> AsyncIterator[tuple[int, bytes]]:
    """(offset, bytes) block by block; holes are left out where SEEK_DATA finds them."""
    at = 0
    while at < inode.size_bytes:
        try:
            at = await fs.seek(inode.number, at, os.SEEK_DATA) // BLOCK * BLOCK
        except FsError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        data = await fs.read(inode.number, at, BLOCK)
        yield at, data
        at += len(data)


async def _digest(fs: Filesystem, inode: Inode) -> str:
    """As Reader.digest()."""
    digest, behind, long = hashlib.sha256(), 0, inode.size_bytes > DIGEST_BYTES
    async for at, data in _data(fs, inode):
        if long and not any(data):
            continue
        digest.update(struct.pack("<Q", at) if long else bytes(at - behind))
        digest.update(data)
        behind = at + len(data)
    digest.update(b"" if long else bytes(inode.size_bytes - behind))
    return digest.hexdigest()


async def _describe(fs: Filesystem, inode: Inode) -> dict[str, Any]:
    """As Reader.describe()."""
    told: dict[str, Any] = {
        "inode": inode.number,
        "mode": f"{inode.mode:o}",
        "links": inode.nlink,
        "owner": [inode.uid, inode.gid],
        "size": inode.size_bytes,
        "mtime": [inode.mtime_s, inode.mtime_ns],
        "flags": inode.flags & ~INODE_INLINE,
    }
    xattrs = {}
    for name in sorted(await fs.listxattr(inode.number)):
        value = await fs.getxattr(inode.number, name)
        assert value is not None
        xattrs[name.decode("utf-8", "surrogateescape")] = base64.b64encode(value).decode()
    if xattrs:
        told["xattrs"] = xattrs
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        told["device"] = [os.major(inode.rdev), os.minor(inode.rdev)]
    if stat.S_ISLNK(inode.mode):
        told["target"] = (await fs.readlink(inode.number)).decode("utf-8", "surrogateescape")
    elif stat.S_ISREG(inode.mode):
        told["sha256"] = await _digest(fs, inode)
    return told


async def tree(fs: Filesystem) -> dict[str, dict[str, Any]]:
    """As Reader.tree(), asked of a mounted filesystem."""
    found: dict[str, dict[str, Any]] = {}
    todo = [("/", 1)]
    while todo:
        path, number = todo.pop()
        inode = await fs.getattr(number)
        found[path] = await _describe(fs, inode)
        last = 0
        while inode.is_dir and (batch := await fs.readdir(number, last, 100)):
            last = batch[-1][0]
            for _, entry in batch:
                name = entry.name.decode("utf-8", "surrogateescape")
                todo.append((f"{path.rstrip('/')}/{name}", entry.inode))
    return found
