"""On real mounts: what programs ask of files beside reading and writing, and pyfuse3 has no handler for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, as_user, run, wait_until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="the front end in C needs root"),
]

PAGE = 4096
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2 | 1, 8, 16, 32
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
FS_IOC_GETFLAGS, FS_IOC_GETVERSION = 0x80086601, 0x80087601

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    arguments = ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)
    if _libc.fallocate(descriptor, *arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def link_open_file(descriptor: int, path: Path) -> None:
    """linkat(2), as open(2) shows it for O_TMPFILE."""
    source = f"/proc/self/fd/{descriptor}".encode()
    target = os.fsencode(path)
    if _libc.linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def file(place: Path) -> Iterator[int]:
    """A descriptor of a new file."""
    descriptor = os.open(place / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def close_after_crash(descriptor: int) -> None:
    """close(2), which may tell that the daemon is gone."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


# --- fallocate ------------------------------------------------------------------------------------


def test_posix_fallocate(file: int) -> None:
    os.posix_fallocate(file, 0, 5 << 20)
    found = os.fstat(file)
    assert (found.st_size, found.st_blocks * 512) == (5 << 20, 5 << 20)
    assert os.pread(file, 5 << 20, 0) == bytes(5 << 20)


def test_room_kept_behind_the_end(file: int) -> None:
    fallocate(file, KEEP_SIZE, 0, 1 << 20)
    assert (os.fstat(file).st_size, os.fstat(file).st_blocks * 512) == (0, 1 << 20)
    os.pwrite(file, b"x" * 10000, 0)
    os.fsync(file)
    assert os.fstat(file).st_blocks * 512 == 1 << 20
    os.ftruncate(file, 1 << 20)
    assert os.pread(file, 2 << 20, 0) == b"x" * 10000 + bytes((1 << 20) - 10000)


@pytest.mark.parametrize("mode", [PUNCH, ZERO, ZERO | KEEP_SIZE])
def test_zeroes_over_cached_and_mapped_pages(file: int, mode: int) -> None:
    content = bytearray(os.urandom(64 * PAGE))
    os.pwrite(file, content, 0)
    with mmap.mmap(file, len(content)) as memory:
        memory[5 * PAGE] = content[5 * PAGE] = 1
        for offset, length in ((100, 50), (3 * PAGE, PAGE), (10 * PAGE + 5, 20 * PAGE + 9)):
            fallocate(file, mode, offset, length)
            content[offset : offset + length] = bytes(length)
            assert memory[:] == content
            assert os.pread(file, len(content), 0) == content
    blocks = os.fstat(file).st_blocks // 8
    assert blocks == (64 if mode & ZERO else 64 - 1 - 19)


def test_modes_that_are_not_there(file: int) -> None:
    os.pwrite(file, b"x" * 9 * PAGE, 0)
    for mode in (COLLAPSE, INSERT):
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            fallocate(file, mode, PAGE, PAGE)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        fallocate(file, 0, 0, 0)


def test_no_space(place: Path, file: int) -> None:
    free = os.statvfs(place).f_bavail * PAGE
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        fallocate(file, 0, 0, free + (64 << 20))
    assert (os.fstat(file).st_size, os.fstat(file).st_blocks) == (0, 0)


