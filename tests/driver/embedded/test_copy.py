"""Copy, and what bounds one command beyond MDTS (NVM command set 1.0, sections 3.2.2 and 4.1.5.2)."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.driver.embedded.harness import (
    COPY,
    DSM,
    FUA,
    IOVA,
    PAGE,
    VERIFY,
    WRITE_ZEROES,
    Host,
    Queue,
    command,
    rw,
)

INVALID_FIELD, WRITE_PROTECTED, LBA_RANGE, SIZE_LIMIT = 0x002, 0x020, 0x080, 0x183
BLOCKS = (16 << 20) // 512


def copy(
    host: Host, ranges: Sequence[tuple[int, int]], destination: int, *, bits: int = 0
) -> bytes:
    raw = b"".join(struct.pack("<8xQH14x", lba, blocks - 1) for lba, blocks in ranges)
    at = host.memory.take(len(raw))
    host.memory.map[at : at + len(raw)] = raw
    second = IOVA + at + PAGE if len(raw) > PAGE else 0
    cdw = (destination, 0, len(ranges) - 1 | bits)
    return command(COPY, nsid=1, prp1=IOVA + at, prp2=second, cdw=cdw)


@pytest.fixture
def queue(host: Host) -> Queue:
    return host.create_queue(1)


@pytest.mark.parametrize("lba_size", [512, 4096])
@pytest.mark.parametrize("count", [1, 2, 128])
def test_copies(make_host: Callable[..., Host], image: Path, lba_size: int, count: int) -> None:
    data = random.Random(count).randbytes(4 << 20)
    image.write_bytes(data.ljust(16 << 20, b"\0"))
    host = make_host(lba_size=lba_size)
    queue = host.start()
    ranges = [(3 * i, 1 + i % 3) for i in range(count)]
    wanted = b"".join(data[a * lba_size : (a + n) * lba_size] for a, n in ranges)
    to = (8 << 20) // lba_size
    assert queue.run(copy(host, ranges, to, bits=FUA if count == 2 else 0)).status == 0
    found = image.read_bytes()
    assert found[: len(data)] == data
    assert found[8 << 20 : (8 << 20) + len(wanted)] == wanted
    assert not any(found[(8 << 20) + len(wanted) :])


def test_limits_of_copy_are_kept(make_host: Callable[..., Host], image: Path) -> None:
    limits = {"copy_range_blocks": 4, "copy_blocks": 6, "copy_ranges": 3}
    host = make_host(limits=limits)
    queue = host.start()
    identify = host.identify(0, 1)[1]
    assert struct.unpack_from("<HIB", identify, 74) == (4, 6, 2)
    before = image.read_bytes()
    for ranges, expected in (
        ([(0, 5)], SIZE_LIMIT),
        ([(0, 4), (8, 3)], SIZE_LIMIT),
        ([(0, 1)] * 4, SIZE_LIMIT),
        ([(BLOCKS - 1, 2)], LBA_RANGE),
        ([(0, 1), (BLOCKS, 1)], LBA_RANGE),
    ):
        assert queue.run(copy(host, ranges, 100)).status == expected
    assert queue.run(copy(host, [(0, 2)], BLOCKS - 1)).status == LBA_RANGE
    assert queue.run(copy(host, [(0, 1)], 5, bits=1 << 8)).status == INVALID_FIELD
    assert queue.run(copy(host, [(0, 1)], 5, bits=1 << 26)).status == INVALID_FIELD
    assert image.read_bytes() == before
    assert queue.run(copy(host, [(0, 4), (8, 2)], 100)).status == 0


def test_a_read_only_namespace(make_host: Callable[..., Host]) -> None:
    host = make_host(read_only=True)
    queue = host.start()
    assert queue.run(copy(host, [(0, 1)], 5)).status == WRITE_PROTECTED


def test_limits_of_the_command_set(make_host: Callable[..., Host]) -> None:
    limits = {
        "verify_bytes": 8192,
        "write_zeroes_bytes": 16384,
        "ranges": 2,
        "range_blocks": 8,
        "deallocate_blocks": 12,
    }
    host = make_host(limits=limits)
    queue = host.start()
    reply, raw = host.identify(6)
    assert reply.status == 0
    assert struct.unpack_from("<BBBBIQ", raw) == (1, 2, 0, 2, 8, 12)
    assert queue.run(rw(VERIFY, 0, 16)).status == 0
    assert queue.run(rw(VERIFY, 0, 17)).status == INVALID_FIELD
    assert queue.run(rw(WRITE_ZEROES, 0, 32)).status == 0
    assert queue.run(rw(WRITE_ZEROES, 0, 33)).status == INVALID_FIELD

    def deallocate(*blocks: int) -> int:
        raw = b"".join(struct.pack("<IIQ", 0, n, 100 * i) for i, n in enumerate(blocks))
        at = host.memory.take(PAGE)
        host.memory.map[at : at + len(raw)] = raw
        return queue.run(command(DSM, nsid=1, prp1=IOVA + at, cdw=(len(blocks) - 1, 4))).status

    assert deallocate(8, 4) == 0
    assert deallocate(9) == deallocate(8, 5) == deallocate(1, 1, 1) == SIZE_LIMIT


def test_no_limits_unless_asked_for(host: Host) -> None:
    assert not any(host.identify(6)[1])
    code = command(6, prp1=IOVA + host.memory.take(PAGE), cdw=(6, 2 << 24))
    assert host.admin.run(code).status == INVALID_FIELD  # of the zoned command set: none


def test_copies_from_scattered_descriptors_of_two_pages(
    make_host: Callable[..., Host], image: Path
) -> None:
    host = make_host(limits={"copy_ranges": 256})
    queue = host.start()
    data = os.urandom(256 * 512)
    with image.open("r+b") as file:
        file.write(data)
    ranges = [(255 - i, 1) for i in range(256)]
    assert queue.run(copy(host, ranges, 1000)).status == 0
    found = image.read_bytes()[1000 * 512 : 1256 * 512]
    assert found == b"".join(data[i * 512 : (i + 1) * 512] for i in reversed(range(256)))
