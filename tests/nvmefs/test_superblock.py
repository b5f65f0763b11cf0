"""Which devices are mounted, from which copy, and what is said of the others."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from nvmefs.errors import MountRefused
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, SUPERBLOCK, SUPERBLOCK_COPY, Superblock
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

BLOCKS = 40000


async def mount(namespace: RamNamespace, *, read_only: bool = False) -> Filesystem:
    return await Filesystem.open(namespace.device(), Options(read_only=read_only))


def decoded(namespace: RamNamespace) -> Superblock:
    return Superblock.decode(namespace.blocks[SUPERBLOCK], SUPERBLOCK)


def spoil(namespace: RamNamespace, place: int) -> None:
    data = bytearray(namespace.blocks[place])
    data[100] ^= 1
    namespace.blocks[place] = bytes(data)


@pytest.mark.parametrize("bad", [[SUPERBLOCK], [SUPERBLOCK, SUPERBLOCK_COPY]])
async def test_a_copy_serves(bad: list[int], caplog: pytest.LogCaptureFixture) -> None:
    namespace = await fresh(BLOCKS)
    for place in bad:
        spoil(namespace, place)
    async with mounted(namespace):
        assert "using the superblock copy" in caplog.text
        assert "checksum" in caplog.text


async def test_all_copies_bad() -> None:
    namespace = await fresh(BLOCKS)
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, BLOCKS - 1):
        spoil(namespace, place)
    with pytest.raises(MountRefused, match=r"no superblock is valid .* run fsck\.nvmefs"):
        await mount(namespace)


async def test_not_a_filesystem() -> None:
    for blocks in (1, 16, 17, 4096):
        with pytest.raises(MountRefused, match=r"holds no nvmefs|too few"):
            await mount(RamNamespace(blocks))
    namespace = RamNamespace(4096, {n: bytes([n % 256]) * BLOCK_BYTES for n in range(4096)})
    with pytest.raises(MountRefused, match="holds no nvmefs"):
        await mount(namespace)


@pytest.mark.parametrize("left", [17, 30, 2000, BLOCKS - 1])
async def test_a_truncated_device(left: int) -> None:
    namespace = await fresh(BLOCKS)
    blocks = {number: data for number, data in namespace.blocks.items() if number < left}
    with pytest.raises(MountRefused, match=f"{BLOCKS} blocks.*only {left}"):
        await mount(RamNamespace(left, blocks))


async def test_a_larger_device_is_no_harm() -> None:
    namespace = await fresh(BLOCKS)
    async with mounted(RamNamespace(BLOCKS + 5000, namespace.blocks)) as filesystem:
        assert filesystem.superblock.block_count == BLOCKS


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"block_count": 2**48 + 1}, "block count"),
        ({"block_count": 100}, "block count"),
        ({"journal_start": 22}, "journal start"),
        ({"journal_blocks": 3}, "journal size"),
        ({"journal_blocks": 2**31}, "journal size"),
        ({"lba_bytes": 520}, "LBA size"),
        ({"root_inode": 2}, "root inode"),
        ({"reserved_blocks": BLOCKS}, "reserved"),
        ({"on_error": 2}, "errors policy"),
        ({"incompat": 1, "journal_blocks": BLOCKS // 2 + 1}, "journal size"),
    ],
)
async def test_impossible_fields(changes: dict[str, int], what: str) -> None:
    namespace = await fresh(BLOCKS)
    bad = replace(decoded(namespace), **changes)  # type: ignore[arg-type]
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, BLOCKS - 1):
        namespace.blocks[place] = bytes(bad.encode(place))
    with pytest.raises(MountRefused, match=re.escape(f"impossible {what}")):
        await mount(namespace)


async def test_unknown_features() -> None:
    for name, writable, readable in (
        ("compat", True, True), ("ro_compat", False, True), ("incompat", False, False),
    ):  # fmt: skip
        namespace = await fresh(BLOCKS)
        changed = decoded(namespace)
        setattr(changed, name, 1 << 40)
        namespace.blocks[SUPERBLOCK] = bytes(changed.encode(SUPERBLOCK))
        for read_only, allowed in ((True, readable), (False, writable)):
            if allowed:
                await mount(namespace.copy(), read_only=read_only)
            else:
                with pytest.raises(MountRefused, match=rf"{name} feature bits \[40\]"):
                    await mount(namespace.copy(), read_only=read_only)


async def test_unknown_log_features_matter_while_the_journal_holds_something() -> None:
    namespace = await fresh(BLOCKS)
    changed = replace(decoded(namespace), incompat_log=2)
    namespace.blocks[SUPERBLOCK] = bytes(changed.encode(SUPERBLOCK))
    crashed = namespace.copy()
    filesystem = await mount(crashed)
    await filesystem.create(1, b"file", 0o100644, 0, 0)
    await filesystem.sync()
    with pytest.raises(MountRefused, match="journal uses unknown features"):
        await mount(crashed.copy())


@pytest.mark.parametrize("lba_bytes", [512, 4096])
async def test_both_lba_sizes(lba_bytes: int) -> None:
    namespace = await fresh(lba_bytes=lba_bytes)
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(1, b"file", 0o100644, 0, 0)
        await filesystem.write(inode.number, 0, b"x" * 10000)
    other = 4608 - lba_bytes
    async with mounted(RamNamespace(4096, namespace.blocks, lba_bytes=other)) as filesystem:
        assert await filesystem.read(inode.number, 0, 20000) == b"x" * 10000
