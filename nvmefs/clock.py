"""The time of day as inodes keep it. One function, so that tests can hold it still."""

from __future__ import annotations

import time

Timestamp = tuple[int, int]


def now() -> Timestamp:
    """(seconds since 1970, nanoseconds)."""
    return divmod(time.time_ns(), 1_000_000_000)
