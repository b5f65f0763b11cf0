"""The filesystems that are damaged: small, and with one of each kind of thing in them.

base = await make("used")            its blocks, and where its metadata stands
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import (
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    TAGS_AT,
    RecordHeader,
    State,
    Superblock,
    bitmap_block,
    superblock_places,
)
from nvmefs.node import children, node_level
from nvmefs.recovery import newest_journal_super, read_journal
from tests.mkfs.builder import small_tree
from tests.mkfs.repairing import with_data
from tests.support.images import TINY_BLOCKS, TINY_JOURNAL_BLOCKS, fresh
from tests.support.ram import RamNamespace

TAG_BYTES = 16
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
NAMES = ("used", "busy", "crashed", "built", "used", "busy", "crashed", "built", "busy", "fresh")


@dataclass
class Journaled:
    """Where the newest image of a block stands in the journal: its block, its header's, and its checksum."""

    block: int
    header: int
    tag_at: int


@dataclass
class Base:
    """A sound image. `nodes` are the tree's blocks, `leaves` those of level 0.

    What a replay would write: `headers` are the blocks of its records' headers, `journaled` its images.
    """

    name: str
    namespace: RamNamespace
    superblock: Superblock
    nodes: list[int] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    records: list[int] = field(default_factory=list)  # blocks of the journal that are in use
    headers: list[int] = field(default_factory=list)
    journaled: dict[int, Journaled] = field(default_factory=dict)

    @property
    def metadata(self) -> list[int]:
        """Every block whose content is the format's."""
        superblock = self.superblock
        bitmaps = [bitmap_block(group) for group in range(superblock.group_count)]
        return [
            *superblock_places(superblock.block_count),
            STATE_BLOCK, JOURNAL_SUPER_A, JOURNAL_SUPER_B,
            *bitmaps, *self.nodes, *self.records,
        ]  # fmt: skip


async def make(name: str) -> Base:
    """One of NAMES, which are in the proportion in which they are damaged. The same each time."""
    if name == "built":
        builder = small_tree()
        namespace = with_data(builder, builder.build())
    else:
        namespace = await fresh(TINY_BLOCKS, journal_blocks=TINY_JOURNAL_BLOCKS)
        if name != "fresh":
            filesystem = await Filesystem.open(namespace.device(), Options())
            await fill(filesystem, 24 if name == "busy" else 6)
            if name == "crashed":
                await filesystem.transactions.commit()
            else:
                await filesystem.close()
    return await described(name, namespace)


async def fill(filesystem: Filesystem, files: int) -> None:
    """Files of every sort, in a few transactions."""
    sub = (await filesystem.create(ROOT_INODE, b"sub", DIRECTORY, 0, 0)).number
    deep = (await filesystem.create(sub, b"deep", DIRECTORY, 0, 0)).number
    for index in range(files):
        place = (ROOT_INODE, sub, deep)[index % 3]
        inode = await filesystem.create(place, b"file %d" % index, FILE, 7, 7)
        if index % 2:
            await filesystem.write(inode.number, 0, bytes([index]) * 5000)
        else:
            await filesystem.write(inode.number, 0, bytes([index]) * 1200)
    big = await filesystem.create(sub, b"big", FILE, 0, 0)
    for at in range(5):
        await filesystem.write(big.number, at * 16384, b"big" * 1000)
    await filesystem.link(big.number, ROOT_INODE, b"second name")
    await filesystem.setxattr(big.number, b"user.short", b"value")
    await filesystem.setxattr(big.number, b"user.long", b"v" * 3000)
    await filesystem.symlink(ROOT_INODE, b"link", b"sub/big", 0, 0)
    await filesystem.symlink(deep, b"far link", b"x" * 2000, 0, 0)
    await filesystem.create(deep, b"device", stat.S_IFCHR | 0o600, 0, 0, rdev=0x103)
    await filesystem.transactions.commit()
    gone = await filesystem.create(sub, b"gone", FILE, 0, 0)
    await filesystem.write(gone.number, 0, b"gone" * 3000)
    await filesystem.unlink(sub, b"gone")
    await filesystem.transactions.commit()


async def described(name: str, namespace: RamNamespace) -> Base:
    """Where the metadata stands."""
    device = namespace.device()
    superblock = Superblock.decode(await device.read(SUPERBLOCK), SUPERBLOCK)
    replay = await read_journal(device, superblock, await newest_journal_super(device, superblock))
    base = Base(name, namespace, superblock)
    start = superblock.journal_start
    base.records = [
        start + at for at in range(min(replay.head_block + 1, superblock.journal_blocks))
    ]

    if replay.records:
        find_images(base)

    def block(number: int) -> bytes:
        return namespace.blocks[replay.places.get(number, number)]

    root = State.decode(block(STATE_BLOCK), superblock).roots[0]
    waiting = [root.block]
    while waiting:
        number = waiting.pop()
        data = block(number)
        base.nodes.append(number)
        if node_level(data):
            waiting += [child for _, child in children(data)]
        else:
            base.leaves.append(number)
    return base


def find_images(base: Base) -> None:
    """The records of a journal that begins at its first block and was never at its end."""
    superblock = base.superblock
    at, end = superblock.journal_start, base.records[-1]
    while at < end:
        header = RecordHeader.decode(base.namespace.blocks[at], at, superblock)
        base.headers.append(at)
        for index, (home, _) in enumerate(header.tags):
            tag_at = TAGS_AT + index * TAG_BYTES + 8
            base.journaled[home] = Journaled(at + 1 + index, at, tag_at)
        at += 1 + len(header.tags)
