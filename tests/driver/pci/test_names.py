"""driver.pci.names: which names are taken for a controller, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver.errors import AddressError
from driver.pci.binding import bind
from driver.pci.names import find, refuse_moving
from driver.pci.sysfs import Machine
from tests.driver.pci.fake import FakeMachine, link

BDF = "0000:01:00.0"


def refusal(machine: Machine, text: str) -> str:
    with pytest.raises(AddressError) as caught:
        find(machine, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", [BDF, "01:00.0", "00000000:01:00.0"])
def test_by_address(machine: FakeMachine, text: str) -> None:
    machine.add_drive(BDF)
    assert find(machine, text).bdf == BDF


def test_by_serial(machine: FakeMachine) -> None:
    machine.add_drive(BDF, serial="S1")
    machine.add_drive("0000:02:00.0", serial="S2")
    assert find(machine, "S2").bdf == "0000:02:00.0"


def test_the_same_serial_twice(machine: FakeMachine) -> None:
    machine.add_drive(BDF, serial="S1")
    machine.add_drive("0000:02:00.0", serial="S1")
    assert "2 controllers have this name: 0000:01:00.0, 0000:02:00.0" in refusal(machine, "S1")


def test_by_id(machine: FakeMachine) -> None:
    machine.add_drive("0000:02:00.0", partitions=1)
    link(machine.dev / "disk/by-id/nvme-QEMU_S1", machine.dev / "nvme0n1")
    link(machine.dev / "disk/by-id/nvme-QEMU_S1-part1", machine.dev / "nvme0n1p1")
    link(machine.dev / "disk/by-id/ata-other", machine.dev / "sda")
    assert find(machine, "/dev/disk/by-id/nvme-QEMU_S1").bdf == "0000:02:00.0"
    assert find(machine, "/dev/disk/by-id/nvme-QEMU_S1-part1").bdf == "0000:02:00.0"
    assert "no address" in refusal(machine, "/dev/disk/by-id/ata-other")
    assert "no address" in refusal(machine, "/dev/disk/by-id/absent")


@pytest.mark.parametrize(
    "text", ["nvme1", "nvme1n1", "/dev/nvme1", "/dev/nvme1n1", "/dev/nvme1n1p1", "/dev/ng1n1"]
)
def test_names_that_move_are_refused_with_the_address(machine: FakeMachine, text: str) -> None:
    machine.add_drive(BDF)
    machine.add_drive("0000:02:00.0", partitions=1)
    assert "give its address, 0000:02:00.0" in refusal(machine, text)


def test_a_moving_name_of_nothing(machine: FakeMachine) -> None:
    machine.add_drive(BDF)
    assert "NVMe controllers here: 0000:01:00.0" in refusal(machine, "/dev/nvme7n1")


@pytest.mark.parametrize("text", ["", "sda", "0000:01:00", "../../etc", "S9"])
def test_what_names_nothing(machine: FakeMachine, text: str) -> None:
    machine.add_drive(BDF, serial="S1")
    assert "NVMe controllers here: 0000:01:00.0" in refusal(machine, text)


def test_another_kind_of_device(machine: FakeMachine) -> None:
    machine.add_device("0000:00:1f.2", code=0x010601)
    assert "not an NVMe controller (PCI class 010601" in refusal(machine, "0000:00:1f.2")


def test_on_vfio_it_is_still_known(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, serial="S1")
    link(machine.dev / "disk/by-id/nvme-QEMU_S1", machine.dev / "nvme0n1")
    bind(drive)
    (machine.dev / "disk/by-id/nvme-QEMU_S1").unlink()
    assert find(machine, "S1").bdf == BDF
    assert find(machine, "/dev/disk/by-id/nvme-QEMU_S1").bdf == BDF


def test_a_file_of_such_a_name_is_a_file(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("disk.img", "./nvme0n1", "/srv/nvme0n1"):
        refuse_moving(machine, path)
    with pytest.raises(AddressError):
        refuse_moving(machine, "nvme0n1")
    Path("nvme0n1").touch()
    refuse_moving(machine, "nvme0n1")
    with pytest.raises(AddressError):
        refuse_moving(machine, "/dev/nvme0n1")
