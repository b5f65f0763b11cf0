"""What is there after an unmount, and after the daemon was killed."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, fsck, run

pytestmark = pytest.mark.mount
NewMount = Callable[..., Mount]


def account(root: Path) -> dict[str, object]:
    """Everything a program can see of a tree, but for inode numbers and atime."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files, "."]:
            path = Path(directory, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            attributes = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            found[str(path.relative_to(root))] = (
                status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev,
                status.st_size, status.st_mtime_ns, status.st_ctime_ns, content, attributes,
            )  # fmt: skip
    return found


def fill(root: Path, seed: int) -> None:
    """Files of every kind, with modes, owners, times and attributes."""
    rng = random.Random(seed)
    (root / "a" / "b").mkdir(parents=True)
    for number in range(60):
        path = root / rng.choice(("a", "a/b", ".")) / f"f{number}"
        path.write_bytes(rng.randbytes(rng.choice((0, 10, 2000, 5000, 100_000))))
        os.setxattr(path, "user.number", b"%d" % number * rng.choice((1, 300)))
        path.chmod(rng.randrange(0o10000))
        os.chown(path, rng.randrange(70_000), rng.randrange(70_000))
        path.chmod(rng.randrange(0o10000))
        os.utime(path, ns=(rng.randrange(-(10**18), 10**19), rng.randrange(-(10**18), 10**19)))
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(10, 200))
    (root / "link").symlink_to("a/b")
    os.link(root / "fifo", root / "hard")
    with open(root / "sparse", "wb") as file:
        file.seek(1 << 33)
        file.write(b"end")
        file.truncate((1 << 33) - (1 << 20))
        file.truncate(5 << 20)
    (root / "a" / "b" / "gone").write_bytes(b"x")
    (root / "a" / "b" / "gone").unlink()


def test_all_is_there_after_an_unmount(new_mount: NewMount) -> None:
    mount = new_mount()
    fill(mount.path, 1)
    before = account(mount.path)
    mount.remount()
    assert account(mount.path) == before
    mount.remount("ro")
    assert account(mount.path) == before


def test_copies_of_another_filesystem_are_equal(new_mount: NewMount, tmp_path: Path) -> None:
    mount = new_mount()
    source = tmp_path / "source"
    source.mkdir()
    fill(source, 2)
    run("cp", "-a", source, mount.path)
    mount.remount()
    ours, theirs = account(mount.path / "source"), account(source)
    for each in (ours, theirs):
        for name, seen in list(each.items()):
            assert isinstance(seen, tuple)
            each[name] = (*seen[:7], *seen[8:])  # ctime is the copy's own
    assert ours == theirs


def close_after_kill(descriptor: int) -> None:
    """The kernel may still have something to write for it, and then says that nobody takes it."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def test_unlinked_open_files_are_gone_after_a_crash(new_mount: NewMount) -> None:
    mount = new_mount()
    free = os.statvfs(mount.path).f_bfree
    descriptor = os.open(mount.path / "f", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, bytes(8 << 20))
    os.fsync(descriptor)
    os.unlink(mount.path / "f")
    keep = os.open(mount.path / "sync", os.O_CREAT | os.O_RDWR)
    os.write(keep, b"x")
    os.fsync(keep)
    mount.kill()
    for each in (descriptor, keep):
        close_after_kill(each)
    mount.mount()
    assert "finished 1 orphans" in mount.logged()
    assert os.listdir(mount.path) == ["sync"]
    mount.remount()
    assert free - os.statvfs(mount.path).f_bfree < 16


@pytest.mark.parametrize("how", ["fsync", "fdatasync", "directory", "O_SYNC", "msync"])
def test_what_was_synced_survives_a_kill(new_mount: NewMount, how: str) -> None:
    mount = new_mount(options="commit=1000")
    data = random.Random(3).randbytes(300_000)
    (mount.path / "d").mkdir()
    flags = os.O_CREAT | os.O_RDWR | (os.O_SYNC if how == "O_SYNC" else 0)
    descriptor = os.open(mount.path / "d" / "f", flags)
    os.write(descriptor, data)
    if how == "fsync":
        os.fsync(descriptor)
    elif how == "fdatasync":
        os.fdatasync(descriptor)
    elif how == "msync":
        with mmap.mmap(descriptor, 0) as memory:
            memory[1000:1003] = b"new"
            data = data[:1000] + b"new" + data[1003:]
            memory.flush()
    elif how == "directory":
        os.fdatasync(descriptor)
        (mount.path / "d" / "g").symlink_to("f")
        directory = os.open(mount.path / "d", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    mount.kill()
    close_after_kill(descriptor)
    mount.mount()
    assert "replayed" in mount.logged()
    assert (mount.path / "d" / "f").read_bytes() == data
    if how == "directory":
        assert os.readlink(mount.path / "d" / "g") == "f"


def test_killed_again_and_again(new_mount: NewMount) -> None:
    """Whatever was synced before each kill is there in the end, and fsck finds nothing."""
    mount = new_mount(size="128M", options="commit=0.05")
    kept: dict[str, bytes] = {}
    for turn in range(4):
        rng = random.Random(turn)
        for number in range(40):
            name = f"{turn}-{number}"
            data = rng.randbytes(rng.randrange(30_000))
            (mount.path / name).write_bytes(data)
            if number % 8 == 0:
                descriptor = os.open(mount.path / name, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
                kept[name] = data
            elif number % 5 == 1:
                (mount.path / name).rename(mount.path / f"moved{number}")
        mount.kill()
        done = fsck(mount.image)
        assert done.returncode == 0, done.stdout
        mount.mount()
        for name, data in kept.items():
            assert (mount.path / name).read_bytes() == data


def write_until_it_fails(root: Path, prefix: str, size: int) -> None:
    for number in range(100_000):
        with open(root / f"{prefix}{number}", "wb", buffering=0) as file:
            file.write(b"x" * size)
            if size > 4096 or number % 100 == 0:
                os.fsync(file.fileno())


def test_filled_to_the_brim_and_freed(new_mount: NewMount) -> None:
    mount = new_mount(size="64M")
    free = os.statvfs(mount.path).f_bavail
    with pytest.raises(OSError, match="No space"):
        write_until_it_fails(mount.path, "large", 1 << 20)
    assert len(os.listdir(mount.path)) > 40
    with pytest.raises(OSError, match="No space"):
        write_until_it_fails(mount.path, "small", 1500)
    for name in os.listdir(mount.path):
        (mount.path / name).unlink()
    os.sync()
    mount.remount()
    assert free - os.statvfs(mount.path).f_bavail < 64
    (mount.path / "again").write_bytes(b"z" * (10 << 20))
    mount.remount()
    assert (mount.path / "again").read_bytes() == b"z" * (10 << 20)
