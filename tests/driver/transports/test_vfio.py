"""The VFIO transport on a fake kernel: ways to the device, registers, interrupts, memory, loss."""

from __future__ import annotations

import errno
import mmap
import os
import select
import termios

import pytest
import trio

from driver._core import ffi
from driver.address import parse_address
from driver.bringup import Hardware
from driver.errors import AddressError, ControllerGone, TransportError
from driver.options import DriverOptions
from driver.transports import LossNotifier, MemoryOwner
from driver.transports import vfio_abi as abi
from driver.transports.open import open_transport
from driver.transports.vfio import VfioTransport
from driver.transports.vfio_kernel import Kernel
from tests.driver.pci.fake import FakeMachine, put

from .conftest import BDF, Open, descriptors, no_iommufd
from .fake_vfio import ERR, MSI, MSIX, REQ, FakeKernel

MIB = 1 << 20
BOUND_S = 10.0
ONES = 0xFFFFFFFF


def lost(transport: VfioTransport) -> bool:
    return bool(select.select([transport.lost_fd], [], [], BOUND_S)[0])


def memory(nbytes: int) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, nbytes)
    return fd


# ---- ways ----------------------------------------------------------------------------------------


def test_iommufd_is_preferred(kernel: FakeKernel, opened: Open) -> None:
    transport = opened()
    assert transport.way == "iommufd"
    assert kernel.calls[:4] == [
        "DEVICE_BIND_IOMMUFD",
        "IOAS_ALLOC",
        "DEVICE_ATTACH_IOMMUFD_PT",
        "IOAS_IOVA_RANGES",
    ]
    assert not isinstance(transport, MemoryOwner)
    assert isinstance(transport, LossNotifier)


def test_the_group_where_there_is_no_iommufd(
    machine: FakeMachine, kernel: FakeKernel, opened: Open
) -> None:
    no_iommufd(machine)
    assert opened().way == "group"
    assert kernel.calls[:7] == [
        "GET_API_VERSION",
        "GROUP_GET_STATUS",
        "CHECK_EXTENSION",
        "GROUP_SET_CONTAINER",
        "SET_IOMMU",
        "GROUP_GET_DEVICE_FD",
        "IOMMU_GET_INFO",
    ]


def test_the_group_where_only_its_nodes_were_given_away(
    machine: FakeMachine, kernel: FakeKernel, opened: Open
) -> None:
    kernel.forbidden = {machine.dev / "iommu"}
    assert opened().way == "group"


def test_every_way_ends_at_the_same_device(way: str, kernel: FakeKernel, opened: Open) -> None:
    transport = opened(noiommu=way == "noiommu")
    assert transport.way == way
    assert kernel.command == 0x0416, "memory, bus master, no INTx; what was set stays"
    assert transport.read32(8) == 0x10400
    assert transport.iova_ranges[-1][1] == (1 << 48) - 1
    transport.write32(0x14, 0x460001)
    assert kernel.registers(0x14, 4) == 0x460001
    transport.close()
    transport.close()
    for call in (lambda: transport.read32(8), lambda: transport.write32(0x14, 0)):
        with pytest.raises(ControllerGone, match="is closed"):
            call()
    assert kernel.registers(0x14, 4) == 0x460001


def test_a_refused_request_leaves_nothing_open(way: str, kernel: FakeKernel, opened: Open) -> None:
    """The fixture looks for descriptors that stay; each request of a good opening fails once."""
    opened(noiommu=way == "noiommu").close()
    requests = dict.fromkeys(kernel.calls)
    assert len(requests) > 5
    for request in requests:
        kernel.fails = {request: errno.EIO}
        with pytest.raises(TransportError, match=r"^0000:01:00.0: .*Input/output error"):
            opened(noiommu=way == "noiommu")
    kernel.fails = {}
    opened(noiommu=way == "noiommu")


def test_the_group_where_the_devices_node_is_missing(
    machine: FakeMachine, kernel: FakeKernel, opened: Open
) -> None:
    (machine.dev / "vfio/devices/vfio0").unlink()
    assert opened().way == "group"


def test_more_ranges_than_there_is_room_for(kernel: FakeKernel, opened: Open) -> None:
    kernel.ranges = [(i << 24, (i << 24) + 0xFFFFF) for i in range(200)]
    assert list(opened().iova_ranges) == kernel.ranges
    assert kernel.calls.count("IOAS_IOVA_RANGES") == 2


# ---- registers -----------------------------------------------------------------------------------


def test_registers_have_their_width(kernel: FakeKernel, opened: Open) -> None:
    transport = opened()
    kernel.set_register(0, 0x1122334455667788, 8)
    assert transport.read64(0) == 0x1122334455667788
    transport.write64(0x28, 0xAABBCCDD00112233)
    assert kernel.registers(0x28, 8) == 0xAABBCCDD00112233
    for offset in (2, -4, 0x4000, 0x3FFE):
        with pytest.raises(TransportError, match="BAR 0 has no register"):
            transport.read32(offset)
    with pytest.raises(TransportError, match="BAR 0 has no register"):
        transport.read64(0x3FFC)


