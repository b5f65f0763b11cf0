"""`nvmefs list|bind|unbind|doctor` as a user types them, on a machine made of files."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from driver.options import DriverOptions
from driver.pci import binding, records
from driver.tools import cli, devices, doctor
from tests.driver.pci.fake import MIB, FakeMachine, put

BDF = "0000:01:00.0"
OTHER = "0000:02:00.0"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Healthy: an IOMMU, /dev/fuse, no limits."""
    made = FakeMachine(tmp_path / "root")
    made.add_device("0000:00:00.0", code=0x060000, group=0)
    put(made.dev / "fuse")
    put(made.root / "etc/fuse.conf", "# a comment\nuser_allow_other")
    put(made.proc / "self/status", "Name:\tx\nCapEff:\t000001ffffffffff")
    monkeypatch.setattr("driver.tools.devices.Machine", lambda: made)
    monkeypatch.setattr(binding, "BIND_BOUND_S", 0.1)
    monkeypatch.setattr(binding, "SCAN_BOUND_S", 0.1)
    monkeypatch.setattr(doctor, "program", lambda name: f"/usr/bin/{name}")
    return made


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    return (status, *capsys.readouterr())


def answer(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    found, out, _ = run(capsys, *words, "-o", "json")
    assert found == status
    values: dict[str, Any] = json.loads(out)
    assert values.pop("schema_version") == 1
    return values


# --- bind and unbind ------------------------------------------------------------------------------


def test_bind_and_unbind(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add_drive(BDF, serial="S1", group=7)
    node = str(machine.dev / "vfio/7")
    assert answer(capsys, "bind", "S1") == {
        "address": BDF,
        "driver": "vfio-pci",
        "iommu_group": 7,
        "nodes": [node],
        "changed": True,
    }
    assert not answer(capsys, "bind", BDF)["changed"]
    back = answer(capsys, "unbind", BDF)
    assert (back["driver"], back["namespaces"], back["changed"]) == ("nvme", ["nvme0n1"], True)
    assert not answer(capsys, "unbind", BDF)["changed"]


def test_bind_for_a_user(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_drive(BDF)
    owners: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, _gid: owners.append((path.name, uid)))
    values = answer(capsys, "bind", BDF, "--user", "1234")
    assert owners == [("7", 1234)]
    assert values["memlock_line"] == f"1234 - memlock {DriverOptions().dma_bytes >> 10}"


def test_a_refusal_has_a_line_for_each_reason(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.add_drive(BDF, partitions=2)
    machine.mount("nvme0n1p1", "/srv")
    machine.mount("nvme0n1p2", "/home")
    status, out, err = run(capsys, "bind", BDF)
    assert (status, out) == (1, "")
    assert err.splitlines()[0] == f"nvmefs bind: {BDF}: not taken, nothing was changed:"
    assert "  /dev/nvme0n1p1: mounted at /srv (ext4)\n      umount /srv\n" in err
    assert err.splitlines()[-1] == f"at your own risk: nvmefs bind {BDF} --force"
    values = answer(capsys, "bind", BDF, status=1)
    assert [each["cure"] for each in values["findings"]] == ["umount /home", "umount /srv"]
    assert machine.writes == []


@pytest.mark.parametrize("spec", ["01:00.0", "S1"])
def test_force_wants_the_whole_address(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    machine.add_drive(BDF, serial="S1")
    machine.mount("nvme0n1", "/srv")
    status, _, err = run(capsys, "bind", spec, "--force")
    assert status == 1
    assert f"--force wants the address in full, typed by you: {BDF}" in err
    assert machine.writes == []
    assert answer(capsys, "bind", BDF, "--force")["driver"] == "vfio-pci"


@pytest.mark.parametrize("verb", ["bind", "unbind", "doctor"])
@pytest.mark.parametrize("spec", ["/dev/nvme0n1", "0000:09:00.0", "S9"])
def test_what_is_not_there(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str], verb: str, spec: str
) -> None:
    machine.add_drive(BDF)
    status, out, err = run(capsys, verb, spec)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert BDF in err


def test_reset_gives_back_what_a_crash_has_left(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    assert devices.give_back("disk.img") == {}
    binding.bind(drive)
    assert devices.give_back(f"{BDF}/1") == {"driver": "vfio-pci"}
    records.mark_borrowed(drive)
    assert devices.give_back(f"{BDF}/1") == {"driver": "nvme"}


# --- list -----------------------------------------------------------------------------------------


def test_list(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add_drive(BDF, serial="S1", partitions=1, group=7)
    machine.mount("nvme0n1p1", "/srv")
    machine.add_drive(OTHER, serial="S2", group=8)
    assert cli.main(["bind", OTHER]) == 0
    capsys.readouterr()
    machine.open_in(55, "nvmefs", "/dev/vfio/8")
    machine.mounts.append(f"41 1 0:50 / /mnt rw - fuse.nvmefs {OTHER}/1 rw")
    put(machine.proc / "self/mountinfo", "\n".join(machine.mounts))
    first, second = answer(capsys, "list")["controllers"]
    assert (first["address"], first["driver"], first["serial"]) == (BDF, "nvme", "S1")
    assert (first["size_bytes"], first["known_from"]) == (64 * MIB, "kernel")
    assert first["in_use"] == ["/dev/nvme0n1p1: mounted at /srv (ext4); umount /srv"]
    assert (second["driver"], second["serial"], second["known_from"]) == (
        "vfio-pci",
        "S2",
        "record",
    )
    assert second["namespaces"][0]["contents"] == {"nvme1n1": []}
    assert second["held_by"] == [{"pid": 55, "command": "nvmefs"}]
    assert second["mounted_at"] == ["/mnt"]
    status, out, _ = run(capsys, "list")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["ADDRESS", "DRIVER", "GROUP", "MODEL", "SERIAL", "FIRMWARE", "SIZE"]
    assert lines[1].split()[:3] == [BDF, "nvme", "7"]
    assert lines[1].endswith("QEMU NVMe Ctrl  S1      7.2.22    67.1 MB")
    assert "  held by nvmefs (pid 55)" in lines
    assert "  mounted at /mnt" in lines
    assert "  namespace 1, was nvme1n1: nothing recognised" in lines


def test_list_of_one_nobody_knows(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    """Bound by other means than ours: nothing is opened to find out."""
    machine.add_drive(BDF, driver="vfio-pci")
    (only,) = answer(capsys, "list")["controllers"]
    assert (only["known_from"], only["model"], only["namespaces"]) == ("", "", [])
    assert run(capsys, "list")[1].splitlines()[1].split() == [BDF, "vfio-pci", "7", *"----"]


def test_list_of_nothing(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == (0, "none\n", "")


# --- doctor ---------------------------------------------------------------------------------------


def checks(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> dict[str, list[Any]]:
    """status, what and cure of each check, by its name."""
    values = answer(capsys, "doctor", *words, status=status)
    assert values["failed"] is bool(status)
    found: dict[str, list[Any]] = {}
    for each in values["checks"]:
        assert (each["status"] == "ok") <= (each["cure"] == "")
        found.setdefault(each["check"], []).append((each["status"], each["what"], each["cure"]))
    return found


def test_a_healthy_machine(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add_drive(BDF)
    machine.add_drive(OTHER, driver="vfio-pci", group=8)
    found = checks(capsys, status=0)
    assert {each[0] for several in found.values() for each in several} == {"ok"}
    assert found[BDF][0][1] == f"free; take it with: nvmefs bind {BDF}"
    assert found[OTHER][0][1] == "ready on vfio-pci"
    assert OTHER not in checks(capsys, BDF, status=0)


def test_what_fails_comes_first(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add_drive(BDF)
    (machine.dev / "fuse").unlink()
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert out.splitlines()[:2] == [
        "fails  /dev/fuse: not there",
        "       modprobe fuse (a container: --device /dev/fuse)",
    ]


def test_no_iommu(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.unplug("0000:00:00.0")
    (machine.sys / "kernel/iommu_groups/0/devices").rmdir()
    (machine.sys / "kernel/iommu_groups/0").rmdir()
    machine.add_drive(BDF, group=None)
    found = checks(capsys, status=1)
    assert found["IOMMU"][0][0] == "fails"
    assert "intel_iommu=on" in found["IOMMU"][0][2]
    assert found[BDF][0][0] == "fails"
    put(machine.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    found = checks(capsys, status=0)
    assert found["IOMMU"][0][0] == "note"
    status, what, cure = found["hugepages"][0]
    assert (status, what) == ("note", "0 are free, and a mount without an IOMMU needs 64")
    assert cure.startswith("echo 64 > ")
    put(machine.sys / "kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "64")
    assert checks(capsys, status=0)["hugepages"][0][0] == "ok"


def test_a_group_that_is_not_viable(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.add_device("0000:01:00.1", code=0x0C0330, group=7, driver="xhci_hcd")
    for driver in ("nvme", "vfio-pci"):
        machine.add_drive(BDF, driver=driver, group=7)
        status, what, cure = checks(capsys, status=1)[BDF][0]
        assert status == "fails"
        assert "0000:01:00.1 in its IOMMU group 7: on the driver xhci_hcd" in what
        assert cure.startswith("echo 0000:01:00.1 >")
        machine.unplug(BDF)


def test_use_is_no_failure(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add_drive(BDF)
    machine.mount("nvme0n1", "/srv")
    assert checks(capsys, status=0)[BDF][0][0] == "note"


def test_no_module(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.pci / "drivers/vfio-pci").rmdir()
    monkeypatch.setattr(doctor, "program", lambda name: None if name == "modprobe" else name)
    assert checks(capsys, status=1)["vfio-pci"][0][0] == "fails"
    for name, status in (("true", 0), ("false", 1)):
        monkeypatch.setattr(doctor, "program", lambda _name, name=name: shutil.which(name))
        checks(capsys, status=status)


def test_memlock(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 8 << 20
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    assert checks(capsys, status=0)["memlock"][0][1] == "no limit for you"
    put(machine.proc / "self/status", "Name:\tx\nCapEff:\t0000000000000000")
    _, what, cure = checks(capsys, status=1)["memlock"][0]
    need = DriverOptions().dma_bytes >> 10
    assert what == f"you may lock 8192 KiB, and a controller on PCI needs {need}"
    assert f"memlock {need};" in cure
    limit = DriverOptions().dma_bytes
    checks(capsys, status=0)


@pytest.mark.parametrize(
    ("version", "node", "said"),
    [
        ("6.1.0-9-amd64", False, "older than 6.6"),
        ("6.12.1", False, "no /dev/iommu"),
        ("6.12.1", True, "there"),
    ],
)
def test_iommufd_is_never_a_failure(
    machine: FakeMachine,
    capsys: pytest.CaptureFixture[str],
    version: str,
    node: bool,
    said: str,
) -> None:
    put(machine.proc / "sys/kernel/osrelease", version)
    if node:
        put(machine.dev / "iommu")
    status, what, _ = checks(capsys, status=0)["iommufd"][0]
    assert status == "ok"
    assert said in what


@pytest.mark.parametrize("uid", [0, 1000])
def test_fuse_for_users(
    machine: FakeMachine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
) -> None:
    put(machine.sys / "module/apparmor/parameters/enabled", "Y")
    put(machine.root / "etc/apparmor.d/fusermount3", "profile")
    (machine.root / "etc/fuse.conf").unlink()
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(doctor, "program", lambda name: None if name == "fusermount3" else name)
    found = checks(capsys, status=1 if uid else 0)
    assert found["fusermount3"][0][0] == ("fails" if uid else "note")
    for name in ("fuse.conf", "AppArmor on fusermount3"):
        assert found[name][0][0] == ("note" if uid else "ok")


def test_nodes_of_others(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_drive(BDF, driver="vfio-pci", group=7)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path.name != "7" and real(path, how))
    status, what, cure = checks(capsys, status=1)[BDF][0]
    assert (status, what) == ("fails", f"you may not open {machine.dev / 'vfio/7'}")
    assert cure == f"sudo nvmefs bind {BDF} --user $USER"


def test_no_driver_at_all(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add_drive(BDF, driver="")
    assert checks(capsys, status=1)[BDF] == [("fails", "without a driver", f"nvmefs bind {BDF}")]
