"""The time of day as inodes keep it. One function, so that tests can hold it still.

The kernel stamps files of ours as well (writeback cache), and not by a clock that can be read: by the last
tick, or by a finer time if it has given one to any file since. Times by another clock would lie before those
that it gave earlier, or behind those that it gives later; so a file without a name, in memory, is stamped and
looked at.
"""

from __future__ import annotations

import functools
import os

Timestamp = tuple[int, int]


@functools.cache
def _stamped() -> int:
    """The descriptor of that file, open for as long as the process lives."""
    return os.memfd_create("nvmefs-clock", os.MFD_CLOEXEC)


def now() -> Timestamp:
    """(seconds since 1970, nanoseconds)."""
    descriptor = _stamped()
    os.utime(descriptor)
    return divmod(os.fstat(descriptor).st_ctime_ns, 1_000_000_000)
