"""The mount itself: /dev/fuse opened, mounted, opened again, and nothing left at the mountpoint in the end.

Below: mount(2), mounts.py.  Above: frontend.py.

    place = Place(mountpoint)
    fuse_fd = place.mount(stack, words)       the descriptor of /dev/fuse; closed with the stack
    other_fd = clone(stack, fuse_fd)
    place.leave()                             after they are closed
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack

from nvmefs.mounts import mounted_at, unmount

log = logging.getLogger("nvmefs.frontend")

FUSE_DEV_IOC_CLONE = 0x8004E500  # _IOR(229, 0, uint32_t)
MOUNT_FLAGS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024,
}  # fmt: skip


class Unavailable(Exception):
    """The front end cannot be used here; the message says why. pyfuse3 alone can."""


def owned(stack: ExitStack, descriptor: int) -> int:
    """The descriptor, closed at the end."""
    stack.callback(os.close, descriptor)
    return descriptor


def clone(stack: ExitStack, fuse_fd: int) -> int:
    """Another descriptor of the same mount, for another thread. Raises Unavailable."""
    try:
        other = owned(stack, os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        fcntl.ioctl(other, FUSE_DEV_IOC_CLONE, struct.pack("I", fuse_fd))
    except OSError as error:
        raise Unavailable(f"/dev/fuse cannot be cloned: {error.strerror}") from error
    return other


class Place:
    """The mountpoint while the front end is mounted there."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint
        self.device = ""
        self.unmounted = False

    def mount(self, stack: ExitStack, words: Iterable[str]) -> int:
        """The descriptor of /dev/fuse behind the new mount."""
        try:
            fuse_fd = owned(stack, os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
            mount_fuse(fuse_fd, self.mountpoint, words)
        except OSError as error:
            raise Unavailable(f"{error.filename}: {error.strerror}") from error
        mounted = mounted_at(self.mountpoint)
        self.device = mounted.device if mounted else ""
        return fuse_fd

    def leave(self) -> None:
        """After /dev/fuse is closed: no dead mount stays behind. Another program's is left alone."""
        mounted = mounted_at(self.mountpoint)
        if self.unmounted or mounted is None or mounted.device != self.device:
            return
        try:
            unmount(self.mountpoint, lazily=True)
        except OSError as error:
            log.warning("%s: not detached: %s", self.mountpoint, error.strerror)


def mount_fuse(fuse_fd: int, mountpoint: str, words: Iterable[str]) -> None:
    """mount(2) of `fuse_fd` at `mountpoint`. `words` are options as libfuse takes them. Raises OSError."""
    source, kind, flags = "nvmefs", "fuse", 0
    data = [f"fd={fuse_fd}", "rootmode=40000", "user_id=0", "group_id=0"]
    for word in words:
        name, _, value = word.partition("=")
        if name == "fsname":
            source = value
        elif name == "subtype":
            kind = f"fuse.{value}"
        elif name in ("default_permissions", "allow_other"):
            data.append(word)
        else:
            flags |= MOUNT_FLAGS.get(name, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(
        source.encode(), os.fsencode(mountpoint), kind.encode(), flags, ",".join(data).encode()
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", mountpoint)
