"""-o discard: a block is discarded after the transaction that frees it has committed, and never before."""

from __future__ import annotations

from mkfs.check.run import check
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE
from tests.crash.drive import moments
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

DATA = b"kept until committed" * (30 * BLOCK_BYTES // 20)
DISCARD = Options(discard=True)


def discarded(namespace: RamNamespace) -> int:
    """Blocks that the drive was told to forget."""
    assert namespace.log is not None
    return sum(
        len(event.command.data)
        for event in namespace.log
        if event.ended and event.command.kind == "discard"
    )


async def make(filesystem: Filesystem, name: bytes) -> int:
    inode = await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)
    await filesystem.write(inode.number, 0, DATA)
    await filesystem.fsync(inode.number)
    return inode.number


async def remove(filesystem: Filesystem, name: bytes) -> None:
    inode = await filesystem.unlink(ROOT_INODE, name)
    await filesystem.reap(inode.number)


async def test_only_when_committed() -> None:
    namespace = await fresh()
    namespace.log = []
    async with mounted(namespace, DISCARD) as filesystem:
        await make(filesystem, b"file")
        await remove(filesystem, b"file")
        assert discarded(namespace) == 0
        await filesystem.sync()
        assert discarded(namespace) >= len(DATA) // BLOCK_BYTES


async def test_no_crash_finds_a_file_whose_blocks_are_gone() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        await make(filesystem, b"first")
        await make(filesystem, b"second")
    before = dict(namespace.blocks)
    namespace.log = []
    async with mounted(namespace, DISCARD) as filesystem:
        await remove(filesystem, b"first")
        await filesystem.sync()
        await make(filesystem, b"third")
        await remove(filesystem, b"second")
        await filesystem.sync()
    assert discarded(namespace)
    seen = set()
    for moment in moments(before, namespace.log):
        for subset in range(3 if moment.pending else 1):
            image = RamNamespace(namespace.block_count, moment.image(subset))
            report = await check(image.device())
            assert report.findings.lines() == [], f"step {moment.step}, subset {subset}"
            async with mounted(image) as filesystem:
                names = {entry.name for _, entry in await filesystem.readdir(ROOT_INODE, 0, 9)}
                for name in names:
                    inode = await filesystem.lookup(ROOT_INODE, name)
                    assert inode is not None
                    data = await filesystem.read(inode.number, 0, len(DATA))
                    assert data == DATA[: inode.size_bytes], f"{name!r}, step {moment.step}"
                seen.add(frozenset(names))
    assert frozenset((b"first", b"second")) in seen
    assert frozenset((b"third",)) in seen
