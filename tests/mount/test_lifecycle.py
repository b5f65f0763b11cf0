"""How a mount begins and ends: the daemon, its signals, exit codes, and everything that can be wrong."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nvmefs.daemon import Refused
from nvmefs.layout import BLOCK_BYTES, SUPERBLOCK, SUPERBLOCK_COPY, Superblock, reseal
from nvmefs.mount import check
from tests.conftest import mounts_below
from tests.mount.conftest import (
    BOUND_S,
    ROOT,
    Mount,
    as_user,
    ended,
    mkfs,
    python_module,
    run,
    wait_until,
)
from tests.mount.test_names import fails
from tests.support.uring import URING

pytestmark = pytest.mark.mount

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that")
NewMount = Callable[..., Mount]


# --- serving -----------------------------------------------------------------------------------------


def test_background(new_mount: NewMount) -> None:
    mount = new_mount()
    assert mount.mounted
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(mount.path) in line
    )
    assert f"fuse.nvmefs {mount.image} " in line
    assert os.getsid(mount.pid) == mount.pid
    assert os.readlink(f"/proc/{mount.pid}/fd/1") == os.devnull
    assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
    mount.unmount()
    assert not mount.mounted
    assert "closed" in mount.logged().splitlines()[-1]


@pytest.fixture
def foreground(new_mount: NewMount) -> Iterator[tuple[Mount, subprocess.Popen[str]]]:
    mount = new_mount(mount=False)
    with subprocess.Popen(
        python_module("nvmefs.cli", mount.image, mount.path, "-f", "-o", "commit=1"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        # Before it says so it looks at the mount itself, which makes it busy.
        assert any("mounted at" in line for line in process.stdout), "it has ended"
        mount.pid = process.pid
        yield mount, process
        if process.poll() is None:
            process.kill()
        mount.pid = 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(
    foreground: tuple[Mount, subprocess.Popen[str]], number: signal.Signals
) -> None:
    mount, process = foreground
    (mount.path / "f").write_bytes(b"x" * 100_000)
    process.send_signal(number)
    assert process.wait(BOUND_S) == 0
    assert not mount.mounted
    assert process.stdout is not None
    assert "unmounting" in process.stdout.read()
    mount.mount()
    assert (mount.path / "f").read_bytes() == b"x" * 100_000
    mount.unmount()


def test_umount_ends_the_foreground(foreground: tuple[Mount, subprocess.Popen[str]]) -> None:
    mount, process = foreground
    run("umount", mount.path)
    assert process.wait(BOUND_S) == 0


def test_signal_while_busy(foreground: tuple[Mount, subprocess.Popen[str]]) -> None:
    """The mount goes away all the same, and what was written is on the disk."""
    mount, process = foreground
    descriptor = os.open(mount.path / "f", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"x" * 50_000)
    process.terminate()
    assert process.wait(BOUND_S) == 0
    assert not mount.mounted
    with fails(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
        os.fsync(descriptor)
        os.write(descriptor, b"y")
        os.fsync(descriptor)
    with fails(errno.ENOTCONN):
        os.close(descriptor)
    mount.mount()
    assert (mount.path / "f").read_bytes() == b"x" * 50_000
    mount.unmount()


def test_fusermount(new_mount: NewMount) -> None:
    mount = new_mount()
    run("fusermount3", "-u", mount.path)
    assert ended(mount.pid)


def test_log_is_reopened(new_mount: NewMount) -> None:
    mount = new_mount()
    rotated = mount.log.with_suffix(".1")
    mount.log.rename(rotated)
    os.kill(mount.pid, signal.SIGHUP)
    wait_until(lambda: "log reopened" in mount.logged())
    assert "mounted at" in rotated.read_text()


def test_stacks_are_dumped(new_mount: NewMount) -> None:
    mount = new_mount()
    os.kill(mount.pid, signal.SIGUSR1)
    wait_until(lambda: "most recent call first" in mount.logged())
    (mount.path / "f").write_text("still serving")


@pytest.mark.parametrize("frontend", ["auto", URING])
def test_idle_mount_takes_no_cpu(new_mount: NewMount, frontend: str) -> None:
    mount = new_mount(options=f"commit=0.1,frontend={frontend}")
    (mount.path / "f").write_text("x")
    time.sleep(1.0)  # what follows a write: commit, keep-alive
    before = mount.cpu_s()
    time.sleep(2.0)
    assert mount.cpu_s() - before <= 0.02


@as_root
def test_read_ahead_and_dirty_ratio(new_mount: NewMount) -> None:
    mount = new_mount(options="read_ahead_kb=1024,max_ratio=40")
    device = os.stat(mount.path).st_dev
    bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    if not os.access(bdi / "read_ahead_kb", os.W_OK):
        pytest.skip("/sys is read-only here")
    assert (bdi / "read_ahead_kb").read_text() == "1024\n"
    assert (bdi / "max_ratio").read_text() == "40\n"


def test_statfs(new_mount: NewMount) -> None:
    mount = new_mount(size="256M")
    found = os.statvfs(mount.path)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (4096, 4096, 255)
    assert 0.85 * (256 << 20) < found.f_blocks * 4096 <= 256 << 20
    assert found.f_bavail <= found.f_bfree <= found.f_blocks
    (mount.path / "f").write_bytes(bytes(1 << 20))
    os.sync()
    assert found.f_bfree - os.statvfs(mount.path).f_bfree >= 256
    assert os.statvfs(mount.path).f_files > os.statvfs(mount.path).f_ffree


def test_read_only(new_mount: NewMount) -> None:
    mount = new_mount()
    (mount.path / "f").write_text("kept")
    mount.unmount()
    before = mount.image.read_bytes()
    mount.mount("ro")
    assert (mount.path / "f").read_text() == "kept"
    with fails(errno.EROFS):
        (mount.path / "f").write_text("changed")
    with fails(errno.EROFS):
        (mount.path / "d").mkdir()
    mount.unmount()
    assert mount.image.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        "noatime",
        "strictatime",
        "nowriteback_cache",
        "sync",
        "lba_size=4096",
        "interrupt,fua=off",
        "attr_timeout=0,entry_timeout=0",
        "discard,cache_mb=2",
    ],
)
def test_options_serve(new_mount: NewMount, options: str) -> None:
    mount = new_mount(options=options)
    for number in range(20):
        (mount.path / f"{number}").write_bytes(b"%d" % number * 10_000)
    for number in range(0, 20, 2):
        (mount.path / f"{number}").unlink()
    for number in range(1, 20, 2):
        assert (mount.path / f"{number}").read_bytes() == b"%d" % number * 10_000
    before = (mount.path / "1").stat()
    time.sleep(0.02)
    with open(mount.path / "1", "r+b") as file:
        file.write(b"new")
    assert (mount.path / "1").stat().st_mtime_ns > before.st_mtime_ns


def test_noatime(new_mount: NewMount) -> None:
    mount = new_mount(options="noatime")
    (mount.path / "f").write_text("x")
    os.utime(mount.path / "f", ns=(1, 2))
    mount.remount()
    (mount.path / "f").read_text()
    assert (mount.path / "f").stat().st_atime_ns == 1


def test_other_users(new_mount: NewMount) -> None:
    mount = new_mount(options="noallow_other")
    with fails(errno.EACCES):
        as_user(mount.path, lambda: os.listdir("."))


# --- what can be wrong: one line, and the right exit status ------------------------------------------


def refused(
    spec: object, mountpoint: object, *arguments: str, code: int = 32, **options: object
) -> str:
    """The line with which the command fails."""
    done = run(
        *python_module("nvmefs.cli", spec, mountpoint, *arguments),
        check=False,
        env={"PYTHONPATH": str(ROOT)},
        **options,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("nvmefs: ")
    if code == 32:
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return line


@pytest.fixture
def image(tmp_path: Path) -> Path:
    mkfs(tmp_path / "disk.img", "64M")
    (tmp_path / "mnt").mkdir()
    return tmp_path / "disk.img"


def damage(image: Path, block: int, at: int, value: bytes) -> None:
    with open(image, "r+b") as file:
        file.seek(block * BLOCK_BYTES + at)
        file.write(value)


@pytest.mark.parametrize("flag", [(), ("-f",)])
def test_no_such_image(tmp_path: Path, flag: tuple[str, ...]) -> None:
    line = refused(tmp_path / "no.img", tmp_path, *flag)
    assert f"{tmp_path}/no.img: no such image" in line


def test_not_a_filesystem(tmp_path: Path) -> None:
    (tmp_path / "zeroes").write_bytes(bytes(32 << 20))
    assert "holds no nvmefs" in refused(tmp_path / "zeroes", tmp_path)
    (tmp_path / "short").write_bytes(bytes(5000))
    assert "too few for a filesystem" in refused(tmp_path / "short", tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", tmp_path)
    assert "directory" in refused(tmp_path, tmp_path)


def test_truncated_image(image: Path) -> None:
    os.truncate(image, 32 << 20)
    assert "truncated" in refused(image, image.parent / "mnt")


def superblock(image: Path) -> bytes:
    return image.read_bytes()[SUPERBLOCK * BLOCK_BYTES : (SUPERBLOCK + 1) * BLOCK_BYTES]


def rewrite_superblocks(image: Path, **changes: int) -> None:
    """All copies, with correct checksums."""
    found = replace(Superblock.decode(superblock(image), SUPERBLOCK), **changes)  # type: ignore[arg-type]
    last = image.stat().st_size // BLOCK_BYTES - 1
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, last):
        damage(image, place, 0, bytes(found.encode(place)))


def test_wrong_version(image: Path) -> None:
    last = image.stat().st_size // BLOCK_BYTES - 1
    block = bytearray(superblock(image))
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, last):
        block[10] = 99  # the version in the header; it is checked before anything that may differ
        reseal(block, 0)
        damage(image, place, 0, bytes(block))
    assert "format version 99" in refused(image, image.parent / "mnt")


def test_unknown_incompat_feature(image: Path) -> None:
    rewrite_superblocks(image, incompat=1 << 30)
    assert "incompat" in refused(image, image.parent / "mnt")


def test_unknown_ro_compat_feature(image: Path) -> None:
    rewrite_superblocks(image, ro_compat=1 << 30)
    assert "-o ro" in refused(image, image.parent / "mnt")


def test_all_superblocks_bad(image: Path) -> None:
    last = image.stat().st_size // BLOCK_BYTES - 1
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, last):
        damage(image, place, 200, b"\xff" * 8)
    line = refused(image, image.parent / "mnt")
    assert "no superblock is valid" in line
    assert "fsck.nvmefs" in line


def test_first_superblock_bad(new_mount: NewMount) -> None:
    mount = new_mount(mount=False)
    damage(mount.image, SUPERBLOCK, 200, b"\xff" * 8)
    mount.checked = False
    mount.mount()
    assert "using the superblock copy" in mount.logged()
    assert os.listdir(mount.path) == []


def test_damage_in_the_tree(new_mount: NewMount) -> None:
    """The operation that meets it fails; the log says where; everything else goes on."""
    mount = new_mount()
    for number in range(3000):
        (mount.path / f"{number}").write_bytes(b"x" * 200)
    mount.unmount()
    image = mount.image.read_bytes()
    nodes = [
        block
        for block in range(SUPERBLOCK, len(image) // BLOCK_BYTES)
        if image[block * BLOCK_BYTES + 4 : block * BLOCK_BYTES + 8]
        == image[SUPERBLOCK * BLOCK_BYTES + 4 : SUPERBLOCK * BLOCK_BYTES + 8]
    ]
    damage(mount.image, nodes[len(nodes) // 2], 2000, b"damaged")
    mount.checked = False
    mount.mount()
    failures = []
    for number in range(3000):
        try:
            (mount.path / f"{number}").read_bytes()
        except OSError as error:
            failures.append(error.errno)
    assert set(failures) <= {errno.EUCLEAN}
    assert len(failures) < 2000
    if failures:
        assert re.search(r"block \d+: .*run fsck.nvmefs", mount.logged())
    (mount.path / "new").write_text("still writable")


def test_image_in_use(new_mount: NewMount, tmp_path: Path) -> None:
    mount = new_mount()
    (tmp_path / "other").mkdir()
    line = refused(mount.image, tmp_path / "other")
    assert str(mount.pid) in line


def test_mountpoint_missing_or_no_directory(image: Path) -> None:
    assert "does not exist" in refused(image, image.parent / "nowhere")
    (image.parent / "file").write_text("")
    assert "not a directory" in refused(image, image.parent / "file")


def test_mountpoint_not_empty_is_allowed(new_mount: NewMount) -> None:
    mount = new_mount(mount=False)
    (mount.path / "below").write_text("")
    mount.mount()
    assert os.listdir(mount.path) == []
    mount.unmount()
    assert os.listdir(mount.path) == ["below"]


@pytest.mark.parametrize("cached", [False, True])
def test_stale_mount_is_cleared(new_mount: NewMount, cached: bool) -> None:
    """Also where the kernel still answers stat(2) from what it remembers."""
    mount = new_mount()
    if cached:
        os.stat(mount.path)
    os.kill(mount.pid, signal.SIGKILL)
    assert ended(mount.pid)
    with fails(errno.ENOTCONN):
        os.listdir(mount.path)
    done = run(*mount.command())
    assert "had lost its daemon and was detached" in done.stderr
    mount.pid = int(re.findall(r"nvmefs\[(\d+)\] INFO nvmefs: .*: mounted at", mount.logged())[-1])
    assert os.listdir(mount.path) == []
    assert mounts_below(mount.path) == [str(mount.path)]


@as_root
def test_no_permission_for_dev_fuse(image: Path, tmp_path: Path) -> None:
    mode = os.stat("/dev/fuse").st_mode & 0o777
    try:
        os.chmod("/dev/fuse", 0o600)
        # Only root may read this tree, perhaps: the check alone runs as an ordinary user.
        message = as_user(tmp_path, _why_not)
    finally:
        os.chmod("/dev/fuse", mode)
    assert message == "/dev/fuse: Permission denied; become root, or chmod 666 /dev/fuse"


def _why_not() -> str:
    with pytest.raises(Refused) as caught:
        check("/")
    assert caught.value.exit_code == 32
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "nonsense"), "unknown mount option 'nonsense'"),
        (("-o", "commit=never"), "'commit': 'never' is not a number"),
        (("-t", "ext4"), "type 'ext4'"),
        (("--what",), "unrecognized arguments"),
    ],
)
def test_wrong_usage(image: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(image, image.parent / "mnt", *arguments, code=1)


def test_version_and_help() -> None:
    assert run(*python_module("nvmefs.cli", "-V")).stdout.startswith("nvmefs ")
    assert "noatime" in run(*python_module("nvmefs.cli", "--help")).stdout


def test_mount_helper_syntax(new_mount: NewMount) -> None:
    """What mount(8) passes to its helpers."""
    mount = new_mount(mount=False)
    run(*mount.command("-s", "-n", "-v", "-t", "fuse.nvmefs", options="rw,dev,suid,nofail,_netdev"))
    mount.pid = int(re.findall(r"nvmefs\[(\d+)\] INFO nvmefs: .*: mounted at", mount.logged())[-1])
    assert mount.mounted


# --- the drive fails -----------------------------------------------------------------------------------


@pytest.fixture
def small_host(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB for an image to live on."""
    host = tmp_path / "host"
    host.mkdir()
    done = run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", host, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs: {done.stderr.strip()}")
    yield host
    run("umount", "-l", host)


