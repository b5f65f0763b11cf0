"""FUSE_INIT: what docs/design.md says is on or off is what a mount has agreed upon with the kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import ROOT, Mount, counted
from tests.support.uring import NEEDS_URING

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="the C front end is root's"),
]

# <linux/fuse.h>; INIT_EXT (30) is how the upper half is sent.
BITS = {
    "ASYNC_READ": 0, "POSIX_LOCKS": 1, "ATOMIC_O_TRUNC": 3, "EXPORT_SUPPORT": 4, "BIG_WRITES": 5,
    "DONT_MASK": 6, "SPLICE_WRITE": 7, "SPLICE_MOVE": 8, "SPLICE_READ": 9, "FLOCK_LOCKS": 10,
    "HAS_IOCTL_DIR": 11, "AUTO_INVAL_DATA": 12, "DO_READDIRPLUS": 13, "READDIRPLUS_AUTO": 14,
    "ASYNC_DIO": 15, "WRITEBACK_CACHE": 16, "NO_OPEN_SUPPORT": 17, "PARALLEL_DIROPS": 18,
    "HANDLE_KILLPRIV": 19, "POSIX_ACL": 20, "ABORT_ERROR": 21, "MAX_PAGES": 22, "CACHE_SYMLINKS": 23,
    "NO_OPENDIR_SUPPORT": 24, "EXPLICIT_INVAL_DATA": 25, "HANDLE_KILLPRIV_V2": 28, "SETXATTR_EXT": 29,
    "SECURITY_CTX": 32, "CREATE_SUPP_GROUP": 34, "HAS_EXPIRE_ONLY": 35, "DIRECT_IO_ALLOW_MMAP": 36,
    "PASSTHROUGH": 37, "HAS_RESEND": 39, "ALLOW_IDMAP": 40, "OVER_IO_URING": 41, "REQUEST_TIMEOUT": 42,
}  # fmt: skip
INIT_EXT = 1 << 30


def table() -> dict[str, bool]:
    """Whether the document says that a flag is on."""
    text = (ROOT / "docs/design.md").read_text().partition("## What FUSE_INIT turns on")[2]
    rows = re.findall(r"^\| ([A-Z_0-9, ]+) \| ([a-z, ]+) \|", text, re.MULTILINE)
    return {name: how != "off" for names, how in rows for name in names.split(", ")}


@pytest.mark.parametrize(
    ("frontend", "writeback"),
    [("c", True), ("c", False), pytest.param("uring", True, marks=NEEDS_URING)],
)
def test_the_table_is_true(new_mount: Callable[..., Mount], frontend: str, writeback: bool) -> None:
    said = table()
    assert said.keys() == BITS.keys()
    said["WRITEBACK_CACHE"] = writeback
    said["OVER_IO_URING"] = frontend == "uring"
    options = f"frontend={frontend}" + ("" if writeback else ",nowriteback_cache")
    mount = new_mount(size="64M", options=options)
    mount.unmount()
    agreed = counted(mount, "init_flags") & ~INIT_EXT
    assert {name for name, bit in BITS.items() if agreed >> bit & 1} == {
        name for name, on in said.items() if on
    }
    assert not agreed & ~sum(1 << bit for bit in BITS.values())


def test_what_is_cached_stays_when_mtime_changes(new_mount: Callable[..., Mount]) -> None:
    """Without writeback cache each write changes mtime here, and stat(2) tells the kernel."""
    mount = new_mount(size="64M", options="frontend=c,nowriteback_cache")
    path: Path = mount.path / "file"
    path.write_bytes(os.urandom(1 << 20))
    before = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for _ in range(8):
            file.write(b"x")
            path.stat()
            assert path.read_bytes()[8:] == before[8:]
    mount.unmount()
    assert counted(mount, "reads") < 8
