"""The volatile write cache: what a power cut may take, and what it may not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver import TransportError
from driver.transports.embedded import open_embedded
from tests.driver.embedded.harness import (
    CC,
    CC_ENABLE,
    CSTS,
    DEAC,
    DSM,
    FLUSH,
    FUA,
    READ,
    SET_FEATURES,
    SHST_COMPLETE,
    WRITE,
    WRITE_ZEROES,
    Host,
    Queue,
    command,
    rw,
)

IMAGE_BYTES = 1 << 20
CUTS = 25


class Drive:
    """A host of a controller with a volatile cache, and plain ways to use it."""

    def __init__(self, path: Path, **options: int) -> None:
        self.path = path
        self.lba_size = options.get("lba_size", 512)
        self.host = Host(str(path), write_cache="volatile", **options)
        self.queue: Queue = self.host.start()
        self.page = self.host.memory.take(64 << 10)
        self.list = self.host.memory.take(4096)
        for i in range(16):
            where = self.host.iova(self.page + 4096 * (1 + i))
            at = self.list + 8 * i
            self.host.memory.map[at : at + 8] = where.to_bytes(8, "little")

    def transfer(self, opcode: int, lba: int, nbytes: int, bits: int = 0) -> int:
        prp1 = self.host.iova(self.page)
        prp2 = self.host.iova(self.list if nbytes > 8192 else self.page + 4096)
        blocks = nbytes // self.lba_size
        return self.queue.run(rw(opcode, lba, blocks, prp1=prp1, prp2=prp2, bits=bits)).status

    def write(self, lba: int, data: bytes, *, fua: bool = False) -> None:
        self.host.memory.map[self.page : self.page + len(data)] = data
        assert self.transfer(WRITE, lba, len(data), FUA * fua) == 0

    def read(self, lba: int, nbytes: int, *, fua: bool = False) -> bytes:
        assert self.transfer(READ, lba, nbytes, FUA * fua) == 0
        return bytes(self.host.memory.map[self.page : self.page + nbytes])

    def flush(self) -> None:
        assert self.queue.run(command(FLUSH, nsid=1)).status == 0

    def cut(self, seed: int) -> bytes:
        """What is left in the image."""
        self.host.transport.power_cut(seed)
        assert self.host.transport.read32(CSTS) == 0xFFFFFFFF
        self.host.close()
        return self.path.read_bytes()


Make = Callable[..., Drive]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    drives: list[Drive] = []
    path = tmp_path / "disk.img"

    def drive(**options: int) -> Drive:
        path.write_bytes(bytes(IMAGE_BYTES))
        drives.append(Drive(path, **options))
        return drives[-1]

    yield drive
    for made in drives:
        made.host.close()


def test_reads_see_the_cache_and_the_image_does_not(make: Make) -> None:
    drive = make()
    drive.write(3, b"a" * 1024)
    drive.write(4, b"b" * 512)
    assert drive.read(2, 2048) == bytes(512) + b"a" * 512 + b"b" * 512 + bytes(512)
    assert drive.path.read_bytes() == bytes(IMAGE_BYTES)


@pytest.mark.parametrize("how", ["flush", "fua read", "shutdown", "cache off"])
def test_what_makes_everything_durable(make: Make, how: str) -> None:
    drive = make()
    drive.write(3, b"a" * 512)
    if how == "flush":
        drive.flush()
    elif how == "fua read":
        drive.read(3, 512, fua=True)
    elif how == "shutdown":
        drive.host.transport.write32(CC, CC_ENABLE | 1 << 14)
        drive.host.wait_csts(SHST_COMPLETE, SHST_COMPLETE)
    else:
        assert drive.host.admin.run(command(SET_FEATURES, cdw=(6, 0))).status == 0
    assert drive.cut(0)[3 * 512 : 4 * 512] == b"a" * 512


def test_write_through_when_the_cache_is_off(make: Make) -> None:
    drive = make()
    assert drive.host.admin.run(command(SET_FEATURES, cdw=(6, 0))).status == 0
    drive.write(3, b"a" * 512)
    assert drive.queue.run(rw(WRITE_ZEROES, 5, 1)).status == 0
    assert drive.cut(0)[3 * 512 : 4 * 512] == b"a" * 512


def test_fua_is_durable_and_nothing_older_comes_back(make: Make) -> None:
    for seed in range(CUTS):
        drive = make()
        drive.write(0, b"a" * 4096)
        drive.write(2, b"b" * 512, fua=True)
        drive.write(7, b"c" * 512, fua=True)
        drive.write(1, b"d" * 1024)
        left = drive.cut(seed)
        assert left[1024:1536] in (b"b" * 512, b"d" * 512)
        assert left[7 * 512 : 8 * 512] == b"c" * 512
        assert left[0:512] in (bytes(512), b"a" * 512)


@pytest.mark.parametrize(("lba_size", "tear"), [(512, 512), (4096, 4096), (4096, 512)])
def test_a_power_cut_leaves_any_subset(make: Make, lba_size: int, tear: int) -> None:
    """Every unit is old or new; writes are lost, kept, torn, and overtaken by others."""
    seen = set()
    per = lba_size // tear
    for seed in range(2 * CUTS):
        drive = make(lba_size=lba_size, tear_bytes=tear)
        span = 2 * lba_size
        drive.write(10, b"a" * span)
        drive.write(11, b"b" * span)
        drive.write(40, b"c" * lba_size)
        left = drive.cut(seed)
        units = [left[at : at + tear] for at in range(0, 50 * lba_size, tear)]
        assert all(unit == unit[:1] * tear for unit in units)  # none is a mixture
        text = "".join(chr(unit[0] or 46) for unit in units)
        a, ab, b = (text[at * per : (at + 1) * per] for at in (10, 11, 12))
        assert set(a) <= set(".a")
        assert set(ab) <= set(".ab")
        assert set(b) <= set(".b")
        c = text[40 * per : 41 * per]
        assert set(c) <= set(".c")
        assert not text[: 10 * per].strip(".")
        seen.add((a, ab, b, c))
    everything = {"a" * per, "b" * per, "c" * per}
    assert any(everything & set(state) == set() and "b" not in state[1] for state in seen)
    assert any(a == "a" * per and ab == b == "b" * per for a, ab, b, _ in seen)  # all kept
    assert any("a" not in a and "b" in ab for a, ab, _, _ in seen)  # the older one is lost
    assert any("b" not in ab + b and "a" in a for a, ab, b, _ in seen)  # the newer one is
    torn = [state for state in seen if any(len(set(part)) == 2 for part in state)]
    assert bool(torn) == (tear < lba_size)  # blocks tear only where sectors may


def test_a_power_cut_is_decided_by_its_seed(make: Make) -> None:
    def run(seed: int) -> bytes:
        drive = make()
        for lba in range(0, 200, 3):
            drive.write(lba, bytes([lba]) * 1024)
        return drive.cut(seed)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_power_cut_without_a_cache_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(IMAGE_BYTES))
    host = Host(str(path))
    queue = host.start()
    page = host.memory.take(512)
    host.memory.map[page : page + 512] = b"a" * 512
    assert queue.run(rw(WRITE, 3, 1, prp1=host.iova(page))).status == 0
    host.transport.power_cut(0)
    host.close()
    assert path.read_bytes()[3 * 512 : 4 * 512] == b"a" * 512


@pytest.mark.parametrize("seed", range(6))
def test_against_a_model(make: Make, seed: int) -> None:
    """Random commands; reads always see the newest, and a cut finds for each block what may be."""
    rng = random.Random(seed)
    drive = make(lba_size=512, tear_bytes=512)
    blocks = 64
    newest = [0] * blocks
    possible: list[set[int]] = [{0} for _ in range(blocks)]
    for number in range(1, 200):
        lba = rng.randrange(blocks)
        count = rng.randint(1, min(20, blocks - lba))
        touched = range(lba, lba + count)
        kind = rng.choice(["write"] * 6 + ["fua", "zero", "trim", "flush", "read", "read"])
        value = 1 + number % 255
        if kind in ("write", "fua"):
            drive.write(lba, bytes([value]) * 512 * count, fua=kind == "fua")
        elif kind == "zero":
            value = 0
            assert drive.queue.run(rw(WRITE_ZEROES, lba, count, bits=DEAC)).status == 0
        elif kind == "trim":
            value = 0
            entry = count.to_bytes(4, "little") + lba.to_bytes(8, "little")
            drive.host.memory.map[drive.page : drive.page + 16] = bytes(4) + entry
            prp1 = drive.host.iova(drive.page)
            assert drive.queue.run(command(DSM, nsid=1, prp1=prp1, cdw=(0, 4))).status == 0
        elif kind == "flush":
            drive.flush()
            possible = [{value} for value in newest]
            continue
        else:
            data = drive.read(lba, 512 * count)
            assert [data[at] for at in range(0, len(data), 512)] == newest[lba : lba + count]
            continue
        for i in touched:
            newest[i] = value
            possible[i] = {value} if kind == "fua" else possible[i] | {value}
    left = drive.cut(seed)
    for i in range(blocks):
        block = left[512 * i : 512 * (i + 1)]
        assert block == bytes([block[0]]) * 512
        assert block[0] in possible[i], f"block {i}"


def test_the_cache_has_a_capacity(make: Make) -> None:
    drive = make()
    for i in range(2100):
        drive.write(i % 1000, bytes([i % 251 + 1]) * 512)
    assert any(drive.path.read_bytes())  # the oldest were written back
    drive.flush()
    assert drive.read(50, 512) == bytes([2050 % 251 + 1]) * 512


def test_an_end_without_a_shutdown_loses_the_cache(make: Make) -> None:
    drive = make()
    drive.write(3, b"a" * 512)
    drive.host.close()
    assert drive.path.read_bytes() == bytes(IMAGE_BYTES)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(IMAGE_BYTES))
    for options in ({"write_cache": "magic"}, {"write_cache": "volatile", "tear_bytes": 1024}):
        with pytest.raises(TransportError):
            open_embedded(path, **options)
    with pytest.raises(TransportError):
        open_embedded("null:1M", write_cache="volatile")
