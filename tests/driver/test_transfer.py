"""driver.transfer and the vector requests above it: any buffers, in any order and place, against a model."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from driver import (
    Controller,
    DmaBuffer,
    DriverOptions,
    InvalidRequest,
    Namespace,
    Unsupported,
    WriteProtected,
    open_controller,
)
from driver._core import lib
from driver.requests import Piece
from driver.transfer import Part, batches, cut, prps_can, sgls_can
from driver.transports.embedded import open_embedded

from .fake import FakeController, identify_controller

KIB, MIB = 1 << 10, 1 << 20


@asynccontextmanager
async def opened(path: Path, **settings: object) -> AsyncIterator[Namespace]:
    if not path.exists():
        path.touch()
        os.truncate(path, 16 * MIB)
    transport = open_embedded(path, **settings)  # type: ignore[arg-type]
    with trio.fail_after(50):
        async with await open_controller(transport) as controller:
            yield await controller.namespace()
            stats = controller.statistics()
            assert stats.queues[1].inflight == stats.pool.held_buffers == 0


def sent(controller: Controller) -> int:
    return controller.statistics().queues[1].submitted


# ---- cutting -------------------------------------------------------------------------------------


@given(
    st.integers(0, 1 << 40), st.integers(1, 5000), st.integers(1, 3000), st.sampled_from([0, 8, 96])
)
def test_cuts_cover_and_keep_the_limits(lba: int, blocks: int, most: int, boundary: int) -> None:
    at = lba
    for first, count in cut(lba, blocks, most, boundary):
        assert first == at
        assert 0 < count <= most
        assert not boundary or first // boundary == (first + count - 1) // boundary
        at += count
    assert at == lba + blocks


ranges = st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(1, 300)), max_size=40)


@given(ranges, st.integers(1, 256), st.integers(1, 200), st.integers(1, 400))
def test_batches_keep_every_limit(
    given_ranges: list[tuple[int, int]], most: int, longest: int, total: int
) -> None:
    blocks = []
    for batch in batches(given_ranges, most, longest, total):
        assert 0 < len(batch) <= most
        assert max(count for _, count in batch) <= longest
        assert sum(count for _, count in batch) <= total
        blocks += [lba + i for lba, count in batch for i in range(count)]
    assert blocks == [lba + i for lba, count in given_ranges for i in range(count)]


# ---- scattered buffers ---------------------------------------------------------------------------


def scatter(namespace: Namespace, sizes: Sequence[int], seed: int, grain: int) -> list[Part]:
    """Parts of these sizes: DMA memory at multiples of `grain` inside pages, and plain memory."""
    choose = random.Random(seed)
    parts: list[Part] = []
    for size in sizes:
        if grain == 0 and choose.random() < 0.2:
            parts.append(bytearray(size))
            continue
        offset = choose.randrange(0, 4096, grain or 1)
        parts.append(namespace.dma.allocate(size + 4096)[offset : offset + size])
    return parts


def view(part: Part) -> memoryview:
    return part.view if isinstance(part, DmaBuffer) else memoryview(part)


@pytest.mark.parametrize("sgl", ["none", "byte", "dword"])
@pytest.mark.parametrize("grain", [0, 1, 4, 512, 4096], ids="grain{}".format)
async def test_any_parts_against_a_model(tmp_path: Path, sgl: str, grain: int) -> None:
    rng = random.Random(grain)
    async with opened(tmp_path / "d", sgl=sgl, mdts=64 * KIB) as namespace:
        assert namespace._queue.sgl == ["none", "byte", "dword"].index(sgl)
        for seed in range(25):
            blocks = rng.choice([1, 2, 9, 33, 400])
            most = 12 if seed % 5 else min(600, blocks * 512)
            step = max(grain, 1) if blocks * 512 > 2 * max(grain, 1) else 1
            seams = {rng.randrange(step, blocks * 512, step) for _ in range(rng.randrange(most))}
            sizes = [b - a for a, b in itertools.pairwise(sorted({0, blocks * 512, *seams}))]
            parts = scatter(namespace, sizes, seed, grain)
            data = rng.randbytes(blocks * 512)
            at = 0
            for part in parts:
                view(part)[:] = data[at : at + len(part)]
                at += len(part)
            lba = rng.randrange(namespace.lba_count - blocks)
            await namespace.write(lba, parts)
            await namespace.compare(lba, parts)
            for part in parts:
                view(part)[:] = bytes(len(part))
            await namespace.read(lba, tuple(parts))
            assert b"".join(bytes(view(part)) for part in parts) == data
            assert (tmp_path / "d").read_bytes()[lba * 512 : (lba + blocks) * 512] == data
            for part in parts:
                if isinstance(part, DmaBuffer):
                    part.root.release()


@pytest.mark.parametrize(
    ("sgl", "offsets", "commands", "copied"),
    [
        ("none", [0, 0, 0], 1, False),  # whole pages: PRPs
        ("none", [4, 0, 0], 1, True),
        ("byte", [4, 8, 12], 1, False),
        ("byte", [1, 3, 77], 1, False),
        ("dword", [4, 8, 12], 1, False),
        ("dword", [1, 3, 77], 1, True),
    ],
)
async def test_one_command_and_no_copy_where_that_can_be(
    tmp_path: Path, sgl: str, offsets: list[int], commands: int, copied: bool
) -> None:
    async with opened(tmp_path / "d", sgl=sgl) as namespace:
        parts = [namespace.dma.allocate(8192)[at : at + 4096] for at in offsets]
        before = sent(namespace.controller)
        used = namespace.dma.statistics().peak_bytes
        await namespace.write(0, parts)
        assert sent(namespace.controller) - before == commands
        assert (namespace.dma.statistics().peak_bytes > used) is copied


async def test_more_seams_than_descriptors_are_cut_or_copied(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as namespace:
        memory = namespace.dma.allocate(MIB)
        memory.view[:] = os.urandom(MIB)
        # 600 parts of a block each, none next to the other: 256 descriptors a command.
        parts = [memory[1024 * i + 4 : 1024 * i + 516] for i in range(600)]
        before = sent(namespace.controller)
        await namespace.write(0, parts)
        assert sent(namespace.controller) - before == 3
        wanted = b"".join(bytes(part.view) for part in parts)
        assert (tmp_path / "d").read_bytes()[: len(wanted)] == wanted
        # 512 bytes in 512 places: no SGL of 256 can say that.
        parts = [memory[1024 * i : 1024 * i + 1] for i in range(512)]
        await namespace.write(5, parts)
        wanted = b"".join(bytes(part.view) for part in parts)
        assert (tmp_path / "d").read_bytes()[5 * 512 : 6 * 512] == wanted


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 9000)), min_size=1, max_size=6),
)
def test_what_prps_and_sgls_can_express(shapes: list[tuple[int, int]]) -> None:
    """By the words of section 4.1.1: an offset in the first page only, dwords, pages full but at the end."""
    parts = [_Shape(4096 * 100 * (i + 1) + at, n) for i, (at, n) in enumerate(shapes)]
    full = all((part.iova + part.nbytes) % 4096 == 0 for part in parts[:-1])
    right = parts[0].iova % 4 == 0 and all(part.iova % 4096 == 0 for part in parts[1:])
    assert prps_can(parts, 4095) is (full and right)  # type: ignore[arg-type]
    whole = all(part.iova % 4 == part.nbytes % 4 == 0 for part in parts)
    assert sgls_can(parts, lib.NV_SGL_DWORD) is whole  # type: ignore[arg-type]
    assert sgls_can(parts, lib.NV_SGL_BYTE)  # type: ignore[arg-type]
    assert not sgls_can(parts, lib.NV_SGL_NONE)  # type: ignore[arg-type]


class _Shape:
    """What the two look at of a DmaBuffer."""

    def __init__(self, iova: int, nbytes: int) -> None:
        self.iova, self.nbytes = iova, nbytes


async def test_parts_that_make_no_sense(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as namespace:
        page = namespace.dma.allocate(4096)
        for wrong in ([], [page[0:0]], [page[0:100], page[100:511]], [bytearray(511)], [b"", b""]):
            with pytest.raises(InvalidRequest):
                await namespace.write(0, wrong)
        with pytest.raises(InvalidRequest, match="must be writable"):
            await namespace.read(0, [page[0:512], bytes(512)])


async def test_sgls_turned_off(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(bytes(MIB))
    options = DriverOptions(sgls=False)
    async with await open_controller(open_embedded(path), options=options) as controller:
        assert controller.identify.sgl_mode == lib.NV_SGL_BYTE
        assert controller.io.sgl == lib.NV_SGL_NONE


# ---- Verify and Copy -----------------------------------------------------------------------------


async def test_verify_in_steps_of_the_limit(tmp_path: Path) -> None:
    async with opened(tmp_path / "d", limits={"verify_bytes": 64 * KIB}) as namespace:
        before = sent(namespace.controller)
        await namespace.verify(3, 1000)
        assert sent(namespace.controller) - before == -(-1000 * 512 // (64 * KIB))
        os.truncate(tmp_path / "d", 8 * MIB)
        with pytest.raises(Exception, match="Unrecovered Read Error"):
            await namespace.verify(0, namespace.lba_count)
        with pytest.raises(InvalidRequest):
            await namespace.verify(namespace.lba_count, 1)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"copy_range_blocks": 3},
        {"copy_range_blocks": 8, "copy_blocks": 8, "copy_ranges": 2},
        {"copy_ranges": 1, "copy_blocks": 1},
    ],
    ids=["default", "short", "few", "least"],
)
async def test_copy_against_a_model(tmp_path: Path, limits: dict[str, int]) -> None:
    rng = random.Random(1)
    model = bytearray(rng.randbytes(MIB))
    (tmp_path / "d").write_bytes(model)
    async with opened(tmp_path / "d", limits=limits) as namespace:
        half = namespace.lba_count // 2
        for _ in range(20):
            given_ranges = [
                (rng.randrange(half - 12), rng.randrange(1, 12)) for _ in range(rng.randrange(1, 9))
            ]
            destination = half + rng.randrange(half - 12 * 9)
            await namespace.copy(given_ranges, destination)
            moved = b"".join(model[a * 512 : (a + n) * 512] for a, n in given_ranges)
            model[destination * 512 : destination * 512 + len(moved)] = moved
        out = bytearray(MIB)
        await namespace.read(0, out)
        assert out == model


async def test_copies_that_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as namespace:
        before = sent(namespace.controller)
        last = namespace.lba_count
        for given_ranges, destination in (
            ([(0, 4)], 3),
            ([(0, 4)], 0),
            ([(100, 1), (10, 4)], 9),
            ([(0, 4)], last - 3),
            ([(last, 1)], 0),
            ([(0, 0)], 9),
            ([], 9),
        ):
            with pytest.raises(InvalidRequest):
                await namespace.copy(given_ranges, destination)
        assert sent(namespace.controller) == before
    async with opened(tmp_path / "d", read_only=True) as namespace:
        with pytest.raises(WriteProtected):
            await namespace.copy([(0, 1)], 9)


@pytest.mark.parametrize(
    ("oncs", "ocfs", "words"),
    [(0x0D, 1, "no Copy command"), (0x10D, 2, "descriptor format 0"), (0x10D, 1, "no blocks")],
)
async def test_a_controller_that_cannot(oncs: int, ocfs: int, words: str) -> None:
    raw = identify_controller(oncs=oncs)
    raw[534] = ocfs
    async with await open_controller(FakeController(controller=raw)) as controller:
        namespace = await controller.namespace()
        assert not namespace.supports_copy
        with pytest.raises(Unsupported, match=f"{words}.*read and write"):
            await namespace.copy([(0, 1)], 9)
        assert not namespace.supports_verify
        with pytest.raises(Unsupported, match=r"no Verify.*read the blocks"):
            await namespace.verify(0, 1)


@pytest.mark.parametrize(("dlfeat", "deac"), [(0, 0), (8, 0), (1, 0), (9, 1), (10, 0)])
async def test_blocks_are_freed_by_zeroes_only_where_they_read_as_zeroes(
    dlfeat: int, deac: int
) -> None:
    transport = FakeController()
    transport.namespace[33] = dlfeat
    async with await open_controller(transport) as controller:
        namespace = await controller.namespace()
        transport.log.clear()
        await namespace.write_zeroes(0, 8)
        await namespace.write_zeroes(0, 8, deallocate=False)
        assert [command[51] >> 1 & 1 for qid, command in transport.log if qid] == [deac, 0]


@pytest.mark.parametrize("what", ["write_zeroes", "verify", "deallocate", "copy", "by writing"])
async def test_many_commands_go_in_waves(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One page a command: a request for a whole disk must not become a list of all its pages."""
    limits = {
        "write_zeroes_bytes": 8192,
        "verify_bytes": 8192,
        "ranges": 1,
        "range_blocks": 16,
        "copy_blocks": 16,
    }
    async with opened(tmp_path / "d", limits=limits) as namespace:
        waves: list[int] = []
        submit_all = namespace._queue.submit_all

        async def noted(pieces: list[Piece]) -> None:
            waves.append(len(pieces))
            await submit_all(pieces)

        monkeypatch.setattr(namespace._queue, "submit_all", noted)
        blocks = 16 * 200
        if what == "deallocate":
            await namespace.deallocate([(0, blocks)])
        elif what == "copy":
            await namespace.copy([(0, blocks)], 10_000)
        elif what == "verify":
            await namespace.verify(0, blocks)
        elif what == "write_zeroes":
            await namespace.write_zeroes(0, blocks)
        else:
            who = dataclasses.replace(namespace.controller.identify, write_zeroes=False)
            monkeypatch.setattr(namespace.controller, "identify", who)
            blocks = 200 * (128 * KIB // 512)
            await namespace.write_zeroes(0, min(blocks, namespace.lba_count))
        assert max(waves) <= 64
        assert sum(waves) in (200, 128)
