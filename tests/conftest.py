"""What all tests share: the hypothesis profile, the markers, a look for mounts left behind."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

MOUNTINFO = Path("/proc/self/mountinfo")
UNMOUNT_BOUND_S = 20

# The machine may be busy: time is bounded per test (pytest-timeout), not per example.
hypothesis.settings.register_profile("nvmefs", deadline=None, max_examples=50)
hypothesis.settings.load_profile("nvmefs")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests unless asked for, and mount tests where nothing can be mounted."""
    if not config.getoption("--slow"):
        left_out = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
    no_fuse = why_no_fuse()
    for item in items:
        if no_fuse and item.get_closest_marker("mount"):
            item.add_marker(pytest.mark.skip(reason=no_fuse))


def why_no_fuse() -> str:
    """Why nothing can be mounted here, or an empty string."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse (modprobe fuse)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no permission on /dev/fuse"
    return ""


def mounts_below(directory: Path) -> list[str]:
    """Mountpoints at or below `directory`, innermost first."""
    root = str(directory)
    found = []
    for line in MOUNTINFO.read_text().splitlines():
        escaped = line.split(" ")[4]
        mountpoint = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), escaped)
        if mountpoint == root or mountpoint.startswith(root + "/"):
            found.append(mountpoint)
    return found[::-1]


@pytest.fixture(scope="session", autouse=True)
def _no_mount_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that leaves a mount fails the run; the mount is detached, so that nothing hangs."""
    yield
    left = mounts_below(tmp_path_factory.getbasetemp())
    for mountpoint in left:
        subprocess.run(["umount", "-l", mountpoint], check=False, timeout=UNMOUNT_BOUND_S)
    assert not left, f"mounted by a test and not unmounted: {', '.join(left)}"
