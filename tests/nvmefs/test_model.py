"""Random operations on a filesystem and on a model in lockstep, with remounts, evictions and ENOSPC between.

Each step changes both, or fails with the error that the model expects and changes neither. After each mount
the image must be sound, the walk equal to the model, and the count of free blocks exact.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Awaitable, Callable

import pytest

from nvmefs import acl
from nvmefs.acl import AclEntry
from nvmefs.attributes import AttributeChanges
from nvmefs.errors import FsError, NoSpace
from nvmefs.filesystem import Filesystem, Options
from nvmefs.inodes import Inode
from nvmefs.items import INODE_INLINE
from nvmefs.layout import BLOCK_BYTES, MIN_BLOCKS
from nvmefs.namei import RENAME_EXCHANGE, RENAME_NOREPLACE
from nvmefs.regions import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.support.checker import check
from tests.support.images import TINY_BLOCKS, TINY_JOURNAL_BLOCKS, fresh, mounted, tiny_allowed
from tests.support.model import DIRECTORY, FILE, Model, differences, read_back
from tests.support.ram import RamNamespace

NAMES = [b"a", b"b", b"c", b"\xff\xfe", b"n" * 255, b"name with spaces"]
SIZES = [0, 1, 100, 899, 900, 901, 4095, 4096, 4097, 10000, 40000]
FILL_MODES = (0, KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)


class Lockstep:
    """One random sequence. `rng` makes all choices, so a seed replays it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.model = Model()
        self.marks = 0
        self.refusals = 0

    async def step(self, filesystem: Filesystem) -> None:
        actions = [
            self.create, self.create, self.write, self.write, self.write, self.append,
            self.truncate, self.unlink, self.unlink, self.rename, self.rename, self.exchange,
            self.link, self.symlink, self.setxattr, self.setxattr, self.removexattr, self.rmdir,
            self.mkdir, self.chmod, self.sync, self.big, self.fallocate, self.fallocate, self.punch,
            self.copy, self.tmpfile, self.set_acl, self.mmap,
        ]  # fmt: skip
        with contextlib.suppress(IndexError):  # nothing there to choose from
            await self.rng.choice(actions)(filesystem)

    async def expect(
        self, expected: int, call: Callable[[], Awaitable[object]], *, always: bool = False
    ) -> bool:
        """Run `call`; True if it succeeded. `expected` is the errno it must fail with, 0 for none.

        ENOSPC is always possible, but where an operation gives space back (`always`).
        """
        got = 0
        try:
            await call()
        except NoSpace:
            assert not always
            self.refusals += 1
            return False
        except FsError as error:
            got = error.errno
        assert errno.errorcode.get(got) == errno.errorcode.get(expected)
        return not got

    def data(self, size: int) -> bytes:
        self.marks += 1
        return bytes([self.marks % 255 + 1]) * size

    def place(self) -> tuple[int, bytes]:
        return self.rng.choice(self.model.directories()), self.rng.choice(NAMES)

    async def add(self, filesystem: Filesystem, mode: int, content: bytes = b"") -> None:
        parent, name = self.place()
        made: list[Inode] = []

        async def call() -> None:
            if content:
                made.append(await filesystem.symlink(parent, name, content, 0, 0))
            else:
                made.append(await filesystem.create(parent, name, mode, 0, 0))

        exists = self.model.find(parent, name) is not None
        if await self.expect(errno.EEXIST if exists else 0, call):
            self.model.create(parent, name, made[0].number, mode, content)

    async def create(self, filesystem: Filesystem) -> None:
        await self.add(filesystem, self.rng.choice([FILE, FILE, FILE, 0o010600]))

    async def mkdir(self, filesystem: Filesystem) -> None:
        await self.add(filesystem, DIRECTORY)

    async def symlink(self, filesystem: Filesystem) -> None:
        await self.add(filesystem, 0o120777, b"t" * self.rng.choice([1, 900, 901, 4095]))

    async def write(self, filesystem: Filesystem) -> None:
        number = self.rng.choice(self.model.files())
        offset, data = self.rng.choice(SIZES), self.data(self.rng.choice(SIZES[1:]))
        if await self.expect(0, lambda: filesystem.write(number, offset, data)):
            self.model.write(number, offset, data)

    async def append(self, filesystem: Filesystem) -> None:
        number = self.rng.choice(self.model.files())
        offset, data = len(self.model.nodes[number].content), self.data(self.rng.choice(SIZES[1:]))
        if await self.expect(0, lambda: filesystem.write(number, offset, data)):
            self.model.write(number, offset, data)

    async def big(self, filesystem: Filesystem) -> None:
        number = self.rng.choice(self.model.files())
        share = self.rng.choice([0.5, 0.9, 1.0, 1.1])
        data = self.data(int(filesystem.statfs().available_blocks * 4096 * share) + 1)
        if await self.expect(0, lambda: filesystem.write(number, 0, data)):
            self.model.write(number, 0, data)

    async def truncate(self, filesystem: Filesystem) -> None:
        number, size = self.rng.choice(self.model.files()), self.rng.choice(SIZES)
        changes = AttributeChanges(size=size)
        if await self.expect(0, lambda: filesystem.setattr(number, changes)):
            self.model.truncate(number, size)

    async def fallocate(self, filesystem: Filesystem) -> None:
        """Allocate or zero. What fails for want of space may have moved inline data into a block before."""
        number, mode = self.rng.choice(self.model.files()), self.rng.choice(FILL_MODES)
        offset, length = self.rng.choice(SIZES), self.rng.choice(SIZES[1:])
        if await self.expect(0, lambda: filesystem.fallocate(number, mode, offset, length)):
            self.model.allocate(number, offset, offset + length)
            if mode & ZERO_RANGE:
                self.model.zero(number, offset, offset + length, punch=False)
            if not mode & KEEP_SIZE:
                self.model.grow(number, offset + length)
        elif not (await filesystem.getattr(number)).flags & INODE_INLINE:
            self.model.spill(number)

    async def punch(self, filesystem: Filesystem) -> None:
        number = self.rng.choice(self.model.files())
        offset, length = self.rng.choice(SIZES), self.rng.choice(SIZES[1:])
        mode = PUNCH_HOLE | KEEP_SIZE
        call = lambda: filesystem.fallocate(number, mode, offset, length)  # noqa: E731
        if await self.expect(0, call, always=True):
            self.model.zero(number, offset, offset + length, punch=True)

    async def mmap(self, filesystem: Filesystem) -> None:
        """Pages written back, by the kernel that keeps the times itself."""
        number = self.rng.choice(self.model.files())
        size = len(self.model.nodes[number].content)
        offset = self.rng.randrange(size // BLOCK_BYTES + 1) * BLOCK_BYTES
        data = self.data(min(2 * BLOCK_BYTES, size - offset))
        call = lambda: filesystem.write(number, offset, data, update_times=False)  # noqa: E731
        if await self.expect(0, call) and data:
            self.model.write(number, offset, data)

    async def copy(self, filesystem: Filesystem) -> None:
        """copy_file_range between two files; what it says that it has copied is there."""
        source, target = self.rng.choice(self.model.files()), self.rng.choice(self.model.files())
        start, at, length = (self.rng.choice(SIZES) for _ in range(3))
        if source == target:
            return
        copied: list[int] = []

        async def call() -> None:
            copied.append(await filesystem.copy_range(source, start, target, at, length))

        before = self.model.nodes[target].content
        left = self.model.nodes[source].content[start : start + length]
        done = await self.expect(0, call)
        if not done or copied[0] < len(left):
            assert self.refusals, "a short copy, and there was space"
        found = await filesystem.getattr(target)
        content = await filesystem.read(target, 0, found.size_bytes)
        count = copied[0] if done else 0
        if count:
            assert content[at : at + count] == left[:count]
            expected = before[:at].ljust(at, b"\0") + left[:count] + before[at + count :]
            if count == len(left):
                assert content == expected
        self.model.replaced(target, content, inline=bool(found.flags & INODE_INLINE))

    async def tmpfile(self, filesystem: Filesystem) -> None:
        """A file that gets its name when it has been written; or never, and is gone."""
        parent, name = self.place()
        made: list[Inode] = []

        async def call() -> None:
            made.append(await filesystem.tmpfile(parent, FILE, 0, 0))

        if not await self.expect(0, call):
            return
        number, data = made[0].number, self.data(self.rng.choice(SIZES[1:]))
        written = await self.expect(0, lambda: filesystem.write(number, 0, data))
        exists = self.model.find(parent, name) is not None
        link = lambda: filesystem.link(number, parent, name)  # noqa: E731
        if not written or not await self.expect(errno.EEXIST if exists else 0, link):
            await filesystem.reap(number)
            return
        self.model.create(parent, name, number, FILE)
        self.model.write(number, 0, data)

    async def set_acl(self, filesystem: Filesystem) -> None:
        """An access control list with a mask: it is kept, and its classes become the mode's."""
        number = self.rng.choice(self.model.files() + self.model.directories())
        bits = self.rng.randrange(8)
        entries = [
            AclEntry(acl.USER_OBJ, 6), AclEntry(acl.USER, bits, 17), AclEntry(acl.GROUP_OBJ, 4),
            AclEntry(acl.MASK, bits), AclEntry(acl.OTHER, 0),
        ]  # fmt: skip
        value = acl.encode(entries)
        if await self.expect(0, lambda: filesystem.setxattr(number, acl.ACCESS, value)):
            self.model.set_xattr(number, acl.ACCESS, value)
            self.model.chmod(number, acl.mode_of(entries))

    async def unlink(self, filesystem: Filesystem) -> None:
        parent, name, number = self.rng.choice(self.model.entries())
        is_dir = self.model.is_dir(number)
        call = lambda: filesystem.unlink(parent, name)  # noqa: E731
        if await self.expect(errno.EISDIR if is_dir else 0, call, always=True):
            self.model.remove(parent, name)
            await self.reap(filesystem, number)

    async def rmdir(self, filesystem: Filesystem) -> None:
        parent, name, number = self.rng.choice(self.model.entries())
        expected = 0
        if not self.model.is_dir(number):
            expected = errno.ENOTDIR
        elif self.model.nodes[number].names:
            expected = errno.ENOTEMPTY
        if await self.expect(expected, lambda: filesystem.rmdir(parent, name), always=True):
            self.model.remove(parent, name)
            await self.reap(filesystem, number)

    async def reap(self, filesystem: Filesystem, number: int) -> None:
        """At once, or never: then the inode stays an orphan, which the unmount or the next mount ends."""
        if number not in self.model.nodes and self.rng.random() < 0.7:
            await filesystem.reap(number)

    async def link(self, filesystem: Filesystem) -> None:
        _, _, number = self.rng.choice(self.model.entries())
        parent, name = self.place()
        expected = 0
        if self.model.find(parent, name) is not None:
            expected = errno.EEXIST
        elif self.model.is_dir(number):
            expected = errno.EPERM
        if await self.expect(expected, lambda: filesystem.link(number, parent, name)):
            self.model.link(number, parent, name)

    async def rename(self, filesystem: Filesystem) -> None:
        model = self.model
        parent, name, number = self.rng.choice(model.entries())
        new_parent, new_name = self.place()
        flags = self.rng.choice([0, 0, RENAME_NOREPLACE])
        target = model.find(new_parent, new_name)
        expected = 0
        if model.is_dir(number) and model.is_below(new_parent, number):
            expected = errno.EINVAL
        elif target is not None and flags:
            expected = errno.EEXIST
        elif target is not None and target != number:
            if model.is_dir(number) and not model.is_dir(target):
                expected = errno.ENOTDIR
            elif model.is_dir(target) and not model.is_dir(number):
                expected = errno.EISDIR
            elif model.nodes[target].names:
                expected = errno.ENOTEMPTY
        call = lambda: filesystem.rename(parent, name, new_parent, new_name, flags)  # noqa: E731
        if await self.expect(expected, call):
            model.rename(parent, name, new_parent, new_name)
            if target is not None:
                await self.reap(filesystem, target)

    async def exchange(self, filesystem: Filesystem) -> None:
        model = self.model
        parent, name, number = self.rng.choice(model.entries())
        new_parent, new_name, target = self.rng.choice(model.entries())
        expected = 0
        if (model.is_dir(number) and model.is_below(new_parent, number)) or (
            model.is_dir(target) and model.is_below(parent, target)
        ):
            expected = errno.EINVAL
        call = lambda: filesystem.rename(  # noqa: E731
            parent, name, new_parent, new_name, RENAME_EXCHANGE
        )
        if await self.expect(expected, call) and number != target:
            model.exchange(parent, name, new_parent, new_name)

    async def setxattr(self, filesystem: Filesystem) -> None:
        number = self.rng.choice(list(self.model.nodes))
        name = b"user." + self.rng.choice(NAMES)[:200]
        value = self.data(self.rng.choice([0, 1, 512, 513, 900, 901, 5000]))
        if await self.expect(0, lambda: filesystem.setxattr(number, name, value)):
            self.model.set_xattr(number, name, value)

    async def removexattr(self, filesystem: Filesystem) -> None:
        number = self.rng.choice(list(self.model.nodes))
        name = b"user." + self.rng.choice(NAMES)[:200]
        expected = 0 if name in self.model.nodes[number].xattrs else errno.ENODATA
        if await self.expect(expected, lambda: filesystem.removexattr(number, name), always=True):
            self.model.remove_xattr(number, name)

    async def chmod(self, filesystem: Filesystem) -> None:
        number, mode = self.rng.choice(list(self.model.nodes)), self.rng.randrange(0o1000)
        if await self.expect(0, lambda: filesystem.setattr(number, AttributeChanges(mode=mode))):
            self.model.chmod(number, mode)
            if value := self.model.nodes[number].xattrs.get(acl.ACCESS):
                changed = acl.encode(acl.with_mode(acl.decode(value), mode))
                self.model.set_xattr(number, acl.ACCESS, changed)

    async def sync(self, filesystem: Filesystem) -> None:
        await self.rng.choice(
            [filesystem.sync, filesystem.journal.checkpoint, filesystem.journal.release_freed]
        )()


async def lockstep(namespace: RamNamespace, seed: int, mounts: int, steps: int) -> int:
    """One sequence over several mounts; how many steps met ENOSPC."""
    sequence = Lockstep(random.Random(seed))
    for _ in range(mounts):
        async with mounted(namespace, Options(cache_mb=0)) as filesystem:
            for _ in range(steps):
                await sequence.step(filesystem)
                allocator = filesystem.allocator
                assert allocator.held_blocks == allocator.held_freed_blocks
            assert differences(sequence.model.freeze(), await read_back(filesystem)) == []
        assert filesystem.allocator.held_blocks == 0
        assert not filesystem.allocator.held
        assert check(namespace.blocks) == []
        async with mounted(namespace) as filesystem:
            assert differences(sequence.model.freeze(), await read_back(filesystem)) == []
    return sequence.refusals


@pytest.mark.parametrize("seed", range(8))
async def test_lockstep(seed: int) -> None:
    await lockstep(await fresh(MIN_BLOCKS), seed, mounts=4, steps=150)


async def test_lockstep_where_space_is_short() -> None:
    """A filesystem of 2 MiB with a journal of 256 KiB: ENOSPC, checkpoints and reuse all the time."""
    refusals = 0
    with tiny_allowed():
        for seed in range(8):
            namespace = await fresh(TINY_BLOCKS, journal_blocks=TINY_JOURNAL_BLOCKS)
            refusals += await lockstep(namespace, 1000 + seed, mounts=4, steps=150)
    assert refusals > 50
