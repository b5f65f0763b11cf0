"""The served function as a stranger sees it: each command, what it refuses, and with which errno."""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import time
from collections.abc import Callable

import pytest

from tests.driver.vfio_user import raw as r
from tests.driver.vfio_user.conftest import Hosted
from tests.driver.vfio_user.raw import RawClient

Host = Callable[..., Hosted]
BAR0, CONFIG = 0, 7


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number, caught.value


def memfd(nbytes: int) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, nbytes)
    return fd


# ---- VERSION ---------------------------------------------------------------------------------------


def version(client: RawClient, major: int, minor: int, text: bytes) -> r.Answer:
    return client.call(r.VERSION, struct.pack("<HH", major, minor) + text)


@pytest.mark.parametrize("minor", [0, 1, 7])
def test_version(host: Host, minor: int) -> None:
    proposal = {"capabilities": {"max_msg_fds": 8, "max_dma_maps": 65535, "twin_socket": {}}}
    with RawClient(host().path, negotiate=False) as client:
        answer = version(client, 0, minor, json.dumps(proposal).encode() + b"\0")
        assert struct.unpack_from("<HH", answer.payload) == (0, min(minor, 1))
        assert answer.payload[-1:] == b"\0"
        found = json.loads(answer.payload[4:-1])["capabilities"]
        assert found == {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20, "max_dma_maps": 4096}


def test_version_without_data(host: Host) -> None:
    with RawClient(host().path, negotiate=False) as client:
        assert json.loads(version(client, 0, 0, b"").payload[4:-1])["capabilities"]


@pytest.mark.parametrize(
    ("command", "payload", "number"),
    [
        (r.VERSION, struct.pack("<HH", 1, 0), errno.ENOTSUP),
        (r.VERSION, b"\0", errno.EINVAL),
        (r.VERSION, bytes(4) + b"{}", errno.EINVAL),
        (r.GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), errno.EINVAL),
        (99, b"", errno.ENOTSUP),
    ],
)
def test_whoever_cannot_agree_is_answered_and_sent_away(
    host: Host, command: int, payload: bytes, number: int
) -> None:
    hosted = host()
    with RawClient(hosted.path, negotiate=False) as client:
        refused(number, client.call, command, payload)
        assert client.receive() is None
    with RawClient(hosted.path) as client:
        refused(errno.EINVAL, client.call, r.VERSION, bytes(4))  # once is enough
        client.read(BAR0, 0, 8)


# ---- what it is ------------------------------------------------------------------------------------


def test_device_info(client: RawClient) -> None:
    answer = client.call(r.GET_INFO, struct.pack("<IIII", 32, 0, 0, 0))
    assert struct.unpack("<IIII", answer.payload) == (16, 3, 9, 5)
    refused(errno.EINVAL, client.call, r.GET_INFO, struct.pack("<IIII", 15, 0, 0, 0))
    refused(errno.EINVAL, client.call, r.GET_INFO, bytes(8))


def region_info(client: RawClient, index: int, argsz: int) -> r.Answer:
    return client.call(r.REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))


def test_regions(client: RawClient) -> None:
    short = region_info(client, BAR0, 32)
    assert struct.unpack("<IIIIQQ", short.payload) == (64, 3, 0, 0, 0x4000, 0)
    assert not short.fds
    whole = region_info(client, BAR0, 64)
    assert struct.unpack_from("<IIIIQQ", whole.payload) == (64, 0xF, 0, 32, 0x4000, 0)
    assert struct.unpack_from("<HHIIIQQ", whole.payload, 32) == (1, 1, 0, 1, 0, 0x1000, 0x1000)
    (fd,) = whole.fds
    with mmap.mmap(fd, 0x1000, offset=0x1000) as doorbells:
        assert doorbells[:] == bytes(0x1000)
    os.close(fd)
    config = region_info(client, CONFIG, 256)
    assert struct.unpack("<IIIIQQ", config.payload) == (32, 3, 7, 0, 4096, 0)
    for index in (1, 2, 3, 4, 5, 6, 8):
        empty = region_info(client, index, 32)
        assert struct.unpack("<IIIIQQ", empty.payload) == (32, 0, index, 0, 0, 0)
    refused(errno.EINVAL, region_info, client, 9, 64)
    refused(errno.EINVAL, region_info, client, BAR0, 31)


