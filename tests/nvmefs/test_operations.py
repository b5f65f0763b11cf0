"""The request handlers, called as pyfuse3 calls them, on a filesystem in memory."""

from __future__ import annotations

import errno
import logging
import os
import stat
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileNameT, FUSEError, InodeT, ModeT

from driver import trace
from nvmefs.answers import WRITING
from nvmefs.directories import COOKIE_DOT, COOKIE_DOTDOT
from nvmefs.errors import Corrupted
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import ROOT_INODE
from nvmefs.operations import Operations
from tests.support.images import fresh, mounted

ROOT = InodeT(ROOT_INODE)
FILE = ModeT(stat.S_IFREG | 0o644)
NS = 10**9


@dataclass
class Context:
    """A caller, as pyfuse3 describes one."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


CTX = cast(pyfuse3.RequestContext, Context())
USER = cast(pyfuse3.RequestContext, Context(uid=1000, gid=1000))


def fields(**updates: bool) -> pyfuse3.SetattrFields:
    """Which attributes setattr is to change."""
    names = ("atime", "mtime", "ctime", "mode", "uid", "gid", "size")
    told = {f"update_{name}": updates.get(name, False) for name in names}
    return cast(pyfuse3.SetattrFields, types.SimpleNamespace(**told))


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Operations]:
    async with mounted(await fresh(), Options(atime="noatime")) as filesystem:
        yield Operations(filesystem, **options)


async def make(ops: Operations, name: bytes = b"f", ctx: Any = CTX) -> int:
    _, entry = await ops.create(ROOT, FileNameT(name), FILE, pyfuse3.FlagT(os.O_RDWR), ctx)
    return entry.st_ino


async def fails(number: int, request: Awaitable[object]) -> None:
    with pytest.raises(FUSEError) as caught:
        await request
    assert caught.value.errno == number


def reaped(ops: Operations, number: int) -> bool:
    return number not in ops.fs.inodes.known


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[bytes, int, int]]]:
    """Stands for the kernel's readdir buffer: takes `room` entries, then says that it is full."""
    taken: list[tuple[bytes, int, int]] = []
    limit = [0]

    def reply(token: object, name: bytes, entry: EntryAttributes, cookie: int) -> bool:
        if len(taken) >= limit[0]:
            return False
        taken.append((bytes(name), entry.st_ino, cookie))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)

    def begin(room: int) -> list[tuple[bytes, int, int]]:
        taken.clear()
        limit[0] = room
        return taken

    return begin


TOKEN = cast(pyfuse3.ReaddirToken, None)


# --- lookup counts ------------------------------------------------------------------------------------


async def test_unlinked_inode_lives_until_it_is_forgotten() -> None:
    async with serving() as ops:
        number = await make(ops)
        await ops.lookup(ROOT, FileNameT(b"f"), CTX)
        await ops.write(FileHandleT(number), 0, b"data")
        await ops.unlink(ROOT, FileNameT(b"f"), CTX)
        assert await ops.read(FileHandleT(number), 0, 10) == b"data"
        await ops.forget([(InodeT(number), 1)])
        assert not reaped(ops, number)
        await ops.forget([(InodeT(number), 1)])
        assert reaped(ops, number)
        assert not ops.lookups
        await fails(errno.ESTALE, ops.getattr(InodeT(number), CTX))


async def test_inode_the_kernel_does_not_know_is_deleted_at_once() -> None:
    async with serving() as ops:
        number = await make(ops)
        await ops.forget([(InodeT(number), 1)])
        await ops.unlink(ROOT, FileNameT(b"f"), CTX)
        assert reaped(ops, number)


async def test_replaced_inode_is_deleted_when_forgotten() -> None:
    async with serving() as ops:
        number = await make(ops, b"old")
        await make(ops, b"new")
        await ops.rename(ROOT, FileNameT(b"new"), ROOT, FileNameT(b"old"), pyfuse3.FlagT(0), CTX)
        assert not reaped(ops, number)
        await ops.forget([(InodeT(number), 1)])
        assert reaped(ops, number)


