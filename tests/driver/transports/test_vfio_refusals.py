"""Why a device cannot be opened: one line each, with what is wrong and the command that cures it."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.address import parse_address
from driver.errors import AddressError, DeviceBusy, DriverError, TransportError
from driver.options import DriverOptions
from driver.transports.vfio import open_vfio
from tests.driver.pci.fake import FakeMachine, put

from .conftest import BDF, Open, no_iommu, no_iommufd
from .fake_vfio import FakeKernel

MIB = 1 << 20


def refusal(kernel: FakeKernel, address: str = BDF, **options: bool | int) -> str:
    """The one line."""
    chosen = DriverOptions(**{"dma_bytes": 8 * MIB, **options})  # type: ignore[arg-type]
    with pytest.raises(DriverError) as caught:
        open_vfio(parse_address(address), chosen, kernel=kernel)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(parse_address(address).endpoint)
    assert isinstance(caught.value, (AddressError, DeviceBusy, TransportError))
    return text


# ---- the function ----------------------------------------------------------------------------------


def test_no_such_device(kernel: FakeKernel) -> None:
    text = refusal(kernel, "0000:05:00.0")
    assert text.endswith("no such PCI device; NVMe controllers here: 0000:01:00.0")


def test_not_an_nvme_controller(machine: FakeMachine, kernel: FakeKernel) -> None:
    machine.add_device("0000:05:00.0", code=0x030000, group=9)
    assert "not an NVMe controller (PCI class 030000, not 010802)" in refusal(kernel, "05:00.0")


def test_another_driver(machine: FakeMachine, kernel: FakeKernel) -> None:
    machine.detach(BDF)
    assert refusal(kernel).endswith(
        "bound to no driver, not to vfio-pci; give it away with: nvmefs bind 0000:01:00.0"
    )
    machine.attach(BDF, "nvme")
    assert "bound to the driver nvme, not to vfio-pci" in refusal(kernel)


def test_no_module(machine: FakeMachine, kernel: FakeKernel) -> None:
    machine.detach(BDF)
    machine.attach(BDF, "nvme")
    (machine.pci / "drivers/vfio-pci").rmdir()
    assert refusal(kernel).endswith(
        "modprobe vfio-pci (it is not loaded), then nvmefs bind 0000:01:00.0"
    )


def test_no_iommu(machine: FakeMachine, kernel: FakeKernel) -> None:
    (machine.pci / "devices" / BDF / "iommu_group").unlink()
    assert "no IOMMU translates for it" in refusal(kernel)
    assert "intel_iommu=on" in refusal(kernel)


def test_no_iommu_by_option(
    machine: FakeMachine, kernel: FakeKernel, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    no_iommu(machine, allowed="N")
    assert "only the unsafe option noiommu is left" in refusal(kernel)
    assert "enable_unsafe_noiommu_mode=1" in refusal(kernel, noiommu=True)
    no_iommu(machine)
    assert opened(noiommu=True).way == "noiommu"
    assert "nothing keeps the controller from reading and writing any memory" in caplog.text


def test_the_option_has_no_effect_with_an_iommu(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    assert opened(noiommu=True).way == "iommufd"
    assert "so it is used: noiommu has no effect" in caplog.text


# ---- nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "node"),
    [
        ("iommufd", "dev/iommu"),
        ("iommufd", "dev/vfio/devices/vfio0"),
        ("group", "dev/vfio/vfio"),
        ("group", "dev/vfio/7"),
    ],
    indirect=["way"],
)
def test_no_permission(
    way: str, node: str, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kernel.machine.root / node
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
    kernel.forbidden = {path, kernel.machine.dev / "vfio/7"}
    kernel.open_fails = {path.name: errno.EACCES}
    assert refusal(kernel).endswith(
        f"cannot open {path}: Permission denied; as root: chown nobody {path}"
    )


def test_no_capability(machine: FakeMachine, kernel: FakeKernel) -> None:
    no_iommufd(machine)
    no_iommu(machine)
    kernel.open_fails = {"noiommu-7": errno.EPERM}
    assert "a process with CAP_SYS_RAWIO may" in refusal(kernel, noiommu=True)


def test_no_node(machine: FakeMachine, kernel: FakeKernel) -> None:
    no_iommufd(machine)
    (machine.dev / "vfio/7").unlink()
    assert "vfio/7: No such file or directory; load VFIO: modprobe vfio-pci" in refusal(kernel)


@pytest.fixture
def holder(kernel: FakeKernel, node: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has a node of the device open."""
    nodes = [kernel.machine.dev / node]
    code = "import sys; files = [open(n) for n in sys.argv[1:]]; print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *nodes], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdin
    process.stdout.readline()
    yield process
    process.communicate(b"\n", timeout=20)


