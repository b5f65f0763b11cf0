"""fallocate, lseek with SEEK_DATA and SEEK_HOLE, copy_file_range; files with holes up to 2^63-1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBADF, EFBIG, EINVAL, EISDIR, ENODEV, ENXIO, EOPNOTSUPP, ESPIPE
from pathlib import Path

import pytest

from tests.posix.calls import COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.posix.calls import fallocate as _fallocate
from tests.posix.checks import Checks, make, not_by_pyfuse3

pytestmark = pytest.mark.quick

MAX_FILE = (1 << 63) - 1
BLOCK = 4096


@contextmanager
def opened(path: str, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@not_by_pyfuse3
@pytest.mark.parametrize(
    ("mode", "offset", "length", "size"),
    [
        (0, 0, 10_000, 10_000), (0, 5_000, 10_000, 15_000), (0, 100, 10, 5_000),
        (KEEP_SIZE, 0, 100_000, 5_000), (KEEP_SIZE, 1 << 20, 4096, 5_000),
        (PUNCH_HOLE | KEEP_SIZE, 0, 4096, 5_000), (PUNCH_HOLE | KEEP_SIZE, 10, 100, 5_000),
        (PUNCH_HOLE | KEEP_SIZE, 4000, 1 << 20, 5_000),
        (PUNCH_HOLE | KEEP_SIZE, 1 << 20, 1 << 20, 5_000),
        (ZERO_RANGE, 0, 10_000, 10_000), (ZERO_RANGE, 100, 50, 5_000),
        (ZERO_RANGE | KEEP_SIZE, 4000, 10_000, 5_000),
    ],
)  # fmt: skip
def test_fallocate(checks: Checks, mode: int, offset: int, length: int, size: int) -> None:
    for content in (b"d" * 5000, b"d" * 700):
        Path("x").write_bytes(content)
        after = size if size > 5000 else len(content)
        if mode in (0, ZERO_RANGE):
            after = max(offset + length, len(content))
        with opened("x") as descriptor:
            checks.touches({"x": "mc", ".": ""}, _fallocate, descriptor, mode, offset, length)
            checks.gives(after, lambda: os.fstat(descriptor).st_size)
            expected = bytearray(content.ljust(after, b"\0"))
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                end = min(offset + length, after)
                expected[offset:end] = bytes(max(end - offset, 0))
            checks.gives(bytes(expected), os.pread, descriptor, after + 1, 0)
            if mode == 0:
                held = os.fstat(descriptor).st_blocks * 512
                checks.true(held >= length - BLOCK, f"{held} bytes are held")
        os.unlink("x")


def test_fallocate_errors(checks: Checks) -> None:
    late = (EOPNOTSUPP,) if checks.where == "python" else ()
    with opened("x") as descriptor:
        for offset, length in ((-1, 10), (0, 0), (0, -1), (10, 0), (-1, -1)):
            checks.fails(EINVAL, _fallocate, descriptor, 0, offset, length)
        checks.fails((EFBIG, *late), _fallocate, descriptor, 0, MAX_FILE - 10, 100)
        checks.fails((EFBIG, *late), _fallocate, descriptor, KEEP_SIZE, MAX_FILE, 1)
        checks.fails(EOPNOTSUPP, _fallocate, descriptor, PUNCH_HOLE, 0, 10)
        checks.fails(EOPNOTSUPP, _fallocate, descriptor, 0x4000, 0, 10)
        for mode in (COLLAPSE_RANGE, INSERT_RANGE):
            checks.fails(
                EINVAL, _fallocate, descriptor, mode, 0, 10,
                fuse=EOPNOTSUPP, why="the kernel's FUSE refuses collapse and insert",
            )  # fmt: skip
    with opened("x", os.O_RDONLY) as descriptor:
        checks.fails(EBADF, _fallocate, descriptor, 0, 0, 10)
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as descriptor:
        checks.fails((EBADF, EISDIR), _fallocate, descriptor, 0, 0, 10)
    make("fifo", "fifo")
    with opened("fifo", os.O_RDWR) as descriptor:
        checks.fails((ESPIPE, ENODEV), _fallocate, descriptor, 0, 0, 10)
    checks.fails(ESPIPE, _fallocate, os.pipe()[1], 0, 0, 10)


@not_by_pyfuse3
def test_seek(checks: Checks) -> None:
    data, hole = os.SEEK_DATA, os.SEEK_HOLE
    with opened("x") as descriptor:
        checks.fails(ENXIO, os.lseek, descriptor, 0, data, what="empty")
        checks.fails(ENXIO, os.lseek, descriptor, 0, hole, what="empty")
        os.ftruncate(descriptor, 1 << 20)
        checks.fails(ENXIO, os.lseek, descriptor, 0, data, what="all hole")
        checks.gives(0, os.lseek, descriptor, 0, hole)
        os.pwrite(descriptor, b"d" * BLOCK, 64 * BLOCK)
        os.pwrite(descriptor, b"d", 128 * BLOCK + 5)
        for at, whence, wanted in (
            (0, data, 64 * BLOCK), (64 * BLOCK + 7, data, 64 * BLOCK + 7),
            (64 * BLOCK, hole, 65 * BLOCK), (65 * BLOCK, data, 128 * BLOCK), (5, hole, 5),
            (128 * BLOCK, hole, 129 * BLOCK),
        ):  # fmt: skip
            checks.gives(wanted, os.lseek, descriptor, at, whence)
        checks.fails(ENXIO, os.lseek, descriptor, 129 * BLOCK, data)
        for whence in (data, hole):
            checks.fails(ENXIO, os.lseek, descriptor, 1 << 20, whence)
            checks.fails(ENXIO, os.lseek, descriptor, -1, whence)
        checks.gives(129 * BLOCK, os.lseek, descriptor, 0, os.SEEK_CUR, what="left by failures")
        checks.fails(EINVAL, os.lseek, descriptor, 0, 9)


def test_seek_and_end(checks: Checks) -> None:
    with opened("x") as descriptor:
        os.write(descriptor, b"12345")
        for offset, whence, wanted in (
            (0, os.SEEK_END, 5), (-2, os.SEEK_END, 3), (10, os.SEEK_END, 15), (2, os.SEEK_CUR, 17),
            (MAX_FILE, os.SEEK_SET, MAX_FILE if checks.on_fuse else None),
        ):  # fmt: skip
            if wanted is not None:
                checks.gives(wanted, os.lseek, descriptor, offset, whence)
        checks.fails(EINVAL, os.lseek, descriptor, -6, os.SEEK_END)
        checks.fails(EINVAL, os.lseek, descriptor, -1, os.SEEK_SET)
        os.lseek(descriptor, 100, os.SEEK_SET)
        checks.gives(b"", os.read, descriptor, 10)
        checks.gives(5, lambda: os.fstat(descriptor).st_size)


def test_copy(checks: Checks) -> None:
    Path("x").write_bytes(bytes(range(256)) * 100)
    make("file", "y")
    with opened("x", os.O_RDONLY) as one, opened("y") as two:
        checks.touches({"y": "mc", ".": ""}, os.copy_file_range, one, two, 5000, 100, 0)
        checks.gives((bytes(range(256)) * 100)[100:5100], os.pread, two, 6000, 0)
        checks.gives(0, os.copy_file_range, one, two, 10, 1 << 20, 0)
        checks.gives(100, os.copy_file_range, one, two, 1000, 25_500, 3)
        checks.gives(0, os.copy_file_range, one, two, 0, 0, 0)
        checks.gives(256, os.copy_file_range, one, two, 256)
        checks.gives(256, os.lseek, one, 0, os.SEEK_CUR)
        checks.gives(256, os.lseek, two, 0, os.SEEK_CUR)
        checks.fails(EBADF, os.copy_file_range, two, one, 10)
        checks.fails(EINVAL, os.copy_file_range, two, two, 100, 0, 50, what="overlapping")
        checks.gives(50, os.copy_file_range, two, two, 50, 0, 5050)
        checks.fails((EFBIG,), os.copy_file_range, one, two, 10, 0, MAX_FILE)
    with opened("y", os.O_WRONLY | os.O_APPEND) as two, opened("x", os.O_RDONLY) as one:
        checks.fails(EBADF, os.copy_file_range, one, two, 10)
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as directory, opened("y") as two:
        checks.fails(EISDIR, os.copy_file_range, directory, two, 10)


FAR = (1 << 31, (1 << 32) + 5, 1 << 40, (1 << 44) - 4096 - 1, 1 << 50, 1 << 62, MAX_FILE - 1)


def test_holes_up_to_the_end(checks: Checks) -> None:
    """A byte anywhere up to 2^63-2; ext4 ends at 16 TiB."""
    for offset in FAR:
        if not checks.on_fuse and offset >= (1 << 44) - 4096:
            continue
        with opened("x") as descriptor:
            checks.gives(1, os.pwrite, descriptor, b"e", offset)
            checks.gives(offset + 1, lambda: os.fstat(descriptor).st_size)
            checks.works(os.fsync, descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            checks.gives(b"\0\0\0\0e", os.pread, descriptor, 5, offset - 4)
            checks.gives(bytes(10), os.pread, descriptor, 10, 0)
            checks.gives(bytes(10), os.pread, descriptor, 10, offset // 2)
            held = os.fstat(descriptor).st_blocks
            checks.true(held <= 64, f"{held} sectors for one byte at {offset}")
            checks.works(os.ftruncate, descriptor, offset)
            checks.gives(b"", os.pread, descriptor, 1, offset)
        os.unlink("x")
    with opened("x") as descriptor:
        checks.fails(EINVAL, os.pwrite, descriptor, b"e", MAX_FILE, what="would end beyond off_t")
        checks.fails(EINVAL, os.pwrite, descriptor, b"ef", MAX_FILE - 1)
        checks.fails(EINVAL, os.pread, descriptor, 10, MAX_FILE - 1)
        if checks.on_fuse:
            checks.gives(1, os.pwrite, descriptor, b"e", MAX_FILE - 1)
            checks.works(os.ftruncate, descriptor, MAX_FILE)
            checks.gives(b"e", os.pread, descriptor, 1, MAX_FILE - 1)
        checks.fails(EINVAL, os.pread, descriptor, 1, -1)
        checks.fails(EINVAL, os.pwrite, descriptor, b"x", -1)
