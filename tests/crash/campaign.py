"""Cut the power at every step of a workload; mount what is left; compare, check, write again, mount again.

    make crash [MODE=linear] [SECONDS=600] [SEED=0] [ID=...]

Modes, after littlefs's power-loss runner:
    none         no cut: the workloads alone, compared with the model at the end
    log          cuts at steps 1, 2, 4, 8, ... of each workload
    linear       a cut at every step
    exhaustive   a cut at every step, and in each of those states cuts during the recovery too
    3, 4, ...    so many cuts one after the other, each but the first during the recovery from the one before
At each step several subsets of what was pending survive; see drive.py. A failure prints its id,
`workload:step:subset[:step:subset...]`, the later pairs being the cuts in the recovery. ID=... replays it.

What a mount must find is the model after some operation, not older than the last promise (fsync and the
like) and not newer than the last operation begun. Contents may mix with those of later in-place overwrites,
sector by sector.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

import trio

from nvmefs.device import Device
from nvmefs.errors import FsError, MountRefused, NoSpace
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE, SUPERBLOCK, Superblock
from nvmefs.recovery import newest_journal_super, read_journal
from tests.crash.drive import SECTOR_BYTES, Moment, moments
from tests.crash.frontend import FrontRecorder
from tests.crash.workloads import (
    SETUP,
    SINGLE_NAMES,
    History,
    Recorder,
    ace,
    operations_of,
)
from tests.support.checker import check
from tests.support.images import LEAST_BLOCKS, TINY_BLOCKS, TINY_JOURNAL_BLOCKS, fresh, tiny_allowed
from tests.support.model import FILE, Node, Tree, differences, read_back
from tests.support.ram import RamNamespace

MODES = ("none", "log", "linear", "exhaustive")
LONG_OPERATIONS = 60
SUBSETS = 5  # of what is pending, tried at each step


class CrashFailure(AssertionError):
    """A crash state from which the filesystem does not recover as it must. The message begins with its id."""


@dataclass
class Recording:
    """A workload that has run: what was durable before, the commands, and what may be found afterwards."""

    name: str
    block_count: int
    before: dict[int, bytes]
    namespace: RamNamespace
    history: History


@dataclass
class Bounds:
    """What a cut at one step may leave: states `oldest` to `newest`, and data not older than `floors`."""

    oldest: int
    newest: int
    floors: dict[int, int]


@dataclass
class Tally:
    """How much was done."""

    workloads: int = 0
    states: int = 0
    steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, other: Tally) -> None:
        self.workloads += other.workloads
        self.steps += other.steps
        self.states += other.states

    def line(self) -> str:
        seconds = time.monotonic() - self.started
        return (
            f"{self.workloads} workloads, {self.steps} steps, {self.states} crash states "
            f"in {seconds:.1f} s ({self.states / max(seconds, 0.001):.0f} a second)"
        )


RECORDERS: dict[str, type[Recorder]] = {
    "ace": Recorder,
    "long": Recorder,
    "front": FrontRecorder,
}


# --- recording --------------------------------------------------------------------------------


async def record(name: str) -> Recording:
    """Run the workload of that name: ace-..., long-SEED, or front-SEED."""
    kind, _, rest = name.partition("-")
    scarce = kind != "ace" and int(rest) % 2
    namespace = await fresh(
        LEAST_BLOCKS if scarce else TINY_BLOCKS, journal_blocks=TINY_JOURNAL_BLOCKS
    )
    setup = [*SETUP, ("fill", 20)] if scarce else SETUP
    honours_fua = kind == "ace" or int(rest) % 4 != 2
    discard = kind != "ace" and int(rest) % 5 == 4
    recorder = await RECORDERS[kind].start(namespace, setup, fua=honours_fua, discard=discard)
    before = dict(namespace.blocks)
    namespace.log = []
    if kind == "ace":
        await recorder.run(operations_of(rest))
    else:
        await recorder.long_run(name, LONG_OPERATIONS)
    for last in (recorder.do_sync, recorder.do_checkpoint, recorder.filesystem.close):
        await last()
    recording = Recording(name, namespace.block_count, before, namespace, recorder.history)
    await require_final(recording)
    return recording


async def require_final(recording: Recording) -> None:
    """Without a cut everything is there."""
    namespace = recording.namespace.copy()
    filesystem = await Filesystem.open(namespace.device(), Options(read_only=True))
    found = differences(recording.history.states[-1], await read_back(filesystem))
    faults = [*found, *check(namespace.blocks)]
    if faults:
        raise CrashFailure(f"{recording.name}: without a cut: {'; '.join(faults)}")


def bounds(history: History, step: int) -> Bounds:
    """What may be found after a cut at `step`: events before it have happened."""
    newest = sum(begun < step for begun in history.begun) - 1
    oldest = max([0, *(promise for at, promise in history.promises if at < step)])
    floors: dict[int, int] = {}
    for at, number, floor in history.floors:
        if at < step:
            floors[number] = max(floor, floors.get(number, 0))
    return Bounds(oldest, min(newest, len(history.states) - 1), floors)


# --- comparing --------------------------------------------------------------------------------


def matches(history: History, limits: Bounds, found: Tree) -> bool:
    """Whether what was found is a state that may be found."""
    seen = {number: node.seen() for number, node in found.items()}
    for index in range(limits.newest, limits.oldest - 1, -1):
        state = history.states[index]
        if state.keys() != seen.keys():
            continue
        if any(node.seen() != seen[number] for number, node in state.items()):
            continue
        if all(
            content_fits(history, limits, index, number, found[number].content) for number in state
        ):
            return True
    return False


def content_fits(history: History, limits: Bounds, index: int, number: int, content: bytes) -> bool:
    """Whether each sector holds what it held after operation `index`, or after a later one that overwrote it
    in place; not older than what was synced.
    """
    node = history.states[index][number]
    oldest = max(index, limits.floors.get(number, 0))
    if oldest == index and content == node.content:
        return True
    later = [
        state[number] for state in history.states[oldest : limits.newest + 1] if number in state
    ]
    for at in range(0, len(content), SECTOR_BYTES):
        sector = content[at : at + SECTOR_BYTES]
        block = at // BLOCK_BYTES
        place = node.places.get(block)
        allowed = [
            other.content[at : at + len(sector)]
            for other in later
            if place is not None and other.places.get(block) == place
        ]
        if oldest == index or not allowed:
            allowed.append(node.content[at : at + SECTOR_BYTES])
        if sector not in allowed:
            return False
    return True


# --- one crash state --------------------------------------------------------------------------


async def examine(
    recording: Recording,
    limits: Bounds,
    blocks: dict[int, bytes],
    *,
    log: bool = False,
    thorough: bool = True,
) -> RamNamespace:
    """Mount a crash image, compare, write, check, mount again. Raises AssertionError, or what the mount does.

    `thorough` also checks the image before the mount, and compares all of it at the second one. The
    namespace returned has the log of the recovery, if asked for.
    """
    namespace = RamNamespace(recording.block_count, blocks)
    device = namespace.device()
    if thorough:
        await require_sound_as_it_is(device, blocks)
    namespace.log = [] if log else None
    filesystem = await Filesystem.open(device, Options(cache_mb=1))
    recovered = namespace.copy()
    recovered.log, namespace.log = namespace.log, None
    found = await read_back(filesystem)
    if not matches(recording.history, limits, found):
        raise AssertionError(
            "found is no state that may be found: " + nearest(recording, limits, found)
        )
    expected = await write_again(filesystem, found)
    await filesystem.close()
    faults = check(namespace.blocks)
    assert not faults, "after the recovery: " + "; ".join(faults)
    again = await Filesystem.open(namespace.device(), Options(read_only=True))
    if thorough:
        faults = differences(expected, await read_back(again))
        assert not faults, "at the second mount: " + "; ".join(faults)
    return recovered


async def require_sound_as_it_is(device: Device, blocks: dict[int, bytes]) -> None:
    """What fsck would see without writing: the image with its journal applied."""
    superblock = Superblock.decode(await device.read(SUPERBLOCK), SUPERBLOCK)
    replay = await read_journal(device, superblock, await newest_journal_super(device, superblock))
    images = {home: blocks[place] for home, place in replay.places.items()}
    faults = check(blocks, images)
    assert not faults, "with the journal applied: " + "; ".join(faults)


async def write_again(filesystem: Filesystem, tree: Tree) -> Tree:
    """`tree`, and a file with blocks of its own if there is space for it."""
    name, data = b"after the crash", b"!" * 5000
    try:
        inode = await filesystem.create(ROOT_INODE, name, FILE, 0, 0)
    except NoSpace:
        return tree
    try:
        await filesystem.write(inode.number, 0, data)
    except NoSpace:
        data = b""
    root = tree[ROOT_INODE]
    names = {**root.names, name: inode.number}
    return {
        **tree,
        ROOT_INODE: Node(root.mode, root.nlink, b"", names, root.xattrs),
        inode.number: Node(FILE, 1, data),
    }


def nearest(recording: Recording, limits: Bounds, found: Tree) -> str:
    """The differences to the state that has the fewest."""
    each = [
        (differences(recording.history.states[index], found), index)
        for index in range(limits.oldest, limits.newest + 1)
    ]
    faults, index = min(each, key=lambda item: len(item[0]))
    return (
        f"not one of states {limits.oldest}..{limits.newest}; nearest is {index}: "
        f"{'; '.join(faults) or 'data older than what was synced'}"
    )


# --- many -------------------------------------------------------------------------------------


def chosen_steps(mode: str, cuts: list[Moment]) -> Iterator[Moment]:
    """The moments at which a mode cuts."""
    if mode == "log":
        yield from (cuts[1 << power] for power in range(len(cuts)) if 1 << power < len(cuts))
    elif mode != "none":
        yield from cuts


def subsets_of(cut: Moment, most: int) -> range:
    """Which subsets are tried: none are equal where little is pending."""
    if not cut.pending:
        return range(1)
    return range(most)


async def campaign(recording: Recording, mode: str, tally: Tally, subsets: int = SUBSETS) -> None:
    """All crash states of one workload in a mode. Raises CrashFailure at the first that fails."""
    tally.workloads += 1
    cuts = list(moments(recording.before, recording.namespace.log or []))
    for cut in chosen_steps(mode, cuts):
        tally.steps += 1
        limits = bounds(recording.history, cut.step)
        for subset in subsets_of(cut, subsets):
            identity = f"{recording.name}:{cut.step}:{subset}"
            thorough = (cut.step + subset) % 4 == 0
            image = cut.image(subset)
            await recover(recording, limits, image, identity, depth_of(mode), thorough, tally)


def depth_of(mode: str) -> int:
    """How many cuts follow one another."""
    return int(mode) if mode.isdigit() else 2 if mode == "exhaustive" else 1


async def recover(
    recording: Recording,
    limits: Bounds,
    image: dict[int, bytes],
    identity: str,
    depth: int,
    thorough: bool,
    tally: Tally,
) -> None:
    """One crash state; and with a depth above 1 those of cuts during its recovery."""
    recovered = await attempt(recording, limits, image, identity, depth > 1, thorough)
    tally.states += 1
    if depth > 1:
        for cut in moments(image, recovered.log or []):
            for subset in subsets_of(cut, 3):
                name = f"{identity}:{cut.step}:{subset}"
                again = cut.image(subset)
                await recover(recording, limits, again, name, depth - 1, False, tally)


async def attempt(
    recording: Recording,
    limits: Bounds,
    image: dict[int, bytes],
    identity: str,
    log: bool,
    thorough: bool,
) -> RamNamespace:
    """Examine one crash state; the namespace with the recovery's log. Raises CrashFailure."""
    try:
        return await examine(recording, limits, dict(image), log=log, thorough=thorough)
    except (AssertionError, FsError, MountRefused, RuntimeError) as error:
        raise CrashFailure(f"{identity}: {error}") from error