async def test_each_answer_with_an_inode_counts_one() -> None:
    async with serving() as ops:
        number = await make(ops)
        await ops.link(InodeT(number), ROOT, FileNameT(b"g"), CTX)
        await ops.lookup(ROOT, FileNameT(b"g"), CTX)
        assert ops.lookups == {number: 3}
        directory = await ops.mkdir(ROOT, FileNameT(b"d"), ModeT(0o40755), CTX)
        link = await ops.symlink(ROOT, FileNameT(b"l"), FileNameT(b"t"), CTX)
        fifo = await ops.mknod(ROOT, FileNameT(b"p"), ModeT(stat.S_IFIFO | 0o600), 0, CTX)
        for entry in (directory, link, fifo):
            assert ops.lookups[entry.st_ino] == 1
        await ops.getattr(InodeT(number), CTX)
        assert ops.lookups[number] == 3


async def test_listing_counts_what_the_kernel_took(listing: Callable[..., Any]) -> None:
    async with serving() as ops:
        numbers = {await make(ops, b"%d" % each) for each in range(10)}
        await ops.forget([(InodeT(number), 1) for number in numbers])
        taken = listing(room=7)
        await ops.readdir(FileHandleT(ROOT), 0, TOKEN)
        assert [name for name, _, _ in taken[:2]] == [b".", b".."]
        assert [cookie for _, _, cookie in taken[:2]] == [COOKIE_DOT, COOKIE_DOTDOT]
        assert ops.lookups == {number: 1 for _, number, _ in taken[2:]}
        last = taken[-1][2]
        seen = {number for _, number, _ in taken[2:]}
        taken = listing(room=100)
        await ops.readdir(FileHandleT(ROOT), last, TOKEN)
        assert seen | {number for _, number, _ in taken} == numbers
        assert len(taken) == 5
        taken = listing(room=100)
        await ops.readdir(FileHandleT(ROOT), COOKIE_DOT, TOKEN)
        assert taken[0][:2] == (b"..", ROOT_INODE)


async def test_listing_leaves_out_a_damaged_inode(
    listing: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as ops:
        bad = await make(ops, b"bad")
        await make(ops, b"good")
        getattr_ = ops.fs.getattr

        async def damaged(number: int) -> Any:
            if number == bad:
                raise Corrupted(77, "checksum")
            return await getattr_(number)

        monkeypatch.setattr(ops.fs, "getattr", damaged)
        taken = listing(room=100)
        await ops.readdir(FileHandleT(ROOT), 2, TOKEN)
        assert [name for name, _, _ in taken] == [b"good"]
        assert "block 77" in caplog.text


async def test_forget_lets_no_error_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as ops:
        number = await make(ops)
        await ops.unlink(ROOT, FileNameT(b"f"), CTX)

        async def broken(number: int) -> None:
            raise ValueError("a fault")

        with monkeypatch.context() as patch:
            patch.setattr(ops.fs, "reap", broken)
            await ops.forget([(InodeT(number), 1)])
        assert "could not be deleted" in caplog.text


# --- attributes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ns", [0, 1, -1, -NS, -NS - 1, 2**40 * NS + 999_999_999])
async def test_times_go_both_ways(ns: int) -> None:
    async with serving() as ops:
        number = await make(ops)
        entry = EntryAttributes()
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = ns, ns + 1, ns - 1
        wanted = fields(atime=True, mtime=True, ctime=True)
        found = await ops.setattr(InodeT(number), entry, wanted, None, CTX)
        for each in (found, await ops.getattr(InodeT(number), CTX)):
            assert (each.st_atime_ns, each.st_mtime_ns, each.st_ctime_ns) == (ns, ns + 1, ns - 1)


async def test_absent_name_is_an_answer_that_may_be_kept() -> None:
    async with serving(entry_timeout_s=12.0) as ops:
        entry = await ops.lookup(ROOT, FileNameT(b"nothing"), CTX)
        assert (entry.st_ino, entry.entry_timeout) == (0, 12.0)
        assert not ops.lookups


async def test_lookup_by_number_for_nfs() -> None:
    async with serving() as ops:
        number = await make(ops)
        assert (await ops.lookup(InodeT(number), FileNameT(b"."), CTX)).st_ino == number
        assert (await ops.lookup(ROOT, FileNameT(b".."), CTX)).st_ino == ROOT
        await fails(errno.ESTALE, ops.lookup(InodeT(999), FileNameT(b"."), CTX))


async def test_blocks_and_sizes() -> None:
    async with serving() as ops:
        number = InodeT(await make(ops))
        assert (await ops.getattr(number, CTX)).st_blocks == 0
        await ops.write(FileHandleT(number), 0, b"x")
        assert (await ops.getattr(number, CTX)).st_blocks == 8
        await ops.write(FileHandleT(number), 0, bytes(3 * 4096))
        assert (await ops.getattr(number, CTX)).st_blocks == 24
        root = await ops.getattr(ROOT, CTX)
        assert (root.st_size, root.st_blocks, root.st_blksize) == (4096, 8, 4096)


async def test_kernel_is_told_of_allocations(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    told: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda n, attr_only: told.append(n))
    async with serving() as ops, trio.open_nursery() as nursery:
        nursery.start_soon(ops.run)
        number = await make(ops)
        for turn in range(5):
            await ops.write(FileHandleT(number), turn * 4096, bytes(4096))
        await trio.sleep(3)
        assert told == [number]
        await ops.write(FileHandleT(number), 0, bytes(4096))
        await trio.sleep(3)
        assert told == [number]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("writeback", [True, False])
async def test_who_keeps_the_times(writeback: bool) -> None:
    async with serving(writeback_cache=writeback) as ops:
        number = InodeT(await make(ops))
        entry = EntryAttributes()
        entry.st_mtime_ns = 5
        await ops.setattr(number, entry, fields(mtime=True), None, CTX)
        await ops.write(FileHandleT(number), 0, b"x")
        assert ((await ops.getattr(number, CTX)).st_mtime_ns == 5) is writeback


# --- set-user-ID ------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes whose attributes the kernel was told to forget."""
    numbers: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda n, attr_only: numbers.append(n))
    return numbers


