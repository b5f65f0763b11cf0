"""Extended attributes: every size, replacement, removal, limits, and access lists beside the mode."""

from __future__ import annotations

import errno
import struct

import pytest

from nvmefs import acl
from nvmefs.attributes import AttributeChanges
from nvmefs.errors import FsError
from nvmefs.layout import MAX_XATTR_BYTES, ROOT_INODE
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.model import DIRECTORY, FILE

SIZES = [0, 1, 511, 512, 513, 899, 900, 901, 1800, 65535, MAX_XATTR_BYTES]
NO_ID = 0xFFFFFFFF


def entries(*lines: tuple[int, int, int]) -> bytes:
    """An access list's value from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *line) for line in lines)


FULL = entries((1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 6, NO_ID), (32, 4, NO_ID))
MINIMAL = entries((1, 6, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID))


async def test_every_size_replaces_every_size() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        free = filesystem.statfs().free_blocks
        for old in SIZES:
            for new in SIZES:
                await filesystem.setxattr(inode.number, b"user.a", b"o" * old)
                await filesystem.setxattr(inode.number, b"user.a", b"n" * new)
                assert await filesystem.getxattr(inode.number, b"user.a") == b"n" * new
                assert await filesystem.listxattr(inode.number) == [b"user.a"]
        await filesystem.removexattr(inode.number, b"user.a")
        assert await filesystem.getxattr(inode.number, b"user.a") is None
        assert free - filesystem.statfs().free_blocks <= 2
    assert check(namespace.blocks) == []


async def test_limits() -> None:
    async with mounted(await fresh()) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        name = b"user." + b"n" * 250
        await filesystem.setxattr(inode.number, name, b"v" * 512)
        assert await filesystem.getxattr(inode.number, name) == b"v" * 512
        for bad, value, number in (
            (name + b"n", b"", errno.ERANGE),
            (b"user.x", bytes(MAX_XATTR_BYTES + 1), errno.E2BIG),
        ):
            with pytest.raises(FsError) as caught:
                await filesystem.setxattr(inode.number, bad, value)
            assert caught.value.errno == number
        with pytest.raises(FsError) as caught:
            await filesystem.removexattr(inode.number, b"user.absent")
        assert caught.value.errno == errno.ENODATA


async def test_an_inode_goes_with_all_its_attributes() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        await filesystem.sync()
        free = filesystem.statfs().free_blocks
        for index in range(40):
            await filesystem.setxattr(inode.number, b"user.%d" % index, b"v" * (index * 300))
        await filesystem.unlink(ROOT_INODE, b"file")
        await filesystem.reap(inode.number)
        assert filesystem.statfs().free_blocks >= free - 1
    assert check(namespace.blocks) == []


async def test_an_access_list_and_the_mode_say_the_same() -> None:
    async with mounted(await fresh()) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", 0o104600, 0, 0)
        await filesystem.setxattr(inode.number, acl.ACCESS, FULL)
        assert inode.mode == 0o104764
        await filesystem.setattr(inode.number, AttributeChanges(mode=0o640))
        value = await filesystem.getxattr(inode.number, acl.ACCESS)
        assert value is not None
        assert [entry.permissions for entry in acl.decode(value)] == [6, 6, 5, 4, 0]
        await filesystem.setxattr(inode.number, acl.ACCESS, MINIMAL)
        assert inode.mode & 0o777 == 0o640
        assert await filesystem.listxattr(inode.number) == []


async def test_default_lists_are_handed_down() -> None:
    async with mounted(await fresh()) as filesystem:
        top = await filesystem.create(ROOT_INODE, b"top", DIRECTORY, 0, 0)
        await filesystem.setxattr(top.number, acl.DEFAULT, FULL)
        below = await filesystem.create(top.number, b"below", DIRECTORY, 0, 0)
        assert await filesystem.getxattr(below.number, acl.DEFAULT) == FULL
        file = await filesystem.create(below.number, b"file", 0o100666, 0, 0)
        assert file.mode == 0o100664
        assert await filesystem.getxattr(file.number, acl.ACCESS) is not None
        assert await filesystem.getxattr(file.number, acl.DEFAULT) is None
        link = await filesystem.symlink(below.number, b"link", b"target", 0, 0)
        assert await filesystem.listxattr(link.number) == []
        with pytest.raises(FsError) as caught:
            await filesystem.setxattr(file.number, acl.DEFAULT, FULL)
        assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\2\0\0", struct.pack("<I", 1), entries((1, 7, NO_ID)),
        entries((4, 7, NO_ID), (1, 7, NO_ID), (32, 7, NO_ID)),
        entries((1, 8, NO_ID), (4, 7, NO_ID), (32, 7, NO_ID)),
        entries((1, 7, NO_ID), (2, 7, 5), (4, 7, NO_ID), (32, 7, NO_ID)),
        entries((1, 7, NO_ID), (1, 7, NO_ID), (4, 7, NO_ID), (32, 7, NO_ID)),
        entries((1, 7, NO_ID), (4, 7, NO_ID), (32, 7, NO_ID), (64, 7, NO_ID)),
        entries((1, 7, NO_ID), (4, 7, NO_ID), (16, 7, NO_ID), (16, 7, NO_ID), (32, 7, NO_ID)),
    ],
)  # fmt: skip
async def test_lists_that_break_the_rules(value: bytes) -> None:
    async with mounted(await fresh()) as filesystem:
        with pytest.raises(FsError) as caught:
            await filesystem.setxattr(ROOT_INODE, acl.ACCESS, value)
        assert caught.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)
        assert await filesystem.listxattr(ROOT_INODE) == []


def test_lists_round_trip() -> None:
    for value in (FULL, MINIMAL):
        assert acl.encode(acl.decode(value)) == value
    assert acl.decode(struct.pack("<I", 2)) == []
    assert acl.mode_of(acl.decode(FULL)) == 0o764
    assert acl.is_minimal(acl.decode(MINIMAL))
