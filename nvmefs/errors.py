"""The filesystem's exceptions. `operations.py` is the one place that turns them into an errno for the kernel.

Below: nothing.  Above: every module of the filesystem.

    raise FsError(errno.ENOTEMPTY, f"directory {inode} is not empty")      a caller asked for the impossible
    raise Corrupted(block, "checksum is ..., block says ...")              the device holds something wrong
    raise ReadOnly("...")                                                  the filesystem no longer writes
    raise MountRefused("...")                                              this image is not mounted at all
"""

from __future__ import annotations

import errno
import os


class FsError(Exception):
    """An operation fails with a POSIX errno.

    `errno` is a positive number as in <errno.h>; the message says what was wrong, in one line.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or os.strerror(number))
        self.errno = number


class Corrupted(FsError):
    """A block of the filesystem does not hold what it must hold (EUCLEAN).

    `block` is the number of the 4 KiB block, or -1 where the fault is not of one block.
    """

    def __init__(self, block: int, what: str) -> None:
        where = f"block {block}: " if block >= 0 else ""
        super().__init__(errno.EUCLEAN, f"{where}{what}")
        self.block = block
        self.what = what


class ReadOnly(FsError):
    """The filesystem is mounted read-only, or turned read-only after an error (EROFS)."""

    def __init__(self, why: str = "the filesystem is read-only") -> None:
        super().__init__(errno.EROFS, why)


class NoSpace(FsError):
    """No free block is left for the request (ENOSPC)."""

    def __init__(self, what: str = "no free block is left") -> None:
        super().__init__(errno.ENOSPC, what)


class DeviceFailed(FsError):
    """The drive reported an error, or is gone (EIO)."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, what)


class MountRefused(Exception):
    """The image cannot be mounted; the message is one line that says why and what to do."""
