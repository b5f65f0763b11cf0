"""driver.memory: the pool never hands out the same byte twice, and forgets nothing."""

from __future__ import annotations

import itertools
import mmap
import os

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from driver import ControllerClosed, DmaBuffer, DmaPool, PoolExhausted

from .fake import FakeController

MIB = 1 << 20


def pool(limit: int = 8 * MIB) -> DmaPool:
    return DmaPool(FakeController(), limit)


def test_buffers_are_shared_with_the_device() -> None:
    transport = FakeController()
    with DmaPool(transport, 4 * MIB).allocate(5000) as buffer:
        assert len(buffer) == 5000
        assert buffer.iova % 4096 == 0
        assert buffer.address % 4096 == 0
        buffer.view[:5] = b"hello"
        memory, offset = transport._at(buffer.iova, 5)
        assert memory[offset : offset + 5] == b"hello"
        part = buffer[4096:4100]
        assert (part.iova, len(part), part.root) == (buffer.iova + 4096, 4, buffer)


@given(
    st.lists(
        st.one_of(st.integers(1, 300_000), st.integers(-40, -1)),
        min_size=1,
        max_size=80,
    )
)
def test_no_overlap_and_nothing_lost(steps: list[int]) -> None:
    """Positive: allocate that many bytes; negative: release one of those held."""
    dma = pool(4 * MIB)
    held: list[DmaBuffer] = []
    for step in steps:
        if step < 0:
            if held:
                held.pop(step % len(held)).release()
            continue
        try:
            held.append(dma.allocate(step))
        except PoolExhausted:
            continue
        spans = sorted((b.iova, b.iova + len(b)) for b in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert dma.statistics().buffers == len(held)
    for buffer in held:
        buffer.release()
    assert dma.statistics().used_bytes == 0
    while dma.statistics().region_bytes < 4 * MIB:
        dma.allocate(2 * MIB).release()
        held = [dma.allocate(MIB), dma.allocate(2 * MIB)]
        for buffer in held:
            buffer.release()
    for _ in range(2):  # all of it can be had again as large pieces
        held = [dma.allocate(MIB) for _ in range(4)]
        for buffer in held:
            buffer.release()


def test_grows_by_few_large_regions() -> None:
    dma = pool(64 * MIB)
    held = [dma.allocate(4096) for _ in range(32 * MIB // 4096)]
    assert dma.statistics().region_count <= 5
    for buffer in held:
        buffer.release()
    before = dma.statistics().region_bytes
    dma.allocate(16 * MIB).release()  # small ones are joined rather than more mapped
    assert dma.statistics().region_bytes == before


def test_bound() -> None:
    dma = pool(2 * MIB)
    first = dma.allocate(2 * MIB)
    with pytest.raises(PoolExhausted, match="2097152 of at most 2097152"):
        dma.allocate(1)
    first.release()
    dma.allocate(1)
    with pytest.raises(PoolExhausted):
        dma.allocate(3 * MIB)


def test_release_twice_and_slices() -> None:
    buffer = pool().allocate(4096)
    with pytest.raises(ValueError, match="slice"):
        buffer[0:512].release()
    buffer.release()
    with pytest.raises(ValueError, match="released before"):
        buffer.release()


def test_a_held_buffer_comes_back_when_the_command_is_over() -> None:
    dma = pool(2 * MIB)
    buffer = dma.allocate(2 * MIB)
    buffer[512:1024].hold()
    buffer.hold()
    buffer.release()
    assert buffer.busy
    assert dma.statistics().held_buffers == 1
    buffer.unhold()
    with pytest.raises(PoolExhausted):
        dma.allocate(4096)
    buffer[512:1024].unhold()
    assert not buffer.busy
    dma.allocate(2 * MIB)


def test_device_addresses_stay_inside_the_ranges() -> None:
    transport = FakeController(iova_ranges=((0, 6 * MIB - 1), (16 * MIB, 20 * MIB - 1)))
    dma = DmaPool(transport, 64 * MIB)
    assert dma.allocate(2 * MIB).iova == 2 * MIB
    assert dma.allocate(2 * MIB).iova == 4 * MIB
    assert dma.allocate(4 * MIB).iova == 16 * MIB
    with pytest.raises(PoolExhausted, match="no device address left"):
        dma.allocate(2 * MIB)


async def test_waiters_are_served_in_order() -> None:
    dma = pool(2 * MIB)
    first = dma.allocate(MIB)
    second = dma.allocate(MIB)
    served: list[str] = []

    async def want(name: str, nbytes: int) -> None:
        (await dma.allocate_wait(nbytes)).release()
        served.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(want, "large", 2 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(want, "small", 4096)
        await trio.testing.wait_all_tasks_blocked()
        first.release()
        await trio.testing.wait_all_tasks_blocked()
        assert served == []  # the small one does not overtake the large one for ever
        second.release()
    assert served == ["large", "small"]
    assert dma.statistics().waiters == 0


async def test_a_cancelled_waiter_lets_the_next_one_in() -> None:
    dma = pool(2 * MIB)
    first = dma.allocate(MIB)
    dma.allocate(MIB)
    scope = trio.CancelScope()

    async def large() -> None:
        with scope:
            await dma.allocate_wait(2 * MIB)

    async def small() -> None:
        (await dma.allocate_wait(MIB)).release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(large)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(small)
        await trio.testing.wait_all_tasks_blocked()
        first.release()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    with pytest.raises(PoolExhausted, match="can never fit"):
        await dma.allocate_wait(3 * MIB)


async def test_closing_unmaps_and_wakes() -> None:
    transport = FakeController()
    dma = DmaPool(transport, 2 * MIB)
    dma.allocate(2 * MIB)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(ControllerClosed):
                await dma.allocate_wait(4096)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        dma.close()
    dma.close()
    assert transport.unmapped == 1


class Owner(FakeController):
    """A controller that reaches the second half of a file of its own, at addresses it chooses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.file = os.memfd_create("owner")
        os.ftruncate(self.file, 16 * MIB)
        self.next = 8 * MIB
        self.taken_back: list[tuple[int, int]] = []
        self.largest_dma_bytes = 8 * MIB

    def allocate_dma(self, nbytes: int) -> tuple[int, int, int]:
        offset, self.next = self.next, self.next + nbytes
        return self.file, offset, 0x1000000 + offset

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        raise AssertionError("there is nothing to map")

    def unmap(self, iova: int, length: int) -> None:
        self.taken_back.append((iova, length))


def test_memory_that_is_the_transports() -> None:
    owner = Owner()
    dma = DmaPool(owner, 8 * MIB)
    first, second = dma.allocate(MIB), dma.allocate(2 * MIB)
    first.view[:5], second.view[-5:] = b"first", b"end.."
    with mmap.mmap(owner.file, 16 * MIB) as file:
        for buffer, at in ((first, 0), (second, 2 * MIB - 5)):
            offset = buffer.iova - 0x1000000 + at
            assert file[offset : offset + 5] == buffer.view[at : at + 5]
    with pytest.raises(PoolExhausted):
        dma.allocate(8 * MIB)
    regions = dma.statistics().region_count
    dma.close()
    assert len(owner.taken_back) == regions
    assert sum(length for _, length in owner.taken_back) <= 8 * MIB
    os.close(owner.file)  # it stayed the transport's


def test_regions_are_no_larger_than_what_is_contiguous() -> None:
    owner = Owner()
    owner.largest_dma_bytes = 2 * MIB
    dma = DmaPool(owner, 8 * MIB)
    held = [dma.allocate(2 * MIB) for _ in range(3)]
    dma.close()
    assert [length for _, length in owner.taken_back] == [2 * MIB] * len(held)
    os.close(owner.file)
