"""Small filesystems in memory, made once by mkfs's own functions and copied for each test.

namespace = fresh(4096)                       an empty filesystem of 16 MiB
async with mounted(namespace) as filesystem: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

from mkfs.geometry import Wishes, calculate, make_identity
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import (
    BLOCK_BYTES,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    MIN_BLOCKS,
    MIN_JOURNAL_BLOCKS,
    SUPERBLOCK,
    JournalSuper,
    Superblock,
)
from tests.support.ram import RamNamespace

_made: dict[object, RamNamespace] = {}


async def fresh(
    block_count: int = MIN_BLOCKS,
    *,
    journal_blocks: int = MIN_JOURNAL_BLOCKS,
    lba_bytes: int = 512,
    volatile_write_cache: bool = True,
    **others: Any,
) -> RamNamespace:
    """An empty filesystem. All its random numbers come from a fixed seed. `others` are mkfs's Wishes."""
    kind = (block_count, journal_blocks, lba_bytes, *sorted(others.items()))
    if kind not in _made:
        namespace = RamNamespace(block_count, lba_bytes=lba_bytes)
        wishes = Wishes(journal_bytes=journal_blocks * BLOCK_BYTES, lba_bytes=lba_bytes, **others)
        plan = calculate(block_count, wishes, make_identity(None, "tests"))
        await write_filesystem(
            namespace.device(), plan, RootDirectory(), fresh=True, discard=False, note=print
        )
        _made[kind] = namespace
    copy = _made[kind].copy()
    copy.volatile_write_cache = volatile_write_cache
    return copy


@asynccontextmanager
async def mounted(
    namespace: RamNamespace, options: Options | None = None
) -> AsyncIterator[Filesystem]:
    """The filesystem on `namespace`, closed in order at the end unless the body raises."""
    filesystem = await Filesystem.open(namespace.device(), options or Options())
    yield filesystem
    await filesystem.close()


def move_journal_head(namespace: RamNamespace, position: int) -> None:
    """Of a filesystem at rest: the next record goes to that position of the journal."""
    superblock = Superblock.decode(namespace.blocks[SUPERBLOCK], SUPERBLOCK)
    for place in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        old = JournalSuper.decode(namespace.blocks[place], place, superblock)
        moved = JournalSuper(old.generation, old.tail_seq, position, old.epoch)
        namespace.blocks[place] = bytes(moved.encode(superblock)[1])


LEAST_BLOCKS = 192  # most of that is the journal and the reserve: every block is soon used again
LEAST_CACHE_BLOCKS = 12
TINY_BLOCKS = 512
TINY_JOURNAL_BLOCKS = 64


@contextmanager
def tiny_allowed() -> Iterator[None]:
    """Filesystems below the format's minimum may be made and mounted: so small that every block, in the
    journal and outside, is soon used again; and caches so small that even their blocks are evicted.
    """
    with (
        mock.patch("nvmefs.layout.superblock.MIN_BLOCKS", LEAST_BLOCKS),
        mock.patch("nvmefs.layout.superblock.MIN_JOURNAL_BLOCKS", TINY_JOURNAL_BLOCKS),
        mock.patch("mkfs.geometry.MIN_BLOCKS", LEAST_BLOCKS),
        mock.patch("mkfs.geometry.MIN_JOURNAL_BLOCKS", TINY_JOURNAL_BLOCKS),
        mock.patch("nvmefs.cache.MIN_CAPACITY_BLOCKS", LEAST_CACHE_BLOCKS),
    ):
        yield
