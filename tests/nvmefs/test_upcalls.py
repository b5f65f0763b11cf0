"""Requests that pyfuse3 has no handler for, as bytes: files without a name, trimming, flags, statx."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyfuse3
import pytest
from pyfuse3 import FileNameT, FUSEError, InodeT, ModeT

from nvmefs import ioctls
from nvmefs.attributes import AttributeChanges
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem, Options
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE
from nvmefs.layout import BLOCK_BYTES, GROUP_BLOCKS, ROOT_INODE
from nvmefs.operations import Operations
from nvmefs.upcalls import (
    COPY_FILE_RANGE,
    FALLOCATE,
    IOCTL,
    LSEEK,
    STATX,
    SYNCFS,
    TMPFILE,
    Upcalls,
)
from nvmefs.wire import IN_HEADER, OUT_HEADER, Request
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

B = BLOCK_BYTES
FILE = 0o100644
ROOT = InodeT(ROOT_INODE)
CTX: Any = Request(0, 0, 0, 0, 0, 0, b"")
TMPFILE_IN = struct.Struct("<IIII")
IOCTL_IN = struct.Struct("<QIIQII")


class Kernel:
    """Sends requests as the kernel does."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.fs = operations.fs
        self.upcalls = Upcalls(operations)
        self.unique = 0

    async def ask(self, opcode: int, inode: int, body: bytes, uid: int = 0) -> tuple[int, bytes]:
        """(errno, body) of the answer."""
        self.unique += 2
        head = IN_HEADER.pack(
            IN_HEADER.size + len(body), opcode, self.unique, inode, uid, uid, 1, 0, 0
        )
        answer = await self.upcalls.answer(Request.of(head + body))
        length, code, unique = OUT_HEADER.unpack_from(answer)
        assert (length, unique) == (len(answer), self.unique)
        return -code, answer[OUT_HEADER.size :]

    async def ioctl(
        self, command: int, inode: int, data: bytes = b"", out: int = 0, uid: int = 0
    ) -> tuple[int, bytes]:
        head = IOCTL_IN.pack(0, 0, command, 0, len(data), out)
        code, body = await self.ask(IOCTL, inode, head + data, uid)
        if code:
            return code, b""
        assert body[:16] == bytes(16)
        assert len(body) == 16 + out
        return 0, body[16:]

    async def tmpfile(self, flags: int = os.O_RDWR, mode: int = 0o100666, umask: int = 0) -> int:
        """The inode number of a new file without a name."""
        body = TMPFILE_IN.pack(flags, mode, umask, 0) + b"/\0"
        code, answer = await self.ask(TMPFILE, ROOT_INODE, body)
        assert not code
        assert len(answer) == 128 + 16
        return int.from_bytes(answer[:8], "little")


@asynccontextmanager
async def serving(namespace: RamNamespace | None = None) -> AsyncIterator[Kernel]:
    namespace = namespace or await fresh()
    async with mounted(namespace, Options(atime="noatime")) as filesystem:
        yield Kernel(Operations(filesystem))


async def new_file(filesystem: Filesystem, content: bytes = b"", name: bytes = b"file") -> int:
    number = (await filesystem.create(ROOT_INODE, name, FILE, 0, 0)).number
    if content:
        await filesystem.write(number, 0, content)
    return number


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [FALLOCATE, LSEEK, COPY_FILE_RANGE, IOCTL, TMPFILE, STATX])
async def test_a_request_that_is_cut_short(opcode: int) -> None:
    async with serving() as kernel:
        assert (await kernel.ask(opcode, ROOT_INODE, b"short"))[0] == errno.EINVAL


async def test_an_unknown_request() -> None:
    async with serving() as kernel:
        assert (await kernel.ask(4000, ROOT_INODE, b""))[0] == errno.ENOSYS


async def test_syncfs_commits() -> None:
    async with serving() as kernel:
        await new_file(kernel.fs)
        commits = kernel.fs.journal.commits
        assert await kernel.ask(SYNCFS, ROOT_INODE, b"\0" * 8) == (0, b"")
        assert kernel.fs.journal.commits == commits + 1


async def test_regions() -> None:
    async with serving() as kernel:
        number = await new_file(kernel.fs, b"x" * 3 * B)
        other = await new_file(kernel.fs, name=b"other")
        punch = struct.pack("<QQQII", 0, B, B, 3, 0)
        assert await kernel.ask(FALLOCATE, number, punch) == (0, b"")
        seek = struct.pack("<QQII", 0, 0, os.SEEK_HOLE, 0)
        assert await kernel.ask(LSEEK, number, seek) == (0, struct.pack("<Q", B))
        copy = struct.pack("<QQQQQQQ", 0, 0, other, 0, 5, 9 * B, 0)
        assert await kernel.ask(COPY_FILE_RANGE, number, copy) == (0, struct.pack("<II", 3 * B, 0))
        wanted = bytes(5) + b"x" * B + bytes(B) + b"x" * B
        assert await kernel.fs.read(other, 0, 9 * B) == wanted
        copy = struct.pack("<QQQQQQQ", 0, 0, other, 0, 5, 9 * B, 1)
        assert (await kernel.ask(COPY_FILE_RANGE, number, copy))[0] == errno.EINVAL


