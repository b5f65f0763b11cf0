"""Reading the journal: which committed blocks are not home yet.

Below: the device and layout.py.  Above: journal.py at mount, and fsck, which only looks.

    journal_super = await newest_journal_super(device, superblock)
    replay = await read_journal(device, superblock, journal_super)      writes nothing
    replay.places[block]                                where in the journal its newest image stands

The images themselves are read when they are needed: a journal has up to a gigabyte of them.

A record counts if and only if each header of its chain verifies, has the journal's epoch, the expected
sequence and position, and every image has the checksum its tag says. The first that does not is the end.

A record may hold the superblock: from that record on it says which blocks there are (decision 0012).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from driver import crc32c
from nvmefs.device import Device
from nvmefs.errors import Corrupted
from nvmefs.layout import (
    BLOCK_BYTES,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    SUPERBLOCK,
    TAGS_PER_HEADER,
    JournalSuper,
    RecordHeader,
    Superblock,
    superblock_places,
)

READ_AHEAD_BLOCKS = 256


@dataclass
class Replay:
    """What the journal holds: where the newest image of each home block stands, how many records, and where
    it ends.

    `places` are blocks of the device. `head_block` is relative to the journal's start; `next_seq` is the
    sequence of the next record; `superblock` is the one that holds after all records.
    """

    superblock: Superblock
    next_seq: int
    head_block: int
    records: int = 0
    places: dict[int, int] = field(default_factory=dict)


async def newest_journal_super(device: Device, superblock: Superblock) -> JournalSuper:
    """The valid journal superblock of the higher generation. Raises Corrupted if neither is valid."""
    found: list[JournalSuper] = []
    faults: list[str] = []
    for place in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        try:
            found.append(JournalSuper.decode(await device.read(place), place, superblock))
        except Corrupted as error:
            faults.append(str(error))
    if not found:
        raise Corrupted(-1, f"neither journal superblock is valid ({'; '.join(faults)})")
    return max(found, key=lambda each: each.generation)


class _Reader:
    """Journal blocks by position, read some hundred at a time."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self.device = device
        self.superblock = superblock
        self.length = superblock.journal_blocks
        self.buffer = b""
        self.first = 0

    async def block(self, position: int) -> memoryview:
        """The 4,096 bytes at `position`, which may exceed the length: the journal is a ring."""
        position %= self.length
        if not self.first <= position < self.first + len(self.buffer) // BLOCK_BYTES:
            block, count = next(self.superblock.journal_runs(position, READ_AHEAD_BLOCKS))
            self.buffer = await self.device.read(block, count)
            self.first = position
        at = (position - self.first) * BLOCK_BYTES
        return memoryview(self.buffer)[at : at + BLOCK_BYTES]


async def read_journal(
    device: Device, superblock: Superblock, journal_super: JournalSuper
) -> Replay:
    """Every committed record from the tail on. Writes nothing. Raises DeviceFailed."""
    replay = Replay(superblock, journal_super.tail_seq, journal_super.tail_block)
    async for record in records(device, superblock, journal_super):
        replay.superblock = record.superblock
        replay.places.update(record.places)
        replay.records += 1
        replay.next_seq = record.seq + 1
        replay.head_block = (record.position + record.blocks) % superblock.journal_blocks
    return replay


@dataclass(frozen=True)
class Record:
    """A committed transaction: where it stands (position and blocks), and where its images do, by home block.

    `superblock` is the one that holds from here on.
    """

    seq: int
    position: int
    blocks: int
    places: dict[int, int]
    superblock: Superblock


async def records(
    device: Device, superblock: Superblock, journal_super: JournalSuper
) -> AsyncIterator[Record]:
    """The committed records in sequence, from the tail on. Writes nothing. Raises DeviceFailed."""
    reader = _Reader(device, superblock)
    seq, position, seen_blocks = journal_super.tail_seq, journal_super.tail_block, 0
    while True:
        found = await _read_record(reader, superblock, journal_super.epoch, seq, position)
        if found is None:
            return
        places, length = found
        changed = await _superblock_after(device, superblock, places)
        seen_blocks += length
        if changed is None or seen_blocks > superblock.journal_blocks:
            return
        superblock = changed
        yield Record(seq, position, length, places, superblock)
        seq, position = seq + 1, (position + length) % superblock.journal_blocks


async def _superblock_after(
    device: Device, superblock: Superblock, images: dict[int, int]
) -> Superblock | None:
    """The superblock that holds after a record; None if the record cannot be one of this filesystem.

    Superblock and copies change together: a record has all of them, saying the same, or none.
    """
    try:
        if SUPERBLOCK in images:
            later = Superblock.decode(await device.read(images[SUPERBLOCK]), SUPERBLOCK)
            if not superblock.may_become(later):
                return None
            superblock = later
        places = superblock_places(superblock.block_count)
        found = [place for place in places if place in images]
        if found and found != places:
            return None
        for place in found:
            if Superblock.decode(await device.read(images[place]), place) != superblock:
                return None
    except Corrupted:
        return None
    return superblock if all(map(superblock.is_journaled, images)) else None


async def _read_record(
    reader: _Reader, superblock: Superblock, epoch: int, seq: int, start: int
) -> tuple[dict[int, int], int] | None:
    """(places of the images, length in blocks) of the record at position `start`, or None if no whole record
    stands there.
    """
    places: dict[int, int] = {}
    position = start
    index, headers, total = 0, 1, 0
    while index < headers:
        try:
            header = RecordHeader.decode(
                await reader.block(position), superblock.journal_place(position), superblock
            )
        except Corrupted:
            return None  # the end of the journal: nothing valid was written here
        if (header.epoch, header.seq, header.index) != (epoch, seq, index):
            return None
        if index == 0:
            headers, total = header.headers, header.images
            if headers != max(1, -(-total // TAGS_PER_HEADER)) or total > reader.length:
                return None
        elif (header.headers, header.images) != (headers, total):
            return None
        position += 1
        for home, checksum in header.tags:
            if crc32c(await reader.block(position)) != checksum:
                return None
            places[home] = superblock.journal_place(position)
            position += 1
        index += 1
    length = position - start
    return (places, length) if length == total + headers else None


async def newest_images(
    device: Device, places: Mapping[int, int], homes: Sequence[int]
) -> dict[int, bytes]:
    """The images of `homes` from the journal; neighbours in one command. Raises DeviceFailed."""
    images: dict[int, bytes] = {}
    at = 0
    while at < len(homes):
        first, count = places[homes[at]], 1
        while at + count < len(homes) and places[homes[at + count]] == first + count:
            count += 1
        data = await device.read(first, count)
        for index in range(count):
            images[homes[at + index]] = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        at += count
    return images
