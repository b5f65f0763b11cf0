"""What is measured, the numbers of a run, and their arithmetic: medians, spreads, ratios within a round.

Numbers of different minutes say little on a machine with other load: what counts is the ratio of two
numbers of one round. A ratio is written so that more than 1 means: ours is better, also where less is
better (CPU time).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

OURS = "nvmefs"


@dataclass(frozen=True)
class Measure:
    """One line of the table."""

    name: str
    unit: str
    less_is_better: bool = False
    data: bool = False
    """It moves file data: the targets for data rows apply."""


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread | None:
        found = list(numbers)
        return cls(statistics.median(found), min(found), max(found)) if found else None

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}..{self.greatest:.2f})"


@dataclass
class Results:
    """values[measure][peer] holds one number a round, None where there was none."""

    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    """(row, peer): why there is no number."""

    def add(self, measure: Measure, peer: str, round_number: int, number: float) -> None:
        """Rounds count from 0."""
        self.measures[measure.name] = measure
        numbers = self.values.setdefault(measure.name, {}).setdefault(peer, [])
        numbers += [None] * (round_number + 1 - len(numbers))
        numbers[round_number] = number

    def numbers(self, measure: str, peer: str) -> list[float]:
        return [n for n in self.values.get(measure, {}).get(peer, []) if n is not None]

    def spread(self, measure: str, peer: str) -> Spread | None:
        return Spread.of(self.numbers(measure, peer))

    def ratios(self, measure: str, peer: str, ours: str = OURS) -> list[float]:
        """Round by round; rounds in which one of the two has no number are left out."""
        return self._ratios(measure, ours, lambda values: values.get(peer))

    def ratios_to_best(self, measure: str, peers: Iterable[str]) -> list[float]:
        """As ratios(), to whichever of the peers was best in the round."""
        names = list(peers)
        best = min if self.measures[measure].less_is_better else max

        def pick(values: dict[str, float]) -> float | None:
            return best((values[name] for name in names if name in values), default=None)

        return self._ratios(measure, OURS, pick)

    def _ratios(
        self, measure: str, ours: str, pick: Callable[[dict[str, float]], float | None]
    ) -> list[float]:
        ratios = []
        for values in self._rounds(measure):
            mine, theirs = values.get(ours), pick(values)
            if mine and theirs:  # a ratio to nothing says nothing
                ratios.append(
                    theirs / mine if self.measures[measure].less_is_better else mine / theirs
                )
        return ratios

    def _rounds(self, measure: str) -> list[dict[str, float]]:
        """The numbers of each round, by peer."""
        by_peer = self.values.get(measure, {})
        count = max((len(numbers) for numbers in by_peer.values()), default=0)
        rounds: list[dict[str, float]] = [{} for _ in range(count)]
        for peer, numbers in by_peer.items():
            for number, value in enumerate(numbers):
                if value is not None:
                    rounds[number][peer] = value
        return rounds
