"""What programs do before the power goes: single operations with the points where they ask for durability.

    workload = Recorder(namespace)               mounts it, with files to work on; nothing is recorded yet
    await workload.run([("write", "foo", 0, 9000), ("fsync", "foo")])
    workload.history                             the model after each operation, and what was promised when

An operation is a tuple of words; paths are like "A/foo". The same tuple changes filesystem and model.
`ace` gives the sequences of a few operations (after CrashMonkey's ACE), `Recorder.long_run` runs random ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked

from nvmefs.attributes import AttributeChanges
from nvmefs.errors import NoSpace
from nvmefs.filesystem import Filesystem, Options
from nvmefs.items import INODE_INLINE
from nvmefs.layout import BLOCK_BYTES, INLINE_BYTES, ROOT_INODE
from nvmefs.namei import RENAME_EXCHANGE
from nvmefs.regions import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.support.model import DIRECTORY, FILE, Model, Node, Tree
from tests.support.ram import RamNamespace

Operation = tuple[object, ...]
Work = Callable[[], Awaitable[None]]

SETUP: list[Operation] = [
    ("mkdir", "A"), ("mkdir", "B"), ("create", "foo"), ("write", "foo", 0, 14000),
    ("create", "bar"), ("write", "bar", 0, 300), ("create", "A/foo"), ("write", "A/foo", 0, 5000),
    ("link", "bar", "A/hard"), ("setxattr", "foo", "user.one", 40),
    ("setxattr", "foo", "user.big", 3000), ("mkdir", "A/C"), ("create", "A/C/deep"),
]  # fmt: skip

PUNCH = PUNCH_HOLE | KEEP_SIZE

# One operation each; the file named after it is what an fsync of the operation would be given.
SINGLE: list[tuple[str, list[Operation]]] = [
    ("new", [("create", "new")]),
    ("new", [("create", "new"), ("write", "new", 0, 10000)]),
    ("new", [("create", "new"), ("write", "new", 0, 100)]),
    ("foo", [("append", "foo", 700)]),
    ("foo", [("append", "foo", 9000)]),
    ("foo", [("write", "foo", 1000, 3000)]),
    ("foo", [("write", "foo", 4096, 4096)]),
    ("foo", [("write", "foo", 13000, 5000)]),
    ("foo", [("write", "foo", 40000, 5000)]),
    ("bar", [("write", "bar", 100, 50)]),
    ("bar", [("append", "bar", 2000)]),
    ("foo", [("truncate", "foo", 5000)]),
    ("foo", [("truncate", "foo", 0)]),
    ("foo", [("truncate", "foo", 20001)]),
    ("foo", [("truncate", "foo", 5000), ("truncate", "foo", 9000)]),
    ("foo", [("truncate", "foo", 6000), ("write", "foo", 5000, 100)]),
    ("foo", [("truncate", "foo", 0), ("write", "foo", 0, 14000)]),
    ("bar", [("truncate", "bar", 1500)]),
    ("foo", [("link", "foo", "A/linked")]),
    ("foo", [("unlink", "foo")]),
    ("bar", [("unlink", "bar")]),
    ("A/foo", [("unlink", "A/foo"), ("create", "A/foo"), ("write", "A/foo", 0, 6000)]),
    ("A/bar", [("rename", "foo", "A/bar")]),
    ("bar", [("rename", "foo", "bar")]),
    ("A/foo", [("rename", "foo", "A/foo")]),
    ("foo", [("create", "tmp"), ("write", "tmp", 0, 7000), ("rename", "tmp", "foo")]),
    ("B/A", [("rename", "A", "B/A")]),
    ("foo", [("exchange", "foo", "A/foo")]),
    ("A", [("exchange", "A/C", "B")]),
    ("A", [("symlink", "A/sym", 30)]),
    ("B", [("symlink", "B/sym", 3000)]),
    ("B/D", [("mkdir", "B/D")]),
    ("A", [("rmdir", "B")]),
    ("A", [("unlink", "A/C/deep"), ("rmdir", "A/C")]),
    ("foo", [("setxattr", "foo", "user.two", 100)]),
    ("foo", [("setxattr", "foo", "user.one", 5000)]),
    ("foo", [("removexattr", "foo", "user.big")]),
    ("foo", [("chmod", "foo", 0o600)]),
    ("foo", [("fallocate", "foo", 0, 20000, 30000)]),
    ("foo", [("fallocate", "foo", KEEP_SIZE, 13000, 30000)]),
    ("foo", [("fallocate", "foo", PUNCH, 4096, 4096)]),
    ("foo", [("fallocate", "foo", PUNCH, 1000, 9000)]),
    ("foo", [("fallocate", "foo", ZERO_RANGE, 1000, 30000)]),
    ("foo", [("fallocate", "foo", ZERO_RANGE | KEEP_SIZE, 4000, 20000)]),
    ("bar", [("fallocate", "bar", 0, 200, 5000)]),
    ("bar", [("fallocate", "bar", PUNCH, 100, 50)]),
    ("foo", [("fallocate", "foo", ZERO_RANGE, 0, 8192), ("write", "foo", 100, 5000)]),
    ("new", [("create", "new"), ("fallocate", "new", 0, 0, 12000), ("write", "new", 4096, 4096)]),
    ("foo", [("mmap", "foo", 1, 2)]),
    ("foo", [("truncate", "foo", 30000), ("mmap", "foo", 3, 4)]),
    ("new", [("tmpfile", "new", 9000)]),
    ("A/tmp", [("tmpfile", "A/tmp", 50)]),
    ("foo", [("tmpfile", "tmp", 5000), ("rename", "tmp", "foo")]),
]
SYNC_LETTERS = "nfds"  # in a name: no sync point, fsync, fdatasync, sync
SYNCS = ["", "fsync", "fdatasync", "sync"]


SINGLE_NAMES = [f"{index}{letter}" for index in range(len(SINGLE)) for letter in SYNC_LETTERS]


def ace(length: int) -> Iterator[str]:
    """The names of all sequences of so many operations, a sync point or none after each."""
    for parts in itertools.product(SINGLE_NAMES, repeat=length):
        yield "-".join(parts)


def operations_of(name: str) -> list[Operation]:
    """What a sequence does, by its name: `3s-12n` is number 3, sync, number 12."""
    operations: list[Operation] = []
    for part in name.split("-"):
        target, steps = SINGLE[int(part[:-1])]
        operations += steps
        if sync := SYNCS[SYNC_LETTERS.index(part[-1])]:
            operations.append((sync, target))
    return operations


@dataclass
class History:
    """The model after each operation (0: before the first), and what was promised and begun by when.

    `begun[i]` is the length of the log when operation i began. `promises` are (length of the log, operation
    that must have survived); `floors` (length of the log, inode, operation whose data must have).
    """

    states: list[Tree] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    promises: list[tuple[int, int]] = field(default_factory=list)
    floors: list[tuple[int, int, int]] = field(default_factory=list)

    def stage(self, state: Tree) -> None:
        """The operation that runs goes through this state, which a crash may leave."""
        self.states.append(state)
        self.begun.append(self.begun[-1])


class Recorder:
    """Runs operations on a filesystem and a model, and keeps the log of commands with the history."""

    def __init__(self, filesystem: Filesystem, namespace: RamNamespace) -> None:
        self.filesystem = filesystem
        self.namespace = namespace
        self.model = Model()
        self.history = History()
        self.marks = self.done = self.refused = 0
        self.changed: dict[int, int] = {}  # inode: the operation that last changed anything of it
        self.mapped: dict[int, int] = {}  # inode: the one that last changed its size or blocks

    @classmethod
    async def start(
        cls,
        namespace: RamNamespace,
        setup: list[Operation],
        *,
        fua: bool = True,
        discard: bool = False,
    ) -> Recorder:
        """A mounted filesystem on which `setup` has been done, and is durable."""
        options = Options(cache_mb=0, discard=discard)
        filesystem = await Filesystem.open(namespace.device(fua=fua), options)
        recorder = cls(filesystem, namespace)
        await recorder.run(setup)
        await filesystem.sync()
        recorder.changed.clear()
        recorder.mapped.clear()
        recorder.history = History([recorder.model.freeze()], [0])
        return recorder

    @property
    def log_length(self) -> int:
        return len(self.namespace.log or ())

    @property
    def now(self) -> int:
        """The number of the last operation that has returned."""
        return len(self.history.states) - 1

    async def run(self, operations: list[Operation]) -> None:
        for operation in operations:
            await self.do(operation)

    async def do(self, operation: Operation) -> None:
        """One operation; impossible ones (a path that is not there) are left out, on both sides."""
        verb, *words = operation
        self.history.begun.append(self.log_length)
        try:
            await getattr(self, f"do_{verb}")(*words)
            self.done += 1
        except KeyError:
            pass  # the model has no such name: an operation before has taken it away
        except NoSpace:
            self.done += 1
            self.refused += 1
            await self.follow_spills()
        self.history.states.append(self.model.freeze())

    async def long_run(self, seed: str, operations: int) -> None:
        """Random operations, with commits and checkpoints that run while the next operations do."""
        rng = random.Random(seed)
        conductor = Conductor(rng)
        self.namespace.before = self.namespace.during = conductor.pause
        async with trio.open_nursery() as nursery:
            while self.done < operations:
                chance = rng.random()
                if chance < 0.1:
                    await conductor.in_background(nursery, self.do_sync)
                elif chance < 0.13:
                    await conductor.in_background(nursery, self.do_checkpoint)
                elif chance < 0.2 and self.filesystem.journal.discards is not None:
                    await conductor.in_background(nursery, self.filesystem.journal.discards.drain)
                elif chance < 0.3:
                    await conductor.step()
                operation = self.choose(rng)
                await conductor.foreground(nursery, partial(self.do, operation))
            while conductor.background:
                await conductor.step()
        self.namespace.before = self.namespace.during = None

    def choose(self, rng: random.Random) -> Operation:
        return random_operation(rng, self.paths())

    async def follow_spills(self) -> None:
        """A write that was refused may have moved inline data into a block before."""
        for number, node in self.model.nodes.items():
            if node.inline and number in self.model.files():
                inode = await self.filesystem.getattr(number)
                if not inode.flags & INODE_INLINE:
                    self.model.spill(number)

    # --- paths ----------------------------------------------------------------------------------

    def number(self, path: str) -> int:
        """The inode at `path`. Raises KeyError."""
        number = ROOT_INODE
        for part in filter(None, path.split("/")):
            number = self.model.nodes[number].names[part.encode()]
        return number

    def paths(self, directory: int = ROOT_INODE, prefix: str = "") -> list[str]:
        """Every path that there is, but for those of the ballast."""
        found = []
        for name, number in sorted(self.model.nodes[directory].names.items()):
            path = prefix + name.decode()
            found.append(path)
            if self.model.is_dir(number):
                found += self.paths(number, path + "/")
        return [path for path in found if path != BALLAST]

    def split(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.rpartition("/")
        parent = self.number(directory)
        if not self.model.is_dir(parent):
            raise KeyError(directory)
        return parent, name.encode()

    def vacant(self, path: str) -> tuple[int, bytes]:
        """The place of a name that is not there yet. Raises KeyError."""
        parent, name = self.split(path)
        if self.model.find(parent, name) is not None:
            raise KeyError(path)
        return parent, name

    def file(self, path: str) -> int:
        number = self.number(path)
        if number not in self.model.files():
            raise KeyError(path)
        return number

    def note(self, *numbers: int, mapped: bool = False) -> None:
        """The operation that runs changes these inodes."""
        for number in numbers:
            self.changed[number] = len(self.history.states)
            if mapped:
                self.mapped[number] = len(self.history.states)

    def spill_first(self, number: int) -> None:
        """The operation that runs moves inline data into a block, in a step of its own that a crash may leave.

        Nothing is to be seen of it, but what is written to that block later may be there already.
        """
        if self.model.nodes[number].inline:
            self.model.spill(number)
            self.history.stage(self.model.freeze())

    def moved(self, before: Node, number: int) -> bool:
        """Whether what an fdatasync must make durable of a file, beside its blocks' content, has changed."""
        after = self.model.nodes[number]
        if after.inline or len(before.content) != len(after.content):
            return True
        return (before.places, before.unwritten) != (after.places, after.unwritten)

    def data(self, size: int) -> bytes:
        self.marks += 1
        return bytes([self.marks % 255 + 1]) * size

    # --- operations -----------------------------------------------------------------------------

    async def do_create(self, path: str, mode: int = FILE) -> None:
        parent, name = self.vacant(path)
        inode = await self.filesystem.create(parent, name, mode, 0, 0)
        self.model.create(parent, name, inode.number, mode)
        self.note(parent)
        self.note(inode.number, mapped=True)

    async def do_mkdir(self, path: str) -> None:
        await self.do_create(path, DIRECTORY)

    async def do_symlink(self, path: str, size: int) -> None:
        parent, name = self.vacant(path)
        target = b"t" * size
        inode = await self.filesystem.symlink(parent, name, target, 0, 0)
        self.model.create(parent, name, inode.number, 0o120777, target)
        self.note(parent, inode.number)

    async def do_write(self, path: str, offset: int, size: int) -> None:
        number, data = self.file(path), self.data(size)
        before = self.model.nodes[number]
        await self.filesystem.write(number, offset, data)
        if offset >= BLOCK_BYTES:
            self.spill_first(number)
        self.model.write(number, offset, data)
        self.note(number, mapped=self.moved(before, number))

    async def do_append(self, path: str, size: int) -> None:
        await self.do_write(path, len(self.model.nodes[self.file(path)].content), size)

    async def do_truncate(self, path: str, size: int) -> None:
        number = self.file(path)
        await self.filesystem.setattr(number, AttributeChanges(size=size))
        if size > INLINE_BYTES:
            self.spill_first(number)
        self.model.truncate(number, size)
        self.note(number, mapped=True)

    async def do_mmap(self, path: str, block: int, count: int) -> None:
        """Pages of a mapping are written back: whole ones, no further than the end, without the times."""
        number = self.file(path)
        offset, size = block * BLOCK_BYTES, len(self.model.nodes[number].content)
        data = self.data(min(count * BLOCK_BYTES, size - offset))
        if not data:
            raise KeyError(path)
        before = self.model.nodes[number]
        await self.filesystem.write(number, offset, data, update_times=False)
        self.model.write(number, offset, data)
        if self.moved(before, number):
            self.note(number, mapped=True)

    async def do_fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        """Its steps are visible after a crash: what is zeroed, then the size."""
        number, end = self.file(path), offset + length
        before = self.model.nodes[number]
        await self.filesystem.fallocate(number, mode, offset, length)
        if mode & PUNCH_HOLE:
            self.model.zero(number, offset, end, punch=True)
        else:
            self.spill_first(number)
            self.model.allocate(number, offset, end)
            if mode & ZERO_RANGE:
                self.model.zero(number, offset, end, punch=False)
                self.history.stage(self.model.freeze())
            if not mode & KEEP_SIZE:
                self.model.grow(number, end)
        self.note(number, mapped=self.moved(before, number))

    async def do_tmpfile(self, path: str, size: int) -> None:
        """A file is written before it gets its first name."""
        parent, name = self.vacant(path)
        made = await self.filesystem.tmpfile(parent, FILE, 0, 0)
        data = self.data(size)
        await self.filesystem.write(made.number, 0, data)
        await self.filesystem.link(made.number, parent, name)
        self.model.create(parent, name, made.number, FILE)
        self.model.write(made.number, 0, data)
        self.note(parent)
        self.note(made.number, mapped=True)

    async def do_link(self, path: str, new: str) -> None:
        number = self.file(path)
        parent, name = self.vacant(new)
        await self.filesystem.link(number, parent, name)
        self.model.link(number, parent, name)
        self.note(number, parent)

    async def do_unlink(self, path: str) -> None:
        parent, name = self.split(path)
        number = self.file(path)
        await self.filesystem.unlink(parent, name)
        self.model.remove(parent, name)
        self.note(number, parent)
        await self.reap(number)

    async def do_rmdir(self, path: str) -> None:
        parent, name = self.split(path)
        number = self.number(path)
        if not self.model.is_dir(number) or self.model.nodes[number].names:
            raise KeyError(path)
        await self.filesystem.rmdir(parent, name)
        self.model.remove(parent, name)
        self.note(parent)
        await self.reap(number)

    async def reap(self, number: int) -> None:
        """The last user of a file without names closes it at once, or (odd numbers) never."""
        if number not in self.model.nodes and number % 2 == 0:
            await self.filesystem.reap(number)

    async def do_rename(self, path: str, new: str) -> None:
        parent, name = self.split(path)
        new_parent, new_name = self.split(new)
        number, target = self.number(path), self.model.find(new_parent, new_name)
        model = self.model
        if model.is_dir(number) and model.is_below(new_parent, number):
            raise KeyError(new)
        if target is not None and (
            model.is_dir(number) != model.is_dir(target) or model.nodes[target].names
        ):
            raise KeyError(new)
        await self.filesystem.rename(parent, name, new_parent, new_name)
        model.rename(parent, name, new_parent, new_name)
        if target == number:
            return
        self.note(number, parent, new_parent)
        if target is not None:
            self.note(target)
            await self.reap(target)

    async def do_exchange(self, path: str, other: str) -> None:
        parent, name = self.split(path)
        new_parent, new_name = self.split(other)
        one, two = self.number(path), self.number(other)
        model = self.model
        if (model.is_dir(one) and model.is_below(new_parent, one)) or (
            model.is_dir(two) and model.is_below(parent, two)
        ):
            raise KeyError(other)
        await self.filesystem.rename(parent, name, new_parent, new_name, RENAME_EXCHANGE)
        if one != two:
            model.exchange(parent, name, new_parent, new_name)
            self.note(one, two, parent, new_parent)

    async def do_setxattr(self, path: str, name: str, size: int) -> None:
        number, value = self.number(path), self.data(size)
        await self.filesystem.setxattr(number, name.encode(), value)
        self.model.set_xattr(number, name.encode(), value)
        self.note(number)

    async def do_removexattr(self, path: str, name: str) -> None:
        number = self.number(path)
        if name.encode() not in self.model.nodes[number].xattrs:
            raise KeyError(name)
        await self.filesystem.removexattr(number, name.encode())
        self.model.remove_xattr(number, name.encode())
        self.note(number)

    async def do_chmod(self, path: str, mode: int) -> None:
        number = self.number(path)
        await self.filesystem.setattr(number, AttributeChanges(mode=mode))
        self.model.chmod(number, mode)
        self.note(number)

    async def do_fill(self, rest: int) -> None:
        """Leave `rest` free blocks: from then on those that are freed are used again at once."""
        await self.do_create(BALLAST)
        blocks = self.filesystem.statfs().available_blocks - rest
        await self.do_write(BALLAST, 0, blocks * BLOCK_BYTES)

    # --- promises -------------------------------------------------------------------------------

    async def do_fsync(self, path: str) -> None:
        await self.fsync(self.number(path), self.changed, data_only=False)

    async def do_fdatasync(self, path: str) -> None:
        number = self.number(path)
        covered = self.changed if self.model.is_dir(number) else self.mapped
        await self.fsync(number, covered, data_only=True)

    async def fsync(self, number: int, covered: dict[int, int], *, data_only: bool) -> None:
        promise, now = covered.get(number, 0), self.now
        await self.filesystem.fsync(number, data_only=data_only)
        self.promise(number, promise, now)

    def promise(self, number: int, promise: int, now: int) -> None:
        """What a file was and all up to its last change are durable from here on."""
        self.history.promises.append((self.log_length, promise))
        self.history.floors.append((self.log_length, number, now))

    async def do_sync(self, _path: str = "") -> None:
        now = self.now
        await self.filesystem.sync()
        self.history.promises.append((self.log_length, now))
        self.history.floors += [(self.log_length, number, now) for number in self.model.nodes]

    async def do_checkpoint(self) -> None:
        await self.filesystem.journal.checkpoint()


