"""What is done to an image, by a seed: the same seed does the same.

    image = Mutator(base, seed).run()            a namespace of its own

Above: harm.py, which knows more ways.

Of each image one to four things are changed. Some are as a drive or memory would do it: bits, bytes, whole
blocks lost, zeroed or in the place of others, their checksums left wrong. Others as somebody who wants to do
harm: the checksums right again, fields set to the numbers at which programs break, items of the tree removed,
doubled and changed inside, and all of it also by way of the journal.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from driver import crc32c
from mkfs.nodes import encode_leaf
from nvmefs.errors import Corrupted
from nvmefs.layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    OFFSET_MASK,
    SLOT_BYTES,
    STATE_BLOCK,
    TREE_MAIN,
    JournalSuper,
    Key,
    Kind,
    RecordHeader,
    reseal,
    superblock_places,
)
from nvmefs.node import leaf_items
from tests.hostile.images import Base
from tests.support.ram import ZERO, RamNamespace

MOST_CHANGES = 4


class Mutator:
    """One image in the making."""

    def __init__(self, base: Base, seed: int) -> None:
        self.base = base
        self.rng = random.Random(f"{base.name}:{seed}")
        self.namespace = base.namespace.copy()
        self.blocks = self.namespace.blocks
        self.ways: list[tuple[int, Callable[[], None]]] = [
            (4, self.flip_bits),
            (6, self.set_field),
            (3, self.set_state_or_superblock),
            (2, self.swap_blocks),
            (2, self.lose_block),
            (4, self.change_slot),
            (12, self.change_items),
            (3, self.add_record),
            (1, self.cut_device),
        ]

    def run(self) -> RamNamespace:
        weights, ways = zip(*self.ways, strict=True)
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, MOST_CHANGES))):
            self.rng.choices(ways, weights)[0]()
        return self.namespace

    # --- blocks -------------------------------------------------------------------------------

    def get(self, number: int) -> bytearray:
        """A block as a mount would see it: the journal's image of it, if there is one."""
        image = self.base.journaled.get(number)
        return bytearray(self.blocks.get(image.block if image else number, ZERO))

    def put(self, number: int, data: bytearray, *, mend: bool) -> None:
        """Change a block. Mended, it is changed where a mount sees it; what decays does so in its home."""
        if mend:
            places = superblock_places(self.base.superblock.block_count)
            reseal(data, 0 if number in places else self.base.superblock.checksum_seed)
        image = self.base.journaled.get(number)
        if image is None or not mend:
            self.blocks[number] = bytes(data)
            return
        self.blocks[image.block] = bytes(data)
        header = bytearray(self.blocks.get(image.header, ZERO))
        struct.pack_into("<I", header, image.tag_at, crc32c(data))
        reseal(header, self.base.superblock.checksum_seed)
        self.blocks[image.header] = bytes(header)

    def some_block(self) -> int:
        """A block of metadata, a node more often than not."""
        nodes = self.base.nodes if self.rng.random() < 0.5 else self.base.metadata
        return self.rng.choice(nodes)

    def often(self) -> bool:
        return self.rng.random() < 0.75

    def some_number(self, bits: int) -> int:
        """A number at which programs break, or any."""
        rng, count = self.rng, self.namespace.block_count
        numbers = [
            0, 1, 2, 3, 15, 16, 17, 20, 21, 63, 64, 127, 128, 255, 256, 900, 1000, 4095, 4096, 65535,
            2**31 - 1, 2**31, 2**32 - 1, 2**48 - 1, 2**48, 2**56 - 2, 2**56 - 1, 2**56, 2**62, 2**63 - 1,
            2**63, 2**64 - 1, count - 1, count, count + 1, rng.choice(self.base.nodes),
            rng.randrange(max(count, 1)), rng.randrange(64), rng.getrandbits(64),
        ]  # fmt: skip
        return rng.choice(numbers) & (1 << bits) - 1

    # --- ways ---------------------------------------------------------------------------------

    def flip_bits(self) -> None:
        number = self.some_block()
        data = self.get(number)
        for _ in range(self.rng.choice((1, 1, 2, 16))):
            data[self.rng.randrange(BLOCK_BYTES)] ^= 1 << self.rng.randrange(8)
        self.put(number, data, mend=self.often())

    def set_field(self) -> None:
        number = self.some_block()
        self.overwrite(number, self.rng.choice((HEADER_BYTES, 200, 400, BLOCK_BYTES - 8)))

    def overwrite(self, number: int, below: int) -> None:
        """A field somewhere in the first `below` bytes of a block."""
        data = self.get(number)
        code, bits = self.rng.choice((("B", 8), ("<H", 16), ("<I", 32), ("<Q", 64), ("<Q", 64)))
        at = self.rng.randrange(4, below) // (bits // 8) * (bits // 8)
        struct.pack_into(code, data, max(at, 4), self.some_number(bits))
        self.put(number, data, mend=self.often())

    def set_state_or_superblock(self) -> None:
        """The same change in all copies of the superblock, or in state or journal superblocks."""
        if self.rng.random() < 0.4:
            at, value = self.rng.randrange(4, 320), self.some_number(32)
            for number in superblock_places(self.base.superblock.block_count):
                data = self.get(number)
                struct.pack_into("<I", data, at, value)
                self.put(number, data, mend=True)
            return
        self.overwrite(
            self.rng.choice((STATE_BLOCK, STATE_BLOCK, JOURNAL_SUPER_A, JOURNAL_SUPER_B)), 340
        )

    def swap_blocks(self) -> None:
        """Two blocks change places, or one stands in both; now and then each with its own number."""
        one, other = self.some_block(), self.some_block()
        first, second = self.get(one), self.get(other)
        mend = self.often()
        if mend:
            struct.pack_into("<Q", first, 32, other)
            struct.pack_into("<Q", second, 32, one)
        self.put(other, first, mend=mend)
        if self.rng.random() < 0.5:
            self.put(one, second, mend=mend)

    def lose_block(self) -> None:
        data = bytearray(
            self.rng.choice((ZERO, self.rng.randbytes(BLOCK_BYTES), b"\xff" * BLOCK_BYTES))
        )
        self.put(self.some_block(), data, mend=False)

    def change_slot(self) -> None:
        """A key, a child or the place of a value in a node."""
        number = self.rng.choice(self.base.nodes)
        data = self.get(number)
        slots = max(1, int.from_bytes(data[56:58], "little"))
        at = HEADER_BYTES + self.rng.randrange(min(slots, 160)) * SLOT_BYTES
        code, offset, bits = self.rng.choice(
            (("<Q", 0, 64), ("<Q", 8, 64), ("<Q", 16, 64), ("<H", 16, 16), ("<H", 18, 16))
        )
        struct.pack_into(code, data, at + offset, self.some_number(bits))
        self.put(number, data, mend=True)

    def cut_device(self) -> None:
        """The device is a little, or much, smaller than the filesystem, or larger."""
        count = self.namespace.block_count
        count = self.rng.choice((count - 1, count // 2, count + 7, 17))
        kept = {number: data for number, data in self.blocks.items() if number < count}
        self.namespace = RamNamespace(count, kept)
        self.blocks = self.namespace.blocks

    # --- items --------------------------------------------------------------------------------

    def change_items(self) -> None:
        """The items of a leaf: some removed, doubled under another key, or changed inside."""
        number = self.rng.choice(self.base.leaves)
        data = self.get(number)
        try:
            items = dict(leaf_items(data))
        except (struct.error, Corrupted):
            return  # changed before, beyond recognition
        for _ in range(self.rng.choice((1, 1, 2, 4))):
            self.change_item(items)
        header = memoryview(data)
        try:
            leaf = encode_leaf(
                number, sorted(items.items()), self.base.superblock, owner=TREE_MAIN,
                seq=int.from_bytes(header[48:56], "little"),
            )  # fmt: skip
        except ValueError:
            return  # too much for a leaf
        self.put(number, leaf, mend=True)

    def change_item(self, items: dict[Key, bytes]) -> None:
        rng = self.rng
        if not items:
            return
        place = rng.choice(sorted(items))
        way = rng.randrange(5)
        if way == 0:
            del items[place]
        elif way == 1:
            items[self.other_key(place)] = items[place]
        elif way == 2:
            items[self.other_key(place)] = items.pop(place)
        else:
            items[place] = self.other_value(items[place])

    def other_key(self, place: Key) -> Key:
        """Another inode, kind or offset; mostly near the old one, so that it stays in its leaf's range."""
        rng, (inode, rest) = self.rng, place
        kind, offset = rest >> 56, rest & OFFSET_MASK
        way = rng.randrange(4)
        if way == 0:
            inode = rng.choice((inode + 1, max(inode - 1, 0), self.some_number(64)))
        elif way == 1:
            kind = rng.choice((*Kind, rng.randrange(256)))
        else:
            offset = (
                rng.choice((offset + 1, max(offset - 1, 0), self.some_number(56))) & OFFSET_MASK
            )
        return inode & 2**64 - 1, kind << 56 | offset

    def other_value(self, value: bytes) -> bytes:
        rng, data = self.rng, bytearray(value)
        way = rng.randrange(5)
        if way == 0 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 1:
            del data[rng.randrange(len(data) + 1) :]
        elif way == 2 and len(data) < 900:
            data += rng.randbytes(rng.choice((1, 8, 100)))
        elif len(data) >= 8:
            code, bits = rng.choice((("B", 8), ("<H", 16), ("<I", 32), ("<Q", 64)))
            size = bits // 8
            at = rng.randrange(len(data) - size + 1)
            if rng.random() < 0.7:
                at = at // size * size
            struct.pack_into(code, data, at, self.some_number(bits))
        return bytes(data[:1000])

    # --- journal ------------------------------------------------------------------------------

    def add_record(self) -> None:
        """A committed transaction whose images are damaged, or go where none may go."""
        superblock = self.base.superblock
        images = []
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            home = (
                self.some_block()
                if self.often()
                else self.rng.randrange(17, superblock.block_count)
            )
            data = self.get(home)
            data[self.rng.randrange(BLOCK_BYTES)] ^= 1 << self.rng.randrange(8)
            if self.often():
                reseal(data, superblock.checksum_seed)
            images.append((max(home, 17), bytes(data)))
        self.commit(images)

    def commit(self, images: list[tuple[int, bytes]]) -> None:
        """One record with these images behind those that are there; nothing if no journal is left."""
        superblock = self.base.superblock
        found = []
        for place in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
            try:
                found.append(JournalSuper.decode(self.get(place), place, superblock))
            except Corrupted:
                continue
        if not found:
            return
        newest = max(found, key=lambda each: each.generation)
        at, seq = newest.tail_block, newest.tail_seq + len(self.base.headers)
        if self.base.headers:
            at = self.base.records[-1] - superblock.journal_start
        at %= superblock.journal_blocks - 8
        tags = [(home, crc32c(image)) for home, image in images]
        header = RecordHeader(newest.epoch, seq, 0, 1, len(images), tags)
        block = bytearray(BLOCK_BYTES)
        header.encode_into(block, superblock.journal_start + at, superblock)
        self.blocks[superblock.journal_start + at] = bytes(block)
        for index, (_, image) in enumerate(images, 1):
            self.blocks[superblock.journal_start + at + index] = image
