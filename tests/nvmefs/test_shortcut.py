"""Requests as the kernel writes them, answered without pyfuse3: the same answers, byte for byte."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pyfuse3
import pytest

from nvmefs.layout import ROOT_INODE
from nvmefs.operations import Operations
from nvmefs.shortcut import Shortcut
from nvmefs.wire import Request
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, OPEN, GETXATTR, CREATE, BATCH_FORGET = (
    1, 2, 3, 4, 10, 14, 22, 35, 42,
)  # fmt: skip
READLINK, SYMLINK, MKDIR, RMDIR, RENAME, LINK, READ, WRITE, FSYNC, OPENDIR, READDIR = (
    5, 6, 9, 11, 12, 13, 15, 16, 20, 27, 28,
)  # fmt: skip
SETXATTR, READDIRPLUS, RENAME2 = 21, 44, 45


def message(opcode: int, inode: int, body: bytes, uid: int = 0) -> Request:
    """struct fuse_in_header and a body."""
    header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 77, inode, uid, 0, 1, 0, 0)
    return Request.of(header + body)


def create(name: bytes, mode: int = 0o100666, umask: int = 0o022) -> Request:
    flags = os.O_RDWR | os.O_CREAT
    return message(CREATE, ROOT_INODE, struct.pack("<IIII", flags, mode, umask, 0) + name + b"\0")


def opened(reply: bytes) -> tuple[int, bytes]:
    """(errno, body) of a reply."""
    length, code, unique = struct.unpack_from("<IiQ", reply)
    assert (length, unique) == (len(reply), 77)
    return -code, reply[16:]


@asynccontextmanager
async def shortcut(namespace: RamNamespace | None = None) -> AsyncIterator[Shortcut]:
    async with mounted(namespace or await fresh()) as filesystem:
        yield Shortcut(Operations(filesystem))


async def test_create_lookup_and_getattr_agree() -> None:
    async with shortcut() as cut:
        code, body = opened(await cut.answer(create(b"name")))
        assert code == 0
        assert len(body) == 40 + 88 + 16  # fuse_entry_out, fuse_open_out
        inode, attr = int.from_bytes(body[:8], "little"), body[40:128]
        assert struct.unpack_from("<I", attr, 60)[0] == stat.S_IFREG | 0o644
        assert opened(await cut.answer(message(LOOKUP, ROOT_INODE, b"name\0")))[1][40:] == attr
        assert opened(await cut.answer(message(GETATTR, inode, bytes(16))))[1][16:] == attr
        assert cut.operations.lookups[inode] == 2
        assert await cut.answer(message(FORGET, inode, struct.pack("<Q", 1))) == b""
        batch = struct.pack("<IIQQ", 1, 0, inode, 1)
        assert await cut.answer(message(BATCH_FORGET, 0, batch)) == b""
        assert inode not in cut.operations.lookups


async def test_absent_name_is_an_answer_and_not_an_error() -> None:
    async with shortcut() as cut:
        code, body = opened(await cut.answer(message(LOOKUP, ROOT_INODE, b"absent\0")))
        assert code == 0
        assert struct.unpack_from("<QQQ", body)[0] == 0
        assert struct.unpack_from("<QQQ", body)[2] > 86400


async def test_errors_become_an_errno() -> None:
    async with shortcut() as cut:
        assert opened(await cut.answer(create(b"n" * 256)))[0] == errno.ENAMETOOLONG
        assert opened(await cut.answer(message(UNLINK, ROOT_INODE, b"none\0")))[0] == errno.ENOENT
        ask = message(GETXATTR, ROOT_INODE, struct.pack("<II", 64, 0) + b"user.none\0")
        assert opened(await cut.answer(ask))[0] == errno.ENODATA


async def test_getxattr_sizes() -> None:
    async with shortcut() as cut:
        await cut.operations.fs.setxattr(ROOT_INODE, b"user.a", b"12345")
        for size, code, body in (
            (0, 0, struct.pack("<II", 5, 0)),
            (5, 0, b"12345"),
            (4, errno.ERANGE, b""),
        ):
            ask = message(GETXATTR, ROOT_INODE, struct.pack("<II", size, 0) + b"user.a\0")
            assert opened(await cut.answer(ask)) == (code, body)


@pytest.mark.parametrize("seconds", [-5, 0, 2**33])
async def test_setattr_times(seconds: int) -> None:
    async with shortcut() as cut:
        inode = int.from_bytes(opened(await cut.answer(create(b"f")))[1][:8], "little")
        times = (seconds, seconds, 9, 1, 2, 3)
        body = struct.pack("<IIQQQqqqIIIIIIII", 16 | 32 | 1024, *(0,) * 4, *times, *(0,) * 5)
        attr = opened(await cut.answer(message(SETATTR, inode, body)))[1][16:]
        assert struct.unpack_from("<qqqIII", attr, 24) == (seconds, seconds, 9, 1, 2, 3)


async def test_truncation_by_setattr_and_by_open() -> None:
    async with shortcut() as cut:
        inode = int.from_bytes(opened(await cut.answer(create(b"f")))[1][:8], "little")
        await cut.operations.fs.write(inode, 0, bytes(9000))
        truncate = struct.pack("<IIQQQqqqIIIIIIII", 8, 0, 0, 10, 0, *(0,) * 11)
        trunc_open = message(OPEN, inode, struct.pack("<II", os.O_WRONLY | os.O_TRUNC, 0))
        assert opened(await cut.answer(message(SETATTR, inode, truncate)))[0] == 0
        assert (await cut.operations.fs.getattr(inode)).size_bytes == 10
        assert opened(await cut.answer(trunc_open))[0] == 0
        assert (await cut.operations.fs.getattr(inode)).size_bytes == 0


async def test_a_file_that_is_forgotten_after_its_last_name_is_deleted() -> None:
    async with shortcut() as cut:
        fs = cut.operations.fs
        inode = await made(cut, create(b"f"))
        await fs.write(inode, 0, bytes(1 << 20))
        assert opened(await cut.answer(message(UNLINK, ROOT_INODE, b"f\0")))[0] == 0
        assert (await fs.getattr(inode)).nlink == 0
        assert await cut.answer(message(FORGET, inode, struct.pack("<Q", 1))) == b""
        assert inode not in fs.inodes.known
        assert fs.state.inode_count == 1


def number_in(entry: bytes) -> int:
    """The inode's number in a struct fuse_entry_out."""
    return int.from_bytes(entry[:8], "little")


