"""What can be dumped, one function a subject: each reads what it needs and hands it to an output.

Below: check/load.py (the filesystem as it is after replay), check/scan.py, describe.py.  Above: dump.py.

    await SUBJECTS["inode"](View(source, output), "17")

An output takes `head(values)`, once, then any number of `row(kind, values)`: a tree of millions of items is
never in memory. Nothing here stops at what is wrong; it is shown, and the faults that were met come last.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from mkfs import describe
from mkfs.check.load import Copies, Source, find_superblocks, try_superblock
from mkfs.check.scan import HIGHEST, LOWEST, Walk
from mkfs.check.space import runs
from mkfs.cli import ToolError, UsageError
from mkfs.describe import Values, text_of
from nvmefs.device import Device
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.hashed import next_hash
from nvmefs.hashing import name_hash
from nvmefs.items import OVERFLOWED, decode_dirents
from nvmefs.layout import (
    BITMAP_AT,
    GROUP_BLOCKS,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    OFFSET_MASK,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    BlockType,
    JournalSuper,
    Key,
    Kind,
    RecordHeader,
    Root,
    bitmap_block,
    fixed_bits,
    fixed_blocks,
    key,
    longest_free_run,
    superblock_places,
    usable_blocks,
    verify,
)
from nvmefs.layout import (
    describe as key_text,
)
from nvmefs.recovery import newest_journal_super, records


class Output(Protocol):
    """Where a dump goes."""

    def head(self, values: Values) -> None: ...
    def row(self, kind: str, values: Values) -> None: ...


@dataclass
class View:
    """The filesystem that is looked at, and where the answer goes. `raw`: as it stands on the device, without
    what the journal holds.
    """

    source: Source
    output: Output
    raw: bool = False

    async def block(self, number: int) -> bytes:
        """A block as it is looked at. Raises DeviceFailed."""
        source = self.source
        return await (source.device.read(number) if self.raw else source.read(number))

    def root(self) -> Root:
        """The tree's root. Raises ToolError if the state does not say it."""
        state = self.source.state
        if state is None:
            raise ToolError(
                "the state block is bad, so the tree's root is not known: see `dump state`"
            )
        return state.roots[0]

    def faults(self) -> None:
        """What was met on the way and is wrong."""
        for line in self.source.findings.lines():
            self.output.row("fault", {"what": line})


