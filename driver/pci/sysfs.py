"""What sysfs tells of NVMe controllers: functions, their drivers, IOMMU groups, block devices.

    machine = Machine()
    for function in machine.functions(): print(function.bdf, function.driver)
    function = machine.function("0000:01:00.0")      names.py knows other names that stay
    group = function.iommu_group()                   None where no IOMMU translates for it
    group.blockers()                                 members that keep it from being viable

Nothing is cached: each question is a look at the kernel's present answer. A function that is pulled
out in between gives ControllerGone. Tests build a tree of their own below another root.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import AddressError, ControllerGone
from . import kernel

NVME_CLASS = 0x010802
BRIDGE_CLASS = 0x06
VFIO_PCI = "vfio-pci"
KERNEL_NVME = "nvme"
BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])", re.I)
SECTOR_BYTES = 512  # the unit of every `size` in sysfs, whatever the LBA

# Drivers that do no DMA of their own (`driver_managed_dma` in the kernel), beside all of VFIO's.
HARMLESS_DRIVERS = frozenset({"", "pci-stub", "pcieport"})
NOIOMMU_GROUP = "vfio-noiommu"
_NAMESPACE = re.compile(r"(nvme[0-9]+)(?:c[0-9]+)?(n[0-9]+)")  # c1: a path of a multipath head
_KERNEL = re.compile(r"([0-9]+)\.([0-9]+)")


@dataclass(frozen=True)
class Member:
    """A device in an IOMMU group. `class_code` as in configuration space: 0x010802 is NVMe."""

    bdf: str
    driver: str
    class_code: int

    @property
    def blocks(self) -> bool:
        """Whether VFIO refuses the whole group because of it."""
        harmless = self.driver in HARMLESS_DRIVERS or "vfio" in self.driver
        return not harmless and self.class_code >> 16 != BRIDGE_CLASS


@dataclass(frozen=True)
class IommuGroup:
    """What the IOMMU cannot tell apart, and VFIO hands out only together."""

    number: int
    members: tuple[Member, ...]
    noiommu: bool
    """Made by VFIO itself where there is no IOMMU: its node is /dev/vfio/noiommu-NUMBER."""

    def blockers(self) -> list[Member]:
        """Members bound to a driver that does DMA for the kernel: [] when viable (VFIO's word)."""
        return [member for member in self.members if member.blocks]

    @property
    def viable(self) -> bool:
        return not self.blockers()


@dataclass(frozen=True)
class BlockNamespace:
    """A namespace as the kernel's nvme driver shows it: `name` is nvme0n1, partitions nvme0n1p1."""

    name: str
    nsid: int
    size_bytes: int
    partitions: tuple[str, ...]


class Machine:
    """The kernel's word about this machine, below `root`: sys, dev, proc and run."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.sys = root / "sys"
        self.dev = root / "dev"
        self.proc = root / "proc"
        self.run = root / "run"

    @property
    def pci(self) -> Path:
        return self.sys / "bus/pci"

    def functions(self) -> list[PciFunction]:
        """All NVMe controllers (class 010802), by address."""
        found = []
        for path in sorted((self.pci / "devices").glob("*")):
            function = PciFunction(self, path.name)
            try:
                if function.class_code == NVME_CLASS:
                    found.append(function)
            except ControllerGone:
                continue  # pulled out meanwhile
        return found

    def function(self, bdf: str) -> PciFunction:
        """The controller at a PCI address; its domain is 0000 if not given.

        Raises AddressError if there is none, or no NVMe controller.
        """
        match = BDF.fullmatch(bdf)
        if match is None:
            raise AddressError(f"{bdf}: not a PCI address: it looks like 0000:01:00.0")
        full = f"{int(match.group(1) or '0', 16):04x}:{match.group(2)}".lower()
        function = PciFunction(self, full)
        if not function.present:
            raise AddressError(f"{full}: no such PCI device; {self.known()}")
        if function.class_code != NVME_CLASS:
            raise AddressError(
                f"{full}: not an NVMe controller (PCI class {function.class_code:06x}, "
                f"not {NVME_CLASS:06x}); {self.known()}"
            )
        return function

    def known(self) -> str:
        """For messages: the addresses of all controllers here."""
        addresses = ", ".join(function.bdf for function in self.functions())
        return f"NVMe controllers here: {addresses or 'none'}"

    def has_iommu(self) -> bool:
        """Whether any IOMMU is at work."""
        groups = self.sys / "kernel/iommu_groups"
        return any(_text(group / "name") != NOIOMMU_GROUP for group in groups.glob("*"))

    def noiommu_allowed(self) -> bool:
        """Whether vfio may be used without an IOMMU (parameter enable_unsafe_noiommu_mode)."""
        return _text(self.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode") in ("Y", "1")

    def has_driver(self, name: str) -> bool:
        """Whether a PCI driver of that name is loaded."""
        return (self.pci / "drivers" / name).is_dir()

    def kernel_version(self) -> tuple[int, int]:
        """(6, 12)."""
        match = _KERNEL.match(_text(self.proc / "sys/kernel/osrelease"))
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def block(self, name: str) -> Path:
        """sysfs' directory of a block device or partition, by its kernel name."""
        return self.sys / "class/block" / name

    # --- acting on it -------------------------------------------------------------------------

    def write(self, path: Path, text: str) -> None:
        """One write(2) to a file of sysfs, bounded. Raises TransportError."""
        kernel.write_bounded(path, text)

    def load_module(self, name: str) -> None:
        """Raises TransportError."""
        kernel.load_module(name)

    def is_claimed(self, name: str) -> bool:
        """Whether somebody uses a block device or partition exclusively."""
        return kernel.is_claimed(self.dev / name)

    def claim(self, name: str) -> int:
        """Exclusive use of a block device, until the descriptor is closed. Raises OSError."""
        return kernel.claim(self.dev / name)


class PciFunction:
    """One controller, by its address. Every property may raise ControllerGone."""

    def __init__(self, machine: Machine, bdf: str) -> None:
        self.machine = machine
        self.bdf = bdf
        self.path = machine.pci / "devices" / bdf

    def __str__(self) -> str:
        return self.bdf

    @property
    def present(self) -> bool:
        return self.path.is_dir()

    @property
    def class_code(self) -> int:
        return int(self.attribute("class") or "0", 16)

    @property
    def vendor(self) -> int:
        return int(self.attribute("vendor") or "0", 16)

    @property
    def device(self) -> int:
        return int(self.attribute("device") or "0", 16)

    @property
    def numa_node(self) -> int:
        """-1 where the firmware tells of none."""
        return int(self.attribute("numa_node") or "-1")

    @property
    def driver(self) -> str:
        """The bound driver's name, "" if none."""
        return _link_name(self._alive() / "driver")

    @property
    def driver_override(self) -> str:
        """The one driver that may bind it, "" for no such wish."""
        text = self.attribute("driver_override")
        return "" if text == "(null)" else text

    def iommu_group(self) -> IommuGroup | None:
        """Its group; None where no IOMMU is at work for it."""
        number = _link_name(self._alive() / "iommu_group")
        if not number.isdecimal():
            return None
        path = self.machine.sys / "kernel/iommu_groups" / number
        members = [
            Member(
                each.name,
                _link_name(device / "driver"),
                int(_text(device / "class") or "0", 16),
            )
            for each in sorted((path / "devices").glob("*"))
            for device in (self.machine.pci / "devices" / each.name,)
        ]
        noiommu = _text(path / "name") == NOIOMMU_GROUP
        return IommuGroup(int(number), tuple(members), noiommu)

    def vfio_cdev(self) -> Path | None:
        """Its node /dev/vfio/devices/vfioN (Linux 6.6, CONFIG_VFIO_DEVICE_CDEV); None if none."""
        for name in sorted((self._alive() / "vfio-dev").glob("vfio*")):
            if (name / "dev").exists():
                return self.machine.dev / "vfio/devices" / name.name
        return None

    def vfio_group_node(self) -> Path | None:
        """Its group's node: /dev/vfio/7, or /dev/vfio/noiommu-7. It need not exist yet."""
        group = self.iommu_group()
        if group is None:
            return None
        return self.machine.dev / "vfio" / f"{'noiommu-' if group.noiommu else ''}{group.number}"

    def vfio_nodes(self) -> list[Path]:
        """The nodes there are through which a program opens it; [] unless a VFIO driver has it."""
        if "vfio" not in self.driver:
            return []
        nodes = (self.vfio_cdev(), self.vfio_group_node())
        return [node for node in nodes if node is not None and node.exists()]

    # --- as the kernel's nvme driver shows it -------------------------------------------------

    @property
    def controller_name(self) -> str:
        """nvme0; "" unless the kernel's nvme driver has it."""
        names = [path.name for path in sorted((self._alive() / "nvme").glob("nvme*"))]
        return names[0] if names else ""

    @property
    def model(self) -> str:
        return self._of_controller("model")

    @property
    def serial(self) -> str:
        return self._of_controller("serial")

    @property
    def firmware(self) -> str:
        return self._of_controller("firmware_rev")

    @property
    def state(self) -> str:
        """new, live, resetting, dead ... in the kernel's words; "" unless it has it."""
        return self._of_controller("state")

    def namespaces(self) -> list[BlockNamespace]:
        """The block devices of all its namespaces, of multipath ones the head."""
        name = self.controller_name
        found = {}
        for path in sorted((self.path / "nvme" / name).glob("nvme*")) if name else []:
            match = _NAMESPACE.fullmatch(path.name)
            if match:
                block = match.group(1) + match.group(2)
                found[block] = self._namespace(block)
        return list(found.values())

    def block_names(self) -> set[str]:
        """All that the kernel calls it and its parts: nvme0, nvme0n1, nvme0n1p1."""
        names = {self.controller_name} - {""}
        for namespace in self.namespaces():
            names |= {namespace.name, *namespace.partitions}
        return names

    def by_id_names(self) -> list[str]:
        """The names in /dev/disk/by-id that lead to it."""
        names = self.block_names()
        links = sorted((self.machine.dev / "disk/by-id").glob("*"))
        return [link.name for link in links if _link_name(link) in names]

    def _namespace(self, name: str) -> BlockNamespace:
        path = self.machine.block(name)
        partitions = [each.parent.name for each in path.glob("*/partition")]
        return BlockNamespace(
            name,
            int(_text(path / "nsid") or "0"),
            int(_text(path / "size") or "0") * SECTOR_BYTES,
            tuple(sorted(partitions, key=lambda text: (len(text), text))),
        )

    def _of_controller(self, attribute: str) -> str:
        name = self.controller_name
        return _text(self.path / "nvme" / name / attribute) if name else ""

    # --- reading ------------------------------------------------------------------------------

    def attribute(self, name: str) -> str:
        """A file of its directory, stripped; "" if there is no such file."""
        return _text(self._alive() / name)

    def _alive(self) -> Path:
        if not self.present:
            raise ControllerGone(f"{self.bdf}: gone from the PCI bus (pulled out, or removed)")
        return self.path


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not there, or gone between the look and the read: no answer either way
        return ""


def _link_name(path: Path) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""