def test_without_doorbells_to_map(host: Host) -> None:
    with RawClient(host(map_doorbells=False).path) as client:
        answer = region_info(client, BAR0, 256)
        assert struct.unpack("<IIIIQQ", answer.payload) == (32, 3, 0, 0, 0x4000, 0)
        answer = client.call(r.REGION_IO_FDS, struct.pack("<IIII", 4096, 0, 0, 0))
        assert (struct.unpack("<IIII", answer.payload), answer.fds) == ((16, 0, 0, 0), [])


def test_io_fds(client: RawClient) -> None:
    short = client.call(r.REGION_IO_FDS, struct.pack("<IIII", 16, 0, 0, 0))
    needed, _, _, count = struct.unpack("<IIII", short.payload)
    assert (needed, count, short.fds) == (16 + 10 * 40, 0, [])  # admin and four I/O queue pairs
    answer = client.call(r.REGION_IO_FDS, struct.pack("<IIII", needed, 0, 0, 0))
    assert struct.unpack_from("<IIII", answer.payload) == (needed, 0, 0, 10)
    for i in range(10):
        entry = struct.unpack_from("<QQIIIIQ", answer.payload, 16 + 40 * i)
        assert entry == (0x1000 + 4 * i, 4, 0, 0, 0, 0, 0)
    (fd,) = answer.fds
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    os.close(fd)
    refused(errno.EINVAL, client.call, r.REGION_IO_FDS, struct.pack("<IIII", 16, 0, 9, 0))
    refused(errno.EINVAL, client.call, r.REGION_IO_FDS, struct.pack("<IIII", 16, 1, 0, 0))


def test_irq_info(client: RawClient) -> None:
    for index, count in ((0, 0), (1, 0), (2, 5), (3, 1), (4, 0)):
        answer = client.call(r.IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        flags = 3 if index == 2 else 1
        assert struct.unpack("<IIII", answer.payload) == (16, flags, index, count)
    refused(errno.EINVAL, client.call, r.IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0))
    refused(errno.EINVAL, client.call, r.IRQ_INFO, struct.pack("<IIII", 12, 0, 2, 0))


# ---- configuration space ---------------------------------------------------------------------------


def config(client: RawClient, form: str, offset: int) -> int:
    (value,) = struct.unpack("<" + form, client.read(CONFIG, offset, struct.calcsize(form)))
    assert isinstance(value, int)
    return value


def test_config_header(client: RawClient) -> None:
    assert config(client, "I", 8) >> 8 == 0x010802
    assert config(client, "B", 0x0E) == 0, "header type"
    assert config(client, "H", 6) & 0x10, "a capability list"
    assert config(client, "B", 0x3D) == 0, "no pin interrupt"
    client.write(CONFIG, 0x10, b"\xff" * 8)
    size = (1 << 64) - (config(client, "Q", 0x10) & ~0xF)
    assert (size, config(client, "B", 0x10) & 0xF) == (0x4000, 4), "64-bit memory"
    client.write(CONFIG, 0, b"\xff" * 64)
    assert client.read(CONFIG, 0, 4) == struct.pack("<HH", 0x1234, 1), "ids are read-only"
    assert config(client, "H", 4) == 0x0546


def test_config_capabilities(client: RawClient) -> None:
    found, at = {}, config(client, "B", 0x34)
    while at:
        found[config(client, "B", at)] = at
        at = config(client, "B", at + 1)
    assert sorted(found) == [0x01, 0x10, 0x11]
    msix = found[0x11]
    assert config(client, "H", msix + 2) == 4, "five vectors"
    assert config(client, "I", msix + 4) == 0x2000
    assert config(client, "I", msix + 8) == 0x3000
    client.write(CONFIG, msix + 2, b"\xff\xff")
    assert config(client, "H", msix + 2) == 0xC004
    express = found[0x10]
    assert config(client, "H", express + 2) & 0xFF == 0x02, "version 2, an endpoint"
    assert config(client, "I", express + 4) >> 28 & 1, "function level reset"
    power = found[0x01]
    client.write(CONFIG, power + 4, b"\x03\x00")
    assert config(client, "H", power + 4) & 3 == 3, "D3hot"
    assert client.read(CONFIG, 0x100, 0xF00) == bytes(0xF00)


