"""What a superblock says of the filesystem's use: the errors policy, the space reserved for root."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
from pyfuse3 import FileNameT, XAttrNameT

from mkfs.settings import Reserve
from nvmefs.answers import WITHOUT_RESERVE, has_resource_privilege
from nvmefs.errors import NoSpace
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, STATE_BLOCK, ErrorPolicy, State, StateFlag
from nvmefs.operations import Operations
from nvmefs.shortcut import Changed
from tests.nvmefs.test_operations import CTX, FILE, ROOT, USER, Context, fails
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

WRITE = pyfuse3.FlagT(os.O_WRONLY)
RESERVED = 500
FEW = 24  # blocks reserved, where metadata is to fill them
FILES = 1500


async def damaged(**wishes: Any) -> RamNamespace:
    """A filesystem of many files, of which one leaf is destroyed: those at its end cannot be looked up."""
    namespace = await fresh(**wishes)
    async with mounted(namespace) as filesystem:
        for number in range(400):
            await filesystem.create(ROOT, b"%03d" % number, FILE, 0, 0)
    state = State.decode(namespace.blocks[STATE_BLOCK], filesystem.superblock)
    nodes = [
        number for number, block in namespace.blocks.items()
        if block[8:10] == b"\6\0" and number != state.roots[0].block
    ]  # fmt: skip
    namespace.blocks[max(nodes)] = b"\xaa" * BLOCK_BYTES
    return namespace


async def meet_the_damage(operations: Operations) -> None:
    met = set()
    for number in range(400):
        try:
            await operations.lookup(ROOT, FileNameT(b"%03d" % number), CTX)
        except pyfuse3.FUSEError as error:
            met.add(error.errno)
    assert met == {errno.EUCLEAN}


def state_of(namespace: RamNamespace, filesystem: Filesystem) -> State:
    return State.decode(namespace.blocks[STATE_BLOCK], filesystem.superblock)


@pytest.mark.parametrize(
    ("stored", "option", "goes_on"),
    [
        (ErrorPolicy.CONTINUE, None, True),
        (ErrorPolicy.REMOUNT_RO, None, False),
        (ErrorPolicy.CONTINUE, ErrorPolicy.REMOUNT_RO, False),
        (ErrorPolicy.REMOUNT_RO, ErrorPolicy.CONTINUE, True),
    ],
)
async def test_corruption_is_recorded_and_the_policy_followed(
    stored: ErrorPolicy, option: ErrorPolicy | None, goes_on: bool
) -> None:
    namespace = await damaged(on_error=stored)
    filesystem = await Filesystem.open(namespace.device(), Options(on_error=option))
    operations = Operations(filesystem)
    await filesystem.setxattr(ROOT, b"user.before", b"kept")
    await meet_the_damage(operations)
    assert filesystem.journal.writable is goes_on
    if not goes_on:
        await fails(errno.EROFS, operations.setxattr(ROOT, b"user.after", b"", CTX))
    await filesystem.close()
    state = state_of(namespace, filesystem)
    assert state.flags & StateFlag.ERRORS
    assert state.first_error.errno == errno.EUCLEAN
    assert bool(state.flags & StateFlag.CLEAN) is goes_on
    again = await Filesystem.open(namespace.device(), Options(read_only=True))
    assert await again.getxattr(ROOT, b"user.before") == b"kept"


async def test_a_read_only_mount_records_nothing() -> None:
    namespace = await damaged()
    before = dict(namespace.blocks)
    filesystem = await Filesystem.open(namespace.device(), Options(read_only=True))
    await meet_the_damage(Operations(filesystem))
    await filesystem.close()
    assert namespace.blocks == before


# --- the reserve --------------------------------------------------------------------------------


@asynccontextmanager
async def reserving(blocks: int = RESERVED) -> AsyncIterator[Operations]:
    namespace = await fresh(reserve=Reserve(size_bytes=blocks * BLOCK_BYTES))
    async with mounted(namespace) as filesystem:
        yield Operations(filesystem)
    assert check(namespace.blocks) == []


async def fill(operations: Operations, name: bytes, who: pyfuse3.RequestContext) -> int:
    """Write until there is no space; how many blocks it took."""
    info, entry = await operations.create(ROOT, FileNameT(name), FILE, WRITE, who)
    at = 0

    async def until_full(step_bytes: int) -> None:
        nonlocal at
        while True:
            at += await operations.write(info.fh, at, bytes(step_bytes))

    for step in (64, 1):
        await fails(errno.ENOSPC, until_full(step * BLOCK_BYTES))
    await operations.release(info.fh)
    return (await operations.getattr(entry.st_ino, who)).st_blocks // 8


async def test_the_last_blocks_are_for_root() -> None:
    async with reserving() as operations:
        usage = operations.fs.statfs()
        metadata = operations.fs.allocator.metadata_reserve_blocks
        assert usage.available_blocks == usage.free_blocks - metadata - RESERVED
        taken = await fill(operations, b"user", USER)
        assert usage.available_blocks - 8 <= taken <= usage.available_blocks
        assert operations.fs.statfs().available_blocks == 0
        await fails(errno.ENOSPC, _mkdirs(operations))
        assert RESERVED - 8 <= await fill(operations, b"root", CTX) <= RESERVED


async def _mkdirs(operations: Operations) -> None:
    """An ordinary user makes directories until the tree would need another block."""
    for number in range(1000):
        name = FileNameT(b"%0200d" % number)
        await operations.mkdir(ROOT, name, pyfuse3.ModeT(0o040755), USER)


Step = Callable[[Operations, int, pyfuse3.RequestContext], Awaitable[object]]


async def _link(operations: Operations, index: int, who: pyfuse3.RequestContext) -> object:
    file = await operations.lookup(ROOT, FileNameT(b"file"), who)
    return await operations.link(file.st_ino, ROOT, FileNameT(b"%0200d" % index), who)


async def _rename(operations: Operations, index: int, who: pyfuse3.RequestContext) -> object:
    """The names grow, and so do their directory's nodes."""
    old, new = FileNameT(b"old%d" % index), FileNameT(b"%0250d" % index)
    await operations.rename(ROOT, old, ROOT, new, pyfuse3.FlagT(0), who)
    return None


