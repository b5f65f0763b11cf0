"""SGLs, Verify and Copy on a controller that nobody here wrote."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from driver import DriverOptions, Unsupported
from driver._core import lib

from .conftest import MIB, Open

BLOCK = {"logical_block_size": 4096, "physical_block_size": 4096}


@pytest.mark.parametrize("sgls", [True, False], ids=["sgl", "prp"])
@pytest.mark.parametrize("options", [{}, BLOCK, {"mdts": 1}], ids=["512", "4096", "mdts1"])
async def test_scattered_buffers(
    options: dict[str, int], sgls: bool, image: Path, opened: Open
) -> None:
    rng = random.Random(1)
    async with opened(options, DriverOptions(sgls=sgls)) as (controller, _):
        namespace = await controller.namespace()
        assert controller.io.sgl == (lib.NV_SGL_BYTE if sgls else lib.NV_SGL_NONE)
        size = namespace.lba_bytes
        memory = namespace.dma.allocate(4 * MIB)
        for _ in range(8):
            blocks = rng.choice([1, 2, 5, 40])
            seams = {rng.randrange(1, blocks * size) for _ in range(rng.randrange(9))}
            edges = sorted({0, blocks * size, *seams})
            parts = []
            for i, (a, b) in enumerate(itertools.pairwise(edges)):
                at = i * 256 * 1024 + rng.randrange(4096)
                parts.append(memory[at : at + b - a])
            data = rng.randbytes(blocks * size)
            for part, a in zip(parts, edges, strict=False):
                part.view[:] = data[a : a + len(part)]
            lba = rng.randrange(1000)
            await namespace.write(lba, parts)
            await namespace.compare(lba, parts)
            memory.view[:] = bytes(4 * MIB)
            await namespace.read(lba, parts)
            assert b"".join(bytes(part.view) for part in parts) == data
            assert image.read_bytes()[lba * size : (lba + blocks) * size] == data


async def test_large_pieces_and_many(image: Path, opened: Open) -> None:
    async with opened() as (controller, _):
        namespace = await controller.namespace()
        memory = namespace.dma.allocate(4 * MIB)
        memory.view[:] = os.urandom(4 * MIB)
        parts = [memory[8192 * i + 12 : 8192 * i + 12 + 1024] for i in range(500)]
        parts.append(memory[3 * MIB + 17 : 4 * MIB - 495])
        await namespace.write(7, parts)
        wanted = b"".join(bytes(part.view) for part in parts)
        assert image.read_bytes()[7 * 512 : 7 * 512 + len(wanted)] == wanted


@pytest.mark.parametrize("options", [{}, {"mssrl": 8, "mcl": 12, "msrc": 1}], ids=["", "small"])
async def test_copy(options: dict[str, int], image: Path, opened: Open) -> None:
    async with opened(options) as (controller, _):
        namespace = await controller.namespace()
        data = os.urandom(200 * 512)
        await namespace.write(0, data)
        assert namespace.supports_copy
        await namespace.copy([(0, 30), (50, 1), (100, 100)], 5000)
        await namespace.flush()
        wanted = data[: 30 * 512] + data[50 * 512 : 51 * 512] + data[100 * 512 :]
        assert image.read_bytes()[5000 * 512 : 5000 * 512 + len(wanted)] == wanted


async def test_verify_is_understood_as_not_there(opened: Open) -> None:
    """QEMU 7.2 names a limit for Verify, and not the command (ONCS)."""
    async with opened({"vsl": 1}) as (controller, _):
        assert controller.limits.max_verify_bytes == 8192
        with pytest.raises(Unsupported, match="no Verify"):
            await (await controller.namespace()).verify(0, 1)
