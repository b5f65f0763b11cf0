"""I/O commands: what they do to the image, and each status they can end with (section 6)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver.embedded.harness import (
    COMPARE,
    DEAC,
    DSM,
    FLUSH,
    FUA,
    IOVA,
    PAGE,
    READ,
    SET_FEATURES,
    VERIFY,
    WRITE,
    WRITE_ZEROES,
    Host,
    Queue,
    command,
    rw,
)

INVALID_OPCODE, INVALID_FIELD, DATA_TRANSFER, INVALID_NAMESPACE = 0x001, 0x002, 0x004, 0x00B
WRITE_PROTECTED, LBA_RANGE = 0x020, 0x080
WRITE_FAULT, READ_ERROR, COMPARE_FAILURE = 0x280, 0x281, 0x285
BLOCKS = (16 << 20) // 512


@pytest.fixture
def queue(host: Host) -> Queue:
    return host.create_queue(1)


def put(host: Host, data: bytes) -> int:
    """IOVA of a copy of `data` in DMA memory."""
    at = host.memory.take(len(data))
    host.memory.map[at : at + len(data)] = data
    return IOVA + at


def get(host: Host, iova: int, nbytes: int) -> bytes:
    return bytes(host.memory.map[iova - IOVA : iova - IOVA + nbytes])


@pytest.mark.parametrize("lba_size", [512, 4096])
def test_write_reaches_the_image_and_reads_back(
    make_host: Callable[..., Host], image: Path, lba_size: int
) -> None:
    host = make_host(lba_size=lba_size)
    queue = host.start()
    last = (16 << 20) // lba_size - 1
    for lba in (0, 5, last):
        data = os.urandom(lba_size)
        assert queue.run(rw(WRITE, lba, 1, prp1=put(host, data))).status == 0
        assert image.read_bytes()[lba * lba_size :][:lba_size] == data
        back = put(host, bytes(lba_size))
        assert queue.run(rw(READ, lba, 1, prp1=back)).status == 0
        assert get(host, back, lba_size) == data


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY])
@pytest.mark.parametrize(
    ("lba", "blocks"),
    [(BLOCKS, 1), (BLOCKS - 1, 2), (1 << 63, 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2)],
)
def test_lba_out_of_range(
    host: Host, queue: Queue, image: Path, opcode: int, lba: int, blocks: int
) -> None:
    reply = queue.run(rw(opcode, lba, blocks, prp1=put(host, b"x" * 1024)))
    assert (reply.status, reply.dnr) == (LBA_RANGE, True)
    assert not any(image.read_bytes())


def test_transfer_above_mdts(make_host: Callable[..., Host]) -> None:
    host = make_host(mdts=8192)
    queue = host.start()
    data = put(host, bytes(2 * PAGE))
    for opcode in (READ, WRITE, COMPARE):
        assert queue.run(rw(opcode, 0, 16, prp1=data, prp2=data + PAGE)).status == 0
        assert queue.run(rw(opcode, 0, 17, prp1=data, prp2=data)).status == INVALID_FIELD
    for opcode in (WRITE_ZEROES, VERIFY):
        assert queue.run(rw(opcode, 0, 17)).status == 0, "moves no data"


@pytest.mark.parametrize("opcode", [0x03, 0x04, 0x0D, 0x7F, 0x80, 0xFF])
def test_unknown_opcode(queue: Queue, opcode: int) -> None:
    reply = queue.run(command(opcode, nsid=1))
    assert (reply.status, reply.dnr) == (INVALID_OPCODE, True)


@pytest.mark.parametrize("opcode", [FLUSH, READ, WRITE, COMPARE, WRITE_ZEROES, DSM, VERIFY])
def test_namespace_and_flags(make_host: Callable[..., Host], opcode: int) -> None:
    host = make_host(sgl="none")
    queue = host.start()
    data = put(host, bytes(PAGE))
    for nsid in (0, 2, 0xFFFFFFFE):
        assert queue.run(command(opcode, nsid=nsid, prp1=data)).status == INVALID_NAMESPACE
    for flags in (0x01, 0x02, 0x40, 0x80):  # fused, SGL
        assert queue.run(command(opcode, nsid=1, flags=flags, prp1=data)).status == INVALID_FIELD
    broadcast = queue.run(command(opcode, nsid=0xFFFFFFFF, prp1=data)).status
    assert broadcast == (0 if opcode == FLUSH else INVALID_NAMESPACE)


def test_fua_and_write_cache(host: Host, queue: Queue, image: Path) -> None:
    data = put(host, b"a" * 512)
    assert queue.run(rw(WRITE, 1, 1, prp1=data, bits=FUA)).status == 0
    assert queue.run(rw(READ, 1, 1, prp1=data, bits=FUA)).status == 0
    assert host.admin.run(command(SET_FEATURES, cdw=(6, 0))).status == 0
    assert queue.run(rw(WRITE, 2, 1, prp1=data)).status == 0
    assert queue.run(rw(WRITE_ZEROES, 1, 1)).status == 0
    content = image.read_bytes()
    assert content[512:1024] == bytes(512)
    assert content[1024:1536] == b"a" * 512


def test_compare(host: Host, queue: Queue) -> None:
    nbytes = 200 * 512  # in more pieces than one
    data = os.urandom(nbytes)
    pages = put(host, data)
    prps = struct.pack(f"<{nbytes // PAGE}Q", *range(pages + PAGE, pages + nbytes, PAGE), 0)
    prp_list = put(host, prps)
    assert queue.run(rw(WRITE, 0, 200, prp1=pages, prp2=prp_list)).status == 0
    assert queue.run(rw(COMPARE, 0, 200, prp1=pages, prp2=prp_list)).status == 0
    for at in (0, 511, 65535, 65536, nbytes - 1):
        host.memory.map[pages - IOVA + at] ^= 1
        reply = queue.run(rw(COMPARE, 0, 200, prp1=pages, prp2=prp_list))
        assert (reply.status, reply.dnr) == (COMPARE_FAILURE, True)
        host.memory.map[pages - IOVA + at] ^= 1
    assert queue.run(rw(VERIFY, 0, 200)).status == 0


@pytest.mark.parametrize("bits", [0, DEAC, FUA, DEAC | FUA])
def test_write_zeroes(host: Host, queue: Queue, image: Path, bits: int) -> None:
    with image.open("r+b") as file:
        file.write(b"x" * (1 << 20))
    assert queue.run(rw(WRITE_ZEROES, 3, 1001, bits=bits)).status == 0
    content = image.read_bytes()
    assert len(content) == 16 << 20
    assert content[: 3 * 512] == b"x" * 3 * 512
    assert not any(content[3 * 512 : 1004 * 512])
    assert content[1004 * 512 : 1 << 20] == b"x" * ((1 << 20) - 1004 * 512)


def test_write_zeroes_of_65536_blocks(make_host: Callable[..., Host], tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    with path.open("wb") as file:
        file.write(b"x" * PAGE)
        file.truncate(64 << 20)
    host = make_host(str(path))
    assert host.start().run(rw(WRITE_ZEROES, 0, 65536)).status == 0
    with path.open("rb") as file:
        assert not any(file.read(PAGE))


def test_deallocate(host: Host, queue: Queue, image: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"x" * (1 << 20))
        os.fsync(file.fileno())
    before = image.stat().st_blocks
    ranges = [(0, 8), (16, 0), (1024, 1000), (7, 3)]
    data = put(host, b"".join(struct.pack("<IIQ", 0, count, lba) for lba, count in ranges))
    assert queue.run(command(DSM, nsid=1, prp1=data, cdw=(3, 0))).status == 0
    assert image.read_bytes()[:512] == b"x" * 512, "hints alone change nothing"
    assert queue.run(command(DSM, nsid=1, prp1=data, cdw=(3, 4))).status == 0
    content = image.read_bytes()
    assert not any(content[: 10 * 512])
    assert content[10 * 512 : 1024 * 512] == b"x" * (1014 * 512)
    assert not any(content[1024 * 512 : 2024 * 512])
    assert image.stat().st_blocks < before


def test_what_was_deallocated_is_told(host: Host, queue: Queue) -> None:
    """From the first question on, each once; not what was refused, was a mere hint, or is empty."""

    def send(ranges: list[tuple[int, int]], kind: int = 4) -> int:
        data = put(host, b"".join(struct.pack("<IIQ", 0, count, lba) for lba, count in ranges))
        return queue.run(command(DSM, nsid=1, prp1=data, cdw=(len(ranges) - 1, kind))).status

    send([(5, 5)])
    assert host.transport.take_deallocated() == []
    send([(0, 8), (1024, 1000), (16, 0)])
    send([(100, 1)], kind=0)
    assert send([(1, 1), (1 << 40, 1)])
    send([(7, 3)])
    assert host.transport.take_deallocated() == [(0, 8), (1024, 1000), (7, 3)]
    assert host.transport.take_deallocated() == []
    many = [(lba, 1) for lba in range(200)]
    for _ in range(30):
        send(many)
    assert host.transport.take_deallocated() == many * 30


def test_deallocate_checks_all_ranges_first(host: Host, queue: Queue, image: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"x" * PAGE)
    for lba, count in [(BLOCKS, 1), (BLOCKS - 1, 2), (1 << 63, 1), (1, 0xFFFFFFFF)]:
        data = put(host, struct.pack("<IIQIIQ", 0, 8, 0, 0, count, lba))
        assert queue.run(command(DSM, nsid=1, prp1=data, cdw=(1, 4))).status == LBA_RANGE
    assert image.read_bytes()[:PAGE] == b"x" * PAGE


def test_256_ranges_over_two_pages(host: Host, queue: Queue) -> None:
    data = put(host, struct.pack("<IIQ", 0, 1, 9) * 256 + bytes(PAGE))
    moved = data + 8
    host.memory.map[moved - IOVA : moved - IOVA + 4096] = struct.pack("<IIQ", 0, 1, 9) * 256
    reply = queue.run(command(DSM, nsid=1, prp1=moved, prp2=data + PAGE, cdw=(255, 4)))
    assert reply.status == 0


def test_read_only(make_host: Callable[..., Host], image: Path) -> None:
    image.write_bytes(b"x" * (1 << 20))
    host = make_host(read_only=True)
    queue = host.start()
    assert host.identify(0, 1)[1][99] == 1, "NSATTR: write protected"
    data = put(host, bytes(PAGE))
    for code in [
        rw(WRITE, 0, 1, prp1=data),
        rw(WRITE_ZEROES, 0, 1),
        command(DSM, nsid=1, prp1=data, cdw=(0, 4)),
    ]:
        reply = queue.run(code)
        assert (reply.status, reply.dnr) == (WRITE_PROTECTED, True)
    assert queue.run(command(FLUSH, nsid=1)).status == 0
    assert queue.run(rw(READ, 0, 1, prp1=data)).status == 0
    assert get(host, data, 512) == b"x" * 512


def test_an_image_cut_short_is_a_read_error(host: Host, queue: Queue, image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(PAGE)
    data = put(host, bytes(PAGE))
    for code in [rw(READ, 8, 1, prp1=data), rw(COMPARE, 8, 1, prp1=data), rw(VERIFY, 7, 2)]:
        reply = queue.run(code)
        assert (reply.status, reply.dnr) == (READ_ERROR, False)
    assert queue.run(rw(READ, 7, 1, prp1=data)).status == 0


def test_tail_that_is_no_whole_block(make_host: Callable[..., Host], tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"x" * (3 * 4096 + 700))
    for lba_size, blocks in [(4096, 3), (512, 25)]:
        host = make_host(str(path), lba_size=lba_size)
        queue = host.start()
        data = put(host, bytes(PAGE))
        assert queue.run(rw(WRITE, blocks - 1, 1, prp1=data)).status == 0
        assert queue.run(rw(WRITE, blocks, 1, prp1=data)).status == LBA_RANGE
        host.close()
    assert path.stat().st_size == 3 * 4096 + 700


def test_null_backend(make_host: Callable[..., Host]) -> None:
    host = make_host("null:1T")
    queue = host.start()
    assert struct.unpack_from("<Q", host.identify(0, 1)[1]) == ((1 << 40) // 512,)
    data = put(host, b"x" * PAGE)
    assert queue.run(rw(WRITE, 1 << 30, 8, prp1=data)).status == 0
    assert queue.run(rw(READ, 1 << 30, 8, prp1=data)).status == 0
    assert get(host, data, PAGE) == bytes(PAGE)
    for code in [command(FLUSH, nsid=1), rw(WRITE_ZEROES, 0, 65536, bits=DEAC)]:
        assert queue.run(code).status == 0
