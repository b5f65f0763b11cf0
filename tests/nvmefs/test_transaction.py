"""All or nothing: an operation that is interrupted anywhere leaves every byte and counter as it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nvmefs.allocator import Allocator
from nvmefs.attributes import AttributeChanges
from nvmefs.errors import Corrupted, FsError, NoSpace, ReadOnly
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import ROOT_INODE, BlockType
from nvmefs.transaction import Transaction
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.model import DIRECTORY, FILE, read_back

Operation = Callable[[Filesystem, dict[str, int]], Awaitable[object]]
LONG = b"n" * 255


def picture(filesystem: Filesystem) -> dict[str, Any]:
    """Everything that an operation may change in memory."""
    allocator, open_batch = filesystem.allocator, filesystem.journal.open
    return {
        "blocks": {n: bytes(block.data) for n, block in filesystem.cache.blocks.items()},
        "dirty": {n for n, block in filesystem.cache.blocks.items() if block.dirty},
        "state": repr(filesystem.state),
        "inodes": {n: inode.snapshot() for n, inode in filesystem.inodes.known.items()},
        "held": {group: bytes(bits) for group, bits in allocator.held.items()},
        "counts": (
            dict(allocator.held_count), allocator.held_blocks, allocator.held_freed_blocks,
        ),
        "batch": (
            set(open_batch.blocks), set(open_batch.inodes), list(open_batch.freed_data),
            list(open_batch.freed_nodes), open_batch.operations,
        ),
    }  # fmt: skip


async def prepare(filesystem: Filesystem) -> dict[str, int]:
    """A tree of three levels, with something of everything."""
    numbers = {}
    for name, mode in (("d", DIRECTORY), ("e", DIRECTORY), ("f", FILE), ("g", FILE), ("i", FILE)):
        inode = await filesystem.create(ROOT_INODE, name.encode(), mode, 0, 0)
        numbers[name] = inode.number
    for index in range(60):
        await filesystem.create(numbers["d"], b"%03d" % index + LONG[3:], FILE, 0, 0)
    for index in range(40):
        await filesystem.write(numbers["f"], index * 8192, b"x")
        await filesystem.setxattr(numbers["g"], b"user.%d" % index, b"v" * 400)
    await filesystem.setxattr(numbers["f"], b"user.long", b"v" * 65536)
    await filesystem.write(numbers["i"], 0, b"inline" * 100)
    await filesystem.sync()
    await filesystem.getattr(ROOT_INODE)
    return numbers


OPERATIONS: dict[str, Operation] = {
    "create": lambda fs, n: fs.create(n["d"], b"new" + LONG[3:], FILE, 0, 0),
    "mkdir": lambda fs, n: fs.create(n["d"], b"dir" + LONG[3:], DIRECTORY, 0, 0),
    "symlink": lambda fs, n: fs.symlink(n["d"], b"sym", b"t" * 4095, 0, 0),
    "link": lambda fs, n: fs.link(n["f"], n["d"], LONG),
    "unlink": lambda fs, n: fs.unlink(n["d"], b"007" + LONG[3:]),
    "rmdir": lambda fs, n: fs.rmdir(ROOT_INODE, b"e"),
    "rename": lambda fs, n: fs.rename(n["d"], b"008" + LONG[3:], ROOT_INODE, b"f"),
    "rename dir": lambda fs, n: fs.rename(ROOT_INODE, b"d", n["e"], b"d" * 250),
    "exchange": lambda fs, n: fs.rename(ROOT_INODE, b"f", n["d"], b"009" + LONG[3:], 2),
    "write": lambda fs, n: fs.write(n["f"], 4096, b"y" * 20000),
    "spill": lambda fs, n: fs.write(n["i"], 10, b"y" * 5000),
    "write inline": lambda fs, n: fs.write(n["i"], 10, b"y" * 700),
    "truncate": lambda fs, n: fs.files.truncate(n["f"], 10),
    "setxattr": lambda fs, n: fs.setxattr(n["g"], b"user.new", b"v" * 30000),
    "replace xattr": lambda fs, n: fs.setxattr(n["f"], b"user.long", b"w" * 20000),
    "removexattr": lambda fs, n: fs.removexattr(n["f"], b"user.long"),
    "chmod": lambda fs, n: fs.setattr(n["f"], AttributeChanges(mode=0o600)),
}


class Interrupted(Exception):
    """What a test raises in the midst of an operation."""


@pytest.mark.parametrize("name", list(OPERATIONS))
async def test_interrupted_at_every_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation stops at its 1st, 2nd, ... access to a block, each time for another reason."""
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        numbers = await prepare(filesystem)
        tx = filesystem.transactions.transaction
        get = tx.get
        before = picture(filesystem)
        at = calls = 0
        reasons = [Interrupted(), NoSpace(), Corrupted(1, "a test"), KeyboardInterrupt()]
        during: list[dict[str, Any]] = []
        attempt = filesystem.transactions._attempt

        def counted(number: int, kind: BlockType) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise reasons[at % len(reasons)]
            return get(number, kind)

        def watched(operation: Callable[[Transaction], Any], privileged: bool = True) -> Any:
            """One operation of perhaps several that a call consists of."""
            picture_before = picture(filesystem)
            try:
                return attempt(operation, privileged)
            except BaseException:
                assert picture(filesystem) == picture_before
                during.append(picture_before)
                raise

        monkeypatch.setattr(tx, "get", counted)
        monkeypatch.setattr(filesystem.transactions, "_attempt", watched)
        while True:
            at += 1
            calls = 0
            try:
                await OPERATIONS[name](filesystem, numbers)
            except (Interrupted, FsError, KeyboardInterrupt):
                assert filesystem.allocator.held_blocks == filesystem.allocator.held_freed_blocks
                continue
            assert calls < at, "it went on after an error"
            break
        assert during
        assert not tx.before
        assert not tx.undo
        assert picture(filesystem) != before
        monkeypatch.undo()
    assert check(namespace.blocks) == []