@pytest.mark.parametrize(("uid", "mode"), [(0, 0o4755), (1000, 0o755)])
async def test_an_ordinary_users_change_takes_setuid_away(uid: int, mode: int) -> None:
    async with serving() as kernel:
        number = await new_file(kernel.fs)
        await kernel.fs.setattr(number, AttributeChanges(mode=0o4755))
        body = struct.pack("<QQQII", 0, 0, B, 0, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nvmefs.operations.forget_attributes", lambda number: None)
            assert not (await kernel.ask(FALLOCATE, number, body, uid))[0]
        assert (await kernel.fs.getattr(number)).mode & 0o7777 == mode


async def test_the_kernel_writes_back_before_a_seek_while_somebody_writes() -> None:
    async with serving() as kernel:
        told: list[bytes] = []
        kernel.upcalls.notify = told.append
        info, entry = await kernel.operations.create(
            ROOT, FileNameT(b"f"), ModeT(FILE), pyfuse3.FlagT(os.O_RDWR), CTX
        )
        await kernel.fs.write(entry.st_ino, 0, b"x" * B)
        seek = struct.pack("<QQII", 0, 5, os.SEEK_DATA, 0)
        await kernel.ask(LSEEK, entry.st_ino, seek)
        assert told == [struct.pack("<IiQQqq", 40, 2, 0, entry.st_ino, 5, 0)]
        await kernel.operations.release(info.fh)
        await kernel.ask(LSEEK, entry.st_ino, seek)
        assert len(told) == 1


async def test_statx() -> None:
    async with serving() as kernel:
        number = await new_file(kernel.fs, b"x" * 5000)
        await kernel.fs.set_flags(number, INODE_APPEND, privileged=True)
        inode = await kernel.fs.getattr(number)
        code, body = await kernel.ask(STATX, number, bytes(24))
        assert not code
        assert len(body) == 288
        mask, _, flags, nlink = struct.unpack_from("<IIQI", body, 32)
        assert (mask, flags, nlink) == (0xFFF, INODE_APPEND, 1)
        mode, _, ino, size, blocks = struct.unpack_from("<HHQQQ", body, 32 + 28)
        assert (mode, ino, size, blocks) == (FILE, number, 5000, 16)
        born = struct.unpack_from("<qI", body, 32 + 64 + 16)
        assert born == (inode.btime_s, inode.btime_ns)


# --- files without a name -------------------------------------------------------------------------


async def test_a_file_without_a_name_gets_one() -> None:
    namespace = await fresh()
    async with serving(namespace) as kernel:
        number = await kernel.tmpfile(umask=0o022)
        inode = await kernel.fs.getattr(number)
        assert (inode.nlink, inode.mode) == (0, FILE)
        assert kernel.operations.lookups[number] == 1
        await kernel.fs.write(number, 0, b"content")
        assert check((await crashed(kernel.fs, namespace)).blocks) == []
        await kernel.operations.link(InodeT(number), ROOT, FileNameT(b"name"), CTX)
        assert inode.nlink == 1
        await kernel.fs.sync()
        await kernel.fs.unlink(ROOT_INODE, b"name")
        with pytest.raises(FUSEError):  # a name that is gone does not come back
            await kernel.operations.link(InodeT(number), ROOT, FileNameT(b"b"), CTX)
        await kernel.operations.forget([(InodeT(number), 2)])
        assert number not in kernel.fs.inodes.known
    assert check(namespace.blocks) == []


async def crashed(filesystem: Filesystem, namespace: RamNamespace) -> RamNamespace:
    """What the drive holds after a commit, mounted and unmounted once: what is nameless is gone."""
    await filesystem.sync()
    copy = namespace.copy()
    async with mounted(copy) as after:
        assert after.state.inode_count == 1
    return copy


async def test_a_linked_file_survives() -> None:
    namespace = await fresh()
    async with serving(namespace) as kernel:
        number = await kernel.tmpfile()
        await kernel.fs.write(number, 0, b"content" * B)
        await kernel.fs.link(number, ROOT_INODE, b"name")
        await kernel.fs.sync()
        async with mounted(namespace.copy()) as after:
            assert await after.lookup(ROOT_INODE, b"name") is not None
    async with mounted(namespace) as filesystem:
        assert await filesystem.read(number, 0, 7) == b"content"
    assert check(namespace.blocks) == []


async def test_o_excl_forbids_a_name() -> None:
    async with serving() as kernel:
        number = await kernel.tmpfile(os.O_RDWR | os.O_EXCL)
        with pytest.raises(FsError) as caught:
            await kernel.fs.link(number, ROOT_INODE, b"name")
        assert caught.value.errno == errno.ENOENT
        await kernel.operations.forget([(InodeT(number), 1)])
        assert number not in kernel.fs.inodes.known


async def test_a_name_that_fails_leaves_the_file_linkable() -> None:
    async with serving() as kernel:
        number = await kernel.tmpfile()
        await new_file(kernel.fs)
        with pytest.raises(FsError):
            await kernel.fs.link(number, ROOT_INODE, b"file")
        await kernel.fs.link(number, ROOT_INODE, b"other")


async def test_an_unmount_deletes_what_has_no_name() -> None:
    namespace = await fresh()
    async with serving(namespace) as kernel:
        await kernel.fs.write(await kernel.tmpfile(), 0, b"x" * 9 * B)
    assert check(namespace.blocks) == []


# --- trimming -------------------------------------------------------------------------------------


async def trimmed(kernel: Kernel, start: int = 0, length: int = 2**64 - 1, least: int = 0) -> int:
    code, body = await kernel.ioctl(
        ioctls.FITRIM, ROOT_INODE, ioctls.FSTRIM_RANGE.pack(start, length, least), 24
    )
    assert not code
    return int(ioctls.FSTRIM_RANGE.unpack(body)[1])


async def test_trim_tells_the_drive_of_free_blocks_alone() -> None:
    namespace = await fresh(2 * GROUP_BLOCKS + 500)
    async with serving(namespace) as kernel:
        number = await new_file(kernel.fs, b"keep" * B)
        gone = await new_file(kernel.fs, b"gone" * 9 * B, b"gone")
        await kernel.fs.sync()
        await kernel.fs.unlink(ROOT_INODE, b"gone")
        await kernel.fs.reap(gone)  # free, and not yet committed: a crash brings it back
        free = kernel.fs.state.free_blocks - kernel.fs.allocator.held_blocks
        before = dict(namespace.blocks)
        namespace.log = []
        assert await trimmed(kernel) == free * B
        touched = {
            event.command.block + index
            for event in namespace.log
            if event.command.kind == "discard"
            for index in range(len(event.command.data))
        }
        assert len(touched) == free
        assert not kernel.fs.allocator.held_blocks - kernel.fs.allocator.held_freed_blocks
        crash = RamNamespace(namespace.block_count, {**before, **namespace.blocks})
        async with mounted(crash) as after:
            assert await after.read(gone, 0, 4) == b"gone"
        await kernel.fs.sync()
        assert await trimmed(kernel) > free * B
        assert await kernel.fs.read(number, 0, 4) == b"keep"
    assert check(namespace.blocks) == []


async def test_trim_of_a_part_and_of_long_runs() -> None:
    async with serving(await fresh(2 * GROUP_BLOCKS)) as kernel:
        assert await trimmed(kernel, GROUP_BLOCKS * B, 100 * B) < 100 * B
        assert await trimmed(kernel, (GROUP_BLOCKS + 500) * B, 100 * B) == 100 * B
        assert not await trimmed(kernel, 0, 2**64 - 1, GROUP_BLOCKS * B)
        some = await trimmed(kernel, 0, 2**64 - 1, 1000 * B)
        assert 0 < some <= await trimmed(kernel)


async def test_trim_refuses() -> None:
    async with serving() as kernel:
        wide = ioctls.FSTRIM_RANGE.pack(2**62, B, 0)
        assert (await kernel.ioctl(ioctls.FITRIM, ROOT_INODE, wide, 24))[0] == errno.EINVAL
        wide = ioctls.FSTRIM_RANGE.pack(0, B, 2**40)
        assert (await kernel.ioctl(ioctls.FITRIM, ROOT_INODE, wide, 24))[0] == errno.EINVAL
        assert (await kernel.ioctl(ioctls.FITRIM, ROOT_INODE, wide, 24, 1000))[0] == errno.EPERM
        assert (await kernel.ioctl(ioctls.FITRIM, ROOT_INODE, b"short", 5))[0] == errno.EINVAL


async def test_what_is_being_trimmed_is_not_handed_out() -> None:
    namespace = await fresh()
    async with serving(namespace) as kernel:
        seen: list[bool] = []

        async def during(kind: str, block: int, count: int) -> None:
            if kind == "discard" and not seen:
                seen.append(True)
                await new_file(kernel.fs, b"written" * 50 * B, b"meanwhile")

        namespace.during = during
        await trimmed(kernel)
        namespace.during = None
        inode = await kernel.fs.lookup(ROOT_INODE, b"meanwhile")
        assert inode is not None
        assert await kernel.fs.read(inode.number, 0, 350 * B) == b"written" * 50 * B
    assert check(namespace.blocks) == []


# --- flags ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no kernel to be told that attributes have changed."""
    monkeypatch.setattr("nvmefs.upcalls.forget_attributes", lambda number: None)


async def test_flags_in_both_forms() -> None:
    async with serving() as kernel:
        number = await new_file(kernel.fs)
        for flags, xflags in ((INODE_IMMUTABLE, 8), (INODE_APPEND, 16), (0x30, 24), (0, 0)):
            packed = struct.pack("<I", flags)
            assert await kernel.ioctl(ioctls.SETFLAGS, number, packed) == (0, b"")
            assert await kernel.ioctl(ioctls.GETFLAGS, number, out=4) == (0, packed)
            code, body = await kernel.ioctl(ioctls.FSGETXATTR, number, out=28)
            assert (code, body) == (0, struct.pack("<I24x", xflags))
            assert await kernel.ioctl(ioctls.FSSETXATTR, number, body) == (0, b"")
        assert (await kernel.ioctl(ioctls.GETFLAGS, ROOT_INODE, out=4))[0] == 0


async def test_flags_that_are_refused() -> None:
    async with serving() as kernel:
        number = await new_file(kernel.fs)
        packed = struct.pack("<I", INODE_IMMUTABLE)
        assert (await kernel.ioctl(ioctls.SETFLAGS, number, packed, uid=1))[0] == errno.EPERM
        packed = struct.pack("<I", 0x800)
        assert (await kernel.ioctl(ioctls.SETFLAGS, number, packed))[0] == errno.EOPNOTSUPP
        other = struct.pack("<IIIII8x", 0, 0, 0, 7, 0)
        assert (await kernel.ioctl(ioctls.FSSETXATTR, number, other))[0] == errno.EOPNOTSUPP
        assert (await kernel.ioctl(0x5401, number))[0] == errno.ENOTTY
        assert (await kernel.ioctl(ioctls.SETFLAGS, number, b""))[0] == errno.EINVAL


async def test_what_flags_forbid() -> None:
    async with serving() as kernel:
        fs = kernel.fs
        number = await new_file(fs, b"content")
        directory = (await fs.create(ROOT_INODE, b"d", 0o040755, 0, 0)).number
        await fs.set_flags(directory, INODE_IMMUTABLE, privileged=True)
        await fs.set_flags(number, INODE_APPEND, privileged=True)
        append = os.O_WRONLY | os.O_APPEND
        await kernel.operations.open(InodeT(number), pyfuse3.FlagT(append), CTX)
        await fs.write(number, 7, b" and more")
        await fs.set_flags(number, INODE_APPEND | INODE_IMMUTABLE, privileged=True)
        forbidden: list[Callable[[], Awaitable[object]]] = [
            lambda: fs.write(number, 0, b"x"),
            lambda: fs.setattr(number, AttributeChanges(size=0)),
            lambda: fs.setattr(number, AttributeChanges(mode=0o600)),
            lambda: fs.setattr(number, AttributeChanges(atime=(1, 1), mtime=(1, 1))),
            lambda: fs.unlink(ROOT_INODE, b"file"),
            lambda: fs.rename(ROOT_INODE, b"file", ROOT_INODE, b"other"),
            lambda: fs.link(number, ROOT_INODE, b"other"),
            lambda: fs.setxattr(number, b"user.x", b"y"),
            lambda: fs.copy_range(number, 0, number, 100, 5),
            lambda: fs.create(directory, b"new", FILE, 0, 0),
            lambda: fs.tmpfile(directory, FILE, 0, 0),
        ]
        for call in forbidden:
            with pytest.raises(FsError) as caught:
                await call()
            assert caught.value.errno == errno.EPERM
        # The kernel tells later what times a file had before it became immutable.
        await fs.setattr(number, AttributeChanges(mtime=(5, 5), ctime=(6, 6)))
        with pytest.raises(FUSEError):
            await kernel.operations.open(InodeT(number), pyfuse3.FlagT(append), CTX)
        await fs.set_flags(number, INODE_APPEND, privileged=True)
        for flags in (os.O_WRONLY, append | os.O_TRUNC):
            with pytest.raises(FUSEError):
                await kernel.operations.open(InodeT(number), pyfuse3.FlagT(flags), CTX)
        await fs.set_flags(number, 0, privileged=True)
        await fs.unlink(ROOT_INODE, b"file")
        await fs.reap(number)


async def test_seeking_before_the_beginning() -> None:
    async with serving() as kernel:
        number = await new_file(kernel.fs, b"content")
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            body = struct.pack("<QqII", number, -1, whence, 0)
            assert await kernel.ask(LSEEK, number, body) == (errno.ENXIO, b"")