@pytest.mark.parametrize("node", ["vfio/7", "vfio/devices/vfio0"])
@pytest.mark.parametrize("reason", [errno.EBUSY, errno.EINVAL, errno.EPERM])
def test_a_device_in_use(reason: int, kernel: FakeKernel, holder: subprocess.Popen[bytes]) -> None:
    kernel.fails = {"DEVICE_BIND_IOMMUFD": reason}
    assert f"is in use by process {holder.pid} (python" in refusal(kernel)


@pytest.mark.parametrize("node", ["vfio/7"])
def test_a_group_in_use(kernel: FakeKernel, holder: subprocess.Popen[bytes]) -> None:
    no_iommufd(kernel.machine)
    kernel.open_fails = {"7": errno.EBUSY}
    assert f"vfio/7 is in use by process {holder.pid} (python" in refusal(kernel)


def test_in_use_by_nobody_that_can_be_seen(kernel: FakeKernel) -> None:
    kernel.fails = {"DEVICE_BIND_IOMMUFD": errno.EBUSY}
    assert "in use by a process that cannot be seen from here" in refusal(kernel)
    kernel.fails = {"DEVICE_BIND_IOMMUFD": errno.EINVAL}
    assert "cannot bind it to an iommufd: Invalid argument" in refusal(kernel)


def test_in_use_by_ourselves(kernel: FakeKernel) -> None:
    no_iommufd(kernel.machine)
    kernel.open_fails = {"7": errno.EBUSY}
    with open(kernel.machine.dev / "vfio/7"):
        assert "in use by this process itself" in refusal(kernel)


# ---- the kernel's refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["iommufd", "group"], indirect=True)
def test_a_group_that_is_not_viable(way: str, machine: FakeMachine, kernel: FakeKernel) -> None:
    kernel.viable = False
    kernel.fails = {"DEVICE_BIND_IOMMUFD": errno.EPERM}
    machine.add_device("0000:01:00.1", code=0x0C0330, group=7, driver="xhci_hcd")
    machine.add_device("0000:00:1c.0", code=0x060400, group=7, driver="pcieport")
    text = refusal(kernel)
    assert "IOMMU group 7 is not viable" in text
    assert "still uses 0000:01:00.1 (driver xhci_hcd); unbind" in text
    assert "1c.0" not in text