@as_root
def test_no_space_on_the_host(small_host: Path) -> None:
    """The drive says so; the filesystem turns read-only, says why, and stays readable."""
    mount = Mount(small_host / "disk.img", small_host / "mnt", small_host.parent / "log")
    mount.path.mkdir()
    mkfs(mount.image, "512M")
    mount.mount()
    try:
        (mount.path / "before").write_bytes(b"kept" * 10_000)
        os.sync()
        with fails(errno.EIO, errno.EROFS):
            for number in range(100):
                with open(mount.path / f"{number}", "wb") as file:
                    file.write(b"x" * (1 << 20))
                    os.fsync(file.fileno())
        wait_until(lambda: "turned read-only" in mount.logged())
        assert "Capacity Exceeded" in mount.logged()
        with fails(errno.EROFS, errno.EIO):
            (mount.path / "new").mkdir()
        with fails(errno.EROFS, errno.EIO):
            os.open(mount.path / "before", os.O_WRONLY)
        descriptor = os.open(mount.path / "before", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.read(descriptor, 50_000) == b"kept" * 10_000
        os.close(descriptor)
        assert "before" in os.listdir(mount.path)
        mount.unmount()
        assert "Traceback" not in mount.logged()
    finally:
        mount.checked = False  # fsck would need room for the replay
        mount.tidy()


def test_many_mounts_at_once(new_mount: NewMount) -> None:
    mounts = [new_mount(size="64M", mount=False) for _ in range(3)]
    threads = [threading.Thread(target=mount.mount) for mount in mounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    for number, mount in enumerate(mounts):
        (mount.path / "f").write_text(str(number))
    assert [(mount.path / "f").read_text() for mount in mounts] == ["0", "1", "2"]
