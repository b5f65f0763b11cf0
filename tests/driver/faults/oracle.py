"""What the blocks of a drive may hold, after commands that succeeded, failed, or were left alone.

Each block is filled with one 8-byte tag, a new one for each write, 0 for zeroes. `now[i]` are the tags that a
read of block i may return: one after a write that succeeded; the old ones and the new one while a write is in
flight and after it failed. `safe[i]` are those that it may have after a power cut: all since the last
flush that succeeded. An area belongs to one task: its commands do not overlap in time.
"""

from __future__ import annotations

import struct


class WrongData(AssertionError):
    """A read succeeded and returned what cannot be."""


class Area:
    """Blocks first .. first + count - 1, all zeroes at the beginning."""

    def __init__(self, first: int, count: int, lba_bytes: int) -> None:
        self.first = first
        self.count = count
        self.lba_bytes = lba_bytes
        self.now: list[set[int]] = [{0} for _ in range(count)]
        self.safe: list[set[int]] = [{0} for _ in range(count)]
        self._tag = first << 32

    def data(self, tags: list[int]) -> bytes:
        """Blocks with these tags."""
        return b"".join(struct.pack("<Q", tag) * (self.lba_bytes // 8) for tag in tags)

    def fresh(self, count: int) -> list[int]:
        """Tags that no block has had."""
        self._tag += count
        return list(range(self._tag - count + 1, self._tag + 1))

    def begin(self, lba: int, tags: list[int]) -> None:
        """A command that may give these tags to the blocks from lba on is sent."""
        for i, tag in enumerate(tags, lba - self.first):
            self.now[i].add(tag)
            self.safe[i].add(tag)

    def done(self, lba: int, tags: list[int], *, durable: bool = False) -> None:
        """It succeeded."""
        for i, tag in enumerate(tags, lba - self.first):
            self.now[i] = {tag}
            if durable:
                self.safe[i] = {tag}

    def flushed(self, before: list[set[int]]) -> None:
        """A flush succeeded that began when `now` was `before`, and nothing was sent since."""
        self.safe = [set(tags) for tags in before]

    def power_lost(self) -> None:
        """What was not safe may be gone."""
        self.now = [set(tags) for tags in self.safe]

    def known(self, lba: int, count: int) -> list[int] | None:
        """The tags of these blocks, if there is no doubt about any."""
        found = self.now[lba - self.first : lba - self.first + count]
        return [next(iter(tags)) for tags in found] if all(len(t) == 1 for t in found) else None

    def check(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """A read returned this. Raises WrongData."""
        for at in range(0, len(data), self.lba_bytes):
            block = bytes(data[at : at + self.lba_bytes])
            i = lba - self.first + at // self.lba_bytes
            (tag,) = struct.unpack_from("<Q", block)
            if tag not in self.now[i] or block != block[:8] * (self.lba_bytes // 8):
                wanted = ", ".join(f"{known:#x}" for known in sorted(self.now[i])[-4:])
                mixed = "" if block == block[:8] * (self.lba_bytes // 8) else " and others"
                raise WrongData(
                    f"block {lba + at // self.lba_bytes} reads as {tag:#x}{mixed}, not as {wanted}"
                )
            self.now[i] = {tag}