@pytest.mark.parametrize(
    ("way", "request_name", "reason", "words"),
    [
        ("iommufd", "DEVICE_ATTACH_IOMMUFD_PT", errno.EPERM, "iommufd/parameters/allow_unsafe"),
        ("group", "SET_IOMMU", errno.EPERM, "vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
        ("iommufd", "IOAS_ALLOC", errno.ENOTTY, f"kernel ({os.uname().release}) is too old for it"),
        ("iommufd", "DEVICE_GET_INFO", errno.ENOTTY, "is too old for it"),
        ("group", "GROUP_GET_DEVICE_FD", errno.EBUSY, "the device is open already"),
        ("group", "GROUP_GET_DEVICE_FD", errno.ENODEV, "cannot open the device: No such device"),
    ],
    indirect=["way"],
)
def test_refused_requests(
    way: str, request_name: str, reason: int, words: str, kernel: FakeKernel
) -> None:
    kernel.fails = {request_name: reason}
    assert words in refusal(kernel)


@pytest.mark.parametrize("way", ["group"], indirect=True)
def test_another_vfio(way: str, kernel: FakeKernel) -> None:
    kernel.version = 7
    assert "speaks version 7 of VFIO, 0 is needed" in refusal(kernel)
    kernel.version, kernel.extensions = 0, set()
    assert "does not offer a type1 (v2) IOMMU: modprobe vfio_iommu_type1" in refusal(kernel)


def test_a_bar_that_is_too_small(kernel: FakeKernel) -> None:
    kernel.bar_bytes = 0x1000
    assert "BAR 0 has 4096 bytes: an NVMe controller has at least" in refusal(kernel)


# ---- RLIMIT_MEMLOCK --------------------------------------------------------------------------------


@pytest.fixture
def memlock(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = (6 * MIB, 6 * MIB)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limit)


def capable(machine: FakeMachine, locked_kib: int, capabilities: int) -> None:
    put(machine.proc / "self/status", f"VmLck:\t{locked_kib} kB\nCapEff:\t{capabilities:016x}")


@pytest.mark.usefixtures("memlock")
@pytest.mark.parametrize("way", ["iommufd", "group"], indirect=True)
def test_memlock_too_low(way: str, machine: FakeMachine, kernel: FakeKernel, opened: Open) -> None:
    text = refusal(kernel, dma_bytes=8 * MIB)
    assert "DMA memory needs 8192 KiB of locked memory, 6144 KiB are allowed" in text
    for cure in ("ulimit -l 8192", "limits.conf", "LimitMEMLOCK=8192K"):
        assert cure in text
    assert "MAP" not in " ".join(kernel.calls), "found before anything was mapped"
    opened(dma_bytes=6 * MIB)
    capable(machine, 1024, 0)
    assert "needs 7168 KiB" in refusal(kernel, dma_bytes=6 * MIB)
    capable(machine, 1024, 1 << 14)
    assert opened(dma_bytes=8 * MIB).way == way, "CAP_IPC_LOCK has no limit"


@pytest.mark.usefixtures("memlock")
@pytest.mark.parametrize("way", ["iommufd", "group"], indirect=True)
def test_memlock_is_looked_at_for_each_region(way: str, kernel: FakeKernel, opened: Open) -> None:
    transport = opened(dma_bytes=6 * MIB)
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * MIB)
    transport.map(fd, 0, 4 * MIB, 0x400000)
    with pytest.raises(TransportError, match=r"needs 8192 KiB .* 6144 KiB are allowed"):
        transport.map(fd, 0, 4 * MIB, 0x800000)
    kernel.fails = {"IOMMU_MAP_DMA": errno.ENOMEM, "IOAS_MAP": errno.ENOMEM}
    with pytest.raises(TransportError, match=r"ulimit -l 6144"):  # others of this user
        transport.map(fd, 0, 2 * MIB, 0x800000)
    os.close(fd)


# ---- without an IOMMU ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["noiommu"], indirect=True)
def test_physical_memory_is_given_in_one_piece(way: str, kernel: FakeKernel, opened: Open) -> None:
    page = 2 * MIB
    kernel.pages = [20 * page, 21 * page, 3 * page, 22 * page]
    transport = opened(noiommu=True, dma_bytes=8 * MIB)
    assert way == "noiommu"
    assert transport.largest_dma_bytes == 2 * page  # type: ignore[attr-defined]
    fd, offset, address = transport.allocate_dma(page)  # type: ignore[attr-defined]
    assert (offset, address) == (2 * page, 3 * page), "the smallest run that fits"
    assert transport.allocate_dma(2 * page)[1:] == (0, 20 * page)  # type: ignore[attr-defined]
    with pytest.raises(TransportError, match="no 4 MiB of contiguous physical memory"):
        transport.allocate_dma(2 * page)  # type: ignore[attr-defined]
    with pytest.raises(TransportError, match="no region of 4194304 bytes"):
        transport.unmap(3 * page, 2 * page)
    transport.unmap(20 * page, 2 * page)
    assert transport.allocate_dma(4096)[2] == 22 * page  # type: ignore[attr-defined]
    with pytest.raises(TransportError, match="cannot be mapped without an IOMMU"):
        transport.map(fd, 0, page, 0)


@pytest.mark.parametrize("way", ["noiommu"], indirect=True)
def test_physical_addresses_are_roots_to_know(way: str, kernel: FakeKernel) -> None:
    kernel.pages = [1 << 30, 0, 0, 0]
    assert "pagemap does not tell physical addresses" in refusal(kernel, noiommu=True)


@pytest.mark.parametrize("way", ["noiommu"], indirect=True)
def test_no_huge_pages(
    way: str, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none_left(_nbytes: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(kernel, "huge_memory", none_left)
    text = refusal(kernel, noiommu=True, dma_bytes=16 * MIB)
    assert "no 16 MiB of huge pages" in text
    assert "echo 8 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in text
