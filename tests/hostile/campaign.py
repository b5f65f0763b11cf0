"""Damage filesystems, and look that no harm comes of it.

    make hostile [SECONDS=600] [SEED=0] [ID=...]

A failure prints its id, `base:seed`; ID=... replays it, and with --keep FILE the image goes into the corpus.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import trio

from nvmefs.layout import BLOCK_BYTES
from tests.hostile.examine import examine
from tests.hostile.harm import mutated
from tests.hostile.images import NAMES, Base, make
from tests.support.images import tiny_allowed
from tests.support.ram import RamNamespace

BATCH = 50
IMAGE_BOUND_S = 30
MEMORY_BYTES = 2 << 30
CORPUS = Path(__file__).parent / "corpus"
_RECORD = struct.Struct("<Q")

_bases: dict[str, Base] = {}


class HostileFailure(AssertionError):
    """An image that did what none may. The message begins with its id."""


async def base_of(name: str) -> Base:
    if name not in _bases:
        _bases[name] = await make(name)
    return _bases[name]


def names_of(seed: int, count: int) -> list[str]:
    """The ids of `count` images from number `seed` on."""
    return [f"{NAMES[number % len(NAMES)]}:{number}" for number in range(seed, seed + count)]


async def image_of(identity: str) -> RamNamespace:
    """The image of an id."""
    name, seed = identity.split(":")
    return mutated(await base_of(name), int(seed))


@contextmanager
def bounded(identity: str) -> Iterator[None]:
    """An image that takes too long is a failure, even where nothing awaits."""

    def late(number: int, frame: FrameType | None) -> None:
        raise HostileFailure(f"{identity}: more than {IMAGE_BOUND_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(IMAGE_BOUND_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def run(identities: list[str]) -> Counter[str]:
    """Examine images one after the other. Raises HostileFailure at the first that fails."""
    tally: Counter[str] = Counter()
    for identity in identities:
        tally[await run_one(identity)] += 1
    return tally


async def run_one(identity: str) -> str:
    """Examine an image. Raises HostileFailure."""
    with tiny_allowed(), bounded(identity):
        try:
            return await examine(await image_of(identity))
        except Exception as error:
            text = "".join(traceback.format_exception(error)[-3:])
            raise HostileFailure(f"{identity}: {error!r}\n{text}") from error


async def run_all(identities: list[str]) -> tuple[Counter[str], list[str]]:
    """Examine images one after the other; with what the failures among them say."""
    tally: Counter[str] = Counter()
    failures: list[str] = []
    for identity in identities:
        try:
            tally[await run_one(identity)] += 1
        except HostileFailure as failure:
            tally["FAILED"] += 1
            failures.append(str(failure))
    return tally, failures


def run_batch(identities: list[str]) -> tuple[Counter[str], list[str]]:
    """A batch in a process of its own, with bounded memory."""
    logging.disable(logging.CRITICAL)  # damage is no news here
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    return trio.run(run_all, identities)


def run_many(
    seconds: float, seed: int, jobs: int, images: int
) -> tuple[Counter[str], list[str], float]:
    """The campaign in `jobs` processes, for so long or so many: outcomes, failures, seconds."""
    began = told = time.monotonic()
    tally: Counter[str] = Counter()
    failures: list[str] = []
    at = seed
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[tuple[Counter[str], list[str]]]] = set()
        while True:
            late = time.monotonic() - began >= seconds or at - seed >= images
            while not late and len(running) < 2 * jobs:
                running.add(pool.submit(run_batch, names_of(at, BATCH)))
                at += BATCH
            if not running:
                return tally, failures, time.monotonic() - began
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                counted, failed = future.result()
                tally.update(counted)
                failures += failed
                for text in failed:
                    print(f"FAILED {text}", flush=True)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(line(tally, told - began), flush=True)


def line(tally: Counter[str], seconds: float) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.items()))
    return f"{tally.total()} images in {seconds:.0f} s: {kinds}"


# --- corpus -------------------------------------------------------------------------------------------


def keep(path: Path, namespace: RamNamespace) -> None:
    """Write an image: the blocks of the device u64, then for each block its number u64 and its bytes."""
    parts = [_RECORD.pack(namespace.block_count)]
    for number, data in sorted(namespace.blocks.items()):
        if any(data):
            parts.append(_RECORD.pack(number) + data)
    path.write_bytes(gzip.compress(b"".join(parts), mtime=0))


def kept(path: Path) -> RamNamespace:
    """An image of the corpus."""
    data = gzip.decompress(path.read_bytes())
    blocks = {}
    for at in range(8, len(data), 8 + BLOCK_BYTES):
        blocks[_RECORD.unpack_from(data, at)[0]] = data[at + 8 : at + 8 + BLOCK_BYTES]
    return RamNamespace(_RECORD.unpack_from(data)[0], blocks)


def main() -> None:
    """The command line of `make hostile`."""
    parser = argparse.ArgumentParser(description="Damage filesystems: mount, walk, check, repair.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--images", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first image")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--id", default="", help="one image, as a failure printed it")
    parser.add_argument("--keep", type=Path, help="write the image of --id there, gzipped")
    given = parser.parse_args()
    try:
        if given.keep:
            with tiny_allowed():
                keep(given.keep, trio.run(image_of, given.id))
        if given.id:
            print(line(trio.run(run, [given.id]), 0))
            return
    except HostileFailure as failure:
        sys.exit(f"FAILED {failure}")
    tally, failures, seconds = run_many(given.seconds, given.seed, given.jobs, given.images)
    print(line(tally, seconds))
    if failures:
        again = "\n".join(f"again: make hostile ID={text.split(': ')[0]}" for text in failures)
        sys.exit(f"{len(failures)} images failed\n{again}")


if __name__ == "__main__":
    main()
