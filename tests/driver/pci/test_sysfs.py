"""driver.pci.sysfs on trees of files: what is there, by which name, and what keeps a group back."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver.errors import ControllerGone
from driver.pci.sysfs import Machine
from tests.driver.pci.fake import MIB, FakeMachine, put

BDF = "0000:01:00.0"


def test_functions_are_the_nvme_controllers(machine: FakeMachine) -> None:
    machine.add_device("0000:00:1f.2", code=0x010601)
    machine.add_device("0000:00:1e.0", code=0x010802)
    machine.add_drive(BDF)
    assert [function.bdf for function in machine.functions()] == ["0000:00:1e.0", BDF]


def test_no_sysfs_at_all(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.functions() == []
    assert not machine.has_iommu()


def test_a_drive_of_the_kernels(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=12, namespaces=2)
    assert (drive.driver, drive.driver_override) == ("nvme", "")
    assert (drive.vendor, drive.device, drive.numa_node) == (0x1B36, 0x10, -1)
    assert (drive.model, drive.serial, drive.firmware) == ("QEMU NVMe Ctrl", "S1", "7.2.22")
    assert drive.controller_name == "nvme0"
    first, second = drive.namespaces()
    assert (first.name, first.nsid, first.size_bytes) == ("nvme0n1", 1, 64 * MIB)
    assert first.partitions == tuple(f"nvme0n1p{number}" for number in range(1, 13))
    assert (second.name, second.nsid) == ("nvme0n2", 2)
    assert drive.vfio_nodes() == []


def test_a_multipath_drive_shows_its_head(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, multipath=True)
    assert [each.name for each in drive.namespaces()] == ["nvme0n1"]


def test_a_drive_on_vfio(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci", group=7)
    assert (drive.driver, drive.model, drive.namespaces()) == ("vfio-pci", "", [])
    assert drive.vfio_cdev() is None
    assert drive.vfio_nodes() == [machine.dev / "vfio/7"]


def test_a_drive_on_vfio_with_a_cdev(machine: FakeMachine) -> None:
    machine.cdev = True
    drive = machine.add_drive(BDF, driver="vfio-pci", group=7)
    assert drive.vfio_nodes() == [machine.dev / "vfio/devices/vfio0", machine.dev / "vfio/7"]


def test_a_driverless_drive(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="")
    assert (drive.driver, drive.controller_name, drive.namespaces()) == ("", "", [])


@pytest.mark.parametrize(
    ("code", "driver", "viable"),
    [
        (0x0C0330, "xhci_hcd", False),
        (0x0C0330, "", True),
        (0x0C0330, "pci-stub", True),
        (0x0C0330, "vfio-pci", True),
        (0x020000, "mlx5_vfio_pci", True),
        (0x060400, "pcieport", True),
        (0x060400, "shpchp", True),
        (0x010802, "nvme", False),
    ],
)
def test_viability(machine: FakeMachine, code: int, driver: str, viable: bool) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci", group=7)
    machine.add_device("0000:01:00.1", code=code, group=7, driver=driver)
    group = drive.iommu_group()
    assert group is not None
    assert [member.bdf for member in group.members] == [BDF, "0000:01:00.1"]
    assert group.viable is viable
    assert [member.driver for member in group.blockers()] == ([] if viable else [driver])


def test_no_iommu(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, group=None)
    assert drive.iommu_group() is None
    assert not machine.has_iommu()


def test_noiommu_group_is_no_iommu(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="", group=0)
    put(machine.sys / "kernel/iommu_groups/0/name", "vfio-noiommu")
    machine.attach(BDF, "vfio-pci")
    group = drive.iommu_group()
    assert group is not None
    assert group.noiommu
    assert not machine.has_iommu()
    assert drive.vfio_nodes() == [machine.dev / "vfio/noiommu-0"]


# --- going ------------------------------------------------------------------------------------


def test_pulled_out(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    machine.unplug(BDF)
    with pytest.raises(ControllerGone, match=r"0000:01:00\.0: gone from the PCI bus"):
        _ = drive.driver
    assert machine.functions() == []


def test_kernel_version(machine: FakeMachine) -> None:
    assert machine.kernel_version() == (6, 12)
