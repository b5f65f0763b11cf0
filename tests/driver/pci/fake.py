"""A machine that is a directory: sysfs, /dev and /proc as the kernel lays them out, and what it does
when something is written to a driver's `unbind` or to `drivers_probe`.

    machine = FakeMachine(tmp_path)
    drive = machine.add_drive("0000:01:00.0", serial="S1", partitions=2)
    machine.writes           (path below /sys, text), as they were made
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from driver.errors import TransportError
from driver.pci.sysfs import Machine, PciFunction

MIB = 1 << 20


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n" if text else "")


def link(path: Path, target: Path) -> None:
    """A relative link, as sysfs has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


@dataclass
class Drive:
    """What the nvme driver would find on a controller."""

    number: int
    serial: str
    partitions: int = 0
    namespaces: int = 1
    multipath: bool = False

    def name(self, nsid: int = 1) -> str:
        return f"nvme{self.number}n{nsid}"


class FakeMachine(Machine):
    """`stuck` drivers never let go; `refusing` ones never take a device."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[tuple[str, str]] = []
        self.modules: list[str] = []
        self.drives: dict[str, Drive] = {}
        self.exclusive: set[str] = set()
        self.stuck: set[str] = set()
        self.refusing: set[str] = set()
        self.default_driver = "nvme"
        self.loadable = {"vfio-pci", "nvme"}
        self.cdev = False
        self.mounts: list[str] = []
        (self.pci / "devices").mkdir(parents=True)
        for name in ("nvme", "vfio-pci", "xhci_hcd", "pcieport"):
            self.load(name)
        (self.sys / "kernel/iommu_groups").mkdir(parents=True)
        (self.sys / "class/block").mkdir(parents=True)
        put(self.proc / "sys/kernel/osrelease", "6.12.48-amd64")
        put(self.proc / "swaps", "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority")
        put(self.proc / "self/mountinfo")
        (self.dev / "vfio").mkdir(parents=True)
        put(self.dev / "vfio/vfio")

    # --- building -----------------------------------------------------------------------------

    def load(self, driver: str) -> None:
        (self.pci / "drivers" / driver).mkdir(parents=True, exist_ok=True)

    def add_device(
        self, bdf: str, *, code: int = 0x010802, group: int | None = None, driver: str = ""
    ) -> Path:
        path = self.pci / "devices" / bdf
        for name, text in {
            "class": f"{code:#08x}",
            "vendor": "0x1b36",
            "device": "0x0010",
            "numa_node": "-1",
            "driver_override": "(null)",
        }.items():
            put(path / name, text)
        if group is not None:
            self.join_group(bdf, group)
        if driver:
            link(path / "driver", self.pci / "drivers" / driver)
        return path

    def join_group(self, bdf: str, group: int) -> None:
        path = self.pci / "devices" / bdf
        where = self.sys / "kernel/iommu_groups" / str(group)
        link(where / "devices" / bdf, path)
        link(path / "iommu_group", where)

    def add_drive(
        self,
        bdf: str = "0000:01:00.0",
        *,
        serial: str = "S1",
        group: int | None = 7,
        driver: str = "nvme",
        partitions: int = 0,
        namespaces: int = 1,
        multipath: bool = False,
    ) -> PciFunction:
        self.add_device(bdf, group=group)
        self.drives[bdf] = Drive(len(self.drives), serial, partitions, namespaces, multipath)
        if driver:
            self.attach(bdf, driver)
        return PciFunction(self, bdf)

    def add_block(self, name: str, *, size_bytes: int = 64 * MIB, holds: str = "") -> Path:
        """A block device with its node; `holds`: the one that lies below it."""
        number = len(list((self.sys / "class/block").iterdir()))
        path = self.sys / "class/block" / name
        put(path / "size", str(size_bytes // 512))
        put(path / "dev", f"259:{number}")
        (path / "holders").mkdir()
        with open(self.dev / name, "wb") as node:
            node.truncate(size_bytes)
        if holds:
            link(self.sys / "class/block" / holds / "holders" / name, path)
        return path

    def add_partition(self, disk: str, number: int, size_bytes: int = 32 * MIB) -> str:
        name = f"{disk}p{number}"
        whole = self.add_block(name, size_bytes=size_bytes)
        inside = self.sys / "class/block" / disk / name
        shutil.copytree(whole, inside)
        put(inside / "partition", str(number))
        return name

    def mount(self, source: str, where: str, kind: str = "ext4") -> None:
        number = (self.sys / "class/block" / source / "dev").read_text().strip()
        self.mounts.append(f"30 1 {number} / {where} rw - {kind} /dev/{source} rw")
        put(self.proc / "self/mountinfo", "\n".join(self.mounts))

    def open_in(self, pid: int, command: str, node: str) -> None:
        """A process that has `node` (/dev/nvme0n1) open."""
        put(self.proc / str(pid) / "comm", command)
        descriptors = self.proc / str(pid) / "fd"
        descriptors.mkdir(parents=True, exist_ok=True)
        (descriptors / str(3 + len(list(descriptors.iterdir())))).symlink_to(node)

    def unplug(self, bdf: str) -> None:
        """The device goes, and all that the kernel made of it."""
        self.detach(bdf)
        for member in (self.sys / "kernel/iommu_groups").glob(f"*/devices/{bdf}"):
            member.unlink()
        shutil.rmtree(self.pci / "devices" / bdf)

    # --- the kernel's part --------------------------------------------------------------------

    def attach(self, bdf: str, driver: str) -> None:
        path = self.pci / "devices" / bdf
        link(path / "driver", self.pci / "drivers" / driver)
        if driver == "vfio-pci":
            self._make_vfio_nodes(bdf)
        elif driver == "nvme":
            self._make_namespaces(bdf)

    def _make_vfio_nodes(self, bdf: str) -> None:
        if self.cdev:
            put(self.pci / "devices" / bdf / "vfio-dev/vfio0/dev", "511:0")
            put(self.dev / "vfio/devices/vfio0")
        group = PciFunction(self, bdf).vfio_group_node()
        assert group is not None
        put(group)

    def _make_namespaces(self, bdf: str) -> None:
        drive = self.drives[bdf]
        controller = self.pci / "devices" / bdf / f"nvme/nvme{drive.number}"
        for name, text in {
            "model": "QEMU NVMe Ctrl   ",
            "serial": f"{drive.serial}      ",
            "firmware_rev": "7.2.22",
            "state": "live",
        }.items():
            put(controller / name, text)
        for nsid in range(1, drive.namespaces + 1):
            name = drive.name(nsid)
            shown = f"nvme{drive.number}c0n{nsid}" if drive.multipath else name
            put(controller / shown / "nsid", str(nsid))
            put(self.add_block(name) / "nsid", str(nsid))
            for number in range(1, drive.partitions + 1):
                self.add_partition(name, number)

    def detach(self, bdf: str) -> None:
        path = self.pci / "devices" / bdf
        for name in ("nvme", "vfio-dev"):
            shutil.rmtree(path / name, ignore_errors=True)
        for node in PciFunction(self, bdf).vfio_nodes():
            node.unlink()
        drive = self.drives.get(bdf)
        for block in (self.sys / "class/block").iterdir() if drive else []:
            if drive and re.fullmatch(rf"nvme{drive.number}n.*", block.name):
                shutil.rmtree(block)
                (self.dev / block.name).unlink(missing_ok=True)
        (path / "driver").unlink(missing_ok=True)

    def write(self, path: Path, text: str) -> None:
        """As the kernel would act; recorded."""
        self.writes.append((str(path.relative_to(self.sys)), text))
        if not path.parent.is_dir():
            raise TransportError(f"{path}: not there")
        if path.name == "driver_override":
            put(path, text.strip() or "(null)")
        elif path.name == "unbind":
            if path.resolve().parent.name not in self.stuck:
                self.detach(text)
        elif path.name == "drivers_probe":
            self._probe(text)
        self.after_write(path, text)

    def after_write(self, path: Path, text: str) -> None:
        """Nothing; tests put an event here."""

    def _probe(self, bdf: str) -> None:
        function = PciFunction(self, bdf)
        wanted = function.driver_override or self.default_driver
        if function.present and not function.driver and wanted not in self.refusing:
            self.attach(bdf, wanted)

    def load_module(self, name: str) -> None:
        self.modules.append(name)
        if name not in self.loadable:
            raise TransportError(f"the kernel module {name} cannot be loaded: not found")
        self.load(name)

    def is_claimed(self, name: str) -> bool:
        return name in self.exclusive

    def claim(self, name: str) -> int:
        if name in self.exclusive:
            raise OSError(errno.EBUSY, "in use", name)
        return super().claim(name)
