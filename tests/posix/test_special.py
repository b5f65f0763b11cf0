"""Fifos, sockets and devices that work; locks; leases; handles of files."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from errno import (
    EACCES,
    EADDRINUSE,
    EAGAIN,
    EBADF,
    ECONNREFUSED,
    EINVAL,
    EPERM,
    EPIPE,
    ESTALE,
)
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import as_user
from tests.posix.checks import ALICE, Checks, make

pytestmark = pytest.mark.quick

F_OFD_GETLK, F_OFD_SETLK = 36, 37
FLOCK = struct.Struct("hhqqi4x")
_libc = ctypes.CDLL(None, use_errno=True)


def in_child(function: Callable[[], Any]) -> Any:
    """What another process gets; it has the same descriptors, and locks of its own."""
    return as_user(Path.cwd(), function, uid=0, gid=0)


def test_fifo_between_processes(checks: Checks) -> None:
    os.mkfifo("fifo")

    def write_all() -> int:
        with open("fifo", "wb") as pipe:
            return pipe.write(b"x" * 100_000)

    read_end, child = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK), os.fork()
    if not child:
        try:
            write_all()
        finally:
            os._exit(0)
    received = b""
    poll = select.poll()
    poll.register(read_end, select.POLLIN)
    while len(received) < 100_000:
        poll.poll(10_000)
        received += os.read(read_end, 65536)
    os.waitpid(child, 0)
    checks.true(received == b"x" * 100_000, "all of it, in order")
    writer = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.close(read_end)
    checks.fails(EPIPE, os.write, writer, b"x")
    os.close(writer)
    checks.gives(0, lambda: os.stat("fifo").st_size)


def _with_socket(action: Callable[[socket.socket], None]) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        action(one)


def test_socket(checks: Checks) -> None:
    server = socket.socket(socket.AF_UNIX)
    checks.touches({".": "mc"}, server.bind, "s")
    checks.fails(EADDRINUSE, _with_socket, lambda one: one.bind("s"))
    client = socket.socket(socket.AF_UNIX)
    checks.fails(ECONNREFUSED, client.connect, "s", what="nobody listens")
    server.listen()
    client.connect("s")
    one, _ = server.accept()
    client.sendall(b"hello")
    checks.gives(b"hello", one.recv, 10)
    os.chmod("s", 0o600)
    other = socket.socket(socket.AF_UNIX)
    checks.fails(EACCES, other.connect, "s", user=ALICE)
    os.rename("s", "t")
    checks.works(other.connect, "t")
    for end in (server, client, one, other):
        end.close()
    checks.fails(ECONNREFUSED, _with_socket, lambda one: one.connect("t"))
    checks.works(os.unlink, "t")


# --- locks ------------------------------------------------------------------------------------------


def _posix(kind: int, start: int = 0, length: int = 0, command: int = fcntl.F_SETLK) -> None:
    descriptor = os.open("x", os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, command, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    finally:
        os.close(descriptor)


def test_record_locks(checks: Checks) -> None:
    Path("x").write_bytes(b"0123456789")
    descriptor = os.open("x", os.O_RDWR)
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 4, 2)
    checks.fails(EAGAIN, in_child, lambda: _posix(fcntl.F_WRLCK, 0, 3))
    checks.fails(EAGAIN, in_child, lambda: _posix(fcntl.F_RDLCK, 5, 1))
    checks.works(in_child, lambda: _posix(fcntl.F_WRLCK, 6, 0))
    checks.works(in_child, lambda: _posix(fcntl.F_WRLCK, 0, 2))
    found = in_child(
        lambda: fcntl.fcntl(
            descriptor, fcntl.F_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        )
    )
    checks.gives((fcntl.F_WRLCK, 0, 2, 4, os.getpid()), lambda: FLOCK.unpack(found))
    fcntl.lockf(descriptor, fcntl.LOCK_SH, 4, 2)
    checks.works(in_child, lambda: _posix(fcntl.F_RDLCK, 0, 10))
    os.close(os.open("x", os.O_RDONLY))  # closing any descriptor drops the process's locks
    checks.works(in_child, lambda: _posix(fcntl.F_WRLCK, 0, 0))
    read_only = os.open("x", os.O_RDONLY)
    checks.fails(EBADF, fcntl.lockf, read_only, fcntl.LOCK_EX)
    checks.fails(EINVAL, fcntl.lockf, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, -1, 0)
    os.close(read_only)
    os.close(descriptor)


def test_locks_of_descriptions(checks: Checks) -> None:
    make("file", "x")
    one, two = os.open("x", os.O_RDWR), os.open("x", os.O_RDWR)
    lock = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    checks.works(fcntl.fcntl, one, F_OFD_SETLK, lock)
    checks.fails(EAGAIN, fcntl.fcntl, two, F_OFD_SETLK, lock)
    same = os.dup(one)
    checks.works(fcntl.fcntl, same, F_OFD_SETLK, lock)
    os.close(os.open("x", os.O_RDONLY))
    checks.fails(EAGAIN, fcntl.fcntl, two, F_OFD_SETLK, lock, what="no other close drops it")
    checks.gives(-1, lambda: FLOCK.unpack(fcntl.fcntl(two, F_OFD_GETLK, lock))[4])
    os.close(one)
    checks.fails(EAGAIN, fcntl.fcntl, two, F_OFD_SETLK, lock, what="not before the last close")
    os.close(same)
    checks.works(fcntl.fcntl, two, F_OFD_SETLK, lock)
    os.close(two)


def test_flock(checks: Checks) -> None:
    make("file", "x")
    one, two = os.open("x", os.O_RDWR), os.open("x", os.O_RDONLY)
    checks.works(fcntl.flock, one, fcntl.LOCK_EX)
    checks.fails(EAGAIN, fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    checks.works(fcntl.flock, one, fcntl.LOCK_SH)
    checks.works(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    checks.fails(EAGAIN, fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(two)
    checks.works(fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(one)


def test_leases(checks: Checks) -> None:
    make("file", "x")
    descriptor = os.open("x", os.O_RDONLY)
    checks.gives(fcntl.F_UNLCK, fcntl.fcntl, descriptor, fcntl.F_GETLEASE)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    checks.works(fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    checks.gives(fcntl.F_RDLCK, fcntl.fcntl, descriptor, fcntl.F_GETLEASE)
    checks.fails(
        EAGAIN, lambda: os.close(os.open("x", os.O_WRONLY | os.O_NONBLOCK)), what="it is leased"
    )
    checks.works(fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    checks.works(lambda: os.close(os.open("x", os.O_WRONLY | os.O_NONBLOCK)))
    signal.signal(signal.SIGIO, before)
    os.close(descriptor)


# --- handles ----------------------------------------------------------------------------------------


def _handle_of(path: str) -> bytes:
    """struct file_handle, as name_to_handle_at(2) gives it."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(-100, path.encode(), buffer, ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), path)
    return buffer.raw[: 8 + struct.unpack_from("I", buffer)[0]]


