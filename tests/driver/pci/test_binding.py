"""driver.pci.binding: what is written where and when, and that a failure puts the kernel's driver back."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from driver.errors import AddressError, ControllerGone, DeviceBusy, TransportError
from driver.pci import binding, records, usage
from driver.pci.binding import InUse, bind, give, unbind
from driver.pci.sysfs import PciFunction
from driver.pci.usage import Finding
from tests.driver.pci.fake import FakeMachine, put

BDF = "0000:01:00.0"
DEVICE = f"bus/pci/devices/{BDF}"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "BIND_BOUND_S", 0.1)
    monkeypatch.setattr(binding, "SCAN_BOUND_S", 0.1)


def test_bind(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    assert bind(drive)
    assert machine.writes == [
        (f"{DEVICE}/driver_override", "vfio-pci\n"),
        (f"{DEVICE}/driver/unbind", BDF),
        ("bus/pci/drivers_probe", BDF),
    ]
    assert drive.driver == "vfio-pci"
    assert machine.modules == []


def test_bind_again_changes_nothing(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci")
    assert not bind(drive)
    assert machine.writes == []


def test_bind_what_has_no_driver(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="")
    assert bind(drive)
    assert [path for path, _ in machine.writes] == [
        f"{DEVICE}/driver_override",
        "bus/pci/drivers_probe",
    ]


def test_the_module_is_loaded(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    (machine.pci / "drivers/vfio-pci").rmdir()
    bind(drive)
    assert machine.modules == ["vfio-pci"]


def test_no_module(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    (machine.pci / "drivers/vfio-pci").rmdir()
    machine.loadable.clear()
    with pytest.raises(TransportError, match="module vfio-pci cannot be loaded"):
        bind(drive)
    assert machine.writes == []


def test_what_is_in_use_is_not_touched(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    machine.mount("nvme0n1p1", "/srv")
    with pytest.raises(InUse) as caught:
        bind(drive)
    assert machine.writes == []
    assert [finding.cure for finding in caught.value.findings] == ["umount /srv"]
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(f"nvmefs bind {BDF} --force")


def test_force(machine: FakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    drive = machine.add_drive(BDF)
    machine.mount("nvme0n1", "/srv")
    assert bind(drive, force=True)
    assert "forced: /dev/nvme0n1: mounted at /srv" in caplog.text


def descriptors(machine: FakeMachine) -> list[str]:
    """The block devices of the machine that this process has open."""
    links = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    targets = [os.readlink(each) for each in links if each.is_symlink()]
    return sorted(Path(each).name for each in targets if each.startswith(f"{machine.dev}/nvme"))


def test_nobody_mounts_it_meanwhile(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is claimed when the kernel is told to let go, and nothing is when it is to come back."""
    drive = machine.add_drive(BDF, namespaces=2)
    machine.refusing.add("vfio-pci")
    claims: list[tuple[str, list[str]]] = []

    def attach(bdf: str, driver: str) -> None:
        claims.append((driver, descriptors(machine)))
        FakeMachine.attach(machine, bdf, driver)

    def detach(bdf: str) -> None:
        claims.append(("", descriptors(machine)))
        FakeMachine.detach(machine, bdf)

    monkeypatch.setattr(machine, "attach", attach)
    monkeypatch.setattr(machine, "detach", detach)
    with pytest.raises(TransportError, match="not bound"):
        bind(drive)
    assert claims == [("", ["nvme0n1", "nvme0n2"]), ("nvme", [])]
    machine.refusing.clear()
    assert bind(drive)
    assert descriptors(machine) == []


