"""Random operations by several users give on a mount what they give on the host's ext4 or xfs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, python_module, run

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users"),
]

STEPS = 60
ORACLES = {"ext2/ext3", "xfs"}


@pytest.fixture
def oracle(tmp_path: Path) -> Path:
    """A directory of a filesystem of the kernel's own that has all that we have."""
    kind = run("stat", "-f", "-c", "%T", tmp_path).stdout.strip()
    if kind not in ORACLES:
        pytest.skip(f"{tmp_path} is on {kind}: no measure for another filesystem")
    return tmp_path


def compare(place: Path, oracle: Path, seed: int, steps: int) -> subprocess.CompletedProcess[str]:
    module = "tests.mount.same"
    places = place / f"mount-{seed}", oracle / f"host-{seed}"
    return run(*python_module(module, *places, seed, steps), check=False)


@pytest.mark.parametrize("seed", range(5))
def test_same_as_on_the_host(shared: Mount, place: Path, oracle: Path, seed: int) -> None:
    found = compare(place, oracle, seed, STEPS)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 130))
def test_same_as_on_the_host_for_long(shared: Mount, place: Path, oracle: Path, seed: int) -> None:
    found = compare(place, oracle, seed, 150)
    assert found.returncode == 0, found.stdout + found.stderr