async def replay(identity: str, tally: Tally) -> None:
    """The one crash state of an id, thoroughly."""
    name, *numbers = identity.split(":")
    recording = await record(name)
    image, log = recording.before, recording.namespace.log or []
    limits: Bounds | None = None
    for at in range(0, len(numbers), 2):
        step, subset = int(numbers[at]), int(numbers[at + 1])
        cut = next(cut for cut in moments(image, log) if cut.step == step)
        limits = limits or bounds(recording.history, step)
        image = cut.image(subset)
        log = (await attempt(recording, limits, image, identity, True, True)).log or []
        tally.states += 1


def names(seed: int) -> Iterator[str]:
    """Workloads without end: the sequences of one operation, then those of two in an order by `seed`, after
    each few of them one of three and two long ones; then only such.
    """
    rng = random.Random(seed)
    pairs = list(ace(2))
    rng.shuffle(pairs)
    triples: set[str] = set()
    yield from (f"ace-{name}" for name in ace(1))
    for index, number in zip(itertools.count(), itertools.count(seed * 1_000_000), strict=False):
        if index < len(pairs):
            yield f"ace-{pairs[index]}"
        if index >= len(pairs) or index % 5 == 0:
            name = "ace-" + "-".join(rng.choices(SINGLE_NAMES, k=3))
            if name not in triples:
                triples.add(name)
                yield name
        if index >= len(pairs) or index % 10 == 0:
            yield f"long-{number}"
            if not os.geteuid():  # large socket buffers need root
                yield f"front-{number}"


