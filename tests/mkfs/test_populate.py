"""Filling a filesystem from a directory: what is read back by the document alone is what the host has."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import resource
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from mkfs import cli
from mkfs.fsck import main as fsck
from mkfs.mkfs import main as mkfs
from mkfs.populate.fill import DataWindow, block_runs
from nvmefs.device import open_device
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, ROOT_INODE
from tests.reader import DIGEST_BYTES, Reader

MIB = 1 << 20
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="devices and others' files need root")
NS = 10**9


def made(tmp_path: Path, source: object, *options: object, size: str = "64M") -> Path:
    """An image filled from `source`, and found clean."""
    image = tmp_path / "filled.img"
    image.unlink(missing_ok=True)
    words = ["-q", "-d", source, "--size", size, *options, image]
    assert mkfs([str(word) for word in words]) == 0
    assert fsck(["-n", "-f", str(image)]) == 0
    return image


def tree_in(image: Path) -> dict[str, dict[str, Any]]:
    with image.open("rb") as file:
        return Reader(file).tree()


def tree_of(top: Path) -> dict[str, dict[str, Any]]:
    """The same of a directory of the host."""
    numbers: dict[tuple[int, int], str] = {}
    found = {"/": described(top)}
    for path in sorted(top.rglob("*"), key=os.fsencode):
        name = os.fsencode(path.relative_to(top)).decode("utf-8", "surrogateescape")
        found[f"/{name}"] = described(path)
        status = path.lstat()
        first = numbers.setdefault((status.st_dev, status.st_ino), f"/{name}")
        found[f"/{name}"]["inode"] = first
    return found


def described(path: Path) -> dict[str, Any]:
    status = path.lstat()
    told: dict[str, Any] = {
        "mode": f"{status.st_mode:o}",
        "links": status.st_nlink,
        "owner": [status.st_uid, status.st_gid],
        "size": 0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        "mtime": list(divmod(status.st_mtime_ns, NS)),
        "flags": 0,
    }
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        told["xattrs"] = {
            name: base64.b64encode(os.getxattr(path, name, follow_symlinks=False)).decode()
            for name in sorted(names)
        }
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        told["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    if path.is_symlink():
        told["target"] = os.fsencode(os.readlink(path)).decode("utf-8", "surrogateescape")
    elif stat.S_ISREG(status.st_mode):
        told["sha256"] = digest(path, status.st_size)
    return told


def digest(path: Path, size: int) -> str:
    """As tests/reader.py tells it."""
    result, at = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(BLOCK_BYTES):
            if size <= DIGEST_BYTES:
                result.update(data)
            elif any(data):
                result.update(at.to_bytes(8, "little") + data)
            at += len(data)
    return result.hexdigest()


def alike(image: Path, expected: dict[str, dict[str, Any]]) -> None:
    found = tree_in(image)
    first: dict[int, str] = {}
    for path in sorted(found, key=lambda name: name.encode("utf-8", "surrogateescape")):
        found[path]["inode"] = first.setdefault(found[path]["inode"], path)
    expected["/"]["inode"] = "/"
    for path, told in found.items():
        if told["mode"].startswith("4"):  # a link more for each subdirectory, on the host or not
            expected[path]["links"] = told["links"]
    assert found == expected


def write(path: Path, size: int, seed: int = 0) -> None:
    path.write_bytes(random.Random(size + seed).randbytes(size))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of every size that matters, names, links, holes, times, attributes."""
    top = tmp_path / "source"
    (top / "dir/below/deeper").mkdir(parents=True)
    (top / "empty-dir").mkdir(mode=0o700)
    for size in (0, 1, 899, 900, 901, 4095, 4096, 4097, 3 * MIB + 5):
        write(top / f"size-{size}", size)
    for index in range(300):
        write(top / "dir" / f"file-{index:03}", index * 7)
    (top / ("n" * 255)).write_text("long name")
    Path(os.fsdecode(os.fsencode(top / "dir") + b"/\xff\xfe\n\x01")).write_text("odd name")
    (top / "short-link").symlink_to("dir/below")
    (top / "long-link").symlink_to("x/" * 2000 + "end")
    os.link(top / "size-901", top / "dir/below/linked")
    os.link(top / "size-901", top / "dir/linked-too")
    os.mkfifo(top / "fifo", 0o640)
    here = Path.cwd()
    os.chdir(top)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket")
    finally:
        os.chdir(here)
    with (top / "sparse").open("wb") as file:
        for at in (5, 100 * BLOCK_BYTES, 10 * MIB + 17):
            file.seek(at)
            file.write(b"data" * 1500)
        file.truncate(50 * MIB + 1)
    for name, size in (("all-hole", 20 * MIB), ("small-hole", 300)):
        (top / name).touch()
        os.truncate(top / name, size)
    os.utime(top / "size-1", ns=(123, -(10**18) + 7))
    os.utime(top / "dir/below", ns=(5, 2**34 * NS + 999_999_999))
    (top / "size-4096").chmod(0o4751)
    (top / "empty-dir").chmod(0o3770)
    for name, value in (("user.a", b""), ("user.b", bytes(range(256))), ("user.long", b"l" * 3000)):
        os.setxattr(top / "size-900", name, value)
    os.setxattr(top / "dir", "user.dir", b"d")
    return top


