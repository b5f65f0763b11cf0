"""The targets, as data: each is a ratio or a cost of one run, met or missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.figures import OURS, Measure, Results, Spread
from tests.bench.rows.row import DAEMON

PYTHON = "nvmefs-python"
CORES = "daemon on other CPU"


@dataclass(frozen=True)
class Target:
    """A bound and what was measured."""

    what: str
    bound: float
    measured: Spread
    at_most: bool = False

    @property
    def met(self) -> bool:
        value = self.measured.median
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        bound = f"{'<=' if self.at_most else '>='} {self.bound:g}"
        return f"{verdict:<7}{self.what:<74}{bound:>9}   {self.measured}"


def targets(results: Results, c_peers: list[str]) -> list[Target]:
    """Those for which there are numbers."""
    found = []
    for measure in results.measures.values():
        for what, bound, numbers, at_most in _of(measure, results, c_peers):
            if spread := Spread.of(numbers):
                found.append(Target(f"{measure.name}: {what}", bound, spread, at_most))
    return found


def _of(
    measure: Measure, results: Results, c_peers: list[str]
) -> Iterator[tuple[str, float, list[float], bool]]:
    name = measure.name
    ours = results.numbers(name, OURS)
    if measure.data:
        bound = 2.0 if CORES in name else 1.0
        yield "of the best C FUSE peer", bound, results.ratios_to_best(name, c_peers), False
    if name.startswith("4 KiB random") and measure.data and CORES not in name:
        bound = 4.0 if name == "4 KiB random read, QD32" else 3.0
        yield f"of {PYTHON}", bound, results.ratios(name, PYTHON), False
    if name.startswith("4 KiB random") and name.endswith(f"QD32{DAEMON}"):
        yield "times null-c", 1.3, [1 / r for r in results.ratios(name, "null-c") if r], True
    if name == "flushes for each fdatasync, 8 writers":
        yield "each", 0.5, ours, True
    if name.startswith("one "):
        bound = 120 if "create" in name else 25
        for peer in (OURS, PYTHON):
            above = differences(results, name, peer, "null-python")
            yield f"{peer} above pyfuse3, us", bound, above, True
    if name == "CPU while idle":
        yield "ms/s", 1.0, ours, True


def differences(results: Results, measure: str, peer: str, base: str) -> list[float]:
    """How much more `peer` has than `base`, round by round."""
    pairs = zip(
        results.values[measure].get(peer, []), results.values[measure].get(base, []), strict=False
    )
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
