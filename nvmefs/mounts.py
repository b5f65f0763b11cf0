"""What is mounted, and unmounting.

Below: the kernel.  Above: mount.py, frontend.py.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import subprocess
from pathlib import Path

from driver.mountinfo import Mounted, mounts

log = logging.getLogger("nvmefs")

MNT_DETACH = 2
UNMOUNT_BOUND_S = 60.0
UTAB_BOUND_S = 20.0
HELPER = Path("/sbin/umount.nvmefs")


def mounted_at(mountpoint: str) -> Mounted | None:
    """The uppermost mount at a path without symbolic links."""
    return next((each for each in reversed(mounts()) if each.mountpoint == mountpoint), None)


def unmount(path: str, *, lazily: bool = False) -> None:
    """umount2(2), or fusermount3 for users. Raises OSError (EBUSY...). May block: not for the trio thread."""
    if os.geteuid():
        command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", path]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=UNMOUNT_BOUND_S, check=False
        )
        if done.returncode:
            busy = "busy" in done.stderr.lower()
            raise OSError(errno.EBUSY if busy else errno.EPERM, done.stderr.strip(), path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), MNT_DETACH if lazily else 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def has_umount_helper() -> bool:
    """Whether umount(8) can be told of our helper: only root can, once it is installed."""
    return os.geteuid() == 0 and HELPER.exists()


def name_helper(mounted: Mounted) -> None:
    """Enter a mount in utab (mount(8)'s own notes), so that umount(8) calls umount.nvmefs.

    The type alone would not do: umount asks statfs(2) first, which knows nothing of subtypes. Best effort.
    """
    options = "helper=nvmefs"
    command = ["mount", "--no-canonicalize", "-i", "-f", "-t", mounted.type, "-o", options, "--"]
    try:
        done = subprocess.run(
            [*command, mounted.source, mounted.mountpoint],
            capture_output=True,
            text=True,
            timeout=UTAB_BOUND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: umount will not wait for the daemon: %s", mounted.mountpoint, error)
        return
    if done.returncode:
        said = " ".join(done.stderr.split())
        log.warning("%s: umount will not wait for the daemon: %s", mounted.mountpoint, said)