def number_of(text: str, what: str, limit: int) -> int:
    """A number of the command line, below `limit`. Raises UsageError."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < limit:
        raise UsageError(f"{text!r} is no {what}: one is a number from 0 to {limit - 1}")
    return value


# --- superblock, state --------------------------------------------------------------------------------


async def show_superblocks(device: Device, output: Output) -> int:
    """What most copies say, and each of them; how many are valid. This alone needs no valid superblock."""
    places = {SUPERBLOCK, SUPERBLOCK_COPY, usable_blocks(device.block_count) - 1}
    copies = Copies()
    for place in sorted(places):
        await try_superblock(device, place, copies)
    if copies.good:
        places = set(superblock_places(copies.chosen.block_count))
        for place in sorted(places - copies.good.keys() - copies.faults.keys()):
            await try_superblock(device, place, copies)
    chosen = describe.superblock_values(copies.chosen) if copies.good else {}
    output.head({"device_blocks": device.block_count, "valid": len(copies.good), **chosen})
    for place in sorted(places | copies.good.keys()):
        if place in copies.faults:
            output.row("superblock", {"block": place, "fault": copies.faults[place]})
            continue
        values = describe.superblock_values(copies.good[place])
        other = {name: value for name, value in values.items() if value != chosen[name]}
        output.row("superblock", {"block": place, **other})
    return len(copies.good)


async def show_state(view: View, _: str | None) -> None:
    """The state block."""
    data = await view.block(STATE_BLOCK)
    view.output.head(describe.block_values(STATE_BLOCK, data, view.source.superblock))


# --- groups and free space ----------------------------------------------------------------------------


async def _bits(view: View, group: int) -> tuple[int | None, str]:
    """The bitmap of a group, and what is to be said of it; None if it cannot be believed."""
    superblock, number = view.source.superblock, bitmap_block(group)
    try:
        data = await view.block(number)
        if not any(data):
            return fixed_bits(group, superblock), "never written"
        verify(
            data,
            number,
            BlockType.BITMAP,
            seed=superblock.checksum_seed,
            uuid=superblock.meta_uuid,
        )
    except (Corrupted, DeviceFailed) as error:
        return None, str(error)
    return int.from_bytes(data[BITMAP_AT:], "little"), "written"


async def show_group(view: View, text: str | None) -> None:
    """One group: what is fixed in it, and its free runs."""
    superblock = view.source.superblock
    group = number_of(text or "", "group", superblock.group_count)
    first = group * GROUP_BLOCKS
    bits, said = await _bits(view, group)
    values: Values = {
        "group": group,
        "first_block": first,
        "blocks": min(GROUP_BLOCKS, superblock.block_count - first),
        "bitmap_block": bitmap_block(group),
        "bitmap": said if bits is not None else "bad",
    }
    if bits is None:
        values["fault"] = said
    else:
        values["free_blocks"] = GROUP_BLOCKS - bits.bit_count()
        values["longest_free_run"] = longest_free_run(bits)
    view.output.head(values)
    for start, count in fixed_blocks(group, superblock):
        view.output.row("fixed", {"start": start, "count": count})
    if bits is not None:
        for start, count in runs(~bits & (1 << GROUP_BLOCKS) - 1):
            view.output.row("free", {"start": first + start, "count": count})


async def show_free(view: View, _: str | None) -> None:
    """Free space of all groups, and how it is cut up: runs by their length, in powers of two."""
    superblock = view.source.superblock
    lengths: Counter[int] = Counter()
    blocks: Counter[int] = Counter()
    free, bad = 0, []
    for group in range(superblock.group_count):
        bits, said = await _bits(view, group)
        if bits is None:
            bad.append({"group": group, "fault": said})
            continue
        free += GROUP_BLOCKS - bits.bit_count()
        for _start, count in runs(~bits & (1 << GROUP_BLOCKS) - 1):
            lengths[count.bit_length() - 1] += 1
            blocks[count.bit_length() - 1] += count
    state = view.source.state
    view.output.head(
        {
            "groups": superblock.group_count,
            "free_blocks": free,
            "state_says": state.free_blocks if state is not None else "unknown",
        }
    )
    for values in bad:
        view.output.row("bad", values)
    for power in sorted(lengths):
        row = {"from": 1 << power, "to": (2 << power) - 1, "runs": lengths[power]}
        view.output.row("runs", {**row, "blocks": blocks[power]})


# --- tree ---------------------------------------------------------------------------------------------


class Printer:
    """A visitor that shows what it sees. `nodes`: the nodes too, not only the items."""

    def __init__(self, view: View, low: Key, high: Key, *, nodes: bool) -> None:
        self.view, self.low, self.high, self.nodes = view, low, high, nodes
        self.items = 0

    def node(self, block: int, level: int) -> None:
        if self.nodes:
            self.view.output.row("node", {"block": block, "level": level})

    def lost(self, low: Key, high: Key) -> None:
        shown = {"from": key_text(low), "up_to": key_text(high)}
        self.view.output.row("lost", shown)

    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None:
        for place, value in items:
            if self.low <= place <= self.high:
                self.items += 1
                self.view.output.row(
                    *describe.item_values(place, value, self.view.source.superblock)
                )


async def _print(view: View, low: Key, high: Key, *, nodes: bool) -> int:
    """Show items with keys of low..high; how many there were."""
    printer = Printer(view, low, high, nodes=nodes)
    await Walk(view.source, view.root(), printer).run(low, high)
    return printer.items


async def show_tree(view: View, text: str | None) -> None:
    """All nodes and items, or those of some inodes: 17, 17-20, 17-."""
    low, high, root = LOWEST, HIGHEST, view.root()
    if text is not None:
        match = re.fullmatch(r"([0-9]{1,18})(-([0-9]{1,18})?)?", text)
        if match is None:
            raise UsageError(f"{text!r} is no range of inodes: write 17, 17-20 or 17-")
        last = int(match[3]) if match[3] else 2**64 - 1 if match[2] else int(match[1])
        low, high = (int(match[1]), 0), (last, 2**64 - 1)
    view.output.head({"tree": root.id, "root": root.block, "level": root.level})
    await _print(view, low, high, nodes=True)
    view.faults()


async def show_inode(view: View, text: str | None) -> None:
    """All items of an inode."""
    number = number_of(text or "", "inode", 2**64)
    view.output.head({"inode": number})
    await _items_of(view, number)


async def _items_of(view: View, number: int) -> None:
    if not await _print(view, (number, 0), (number, 2**64 - 1), nodes=False):
        view.output.row("fault", {"what": f"inode {number} has no item that could be read"})
    orphan = key(0, Kind.ORPHAN, number & OFFSET_MASK)
    await _print(view, orphan, orphan, nodes=False)
    view.faults()


@dataclass
class Finder:
    """A visitor that takes the value of one key."""

    wanted: Key
    value: bytes | None = None
    unread: bool = field(default=False)

    def node(self, block: int, level: int) -> None:
        """Only items are of interest."""

    def lost(self, low: Key, high: Key) -> None:
        self.unread = True

    def leaf(self, block: int, low: Key, items: Iterable[tuple[Key, bytes]]) -> None:
        self.value = dict(items).get(self.wanted, self.value)


async def show_path(view: View, text: str | None) -> None:
    """The inode that a path leads to; symbolic links are not followed."""
    number = ROOT_INODE
    for name in filter(None, os.fsencode(text or "").split(b"/")):
        number = await _lookup(view, number, name)
    view.output.head({"path": text, "inode": number})
    await _items_of(view, number)


async def _lookup(view: View, directory: int, name: bytes) -> int:
    """The inode of a name. Raises ToolError."""
    place = name_hash(view.source.superblock.hash_seed, name)
    shown = f"{text_of(name)!r} in directory {directory}"
    while True:
        finder = Finder(key(directory, Kind.DIRENT, place))
        await Walk(view.source, view.root(), finder).run(finder.wanted, finder.wanted)
        if finder.unread:
            raise ToolError(f"{shown}: {'; '.join(view.source.findings.lines())}")
        if finder.value is None:
            raise ToolError(f"{shown}: there is no such name")
        try:
            bits, entries = decode_dirents(directory, finder.value)
        except Corrupted as error:
            raise ToolError(f"{shown}: {error}") from error
        for entry in entries:
            if entry.name == name:
                return entry.inode
        if not bits & OVERFLOWED:
            raise ToolError(f"{shown}: there is no such name")
        place = next_hash(place)


# --- blocks and journal -------------------------------------------------------------------------------


async def show_block(view: View, text: str | None) -> None:
    """Any block: its place, its header, what is wrong with it, and its content."""
    source = view.source
    number = number_of(text or "", "block", source.device.block_count)
    data = await view.block(number)
    values = describe.block_values(number, data, source.superblock)
    values["journal_holds_a_newer_one"] = number in source.places
    view.output.head(values)
    if "header" not in values:
        for line in describe.hex_lines(data) if any(data) else ():
            view.output.row("bytes", {"hex": line})
    elif values["header"]["type"] == f"{BlockType.NODE.value} (node)":
        for kind, slot in describe.slot_values(data, source.superblock):
            view.output.row(kind, slot)


async def show_journal(view: View, _: str | None) -> None:
    """Both journal superblocks, the records that count, and why they end."""
    source = view.source
    copies = await find_superblocks(source.device, None)
    superblock = copies.chosen  # the records say themselves what comes after it
    rows = []
    for place in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        try:
            journal = JournalSuper.decode(await source.device.read(place), place, superblock)
        except (Corrupted, DeviceFailed) as error:
            rows.append({"block": place, "fault": str(error)})
        else:
            rows.append({"block": place, **describe.journal_values(journal)})
    view.output.head({"start": superblock.journal_start, "blocks": superblock.journal_blocks})
    for row in rows:
        view.output.row("superblock", row)
    try:
        newest = await newest_journal_super(source.device, superblock)
    except Corrupted as error:
        view.output.row("fault", {"what": str(error)})
        return
    position, seq = newest.tail_block, newest.tail_seq
    async for record in records(source.device, superblock, newest):
        homes = sorted(record.places)
        view.output.row(
            "record",
            {
                "seq": record.seq,
                "position": record.position,
                "blocks": record.blocks,
                "images": len(homes),
                "homes": homes,
            },
        )
        position, seq = (
            (record.position + record.blocks) % superblock.journal_blocks,
            record.seq + 1,
        )
    place = superblock.journal_place(position)
    view.output.row("end", {"block": place, "why": await _why_it_ends(view, place, seq, newest)})


async def _why_it_ends(view: View, place: int, seq: int, newest: JournalSuper) -> str:
    """What stands where the next record would begin."""
    try:
        header = RecordHeader.decode(
            await view.source.device.read(place), place, view.source.superblock
        )
    except (Corrupted, DeviceFailed) as error:
        return str(error)
    if header.epoch != newest.epoch:
        return f"a record of another epoch, {header.epoch:#x}"
    if header.seq != seq:
        return f"record {header.seq}, {seq} would be the next"
    return f"record {seq} is not whole"


Show = Callable[[View, "str | None"], Awaitable[None]]
SUBJECTS: dict[str, tuple[Show, str | None]] = {  # and the name of the argument that it must have
    "state": (show_state, None),
    "group": (show_group, "N"),
    "inode": (show_inode, "N"),
    "path": (show_path, "PATH"),
    "tree": (show_tree, None),
    "block": (show_block, "N"),
    "journal": (show_journal, None),
    "free": (show_free, None),
}
