"""`make bench`: nvmefs beside other filesystems on images in one directory, in one run, in turns.

    python -m tests.bench.bench [--quick] [--rows random,...] [--peers fuse2fs,...] [--rounds N]
                                [--where DIR] [--json FILE] [--plots DIR]

Each round runs every row on every peer, one after the other, in an order that changes from round to round;
what counts is the ratio within the round. docs/bench.md says what the rows are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from tests.bench import plots, report
from tests.bench.figures import OURS, Results
from tests.bench.machine import Noise
from tests.bench.peers import PEERS, BenchError, Peer, available, install
from tests.bench.rows import QUICK, ROWS, Row, Scale
from tests.bench.site import Site
from tests.demo.programs import DemoError

ROW_BOUND_S = 180.0
"""Of one row on one peer, mount and unmount included; then the daemon is killed."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if os.geteuid() != 0:
        print(
            "bench: needs root: it mounts, drops the page cache and pins processes", file=sys.stderr
        )
        return 1
    scale = QUICK if arguments.quick else Scale()
    if arguments.rounds:
        scale = replace(scale, rounds=arguments.rounds)
    wanted = [peer() for peer in PEERS if peer.name == OURS or peer.name in arguments.peers]
    rows = [row(scale) for row in ROWS if row.name in arguments.rows]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="nvmefs-bench-", dir=arguments.where) as name:
            work = Path(name)
            work.chmod(0o755)  # PostgreSQL's user passes through
            (work / "mnt").mkdir()
            rows, left_out = usable(rows)
            peers, reasons = available(wanted, work)
            left_out |= reasons
            if OURS not in (peer.name for peer in peers):
                raise BenchError(left_out[OURS])
            results, noise = measure(rows, peers, scale.rounds, work)
    except (BenchError, DemoError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; all is unmounted and removed", file=sys.stderr)
        return 130
    print("\n" + report.tables(results, peers, noise, left_out))
    if arguments.json:
        settings = {"quick": arguments.quick, "where": str(work.parent), **asdict(scale)}
        written = report.as_json(results, peers, noise, left_out, settings)
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")
        print(f"written: {arguments.json}")
    if arguments.plots:
        print(plots.draw(results, peers, arguments.plots))
    return 1 if any(peer == OURS for _, peer in results.left_out) else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").partition("\n")[0])
    peers = [peer.name for peer in PEERS if peer.name != OURS]
    rows = [row.name for row in ROWS]
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, three rounds: less than ten minutes")
    add("--rounds", type=int, help=f"({Scale().rounds}, quick {QUICK.rounds})")
    add("--rows", type=_listed(rows), default=rows, help=f"({','.join(rows)})")
    add("--peers", type=_listed(peers), default=peers, help=f"({','.join(peers)})")
    add("--where", type=Path, help="directory for the images, such as /dev/shm (the temporary one)")
    add("--json", type=Path, metavar="FILE", help="all numbers")
    add("--plots", type=Path, metavar="DIR", help="pictures, if matplotlib is installed")
    return parser.parse_args(argv)


class _listed:
    """An argument that is names of a list, separated by commas."""

    def __init__(self, known: list[str]) -> None:
        self.known = known

    def __call__(self, text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in self.known]:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(unknown)}; there are {', '.join(self.known)}"
            )
        return names


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def usable(rows: list[Row]) -> tuple[list[Row], dict[str, str]]:
    """The rows that can run here, after installing fio if it is missing; of the others the reason."""
    if any("fio is not" in row.missing() for row in rows):
        install(["fio"])
    reasons = {f"row {row.name}": row.missing() for row in rows if row.missing()}
    return [row for row in rows if not row.missing()], reasons


def measure(rows: list[Row], peers: list[Peer], rounds: int, work: Path) -> tuple[Results, Noise]:
    """All rounds of all rows on all peers."""
    results, noise = Results(), Noise()
    for row in rows:
        inputs = work / row.name
        inputs.mkdir()
        row.prepare(inputs)
    for number in range(rounds):
        noise.look()
        for row in rows:
            taking = [peer for peer in peers if row.takes(peer)]
            for peer in taking if number % 2 == 0 else taking[::-1]:
                if (row.name, peer.name) not in results.left_out:
                    run_once(row, peer, results, number, work)
    noise.look()
    return results, noise


def run_once(
    row: Row, peer: Peer, results: Results, number: int, work: Path, bound_s: float = ROW_BOUND_S
) -> None:
    """One row on a fresh filesystem. Where it fails, the row is left out for this peer from then on."""
    started = time.monotonic()
    told = []
    try:
        with Site(peer, work, bound_s).used(row.image_bytes) as site:
            for measure, value in row.run(site):
                results.add(measure, peer.name, number, value)
                told.append(report.number(value))
    except (BenchError, DemoError, OSError) as error:
        results.left_out[row.name, peer.name] = " ".join(str(error).split())[-300:]
        told.append(f"failed: {error}")
    took = time.monotonic() - started
    print(f"{number + 1} {row.name:<11}{peer.name:<14}{took:5.1f} s  {' '.join(told)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
