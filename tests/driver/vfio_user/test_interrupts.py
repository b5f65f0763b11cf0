"""The interrupts of a served function: every kind of SET_IRQS, masks, pending bits, room for the table."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.driver.vfio_user import raw as r
from tests.driver.vfio_user.conftest import Hosted
from tests.driver.vfio_user.raw import RawClient
from tests.driver.vfio_user.test_function import config, refused, region_info

Host = Callable[..., Hosted]
BAR0 = 0

NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(5)]
    yield fds
    for fd in fds:
        os.close(fd)


def counts(fds: list[int]) -> list[int]:
    """And takes them back to zero."""
    ready = select.select(fds, [], [], 0)[0]
    return [os.eventfd_read(fd) if fd in ready else 0 for fd in fds]


def test_triggers(client: RawClient, eventfds: list[int]) -> None:
    client.set_irqs(EVENTFD | TRIGGER, 0, 5, fds=eventfds)
    client.set_irqs(NONE | TRIGGER, 1, 2)
    client.set_irqs(BOOL | TRIGGER, 0, 4, b"\0\1\0\1")
    assert counts(eventfds) == [0, 2, 1, 1, 0]
    client.set_irqs(EVENTFD | TRIGGER, 1, 1)  # no descriptor: this one is taken away
    client.set_irqs(NONE | TRIGGER, 0, 5)
    assert counts(eventfds) == [1, 0, 1, 1, 1]
    client.set_irqs(EVENTFD | TRIGGER, 2, 2, fds=[eventfds[1], eventfds[0]])
    client.set_irqs(NONE | TRIGGER, 0, 5)
    assert counts(eventfds) == [2, 1, 0, 0, 1]
    client.set_irqs(NONE | TRIGGER, 0, 0)
    client.set_irqs(NONE | TRIGGER, 0, 5)
    assert counts(eventfds) == [0] * 5


def test_masks(client: RawClient, eventfds: list[int]) -> None:
    client.set_irqs(EVENTFD | TRIGGER, 0, 5, fds=eventfds)
    client.set_irqs(NONE | MASK, 1, 3)
    client.set_irqs(BOOL | UNMASK, 1, 3, b"\0\1\0")
    client.set_irqs(NONE | TRIGGER, 0, 5)
    assert counts(eventfds) == [1, 0, 1, 0, 1]
    assert client.read(BAR0, 0x3000, 8) == b"\x0a" + bytes(7), "pending: 1 and 3"
    client.set_irqs(NONE | UNMASK, 0, 3)
    assert counts(eventfds) == [0, 1, 0, 0, 0]
    assert client.read(BAR0, 0x3000, 1) == b"\x08"
    client.set_irqs(NONE | UNMASK, 3, 1)
    client.set_irqs(NONE | UNMASK, 3, 1)
    assert counts(eventfds) == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("index", "flags", "start", "count", "data", "fds"),
    [
        (5, NONE | TRIGGER, 0, 0, 0, 0),
        (0, NONE | TRIGGER, 0, 1, 0, 0),
        (2, NONE | TRIGGER, 0, 6, 0, 0),
        (2, NONE | TRIGGER, 5, 1, 0, 0),
        (2, NONE | TRIGGER, 0xFFFFFFFF, 2, 0, 0),
        (2, NONE | TRIGGER, 1, 0xFFFFFFFF, 0, 0),
        (2, NONE | TRIGGER, 1, 0, 0, 0),
        (2, NONE | MASK, 0, 0, 0, 0),
        (2, EVENTFD | TRIGGER, 0, 0, 0, 0),
        (2, EVENTFD | TRIGGER, 0, 2, 0, 1),
        (2, EVENTFD | TRIGGER, 0, 1, 0, 2),
        (2, BOOL | TRIGGER, 0, 3, 2, 0),
        (2, BOOL | TRIGGER, 0, 3, 4, 0),
        (2, NONE | BOOL | TRIGGER, 0, 1, 1, 0),
        (2, NONE | TRIGGER | MASK, 0, 1, 0, 0),
        (2, NONE, 0, 1, 0, 0),
        (2, TRIGGER, 0, 1, 0, 0),
        (2, NONE | TRIGGER | 64, 0, 1, 0, 0),
    ],
)
def test_irqs_that_are_refused(
    client: RawClient,
    eventfds: list[int],
    index: int,
    flags: int,
    start: int,
    count: int,
    data: int,
    fds: int,
) -> None:
    payload = struct.pack("<IIIII", 20 + data, flags, index, start, count) + bytes(data)
    refused(errno.EINVAL, client.call, r.SET_IRQS, payload, eventfds[:fds])


def test_only_eventfds_are_eventfds(client: RawClient, eventfds: list[int]) -> None:
    reading, writing = os.pipe()
    refused(errno.EINVAL, client.set_irqs, EVENTFD | TRIGGER, 0, 2, b"", [eventfds[0], writing])
    refused(errno.ENOTSUP, client.set_irqs, EVENTFD | MASK, 0, 1, b"", [eventfds[0]])
    for index in (0, 1, 3, 4):
        client.call(r.SET_IRQS, struct.pack("<IIIII", 20, NONE | TRIGGER, index, 0, 0))
    os.close(reading)
    os.close(writing)


def test_as_many_descriptors_as_the_kernel_passes(host: Host) -> None:
    """More than were announced: there are monitors that do not look."""
    with RawClient(host(vectors=253).path) as client:
        fds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(253)]
        client.set_irqs(EVENTFD | TRIGGER, 0, 253, fds=fds)
        client.set_irqs(NONE | TRIGGER, 252, 1)
        assert select.select([fds[252]], [], [], 0)[0]
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("vectors", [1, 256, 257, 2048])
def test_bar_has_room_for_the_table(host: Host, vectors: int) -> None:
    with RawClient(host(vectors=vectors).path) as client:
        size = struct.unpack_from("<Q", region_info(client, BAR0, 32).payload, 16)[0]
        pba = config(client, "I", 0x48 + 8)
        assert size & (size - 1) == 0
        assert 0x2000 + 16 * vectors <= pba
        assert pba + vectors / 8 <= size
        assert client.read(BAR0, 0x2000, 16 * vectors) == (bytes(12) + b"\1\0\0\0") * vectors
