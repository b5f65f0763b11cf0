"""No space on the host under a sparse image: the controller reports a write fault.

The filesystem then turns read-only, says why in its log, stays readable, and is itself again after space
was made and it was mounted anew.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, fsck, make_mount, run
from tests.programs.writer import content, write
from tests.support.uring import URING

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root"),
]

HOST_BYTES = 48 << 20
FILE_BYTES = 1 << 20


@pytest.fixture
def small_host(tmp_path: Path) -> Iterator[Path]:
    """A host filesystem that will be full soon."""
    path = tmp_path / "host"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={HOST_BYTES}", "tmpfs", path)
    yield path
    run("umount", path)


@pytest.mark.parametrize("frontend", ["c", URING, "python"])
def test_no_space_on_the_host(small_host: Path, frontend: str) -> None:
    mount = make_mount(small_host, size="1G", options=f"frontend={frontend}")
    try:
        written = write_until_refused(mount)
        assert len(written) > 5
        require_read_only_and_readable(mount, written)
        reason = next(line for line in mount.logged().splitlines() if "turned read-only" in line)
        assert re.search(r"CRITICAL.*writ\w+ block \d+.*", reason), reason
        make_room(small_host)
        mount.unmount()
        mount.mount()
        require_readable(mount, written)
        write(mount.path / "after", b"it works again")
        mount.remount()
        assert (mount.path / "after").read_bytes() == b"it works again"
        mount.unmount()
        checked = fsck(mount.image)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    finally:
        make_room(small_host)
        mount.checked = False
        mount.tidy()


def write_until_refused(mount: Mount) -> list[int]:
    """Files written and synced until one fails; their numbers."""
    for number in range(2 * HOST_BYTES // FILE_BYTES):
        try:
            write(mount.path / f"f{number}", content(number, FILE_BYTES))
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EROFS, errno.ENOSPC):
                raise
            return list(range(number))
    raise AssertionError("the host has more space than it has")


def require_readable(mount: Mount, written: list[int]) -> None:
    for number in written:
        assert (mount.path / f"f{number}").read_bytes() == content(number, FILE_BYTES)


def require_read_only_and_readable(mount: Mount, written: list[int]) -> None:
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3\n")
    require_readable(mount, written)
    assert {f"f{number}" for number in written} <= set(os.listdir(mount.path))
    attempts: list[Callable[[], None]] = [
        lambda: write(mount.path / "new", b"x"),
        lambda: write(mount.path / "f0", b"x", create=False),
        lambda: os.unlink(mount.path / "f0"),
        lambda: os.truncate(mount.path / "f1", 0),
        lambda: os.chmod(mount.path / "f1", 0o600),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno in (errno.EROFS, errno.EIO)


def make_room(host: Path) -> None:
    run("mount", "-o", "remount,size=1G", host)
