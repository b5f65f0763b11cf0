"""A fake kernel with one drive on vfio-pci; what was opened is closed, whatever a test does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from driver.address import parse_address
from driver.options import DriverOptions
from driver.transports.vfio import VfioTransport, open_vfio
from tests.driver.pci.fake import FakeMachine, put

from .fake_vfio import FakeKernel

BDF = "0000:01:00.0"
Open = Callable[..., VfioTransport]


def descriptors() -> set[tuple[int, str]]:
    """What this process has open: number and file."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    machine = FakeMachine(tmp_path)
    machine.cdev = True
    put(machine.dev / "iommu")
    put(machine.proc / "self/status", "VmLck:\t       0 kB\nCapEff:\t0000000000000000")
    machine.add_drive(BDF, driver="vfio-pci")
    return machine


@pytest.fixture
def kernel(machine: FakeMachine) -> Iterator[FakeKernel]:
    before = descriptors()
    kernel = FakeKernel(machine)
    yield kernel
    kernel.close()
    assert descriptors() <= before, "left open"


@pytest.fixture
def opened(kernel: FakeKernel) -> Iterator[Open]:
    """Opens through the fake kernel; options as of DriverOptions."""
    transports: list[VfioTransport] = []

    def open_one(**options: bool | int) -> VfioTransport:
        chosen = DriverOptions(**{"dma_bytes": 8 << 20, **options})  # type: ignore[arg-type]
        transports.append(open_vfio(parse_address(BDF), chosen, kernel=kernel))
        return transports[-1]

    yield open_one
    for transport in transports:
        transport.close()


@pytest.fixture(params=["iommufd", "group", "noiommu"])
def way(request: pytest.FixtureRequest, machine: FakeMachine) -> str:
    """The machine has only this way to the drive."""
    name = str(request.param)
    if name != "iommufd":
        no_iommufd(machine)
    if name == "noiommu":
        no_iommu(machine)
    return name


def no_iommufd(machine: FakeMachine) -> None:
    """As a kernel older than 6.6, or Debian's."""
    (machine.dev / "iommu").unlink()


def no_iommu(machine: FakeMachine, allowed: str = "Y") -> None:
    """VFIO's own group in place of the IOMMU's."""
    put(machine.sys / "kernel/iommu_groups/7/name", "vfio-noiommu")
    put(machine.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", allowed)
    put(machine.dev / "vfio/noiommu-7")
