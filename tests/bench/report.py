"""A run as tables, and as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.bench.figures import OURS, Measure, Results, Spread
from tests.bench.machine import Noise, facts
from tests.bench.peers import Peer
from tests.bench.targets import targets

NAME = 47
CELL = 14
WIDE = 24


def tables(results: Results, peers: list[Peer], noise: Noise, left_out: dict[str, str]) -> str:
    """Medians; ratios; targets; what was left out, how the peers were run, how noisy it was."""
    names = [peer.name for peer in peers]
    parts = [
        _medians(results, names),
        _ratios(results, [name for name in names if name != OURS], c_peers(peers)),
        "\n".join(["targets", *(str(target) for target in targets(results, c_peers(peers)))]),
    ]
    gone = [f"{name}: {reason}" for name, reason in left_out.items()]
    gone += [f"{row}, {peer}: {why}" for (row, peer), why in results.left_out.items()]
    if gone:
        parts.append("\n".join(["left out", *gone]))
    parts.append("\n".join(["the peers", *(f"{peer.name}: {peer.note}" for peer in peers)]))
    parts.append("\n".join(noise.lines()))
    return "\n\n".join(parts)


def c_peers(peers: list[Peer]) -> list[str]:
    return [peer.name for peer in peers if peer.kind == "fuse"]


def _medians(results: Results, names: list[str]) -> str:
    def cells(measure: Measure) -> list[str]:
        spreads = [results.spread(measure.name, name) for name in names]
        return [f"{number(spread.median) if spread else '-':>{CELL}}" for spread in spreads]

    head = "".join(f"{name:>{CELL}}" for name in names)
    return _table("medians", head, results, cells)


def _ratios(results: Results, others: list[str], c_names: list[str]) -> str:
    def cells(measure: Measure) -> list[str]:
        best = Spread.of(results.ratios_to_best(measure.name, c_names))
        row = [f"{str(best) if best else '-':>{WIDE}}"]
        for name in others:
            spread = Spread.of(results.ratios(measure.name, name))
            row.append(f"{f'{spread.median:.2f}' if spread else '-':>{CELL}}")
        return row

    head = f"{'best C FUSE peer':>{WIDE}}" + "".join(f"{name:>{CELL}}" for name in others)
    title = f"{OURS} to each, within a round (least..greatest); more than 1: {OURS} is better"
    return _table(title, head, results, cells)


def _table(title: str, head: str, results: Results, cells: Callable[[Measure], list[str]]) -> str:
    lines = [title, f"{'':<{NAME}}{'':<10}{head}"]
    lines += [
        f"{measure.name:<{NAME}}{measure.unit:<10}{''.join(cells(measure))}"
        for measure in results.measures.values()
    ]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_json(
    results: Results, peers: list[Peer], noise: Noise, left_out: dict[str, str], settings: Any
) -> dict[str, Any]:
    """Every number of every round."""
    gone = [{"row": row, "peer": peer, "why": why} for (row, peer), why in results.left_out.items()]
    return {
        "schema_version": 2,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": facts(),
        "noise": noise.as_json(),
        "settings": settings,
        "peers": {peer.name: {"kind": peer.kind, "note": peer.note} for peer in peers},
        "left_out": left_out,
        "rows_left_out": gone,
        "measures": [
            {
                "name": measure.name,
                "unit": measure.unit,
                "less_is_better": measure.less_is_better,
                "values": results.values[measure.name],
            }
            for measure in results.measures.values()
        ],
        "targets": [
            {
                "what": target.what,
                "bound": target.bound,
                "at_most": target.at_most,
                "median": target.measured.median,
                "met": target.met,
            }
            for target in targets(results, c_peers(peers))
        ],
    }
