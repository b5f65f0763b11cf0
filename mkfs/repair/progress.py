"""How far a check has come, for people or for programs (-C, as e2fsck(8) has it).

Below: nothing.  Above: fsck.py.

Descriptor 0 means a bar on the terminal; to any other go lines "pass done total device".
"""

from __future__ import annotations

import os
import sys
import time

PASSES = ("", "superblock", "scan", "links", "bitmaps")
BAR = 40
INTERVAL_S = 0.1


class Shown:
    """Progress on a descriptor. Raises OSError if that is not open."""

    def __init__(self, descriptor: int, spec: str) -> None:
        os.fstat(descriptor)
        self.descriptor = descriptor
        self.spec = spec
        self.due = 0.0
        self.drawn = False

    def __call__(self, number: int, done: int, total: int) -> None:
        """Pass `number` has done so much of so much."""
        now = time.monotonic()
        if now < self.due and done < total:
            return
        self.due = now + INTERVAL_S
        if self.descriptor:
            os.write(self.descriptor, f"{number} {done} {total} {self.spec}\n".encode())
            return
        filled = BAR * done // total
        bar = "=" * filled + " " * (BAR - filled)
        line = f"\r{self.spec}: {PASSES[number]:10} |{bar}| {100 * done // total:3d}%"
        print(line, end="", file=sys.stderr, flush=True)
        self.drawn = True

    def clear(self) -> None:
        """Take the bar from the terminal."""
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
