"""A daemon that is killed while it waits for itself: it has to end all the same, and the mount with it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import BOUND_S, mkfs, run, wait_until
from tests.support.uring import URING, offered

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


@pytest.mark.parametrize("frontend", ["c", URING, "python"])
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
        with offered() if frontend == "uring" else contextlib.nullcontext():
            wait_until(lambda: "asked" in log.read_text())
        daemon.kill()
        daemon.wait(BOUND_S)
        with pytest.raises(OSError) as caught:
            os.listdir(place)
        # An io_uring ends a moment after the daemon; what is asked in between is aborted or cancelled.
        late = (errno.ECONNABORTED, errno.ECANCELED) if frontend == "uring" else ()
        assert caught.value.errno in (errno.ENOTCONN, *late)
    finally:
        # It aborts what still waits, which holds the mount for a moment.
        wait_until(lambda: not run("umount", "-f", place, check=False).returncode)
        daemon.wait(BOUND_S)
