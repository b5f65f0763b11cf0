"""The bytes and attributes of files on a mount."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import NOBODY, Mount, as_user, wait_until
from tests.mount.test_names import fails

pytestmark = pytest.mark.mount

NS = 10**9


def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    return os.open(path, flags, 0o644)


def drop_pages(descriptor: int) -> None:
    """What is read next comes from the daemon, not from the kernel's cache."""
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("size", [0, 1, 100, 2000, 4095, 4096, 4097, 100_000, 3 << 20])
def test_bytes_come_back(place: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (place / "f").write_bytes(data)
    descriptor = opened(place / "f")
    drop_pages(descriptor)
    assert (place / "f").read_bytes() == data
    assert os.fstat(descriptor).st_size == size
    os.close(descriptor)


def test_writes_at_random_places(place: Path) -> None:
    """Against a bytearray, through inline data, growth, overwrite and truncation."""
    rng = random.Random(1)
    model = bytearray()
    descriptor = opened(place / "f")
    for step in range(300):
        if rng.random() < 0.15:
            size = rng.randrange(0, 200_000 if step > 60 else 3000)
            os.ftruncate(descriptor, size)
            model = model[:size].ljust(size, b"\0")
        else:
            at = rng.randrange(0, 200_000 if step > 60 else 3000)
            data = rng.randbytes(rng.choice((1, 10, 1000, 4096, 20_000)))
            os.pwrite(descriptor, data, at)
            model = model.ljust(at, b"\0")
            model[at : at + len(data)] = data
        if rng.random() < 0.2:
            drop_pages(descriptor)
        if rng.random() < 0.3:
            assert os.pread(descriptor, len(model) + 1, 0) == model
    drop_pages(descriptor)
    assert os.pread(descriptor, len(model) + 1, 0) == model
    os.close(descriptor)


def test_append(place: Path) -> None:
    first = opened(place / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = opened(place / "f", os.O_WRONLY | os.O_APPEND)
    for number in range(50):
        os.write(first if number % 2 else second, b"%02d" % number)
    assert (place / "f").read_bytes() == b"".join(b"%02d" % n for n in range(50))
    os.close(first)
    os.close(second)


def test_truncate_both_ways(place: Path) -> None:
    (place / "f").write_bytes(b"x" * 10_000)
    os.truncate(place / "f", 5000)
    os.truncate(place / "f", 20_000)
    assert (place / "f").read_bytes() == b"x" * 5000 + bytes(15_000)
    os.truncate(place / "f", 0)
    assert (place / "f").stat().st_blocks == 0
    with fails(errno.EISDIR, errno.EINVAL):
        os.truncate(place, 0)
    with fails(errno.EINVAL):
        os.truncate(place / "f", -1)


def test_o_trunc(place: Path) -> None:
    (place / "f").write_bytes(b"x" * 10_000)
    before = (place / "f").stat().st_mtime_ns
    time.sleep(0.02)
    os.close(opened(place / "f", os.O_WRONLY | os.O_TRUNC))
    found = (place / "f").stat()
    assert (found.st_size, found.st_blocks) == (0, 0)
    assert found.st_mtime_ns > before


def test_sparse_file(shared: Mount, place: Path) -> None:
    free = os.statvfs(shared.path).f_bfree
    descriptor = opened(place / "f")
    os.pwrite(descriptor, b"end", 1 << 40)
    os.pwrite(descriptor, b"middle", 1 << 30)
    drop_pages(descriptor)
    assert os.fstat(descriptor).st_size == (1 << 40) + 3
    wait_until(lambda: os.fstat(descriptor).st_blocks == 16, seconds=5)  # told once a second
    assert os.pread(descriptor, 8, (1 << 30) - 2) == b"\0\0middle"
    assert os.pread(descriptor, 4096, 1 << 35) == bytes(4096)
    assert free - os.statvfs(shared.path).f_bfree < 64
    os.close(descriptor)


def test_largest_size(place: Path) -> None:
    descriptor = opened(place / "f")
    os.ftruncate(descriptor, 2**63 - 1)
    assert os.fstat(descriptor).st_size == 2**63 - 1
    with fails(errno.EFBIG, errno.EINVAL):
        os.pwrite(descriptor, b"xx", 2**63 - 2)
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_blocks_of_small_files_and_directories(place: Path) -> None:
    (place / "empty").write_bytes(b"")
    (place / "inline").write_bytes(b"x")
    descriptor = opened(place / "inline")
    os.fsync(descriptor)
    os.close(descriptor)
    assert (place / "empty").stat().st_blocks == 0
    assert (place / "inline").stat().st_blocks == 8
    assert (place.stat().st_size, place.stat().st_blocks) == (4096, 8)
    assert place.stat().st_blksize == 4096


def test_shared_mmap(place: Path) -> None:
    descriptor = opened(place / "f")
    os.ftruncate(descriptor, 1 << 20)
    with mmap.mmap(descriptor, 1 << 20) as memory:
        memory[5000:5005] = b"hello"
        memory[-3:] = b"end"
        assert os.pread(descriptor, 5, 5000) == b"hello"
        os.pwrite(descriptor, b"written", 9000)
        assert memory[9000:9007] == b"written"
        memory.flush()
    drop_pages(descriptor)
    data = (place / "f").read_bytes()
    assert (data[5000:5005], data[9000:9007], data[-3:]) == (b"hello", b"written", b"end")
    os.close(descriptor)


def test_o_direct(place: Path) -> None:
    with mmap.mmap(-1, 1 << 20) as memory:
        memory.write(random.Random(2).randbytes(1 << 20))
        descriptor = opened(place / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        assert os.writev(descriptor, [memory]) == 1 << 20
        with mmap.mmap(-1, 1 << 20) as again:
            assert os.preadv(descriptor, [again], 0) == 1 << 20
            assert again[:] == memory[:]
        os.close(descriptor)
        assert (
            hashlib.sha256((place / "f").read_bytes()).digest() == hashlib.sha256(memory).digest()
        )


def test_o_direct_unaligned_and_mixed_with_buffered(place: Path) -> None:
    """Linux filesystems may refuse this; FUSE does not, so it has to be right."""
    (place / "f").write_bytes(b"a" * 10_000)
    direct = opened(place / "f", os.O_RDWR | os.O_DIRECT)
    os.pwrite(direct, b"b" * 100, 50)
    os.pwrite(direct, b"c" * 5000, 9000)
    assert (place / "f").read_bytes() == b"a" * 50 + b"b" * 100 + b"a" * 8850 + b"c" * 5000
    buffered = opened(place / "f")
    os.pwrite(buffered, b"d" * 4096, 0)
    assert os.pread(direct, 4096, 0) == b"d" * 4096
    os.close(direct)
    os.close(buffered)


def test_a_thousand_files_open_at_once(place: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        descriptors = [opened(place / f"{number}") for number in range(1000)]
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, b"%d" % number)
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == b"%d" % number
            os.close(descriptor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_threads(place: Path) -> None:
    def work(number: int) -> None:
        rng = random.Random(number)
        for step in range(20):
            data = rng.randbytes(rng.randrange(20_000))
            path = place / f"{number}-{step}"
            path.write_bytes(data)
            assert path.read_bytes() == data
            if step % 3 == 0:
                path.unlink()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result(timeout=40)


def _locked_by_other(
    path: Path, how: Callable[[int, int], None], answer: multiprocessing.Queue[bool]
) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        how(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        answer.put(False)
    except BlockingIOError:
        answer.put(True)


@pytest.mark.parametrize("how", [fcntl.flock, fcntl.lockf])
def test_locks(place: Path, how: Callable[[int, int], None]) -> None:
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.Queue[bool] = context.Queue()
    descriptor = opened(place / "f")
    for locked in (True, False):
        how(descriptor, fcntl.LOCK_EX if locked else fcntl.LOCK_UN)
        other = context.Process(target=_locked_by_other, args=(place / "f", how, answer))
        other.start()
        assert answer.get(timeout=20) is locked
        other.join(20)
    os.close(descriptor)


# --- times and modes -----------------------------------------------------------------------------------

TIMES = [0, 1, 1_234_567_890_123_456_789, -1, -NS, -5 * NS + 7, -(2**31 + 5) * NS - 1]
FAR = [2**31 * NS + 3, 2**32 * NS + 4, 16_299_072_000 * NS + 999_999_999]  # the last in 2486


@pytest.mark.parametrize("ns", TIMES + FAR)
def test_times_are_kept_exactly(place: Path, ns: int) -> None:
    (place / "f").write_text("x")
    (place / "d").mkdir()
    (place / "l").symlink_to("f")
    for name in ("f", "d", "l"):
        os.utime(place / name, ns=(ns, ns + 1), follow_symlinks=False)
        found = (place / name).lstat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (ns, ns + 1)


def test_utime_now_and_omit(place: Path) -> None:
    (place / "f").write_text("x")
    os.utime(place / "f", ns=(5, 6))
    before = time.time_ns()
    os.utime(place / "f")
    found = (place / "f").stat()
    slack = 20_000_000  # the kernel's coarse clock
    assert before - slack <= found.st_mtime_ns <= time.time_ns()
    assert before - slack <= found.st_atime_ns <= time.time_ns()


def times(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_mtime_ns, found.st_ctime_ns


def test_what_changes_mtime_and_ctime(place: Path) -> None:
    """stat(2) and inode(7): content changes both, attributes ctime, names the directory's both."""
    (place / "f").write_text("x")

    def changes(action: Callable[[], object], path: Path) -> tuple[bool, bool]:
        before = times(path)
        time.sleep(0.02)
        action()
        after = times(path)
        return after[0] > before[0], after[1] > before[1]

    file = place / "f"
    assert changes(lambda: file.write_text("y"), file) == (True, True)
    assert changes(lambda: os.truncate(file, 0), file) == (True, True)
    assert changes(lambda: file.chmod(0o600), file) == (False, True)
    assert changes(lambda: os.chown(file, 1, 1), file) == (False, True)
    assert changes(lambda: os.setxattr(file, "user.x", b"1"), file) == (False, True)
    assert changes(lambda: os.link(file, place / "g"), file) == (False, True)
    assert changes(lambda: os.unlink(place / "g"), file) == (False, True)
    assert changes(file.read_text, file) == (False, False)
    assert changes(file.stat, file) == (False, False)
    assert changes(lambda: (place / "n").write_text(""), place) == (True, True)
    assert changes((place / "n").unlink, place) == (True, True)
    assert changes((place / "d").mkdir, place) == (True, True)
    assert changes(lambda: place.chmod(0o755), place) == (False, True)
    assert changes(lambda: os.listdir(place), place) == (False, False)


def test_atime_is_relative(place: Path) -> None:
    (place / "f").write_text("x")
    descriptor = opened(place / "f")
    os.utime(place / "f", ns=(NS, 2 * NS))
    drop_pages(descriptor)
    os.read(descriptor, 10)
    first = (place / "f").stat().st_atime_ns
    assert time.time_ns() - first < 60 * NS
    time.sleep(0.02)
    drop_pages(descriptor)
    os.pread(descriptor, 10, 0)
    assert (place / "f").stat().st_atime_ns == first
    os.close(descriptor)


def test_chmod_and_chown(place: Path) -> None:
    (place / "f").write_text("x")
    for mode in (0, 0o7777, 0o644):
        (place / "f").chmod(mode)
        assert stat.S_IMODE((place / "f").stat().st_mode) == mode
    os.chown(place / "f", 2**32 - 3, 7)
    found = (place / "f").stat()
    assert (found.st_uid, found.st_gid) == (2**32 - 3, 7)
    os.chown(place / "f", -1, 8)
    found = (place / "f").stat()
    assert (found.st_uid, found.st_gid) == (2**32 - 3, 8)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_one() -> None:
    descriptor = os.open("f", os.O_WRONLY)
    os.write(descriptor, b"x")
    os.close(descriptor)


@pytest.mark.parametrize(
    ("before", "after"), [(0o6777, 0o777), (0o4766, 0o766), (0o2776, 0o776), (0o2766, 0o766)]
)
@pytest.mark.parametrize("how", ["write", "truncate", "O_TRUNC"])
def test_who_writes_takes_set_user_id_away(place: Path, before: int, after: int, how: str) -> None:
    (place / "f").write_text("program")
    (place / "f").chmod(before)
    actions: dict[str, Callable[[], object]] = {
        "write": write_one,
        "truncate": lambda: os.truncate("f", 3),
        "O_TRUNC": lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)),
    }
    as_user(place, actions[how])
    assert mode_of(place / "f") == after


def test_root_writes_and_set_user_id_stays(place: Path) -> None:
    (place / "f").write_text("program")
    (place / "f").chmod(0o6777)
    with open(place / "f", "ab") as file:
        file.write(b"more")
    assert mode_of(place / "f") == 0o6777


def test_a_handle_opened_before_chmod_takes_set_user_id_away_too(place: Path) -> None:
    (place / "f").write_text("program")
    (place / "f").chmod(0o777)
    to_child, from_parent = os.pipe()

    def write_when_told() -> None:
        descriptor = os.open("f", os.O_WRONLY)
        os.read(to_child, 1)
        os.write(descriptor, b"x")
        os.fsync(descriptor)

    done = threading.Thread(target=as_user, args=(place, write_when_told))
    done.start()
    time.sleep(0.3)  # let it open; if it has not, the test is the plain one
    (place / "f").chmod(0o4777)
    os.write(from_parent, b".")
    done.join(20)
    assert mode_of(place / "f") == 0o777
    os.close(to_child)
    os.close(from_parent)


def test_mode_given_after_writing_stays(place: Path) -> None:
    """install(1) and tar(1) as a user: write, fchmod with set-user-ID, close."""

    def install() -> None:
        descriptor = os.open("f", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"x" * 5000)
        os.fchmod(descriptor, 0o4755)
        os.close(descriptor)

    as_user(place, install)
    assert mode_of(place / "f") == 0o4755
    descriptor = os.open(place / "f", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    assert mode_of(place / "f") == 0o4755


def test_chown_takes_set_user_id_away(place: Path) -> None:
    (place / "f").write_text("program")
    (place / "f").chmod(0o6777)
    os.chown(place / "f", NOBODY, NOBODY)
    assert mode_of(place / "f") == 0o777
    (place / "d").mkdir()
    (place / "d").chmod(0o2777)
    os.chown(place / "d", NOBODY, NOBODY)
    assert mode_of(place / "d") == 0o2777