async def made(cut: Shortcut, request: Request) -> int:
    """The number of what the request makes."""
    code, body = opened(await cut.answer(request))
    assert code == 0
    return number_in(body)


async def many(cut: Shortcut, count: int) -> dict[bytes, int]:
    """Files by name: more than one transaction may hold."""
    numbers = {}
    for i in range(count):
        code, body = opened(await cut.answer(create(b"file%03d" % i)))
        assert code == 0
        numbers[b"file%03d" % i] = number_in(body)
    return numbers


def transfer(opcode: int, inode: int, offset: int, size: int, data: bytes = b"") -> Request:
    return message(opcode, inode, struct.pack("<QQIIQII", inode, offset, size, 0, 0, 0, 0) + data)


async def test_small_files_are_read_and_written() -> None:
    async with shortcut() as cut:
        inode = await made(cut, create(b"f"))
        code, body = opened(await cut.answer(transfer(WRITE, inode, 0, 5, b"hello")))
        assert (code, body) == (0, struct.pack("<II", 5, 0))
        assert opened(await cut.answer(transfer(WRITE, inode, 7, 2, b"!!")))[0] == 0
        assert opened(await cut.answer(transfer(READ, inode, 1, 4096))) == (0, b"ello\0\0!!")
        assert opened(await cut.answer(transfer(READ, inode, 9, 4096))) == (0, b"")


