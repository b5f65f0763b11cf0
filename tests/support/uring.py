"""FUSE over io_uring in tests: the module parameter is Y while a mount is made that wants it, then as it was.

@pytest.mark.parametrize("frontend", ["c", URING])
with offered(): ... mount ...
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvmefs.rings import PARAMETER

LOCK = Path(tempfile.gettempdir()) / "nvmefs-tests-enable_uring.lock"


def obstacle() -> str | None:
    """Why no test can mount with it here."""
    if os.geteuid():
        return "the C front end is root's"
    if not PARAMETER.exists():
        return "this kernel has no FUSE over io_uring"
    if not os.access(PARAMETER, os.W_OK) or os.statvfs(PARAMETER).f_flag & os.ST_RDONLY:
        return f"{PARAMETER} cannot be written"
    return None


_OBSTACLE = obstacle()
NEEDS_URING = pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))
URING = pytest.param("uring", marks=NEEDS_URING)


@contextmanager
def offered(offer: bool = True) -> Iterator[None]:
    """The kernel offers it within, or does not; one process of tests at a time says so."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = PARAMETER.read_text()
        PARAMETER.write_text("Y" if offer else "N")
        try:
            yield
        finally:
            PARAMETER.write_text(before)
