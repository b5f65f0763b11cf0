"""`make bench`: nvmefs beside its peers on images on one disk, in one run, in turns.

python -m tests.bench.bench [--rounds N] [--rows unpack,...] [--peers fuse2fs,...] [--json FILE]

On a machine with other load numbers of different minutes say little: each round runs all peers one after
the other, in an order that changes, and what counts is the ratio within the round. The table shows medians
over the rounds, and for the ratio also its least and greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.peers import PEERS, BenchError, Nvmefs, Peer, install
from tests.bench.rows import Row, Sequential, Site, Unpack
from tests.demo.programs import DemoError

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
FILES = 20_000
LARGE_MIB = 1024
OURS = Nvmefs.name


@dataclass
class Results:
    """values[measure][peer] is a list with one number a round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row, peer: Peer, numbers: list[float]) -> None:
        for measure, number in zip(row.measures, numbers, strict=True):
            self.units[measure.name] = measure.unit
            self.values.setdefault(measure.name, {}).setdefault(peer.name, []).append(number)

    def ratios(self, measure: str, peer: str) -> list[float]:
        """Ours divided by the peer's, round by round."""
        values = self.values[measure]
        return [ours / theirs for ours, theirs in zip(values[OURS], values[peer], strict=True)]


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    peers = [peer() for peer in PEERS if peer is Nvmefs or peer.name in arguments.peers]
    every_row: list[Row] = [Unpack(arguments.files), Sequential(arguments.mib)]
    rows = [row for row in every_row if row.name in arguments.rows]
    try:
        install(peers)
        with tempfile.TemporaryDirectory(prefix="nvmefs-bench-", dir=arguments.directory) as work:
            results = measure(rows, peers, arguments.rounds, Path(work))
    except (BenchError, DemoError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(results, peers))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(results, peers, arguments), indent=2) + "\n")
        print(f"written: {arguments.json}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").partition("\n")[0])
    others = ",".join(peer.name for peer in PEERS if peer is not Nvmefs)
    rows = [Unpack.name, Sequential.name]
    add = parser.add_argument
    add("--rounds", type=int, default=ROUNDS, help=f"({ROUNDS})")
    add("--rows", type=lambda text: text.split(","), default=rows, help=f"({','.join(rows)})")
    add("--peers", type=lambda text: text.split(","), default=["fuse2fs"],
        help=f"of {others} (fuse2fs)")  # fmt: skip
    add("--files", type=int, default=FILES, help=f"least number of files unpacked ({FILES})")
    add("--mib", type=int, default=LARGE_MIB, help=f"size of the large file ({LARGE_MIB})")
    add("--directory", type=Path, help="where the images are made (the temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    return parser.parse_args(argv)


def measure(rows: list[Row], peers: list[Peer], rounds: int, work: Path) -> Results:
    """All rounds of all rows on all peers."""
    results = Results()
    mountpoint = work / "mnt"
    mountpoint.mkdir()
    for row in rows:
        inputs = work / row.name
        inputs.mkdir()
        row.prepare(inputs)
        for number in range(rounds):
            for peer in peers if number % 2 == 0 else peers[::-1]:
                numbers = run_once(row, peer, work / "image", mountpoint)
                results.add(row, peer, numbers)
                told = ", ".join(
                    f"{value:,.0f} {measure.unit}"
                    for value, measure in zip(numbers, row.measures, strict=True)
                )
                print(f"round {number + 1}, {row.name}, {peer.name}: {told}", flush=True)
        shutil.rmtree(inputs)
    return results


def run_once(row: Row, peer: Peer, image: Path, mountpoint: Path) -> list[float]:
    """One run on a fresh filesystem, with what was written before already on the disk."""
    os.sync()
    try:
        site = Site(peer, image, mountpoint, row.image_bytes)
        return row.run(site)
    finally:
        peer.unmount(mountpoint)
        image.unlink(missing_ok=True)


def table(results: Results, peers: list[Peer]) -> str:
    """The medians, the ratios with their spread, and what each peer was run with."""
    others = [peer for peer in peers if peer.name != OURS]
    lines = [
        "",
        f"{'':<28}{'':<9}{OURS:>9}" + "".join(f"{p.name:>11}{'ratio':>22}" for p in others),
    ]
    for name, values in results.values.items():
        line = f"{name:<28}{results.units[name]:<9}{statistics.median(values[OURS]):>9,.0f}"
        for peer in others:
            ratios = results.ratios(name, peer.name)
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            line += f"{statistics.median(values[peer.name]):>11,.0f}"
            line += f"{statistics.median(ratios):>7.2f} {spread:<14}"
        lines.append(line.rstrip())
    lines += ["", f"ratio: {OURS} / peer within a round, median (least to greatest)"]
    lines += [f"{peer.name}: {peer.note}" for peer in peers]
    return "\n".join(lines)


def as_json(results: Results, peers: list[Peer], arguments: argparse.Namespace) -> dict[str, Any]:
    """Every number of every round, and what is needed to read them later."""
    return {
        "schema_version": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "kernel": platform.release(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
        },
        "rounds": arguments.rounds,
        "files": arguments.files,
        "mib": arguments.mib,
        "notes": {peer.name: peer.note for peer in peers},
        "measures": [
            {"name": name, "unit": results.units[name], "values": values}
            for name, values in results.values.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
