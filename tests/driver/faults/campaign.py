"""The fault campaign: the driver on controllers that misbehave, and what must hold all the same.

    make faults [SECONDS=600] [SEED=0] [ID=...] [SANITIZE=1]

First every rule on every opcode (rules.py), then random schedules until the time is over, on all CPUs:

  * no call hangs: every one ends within seconds, with a result or with an error of the driver
  * no wrong data passes for right: a read that succeeds returns what was last written; a write that failed, or
    whose caller left, may be there or not; what was flushed or forced survives a power cut (oracle.py)
  * nothing leaks: command ids, DMA buffers and waiting tasks are back at rest afterwards
  * memory that was given back is not touched, nor is memory that is not mapped (guard.py)
  * a controller works again when the faults are over, or was given up with an error

A failure prints its id, `pair:NUMBER` or `SEED:NUMBER` (a batch of schedules on one drive, and how many of them
are run). ID=... runs that again, and prints what the driver logs.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import trio

from tests.driver.faults.bench import Bench
from tests.driver.faults.rules import is_lie, odd_bring_up, pairs, some_rules

_NONE: tuple[str, ...] = ()
BATCH = 20  # schedules on one drive
CONCURRENT = 6  # drives of one process: most of the time is spent waiting for deadlines


@dataclass
class Tally:
    """What has been run, and what has failed."""

    schedules: int = 0
    hits: int = 0
    resets: int = 0
    given_up: int = 0
    failures: tuple[str, ...] = ()

    def add(self, other: Tally) -> None:
        """Sums up."""
        self.schedules += other.schedules
        self.hits += other.hits
        self.resets += other.resets
        self.given_up += other.given_up
        self.failures += other.failures

    def count(self, bench: Bench) -> None:
        """Takes over what one drive has seen."""
        self.hits += bench.hits
        self.resets += bench.resets
        self.given_up += bench.failures


async def run_on_drive(
    name: str, schedules: Iterator[tuple[tuple[str, ...], bool]], tally: Tally
) -> None:
    """Rules and whether they act on the opening, one schedule after the other on one drive.

    Raises AssertionError with what was found, and in which schedule.
    """
    bench, rules, at = Bench(name), _NONE, 0
    try:
        for at, (rules, opening) in enumerate(schedules):
            rng = random.Random(f"{name}:{at}")
            await bench.schedule(rng, rules, opening=opening, lies=is_lie(rules))
            tally.schedules += 1
        await bench.end()
    except Exception as error:
        await bench.abandon()
        number = "" if name.startswith("pair") else f":{at + 1}"
        raise AssertionError(f"{name}{number} {'; '.join(rules)}: {explain(error)}") from error
    finally:
        tally.count(bench)


def random_rules(seed: int, count: int) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The first schedules of a batch."""
    for at in range(count):
        rng = random.Random(f"{seed}:{at}")
        opening = rng.random() < 0.1
        yield (odd_bring_up(rng) if opening else some_rules(rng)), opening


async def run_one(what: str, tally: Tally, fixed: tuple[str, ...] = ()) -> None:
    """Runs an id; with `fixed` rules in place of random ones. Raises AssertionError with what was found."""
    first, _, second = what.partition(":")
    if fixed:
        await run_on_drive(first, itertools.repeat((fixed, False), int(second)), tally)
    elif first == "pair":
        rules = pairs()[int(second)]
        for opening in (True, False):  # on two drives: from the opening on, and afterwards
            await run_on_drive(what, iter([(rules, opening), ((), False)]), tally)
    else:
        await run_on_drive(first, random_rules(int(first), int(second)), tally)


def explain(error: BaseException) -> str:
    """The exception inside all groups, and where it was raised, in one line."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"


async def run_all(
    ids: Iterator[str], end: float, tally: Tally, fixed: tuple[str, ...] = ()
) -> None:
    """Several at a time, until the ids or the time (time.monotonic()) are over."""

    async def pull() -> None:
        for what in ids:
            if time.monotonic() >= end:
                return
            try:
                await run_one(what, tally, fixed)
            except AssertionError as error:
                tally.failures += (str(error),)
                print(f"FAILED {error}", file=sys.stderr, flush=True)

    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENT):
            nursery.start_soon(pull)


def all_ids(index: int, of: int, seed: int, *, listed: bool) -> Iterator[str]:
    """What one of several processes runs: its share of the pairs, then random batches for ever."""
    chosen = (f"pair:{i}" for i in range(index, len(pairs()) if listed else 0, of))
    batches = (f"{seed}:{BATCH}" for seed in itertools.count(seed * 1_000_000 + index, of))
    return itertools.chain(chosen, batches)


def work(index: int, of: int, seconds: float, seed: int, fixed: tuple[str, ...]) -> Tally:
    """One process of the campaign."""
    logging.disable(logging.CRITICAL)
    tally = Tally()
    ids = all_ids(index, of, seed, listed=not fixed)
    trio.run(run_all, ids, time.monotonic() + seconds, tally, fixed)
    return tally


def campaign(seconds: float, seed: int, processes: int, fixed: tuple[str, ...]) -> Tally:
    """All CPUs, for so long. The failures have been printed as they came."""
    if processes == 1:
        return work(0, 1, seconds, seed, fixed)
    total = Tally()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(work, i, processes, seconds, seed, fixed) for i in range(processes)]
        for future in futures:
            total.add(future.result())
    return total


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--seconds", type=float, default=600, help="how long (600)")
    parser.add_argument("--seed", type=int, default=0, help="where the random schedules begin (0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--id", help="the one that a failure has named")
    parser.add_argument("--rule", action="append", default=[], help="these in place of random ones")
    options = parser.parse_args(arguments)
    fixed = tuple(options.rule)
    start = time.monotonic()
    if options.id:
        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)6d ms %(message)s")
        tally = Tally()
        try:
            trio.run(run_one, options.id, tally, fixed)
        except AssertionError as error:
            traceback.print_exc()
            print(f"FAILED {error}", file=sys.stderr)
            return 1
    else:
        tally = campaign(options.seconds, options.seed, options.processes, fixed)
    took = time.monotonic() - start
    print(
        f"{tally.schedules} schedules in {took:.0f} s ({tally.schedules / took:.0f}/s): "
        f"{tally.hits} faults, {tally.resets} resets, {tally.given_up} controllers given up, "
        f"{len(tally.failures)} failures"
    )
    for failure in tally.failures:
        print(f"  make faults ID={failure.split(' ')[0]}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
