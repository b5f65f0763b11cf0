"""driver.pci.borrow: what is taken for a mount goes back after it, and nothing else does."""

from __future__ import annotations

import pytest

from driver.errors import DeviceBusy
from driver.pci import binding, records
from driver.pci.binding import InUse, bind
from driver.pci.borrow import borrowed
from tests.driver.pci.fake import FakeMachine

BDF = "0000:01:00.0"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "BIND_BOUND_S", 0.1)


def test_there_and_back(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    with borrowed(BDF, machine):
        assert drive.driver == "vfio-pci"
    assert (drive.driver, records.recall(drive)) == ("nvme", None)


def test_back_when_what_it_was_for_fails(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    with pytest.raises(ZeroDivisionError), borrowed(BDF, machine):
        raise ZeroDivisionError
    assert drive.driver == "nvme"


def test_what_is_in_use_is_not_borrowed(machine: FakeMachine) -> None:
    machine.add_drive(BDF)
    machine.mount("nvme0n1", "/srv")
    with pytest.raises(InUse), borrowed(BDF, machine):
        pytest.fail("borrowed")
    assert machine.writes == []


def test_what_an_administrator_bound_stays(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    bind(drive)
    with borrowed(BDF, machine):
        pass
    assert drive.driver == "vfio-pci"


def test_after_a_crash_the_next_one_gives_it_back(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    crashed = borrowed(BDF, machine)
    crashed.__enter__()
    with borrowed(BDF, machine):
        assert drive.driver == "vfio-pci"
    assert drive.driver == "nvme"


def test_unless_it_is_to_stay_by_then(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    crashed = borrowed(BDF, machine)
    crashed.__enter__()
    records.keep(drive)
    with borrowed(BDF, machine):
        pass
    assert drive.driver == "vfio-pci"


def test_still_open_at_the_end(machine: FakeMachine) -> None:
    machine.add_drive(BDF, group=7)
    with pytest.raises(DeviceBusy, match=r"open in qemu \(pid 9\)"), borrowed(BDF, machine):
        machine.open_in(9, "qemu", "/dev/vfio/7")


def test_pulled_out_meanwhile(machine: FakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    machine.add_drive(BDF)
    with borrowed(BDF, machine):
        machine.unplug(BDF)
    assert "gone from the PCI bus" in caplog.text
