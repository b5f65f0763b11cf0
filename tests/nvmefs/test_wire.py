"""Requests as the kernel writes them, answered without pyfuse3: the same answers, byte for byte."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs.layout import ROOT_INODE
from nvmefs.operations import Operations
from nvmefs.wire import Shortcut
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, OPEN, GETXATTR, CREATE, BATCH_FORGET = (
    1, 2, 3, 4, 10, 14, 22, 35, 42,
)  # fmt: skip


def message(opcode: int, inode: int, body: bytes, uid: int = 0) -> bytes:
    """struct fuse_in_header and a body."""
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 77, inode, uid, 0, 1, 0, 0) + body


def create(name: bytes, mode: int = 0o100666, umask: int = 0o022) -> bytes:
    flags = os.O_RDWR | os.O_CREAT
    return message(CREATE, ROOT_INODE, struct.pack("<IIII", flags, mode, umask, 0) + name + b"\0")


def opened(reply: bytes | None) -> tuple[int, bytes]:
    """(errno, body) of a reply."""
    assert reply is not None
    length, code, unique = struct.unpack_from("<IiQ", reply)
    assert (length, unique) == (len(reply), 77)
    return -code, reply[16:]


@asynccontextmanager
async def shortcut(namespace: RamNamespace | None = None) -> AsyncIterator[Shortcut]:
    async with mounted(namespace or await fresh()) as filesystem:
        yield Shortcut(Operations(filesystem))


async def test_create_lookup_and_getattr_agree() -> None:
    async with shortcut() as cut:
        code, body = opened(cut.try_answer(create(b"name")))
        assert code == 0
        assert len(body) == 40 + 88 + 16  # fuse_entry_out, fuse_open_out
        inode, attr = int.from_bytes(body[:8], "little"), body[40:128]
        assert struct.unpack_from("<I", attr, 60)[0] == stat.S_IFREG | 0o644
        assert opened(cut.try_answer(message(LOOKUP, ROOT_INODE, b"name\0")))[1][40:] == attr
        assert opened(cut.try_answer(message(GETATTR, inode, bytes(16))))[1][16:] == attr
        assert cut.operations.lookups[inode] == 2
        assert cut.try_answer(message(FORGET, inode, struct.pack("<Q", 1))) == b""
        batch = struct.pack("<IIQQ", 1, 0, inode, 1)
        assert cut.try_answer(message(BATCH_FORGET, 0, batch)) == b""
        assert inode not in cut.operations.lookups


async def test_absent_name_is_an_answer_and_not_an_error() -> None:
    async with shortcut() as cut:
        code, body = opened(cut.try_answer(message(LOOKUP, ROOT_INODE, b"absent\0")))
        assert code == 0
        assert struct.unpack_from("<QQQ", body)[0] == 0
        assert struct.unpack_from("<QQQ", body)[2] > 86400


async def test_errors_become_an_errno() -> None:
    async with shortcut() as cut:
        assert opened(cut.try_answer(create(b"n" * 256)))[0] == errno.ENAMETOOLONG
        assert opened(cut.try_answer(message(UNLINK, ROOT_INODE, b"none\0")))[0] == errno.ENOENT
        ask = message(GETXATTR, ROOT_INODE, struct.pack("<II", 64, 0) + b"user.none\0")
        assert opened(cut.try_answer(ask))[0] == errno.ENODATA


async def test_getxattr_sizes() -> None:
    async with shortcut() as cut:
        await cut.operations.fs.setxattr(ROOT_INODE, b"user.a", b"12345")
        for size, code, body in (
            (0, 0, struct.pack("<II", 5, 0)),
            (5, 0, b"12345"),
            (4, errno.ERANGE, b""),
        ):
            ask = message(GETXATTR, ROOT_INODE, struct.pack("<II", size, 0) + b"user.a\0")
            assert opened(cut.try_answer(ask)) == (code, body)


@pytest.mark.parametrize("seconds", [-5, 0, 2**33])
async def test_setattr_times(seconds: int) -> None:
    async with shortcut() as cut:
        inode = int.from_bytes(opened(cut.try_answer(create(b"f")))[1][:8], "little")
        body = struct.pack(
            "<IIQQQqqqIIIIIIII",
            16 | 32 | 1024,
            0,
            0,
            0,
            0,
            seconds,
            seconds,
            9,
            1,
            2,
            3,
            0,
            0,
            0,
            0,
            0,
        )
        attr = opened(cut.try_answer(message(SETATTR, inode, body)))[1][16:]
        assert struct.unpack_from("<qqqIII", attr, 24) == (seconds, seconds, 9, 1, 2, 3)


async def test_what_moves_data_is_left_to_a_task() -> None:
    async with shortcut() as cut:
        inode = int.from_bytes(opened(cut.try_answer(create(b"f")))[1][:8], "little")
        await cut.operations.fs.write(inode, 0, bytes(9000))
        truncate = struct.pack("<IIQQQqqqIIIIIIII", 8, 0, 0, 10, 0, *(0,) * 11)
        assert cut.try_answer(message(SETATTR, inode, truncate)) is None
        trunc_open = message(OPEN, inode, struct.pack("<II", os.O_WRONLY | os.O_TRUNC, 0))
        assert cut.try_answer(trunc_open) is None
        assert opened(await cut.answer(message(SETATTR, inode, truncate)))[0] == 0
        assert (await cut.operations.fs.getattr(inode)).size_bytes == 10
        assert opened(await cut.answer(trunc_open))[0] == 0
        assert (await cut.operations.fs.getattr(inode)).size_bytes == 0


async def test_a_cold_request_changes_nothing_until_it_may_wait() -> None:
    namespace = await fresh()
    async with shortcut(namespace) as cut:
        opened(cut.try_answer(create(b"f")))
    async with shortcut(namespace) as cut:
        cache = cut.operations.fs.cache
        cache.blocks.clear()
        before = cut.operations.fs.state.next_inode
        assert cut.try_answer(create(b"g")) is None
        assert cut.operations.fs.state.next_inode == before
        assert opened(await cut.answer(create(b"g")))[0] == 0
        assert opened(cut.try_answer(create(b"h")))[0] == 0


async def test_a_file_that_is_forgotten_after_its_last_name_is_deleted_in_the_background() -> None:
    async with shortcut() as cut:
        fs = cut.operations.fs
        inode = int.from_bytes(opened(cut.try_answer(create(b"f")))[1][:8], "little")
        await fs.write(inode, 0, bytes(1 << 20))
        assert opened(cut.try_answer(message(UNLINK, ROOT_INODE, b"f\0")))[0] == 0
        assert (await fs.getattr(inode)).nlink == 0
        assert cut.try_answer(message(FORGET, inode, struct.pack("<Q", 1))) == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut.operations.run)
            with trio.fail_after(5):
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert inode not in fs.inodes.known
        assert fs.state.inode_count == 1
