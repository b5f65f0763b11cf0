"""PRP entries and lists (section 4.3)."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.driver.embedded.harness import (
    COMPARE,
    IDENTIFY,
    IOVA,
    PAGE,
    READ,
    WRITE,
    Host,
    Memory,
    Queue,
    command,
    rw,
)

DATA_TRANSFER, PRP_OFFSET = 0x004, 0x013
NOWHERE = 0x7000_0000_0000


class Scatter:
    """Data scattered over pages in random order, and the PRPs that name it."""

    def __init__(self, host: Host, nbytes: int, offset: int, list_offset: int, seed: int) -> None:
        choose = random.Random(seed)
        count = -(-(offset + nbytes) // PAGE)
        first = host.memory.take(3 * count * PAGE)
        self.memory = host.memory.map
        self.pages = [first + PAGE * i for i in choose.sample(range(3 * count), count)]
        self.nbytes, self.offset = nbytes, offset
        self.prp1 = IOVA + self.pages[0] + offset
        self.prp2 = 0
        rest = [IOVA + page for page in self.pages[1:]]
        if len(rest) == 1:
            self.prp2 = rest[0]
        elif rest:
            self.prp2 = IOVA + self._lists(host, rest, list_offset)

    def _lists(self, host: Host, entries: list[int], offset: int) -> int:
        """Writes chained list pages; returns where the first entry is."""
        at = start = host.memory.take(PAGE) + offset
        slots = (PAGE - offset) // 8
        while len(entries) > slots:
            following = host.memory.take(PAGE)
            here = [*entries[: slots - 1], IOVA + following]
            struct.pack_into(f"<{slots}Q", self.memory, at, *here)
            entries, at, slots = entries[slots - 1 :], following, PAGE // 8
        struct.pack_into(f"<{len(entries)}Q", self.memory, at, *entries)
        return start

    def pieces(self) -> list[tuple[int, int]]:
        """(offset in memory, length) of each run of the data."""
        runs, left = [], self.nbytes
        for i, page in enumerate(self.pages):
            skip = self.offset if i == 0 else 0
            runs.append((page + skip, min(left, PAGE - skip)))
            left -= runs[-1][1]
        return runs

    def put(self, data: bytes) -> None:
        for at, length in self.pieces():
            self.memory[at : at + length] = data[:length]
            data = data[length:]

    def get(self) -> bytes:
        return b"".join(self.memory[at : at + length] for at, length in self.pieces())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    """A queue on a controller without a transfer limit, with 64 MiB of memory."""
    path = tmp_path_factory.mktemp("prp") / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    host = Host(str(path), memory_bytes=64 << 20, mdts=0)
    queue = host.start()
    host.mark = host.memory.used  # type: ignore[attr-defined]
    return queue


def round_trip(
    queue: Queue, blocks: int, offset: int, list_offset: int, lba: int, seed: int
) -> None:
    host = queue.host
    host.memory.used = host.mark  # type: ignore[attr-defined]
    data = random.Random(seed).randbytes(blocks * 512)
    source = Scatter(host, len(data), offset, list_offset, seed)
    source.put(data)
    assert queue.run(rw(WRITE, lba, blocks, prp1=source.prp1, prp2=source.prp2)).status == 0
    target = Scatter(host, len(data), (offset + 512) % PAGE, list_offset, seed + 1)
    assert queue.run(rw(READ, lba, blocks, prp1=target.prp1, prp2=target.prp2)).status == 0
    assert target.get() == data
    assert queue.run(rw(COMPARE, lba, blocks, prp1=source.prp1, prp2=source.prp2)).status == 0


@given(
    blocks=st.integers(1, 300),
    offset=st.integers(0, 1023).map(lambda n: 4 * n),
    list_offset=st.integers(0, 511).map(lambda n: 8 * n),
    lba=st.integers(0, 1000),
    seed=st.integers(0, 1 << 32),
)
def test_scattered_data_round_trips(
    shared: Queue, blocks: int, offset: int, list_offset: int, lba: int, seed: int
) -> None:
    round_trip(shared, blocks, offset, list_offset, lba, seed)


@pytest.mark.parametrize("pages", [2, 3, 512, 513, 514, 1024, 1025, 1100])
@pytest.mark.parametrize("list_offset", [0, PAGE - 8, PAGE - 16])
def test_list_chains(shared: Queue, pages: int, list_offset: int) -> None:
    """Lengths around each place where a list page ends; more vectors than one system call takes."""
    round_trip(shared, pages * 8, 0, list_offset, 0, pages)


def test_whole_transfer_of_65536_blocks(shared: Queue) -> None:
    """Without MDTS one command moves 32 MiB; all of it names the same few pages."""
    host = shared.host
    host.memory.used = host.mark  # type: ignore[attr-defined]
    data = host.memory.take(PAGE)
    lists = [host.memory.take(PAGE) for _ in range(17)]
    entries = [IOVA + data] * 8191
    for i, at in enumerate(lists):
        here = entries[:511] if len(entries) > 512 else entries[:512]
        entries = entries[len(here) :]
        chain = [IOVA + lists[i + 1]] if entries else []
        struct.pack_into(f"<{len(here) + len(chain)}Q", host.memory.map, at, *here, *chain)
        if not entries:
            break
    reply = shared.run(rw(READ, 0, 65536, prp1=IOVA + data, prp2=IOVA + lists[0]))
    assert reply.status == 0


def test_bad_prps(host: Host, image: Path) -> None:
    queue = host.create_queue(1)
    page = IOVA + host.memory.take(4 * PAGE)
    entries = page + 3 * PAGE
    end = IOVA + host.memory.size

    def listed(*values: int) -> None:
        struct.pack_into(f"<{len(values)}Q", host.memory.map, entries - IOVA, *values)

    listed(page + 8, page)
    for blocks, prp1, prp2, expected in [
        (1, page + 1, 0, PRP_OFFSET),
        (1, page + 2, 0, PRP_OFFSET),
        (1, page + 4, 0, 0),
        (1, NOWHERE, 0, DATA_TRANSFER),
        (1, 0, 0, DATA_TRANSFER),
        (1, end, 0, DATA_TRANSFER),
        (1, (1 << 64) - 4, 0, DATA_TRANSFER),
        (8, end - PAGE + 512, 0, DATA_TRANSFER),
        (16, page, page + 4, PRP_OFFSET),
        (16, page, page + 2048, PRP_OFFSET),
        (16, page, NOWHERE, DATA_TRANSFER),
        (8, page + 512, page + 512, PRP_OFFSET),
        (24, page, entries + 4, PRP_OFFSET),
        (24, page, NOWHERE, DATA_TRANSFER),
        (24, page, entries, PRP_OFFSET),  # an entry with an offset
    ]:
        for opcode in (READ, WRITE, COMPARE):
            reply = queue.run(rw(opcode, 0, blocks, prp1=prp1, prp2=prp2))
            if opcode == COMPARE and expected == 0:
                continue
            assert (reply.status, reply.dnr) == (expected, expected != 0), (blocks, prp1, prp2)
    listed(page, NOWHERE)
    assert queue.run(rw(WRITE, 0, 24, prp1=page, prp2=entries)).status == DATA_TRANSFER
    # The chain pointer itself: with an offset, and to nowhere.
    last = entries + PAGE - 8
    for chain, expected in [(page + 8, PRP_OFFSET), (NOWHERE, DATA_TRANSFER)]:
        struct.pack_into("<Q", host.memory.map, last - IOVA, chain)
        assert queue.run(rw(READ, 0, 24, prp1=page, prp2=last)).status == expected
    assert image.read_bytes()[:512] == host.memory.map[page - IOVA : page - IOVA + 512]


def test_admin_data_may_cross_pages(host: Host) -> None:
    at = host.memory.take(4 * PAGE)
    whole = host.identify(1)[1]
    code = command(IDENTIFY, prp1=IOVA + at + 1024, prp2=IOVA + at + 2 * PAGE, cdw=(1,))
    assert host.admin.run(code).status == 0
    assert host.memory.map[at + 1024 : at + PAGE] == whole[:3072]
    assert host.memory.map[at + 2 * PAGE : at + 2 * PAGE + 1024] == whole[3072:]
    code = command(IDENTIFY, prp1=IOVA + at + 1024, prp2=NOWHERE, cdw=(1,))
    assert host.admin.run(code).status == DATA_TRANSFER


def test_several_regions(make_host: Callable[..., Host]) -> None:
    """Pages in many regions, mapped in random order, some taken back while others are in use."""
    host = make_host()
    queue = host.start()
    bases = [0x10_0000_0000 + 0x10_0000 * i for i in range(40)]
    regions: dict[int, Memory] = {}
    choose = random.Random(7)
    try:
        for base in choose.sample(bases, len(bases)):
            regions[base] = Memory(2 * PAGE, base)
            host.transport.map(regions[base].fd, 0, 2 * PAGE, base)
        for base in bases:
            data = os.urandom(2 * PAGE)
            regions[base].map[:] = data
            assert queue.run(rw(WRITE, 0, 16, prp1=base, prp2=base + PAGE)).status == 0
            assert queue.run(rw(WRITE, 0, 16, prp1=base, prp2=base + 2 * PAGE)).status == 4
            other = choose.choice(list(regions))
            assert queue.run(rw(READ, 0, 16, prp1=other, prp2=other + PAGE)).status == 0
            assert regions[other].map[:] == data
        for base in bases[::2]:
            host.transport.unmap(base, 2 * PAGE)
            assert queue.run(rw(READ, 0, 1, prp1=base)).status == DATA_TRANSFER
            assert queue.run(rw(READ, 0, 1, prp1=base + 0x10_0000)).status == 0
    finally:
        for memory in regions.values():
            memory.close()