async def test_data_in_blocks_is_read_written_and_synced() -> None:
    data = os.urandom(70000)
    async with shortcut() as cut:
        inode = await made(cut, create(b"f"))
        assert opened(await cut.answer(transfer(WRITE, inode, 0, 5, b"hello")))[0] == 0
        for offset, part in ((3, data[:901]), (904, data[901:])):
            request = transfer(WRITE, inode, offset, len(part), part)
            assert opened(await cut.answer(request)) == (0, struct.pack("<II", len(part), 0))
        read = transfer(READ, inode, 0, 131072)
        assert opened(await cut.answer(read)) == (0, b"hel" + data)
        sync = message(FSYNC, inode, struct.pack("<QII", inode, 1, 0))
        assert opened(await cut.answer(sync)) == (0, b"")


async def test_a_file_that_is_all_hole_gets_a_block() -> None:
    async with shortcut() as cut:
        inode = await made(cut, create(b"f"))
        truncate = struct.pack("<IIQQQqqqIIIIIIII", 8, 0, 0, 10000, 0, *(0,) * 11)
        assert opened(await cut.answer(message(SETATTR, inode, truncate)))[0] == 0
        request = transfer(WRITE, inode, 3, 4, b"data")
        assert opened(await cut.answer(request))[0] == 0
        assert (await cut.operations.fs.getattr(inode)).blocks == 1


async def test_a_write_that_brings_less_than_it_says() -> None:
    async with shortcut() as cut:
        inode = await made(cut, create(b"f"))
        assert opened(await cut.answer(transfer(WRITE, inode, 0, 6, b"hello")))[0] == errno.EINVAL