async def chmod(ops: Operations, number: int, mode: int) -> None:
    entry = EntryAttributes()
    entry.st_mode = ModeT(mode)
    await ops.setattr(InodeT(number), entry, fields(mode=True), None, CTX)


async def mode_of(ops: Operations, number: int) -> int:
    return stat.S_IMODE((await ops.getattr(InodeT(number), CTX)).st_mode)


async def test_opening_for_writing_as_a_user_takes_it_away(told: list[int]) -> None:
    async with serving() as ops:
        number = InodeT(await make(ops))
        await chmod(ops, number, 0o6755)
        await ops.open(number, pyfuse3.FlagT(os.O_RDONLY), USER)
        await ops.open(number, pyfuse3.FlagT(os.O_RDWR), CTX)
        assert await mode_of(ops, number) == 0o6755
        info = await ops.open(number, pyfuse3.FlagT(os.O_WRONLY), USER)
        assert await mode_of(ops, number) == 0o755
        assert told == [number]
        assert info.fh == number | WRITING
        await chmod(ops, number, 0o4755)
        await ops.write(info.fh, 0, b"x")
        assert await mode_of(ops, number) == 0o4755, "pages written before the chmod"
        assert await ops.read(info.fh, 0, 9) == b"x"
        await ops.fsync(info.fh, False)


async def test_chown_and_truncate() -> None:
    async with serving() as ops:
        number = InodeT(await make(ops))
        entry = EntryAttributes()
        entry.st_uid = 7
        for ctx, update, before, after in (
            (CTX, "uid", 0o6777, 0o777),
            (CTX, "uid", 0o2767, 0o2767),  # mandatory locking, root
            (CTX, "size", 0o6777, 0o6777),
            (USER, "size", 0o6777, 0o777),
            (USER, "gid", 0o2767, 0o767),  # not of the group it has
            (USER, "gid", 0o2767, 0o2767),  # of the group that it has been given
            (USER, "size", 0o2767, 0o2767),
        ):
            await chmod(ops, number, before)
            entry.st_gid = USER.gid
            await ops.setattr(number, entry, fields(**{update: True}), None, ctx)
            assert await mode_of(ops, number) == after


@pytest.mark.parametrize(
    ("kind", "after"),
    [(stat.S_IFSOCK, 0o755), (stat.S_IFIFO, 0o755), (stat.S_IFCHR, 0o755), (stat.S_IFDIR, 0o6755)],
)
async def test_chown_of_what_is_no_regular_file(kind: int, after: int) -> None:
    """Only directories keep the bits (chown(2))."""
    async with serving() as ops:
        made = await ops.fs.create(1, b"special", kind | 0o6755, 0, 0)
        entry = EntryAttributes()
        entry.st_uid = 7
        await ops.setattr(InodeT(made.number), entry, fields(uid=True), None, CTX)
        assert await mode_of(ops, made.number) == after


# --- errors -----------------------------------------------------------------------------------------------


