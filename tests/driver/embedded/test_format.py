"""Format NVM, and a namespace that grows: what the host is told, and what its blocks are then."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.driver.embedded.harness import (
    ASYNC_EVENT,
    FORMAT,
    GET_LOG,
    IOVA,
    PAGE,
    READ,
    SET_FEATURES,
    WRITE,
    Host,
    command,
    rw,
)

INVALID_FIELD, INVALID_NAMESPACE, WRITE_PROTECTED = 0x002, 0x00B, 0x020
LBA_RANGE, INVALID_FORMAT = 0x080, 0x10A
MIB = 1 << 20


def format_nvm(host: Host, bits: int, nsid: int = 1) -> int:
    return host.admin.run(command(FORMAT, nsid=nsid, cdw=(bits,))).status


@pytest.mark.parametrize("erase", [0, 1])
def test_formats_and_back(host: Host, image: Path, erase: int) -> None:
    queue = host.create_queue(1)
    image.write_bytes(b"\xff" * 16 * MIB)
    data = IOVA + host.memory.take(PAGE)
    for index, size in ((1, 4096), (0, 512), (1, 4096)):
        assert format_nvm(host, index | erase << 9) == 0
        identify = host.identify(0, 1)[1]
        assert struct.unpack_from("<Q", identify)[0] == 16 * MIB // size
        assert identify[26] == index
        assert image.read_bytes() == bytes(16 * MIB)
        host.memory.map[data - IOVA : data - IOVA + PAGE] = os.urandom(PAGE)
        last = 16 * MIB // size - 1
        assert queue.run(rw(WRITE, last, 1, prp1=data)).status == 0
        assert queue.run(rw(READ, last + 1, 1, prp1=data)).status == LBA_RANGE
        written = bytes(host.memory.map[data - IOVA : data - IOVA + size])
        assert image.read_bytes()[-size:] == written


def test_formats_that_are_refused(make_host: Callable[..., Host], image: Path) -> None:
    host = make_host()
    host.enable()
    image.write_bytes(b"\xff" * 16 * MIB)
    assert format_nvm(host, 0, nsid=2) == INVALID_NAMESPACE
    assert format_nvm(host, 2) == format_nvm(host, 1 << 4) == format_nvm(host, 1 << 5)
    assert format_nvm(host, 2) == INVALID_FORMAT  # two formats, neither has metadata
    assert format_nvm(host, 2 << 9) == INVALID_FIELD  # no key to throw away
    assert image.read_bytes() == b"\xff" * 16 * MIB
    host.close()
    host = make_host(read_only=True)
    host.enable()
    assert format_nvm(host, 0) == WRITE_PROTECTED


def test_a_grown_image_is_told_of(host: Host, image: Path) -> None:
    queue = host.create_queue(1)
    data = IOVA + host.memory.take(PAGE)
    assert host.admin.run(command(SET_FEATURES, cdw=(0x0B, 0x100))).status == 0
    host.admin.push(command(ASYNC_EVENT, cid=77))
    host.admin.ring()
    os.truncate(image, 32 * MIB)
    assert queue.run(rw(READ, 16 * MIB // 512, 1, prp1=data)).status == LBA_RANGE
    host.transport.resize()
    reply = host.admin.reap()[0]
    assert (reply.cid, reply.result) == (77, 2 | 4 << 16)
    assert struct.unpack_from("<Q", host.identify(0, 1)[1])[0] == 32 * MIB // 512
    assert queue.run(rw(READ, 16 * MIB // 512, 1, prp1=data)).status == 0
    # The event comes again once the log page has been read, and the page then names nothing.
    os.truncate(image, 33 * MIB)
    host.transport.resize()
    host.admin.push(command(ASYNC_EVENT, cid=78))
    read_log = command(GET_LOG, prp1=data, cdw=(4 | 1023 << 16, 0))
    assert host.admin.run(read_log).cid == 1
    assert struct.unpack_from("<II", host.memory.map, data - IOVA) == (1, 0)
    assert host.admin.reap()[0].cid == 78
    assert host.admin.run(read_log).status == 0
    assert struct.unpack_from("<II", host.memory.map, data - IOVA) == (0, 0)


def test_a_host_that_did_not_ask_is_not_told(host: Host, image: Path) -> None:
    host.admin.push(command(ASYNC_EVENT, cid=77))
    host.admin.ring()
    os.truncate(image, 32 * MIB)
    host.transport.resize()
    assert struct.unpack_from("<Q", host.identify(0, 1)[1])[0] == 32 * MIB // 512
    assert host.admin.poll() is None