@pytest.mark.parametrize("shown", [True, False])
def test_somebody_mounts_it_after_the_look(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    drive = machine.add_drive(BDF, namespaces=2)

    def look_first(function: PciFunction) -> list[Finding]:
        found = usage.in_use(function)
        if not machine.exclusive:
            machine.exclusive.add("nvme0n2")
            if shown:
                machine.mount("nvme0n2", "/srv")
            return found
        return found if shown else []

    monkeypatch.setattr(binding, "in_use", look_first)
    words = "mounted at /srv" if shown else "nvme0n2: something has taken it just now"
    with pytest.raises(InUse, match=words):
        bind(drive)
    assert machine.writes == []
    assert descriptors(machine) == []


@pytest.mark.parametrize("driver", ["nvme", ""])
def test_refused_by_vfio(machine: FakeMachine, driver: str) -> None:
    drive = machine.add_drive(BDF, driver=driver)
    machine.refusing.add("vfio-pci")
    with pytest.raises(TransportError, match=r"vfio-pci has not taken it .*not bound"):
        bind(drive)
    assert (drive.driver, drive.driver_override, drive.state) == ("nvme", "", "live")
    assert records.recall(drive) is None


def test_a_driver_that_does_not_let_go(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    machine.stuck.add("nvme")
    with pytest.raises(TransportError, match="not bound"):
        bind(drive)
    assert (drive.driver, drive.driver_override) == ("nvme", "")


def test_nodes_that_do_not_come(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = machine.add_drive(BDF)
    monkeypatch.setattr(machine, "_make_vfio_nodes", lambda _bdf: None)
    with pytest.raises(TransportError, match=r"no node of it is in /dev/vfio"):
        bind(drive)
    assert drive.driver == "nvme"


def test_pulled_out_midway(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = machine.add_drive(BDF)

    def after_write(path: Path, text: str) -> None:
        if path.name == "unbind":
            machine.unplug(BDF)

    monkeypatch.setattr(machine, "after_write", after_write)
    with pytest.raises(ControllerGone):
        bind(drive)


def test_pulled_out_while_given_back(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci")

    def after_write(path: Path, text: str) -> None:
        if path.name == "drivers_probe":
            machine.unplug(BDF)

    monkeypatch.setattr(machine, "after_write", after_write)
    with pytest.raises(ControllerGone):
        unbind(drive)


# --- back -----------------------------------------------------------------------------------------


def test_unbind(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    bind(drive)
    machine.writes.clear()
    assert unbind(drive)
    assert machine.writes == [
        (f"{DEVICE}/driver_override", "nvme\n"),
        (f"{DEVICE}/driver/unbind", BDF),
        ("bus/pci/drivers_probe", BDF),
        (f"{DEVICE}/driver_override", "\n"),
    ]
    assert (drive.driver, drive.state) == ("nvme", "live")
    assert [namespace.name for namespace in drive.namespaces()] == ["nvme0n1"]


def test_unbind_what_vfio_would_take_again(machine: FakeMachine) -> None:
    """`new_id` of vfio-pci names this model: without an override it would win."""
    drive = machine.add_drive(BDF, driver="vfio-pci")
    machine.default_driver = "vfio-pci"
    assert unbind(drive)
    assert drive.driver == "nvme"


def test_unbind_again_changes_nothing(machine: FakeMachine) -> None:
    assert not unbind(machine.add_drive(BDF))
    assert machine.writes == []


def test_unbind_while_open(machine: FakeMachine) -> None:
    """The kernel would sleep in it until the program ends."""
    drive = machine.add_drive(BDF, driver="vfio-pci")
    machine.open_in(55, "nvmefs", "/dev/vfio/7")
    with pytest.raises(DeviceBusy, match=r"open in nvmefs \(pid 55\); end it first"):
        unbind(drive)
    put(machine.proc / "self/mountinfo", f"40 1 0:50 / /mnt rw - fuse.nvmefs {BDF}/1 rw")
    with pytest.raises(DeviceBusy, match="umount /mnt"):
        unbind(drive)
    assert machine.writes == []


def test_unbind_loads_the_kernels_driver(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci")
    (machine.pci / "drivers/nvme").rmdir()
    unbind(drive)
    assert machine.modules == ["nvme"]


def test_the_kernel_does_not_bring_it_up(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci")
    machine.refusing.add("nvme")
    with pytest.raises(TransportError, match=r"not brought it up .*driver none, state none"):
        unbind(drive)
    assert drive.driver_override == ""


def test_no_namespace_comes(machine: FakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    drive = machine.add_drive(BDF, driver="vfio-pci", namespaces=0)
    assert unbind(drive)
    assert "shows no namespace" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_only_root(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    (drive.path / "driver_override").chmod(0o444)
    with pytest.raises(TransportError, match=f"sudo nvmefs bind {BDF}"):
        bind(drive)


# --- records and gifts ----------------------------------------------------------------------------


def test_a_record_lasts_as_long_as_the_device(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, serial="S9")
    bind(drive)
    record = records.recall(drive)
    assert record is not None
    assert (record["serial"], record["namespaces"][0]["name"]) == ("S9", "nvme0n1")
    unbind(drive)
    assert records.recall(drive) is None


def test_a_record_is_not_taken_for_the_successors(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    bind(drive)
    drive.path.rename(drive.path.with_name("kept"))  # its inode number stays taken
    machine.add_device(BDF)
    assert records.recall(drive) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"inode": 1}'])
def test_a_broken_record_is_none(machine: FakeMachine, text: str) -> None:
    drive = machine.add_drive(BDF)
    put(machine.run / f"nvmefs/pci/{BDF}.json", text)
    assert records.recall(drive) is None


def test_give(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.cdev = True
    put(machine.dev / "iommu")
    drive = machine.add_drive(BDF, driver="vfio-pci")
    owners: dict[str, int] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, _gid: owners.update({path.name: uid}))
    me = pwd.getpwuid(os.getuid())
    for user in (me.pw_name, str(me.pw_uid)):
        owners.clear()
        given = give(drive, user)
        assert [node.name for node in given] == ["vfio0", "7", "iommu"]
        assert owners == dict.fromkeys(["vfio0", "7", "iommu"], me.pw_uid)


def test_give_to_nobody_known(machine: FakeMachine) -> None:
    with pytest.raises(AddressError, match="no-such-user: no such user"):
        give(machine.add_drive(BDF, driver="vfio-pci"), "no-such-user")