async def _setxattr(operations: Operations, index: int, who: pyfuse3.RequestContext) -> object:
    file = await operations.lookup(ROOT, FileNameT(b"file"), who)
    name = XAttrNameT(b"user.%d" % index)
    await operations.setxattr(file.st_ino, name, bytes(800), who)
    return None


async def _write_inline(operations: Operations, index: int, who: pyfuse3.RequestContext) -> object:
    file = await operations.lookup(ROOT, FileNameT(b"old%d" % index), who)
    info = await operations.open(file.st_ino, WRITE, who)
    return await operations.write(info.fh, 0, bytes(800))


async def _extend(operations: Operations, index: int, who: pyfuse3.RequestContext) -> object:
    """What stands in the tree moves into a block."""
    file = await operations.lookup(ROOT, FileNameT(b"old%d" % index), who)
    attributes = pyfuse3.EntryAttributes()
    attributes.st_size = 100_000
    size_alone: Any = Changed(False, False, False, True, False, False, False)
    return await operations.setattr(file.st_ino, attributes, size_alone, None, who)


async def until_full(
    operations: Operations, step: Step, first: int, who: pyfuse3.RequestContext
) -> int:
    """How far one comes until there is no space."""
    for index in range(first, FILES):
        try:
            await step(operations, index, who)
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENOSPC:
                raise
            return index
    raise AssertionError(f"{FILES} steps took no more than there was")


@pytest.mark.parametrize("step", [_link, _rename, _setxattr, _write_inline, _extend])
async def test_every_operation_leaves_the_reserve_alone(step: Step) -> None:
    """An ordinary user comes to its edge and no further, root goes on behind it, and to the end."""
    async with reserving(FEW) as operations:
        fs = operations.fs
        await fs.create(ROOT, b"file", FILE, 0, 0)
        for index in range(FILES):
            number = (await fs.create(ROOT, b"old%d" % index, FILE, 0, 0)).number
            if step is _extend:
                await fs.write(number, 0, b"inline")
        filler = (await fs.create(ROOT, b"filler", FILE, 0, 0)).number
        left = fs.statfs().available_blocks - 4
        await fs.fallocate(filler, 0, 0, left * BLOCK_BYTES)
        reached = await until_full(operations, step, 0, USER)
        usage = fs.statfs()
        metadata = fs.allocator.metadata_reserve_blocks
        assert usage.available_blocks == 0
        assert metadata + FEW - 2 <= usage.free_blocks <= metadata + FEW
        with pytest.raises(pyfuse3.FUSEError, match="No space left"):
            await step(operations, reached, USER)
        await until_full(operations, step, reached, CTX)
        assert metadata - 2 <= fs.statfs().free_blocks <= metadata


async def test_handles_tell_who_may() -> None:
    async with reserving() as operations:
        info, entry = await operations.create(ROOT, FileNameT(b"f"), FILE, WRITE, USER)
        assert info.fh & WITHOUT_RESERVE
        assert not (await operations.open(entry.st_ino, WRITE, CTX)).fh & WITHOUT_RESERVE
    async with mounted(await fresh()) as filesystem:
        operations = Operations(filesystem)
        info, _ = await operations.create(ROOT, FileNameT(b"f"), FILE, WRITE, USER)
        assert not info.fh & WITHOUT_RESERVE


async def test_fallocate_and_copies_respect_it() -> None:
    async with reserving() as operations:
        fs = operations.fs
        source = (await fs.create(ROOT, b"source", FILE, 0, 0)).number
        await fs.write(source, 0, bytes(200 * BLOCK_BYTES))
        target = (await fs.create(ROOT, b"target", FILE, 0, 0)).number
        left = fs.statfs().available_blocks
        with pytest.raises(NoSpace, match="no free block"):
            await fs.fallocate(target, 0, 0, (left + 1) * BLOCK_BYTES, privileged=False)
        await fs.fallocate(target, 0, 0, (left - 20) * BLOCK_BYTES, privileged=False)
        copy = (await fs.create(ROOT, b"copy", FILE, 0, 0)).number
        with pytest.raises(NoSpace, match="no free block"):
            await fs.copy_range(source, 0, copy, 0, 200 * BLOCK_BYTES, privileged=False)
        assert await fs.copy_range(source, 0, copy, 0, 200 * BLOCK_BYTES) == 200 * BLOCK_BYTES


def test_who_has_the_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {1: "CapPrm:\t0\nCapEff:\t0000000001000000\n", 2: "CapEff:\t0000000000ffffff\n", 3: ""}
    monkeypatch.setattr(Path, "read_text", lambda path: texts[int(path.parent.name)], raising=True)
    assert has_resource_privilege(Context(uid=0))
    assert has_resource_privilege(Context(uid=5, pid=1))
    assert not has_resource_privilege(Context(uid=5, pid=2))
    assert not has_resource_privilege(Context(uid=5, pid=3))
    monkeypatch.undo()
    assert not has_resource_privilege(Context(uid=5, pid=2**22 + 1))
