"""Pictures of a run, by matplotlib (the extra `[bench]`): ratios, and how times grow with a directory."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from tests.bench.figures import OURS, Results, Spread
from tests.bench.peers import Peer

COLOURS = {
    "fuse2fs": "#c44e52", "ntfs-3g": "#8172b3", "bindfs": "#ccb974", "ext4": "#55a868",
    "nvmefs-python": "#64b5cd", "nvmefs-uring": "#4c72b0", "null-c": "#8c8c8c", "null-python": "#bbbbbb",
}  # fmt: skip


def draw(results: Results, peers: list[Peer], directory: Path) -> str:
    """Write ratios.svg and .png, and growth.* if growth.json is there; gives the line to print."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no pictures: matplotlib is not installed (pip install nvmefs[bench])"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    names = list(results.measures)
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.42 * len(names)), layout="constrained")
    for peer in peers:
        if peer.name != OURS:
            _points(axes, results, names, peer.name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_xlabel(
        f"{OURS} / peer within a round, median, least..greatest; right of 1: {OURS} is better"
    )
    axes.legend(loc="lower right", fontsize="small")
    for kind in ("svg", "png"):
        figure.savefig(directory / f"ratios.{kind}")
    pyplot.close(figure)
    drawn = ["ratios"]
    if (growth := directory / "growth.json").exists():
        _growth(pyplot, json.loads(growth.read_text())["microseconds"], directory)
        drawn.append("growth")
    return f"drawn in {directory}: " + ", ".join(f"{name}.svg, {name}.png" for name in drawn)


def _growth(pyplot: Any, rows: dict[str, dict[str, float]], directory: Path) -> None:
    """What growth.py has written: microseconds by operation and by the number of names."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for operation, row in rows.items():
        sizes = sorted(row, key=int)
        axes.plot(
            [int(size) for size in sizes], [row[size] for size in sizes], "o-", label=operation
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("names in the directory")
    axes.set_ylabel("microseconds an operation")
    axes.grid(which="both", linewidth=0.3)
    axes.legend()
    for kind in ("svg", "png"):
        figure.savefig(directory / f"growth.{kind}")
    pyplot.close(figure)


def _points(axes: Any, results: Results, names: list[str], peer: str) -> None:
    found = [(row, Spread.of(results.ratios(name, peer))) for row, name in enumerate(names)]
    usable = [(row, spread) for row, spread in found if spread]
    if usable:
        medians = [spread.median for _, spread in usable]
        below = [spread.median - spread.least for _, spread in usable]
        above = [spread.greatest - spread.median for _, spread in usable]
        rows = [row for row, _ in usable]
        axes.errorbar(medians, rows, xerr=[below, above], fmt="o", markersize=5,
                      label=peer, color=COLOURS.get(peer), capsize=2)  # fmt: skip
