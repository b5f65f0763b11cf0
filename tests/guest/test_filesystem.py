"""A filesystem on the PCI address of a controller: made, mounted, filled, checked, mounted again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .guest import ROOT, Guest, Job

DIRECTORY = "/run/nvmefs"
BIN = ROOT / ".venv/bin"
MOUNT_BOUND_S = 60.0


@contextmanager
def mounted(guest: Guest, spec: str, timeout_s: float = 280) -> Iterator[Job]:
    """`nvmefs -f`, until it serves; unmounted at the end, and then it ends with status 0."""
    guest.run(["mkdir", "-p", DIRECTORY], check=True)
    with guest.start([BIN / "nvmefs", "-f", spec, DIRECTORY], timeout_s=timeout_s) as daemon:
        guest.until(
            lambda: DIRECTORY in guest.read("/proc/mounts") or daemon.ended(),
            f"{spec} to be mounted",
            MOUNT_BOUND_S,
        )
        assert DIRECTORY in guest.read("/proc/mounts"), str(daemon.wait())
        try:
            yield daemon
        finally:
            guest.run(["umount", DIRECTORY])
        assert daemon.wait().status == 0, str(daemon.wait())


def fsck(guest: Guest, spec: str) -> None:
    """Nothing is found."""
    result = guest.run([BIN / "fsck.nvmefs", "-n", spec])
    assert result.status == 0, str(result)


@pytest.mark.quick
def test_a_source_tree(guest: Guest) -> None:
    copy = f"tar -C {ROOT} --exclude=__pycache__ --exclude='*.so' -cf - driver nvmefs"
    compare = f"diff -r -x __pycache__ -x '*.so' {ROOT}/%s {DIRECTORY}/%s"
    with guest.bound("mdts5") as bdf:
        spec = f"{bdf}/2"
        made = guest.run([BIN / "mkfs.nvmefs", "--force", spec])
        assert made.status == 0, str(made)
        with mounted(guest, spec):
            guest.run(["sh", "-c", f"{copy} | tar -C {DIRECTORY} -xf -"], check=True)
            guest.run(["sh", "-c", compare % ("driver", "driver")], check=True)
        fsck(guest, spec)
        with mounted(guest, spec):
            for name in ("driver", "nvmefs"):
                guest.run(["sh", "-c", compare % (name, name)], check=True)
