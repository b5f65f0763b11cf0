"""driver.pci.usage: each way of using a drive is found, named, and comes with what clears it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from driver.pci.kernel import program
from driver.pci.sysfs import PciFunction
from driver.pci.usage import Finding, contents, in_use
from tests.driver.pci.fake import FakeMachine, link, put

BDF = "0000:01:00.0"

needs_blkid = pytest.mark.skipif(program("blkid") is None, reason="no blkid (util-linux)")
pytestmark = needs_blkid


def cures(function: PciFunction) -> list[str]:
    return [finding.cure for finding in in_use(function)]


def only(function: PciFunction) -> Finding:
    found = in_use(function)
    assert len(found) == 1, found
    assert "\n" not in str(found[0])
    return found[0]


def add_volume(machine: FakeMachine, name: str, below: str, title: str, uuid: str) -> None:
    path = machine.add_block(name, holds=below)
    put(path / "dm/name", title)
    put(path / "dm/uuid", uuid)


@pytest.mark.parametrize("driver", ["nvme", "", "vfio-pci"])
def test_a_free_drive(machine: FakeMachine, driver: str) -> None:
    assert in_use(machine.add_drive(BDF, driver=driver, partitions=2)) == []


def test_mounted_partition(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=2)
    machine.mount("nvme0n1p2", "/srv/a\\040b")
    finding = only(drive)
    assert (finding.where, finding.what) == ("/dev/nvme0n1p2", "mounted at /srv/a b (ext4)")
    assert finding.cure == "umount '/srv/a b'"


def test_mounts_come_off_in_order(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    machine.mount("nvme0n1", "/srv")
    machine.mount("nvme0n1", "/srv/inner")
    assert cures(drive) == ["umount /srv/inner", "umount /srv"]


def test_mounted_in_another_mount_namespace(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    machine.mount("nvme0n1", "/data")
    (machine.proc / "77").mkdir()
    shutil.move(machine.proc / "self/mountinfo", machine.proc / "77/mountinfo")
    put(machine.proc / "self/mountinfo")
    put(machine.proc / "77/comm", "postgres")
    for process, number in (("self", 1), ("77", 2)):
        (machine.proc / process / "ns").mkdir()
        (machine.proc / process / "ns/mnt").symlink_to(f"mnt:[{number}]")
    assert "in the mount namespace of postgres (pid 77)" in only(drive).what


def test_second_namespace(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, namespaces=2)
    machine.mount("nvme0n2", "/srv")
    assert only(drive).where == "/dev/nvme0n2"


def test_swap(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    put(machine.proc / "swaps", "Filename Type\n/dev/nvme0n1p1 partition 1 0 -2")
    assert only(drive) == Finding("/dev/nvme0n1p1", "swap is on it", "swapoff /dev/nvme0n1p1")


def test_lvm_with_a_mount_on_it(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    add_volume(machine, "dm-0", "nvme0n1p1", "my--data-home", "LVM-abc")
    machine.mount("dm-0", "/home")
    first, second = in_use(drive)
    assert (first.where, first.cure) == ("/dev/dm-0", "umount /home")
    assert (second.where, second.what) == ("/dev/nvme0n1p1", "used by the LVM volume my--data-home")
    assert second.cure == "vgchange --activate n my-data"


@pytest.mark.parametrize(
    ("title", "uuid", "cure"),
    [
        ("secret", "CRYPT-LUKS2-abc-secret", "cryptsetup close secret"),
        ("mpatha", "mpath-360", "multipath -f mpatha"),
        ("odd name", "", "dmsetup remove 'odd name'"),
    ],
)
def test_device_mapper(machine: FakeMachine, title: str, uuid: str, cure: str) -> None:
    drive = machine.add_drive(BDF)
    add_volume(machine, "dm-3", "nvme0n1", title, uuid)
    assert title in only(drive).what
    assert only(drive).cure == cure


def test_md_below_lvm_with_swap(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    (machine.add_block("md127", holds="nvme0n1p1") / "md").mkdir()
    add_volume(machine, "dm-0", "md127", "vg-swap", "LVM-abc")
    put(machine.proc / "swaps", "Filename Type\n/dev/dm-0 partition 1 0 -2")
    assert cures(drive) == [
        "swapoff /dev/dm-0",
        "vgchange --activate n vg",
        "mdadm --stop /dev/md127",
    ]


def test_bcache(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    (machine.add_block("bcache0", holds="nvme0n1") / "bcache").mkdir()
    assert only(drive).cure == "echo 1 > /sys/block/bcache0/bcache/stop"


def test_btrfs_mounted_from_another_member(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    machine.add_block("sdb")
    for name in ("sdb", "nvme0n1"):
        link(machine.sys / f"fs/btrfs/1-2-3/devices/{name}", machine.block(name))
    machine.mount("sdb", "/pool", "btrfs")
    assert only(drive).cure == "umount /pool"


@pytest.mark.parametrize("node", ["nvme0n1", "nvme0n1p1", "ng0n1", "nvme0"])
def test_open_in_a_process(machine: FakeMachine, node: str) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    machine.open_in(4321, "qemu-system-x86", f"/dev/{node}")
    machine.open_in(99, "other", "/dev/nvme1n1")
    assert only(drive) == Finding(f"/dev/{node}", "open in qemu-system-x86 (pid 4321)", "kill 4321")


def test_claimed_by_nobody_known(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    machine.exclusive.add("nvme0n1p1")
    assert only(drive).what == "something in the kernel holds it exclusively"


def test_a_claim_that_is_explained_is_not_repeated(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    machine.exclusive.add("nvme0n1")
    machine.mount("nvme0n1", "/srv")
    assert cures(drive) == ["umount /srv"]


def test_zpool(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = machine.add_drive(BDF)
    machine.exclusive.add("nvme0n1")
    answer = {"TYPE": "zfs_member", "LABEL": "tank"}
    monkeypatch.setattr("driver.pci.signatures.probe", lambda _path: answer)
    assert cures(drive)[0] == "zpool export tank"


@pytest.mark.skipif(program("mkfs.ext4") is None, reason="no mkfs.ext4 (e2fsprogs)")
def test_a_filesystem_that_nobody_uses(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, partitions=1)
    mkfs = program("mkfs.ext4")
    assert mkfs is not None
    command = [mkfs, "-q", "-F", "-L", "data", str(machine.dev / "nvme0n1p1")]
    subprocess.run(command, check=True, timeout=30)
    finding = only(drive)
    assert finding.what.startswith('holds ext4 "data", uuid ')
    assert finding.cure == "if nothing of it is needed: wipefs --all /dev/nvme0n1p1"
    assert contents(machine, "nvme0n1p1")[0].startswith("ext4")


def write_mbr(node: Path, kind: int, second: int = 0) -> None:
    sector = bytearray(512)
    for index, each in enumerate((kind, second)):
        if each:
            entry = 446 + 16 * index
            sector[entry + 4] = each
            sector[entry + 8 : entry + 16] = (8 + index * 64).to_bytes(4, "little") + b"\x20\0\0\0"
    sector[510:] = b"\x55\xaa"
    with open(node, "r+b") as disk:
        disk.write(sector)


def test_a_partition_table(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    write_mbr(machine.dev / "nvme0n1", 0x83)
    assert only(drive).what == "holds dos partition table"


def test_our_own_protective_table_is_no_obstacle(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    write_mbr(machine.dev / "nvme0n1", 0xDA)
    assert in_use(drive) == []
    assert contents(machine, "nvme0n1") == ["protective partition table, as of nvmefs"]
    write_mbr(machine.dev / "nvme0n1", 0xDA, 0x83)
    assert only(drive).what == "holds dos partition table"


def test_a_disk_that_cannot_be_read(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF)
    (machine.dev / "nvme0n1").unlink()
    assert "nobody knows what it holds" in only(drive).what


def test_no_blkid(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = machine.add_drive(BDF)
    monkeypatch.setattr("driver.pci.signatures.program", lambda _name: None)
    assert "install util-linux" in only(drive).what


def test_others_in_the_group(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, group=7)
    machine.add_device("0000:01:00.1", code=0x0C0330, group=7, driver="xhci_hcd")
    machine.add_device("0000:00:01.0", code=0x060400, group=7, driver="pcieport")
    finding = only(drive)
    assert finding.where == "0000:01:00.1 in its IOMMU group 7"
    assert "driver xhci_hcd" in finding.what
    assert finding.cure == "echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind"


def test_no_iommu(machine: FakeMachine) -> None:
    drive = machine.add_drive(BDF, group=None)
    assert "no IOMMU" in only(drive).what
    put(machine.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    assert in_use(drive) == []


def test_another_programs_driver(machine: FakeMachine) -> None:
    machine.load("uio_pci_generic")
    drive = machine.add_drive(BDF, driver="uio_pci_generic")
    assert "on the driver uio_pci_generic" in only(drive).what
