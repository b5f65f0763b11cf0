"""Scatter Gather Lists (base specification 2.0, section 4.1.2): any right shape, each wrong one."""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.driver.embedded.harness import (
    CFS,
    COMPARE,
    CSTS,
    DSM,
    FLUSH,
    IOVA,
    PAGE,
    READ,
    SGL,
    WRITE,
    Host,
    Queue,
    command,
)

BLOCK, KEYED, SEGMENT, LAST = 0x0, 0x4, 0x2, 0x3
INVALID_FIELD, DATA_TRANSFER = 0x002, 0x004
SEGMENT_INVALID, COUNT_INVALID, LENGTH_INVALID = 0x00D, 0x00E, 0x00F
TYPE_INVALID, GRANULARITY = 0x011, 0x01E
NOWHERE = 0x7000_0000_0000


def descriptor(address: int, length: int, kind: int = BLOCK, sub: int = 0) -> bytes:
    return struct.pack("<QIxxxB", address, length, kind << 4 | sub)


def sgl_command(opcode: int, first: bytes, blocks: int, lba: int = 0) -> bytes:
    """A command of `blocks` blocks whose data pointer is this descriptor."""
    prp1, prp2 = struct.unpack("<QQ", first)
    cdw = (lba, 0, blocks - 1)
    return command(opcode, nsid=1, flags=SGL, prp1=prp1, prp2=prp2, cdw=cdw)


def place(host: Host, descriptors: Sequence[bytes]) -> int:
    """IOVA of a segment that holds them."""
    raw = b"".join(descriptors)
    at = host.memory.take(len(raw))
    host.memory.map[at : at + len(raw)] = raw
    return IOVA + at


def scattered(host: Host, sizes: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """(offset, length) of pieces that do not touch, at any byte of pages in random order."""
    choose = random.Random(seed)
    pieces = []
    for size in sizes:
        offset = host.memory.take(size + PAGE) + choose.randrange(PAGE)
        pieces.append((offset, size))
    return pieces


def chain(host: Host, pieces: Sequence[tuple[int, int]], per_segment: int) -> bytes:
    """The descriptor for the command: itself, a last segment, or a chain of segments."""
    blocks = [descriptor(IOVA + offset, size) for offset, size in pieces]
    if len(blocks) == 1:
        return blocks[0]
    groups = [blocks[i : i + per_segment] for i in range(0, len(blocks), per_segment)]
    following = b""
    for i, group in enumerate(reversed(groups)):
        whole = [*group, following] if following else group
        kind = LAST if i == 0 else SEGMENT
        following = descriptor(place(host, whole), 16 * len(whole), kind)
    return following


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    path = tmp_path_factory.mktemp("sgl") / "disk.img"
    with path.open("wb") as file:
        file.truncate(4 << 20)
    made = Host(str(path), memory_bytes=16 << 20, mdts=1 << 20)
    yield made
    made.close()


def restart(host: Host) -> Queue:
    host.disable()
    host.memory.used = 2 * PAGE
    host.enable()
    return host.create_queue(1, 64)


@settings(max_examples=40)
@given(
    blocks=st.integers(1, 64),
    cuts=st.lists(st.integers(1, 64 * 512), max_size=200),
    per_segment=st.integers(1, 40),
    seed=st.integers(0, 1 << 30),
)
def test_any_cut_of_the_data(
    shared: Host, blocks: int, cuts: list[int], per_segment: int, seed: int
) -> None:
    queue = restart(shared)
    edges = sorted({0, blocks * 512, *(cut for cut in cuts if cut < blocks * 512)})
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    pieces = scattered(shared, sizes, seed)
    data = random.Random(seed).randbytes(blocks * 512)
    for (offset, size), at in zip(pieces, edges, strict=False):
        shared.memory.map[offset : offset + size] = data[at : at + size]
    first = chain(shared, pieces, per_segment)
    assert queue.run(sgl_command(WRITE, first, blocks, 7)).status == 0
    assert queue.run(sgl_command(COMPARE, first, blocks, 7)).status == 0
    for offset, size in pieces:
        shared.memory.map[offset : offset + size] = bytes(size)
    assert queue.run(sgl_command(READ, first, blocks, 7)).status == 0
    assert b"".join(shared.memory.map[o : o + n] for o, n in pieces) == data


@pytest.fixture
def queue(host: Host) -> Queue:
    return host.create_queue(1)


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE])
def test_what_is_refused(host: Host, queue: Queue, opcode: int, image: Path) -> None:
    """Two blocks of 512 bytes, named wrongly."""
    before = image.read_bytes()
    data = IOVA + host.memory.take(PAGE)
    host.memory.map[data - IOVA : data - IOVA + PAGE] = os.urandom(PAGE)
    half = descriptor(data, 512)
    two = place(host, [half, half])
    loop = place(host, [descriptor(data, 0)] * 2)
    host.memory.map[loop - IOVA + 16 : loop - IOVA + 32] = descriptor(loop, 32, SEGMENT)
    nested = place(host, [half, descriptor(two, 32, LAST)])
    early = place(host, [descriptor(two, 32, LAST), half])
    wrong = [
        (descriptor(data, 1023), LENGTH_INVALID),
        (descriptor(data, 1025), LENGTH_INVALID),
        (descriptor(data, 0), LENGTH_INVALID),
        (descriptor(data, 0xFFFFFFFF), LENGTH_INVALID),
        (descriptor(NOWHERE, 1024), DATA_TRANSFER),
        (descriptor(data, 1024, sub=1), TYPE_INVALID),
        (descriptor(data, 1024, KEYED), TYPE_INVALID),
        (descriptor(data, 1024, 1), TYPE_INVALID),  # bit bucket: not offered
        (descriptor(data, 1024, 0xF), TYPE_INVALID),
        (descriptor(two, 16, LAST), LENGTH_INVALID),
        (descriptor(two, 0, LAST), SEGMENT_INVALID),
        (descriptor(two, 31, LAST), SEGMENT_INVALID),
        (descriptor(two + 4, 32, LAST), SEGMENT_INVALID),
        (descriptor(NOWHERE, 32, LAST), DATA_TRANSFER),
        (descriptor(two, 32, SEGMENT), SEGMENT_INVALID),  # names no further segment
        (descriptor(two, 32, LAST, sub=1), TYPE_INVALID),
        (descriptor(nested, 32, LAST), SEGMENT_INVALID),
        (descriptor(early, 32, SEGMENT), COUNT_INVALID),
        (descriptor(loop, 32, SEGMENT), COUNT_INVALID),
        (descriptor(place(host, [half] * 3), 48, LAST), LENGTH_INVALID),
    ]
    for first, expected in wrong:
        assert queue.run(sgl_command(opcode, first, 2)).status == expected, first.hex()
    assert image.read_bytes() == before
    assert queue.run(sgl_command(WRITE, descriptor(nested, 32, SEGMENT), 3)).status == 0