@pytest.mark.parametrize(
    ("areas", "flags", "doorbells"),
    [
        ([(0x1000, 0x1000)], 0xF, 0x1000),
        ([(0, 0x2000), (0x3000, 0x1000)], 0xF, 0x1000),
        ([(0x1000, 0x3000)], 0xF, 0x3000),
        ([(0x1000, 0x800)], 0xF, 0),  # less than a page
        ([(0, 0x1000)], 0xF, 0),
        ([], 0xF, 0),
        (None, 0x3, 0),
    ],
)
def test_what_cannot_be_mapped_is_read_and_written(
    kernel: FakeKernel,
    opened: Open,
    areas: list[tuple[int, int]] | None,
    flags: int,
    doorbells: int,
) -> None:
    kernel.bar_areas, kernel.bar_flags = areas, flags
    transport = opened()
    assert (transport.doorbells.length if transport.doorbells else 0) == doorbells
    for offset in (0x28, 0x1010, 0x2008, 0x3FF8):
        transport.write32(offset, 0x01020304 + offset)
        assert kernel.registers(offset, 4) == 0x01020304 + offset == transport.read32(offset)
        transport.write64(offset, 0x0102030405060708)
        assert kernel.registers(offset, 8) == 0x0102030405060708 == transport.read64(offset)


def test_all_ones_is_a_lost_controller_or_a_register(kernel: FakeKernel, opened: Open) -> None:
    transport = opened()
    kernel.set_register(0x0C, ONES)
    assert transport.read32(0x0C) == ONES, "an interrupt mask may have all bits"
    for offset in range(0, 0x40, 4):
        kernel.set_register(offset, ONES)
    with pytest.raises(ControllerGone, match="all-ones"):
        transport.read32(0x1C)
    with pytest.raises(ControllerGone, match="all-ones"):
        transport.read64(0)


def test_a_device_that_does_not_answer_is_not_opened(kernel: FakeKernel, opened: Open) -> None:
    kernel.set_register((7 << 40) + 4, 0xFFFF, 2)
    with pytest.raises(TransportError, match="command register reads 0xffff"):
        opened()


# ---- interrupts ----------------------------------------------------------------------------------


def test_vectors_are_those_that_are_granted(kernel: FakeKernel, opened: Open) -> None:
    assert opened(io_queues=3).vectors == 4
    assert opened(io_queues=64).vectors == 8
    kernel.granted = 2
    assert opened(io_queues=64).vectors == 2
    kernel.vectors[MSIX] = 0
    assert opened(io_queues=64).vectors == 1, "MSI has one"
    kernel.vectors[MSI] = 0
    transport = opened(io_queues=64)
    assert transport.vectors == 0
    with pytest.raises(TransportError, match="1 of 0 interrupt vectors"):
        transport.enable_interrupts([0])


@pytest.mark.parametrize("index", [MSIX, MSI])
def test_vectors_signal_eventfds(kernel: FakeKernel, opened: Open, index: int) -> None:
    if index == MSI:
        kernel.vectors = {**kernel.vectors, MSIX: 0, MSI: 4}
    transport = opened()
    assert index not in kernel.eventfds
    transport.enable_interrupts([11, 12, 13])
    assert kernel.eventfds[index] == [11, 12, 13]
    transport.enable_interrupts([14])
    assert kernel.eventfds[index] == [14]
    transport.disable_interrupts()
    assert index not in kernel.eventfds
    kernel.granted = 1
    with pytest.raises(TransportError, match="the kernel has 1"):
        transport.enable_interrupts([11, 12])


@pytest.mark.parametrize(
    ("text", "cpus"), [("3", {3}), ("0-1,4\n", {0, 1, 4}), ("", set()), ("all", set())]
)
def test_the_cpus_of_a_vector(
    machine: FakeMachine, opened: Open, text: str, cpus: set[int]
) -> None:
    transport = opened()
    assert transport.vector_cpus(1) == set()
    for number, vector in ((40, 0), (41, 1), (42, 11)):
        put(machine.proc / f"irq/{number}/effective_affinity_list", text if vector == 1 else "7")
        (machine.proc / f"irq/{number}/vfio-msix[{vector}]({BDF})").mkdir()
    assert transport.vector_cpus(1) == cpus


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["iommufd", "group"], indirect=True)
def test_mapped_memory_is_the_files(way: str, kernel: FakeKernel, opened: Open) -> None:
    transport = opened()
    assert transport.way == way
    fd = memory(4 * MIB)
    transport.map(fd, MIB, 2 * MIB, 0x200000)
    address, nbytes = kernel.mappings[0x200000]
    assert nbytes == 2 * MIB
    with mmap.mmap(fd, 4 * MIB) as file:
        file[MIB : MIB + 5] = b"hello"
    with open("/proc/self/mem", "rb", buffering=0) as ours:
        assert os.pread(ours.fileno(), 5, address) == b"hello"
    with pytest.raises(TransportError, match="mapped there already"):
        transport.map(fd, 0, MIB, 0x200000)
    for iova, length in ((0x200000, MIB), (0x300000, MIB)):
        with pytest.raises(TransportError, match="never mapped as one region"):
            transport.unmap(iova, length)
    transport.unmap(0x200000, 2 * MIB)
    assert not kernel.mappings
    os.close(fd)