BALLAST = "ballast"
FALLOCATE_MODES = (0, KEEP_SIZE, PUNCH, PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
PATHS = [f"{directory}{name}" for directory in ("", "A/", "B/", "A/C/") for name in "abcd"]


def random_operation(rng: random.Random, existing: list[str]) -> Operation:
    """Any operation on a handful of paths; most of them are possible."""
    free, other = rng.choice(PATHS), rng.choice(PATHS)
    path = rng.choice(existing)
    size = rng.choice([1, 100, 700, 901, 4096, 5000, 20000])
    offset = rng.choice([0, 0, 100, 4000, 4096, 9000, 30000])
    choices: list[Operation] = [
        ("create", free), ("create", free), ("create", free), ("write", path, offset, size),
        ("write", path, offset, size), ("write", path, offset, size), ("append", path, size),
        ("append", path, size), ("truncate", path, offset), ("truncate", path, size),
        ("link", path, free), ("unlink", path), ("unlink", path), ("rename", path, free),
        ("rename", path, other), ("exchange", path, other), ("symlink", free, size % 4000 + 1),
        ("mkdir", free), ("rmdir", path), ("setxattr", path, "user.x", size),
        ("setxattr", path, "user.y", size), ("removexattr", path, "user.x"), ("chmod", path, 0o640),
        ("rename", "A", "B/moved"), ("rename", "B/moved", "A"), ("fsync", path), ("fdatasync", path),
        ("fallocate", path, rng.choice(FALLOCATE_MODES), offset, size), ("tmpfile", free, size),
        ("fallocate", path, rng.choice(FALLOCATE_MODES), offset, size), ("mmap", path, size % 5, 2),
    ]  # fmt: skip
    return rng.choice(choices)


class Conductor:
    """Holds each command of the drive at its start and its end, and lets one at a time go on.

    So at most one task runs at any time, and the seed alone decides in which order; trio's own order is random.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.held: list[trio.Event] = []
        self.background = 0

    async def pause(self, kind: str, block: int, count: int) -> None:
        if kind != "read":
            event = trio.Event()
            self.held.append(event)
            await event.wait()

    async def step(self) -> None:
        """One of the commands goes on, until all tasks wait again."""
        if self.held:
            self.held.pop(self.rng.randrange(len(self.held))).set()
        await wait_all_tasks_blocked()

    async def foreground(self, nursery: trio.Nursery, work: Work) -> None:
        """Return when `work` is done; what is in the background gets on meanwhile."""
        done = trio.Event()

        async def run() -> None:
            await work()
            done.set()

        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        while not done.is_set():
            await self.step()

    async def in_background(self, nursery: trio.Nursery, work: Work) -> None:
        """Begin `work`, unless something is in the background already."""
        if self.background:
            return

        async def run() -> None:
            await work()
            self.background -= 1

        self.background += 1
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
