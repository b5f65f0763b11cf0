"""What tests of single rules share: a host that shares nothing with the driver, and short ways to use it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.driver.embedded.harness import READ, WRITE, Completion, Host, Queue, rw

BLOCK = 512
ALL_ONES = 0xFFFFFFFF
Make = Callable[..., Host]


def write(host: Host, queue: Queue, lba: int, byte: int, cid: int = 1) -> Completion:
    return queue.run(writing(host, lba, byte, cid))


def writing(host: Host, lba: int, byte: int, cid: int = 1) -> bytes:
    page = host.memory.take(BLOCK)
    host.memory.map[page : page + BLOCK] = bytes([byte]) * BLOCK
    return rw(WRITE, lba, 1, cid=cid, prp1=host.iova(page))


def read(host: Host, queue: Queue, lba: int, cid: int = 2) -> tuple[Completion, bytes]:
    page = host.memory.take(BLOCK)
    reply = queue.run(rw(READ, lba, 1, cid=cid, prp1=host.iova(page)))
    return reply, bytes(host.memory.map[page : page + BLOCK])


def silent(queue: Queue, for_s: float = 0.03) -> bool:
    """Nothing completes for a while."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        if queue.poll() is not None:
            return False
    return True


def statistics(host: Host, name: str) -> int:
    return host.transport.statistics()[name]
