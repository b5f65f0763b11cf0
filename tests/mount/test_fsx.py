"""One file, many ways to it at once: what any of them writes, all others read.

Random reads, writes (through the page cache, mmap, O_DIRECT; aligned or not), truncations both ways, fallocate,
copies, syncs and cache drops, in lockstep with a bytearray. The seed is in the test's name, so a failure
replays.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import Mount
from tests.mount.test_regions import KEEP_SIZE, PUNCH, ZERO, fallocate
from tests.support.uring import URING

pytestmark = pytest.mark.mount

PAGE = 4096
LIMIT = 600_000
FRONTENDS = ("c", URING, "python")


class Fsx:
    """A file and what it must hold."""

    def __init__(self, path: Path, seed: int, *, regions: bool = False) -> None:
        self.regions = regions  # whether the front end knows fallocate and its kin
        self.random = random.Random(seed)
        self.expected = bytearray()
        self.path = path
        self.cached = os.open(path, os.O_RDWR | os.O_CREAT)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.done: list[str] = []

    def close(self) -> None:
        os.close(self.cached)
        os.close(self.direct)

    def span(self, limit: int, step: int = 1) -> tuple[int, int]:
        """A random (offset, length) below `limit`, both multiples of `step`."""
        offset = self.random.randrange(0, max(limit, step), step)
        longest = self.random.choice((1, 3, 40)) * PAGE
        return offset, max(step, self.random.randrange(1, longest) // step * step)

    def put(self, offset: int, data: bytes) -> None:
        if offset > len(self.expected):
            self.expected.extend(bytes(offset - len(self.expected)))
        self.expected[offset : offset + len(data)] = data

    def write_cached(self) -> None:
        offset, length = self.span(LIMIT)
        data = self.random.randbytes(length)
        self.done.append(f"write {offset}+{length}")
        assert os.pwrite(self.cached, data, offset) == length
        self.put(offset, data)

    def write_direct(self) -> None:
        offset, length = self.span(LIMIT, PAGE)
        self.done.append(f"direct write {offset}+{length}")
        with mmap.mmap(-1, length) as memory:
            memory[:] = data = self.random.randbytes(length)
            assert os.pwrite(self.direct, memory, offset) == length
        self.put(offset, data)

    def overwrite_direct(self) -> None:
        """Inside of the file, where the block map need not change."""
        pages = len(self.expected) // PAGE
        if not pages:
            return
        offset = self.random.randrange(pages) * PAGE
        length = min(self.random.randrange(1, 20), pages - offset // PAGE) * PAGE
        self.done.append(f"direct overwrite {offset}+{length}")
        with mmap.mmap(-1, length) as memory:
            memory[:] = data = self.random.randbytes(length)
            assert os.pwrite(self.direct, memory, offset) == length
        self.put(offset, data)

    def write_mapped(self) -> None:
        if not self.expected:
            return
        offset, length = self.span(len(self.expected))
        data = self.random.randbytes(min(length, len(self.expected) - offset))
        self.done.append(f"mapped write {offset}+{len(data)}")
        with mmap.mmap(self.cached, len(self.expected)) as memory:
            memory[offset : offset + len(data)] = data
        self.put(offset, data)

    def truncate(self) -> None:
        size = self.random.randrange(LIMIT)
        self.done.append(f"truncate {size}")
        os.ftruncate(self.cached, size)
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    def fallocate(self) -> None:
        """Allocate, punch or zero, through either descriptor."""
        offset, length = self.span(LIMIT, self.random.choice((1, PAGE)))
        mode = self.random.choice((0, KEEP_SIZE, PUNCH, PUNCH, ZERO, ZERO | KEEP_SIZE))
        self.done.append(f"fallocate {mode} {offset}+{length}")
        fallocate(self.random.choice((self.cached, self.direct)), mode, offset, length)
        end = offset + length
        if not mode & KEEP_SIZE and end > len(self.expected):
            self.expected.extend(bytes(end - len(self.expected)))
        if mode & ~KEEP_SIZE:
            kept = min(end, len(self.expected))
            self.expected[offset:kept] = bytes(max(kept - offset, 0))

    def copy(self) -> None:
        """Within the file, where the two do not overlap."""
        source, length = self.span(len(self.expected))
        target = self.random.randrange(LIMIT)
        length = min(length, len(self.expected) - source)
        if length <= 0 or abs(source - target) < length:
            return
        self.done.append(f"copy {source}+{length} to {target}")
        done = 0
        while done < length:
            count = os.copy_file_range(
                self.cached, self.cached, length - done, source + done, target + done
            )
            assert count
            done += count
        self.put(target, bytes(self.expected[source : source + length]))

    def seek(self) -> None:
        """What is called a hole holds nothing."""
        if not self.expected:
            return
        offset = self.random.randrange(len(self.expected))
        try:
            data = os.lseek(self.cached, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            data = len(self.expected)
        self.done.append(f"data from {offset} on at {data}")
        self.compare(bytes(data - offset), offset, data - offset)
        if data < len(self.expected):
            assert data < os.lseek(self.cached, data, os.SEEK_HOLE) <= len(self.expected)

    def read_cached(self) -> None:
        offset, length = self.span(LIMIT)
        self.done.append(f"read {offset}+{length}")
        self.compare(os.pread(self.cached, length, offset), offset, length)

    def read_direct(self) -> None:
        offset, length = self.span(LIMIT, PAGE)
        self.done.append(f"direct read {offset}+{length}")
        with mmap.mmap(-1, length) as memory:
            count = os.preadv(self.direct, [memory], offset)
            self.compare(memory[:count], offset, length)

    def compare(self, found: bytes, offset: int, length: int) -> None:
        wanted = bytes(self.expected[offset : offset + length])
        if found == wanted:
            return
        at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), -1)
        raise AssertionError(
            f"{len(found)} bytes for {len(wanted)}, differing from {offset + at} on, after: "
            + "; ".join(self.done[-12:])
        )

    def sync(self) -> None:
        self.done.append("fsync")
        self.random.choice((os.fsync, os.fdatasync))(self.cached)

    def drop(self) -> None:
        self.done.append("drop pages")
        os.fsync(self.cached)
        os.posix_fadvise(self.cached, 0, 0, os.POSIX_FADV_DONTNEED)

    def run(self, steps: int) -> None:
        actions: list[tuple[Callable[[], None], int]] = [
            (self.write_cached, 4), (self.write_direct, 4), (self.overwrite_direct, 8),
            (self.write_mapped, 3), (self.truncate, 1), (self.read_cached, 5),
            (self.read_direct, 10), (self.sync, 1), (self.drop, 2),
        ]  # fmt: skip
        if self.regions:
            actions += [(self.fallocate, 6), (self.copy, 3), (self.seek, 2)]
        methods, weights = zip(*actions, strict=True)
        for _ in range(steps):
            self.random.choices(methods, weights)[0]()
        assert os.stat(self.path).st_size == len(self.expected)
        self.drop()
        self.compare(self.path.read_bytes(), 0, LIMIT * 2)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.timeout(120)
def test_every_way_sees_what_the_others_write(
    new_mount: Callable[..., Mount], frontend: str
) -> None:
    mount = new_mount(size="256M", options=f"frontend={frontend}")
    for seed in range(3):
        fsx = Fsx(mount.path / f"file{seed}", seed, regions=frontend != "python")
        try:
            fsx.run(500)
        finally:
            fsx.close()
        mount.remount()
        assert (mount.path / f"file{seed}").read_bytes() == fsx.expected


@pytest.mark.timeout(120)
def test_files_side_by_side(new_mount: Callable[..., Mount]) -> None:
    """Several files at once, so that requests of one are under way while the map of another changes."""
    mount = new_mount(size="256M", options="frontend=c")

    def work(seed: int) -> None:
        fsx = Fsx(mount.path / f"file{seed}", seed, regions=True)
        try:
            fsx.run(400)
        finally:
            fsx.close()

    with ThreadPoolExecutor(6) as pool:
        for _ in pool.map(work, range(10, 16)):
            pass
    mount.unmount()
    served = re.search(r"front end: .*'reads': (\d+), 'writes': (\d+)", mount.logged())
    assert served
    assert int(served[1]) > 100
    assert int(served[2]) > 100


@pytest.mark.timeout(120)
def test_readers_while_the_map_changes(new_mount: Callable[..., Mount]) -> None:
    """A block always reads as one of the versions written to it, or as zeroes after it was cut off."""
    mount = new_mount(size="256M", options="frontend=c")
    path = mount.path / "file"
    blocks = 64
    path.write_bytes(b"".join(bytes((index,)) * PAGE for index in range(blocks)))
    os.sync()
    stop = threading.Event()
    faults: list[str] = []

    def read() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        source = random.Random(1)
        with mmap.mmap(-1, PAGE) as memory:
            while not stop.is_set():
                block = source.randrange(blocks)
                count = os.preadv(descriptor, [memory], block * PAGE)
                if count and set(memory[:count]) not in ({block}, {0}, {block + 100}):
                    faults.append(f"block {block}: {sorted(set(memory[:count]))[:8]}")
        os.close(descriptor)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    descriptor = os.open(path, os.O_RDWR)
    for turn in range(150):
        keep = turn % blocks
        os.ftruncate(descriptor, keep * PAGE)
        for block in range(keep, blocks):
            os.pwrite(descriptor, bytes((block + 100 * (turn % 2),)) * PAGE, block * PAGE)
        os.fsync(descriptor)
        (mount.path / f"other{turn}").write_bytes(os.urandom(PAGE * 64))  # takes what was freed
        if turn % 2:
            (mount.path / f"other{turn}").unlink()
    os.close(descriptor)
    stop.set()
    for reader in readers:
        reader.join()
    assert not faults, faults[:5]
