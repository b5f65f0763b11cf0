"""System calls that Python does not have, or dresses up: by libc, raising OSError with the errno."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW = 0x100, 0x200, 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE, FS_APPEND = 0x10, 0x20
NAME_MAX, PATH_MAX = 255, 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_UTIMENSAT, _GETDENTS64 = 280, 217  # x86-64


def _path(path: str | bytes | None) -> ctypes.c_char_p:
    """None: an address that is not mapped."""
    return (
        ctypes.cast(ctypes.c_void_p(1), ctypes.c_char_p)
        if path is None
        else ctypes.c_char_p(os.fsencode(path))
    )


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: str | bytes | None, new: str | bytes | None, flags: int = 0) -> None:
    _checked(_libc.renameat2(AT_FDCWD, _path(old), AT_FDCWD, _path(new), flags))


def linkat(old: str | bytes, new: str | bytes, flags: int = 0, old_fd: int = AT_FDCWD) -> None:
    _checked(_libc.linkat(old_fd, _path(old), AT_FDCWD, _path(new), flags))


def unlinkat(path: str | bytes, flags: int = 0) -> None:
    _checked(_libc.unlinkat(AT_FDCWD, _path(path), flags))


def utimensat(
    path: str | bytes | None,
    times: tuple[int, int, int, int] | None,
    flags: int = 0,
    directory: int = AT_FDCWD,
) -> None:
    """`times`: atime seconds and nanoseconds, mtime seconds and nanoseconds; UTIME_NOW, UTIME_OMIT."""
    packed = None if times is None else struct.pack("qqqq", *times)
    name = None if path is None else os.fsencode(path)
    _checked(_libc.syscall(_UTIMENSAT, directory, name, packed, flags))  # libc refuses no path


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def by_address(name: str, *arguments: int) -> int:
    """A call of libc whose arguments are numbers; 1 is an address that is not mapped."""
    return _checked(getattr(_libc, name)(*(ctypes.c_long(word) for word in arguments)))


# --- statx ------------------------------------------------------------------------------------------

_STATX = struct.Struct("<IIQIIIHHQQQQ")
_STATX_BYTES, _TIMES_AT = 256, 64
STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800
STATX_ATTR_APPEND, STATX_ATTR_IMMUTABLE = 0x20, 0x10


@dataclass(frozen=True)
class Statx:
    """Some of struct statx; times are (seconds, nanoseconds)."""

    mask: int
    attributes: int
    nlink: int
    mode: int
    ino: int
    size: int
    blocks: int
    btime: tuple[int, int]
    ctime: tuple[int, int]


def statx(path: str | bytes, flags: int = 0, mask: int = 0xFFF, directory: int = AT_FDCWD) -> Statx:
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    _checked(_libc.statx(directory, _path(path), flags, mask, buffer))
    found, _, attributes, nlink, _, _, mode, _, ino, size, blocks, _ = _STATX.unpack_from(buffer)
    times = [struct.unpack_from("<qI", buffer, _TIMES_AT + 16 * i) for i in range(4)]
    return Statx(found, attributes, nlink, mode, ino, size, blocks, times[1], times[2])


# --- getdents64 -------------------------------------------------------------------------------------

_DIRENT = struct.Struct("<QqHB")


@dataclass(frozen=True)
class Entry:
    """One struct linux_dirent64."""

    ino: int
    offset: int
    type: int
    name: bytes


def getdents(descriptor: int, size: int = 4096) -> list[Entry]:
    """The entries that one call returns; [] at the end of the directory."""
    buffer = ctypes.create_string_buffer(size)
    length = _checked(_libc.syscall(_GETDENTS64, descriptor, buffer, size))
    entries, at, raw = [], 0, buffer.raw
    while at < length:
        ino, offset, record, kind = _DIRENT.unpack_from(raw, at)
        name = raw[at + _DIRENT.size : at + record].split(b"\0")[0]
        entries.append(Entry(ino, offset, kind, name))
        at += record
    return entries