async def test_a_write_that_takes_set_user_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE_WRITE_KILL_SUIDGID: the kernel says that the writer must not leave the bits there."""
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda number, attr_only: None)
    async with shortcut() as cut:
        inode = await cut.operations.fs.create(ROOT_INODE, b"f", stat.S_IFREG | 0o6111, 0, 0)
        body = struct.pack("<QQIIQII", inode.number, 3, 4, 4, 0, 0, 0) + b"data"
        request = message(WRITE, inode.number, body, uid=7)
        assert opened(await cut.answer(request)) == (0, struct.pack("<II", 4, 0))
        assert inode.mode == stat.S_IFREG | 0o111
        assert await cut.operations.fs.read(inode.number, 0, 10) == b"\0\0\0data"


def setxattr(inode: int, name: bytes, value: bytes, flags: int, size: int | None = None) -> Request:
    length = len(value) if size is None else size
    return message(SETXATTR, inode, struct.pack("<II", length, flags) + name + b"\0" + value)


@pytest.mark.parametrize(
    ("flags", "absent", "present"),
    [
        (0, 0, 0),
        (os.XATTR_CREATE, 0, errno.EEXIST),
        (os.XATTR_REPLACE, errno.ENODATA, 0),
        (os.XATTR_CREATE | os.XATTR_REPLACE, errno.ENODATA, errno.EEXIST),
    ],
)
async def test_setting_attributes_with_flags(flags: int, absent: int, present: int) -> None:
    async with shortcut() as cut:
        inode = await made(cut, create(b"f"))
        assert opened(await cut.answer(setxattr(inode, b"user.a", b"\0\0v", flags))) == (
            absent,
            b"",
        )
        found = await cut.operations.fs.getxattr(inode, b"user.a")
        assert found == (None if absent else b"\0\0v")
        await cut.operations.fs.setxattr(inode, b"user.b", b"before")
        assert opened(await cut.answer(setxattr(inode, b"user.b", b"", flags))) == (present, b"")
        assert await cut.operations.fs.getxattr(inode, b"user.b") == (b"before" if present else b"")


async def test_attributes_that_are_not_kept_or_not_whole() -> None:
    async with shortcut() as cut:
        inode = await made(cut, create(b"f"))
        for request, code in (
            (setxattr(inode, b"other.a", b"v", os.XATTR_REPLACE), errno.EOPNOTSUPP),
            (setxattr(inode, b"user.", b"v", 0), errno.EINVAL),
            (setxattr(inode, b"user.a", b"v", 0, size=2), errno.EINVAL),
            (message(SETXATTR, inode, struct.pack("<II", 0, 0) + b"user.a"), errno.EINVAL),
            (message(SETXATTR, inode, b"1234"), errno.EINVAL),
        ):
            assert opened(await cut.answer(request))[0] == code
        assert await cut.operations.fs.listxattr(inode) == []


async def test_names_of_all_kinds() -> None:
    async with shortcut() as cut:
        directory = await made(
            cut, message(MKDIR, ROOT_INODE, struct.pack("<II", 0o777, 0o22) + b"d\0")
        )
        link = await made(cut, message(SYMLINK, ROOT_INODE, b"l\0to/where\0"))
        assert opened(await cut.answer(message(READLINK, link, b""))) == (0, b"to/where")
        file = await made(cut, create(b"f"))
        linked = message(LINK, directory, struct.pack("<Q", file) + b"g\0")
        assert await made(cut, linked) == file
        full = message(RMDIR, ROOT_INODE, b"d\0")
        assert opened(await cut.answer(full))[0] == errno.ENOTEMPTY
        move = message(RENAME, directory, struct.pack("<Q", ROOT_INODE) + b"g\0h\0")
        assert opened(await cut.answer(move)) == (0, b"")
        taken = struct.pack("<QII", ROOT_INODE, 1, 0)  # RENAME_NOREPLACE
        refused = message(RENAME2, ROOT_INODE, taken + b"h\0l\0")
        assert opened(await cut.answer(refused))[0] == errno.EEXIST
        assert opened(await cut.answer(full)) == (0, b"")


def listed(body: bytes, *, plus: bool) -> list[tuple[bytes, int, int, int]]:
    """(name, inode, type, cookie) of each entry of a listing."""
    found = []
    while body:
        entry, body = (body[:128], body[128:]) if plus else (b"", body)
        number, cookie, length, type_ = struct.unpack_from("<QQII", body)
        assert not plus or number_in(entry) == number
        found.append((body[24 : 24 + length], number, type_, cookie))
        body = body[24 + -(-length // 8) * 8 :]
    return found


@pytest.mark.parametrize("plus", [False, True])
async def test_listing_in_pieces(plus: bool) -> None:
    async with shortcut() as cut:
        numbers = await many(cut, 300)
        before = dict(cut.operations.lookups)
        found: list[tuple[bytes, int, int, int]] = []
        opcode = READDIRPLUS if plus else READDIR
        while True:
            after = found[-1][3] if found else 0
            code, body = opened(await cut.answer(transfer(opcode, ROOT_INODE, after, 4096)))
            assert code == 0
            assert len(body) <= 4096
            if not body:
                break
            found += listed(body, plus=plus)
        assert [(name, number) for name, number, _, _ in found[:2]] == [(b".", 1), (b"..", 1)]
        assert {name: number for name, number, _, _ in found[2:]} == numbers
        assert len(found) == 302
        assert {type_ for _, _, type_, _ in found[2:]} == {stat.S_IFREG >> 12}
        after_counts = {n: c + plus for n, c in before.items()}
        assert cut.operations.lookups == after_counts


async def test_a_listing_uses_its_buffer() -> None:
    async with shortcut() as cut:
        await many(cut, 300)
        for opcode, each in ((READDIR, 32), (READDIRPLUS, 160)):
            _, body = opened(await cut.answer(transfer(opcode, ROOT_INODE, 0, 4096)))
            assert len(body) > 4096 - each


async def test_requests_that_are_cut_short() -> None:
    async with shortcut() as cut:
        for opcode in (LOOKUP, UNLINK, RENAME, SYMLINK, READDIR, READ, WRITE, SETATTR, CREATE):
            assert opened(await cut.answer(message(opcode, ROOT_INODE, b"abc")))[0] == errno.EINVAL
