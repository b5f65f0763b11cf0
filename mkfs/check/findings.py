"""What is wrong, and what is merely worth saying; bounded, however broken the filesystem is.

Below: nothing.  Above: every pass, repair/, fsck.py.

    findings.add("link-count", "inode 3 has link count 7, right is 1", found=7, expected=1, inode=3)
    findings.remark("the filesystem was not unmounted in order")

The name says which invariant is broken, and by it repair/ knows what to do; `where` is what the repair needs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

SHOWN_PER_NAME = 50
REPAIRED_PER_NAME = 50_000  # findings of one name that one round of repairs takes on
KEPT_SHARES = (
    2  # when so many names have filled their share, others are kept as far as they are shown
)

Detail = int | bytes | None


@dataclass(slots=True, eq=False)
class Finding:
    """One thing that is wrong. `name` is stable: scripts and repairs go by it."""

    name: str
    text: str
    where: dict[str, Detail]
    found: Detail = None
    expected: Detail = None
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"

    def number(self, field: str) -> int:
        """A number of `where`."""
        value = self.where[field]
        assert isinstance(value, int)
        return value

    def bytes(self, field: str) -> bytes:
        """A name of `where`; empty, as no name is, where it could not be read again."""
        value = self.where[field]
        return value if isinstance(value, bytes) else b""

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for the same fault in two checks."""
        return self.name, self.text if not self.where else tuple(self.where.items())

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "text": self.text,
            "where": {field: _plain(value) for field, value in self.where.items()},
            "found": _plain(self.found),
            "expected": _plain(self.expected),
            "repaired": self.repaired,
        }


def _plain(value: Detail) -> int | str | None:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


class Findings:
    """All that a check found; of each name the first `limit`, and how many there are."""

    def __init__(self, limit: int = SHOWN_PER_NAME) -> None:
        self.limit = limit
        self.kept: list[Finding] = []
        self.remarks: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(
        self,
        name: str,
        text: str,
        /,
        *,
        found: Detail = None,
        expected: Detail = None,
        **where: Detail,
    ) -> None:
        """Something is wrong."""
        if self.room(name):
            self.kept.append(Finding(name, text, where, found, expected))
        self.counts[name] += 1

    def room(self, name: str) -> int:
        """How many more findings of this name are kept: is it worth looking for details?"""
        limit = self.limit if len(self.kept) < self.limit * KEPT_SHARES else SHOWN_PER_NAME
        return max(0, limit - self.counts[name])

    def remark(self, text: str) -> None:
        """Something is as it may be, and of interest."""
        self.remarks.append(text)

    @property
    def clean(self) -> bool:
        return not self.counts

    def lines(self) -> list[str]:
        """One line a finding, and one for those of a name that are not shown."""
        shown: Counter[str] = Counter()
        result = []
        for finding in self.kept:
            shown[finding.name] += 1
            if shown[finding.name] <= SHOWN_PER_NAME:
                result.append(str(finding))
        result += [
            f"{name}: {count - SHOWN_PER_NAME} more of these"
            for name, count in sorted(self.counts.items())
            if count > SHOWN_PER_NAME
        ]
        return result

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "findings": [each.as_json() for each in self.kept],
            "counts": dict(self.counts),
            "remarks": self.remarks,
        }
