"""A daemon that is killed while it waits for itself: it has to end all the same, and the mount with it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import BOUND_S, mkfs, run, wait_until

pytestmark = pytest.mark.mount

NEVER_ANSWERS_STATFS = """
import sys, trio
from nvmefs.cli import main
from nvmefs.operations import Operations

async def never(self, ctx):
    print("asked", file=sys.stderr, flush=True)
    await trio.sleep_forever()

Operations.statfs = never
sys.exit(main())
"""


@pytest.mark.parametrize("frontend", ["c", "python"])
def test_killed_before_the_mount_is_announced(tmp_path: Path, frontend: str) -> None:
    """A thread of the daemon itself that waits for an answer could not be ended, nor could the daemon."""
    image, place, log = tmp_path / "disk.img", tmp_path / "mnt", tmp_path / "log"
    mkfs(image, "64M")
    place.mkdir()
    with log.open("w") as errors:
        daemon = subprocess.Popen(
            [sys.executable, "-c", NEVER_ANSWERS_STATFS, "-f", image, place, "-o", f"frontend={frontend}"],
            stderr=errors,
        )  # fmt: skip
    try:
        wait_until(lambda: "asked" in log.read_text())
        daemon.kill()
        daemon.wait(BOUND_S)
        with pytest.raises(OSError) as caught:
            os.listdir(place)
        assert caught.value.errno == errno.ENOTCONN
    finally:
        run("umount", "-f", place)  # aborts what still waits
        daemon.wait(BOUND_S)