@pytest.mark.parametrize("way", ["message", "express"])
def test_reset(client: RawClient, way: str) -> None:
    client.write(BAR0, 0x28, struct.pack("<Q", 0x123000))
    client.write(BAR0, 0x14, struct.pack("<I", 1))
    client.write(CONFIG, 4, b"\x06\x00")
    if way == "message":
        client.call(r.RESET)
    else:
        client.write(CONFIG, 0x60 + 8, b"\x10\xa8")
        assert config(client, "H", 0x60 + 8) == 0x2810, "the bit reads zero"
    assert client.read(BAR0, 0x14, 4) == client.read(BAR0, 0x1C, 4) == bytes(4)
    assert client.read(BAR0, 0x28, 8) == bytes(8)
    assert config(client, "H", 4) == 6, "configuration space stays"


# ---- regions ---------------------------------------------------------------------------------------


def test_registers_in_pieces(client: RawClient) -> None:
    whole = client.read(BAR0, 0, 64)
    assert whole[8:12] == struct.pack("<I", 0x10400)
    for offset in range(12):
        for count in range(1, 12):
            assert client.read(BAR0, offset, count) == whole[offset : offset + count]
    assert client.read(BAR0, 0, 0) == b""
    client.write(BAR0, 0x24, struct.pack("<IQ", 0x001F001F, 0)[:8])
    assert client.read(BAR0, 0x24, 4) == struct.pack("<I", 0x001F001F)


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (BAR0, 0x4000, 1),
        (BAR0, 0x3FFF, 2),
        (BAR0, (1 << 64) - 4, 8),
        (BAR0, 0, (1 << 20) + 1),
        (BAR0, 0, 0xFFFFFFFF),
        (CONFIG, 4095, 2),
        (1, 0, 1),
        (9, 0, 0),
        (0xFFFFFFFF, 0, 4),
    ],
)
def test_accesses_outside(client: RawClient, region: int, offset: int, count: int) -> None:
    head = struct.pack("<QII", offset, region, count)
    refused(errno.EINVAL, client.call, r.REGION_READ, head)
    refused(errno.EINVAL, client.call, r.REGION_WRITE, head + bytes(min(count, 4096)))


@pytest.mark.parametrize(
    ("offset", "count"), [(0x14, 1), (0x14, 2), (0x16, 4), (0x1001, 4), (0x1FFC, 8), (0, 16)]
)
def test_register_writes_of_a_wrong_shape(client: RawClient, offset: int, count: int) -> None:
    refused(errno.EINVAL, client.write, BAR0, offset, bytes(count))


def test_write_data_must_have_its_length(client: RawClient) -> None:
    refused(errno.EINVAL, client.call, r.REGION_WRITE, struct.pack("<QII", 0x14, 0, 4) + bytes(3))
    refused(errno.EINVAL, client.call, r.REGION_WRITE, struct.pack("<QII", 0x14, 0, 4) + bytes(5))


def test_msix_table_is_memory(client: RawClient) -> None:
    assert client.read(BAR0, 0x2000, 16) == bytes(12) + b"\1\0\0\0", "masked after power-up"
    client.write(BAR0, 0x2003, b"hello")
    assert client.read(BAR0, 0x2000, 16) == b"\0\0\0hello" + bytes(4) + b"\1\0\0\0"
    client.write(BAR0, 0x2000 + 5 * 16 - 2, b"beyond")
    assert client.read(BAR0, 0x2000 + 5 * 16 - 2, 6) == b"be" + bytes(4)
    client.write(BAR0, 0x3000, b"\xff" * 8)
    assert client.read(BAR0, 0x3000, 8) == bytes(8), "pending bits are read-only"


def test_many_small_writes(client: RawClient) -> None:
    writes = struct.pack("<QII8s", 0x28, 0, 8, struct.pack("<Q", 0xABC000))
    writes += struct.pack("<QII8s", 4, 7, 2, b"\x06\0" + bytes(6))
    answer = client.call(r.WRITE_MULTI, struct.pack("<Q", 2) + writes)
    assert answer.payload == struct.pack("<Q", 2)
    assert client.read(BAR0, 0x28, 8) == struct.pack("<Q", 0xABC000)
    assert config(client, "H", 4) == 6
    refused(errno.EINVAL, client.call, r.WRITE_MULTI, struct.pack("<Q", 3) + writes)


def test_no_reply(client: RawClient) -> None:
    """Silence even for what is refused; the next reply comes after both."""
    body = struct.pack("<QII", 0x24, 0, 4) + struct.pack("<I", 0x00030003)
    client.send(r.REGION_WRITE, body, flags=0x10)
    client.send(99, flags=0x10)
    assert client.read(BAR0, 0x24, 4) == struct.pack("<I", 0x00030003)