def test_half_an_unmap_is_an_error(machine: FakeMachine, kernel: FakeKernel, opened: Open) -> None:
    no_iommufd(machine)
    transport = opened()
    fd = memory(MIB)
    transport.map(fd, 0, MIB, 0x100000)
    os.close(fd)
    kernel.unmapped_bytes = 4096
    with pytest.raises(TransportError, match="4096 of 1048576 bytes"):
        transport.unmap(0x100000, MIB)


def test_no_room_for_a_mapping(machine: FakeMachine, kernel: FakeKernel, opened: Open) -> None:
    no_iommufd(machine)
    transport = opened()
    kernel.fails = {"IOMMU_MAP_DMA": errno.ENOSPC}
    fd = memory(MIB)
    with pytest.raises(TransportError, match=r"65535 mappings are allowed.*dma_entry_limit"):
        transport.map(fd, 0, MIB, 0x100000)
    os.close(fd)


# ---- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notice", "words"), [(REQ, "the kernel has taken it back"), (ERR, "cannot be corrected")]
)
def test_a_lost_device_is_given_back_at_once(
    way: str, kernel: FakeKernel, opened: Open, notice: int, words: str
) -> None:
    before = descriptors()
    transport = opened(noiommu=way == "noiommu")
    page = transport.doorbells
    assert page is not None
    kernel.notice(notice)
    assert lost(transport)
    with open("/proc/self/mem", "r+b", buffering=0) as ours:
        assert os.pread(ours.fileno(), 16, page.address) == b"\xff" * 16
        os.pwrite(ours.fileno(), b"\1\2\3\4", page.address)  # a doorbell that comes too late
    assert kernel.registers(0x1000, 4) == 0
    left = descriptors() - before
    assert all("eventfd" in name for _, name in left), f"the kernel waits for {left}"
    fd = memory(MIB)
    for call in (
        lambda: transport.read32(8),
        lambda: transport.read64(0),
        lambda: transport.write32(0x14, 0),
        lambda: transport.write64(0x28, 0),
        lambda: transport.map(fd, 0, MIB, 0x200000),
        lambda: transport.unmap(0x200000, MIB),
        lambda: transport.enable_interrupts([fd]),
        transport.disable_interrupts,
    ):
        with pytest.raises(ControllerGone, match=words):
            call()
    os.close(fd)
    transport.close()
    transport.close()


async def test_the_loss_ends_the_wait_of_a_controller(kernel: FakeKernel, opened: Open) -> None:
    kernel.set_register(0, 0x0000_0020_0F00_00FF, 8)
    transport = opened()
    hardware = Hardware(transport)
    with trio.fail_after(BOUND_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_lost, hardware, transport)
            await trio.testing.wait_all_tasks_blocked()
            kernel.notice(REQ)


async def _until_lost(hardware: Hardware, transport: VfioTransport) -> None:
    with pytest.raises(ControllerGone, match="unplugged"):
        await hardware.watch_loss(transport.lost_fd)


def test_no_notices_where_the_bus_has_none(kernel: FakeKernel, opened: Open) -> None:
    del kernel.vectors[ERR]
    opened()
    assert set(kernel.eventfds) == {REQ}


def test_open_transport_opens_pci_addresses() -> None:
    """Through the one door; there is no such slot anywhere (function 7 of a bus that is empty)."""
    with pytest.raises(AddressError, match="no such PCI device"):
        open_transport(parse_address("ffff:ff:1f.7"), DriverOptions())


# ---- the real kernel, as far as it is here -------------------------------------------------------


def test_calls_reach_the_kernel() -> None:
    kernel = Kernel()
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    waiting = bytearray(4)
    kernel.ioctl(reader, termios.FIONREAD, waiting)
    assert waiting == b"\3\0\0\0", "the kernel writes into it"
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        kernel.ioctl(reader, abi.GET_API_VERSION)
    os.close(reader)
    os.close(writer)


@pytest.mark.skipif(os.geteuid() != 0, reason="physical addresses are for root")
def test_physical_addresses() -> None:
    with mmap.mmap(-1, 4 * mmap.PAGESIZE) as pages:
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(pages)))
        pages[0], pages[mmap.PAGESIZE] = 1, 1
        first, second, untouched = Kernel().physical(
            [start, start + mmap.PAGESIZE, start + 3 * mmap.PAGESIZE]
        )
    assert first
    assert second
    assert first != second
    assert untouched == 0
    assert first % mmap.PAGESIZE == 0
