"""What a filesystem holds, as a few dictionaries: the oracle of the model test and of the crash campaign.

Below: nothing of nvmefs but its constants.  Above: tests/nvmefs/test_model.py, tests/crash.

    model = Model()
    model.create(ROOT_INODE, b"name", 17, 0o100644)     the inode number is the one the filesystem gave
    model.write(17, 0, b"data")
    tree = model.freeze()                               what a walk over the filesystem must find
    tree == await read_back(filesystem)

Beside what programs see it keeps, for each block of a file, the generation of its mapping: as long as that
stays the same, writes go to the same place on the device, and a crash may leave any sector old or new. Blocks
that fallocate gave it and nothing has written are `unwritten`: they have no place until they are data.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace

from nvmefs.filesystem import Filesystem
from nvmefs.layout import BLOCK_BYTES, INLINE_BYTES, ROOT_INODE

DIRECTORY = 0o040755
FILE = 0o100644


@dataclass(frozen=True)
class Node:
    """One inode. `names` of a directory, `content` of a file or link; `places` are block generations."""

    mode: int
    nlink: int
    content: bytes = b""
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    inline: bool = False
    places: dict[int, int] = field(default_factory=dict)
    unwritten: frozenset[int] = frozenset()

    @property
    def allocated(self) -> bool:
        """Whether it has blocks."""
        return bool(self.places or self.unwritten)

    def seen(self) -> tuple[object, ...]:
        """What a program can know of it, but for the content of a file."""
        size = len(self.content)
        return self.mode, self.nlink, size, tuple(sorted(self.names.items())), self.xattrs


Tree = dict[int, Node]


class Model:
    """A filesystem that does what it is told; the caller knows what is allowed."""

    def __init__(self) -> None:
        self.nodes: Tree = {ROOT_INODE: Node(DIRECTORY, 2)}
        self.generation = 0

    def freeze(self) -> Tree:
        """The state as it is now; nodes are never changed, only replaced."""
        return dict(self.nodes)

    def is_dir(self, number: int) -> bool:
        return stat.S_ISDIR(self.nodes[number].mode)

    def find(self, parent: int, name: bytes) -> int | None:
        return self.nodes[parent].names.get(name)

    def directories(self) -> list[int]:
        return [number for number in self.nodes if self.is_dir(number)]

    def files(self) -> list[int]:
        return [n for n, node in self.nodes.items() if stat.S_ISREG(node.mode)]

    def entries(self) -> list[tuple[int, bytes, int]]:
        """(directory, name, inode) of every name."""
        return [
            (number, name, target)
            for number in self.directories()
            for name, target in self.nodes[number].names.items()
        ]

    def is_below(self, number: int, ancestor: int) -> bool:
        """Whether `number` is `ancestor` or somewhere below it."""
        if number == ancestor:
            return True
        return any(
            self.is_dir(child) and self.is_below(number, child)
            for child in self.nodes[ancestor].names.values()
        )

    # --- names ----------------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, number: int, mode: int, content: bytes = b""
    ) -> None:
        self.nodes[number] = Node(mode, 0, content, inline=bool(content))
        if stat.S_ISDIR(mode):
            self.nodes[number] = Node(mode, 1)
        self._add(parent, name, number)

    def link(self, number: int, parent: int, name: bytes) -> None:
        self._add(parent, name, number)

    def remove(self, parent: int, name: bytes) -> None:
        number = self._take(parent, name)
        node = self.nodes[number]
        if self.is_dir(number) or not node.nlink:
            del self.nodes[number]

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        number = self.nodes[parent].names[name]
        target = self.nodes[new_parent].names.get(new_name)
        if target == number:
            return
        if target is not None:
            self.remove(new_parent, new_name)
        self._take(parent, name)
        self._add(new_parent, new_name, number)

    def exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        first = self._take(parent, name)
        second = self._take(new_parent, new_name)
        self._add(parent, name, second)
        self._add(new_parent, new_name, first)

    def _add(self, parent: int, name: bytes, number: int) -> None:
        directory, node = self.nodes[parent], self.nodes[number]
        links = directory.nlink + self.is_dir(number)
        self.nodes[parent] = replace(
            directory, nlink=links, names={**directory.names, name: number}
        )
        self.nodes[number] = replace(node, nlink=node.nlink + 1)

    def _take(self, parent: int, name: bytes) -> int:
        directory = self.nodes[parent]
        names = dict(directory.names)
        number = names.pop(name)
        links = directory.nlink - self.is_dir(number)
        self.nodes[parent] = replace(directory, nlink=links, names=names)
        node = self.nodes[number]
        self.nodes[number] = replace(node, nlink=node.nlink - 1)
        return number

    # --- contents -------------------------------------------------------------------------------

    def write(self, number: int, offset: int, data: bytes) -> None:
        node = self.nodes[number]
        old = node.content
        content = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        end = offset + len(data)
        small = end <= INLINE_BYTES and len(old) <= INLINE_BYTES and not node.allocated
        if small and (node.inline or not old):
            self.nodes[number] = replace(node, content=content, inline=True)
            return
        places = self._spilled(node)
        for block in range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            if block not in places:
                places[block] = self._new_place()
        self.nodes[number] = replace(
            node,
            content=content,
            places=places,
            inline=False,
            unwritten=node.unwritten - places.keys(),
        )

    def truncate(self, number: int, size: int) -> None:
        node = self.nodes[number]
        content = node.content[:size].ljust(size, b"\0")
        if node.inline and size <= INLINE_BYTES:
            self.nodes[number] = replace(node, content=content, inline=bool(size))
            return
        blocks = -(-size // BLOCK_BYTES)
        places = {b: place for b, place in self._spilled(node).items() if b < blocks}
        if size < len(node.content) and size % BLOCK_BYTES and blocks - 1 in places:
            # Same block, but nothing of it is written again before the shrinking is committed.
            places[blocks - 1] = self._new_place()
        unwritten = node.unwritten
        if size < len(node.content):
            unwritten = frozenset(block for block in unwritten if block < blocks)
        self.nodes[number] = replace(
            node, content=content, places=places, inline=False, unwritten=unwritten
        )

    def allocate(self, number: int, offset: int, end: int) -> None:
        """Every block of the region is the file's from now on; what it reads as does not change."""
        node = self.nodes[number]
        places = self._spilled(node)
        touched = range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
        new = frozenset(block for block in touched if block not in places)
        self.nodes[number] = replace(
            node, places=places, inline=False, unwritten=node.unwritten | new
        )

    def zero(self, number: int, offset: int, end: int, *, punch: bool) -> None:
        """Zeroes in a region, which is a hole afterwards (`punch`) or unwritten; never beyond the end."""
        node = self.nodes[number]
        old, size = node.content, len(node.content)
        zeroes = bytes(max(min(end, size) - offset, 0))
        content = old[:offset] + zeroes + old[offset + len(zeroes) :] if zeroes else old
        if node.inline:
            self.nodes[number] = replace(node, content=content)
            return
        behind = end // BLOCK_BYTES if end < size else -(-end // BLOCK_BYTES)
        whole = range(-(-offset // BLOCK_BYTES), behind)
        places = {block: place for block, place in node.places.items() if block not in whole}
        unwritten = node.unwritten - set(whole) if punch else node.unwritten | set(whole)
        self.nodes[number] = replace(node, content=content, places=places, unwritten=unwritten)

    def grow(self, number: int, size: int) -> None:
        """The size is at least that, by what was allocated."""
        node = self.nodes[number]
        self.nodes[number] = replace(node, content=node.content.ljust(size, b"\0"))

    def replaced(self, number: int, content: bytes, *, inline: bool) -> None:
        """The content is another, by steps that nobody has followed."""
        places = {} if inline or not content else {0: self._new_place()}
        self.nodes[number] = replace(
            self.nodes[number], content=content, inline=inline, places=places
        )

    def spill(self, number: int) -> None:
        """Inline data has moved into a block of its own."""
        node = self.nodes[number]
        self.nodes[number] = replace(node, places=self._spilled(node), inline=False)

    def _spilled(self, node: Node) -> dict[int, int]:
        """The places of a file that is inline no more."""
        return {0: self._new_place()} if node.inline else dict(node.places)

    def _new_place(self) -> int:
        self.generation += 1
        return self.generation

    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        node = self.nodes[number]
        self.nodes[number] = replace(node, xattrs={**node.xattrs, name: value})

    def remove_xattr(self, number: int, name: bytes) -> None:
        node = self.nodes[number]
        xattrs = {key: value for key, value in node.xattrs.items() if key != name}
        self.nodes[number] = replace(node, xattrs=xattrs)

    def chmod(self, number: int, mode: int) -> None:
        node = self.nodes[number]
        self.nodes[number] = replace(node, mode=stat.S_IFMT(node.mode) | mode)


async def read_back(filesystem: Filesystem) -> Tree:
    """Everything reachable from the root, as the model has it; blocks have no places here."""
    found: Tree = {}
    waiting = [ROOT_INODE]
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        inode = await filesystem.getattr(number)
        content = b""
        names: dict[bytes, int] = {}
        if inode.is_dir:
            for _, entry in await filesystem.readdir(number, 0, 1 << 20):
                names[entry.name] = entry.inode
            waiting += names.values()
        elif stat.S_ISLNK(inode.mode):
            content = await filesystem.readlink(number)
        else:
            content = await filesystem.read(number, 0, inode.size_bytes)
        xattrs = {
            name: await filesystem.getxattr(number, name) or b""
            for name in await filesystem.listxattr(number)
        }
        found[number] = Node(inode.mode, inode.nlink, content, names, xattrs)
    return found


def differences(expected: Tree, found: Tree) -> list[str]:
    """Where a walk and the model disagree, one line an inode; [] if nowhere."""
    lines = []
    for number in sorted({*expected, *found}):
        want, have = expected.get(number), found.get(number)
        if want is None or have is None:
            lines.append(f"inode {number}: {'missing' if have is None else 'must not be there'}")
        elif want.seen() != have.seen():
            lines.append(f"inode {number}: {have.seen()} instead of {want.seen()}")
        elif want.content != have.content:
            at = next(i for i, (a, b) in enumerate(zip(want.content, have.content)) if a != b)  # noqa: B905
            lines.append(f"inode {number}: content differs from byte {at} on")
    return lines
