"""Opens a disk image for one controller at a time.

The lock is flock(2) on the image itself: the kernel drops it with the last descriptor, however the
process ends, and it holds between two openings in one process too. A block device that may be written
is opened for exclusive use besides (O_EXCL), which mounts, swap, volume managers and every mkfs respect.
Of a regular file that may be written the kernel is asked whether it uses it itself: loop devices and swap.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

from driver.errors import DeviceBusy, TransportError
from driver.holders import describe_process, openers
from driver.mountinfo import everywhere
from driver.pci.sysfs import Machine
from driver.pci.usage import of_file

__all__ = ["Image", "open_image"]

_HERE = Machine()


@dataclass(frozen=True)
class Image:
    """An open, locked image: descriptor (the receiver closes it), size, stable identity."""

    fd: int
    size_bytes: int
    uuid: bytes


def open_image(path: str, *, read_only: bool = False) -> Image:
    """Opens and locks a regular file or block device; read-only openings share the lock.

    Raises DeviceBusy naming the holder, or TransportError with the reason: absent, not a file, no
    permission, empty.
    """
    try:
        fd = _open(path, read_only=read_only)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DeviceBusy(f"{path}: in use by {_exclusive_user(os.stat(path))}") from error
        raise TransportError(_why_not_opened(path, error, read_only)) from error
    try:
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise TransportError(f"{path}: neither a regular file nor a block device")
        _lock(fd, path, status, shared=read_only)
        if not read_only:
            for user in of_file(_HERE, Path(path)):
                raise DeviceBusy(f"{user.where}: {user.what}; {user.cure}")
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        if size_bytes == 0:
            raise TransportError(
                f"{path}: the image is empty; give it a size first (truncate -s 1G {path})"
            )
        return Image(fd, size_bytes, _identity(status))
    except BaseException:
        os.close(fd)
        raise


def _open(path: str, *, read_only: bool) -> int:
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    if not read_only and stat.S_ISBLK(os.stat(path).st_mode):
        flags |= os.O_EXCL
    return os.open(path, flags)


def _exclusive_user(status: os.stat_result) -> str:
    """Who has a block device, or a part of it, for itself, and how that is ended."""
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for each, _ in everywhere(_HERE.proc):
        if each.device == number:
            return f"the kernel: it is mounted at {each.mountpoint}; umount {each.mountpoint}"
    holder = _holder_from_locks(status)
    if holder:
        return f"{describe_process(holder)}; unmount it there first"
    return "something that needs it for itself: a mount, swap, a volume on it; see: lsblk"


def _why_not_opened(path: str, error: OSError, read_only: bool) -> str:
    if error.errno == errno.ENOENT:
        return f"{path}: no such image; make one first (truncate -s 1G {path})"
    if error.errno == errno.EISDIR:
        return f"{path}: a directory, not a disk image"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        access = "read" if read_only else "read and write"
        return f"{path}: cannot open it to {access}: {error.strerror}; check its owner and mode"
    return f"{path}: cannot open it: {error.strerror}"


def _identity(status: os.stat_result) -> bytes:
    """The same image has the same name each time: a UUID made of its device and inode number."""
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    return uuid.uuid5(uuid.NAMESPACE_OID, f"nvmefs image {number}:{status.st_ino}").bytes


def _lock(fd: int, path: str, status: os.stat_result, *, shared: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DeviceBusy(
            f"{path}: in use by {_describe_holder(status)}; unmount it there first"
        ) from error
    except OSError as error:
        raise TransportError(f"{path}: cannot lock it: {error.strerror}") from error


def _describe_holder(status: os.stat_result) -> str:
    return describe_process(_holder_from_locks(status) or _holder_from_descriptors(status))


def _holder_from_locks(status: os.stat_result) -> int | None:
    """Who took the flock, by /proc/locks: "1: FLOCK ADVISORY WRITE 42 08:01:1234 0 EOF"."""
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = (_HERE.proc / "locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
            pid = int(fields[4])
            if pid > 0 and (_HERE.proc / str(pid)).exists():
                return pid
    return None


def _holder_from_descriptors(status: os.stat_result) -> int | None:
    """Any process that has the image open: the one that took the lock may have forked and left."""
    return next((pid for pid in openers(status) if pid != os.getpid()), None)
