"""An image below the least size: refused by mkfs, and by nothing but its size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvmefs.layout import BLOCK_BYTES, MIN_BLOCKS

LEAST = MIN_BLOCKS * BLOCK_BYTES


@pytest.mark.parametrize(("nbytes", "accepted"), [(LEAST - BLOCK_BYTES, False), (LEAST, True)])
def test_least_size(tmp_path: Path, nbytes: int, accepted: bool) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"")
    with image.open("r+b") as file:
        file.truncate(nbytes)
    done = subprocess.run(
        [sys.executable, "-m", "mkfs.mkfs", "-q", str(image)],
        capture_output=True, text=True, timeout=30, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode == 0) is accepted, done.stderr
    if not accepted:
        assert done.stderr.startswith("mkfs.nvmefs: ")
        assert len(done.stderr.splitlines()) == 1
        assert not any(image.read_bytes())