def test_ranges_of_a_deallocation(host: Host, queue: Queue, image: Path) -> None:
    image.write_bytes(b"\xff" * (16 << 20))
    ranges = struct.pack("<IIQ", 0, 3, 10) + struct.pack("<IIQ", 0, 1, 20)
    pieces = scattered(host, [5, 27], 1)
    for (offset, size), at in zip(pieces, (0, 5), strict=True):
        host.memory.map[offset : offset + size] = ranges[at : at + size]
    prp1, prp2 = struct.unpack("<QQ", chain(host, pieces, 8))
    code = command(DSM, nsid=1, flags=SGL, prp1=prp1, prp2=prp2, cdw=(1, 4))
    assert queue.run(code).status == 0
    found = image.read_bytes()
    assert [i for i in range(32) if not any(found[i * 512 : (i + 1) * 512])] == [10, 11, 12, 20]


def test_whole_dwords_where_the_controller_says_so(make_host: Callable[..., Host]) -> None:
    host = make_host(sgl="dword")
    queue = host.start()
    assert struct.unpack_from("<I", host.identify(1)[1], 536) == (2,)
    data = IOVA + host.memory.take(2 * PAGE)
    assert queue.run(sgl_command(READ, descriptor(data + 4, 512), 1)).status == 0
    for address, length in ((data + 1, 512), (data + 2, 512), (data, 510)):
        first = descriptor(address, length)
        assert queue.run(sgl_command(READ, first, 1)).status == GRANULARITY


def test_admin_commands_take_none(host: Host) -> None:
    prp1, prp2 = struct.unpack("<QQ", descriptor(IOVA + host.memory.take(PAGE), PAGE))
    code = command(6, flags=SGL, prp1=prp1, prp2=prp2, cdw=(1,))
    assert host.admin.run(code).status == INVALID_FIELD


def test_more_pieces_than_there_is_room_for(make_host: Callable[..., Host]) -> None:
    """Each byte of a small transfer in a place of its own: refused, not overrun."""
    host = make_host(mdts=8192)
    queue = host.start()
    pieces = [(PAGE * 64 + 2 * i, 1) for i in range(1024)]
    assert queue.run(sgl_command(WRITE, chain(host, pieces, 1024), 2)).status == COUNT_INVALID


addresses = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.tuples(st.integers(16, 200), st.sampled_from([0, 0, 8, 16, 3, 4095])).map(
        lambda t: IOVA + t[0] * PAGE + t[1]
    ),
)
descriptors = st.builds(
    descriptor,
    addresses,
    st.one_of(st.sampled_from([0, 16, 32, 48, 512, 4096]), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.sampled_from([BLOCK, SEGMENT, LAST]), st.integers(0, 15)),
    st.one_of(st.just(0), st.integers(0, 15)),
)


@settings(max_examples=50)
@given(
    segments=st.lists(st.lists(descriptors, min_size=1, max_size=8), min_size=1, max_size=8),
    firsts=st.lists(descriptors, min_size=1, max_size=16),
    blocks=st.integers(1, 16),
)
def test_garbage(
    shared: Host, segments: list[list[bytes]], firsts: list[bytes], blocks: int
) -> None:
    queue = restart(shared)
    for page in range(16, 200):
        raw = b"".join(segments[page % len(segments)])
        shared.memory.map[page * PAGE : page * PAGE + len(raw)] = raw
    for first in firsts:
        for opcode in (READ, WRITE, COMPARE):
            reply = queue.run(sgl_command(opcode, first, blocks))
            assert reply.status in {0, 4, 0xD, 0xE, 0xF, 0x11, 0x285}
    assert shared.transport.read32(CSTS) & CFS == 0
    assert queue.run(command(FLUSH, nsid=1)).status == 0
