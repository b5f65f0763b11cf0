"""ENOSPC: what a full filesystem refuses, what it still allows, and that space comes back."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path

import pytest

from tests.mount.conftest import Mount
from tests.posix.calls import fallocate
from tests.posix.checks import Checks, make, mode
from tests.support.uring import URING

NewMount = Callable[..., Mount]


def _fill(descriptor: int) -> int:
    """Write until there is no more room; how much it was."""
    written = 0
    for size in (1 << 20, 4096, 1):
        with contextlib.suppress(OSError):
            while True:
                written += os.write(descriptor, b"f" * size)
                os.fsync(descriptor)
    return written


@pytest.mark.quick
@pytest.mark.parametrize("frontend", ["c", URING, "python"])
def test_full(new_mount: NewMount, frontend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = new_mount(size="64M", options=f"frontend={frontend}")
    monkeypatch.chdir(mount.path)
    checks = Checks(frontend)
    os.mkdir("d")
    for number in range(20):
        Path(f"d/{number}").write_bytes(b"kept" * 2000)
    descriptor = os.open("fill", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
    checks.true(_fill(descriptor) > 20 << 20, "most of it could be filled")
    direct = os.open("direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    with mmap.mmap(-1, 1 << 20) as buffer:
        for _ in range(3):
            checks.fails(ENOSPC, os.pwritev, direct, [buffer], 1 << 20)
    os.close(direct)
    if frontend != "python":
        checks.fails(ENOSPC, fallocate, descriptor, 0, 0, 1 << 30)
    checks.gives(b"kept" * 2000, Path("d/5").read_bytes)
    checks.works(os.chmod, "d/5", 0o600)
    checks.works(os.rename, "d/5", "d/five")
    checks.gives(b"kept" * 2000, Path("d/five").read_bytes)
    checks.works(os.unlink, "d/6")
    checks.works(os.truncate, "d/7", 100)
    checks.works(os.ftruncate, descriptor, 1 << 20)
    os.fsync(descriptor)
    checks.works(make, "file", "after")
    checks.works(lambda: Path("after").write_bytes(b"x" * (1 << 20)))
    checks.gives(0o600, mode, "d/five")
    checks.gives(b"f" * 100, os.pread, descriptor, 100, (1 << 20) - 100)
    os.close(descriptor)
    monkeypatch.chdir("/")
    checks.judge()


def test_inodes_without_end(new_mount: NewMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and attributes fill it too: ENOSPC, nothing half done, and all can be removed."""
    mount = new_mount(size="32M")
    monkeypatch.chdir(mount.path)
    checks = Checks("c")
    made: list[str] = []
    for attribute in (b"v" * 3000, b""):
        with contextlib.suppress(OSError):
            while True:
                name = f"{len(made):05}{'n' * 200}"
                os.mknod(name)
                made.append(name)
                if attribute:
                    os.setxattr(name, "user.a", attribute)
    checks.fails(ENOSPC, os.mkdir, "one-more" * 20)
    listed = os.listdir()
    checks.gives(sorted(made), lambda: sorted(listed))
    for name in listed:
        os.unlink(name)
    checks.gives([], os.listdir)
    checks.works(os.mkdir, "one-more" * 20)
    monkeypatch.chdir("/")
    checks.judge()
