"""What is wrong, and what is merely worth saying; bounded, however broken the filesystem is.

Below: nothing.  Above: every pass, fsck.py.

    findings.add("bitmap-leak", "group 3: blocks 100-120 are marked used but belong to nothing")
    findings.remark("the filesystem was not unmounted in order")
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

SHOWN_PER_NAME = 50


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `name` is stable: scripts and repairs go by it."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


class Findings:
    """All that a check found; of each name the first fifty, and how many there are."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.remarks: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, name: str, text: str) -> None:
        """Something is wrong."""
        self.counts[name] += 1
        if self.wants(name):
            self.kept.append(Finding(name, text))

    def wants(self, name: str) -> bool:
        """Whether the latest finding of this name is still shown: is it worth looking for details?"""
        return self.counts[name] <= SHOWN_PER_NAME

    def remark(self, text: str) -> None:
        """Something is as it may be, and of interest."""
        self.remarks.append(text)

    @property
    def clean(self) -> bool:
        return not self.counts

    def lines(self) -> list[str]:
        """One line a finding, and one for those of a name that are not shown."""
        result = [str(finding) for finding in self.kept]
        result += [
            f"{name}: {count - SHOWN_PER_NAME} more of these"
            for name, count in sorted(self.counts.items())
            if count > SHOWN_PER_NAME
        ]
        return result

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "findings": [{"name": each.name, "text": each.text} for each in self.kept],
            "counts": dict(self.counts),
            "remarks": self.remarks,
        }
