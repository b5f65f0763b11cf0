"""The first pass: the superblock by majority, the journal replayed in memory, the state block.

Below: the device, layout.py, nvmefs.recovery.  Above: fsck.py; scan.py reads through `Source`.

    source = await load(device, findings)            raises Unusable: nothing can be checked
    data = await source.read(number)                 a block as it is after replay
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import trio

from mkfs.check.findings import Findings
from mkfs.check.space import Space
from nvmefs.device import Device
from nvmefs.errors import Corrupted, DeviceFailed
from nvmefs.layout import (
    BLOCK_BYTES,
    INCOMPAT_KNOWN,
    INCOMPAT_LOG_KNOWN,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    MAGIC,
    RO_COMPAT_KNOWN,
    STATE_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    JournalSuper,
    State,
    StateFlag,
    Superblock,
    superblock_places,
    unknown_features,
    usable_blocks,
)
from nvmefs.recovery import Replay, newest_journal_super, read_journal

RUN_BLOCKS = 256
Block = bytes | DeviceFailed


class Unusable(Exception):
    """There is nothing here that could be checked; the message says why, in one line."""


@dataclass
class Source:
    """A filesystem as it is after replay, without a write: blocks are read from `places` in the journal, by
    number, and else from where they belong.
    """

    device: Device
    superblock: Superblock
    findings: Findings
    places: dict[int, int] = field(default_factory=dict)
    journal_super: JournalSuper | None = None  # None: neither is valid
    replay: Replay = field(init=False)
    state: State | None = None
    newest_seq: int = 0  # the highest sequence met in a block
    whole: bool = True  # False: a part of the tree could not be read
    space: Space = field(init=False)

    def __post_init__(self) -> None:
        self.replay = Replay(self.superblock, 1, 0)
        self.space = Space(self.superblock)

    @property
    def unmounted_in_order(self) -> bool:
        return self.state is not None and bool(self.state.flags & StateFlag.CLEAN)

    async def read(self, number: int) -> bytes:
        """One block after replay. Raises DeviceFailed."""
        return await self.device.read(self.places.get(number, number))

    async def read_many(self, numbers: Sequence[int]) -> dict[int, Block]:
        """Blocks after replay, neighbours in one command; a DeviceFailed stands for a block's failure."""
        result: dict[int, Block] = {}
        runs: list[tuple[int, int]] = []
        for number in sorted(set(numbers)):
            first, count = runs[-1] if runs else (0, 0)
            at_home = number not in self.places and first not in self.places
            if at_home and first + count == number and 0 < count < RUN_BLOCKS:
                runs[-1] = (first, count + 1)
            else:
                runs.append((number, 1))
        if len(runs) == 1:  # as most are: no task is worth it
            await self._read_run(*runs[0], result)
            return result
        async with trio.open_nursery() as nursery:
            for first, count in runs:
                nursery.start_soon(self._read_run, first, count, result)
        return result

    async def _read_run(self, first: int, count: int, result: dict[int, Block]) -> None:
        """Blocks that stand where they belong, or one."""
        try:
            data = await self.device.read(self.places.get(first, first), count)
        except DeviceFailed as error:
            if count == 1:
                result[first] = error
                return
            for number in range(first, first + count):
                await self._read_run(number, 1, result)
            return
        for index in range(count):
            result[first + index] = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


async def load(device: Device, findings: Findings, superblock_at: int | None = None) -> Source:
    """Everything that the other passes need. `superblock_at`: believe the superblock in that block.

    Raises Unusable.
    """
    copies = await find_superblocks(device, superblock_at)
    refuse_unknown(copies.chosen)
    source = Source(device, copies.chosen, findings)
    replay = await replay_in_memory(source)
    superblock = source.superblock
    refuse_unknown(superblock)
    if superblock.block_count > device.block_count:
        raise Unusable(
            f"the filesystem has {superblock.block_count} blocks, the device only "
            f"{device.block_count}: it was truncated, or is not the whole device"
        )
    if SUPERBLOCK not in source.places:
        await compare_superblocks(device, copies, findings)
    if replay.records and (bits := unknown_features(superblock.incompat_log, INCOMPAT_LOG_KNOWN)):
        raise Unusable(f"unknown incompat_log feature bits {bits}: a newer nvmefs must replay it")
    try:
        block = await source.read(STATE_BLOCK)
        source.state = State.decode(block, superblock)
    except (Corrupted, DeviceFailed) as error:
        findings.add("state", str(error), block=STATE_BLOCK)
        return source
    source.newest_seq = int.from_bytes(block[48:56], "little")
    remark_on_state(source, replay)
    await check_journal_supers(source)
    return source


# --- superblock -------------------------------------------------------------------------------


@dataclass
class Copies:
    """The superblocks by place: those that are valid, why others are not, and what most of them say."""

    good: dict[int, Superblock] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    @property
    def chosen(self) -> Superblock:
        return majority(self.good)


