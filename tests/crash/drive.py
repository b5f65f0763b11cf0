"""What a power cut leaves on a drive with a volatile write cache. The fault model:

* A write that has completed is durable if it had FUA, or if a flush that began later has completed.
* Of every other write that was begun, any subset of its 512-byte sectors may have become durable, in any
  order: an older write to a sector may survive while a newer one is lost.
* A sector holds the old bytes or the new ones, never a mixture.
* What is durable stays as it is. Reads never fail.

    for moment in moments(before, log):              a cut while each command is in flight, and at the end
        for image in moment.image(subset): ...       subset 0: nothing pending survives, 1: everything
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nvmefs.layout import BLOCK_BYTES
from tests.support.ram import ZERO, Command, Event

SECTOR_BYTES = 512
SECTORS = BLOCK_BYTES // SECTOR_BYTES


@dataclass(slots=True, eq=False)
class _Write:
    """A write that is not durable; `blocks` of it could be overtaken by durable ones."""

    command: Command
    blocks: dict[int, bytes]
    completed: bool = False
    flushing: set[Command] = field(default_factory=set)


@dataclass(slots=True)
class Moment:
    """A cut at `step`, an index into the log; events before it have happened.

    `durable` are all blocks of the drive, `pending` those that may have changed, in the order of writing.
    """

    step: int
    durable: dict[int, bytes]
    pending: list[tuple[int, bytes]]

    @property
    def subsets(self) -> int:
        """How many subsets of the pending blocks there are, torn ones not counted; at most 2**16."""
        return 1 << min(len(self.pending), 16)

    def image(self, subset: int) -> dict[int, bytes]:
        """The blocks after the cut. Subset 0 loses all that is pending, 1 keeps it, 2 keeps a prefix in the
        order of writing with the next block torn; others keep blocks or sectors by chance.
        """
        blocks = dict(self.durable)
        if subset == 1:
            blocks.update(self.pending)
        elif subset and self.pending:
            rng = random.Random(f"{self.step}:{subset}")
            if subset == 2 or rng.random() < 0.25:
                kept = rng.randrange(len(self.pending))
                blocks.update(self.pending[:kept])
                number, data = self.pending[kept]
                blocks[number] = torn(blocks.get(number, ZERO), data, rng.randrange(SECTORS + 1))
            else:
                self._by_chance(blocks, rng)
        return blocks

    def _by_chance(self, blocks: dict[int, bytes], rng: random.Random) -> None:
        """Most often most blocks survive or most are lost; some are torn at any sectors."""
        share = rng.choice([0.1, 0.5, 0.9])
        tearing = rng.choice([0.0, 0.1, 0.5])
        for number, data in self.pending:
            if rng.random() < tearing:
                old = blocks.get(number, ZERO)
                blocks[number] = b"".join(
                    rng.choice((old, data))[at : at + SECTOR_BYTES]
                    for at in range(0, BLOCK_BYTES, SECTOR_BYTES)
                )
            elif rng.random() < share:
                blocks[number] = data

    def exact(self, chosen: int) -> dict[int, bytes]:
        """The blocks after the cut where bit i of `chosen` says whether pending block i survives."""
        blocks = dict(self.durable)
        for index, (number, data) in enumerate(self.pending):
            if chosen >> index & 1:
                blocks[number] = data
        return blocks


def torn(old: bytes, new: bytes, sectors: int) -> bytes:
    """The first `sectors` sectors of the new block, the rest of the old one."""
    return new[: sectors * SECTOR_BYTES] + old[sectors * SECTOR_BYTES :]


def moments(before: Mapping[int, bytes], log: list[Event]) -> Iterator[Moment]:
    """A cut with each command in flight, and one at the end. `before` is what was durable at first.

    Between the end of a command and the start of the next nothing changes, so one cut stands for both.
    """
    durable = dict(before)
    volatile: list[_Write] = []
    by_command: dict[Command, _Write] = {}
    for step, event in enumerate(log, 1):
        command = event.command
        if event.ended:
            _end(durable, volatile, by_command, command)
            continue
        if command.kind == "flush":
            for write in volatile:
                if write.completed:
                    write.flushing.add(command)
        else:
            blocks = {command.block + index: data for index, data in enumerate(command.data)}
            write = by_command[command] = _Write(command, blocks)
            volatile.append(write)
        yield _moment(step, durable, volatile)
    yield _moment(len(log) + 1, durable, volatile)


def _moment(step: int, durable: dict[int, bytes], volatile: list[_Write]) -> Moment:
    pending = [item for write in volatile for item in write.blocks.items()]
    return Moment(step, dict(durable), pending)


def _end(
    durable: dict[int, bytes],
    volatile: list[_Write],
    by_command: dict[Command, _Write],
    command: Command,
) -> None:
    """A command has completed: what it makes durable leaves `volatile`."""
    if command.kind == "flush":
        settled = [write for write in volatile if command in write.flushing]
    else:
        by_command[command].completed = True
        settled = [by_command[command]] if command.fua else []
    for write in settled:
        durable.update(write.blocks)
        place = volatile.index(write)
        for earlier in volatile[:place]:
            for number in write.blocks:
                earlier.blocks.pop(number, None)
        volatile.pop(place)