def test_everything_that_a_user_can_make(tmp_path: Path, tree: Path) -> None:
    alike(made(tmp_path, tree), tree_of(tree))


@AS_ROOT
def test_what_only_root_can_make(tmp_path: Path, tree: Path) -> None:
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.chown(tree / "size-1", 1234, 2**32 - 2)
    os.chown(tree / "short-link", 5, 6, follow_symlinks=False)
    os.chown(tree, 7, 8)
    (tree / "dir").chmod(0o2775)
    os.chown(tree / "dir", 0, 99)
    os.setxattr(tree / "short-link", "trusted.of-a-link", b"l", follow_symlinks=False)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(tree / "size-4097", "security.capability", capability)
    entries = (
        (1, 6, 2**32 - 1),
        (2, 5, 1000),
        (4, 4, 2**32 - 1),
        (16, 5, 2**32 - 1),
        (32, 0, 2**32 - 1),
    )
    lists = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, bits, who in entries
    )
    os.setxattr(tree / "size-899", "system.posix_acl_access", lists)
    os.setxattr(tree / "dir", "system.posix_acl_default", lists)
    alike(made(tmp_path, tree), tree_of(tree))


def test_the_command_line_has_the_last_word_about_the_root(tmp_path: Path, tree: Path) -> None:
    root = tree_in(made(tmp_path, tree, "--root-owner", "21:22", "--root-mode", "1711"))["/"]
    assert (root["owner"], root["mode"]) == ([21, 22], "41711")


def test_large_files_are_contiguous_and_holes_take_no_space(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    for index in range(5):
        write(top / f"large-{index}", 9 * MIB + index)
    (top / "hole").touch()
    os.truncate(top / "hole", 2**40)
    with made(tmp_path, top, size="200M").open("rb") as file:
        reader = Reader(file)
        extents = {inode.size: len(inode.extents) for inode in reader.inodes.values()}
    assert extents == {0: 0, 2**40: 0} | {9 * MIB + index: 1 for index in range(5)}


def test_deeper_than_paths_are_long(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 30, dir_fd=here)
        below = os.open("d" * 30, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT, dir_fd=here))
    os.close(here)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 150, hard))
    try:
        image = made(tmp_path, top)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        subprocess.run(["rm", "-rf", top], check=True)
    assert f"{('/' + 'd' * 30) * 300}/bottom" in tree_in(image)