async def find_superblocks(device: Device, superblock_at: int | None) -> Copies:
    """Those in the usual places, or the one named. Raises Unusable if none is valid."""
    last = usable_blocks(device.block_count) - 1
    guesses = [superblock_at] if superblock_at is not None else [SUPERBLOCK, SUPERBLOCK_COPY, last]
    copies = Copies()
    ours = [await try_superblock(device, place, copies) for place in guesses]
    if not copies.good:
        why = "; ".join(copies.faults.values()) if any(ours) else "none is here"
        raise Unusable(f"no valid superblock ({why}): if a copy stands elsewhere, name it with -b")
    return copies


async def compare_superblocks(device: Device, copies: Copies, findings: Findings) -> None:
    """Damaged and differing copies are findings. Not to be asked while the journal holds newer ones."""
    chosen, good, faults = copies.chosen, copies.good, copies.faults
    for place in superblock_places(chosen.block_count):
        if place not in good and place not in faults:
            await try_superblock(device, place, copies)
        what = "the superblock" if place == SUPERBLOCK else "the superblock's copy"
        if place not in good:
            findings.add(
                "superblock-damaged", f"{what} in block {place}: {faults[place]}", block=place
            )
        elif good[place] != chosen:
            names = [
                each.name
                for each in fields(Superblock)
                if getattr(good[place], each.name) != getattr(chosen, each.name)
            ]
            findings.add(
                "superblock-differs",
                f"{what} in block {place} has another {', '.join(names)}",
                block=place,
            )


async def try_superblock(device: Device, place: int, copies: Copies) -> bool:
    """Read the superblock at `place`; it is good, or has a fault.

    True if the block has our magic, be it valid or not.
    """
    if not 0 <= place < device.block_count:
        copies.faults[place] = f"block {place}: the device ends before it"
        return False
    block = b""
    try:
        block = await device.read(place)
        copies.good[place] = Superblock.decode(block, place)
    except (Corrupted, DeviceFailed) as error:
        copies.faults[place] = str(error)
    return block[4:8] == MAGIC.to_bytes(4, "little")


def majority(good: dict[int, Superblock]) -> Superblock:
    """What most copies say; among equals, what the first says."""
    votes = Counter(found.encode(SUPERBLOCK).hex() for found in good.values())
    return max(good.values(), key=lambda each: votes[each.encode(SUPERBLOCK).hex()])


def refuse_unknown(superblock: Superblock) -> None:
    """Raise Unusable if features are on that this program cannot check."""
    for name, bits, known in (
        ("incompat", superblock.incompat, INCOMPAT_KNOWN),
        ("ro_compat", superblock.ro_compat, RO_COMPAT_KNOWN),
    ):
        if unknown := unknown_features(bits, known):
            raise Unusable(f"unknown {name} feature bits {unknown}: use a newer fsck.nvmefs")


# --- journal and state ------------------------------------------------------------------------


async def replay_in_memory(source: Source) -> Replay:
    """What the journal holds, laid over the device. Without a valid journal superblock: nothing."""
    try:
        newest = await newest_journal_super(source.device, source.superblock)
        source.replay = await read_journal(source.device, source.superblock, newest)
    except (Corrupted, DeviceFailed) as error:
        source.findings.add("journal", f"{error}: checked without its records")
        return source.replay
    source.journal_super = newest
    source.places = source.replay.places
    source.superblock = source.replay.superblock
    source.space = Space(source.superblock)
    return source.replay


def remark_on_state(source: Source, replay: Replay) -> None:
    """What happened before, as far as the state block and the journal tell."""
    state, findings = source.state, source.findings
    assert state is not None
    if replay.records:
        findings.remark(
            f"the journal holds {replay.records} transactions, {len(replay.places)} blocks: "
            "checked as after their replay, which the next mount does"
        )
    if not source.unmounted_in_order:
        findings.remark("the filesystem is mounted, or was not unmounted in order")
    if state.flags & StateFlag.ERRORS:
        what = state.last_error.what.decode(errors="backslashreplace")
        findings.add(
            "error-recorded",
            f"a mount met an error in block {state.last_error.block}: {what}",
            block=state.last_error.block,
        )


async def check_journal_supers(source: Source) -> None:
    """Both are valid in a filesystem at rest; after a crash the one being written may be torn."""
    report = partial(source.findings.add, "journal-superblock")
    for place in (JOURNAL_SUPER_A, JOURNAL_SUPER_B):
        try:
            data = await source.device.read(place)
            JournalSuper.decode(data, place, source.superblock)
        except (Corrupted, DeviceFailed) as error:
            if source.unmounted_in_order:
                report(str(error), block=place)
            else:
                source.findings.remark(f"one of two journal superblocks is not valid: {error}")
