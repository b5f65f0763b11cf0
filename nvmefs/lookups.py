"""How often the kernel has been told of each inode: what it must forget before an inode without names can go.

Below: nothing.  Above: operations.py.

    counts = Lookups()
    counts.add(17)                               the kernel has learnt of inode 17
    del counts[17]                               and has forgotten it

A mapping like a dictionary, for a million inodes at once, which are as many as the kernel keeps: numbers come
from a counter, so neighbours are known together, and nearly all counts are small. A byte for each stands in
pages of neighbours; what does not fit in a byte stands beside them. A dictionary takes a hundred times that.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

PAGE = 256  # inodes
LARGE = 255  # in a page: the count stands in `large`


class Lookups(MutableMapping[int, int]):
    """Counts of at least 1, by inode number."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.large: dict[int, int] = {}
        self.length = 0

    def add(self, number: int) -> None:
        """One more for the inode."""
        page = self.pages.get(number // PAGE)
        if page is not None and 0 < page[number % PAGE] < LARGE - 1:
            page[number % PAGE] += 1
        else:
            self[number] = self.get(number) + 1

    def get(self, number: int, default: int = 0) -> int:  # type: ignore[override]
        page = self.pages.get(number // PAGE)
        count = page[number % PAGE] if page is not None else 0
        if count == LARGE:
            return self.large[number]
        return count or default

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.get(number) > 0

    def __getitem__(self, number: int) -> int:
        if count := self.get(number):
            return count
        raise KeyError(number)

    def __setitem__(self, number: int, count: int) -> None:
        if count < 1:
            raise ValueError(f"inode {number} cannot be known {count} times")
        page = self.pages.get(number // PAGE)
        if page is None:
            page = self.pages[number // PAGE] = bytearray(PAGE)
        place = number % PAGE
        self.length += not page[place]
        if count >= LARGE:
            self.large[number] = count
        elif page[place] == LARGE:
            del self.large[number]
        page[place] = min(count, LARGE)

    def __delitem__(self, number: int) -> None:
        page = self.pages.get(number // PAGE)
        if page is None or not page[number % PAGE]:
            raise KeyError(number)
        self.large.pop(number, None)
        page[number % PAGE] = 0
        self.length -= 1
        if not any(page):
            del self.pages[number // PAGE]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for first, page in self.pages.items():
            for place, count in enumerate(page):
                if count:
                    yield first * PAGE + place