def test_unwritten_blocks_survive_a_crash_as_zeroes(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(size="64M")
    victim = mount.path / "victim"
    victim.write_bytes(b"\xee" * (40 << 20))
    os.sync()
    victim.unlink()
    os.sync()
    descriptor = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
    fallocate(descriptor, 0, 0, 40 << 20)
    os.pwrite(descriptor, b"x" * PAGE, 7 * PAGE)
    os.fsync(descriptor)
    mount.kill()
    close_after_crash(descriptor)
    mount.mount()
    found = (mount.path / "file").read_bytes()
    assert found[7 * PAGE : 8 * PAGE] == b"x" * PAGE
    assert set(found) == {0, ord("x")}


# --- seek and copy --------------------------------------------------------------------------------


def test_seek_sees_what_only_the_kernel_has_yet(file: int) -> None:
    """The pages are dirty, and nothing has told the daemon of them."""
    os.ftruncate(file, 100 * PAGE)
    assert os.lseek(file, 0, os.SEEK_HOLE) == 0
    os.pwrite(file, b"x" * PAGE, 50 * PAGE)
    assert os.lseek(file, 0, os.SEEK_DATA) == 50 * PAGE
    assert os.lseek(file, 50 * PAGE, os.SEEK_HOLE) == 51 * PAGE
    os.pwrite(file, b"y" * PAGE, 200 * PAGE)
    assert os.lseek(file, 60 * PAGE, os.SEEK_DATA) == 200 * PAGE
    assert os.lseek(file, 200 * PAGE, os.SEEK_HOLE) == 201 * PAGE
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        os.lseek(file, 201 * PAGE, os.SEEK_DATA)
    assert os.pread(file, 2, 50 * PAGE) == b"xx"


def test_seek_sees_mapped_pages_of_a_closed_file(place: Path) -> None:
    path = place / "mapped"
    with path.open("wb+") as handle:
        handle.truncate(64 * PAGE)
        memory = mmap.mmap(handle.fileno(), 64 * PAGE)
    memory[33 * PAGE] = 1
    descriptor = os.open(path, os.O_RDONLY)
    assert os.lseek(descriptor, 0, os.SEEK_DATA) == 33 * PAGE
    os.close(descriptor)
    memory.close()


def test_cp_keeps_holes(place: Path) -> None:
    with (place / "from").open("wb") as handle:
        for index in range(5):
            handle.seek(index << 20)
            handle.write(os.urandom(5000))
    for mode in ("auto", "never"):
        run("cp", "--sparse=auto", f"--reflink={mode}", place / "from", place / "to")
        assert (place / "to").read_bytes() == (place / "from").read_bytes()
        assert (place / "to").stat().st_blocks <= (place / "from").stat().st_blocks + 8


def test_copy_file_range(place: Path, file: int) -> None:
    content = os.urandom(3 << 20)
    os.pwrite(file, content, 0)
    target = os.open(place / "target", os.O_RDWR | os.O_CREAT)
    os.pwrite(target, b"old" * PAGE, 0)
    assert os.pread(target, 3, 0) == b"old"
    done = 0
    while done < len(content):
        done += os.copy_file_range(file, target, len(content) - done, done, 77 + done)
    assert os.pread(target, 4 << 20, 0) == (b"old" * PAGE)[:77] + content
    assert os.copy_file_range(file, target, 5, len(content)) == 0
    os.close(target)


# --- files without a name -------------------------------------------------------------------------


def test_a_file_without_a_name(place: Path) -> None:
    descriptor = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"content")
    assert os.fstat(descriptor).st_nlink == 0
    assert list(place.iterdir()) == []
    link_open_file(descriptor, place / "name")
    assert os.fstat(descriptor).st_nlink == 1
    os.close(descriptor)
    assert (place / "name").read_bytes() == b"content"
    assert stat.S_IMODE((place / "name").stat().st_mode) == 0o640


def test_o_excl_forbids_a_name(place: Path) -> None:
    descriptor = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        link_open_file(descriptor, place / "name")
    os.close(descriptor)


def test_what_never_got_a_name_gives_its_space_back(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(size="64M")
    free = os.statvfs(mount.path).f_bfree
    descriptor = os.open(mount.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(descriptor, bytes(10 << 20))
    os.fsync(descriptor)
    assert os.statvfs(mount.path).f_bfree <= free - 2560
    mount.kill()
    close_after_crash(descriptor)
    mount.mount()
    assert os.statvfs(mount.path).f_bfree == free


# --- statx, ioctl ---------------------------------------------------------------------------------


def test_birth_time(place: Path) -> None:
    before = int(time.time())
    (place / "file").write_bytes(b"x")
    os.utime(place / "file", (5, 5))
    born = int(run("stat", "-c", "%W", place / "file").stdout)
    assert before <= born <= time.time()
    assert (place / "file").stat().st_mtime == 5


def test_chattr_and_lsattr(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"C", 0)  # dirty yet
    run("chattr", "+i", path)
    assert run("lsattr", path).stdout.split()[0].strip("-") == "i"
    os.close(descriptor)
    forbidden: list[Callable[[], object]] = [
        path.unlink,
        lambda: path.open("ab"),
        lambda: path.chmod(0o600),
        lambda: os.truncate(path, 0),
        lambda: path.rename(place / "other"),
        lambda: os.link(path, place / "other"),
        lambda: os.setxattr(path, "user.x", b""),
    ]
    for call in forbidden:
        with pytest.raises(PermissionError):
            call()
    run("chattr", "-i", "+a", path)
    with pytest.raises(PermissionError):
        path.open("r+b")
    with path.open("ab") as handle:
        handle.write(b" and more")
    assert path.read_bytes() == b"Content and more"
    run("chattr", "-a", path)
    path.unlink()


def test_chattr_is_for_root(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"")
    os.chown(path, 65534, 65534)
    done = as_user(place, lambda: run("chattr", "+i", "file", check=False).returncode)
    assert done != 0
    assert run("lsattr", path).stdout.split()[0].strip("-") == ""


def test_other_ioctls(file: int) -> None:
    assert struct.unpack("<I", fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(4))) == (0,)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        fcntl.ioctl(file, FS_IOC_GETVERSION, bytes(8))


def test_fstrim_makes_the_image_smaller(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(size="128M")
    kept = os.urandom(1 << 20)
    (mount.path / "kept").write_bytes(kept)
    (mount.path / "big").write_bytes(os.urandom(50 << 20))
    os.sync()
    full = os.statvfs(mount.path).f_bfree
    (mount.path / "big").unlink()
    wait_until(lambda: os.statvfs(mount.path).f_bfree > full + 12000)
    with (mount.path / "commit").open("wb") as handle:  # sync(2) does not ask us
        os.fsync(handle)
    taken = mount.image.stat().st_blocks
    done = run("fstrim", "-v", mount.path).stdout
    assert "trimmed" in done
    assert mount.image.stat().st_blocks * 512 <= taken * 512 - (40 << 20)
    mount.remount()
    assert (mount.path / "kept").read_bytes() == kept