def run_one(name: str, mode: str) -> Tally:
    """One workload in a process of its own. Raises CrashFailure, also for what fails before any cut."""

    async def work() -> Tally:
        tally = Tally()
        with tiny_allowed():
            try:
                recording = await record(name)
            except CrashFailure:
                raise
            except Exception as error:
                raise CrashFailure(f"{name}: without a cut: {error!r}") from error
            await campaign(recording, mode, tally)
        return tally

    return trio.run(work)


def run_many(mode: str, seconds: float, seed: int, jobs: int) -> Tally:
    """The campaign in `jobs` processes, for so long. Raises the first CrashFailure."""
    total = Tally()
    told = total.started
    waiting = names(seed)
    with ProcessPoolExecutor(jobs) as pool:
        running = {pool.submit(run_one, next(waiting), mode) for _ in range(2 * jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                total.add(future.result())
            now = time.monotonic()
            if now - total.started < seconds:
                running |= {pool.submit(run_one, next(waiting), mode) for _ in done}
            if now - told > 10:
                told = now
                print(total.line(), flush=True)
    return total


async def run_id(identity: str) -> Tally:
    """The crash state of an id, alone."""
    tally = Tally()
    with tiny_allowed():
        await replay(identity, tally)
    return tally


def mode_of(text: str) -> str:
    """A mode as it is given. Raises ArgumentTypeError."""
    if text not in MODES and not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(MODES)}, 1, 2, 3, ...")
    return text


def main() -> None:
    """The command line of `make crash`."""
    parser = argparse.ArgumentParser(description="Cut the power at every step, and mount again.")
    parser.add_argument("--mode", type=mode_of, default="linear")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="which pairs and long runs come first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--id", default="", help="one crash state, as a failure printed it")
    given = parser.parse_args()
    try:
        if given.id:
            tally = trio.run(run_id, given.id)
        else:
            tally = run_many(given.mode, given.seconds, given.seed, given.jobs)
    except CrashFailure as failure:
        sys.exit(f"FAILED {failure}\nagain: make crash ID={str(failure).split(': ')[0]}")
    print(tally.line())


if __name__ == "__main__":
    main()