def test_same_source_same_bytes(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a seed and a date; access times, which change by reading, do not count, nor do later times."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1500000000")
    first = made(tmp_path, tree, "--seed", "s").read_bytes()
    os.utime(tree / "size-1", ns=(77, (tree / "size-1").stat().st_mtime_ns))
    image = made(tmp_path, tree, "--seed", "s")
    assert image.read_bytes() == first
    times = {told["mtime"][0] for told in tree_in(image).values()}
    assert max(times) == 1500000000
    assert min(times) == -(10**9)


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run mkfs that must fail; its one line. The new image is gone."""

    def run(source: object, *options: object, size: str = "64M") -> str:
        image = tmp_path / "refused.img"
        capsys.readouterr()
        words = ["-d", source, "--size", size, *options, image]
        assert mkfs([str(word) for word in words]) == 1
        said = capsys.readouterr().err
        assert said.startswith("mkfs.nvmefs: ")
        assert said.count("\n") == 1
        assert not image.exists()
        return said

    return run


def test_a_source_that_is_too_large(tmp_path: Path, refused: Any) -> None:
    top = tmp_path / "source"
    (top / "a").mkdir(parents=True)
    write(top / "a/large", 12 * MIB)
    assert f"{top}/a/large: does not fit, the filesystem of 16 MiB is full" in refused(
        top, size="16M"
    )


def test_many_files_that_do_not_fit(tmp_path: Path, refused: Any) -> None:
    top = tmp_path / "source"
    top.mkdir()
    for index in range(1000):
        (top / f"{index:0200}").write_bytes(b"x" * 15000)
    assert "does not fit" in refused(top, size="16M")


def test_the_image_within_its_own_source(tmp_path: Path, refused: Any) -> None:
    assert "refused.img: is the image that is being made" in refused(tmp_path)


def test_a_source_that_is_not_there(tmp_path: Path, refused: Any) -> None:
    assert f"{tmp_path}/missing: No such file or directory" in refused(tmp_path / "missing")


def test_a_file_that_changes_meanwhile(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "source"
    top.mkdir()
    write(top / "file", 3 * MIB)

    def shorter(descriptor: int, length: int, offset: int) -> bytes:
        monkeypatch.undo()
        os.truncate(top / "file", 1000)
        return os.pread(descriptor, length, offset)

    monkeypatch.setattr("mkfs.populate.directory.os.pread", shorter)
    assert f"{top}/file: became shorter while it was read" in refused(top)


@AS_ROOT
def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "source"
    top.mkdir()
    (top / "secret").write_text("x" * 5000)
    (top / "secret").chmod(0)
    for path in tmp_path.parents:
        path.chmod(path.stat().st_mode | 0o11)
    tmp_path.chmod(0o777)
    cli.version()  # what it imports may not be everybody's to read
    os.seteuid(65534)
    try:
        assert mkfs(["-q", "-d", str(top), "--size", "64M", str(tmp_path / "image")]) == 1
    finally:
        os.seteuid(0)
    assert capsys.readouterr().err == f"mkfs.nvmefs: {top}/secret: Permission denied\n"


def test_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Path) -> None:
    assert mkfs(["-d", str(tree), "--size", "64M", str(tmp_path / "i")]) == 0
    said = capsys.readouterr().out
    assert "contents     " in said
    assert "2 hard links" in said
    assert "2 symbolic links" in said
    assert mkfs(["-n", "--json", "-d", str(tree), "--size", "64M", str(tmp_path / "j")]) == 0
    assert json.loads(capsys.readouterr().out)["block_count"] == 16384
    assert not (tmp_path / "j").exists()


# --- data in blocks -----------------------------------------------------------------------------


class Pattern:
    """Data of which every byte tells its place."""

    def ranges(self) -> list[tuple[int, int]]:
        return []

    def read(self, offset: int, length: int) -> bytes:
        return bytes(at % 251 or 1 for at in range(offset, offset + length))


@pytest.mark.parametrize("seed", range(20))
def test_any_ranges_become_blocks(seed: int) -> None:
    rng = random.Random(seed)
    ranges, at = [], 0
    for _ in range(rng.randrange(1, 30)):
        at += rng.choice((0, 1, 4095, 4096, 9000, rng.randrange(100_000)))
        length = rng.choice((0, 1, 4096, 5000, rng.randrange(60_000)))
        ranges.append((at, length))
        at += length
    expected = bytearray(-(-at // BLOCK_BYTES) * BLOCK_BYTES)
    for start, length in ranges:
        expected[start : start + length] = Pattern().read(start, length)
    touched = {
        block for start, length in ranges if length
        for block in range(start // BLOCK_BYTES, (start + length - 1) // BLOCK_BYTES + 1)
    }  # fmt: skip
    window = DataWindow(Pattern(), iter(ranges))
    seen: set[int] = set()
    for first, count in block_runs(ranges):
        for piece in range(first, first + count, 5):
            length = min(5, first + count - piece)
            begin = piece * BLOCK_BYTES
            assert window.blocks(piece, length) == expected[begin : begin + length * BLOCK_BYTES]
        assert not seen & set(range(first, first + count))
        seen |= set(range(first, first + count))
    assert seen == touched


def test_a_long_run_is_taken_in_steps() -> None:
    runs = list(block_runs([(0, 20_000 * BLOCK_BYTES), (20_000 * BLOCK_BYTES + 5, 1)]))
    assert runs == [(0, 8192), (8192, 8192), (16384, 3617)]


def test_a_mount_goes_on_from_there(tmp_path: Path, tree: Path) -> None:
    """Numbers, sequences and free space fit together: what mounts add is sound."""
    image = made(tmp_path, tree)
    trio.run(use, image)
    assert fsck(["-n", "-f", str(image)]) == 0


async def use(image: Path) -> None:
    """Add files; the first time the filesystem is not closed, as if the power had gone."""
    for mount in range(2):
        async with open_device(str(image)) as device:
            filesystem = await Filesystem.open(device, Options())
            for index in range(50):
                name = b"new-%d-%d" % (mount, index)
                new = await filesystem.create(ROOT_INODE, name, 0o100644, 0, 0)
                await filesystem.write(new.number, 0, bytes(5000))
            await filesystem.sync()
            if mount:
                await filesystem.close()


@AS_ROOT
@pytest.mark.mount
def test_no_space_on_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The drive's own word for it, in one line; a new image is not left half filled."""
    source, host = tmp_path / "source", tmp_path / "host"
    source.mkdir()
    host.mkdir()
    (source / "large").write_bytes(os.urandom(12 * MIB))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", host], check=True)
    try:
        image = host / "disk.img"
        assert mkfs([str(image), "--size", "256M", "-q", "-d", str(source)]) == 1
        error = capsys.readouterr().err
        assert "Capacity Exceeded" in error
        assert error.count("\n") == 1
        assert not image.exists()
    finally:
        subprocess.run(["umount", host], check=True)
