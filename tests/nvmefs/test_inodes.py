"""Inodes in memory: few of them, and never two objects for one."""

from __future__ import annotations

from nvmefs.layout import ROOT_INODE
from tests.support.checker import check
from tests.support.images import fresh, mounted

DIRECTORY, FILE = 0o040755, 0o100644


async def test_many_more_inodes_than_fit_lose_no_change() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        filesystem.inodes.capacity = filesystem.inodes.trim_at = 4
        parents = [
            (await filesystem.create(ROOT_INODE, b"d%d" % index, DIRECTORY, 0, 0)).number
            for index in range(12)
        ]
        for turn in range(8):
            for parent in parents:
                await filesystem.create(parent, b"f%d" % turn, FILE, 0, 0)
            await filesystem.sync()
        for parent in parents:
            assert (await filesystem.getattr(parent)).entries == 8
        assert len(filesystem.inodes.known) <= 6
    assert check(namespace.blocks) == []
