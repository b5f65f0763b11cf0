"""What is mounted, and unmounting.

Below: the kernel.  Above: mount.py, frontend.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess

from driver.mountinfo import Mounted, mounts

MNT_DETACH = 2
UNMOUNT_BOUND_S = 60.0


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
