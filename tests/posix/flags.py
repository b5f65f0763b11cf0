"""Immutable and append-only files for a while: what chattr(1) does, and undoes."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.posix.calls import FS_IOC_GETFLAGS, FS_IOC_SETFLAGS


def get_flags(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        (flags,) = struct.unpack("I", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(4)))
    finally:
        os.close(descriptor)
    return int(flags)


def set_flags(path: str, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("I", flags))
    finally:
        os.close(descriptor)


@contextmanager
def flagged(path: str, flag: int) -> Iterator[None]:
    """The file bears the flag meanwhile."""
    before = get_flags(path)
    set_flags(path, before | flag)
    try:
        yield
    finally:
        set_flags(path, before)
