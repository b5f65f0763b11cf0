"""Names on a mount: creating, linking, renaming, removing, listing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.mount.conftest import NOBODY, Mount, as_user

pytestmark = pytest.mark.mount

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def fails(*numbers: int):  # type: ignore[no-untyped-def]
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, os.strerror(caught.value.errno or 0)


def test_mkdir_counts_links(place: Path) -> None:
    (place / "a").mkdir(0o750)
    (place / "a" / "b").mkdir()
    assert (place / "a").stat().st_nlink == 3
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o750
    with fails(errno.EEXIST):
        (place / "a").mkdir()
    with fails(errno.ENOTEMPTY):
        (place / "a").rmdir()
    (place / "a" / "b").rmdir()
    assert (place / "a").stat().st_nlink == 2
    (place / "a").rmdir()
    assert not (place / "a").exists()


def test_a_removed_directory_stays_usable_by_who_is_in_it(place: Path) -> None:
    (place / "gone").mkdir()
    descriptor = os.open(place / "gone", os.O_RDONLY)
    (place / "gone").rmdir()
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    with fails(errno.ENOENT):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(descriptor)


def test_hard_links(place: Path) -> None:
    (place / "one").write_bytes(b"x")
    os.link(place / "one", place / "two")
    first, second = (place / "one").stat(), (place / "two").stat()
    assert first.st_ino == second.st_ino
    assert second.st_nlink == 2
    (place / "one").unlink()
    assert (place / "two").stat().st_nlink == 1
    assert (place / "two").read_bytes() == b"x"
    with fails(errno.EPERM):
        os.link(place, place / "directory")
    with fails(errno.EEXIST):
        os.link(place / "two", place / "two")


def test_unlinked_file_lives_while_open(place: Path) -> None:
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"before")
    os.unlink(place / "f")
    os.write(descriptor, b" and after")
    assert os.fstat(descriptor).st_nlink == 0
    assert os.pread(descriptor, 100, 0) == b"before and after"
    os.ftruncate(descriptor, 6)
    os.fsync(descriptor)
    assert os.pread(descriptor, 100, 0) == b"before"
    os.close(descriptor)


def test_space_of_unlinked_files_comes_back(shared: Mount, place: Path) -> None:
    before = os.statvfs(shared.path)
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, bytes(8 << 20))
    os.fsync(descriptor)
    os.unlink(place / "f")
    assert before.f_bfree - os.statvfs(shared.path).f_bfree >= 2048
    os.close(descriptor)
    deadline = time.monotonic() + 10
    while before.f_bfree - os.statvfs(shared.path).f_bfree > 16:
        assert time.monotonic() < deadline, "the blocks of an unlinked file are not freed"
        time.sleep(0.02)


@pytest.mark.parametrize("length", [1, 59, 60, 255, 1000, 4000])
def test_symlinks(place: Path, length: int) -> None:
    target = b"t" * length
    os.symlink(target, os.fsencode(place / "link"))
    assert os.readlink(os.fsencode(place / "link")) == target
    found = (place / "link").lstat()
    assert stat.S_ISLNK(found.st_mode)
    assert found.st_size == length


def test_symlinks_are_followed(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_text("here")
    (place / "link").symlink_to("d")
    assert (place / "link" / "f").read_text() == "here"
    (place / "loop").symlink_to("loop")
    with fails(errno.ELOOP):
        (place / "loop").stat()
    with fails(errno.EINVAL):
        os.readlink(place / "d")


@pytest.mark.parametrize(
    "kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
)
def test_mknod(place: Path, kind: int) -> None:
    device = os.makedev(259, 1_000_000) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    os.mknod(place / "node", kind | 0o640, device)
    found = (place / "node").stat()
    assert stat.S_IFMT(found.st_mode) == kind
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_rdev == device


def test_fifo_and_socket_work(place: Path) -> None:
    os.mkfifo(place / "fifo")
    reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader)
    os.close(writer)
    os.chdir(place)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("sock")
        server.listen()
        client.connect("sock")
    os.chdir("/")
    assert stat.S_ISSOCK((place / "sock").stat().st_mode)


def test_device_nodes_work_for_root(place: Path) -> None:
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    try:
        with open(place / "zero", "rb") as zero:
            assert zero.read(3) == bytes(3)
    except PermissionError:
        pytest.skip("this container may not open devices")


def test_rename_replaces(place: Path) -> None:
    (place / "old").write_text("old")
    (place / "new").write_text("new")
    held = os.open(place / "new", os.O_RDONLY)
    (place / "old").rename(place / "new")
    assert not (place / "old").exists()
    assert (place / "new").read_text() == "old"
    assert os.read(held, 10) == b"new"
    assert os.fstat(held).st_nlink == 0
    os.close(held)


def test_rename_of_directories(place: Path) -> None:
    for name in ("a", "a/sub", "empty", "full", "full/x"):
        (place / name).mkdir()
    (place / "a").rename(place / "empty")
    assert (place / "empty" / "sub").is_dir()
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        (place / "empty").rename(place / "full")
    with fails(errno.EINVAL):
        (place / "full").rename(place / "full" / "x" / "y")
    (place / "f").write_text("")
    with fails(errno.ENOTDIR):
        (place / "full").rename(place / "f")
    with fails(errno.EISDIR):
        (place / "f").rename(place / "full")
    (place / "full" / "x").rename(place / "empty" / "x")
    assert (place / "full").stat().st_nlink == 2
    assert (place / "empty").stat().st_nlink == 4
    assert os.path.samefile(place / "empty" / "x" / "..", place / "empty")


def test_rename_between_links_of_one_inode_does_nothing(place: Path) -> None:
    (place / "a").write_text("")
    os.link(place / "a", place / "b")
    (place / "a").rename(place / "b")
    assert sorted(os.listdir(place)) == ["a", "b"]


def test_rename_noreplace(place: Path) -> None:
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    with fails(errno.EEXIST):
        renameat2(place / "a", place / "b", RENAME_NOREPLACE)
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert (place / "c").read_text() == "a"


def test_rename_exchange(place: Path) -> None:
    (place / "file").write_text("file")
    (place / "d").mkdir()
    (place / "d" / "dir").mkdir()
    renameat2(place / "file", place / "d" / "dir", RENAME_EXCHANGE)
    assert (place / "file").is_dir()
    assert (place / "d" / "dir").read_text() == "file"
    assert (place / "d").stat().st_nlink == 2
    assert os.path.samefile(place / "file" / "..", place)
    with fails(errno.ENOENT):
        renameat2(place / "file", place / "missing", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(place / "file", place / "d", RENAME_EXCHANGE | RENAME_NOREPLACE)


def test_names_of_all_kinds(place: Path) -> None:
    names = [b"\xff\xfe\x80", b"n" * 255, "ünï".encode(), b" ", b"\n", b"...", b"a\\040b", b"-o"]
    for name in names:
        with open(os.path.join(os.fsencode(place), name), "wb") as file:
            file.write(name)
    assert sorted(os.listdir(os.fsencode(place))) == sorted(names)
    for name in names:
        with open(os.path.join(os.fsencode(place), name), "rb") as file:
            assert file.read() == name
    with fails(errno.ENAMETOOLONG):
        (place / ("n" * 256)).write_text("")
    with fails(errno.ENAMETOOLONG):
        (place / ("n" * 256)).stat()


def test_absence_is_remembered_until_the_name_comes(place: Path) -> None:
    assert not (place / "x").exists()
    (place / "x").write_text("1")
    assert (place / "x").read_text() == "1"
    (place / "x").unlink()
    assert not (place / "x").exists()
    (place / "y").write_text("2")
    (place / "y").rename(place / "x")
    assert (place / "x").read_text() == "2"
    assert not (place / "y").exists()


def test_sticky_directory(place: Path) -> None:
    (place / "tmp").mkdir()
    (place / "tmp").chmod(0o1777)
    (place / "tmp" / "roots").write_text("")
    with fails(errno.EPERM, errno.EACCES):
        as_user(place, lambda: os.unlink("tmp/roots"))
    as_user(place, lambda: os.close(os.open("tmp/mine", os.O_CREAT | os.O_WRONLY)))
    with fails(errno.EPERM, errno.EACCES):
        as_user(place, lambda: os.unlink("tmp/mine"), uid=NOBODY - 1)
    as_user(place, lambda: os.unlink("tmp/mine"))


def test_set_group_id_directory(place: Path) -> None:
    (place / "shared").mkdir()
    os.chown(place / "shared", 0, 4242)
    (place / "shared").chmod(0o2777)
    as_user(place, lambda: os.mkdir("shared/d"))
    as_user(place, lambda: os.close(os.open("shared/f", os.O_CREAT | os.O_WRONLY)))
    for name in ("d", "f"):
        found = (place / "shared" / name).stat()
        assert (found.st_uid, found.st_gid) == (NOBODY, 4242)
    assert (place / "shared" / "d").stat().st_mode & stat.S_ISGID
    assert not (place / "shared" / "f").stat().st_mode & stat.S_ISGID


def test_create_uses_umask_owner_and_excl(place: Path) -> None:
    def make() -> None:
        os.umask(0o027)
        os.close(os.open("f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    as_user(place, make)
    found = (place / "f").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (NOBODY, 0o640)
    with fails(errno.EEXIST):
        as_user(place, make)


def test_permissions_are_the_kernels_part(place: Path) -> None:
    (place / "secret").write_text("s")
    (place / "secret").chmod(0o600)
    with fails(errno.EACCES):
        as_user(place, lambda: os.open("secret", os.O_RDONLY))
    with fails(errno.EPERM):
        as_user(place, lambda: os.chmod("secret", 0o777))
    assert not as_user(place, lambda: os.access("secret", os.R_OK))
    assert os.access(place / "secret", os.R_OK)


def test_dot_and_dotdot_are_listed(place: Path) -> None:
    """os.scandir leaves them out, so getdents64 is asked; cookies 1 and 2 are theirs."""
    (place / "f").write_text("")
    descriptor = os.open(place, os.O_RDONLY)
    buffer = ctypes.create_string_buffer(4096)
    length = ctypes.CDLL(None).syscall(217, descriptor, buffer, 4096)  # getdents64 on x86-64
    os.close(descriptor)
    at, found = 0, {}
    while at < length:
        record = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
        name = buffer.raw[at + 19 : at + record].split(b"\0")[0]
        found[name] = (
            int.from_bytes(buffer.raw[at : at + 8], "little"),
            int.from_bytes(buffer.raw[at + 8 : at + 16], "little"),
        )
        at += record
    assert found[b"."] == (place.stat().st_ino, 1)
    assert found[b".."] == (place.parent.stat().st_ino, 2)
    assert found[b"f"][0] == (place / "f").stat().st_ino
    assert set(found) == {b".", b"..", b"f"}


def test_listing_stays_true_while_names_come_and_go(place: Path) -> None:
    """What is there all the time is listed exactly once, whatever happens to the others."""
    stay = {f"stay{number}" for number in range(6000)}
    go = [f"go{number}" for number in range(4000)]
    for name in [*stay, *go]:
        os.mknod(place / name)
    seen: list[str] = []
    with os.scandir(place) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 4 == 0 and go:
                os.unlink(place / go.pop())
                os.mknod(place / f"come{count}")
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
    assert set(os.listdir(place)) >= stay


def test_listing_while_everything_is_removed(place: Path) -> None:
    for number in range(3000):
        os.mknod(place / f"{number}")
    with os.scandir(place) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(place) == []
    assert place.stat().st_nlink == 2


@pytest.mark.timeout(300)
def test_hundred_thousand_names(place: Path) -> None:
    directory = os.open(place, os.O_RDONLY)
    count = 100_000
    for number in range(count):
        os.mknod(f"f{number}", dir_fd=directory)
    os.lseek(directory, 0, os.SEEK_SET)
    names = os.listdir(directory)
    assert len(names) == len(set(names)) == count
    os.close(directory)


def test_inode_numbers_stay_and_agree(place: Path) -> None:
    for number in range(100):
        (place / f"{number}").write_text("")
    listed = {entry.name: entry.inode() for entry in os.scandir(place)}
    assert listed == {name: (place / name).stat().st_ino for name in listed}
    assert len(set(listed.values())) == 100