@pytest.mark.parametrize("name", list(OPERATIONS))
async def test_every_block_is_missing_once(name: str) -> None:
    """With an empty cache each access misses first: the outcome is the same as without misses."""
    trees = []
    loads = 0
    for empty in (False, True):
        namespace = await fresh()
        async with mounted(namespace) as filesystem:
            numbers = await prepare(filesystem)
            await filesystem.journal.checkpoint()
            if empty:
                filesystem.cache.blocks.clear()
                filesystem.inodes.known.clear()
            await OPERATIONS[name](filesystem, numbers)
            trees.append(await read_back(filesystem))
            loads = filesystem.cache.loads
        assert check(namespace.blocks) == []
    assert loads
    assert trees[0] == trees[1]


async def test_no_space_at_every_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        numbers = await prepare(filesystem)
        take = Allocator.take_one
        for name in ("create", "setxattr", "symlink", "link"):
            for limit in range(100):
                taken = 0

                def scarce(self: Allocator, tx: Transaction, goal: int, limit: int = limit) -> int:
                    nonlocal taken
                    taken += 1
                    if taken > limit:
                        raise NoSpace
                    return take(self, tx, goal)

                before = picture(filesystem)
                with monkeypatch.context() as patch:
                    patch.setattr(Allocator, "take_one", scarce)
                    try:
                        await OPERATIONS[name](filesystem, numbers)
                    except NoSpace:
                        assert picture(filesystem) == before
                        continue
                break
    assert check(namespace.blocks) == []


async def test_a_read_only_mount_changes_nothing() -> None:
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        numbers = await prepare(filesystem)
    before = dict(namespace.blocks)
    filesystem = await Filesystem.open(namespace.device(), Options(read_only=True))
    for operation in OPERATIONS.values():
        with pytest.raises(ReadOnly):
            await operation(filesystem, numbers)
    await filesystem.close()
    assert namespace.blocks == before


async def test_operations_do_not_nest() -> None:
    async with mounted(await fresh()) as filesystem:

        def outer(tx: Transaction) -> None:
            filesystem.transactions._attempt(lambda tx: None)

        with pytest.raises(AssertionError, match="nest"):
            await filesystem.transactions.run(outer)
