"""The matrix: block sizes, MDTS, queue pairs, MSI-X tables, shadow doorbells; each with transfers of
every length around every limit.

What is written through the driver is compared in the image file, and what is read was put there
through the image file. CI runs a set in which each pair of values of any two columns occurs;
`make qemu` runs the whole product.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from driver import ControllerError, DmaBuffer, DriverOptions, Namespace
from tests.driver.owner import Owner

from .conftest import MIB, Open

KIB = 1 << 10
DISK_BYTES = 64 * MIB


class Row(NamedTuple):
    """One configuration; `interrupts` "off": the driver looks by itself."""

    lba: int
    mdts: int
    pairs: int
    vectors: int
    shadow: bool
    interrupts: str

    def __str__(self) -> str:
        doorbells = "shadow" if self.shadow else "messages"
        how = f"{self.vectors}vectors" if self.interrupts == "on" else "polling"
        return f"{self.lba}-mdts{self.mdts}-{self.pairs}pairs-{how}-{doorbells}"


COLUMNS: tuple[tuple[object, ...], ...] = (
    (512, 4096),
    (0, 1, 2, 5, 7),
    (1, 2, 64),
    (1, 2, 65),
    (True, False),
    ("on", "off"),
)
PRODUCT = [Row(*values) for values in itertools.product(*COLUMNS)]  # type: ignore[arg-type]
Pair = tuple[int, object, int, object]


def pairs_of(row: Row) -> set[Pair]:
    """All pairs of (column, value) in a row."""
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def pairwise() -> list[Row]:
    """Rows of the product, few, that have every pair: always the row with the most new ones."""
    left = set().union(*map(pairs_of, PRODUCT))
    chosen: list[Row] = []
    while left:
        best = max(PRODUCT, key=lambda row: len(pairs_of(row) & left))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


PAIRWISE = pairwise()


def lengths(lba: int, limit: int) -> list[int]:
    """Around a block, a page, two pages, a list page, the limit and twice the limit; 8 MiB."""
    marks = {lba, 4 * KIB, 8 * KIB, 64 * KIB, 2 * MIB, 4 * MIB}
    marks |= {limit, 2 * limit} if limit else set()
    found = {mark + step * lba for mark in marks for step in (-1, 0, 1)} | {8 * MIB}
    return sorted(n for n in found if 0 < n <= 8 * MIB and n % lba == 0)


def positions(rng: random.Random, namespace: Namespace, blocks: int) -> int:
    """The first block of a transfer: at either end, around a limit, or anywhere."""
    last = namespace.lba_count - blocks
    limit = (namespace.max_transfer_bytes or 2 * MIB) // namespace.lba_bytes
    return min(rng.choice([0, last, limit - 1, limit + 1, rng.randint(0, last)]), last)


def scattered(rng: random.Random, buffer: DmaBuffer, nbytes: int) -> list[DmaBuffer]:
    """Pages of a buffer in another order, nbytes in all."""
    pages = [buffer[at : at + 4096] for at in range(0, -(-nbytes // 4096) * 4096, 4096)]
    rng.shuffle(pages)
    rest = nbytes % 4096
    return [*pages[:-1], pages[-1][:rest]] if rest else pages


class Transfers:
    """Transfers on one namespace, each checked by way of the image file."""

    def __init__(self, namespace: Namespace, image_fd: int, rng: random.Random) -> None:
        self.namespace, self.fd, self.rng = namespace, image_fd, rng
        self.buffer = namespace.dma.allocate(8 * MIB + 8 * KIB)
        self.random = rng.randbytes(9 * MIB)

    def data(self, nbytes: int) -> bytes:
        """Random bytes, others each time."""
        at = self.rng.randrange(len(self.random) - nbytes)
        return self.random[at : at + nbytes]

    async def zero_copy(self, lba: int, nbytes: int) -> None:
        """A slice that starts at any dword of a page; what lies around it must stay as it is."""
        first = lba * self.namespace.lba_bytes
        at = self.rng.randrange(0, 8 * KIB, 4)
        part, data = self.buffer[at : at + nbytes], self.data(nbytes)
        part.view[:] = data
        await self.namespace.write(lba, part)
        assert os.pread(self.fd, nbytes, first) == data
        data = self.data(nbytes)
        os.pwrite(self.fd, data, first)
        around = self.buffer[max(at - 64, 0) : at + nbytes + 64]
        around.view[:] = b"\xa5" * len(around)
        await self.namespace.read(lba, part)
        assert part.view == data
        before = at - max(at - 64, 0)
        assert bytes(around.view[:before]).strip(b"\xa5") == b""
        assert bytes(around.view[before + nbytes :]).strip(b"\xa5") == b""

    async def bounced(self, lba: int, nbytes: int) -> None:
        """Ordinary bytes."""
        first, data = lba * self.namespace.lba_bytes, self.data(nbytes)
        await self.namespace.write(lba, data)
        assert os.pread(self.fd, nbytes, first) == data
        data = self.data(nbytes)
        os.pwrite(self.fd, data, first)
        out = bytearray(nbytes)
        await self.namespace.read(lba, out)
        assert out == data

    async def scattered(self, lba: int, nbytes: int) -> None:
        """Pages here and there."""
        first, data = lba * self.namespace.lba_bytes, self.data(nbytes)
        parts = scattered(self.rng, self.buffer, nbytes)
        at = 0
        for part in parts:
            part.view[:] = data[at : at + part.nbytes]
            at += part.nbytes
        await self.namespace.write(lba, parts)
        assert os.pread(self.fd, nbytes, first) == data
        data = self.data(nbytes)
        os.pwrite(self.fd, data, first)
        await self.namespace.read(lba, parts)
        assert b"".join(bytes(part.view) for part in parts) == data

    async def crowd(self) -> None:
        """Many at a time, on blocks of their own: rings wrap, doorbells are saved."""
        size = self.namespace.lba_bytes
        expected = [self.data(size * (1 + i % 9)) for i in range(150)]

        async def one(i: int) -> None:
            data = expected[i]
            await self.namespace.write(16 * i, data)
            out = bytearray(len(data))
            await self.namespace.read(16 * i, out)
            assert out == data

        async with trio.open_nursery() as nursery:
            for i in range(len(expected)):
                nursery.start_soon(one, i)
        for i, data in enumerate(expected):
            assert os.pread(self.fd, len(data), 16 * i * size) == data


async def run(row: Row, image: Path, opened: Open) -> None:
    rng = random.Random(str(row))
    options = {
        "logical_block_size": row.lba,
        "physical_block_size": row.lba,
        "mdts": row.mdts,
        "max_ioqpairs": row.pairs,
        "msix_qsize": row.vectors,
        "interrupts": row.interrupts,
    }
    driver_options = DriverOptions(shadow_doorbells=row.shadow, queue_depth=32)
    async with opened(options, driver_options) as (controller, transport):
        assert controller.io_queues_granted == min(row.pairs, 16)
        assert transport.table_entries == row.vectors
        namespace = await controller.namespace()
        limit = 4096 << row.mdts if row.mdts else 0
        assert (namespace.lba_bytes, namespace.max_transfer_bytes) == (row.lba, limit)
        fd = os.open(image, os.O_RDWR)
        try:
            transfers = Transfers(namespace, fd, rng)
            ways = itertools.cycle([transfers.zero_copy, transfers.bounced, transfers.scattered])
            for nbytes in lengths(row.lba, limit):
                for _ in range(1 if nbytes > MIB else 3):
                    way = next(ways)
                    lba = positions(rng, namespace, nbytes // row.lba)
                    await way(lba, nbytes)
            await transfers.crowd()
        finally:
            os.close(fd)
        stats = controller.statistics()
        queue = stats.queues[1]
        assert stats.shadow_doorbells == row.shadow
        assert (queue.doorbells_saved > 0) <= row.shadow
        assert queue.inflight == queue.bad_completions == queue.failed == queue.retried == 0
        assert queue.timeouts == queue.lost_interrupts == stats.aborts == stats.resets == 0
        if row.interrupts == "on":
            assert stats.interrupts > 0


@pytest.mark.parametrize("row", PAIRWISE, ids=str)
async def test_pairwise(row: Row, image: Path, opened: Open) -> None:
    await run(row, image, opened)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in PRODUCT if row not in PAIRWISE], ids=str)
async def test_the_rest_of_the_product(row: Row, image: Path, opened: Open) -> None:
    await run(row, image, opened)


def test_the_set_has_every_pair() -> None:
    assert set().union(*map(pairs_of, PAIRWISE)) == set().union(*map(pairs_of, PRODUCT))
    assert len(PAIRWISE) < len(PRODUCT) / 8


@pytest.mark.parametrize("pairs", [1, 2, 5, 64])
@pytest.mark.parametrize("vectors", [1, 2, 3, 65])
async def test_every_queue_pair_that_is_granted_works(
    pairs: int, vectors: int, image: Path, opened: Open
) -> None:
    """However few vectors there are: queue pairs share them, those of threads too."""
    for qid in range(65):
        with image.open("r+b") as file:
            file.seek(512 * qid)
            file.write(bytes([qid]) * 512)
    options = DriverOptions(io_queues=64, queue_depth=8)
    table = {"max_ioqpairs": pairs, "msix_qsize": vectors}
    async with opened(table, options) as (controller, transport):
        namespace = await controller.namespace()
        owners = [
            Owner(await controller.take_queue(), transport)
            for _ in range(controller.io_queues_granted - 1)
        ]
        assert controller.io_queues_granted == min(pairs, 64)
        with pytest.raises(ControllerError, match="were granted"):
            await controller.take_queue()
        data = bytearray(512)
        await namespace.read(1, data)
        assert data == bytes([1]) * 512
        with namespace.dma.allocate(512) as buffer, trio.fail_after(10):
            for owner in owners:
                qid = owner.queue.qid
                assert owner.enter()
                assert await owner.completed(owner.send_read(qid, buffer.iova)) == 0
                assert buffer.view == bytes([qid]) * 512
                owner.leave()
