"""Transfers around every limit of a namespace: run in the guest, known on the host.

    python -m tests.guest.transfers SEED interrupt|poll ADDRESS...      in the guest

writes and reads all namespaces of all controllers named, at the same time, and compares what it reads
with what it has written. It prints, as JSON, a Report for each namespace. From that and the seed the
host knows what the first REGION_BYTES of the image must be: `expected(seed, report)`.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import NamedTuple

import trio

from driver import Controller, DmaBuffer, DriverOptions, Namespace, open_controller

KIB, MIB = 1 << 10, 1 << 20
REGION_BYTES = 16 * MIB
LONGEST_BYTES = 8 * MIB
PAGE_BYTES = 4096
BOUND_S = 240
READERS = 8
POLL_NS = {"interrupt": 0, "poll": 1_000_000_000}
WAYS = ("copied", "in place", "scattered")


@dataclass(frozen=True)
class Report:
    """What the host has to know of a namespace, and what the driver has counted."""

    address: str
    nsid: int
    lba_bytes: int
    limit_bytes: int
    vectors: int
    io_queues: int
    interrupts: int
    timeouts: int
    lost_interrupts: int


class Transfer(NamedTuple):
    """One write: bytes [first, first + nbytes) of the region, with data from `source` on."""

    first: int
    nbytes: int
    source: int
    way: str


def lengths(lba: int, limit: int) -> list[int]:
    """Around a block, a page, two pages, a list page, the limit and twice the limit; 8 MiB."""
    marks = (lba, PAGE_BYTES, 2 * PAGE_BYTES, 64 * KIB, limit, 2 * limit, 2 * MIB)
    found = {mark + step * lba for mark in marks for step in (-1, 0, 1)} | {LONGEST_BYTES}
    return sorted(n for n in found if 0 < n <= LONGEST_BYTES and n % lba == 0)


def plan(seed: int, nsid: int, lba: int, limit: int) -> list[Transfer]:
    """The writes, in their order; they overlap."""
    rng = random.Random(f"{seed} {nsid}")
    transfers = []
    for nbytes in lengths(lba, limit):
        last = REGION_BYTES - nbytes
        first = min(rng.choice((0, limit - lba, limit + lba, last, rng.randint(0, last))), last)
        source = rng.randrange(MIB)
        transfers.append(Transfer(first // lba * lba, nbytes, source, rng.choice(WAYS)))
    rng.shuffle(transfers)
    return transfers


def random_bytes(seed: int) -> bytes:
    """What all data are cut from."""
    return random.Random(seed).randbytes(LONGEST_BYTES + MIB)


def expected(seed: int, report: Report) -> bytes:
    """The region after the writes, if it has been all zeroes."""
    region, data = bytearray(REGION_BYTES), random_bytes(seed)
    for transfer in plan(seed, report.nsid, report.lba_bytes, report.limit_bytes):
        end = transfer.first + transfer.nbytes
        region[transfer.first : end] = data[transfer.source : transfer.source + transfer.nbytes]
    return bytes(region)


def pages(buffer: DmaBuffer, nbytes: int, rng: random.Random) -> list[DmaBuffer]:
    """Pages of a buffer in another order, nbytes in all."""
    whole, rest = divmod(nbytes, PAGE_BYTES)
    parts = [buffer[at * PAGE_BYTES : (at + 1) * PAGE_BYTES] for at in range(1, whole + 1)]
    rng.shuffle(parts)
    return [*parts, buffer[:rest]] if rest else parts


async def transfer_all(namespace: Namespace, seed: int, limit: int) -> None:
    """Clears the region, writes, reads each back, and reads all of it with other lengths."""
    lba, rng = namespace.lba_bytes, random.Random(seed)
    region, data = bytearray(REGION_BYTES), random_bytes(seed)
    await namespace.write_zeroes(0, REGION_BYTES // lba)
    with namespace.dma.allocate(LONGEST_BYTES + PAGE_BYTES) as buffer:
        for transfer in plan(seed, namespace.nsid, lba, limit):
            part = data[transfer.source : transfer.source + transfer.nbytes]
            region[transfer.first : transfer.first + transfer.nbytes] = part
            await _write_and_read(namespace, buffer, transfer, part, rng)
        await namespace.flush()
    await _read_all(namespace, region, rng)


async def _write_and_read(
    namespace: Namespace,
    buffer: DmaBuffer,
    transfer: Transfer,
    data: bytes,
    rng: random.Random,
) -> None:
    first, nbytes = transfer.first // namespace.lba_bytes, transfer.nbytes
    if transfer.way == "copied":
        await namespace.write(first, data)
        out = bytearray(nbytes)
        await namespace.read(first, out)
        _compare(out, data, f"{namespace.where}: {transfer}")
        return
    if transfer.way == "in place":
        at = rng.randrange(0, PAGE_BYTES, 4)
        parts = [buffer[at : at + nbytes]]
    else:
        parts = pages(buffer, nbytes, rng)
    at = 0
    for part in parts:
        part.view[:] = data[at : at + part.nbytes]
        at += part.nbytes
    await namespace.write(first, parts)
    for part in parts:
        part.view[:] = bytes(part.nbytes)
    await namespace.read(first, parts)
    _compare(b"".join(part.view for part in parts), data, f"{namespace.where}: {transfer}")


async def _read_all(namespace: Namespace, region: bytearray, rng: random.Random) -> None:
    """The region in pieces of odd lengths, several at a time."""
    lba = namespace.lba_bytes
    cuts = sorted({0, REGION_BYTES, *(rng.randrange(0, REGION_BYTES, lba) for _ in range(32))})
    todo = list(itertools.pairwise(cuts))

    async def read() -> None:
        while todo:
            first, end = todo.pop()
            out = bytearray(end - first)
            await namespace.read(first // lba, out)
            _compare(out, region[first:end], f"{namespace.where}: bytes {first} to {end}")

    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(read)


def _compare(found: bytes | bytearray, data: bytes | bytearray, where: str) -> None:
    if found != data:
        at = next(i for i, (a, b) in enumerate(zip(found, data, strict=True)) if a != b)
        raise AssertionError(f"{where}: byte {at} is {found[at]:#x} and was {data[at]:#x}")


async def run(seed: int, mode: str, addresses: Sequence[str]) -> list[Report]:
    """All namespaces of all controllers at the same time."""
    options = DriverOptions(poll_ns=POLL_NS[mode])
    async with AsyncExitStack() as stack:
        controllers = [
            await stack.enter_async_context(await open_controller(address, options=options))
            for address in addresses
        ]
        work = [
            (controller, await controller.namespace(nsid))
            for controller in controllers
            for nsid in await controller.namespaces()
        ]
        with trio.fail_after(BOUND_S):
            async with trio.open_nursery() as nursery:
                for _, namespace in work:
                    limit = namespace.max_transfer_bytes or 2 * MIB
                    nursery.start_soon(transfer_all, namespace, seed, limit)
        return [_report(*pair) for pair in work]


def _report(controller: Controller, namespace: Namespace) -> Report:
    statistics = controller.statistics()
    assert statistics.resets == statistics.aborts == 0
    return Report(
        address=controller.where,
        nsid=namespace.nsid,
        lba_bytes=namespace.lba_bytes,
        limit_bytes=namespace.max_transfer_bytes or 2 * MIB,
        vectors=controller.transport.vectors,
        io_queues=len(statistics.queues) - 1,
        interrupts=statistics.interrupts,
        timeouts=sum(queue.timeouts for queue in statistics.queues),
        lost_interrupts=sum(queue.lost_interrupts for queue in statistics.queues),
    )


if __name__ == "__main__":
    reports = trio.run(run, int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    print(json.dumps([asdict(report) for report in reports]))