def test_many_messages_at_once(client: RawClient) -> None:
    head = struct.pack("<QII", 8, 0, 4)
    burst = b"".join(struct.pack("<HHIII", i, r.REGION_READ, 32, 0, 0) + head for i in range(100))
    client.send_raw(burst)
    for i in range(100):
        answer = client.receive()
        assert answer is not None
        assert (answer.id, answer.payload) == (i, head + struct.pack("<I", 0x10400))


# ---- DMA -------------------------------------------------------------------------------------------


def test_dma_map_and_unmap(client: RawClient) -> None:
    fd = memfd(1 << 20)
    client.map(fd, 4096, 0x100000, 0x10000)
    refused(errno.EEXIST, client.map, fd, 0, 0x10F000, 4096)
    refused(errno.EEXIST, client.map, None, 0, 0xFF000, 0x2000)
    refused(errno.EEXIST, client.map, fd, 0, 0x100000, 0x10000)
    client.map(fd, 0, 0x110000, 4096)
    refused(errno.ENOENT, client.unmap, 0x100000, 4096)
    refused(errno.ENOENT, client.unmap, 0x101000, 0xF000)
    assert client.unmap(0x100000, 0x10000) == struct.pack("<IIQQ", 24, 0, 0x100000, 0x10000)
    refused(errno.ENOENT, client.unmap, 0x100000, 0x10000)
    client.map(fd, 0, 0x100000, 0x10000)
    refused(errno.EINVAL, client.unmap, 0x100000, 0x10000, 2)
    client.unmap(0, 0, 2)
    client.unmap(0, 0, 2)
    refused(errno.ENOENT, client.unmap, 0x110000, 4096)
    os.close(fd)


@pytest.mark.parametrize(
    ("offset", "iova", "size", "flags"),
    [
        (0, 0x1000, 0, 3),
        (0, 0x1000, 0x101000, 3),  # beyond the end of the file
        (0xFF000, 0x1000, 0x2000, 3),
        ((1 << 64) - 4096, 0x1000, 0x2000, 3),
        (0, 0x1001, 4096, 3),
        (1, 0x1000, 4096, 3),
        (0, 0x1000, 4097, 3),
        (0, (1 << 64) - 4096, 8192, 3),
        (0, 0x1000, 4096, 7),
        (0, 0x1000, 4096, 0x80000003),
    ],
)
def test_dma_maps_that_are_refused(
    client: RawClient, offset: int, iova: int, size: int, flags: int
) -> None:
    fd = memfd(1 << 20)
    refused(errno.EINVAL, client.map, fd, offset, iova, size, flags)
    os.close(fd)


def test_dma_maps_with_odd_descriptors(client: RawClient) -> None:
    fd, pipe = memfd(1 << 20), os.pipe()
    payload = struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 4096)
    refused(errno.EINVAL, client.call, r.DMA_MAP, payload, (fd, fd))
    with pytest.raises(OSError):
        client.map(pipe[0], 0, 0x1000, 4096)
    client.map(fd, 0, 0x1000, 4096)
    for each in (fd, *pipe):
        os.close(each)


def test_memory_that_cannot_be_used_is_noted(client: RawClient) -> None:
    """A monitor's firmware: without a descriptor, or read-only. Queues there are a fatal error."""
    fd = memfd(1 << 20)
    client.map(None, 0, 0x100000, 0x1800)  # no page is needed of what is not mapped
    client.map(fd, 0, 0x200000, 0x10000, 1)
    for iova in (0x100000, 0x200000):
        client.write(BAR0, 0x24, struct.pack("<I", 0x001F001F))
        client.write(BAR0, 0x28, struct.pack("<Q", iova))
        client.write(BAR0, 0x30, struct.pack("<Q", iova))
        client.write(BAR0, 0x14, struct.pack("<I", 1 | 6 << 16 | 4 << 20))
        end = time.monotonic() + 10
        while not client.read(BAR0, 0x1C, 1)[0] & 2:
            assert time.monotonic() < end
        client.call(r.RESET)
    client.unmap(0x100000, 0x1800)
    client.unmap(0x200000, 0x10000)
    os.close(fd)


def test_as_many_regions_as_promised(client: RawClient) -> None:
    for i in range(4096):
        client.map(None, 0, i << 20, 4096)
    refused(errno.ENOSPC, client.map, None, 0, 4096 << 20, 4096)
    client.unmap(0, 0, 2)