async def test_errors_become_errnos() -> None:
    async with serving() as ops:
        number = InodeT(await make(ops))
        await fails(errno.EEXIST, make(ops))
        await fails(errno.ENOENT, ops.unlink(ROOT, FileNameT(b"x"), CTX))
        await fails(errno.ENOTDIR, ops.rmdir(ROOT, FileNameT(b"f"), CTX))
        await fails(errno.ENODATA, ops.getxattr(number, pyfuse3.XAttrNameT(b"user.x"), CTX))
        await fails(errno.EOPNOTSUPP, ops.getxattr(number, pyfuse3.XAttrNameT(b"system.x"), CTX))
        await fails(errno.EINVAL, ops.setxattr(number, pyfuse3.XAttrNameT(b"user."), b"", CTX))
        await fails(errno.EINVAL, ops.readlink(number, CTX))
        await fails(errno.ENOSYS, ops.flush(FileHandleT(number)))


async def test_a_fault_of_ours_is_eio_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as ops:

        async def broken(number: int) -> None:
            raise ZeroDivisionError("oops")

        with monkeypatch.context() as patch:
            patch.setattr(ops.fs, "getattr", broken)
            await fails(errno.EIO, ops.getattr(ROOT, CTX))
        assert "ZeroDivisionError: oops" in caplog.text
        assert (await ops.getattr(ROOT, CTX)).st_ino == ROOT


async def test_corruption_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as ops:

        async def damaged(number: int) -> None:
            raise Corrupted(42, "checksum")

        with monkeypatch.context() as patch:
            patch.setattr(ops.fs, "getattr", damaged)
            for _ in range(5):
                await fails(errno.EUCLEAN, ops.getattr(ROOT, CTX))
        lines = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert [record.getMessage() for record in lines] == [
            "operations.getattr: block 42: checksum: run fsck.nvmefs"
        ]


async def test_open_for_writing_after_a_failure_is_refused() -> None:
    namespace = await fresh()
    filesystem = await Filesystem.open(namespace.device(), Options())
    ops = Operations(filesystem)
    number = InodeT(await make(ops))
    filesystem.journal.fail("the drive is gone")
    await fails(errno.EROFS, ops.open(number, pyfuse3.FlagT(os.O_WRONLY), CTX))
    await ops.open(number, pyfuse3.FlagT(os.O_RDONLY), CTX)
    await fails(errno.EROFS, make(ops, b"g"))
    assert (await ops.getattr(number, CTX)).st_ino == number


async def test_umask_is_overridden_by_a_default_list() -> None:
    """Whether the kernel has applied it already or leaves it to us."""
    masked = cast(pyfuse3.RequestContext, Context(umask=0o027))
    async with serving() as ops:
        _, entry = await ops.create(
            ROOT, FileNameT(b"f"), ModeT(0o100666), pyfuse3.FlagT(1), masked
        )
        assert stat.S_IMODE(entry.st_mode) == 0o640
        directory = await ops.mkdir(ROOT, FileNameT(b"d"), ModeT(0o40777), masked)
        assert stat.S_IMODE(directory.st_mode) == 0o750
        default = bytes.fromhex("02000000 0100070000000000 0400070000000000 2000050000000000")
        for at in (8, 16, 24):
            default = default[:at] + b"\xff\xff\xff\xff" + default[at + 4 :]
        name = pyfuse3.XAttrNameT(b"system.posix_acl_default")
        await ops.setxattr(InodeT(directory.st_ino), name, default, CTX)
        inside = InodeT(directory.st_ino)
        _, entry = await ops.create(
            inside, FileNameT(b"f"), ModeT(0o100666), pyfuse3.FlagT(1), masked
        )
        assert stat.S_IMODE(entry.st_mode) == 0o664
        fifo = await ops.mknod(inside, FileNameT(b"p"), ModeT(stat.S_IFIFO | 0o666), 0, masked)
        assert stat.S_IMODE(fifo.st_mode) == 0o664


async def test_each_request_has_its_number() -> None:
    async with serving() as ops:
        number = InodeT(await make(ops))
        with trace.collected() as hops:
            await ops.getattr(number, CTX)
            await ops.write(FileHandleT(number), 3, b"abc")
        assert [(hop.request, hop.name) for hop in hops] == [
            (1, "operations.getattr"),
            (2, "operations.write"),
            (2, "file.write"),
        ]
        assert hops[1].values == {"fh": number, "off": 3, "bytes": 3}