def _open_handle(directory: int, handle: bytes, flags: int = os.O_RDONLY) -> int:
    descriptor = _libc.open_by_handle_at(directory, ctypes.create_string_buffer(handle), flags)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return int(descriptor)


def _forget_cached() -> None:
    """The kernel knows nothing of the files but what is in use."""
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def test_handles(checks: Checks) -> None:
    """What an NFS server keeps of a file: it leads there also when the kernel has forgotten it."""
    here = os.open(".", os.O_RDONLY)
    os.makedirs("a/b")
    Path("a/b/f").write_bytes(b"content")
    handles = {path: _handle_of(path) for path in ("a", "a/b", "a/b/f")}
    os.rename("a/b/f", "g")
    for forget in (False, True):
        if forget:
            _forget_cached()
        descriptor = _open_handle(here, handles["a/b/f"])
        checks.gives(b"content", os.pread, descriptor, 10, 0)
        checks.gives(os.stat("g").st_ino, lambda d=descriptor: os.fstat(d).st_ino)
        os.close(descriptor)
        descriptor = _open_handle(here, handles["a/b"], os.O_RDONLY | os.O_DIRECTORY)
        checks.gives(
            os.stat("a").st_ino, lambda d=descriptor: os.stat("..", dir_fd=d).st_ino, what="'..'"
        )
        os.close(descriptor)
    checks.fails(EPERM, lambda: os.close(_open_handle(here, handles["a"])), user=ALICE)
    os.unlink("g")
    _forget_cached()
    checks.fails(ESTALE, lambda: os.close(_open_handle(here, handles["a/b/f"])))
    for number in range(50):
        make("file", f"other{number}")
    checks.fails(ESTALE, lambda: os.close(_open_handle(here, handles["a/b/f"])))
    os.close(here)


def test_statvfs(checks: Checks) -> None:
    found = os.statvfs(".")
    checks.gives((255, 4096), lambda: (found.f_namemax, found.f_bsize))
    checks.true(found.f_frsize == 4096, "f_frsize")
    checks.true(0 < found.f_bavail <= found.f_bfree <= found.f_blocks, "blocks")
    checks.true(0 < found.f_ffree <= found.f_files, "inodes")
    Path("x").write_bytes(os.urandom(1 << 22))
    descriptor = os.open("x", os.O_RDWR)
    os.fsync(descriptor)
    if checks.on_fuse:  # others write to the host's
        checks.true(found.f_bfree - os.statvfs(".").f_bfree >= 1024, "a file takes its blocks")
    os.close(descriptor)
