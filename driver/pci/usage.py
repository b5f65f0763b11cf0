"""What uses a controller, before it is taken from the kernel: every namespace, and all upon it.

    for finding in in_use(function): print(finding)     /dev/nvme0n1p1: mounted at /srv; umount /srv

A finding says what, where, and the command that clears it. They come in the order in which these
commands work: what lies on top first. An open file, a mount, swap or a volume is use; a signature
is data that nobody has open now; a group that is not viable makes the taking useless.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import TransportError
from ..mountinfo import everywhere, unescape
from . import signatures
from .processes import open_nodes
from .sysfs import KERNEL_NVME, VFIO_PCI, BlockNamespace, Machine, PciFunction

_SECTOR = 512


@dataclass(frozen=True)
class Finding:
    """`cure` is a command, or a word of advice where none is certain."""

    where: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.cure}"


def in_use(function: PciFunction) -> list[Finding]:
    """All that speaks against taking it from the driver it has now. Raises ControllerGone."""
    return [*_foreign_driver(function), *of_namespaces(function), *of_group(function)]


class _Users:
    """Mounts, swap and open nodes of the whole machine, looked at once for all block devices."""

    def __init__(self, machine: Machine) -> None:
        self.mounts = everywhere(machine.proc)
        lines = _text(machine.proc / "swaps").splitlines()[1:]
        self.swaps = {line.split()[0] for line in lines if line.split()}
        self.open_nodes = open_nodes(machine)


def of_namespaces(function: PciFunction) -> list[Finding]:
    """What is on the block devices of all its namespaces, and who has them open."""
    machine, name = function.machine, function.controller_name
    if not name:
        return []
    users = _Users(machine)
    found: list[Finding] = []
    for namespace in function.namespaces():
        found += _of_block(machine, users, namespace)
    return found + _open_by(users, [f"/dev/{name}"])


def of_block(machine: Machine, name: str) -> list[Finding]:
    """What uses one block device, of any kind, or one of its partitions now; not what is written there."""
    partitions = sorted(each.parent.name for each in machine.block(name).glob("*/partition"))
    nodes = [name, *partitions]
    return list(dict.fromkeys(_using(machine, _Users(machine), nodes, nodes)))


def of_file(machine: Machine, path: Path) -> list[Finding]:
    """How the kernel uses a regular file itself, which no lock tells: as a loop device, as swap."""
    found: list[Finding] = []
    for backing in sorted((machine.sys / "block").glob("loop*/loop/backing_file")):
        if _is_file(_raw(backing).rstrip("\n"), path):
            loop = backing.parent.parent.name
            cure = f"losetup -d /dev/{loop}"
            found += [
                *of_block(machine, loop),
                Finding(str(path), f"attached to /dev/{loop}", cure),
            ]
    for fields in map(str.split, _raw(machine.proc / "swaps").splitlines()[1:]):
        name = unescape(fields[0]) if fields else ""
        if _is_file(name, path):
            found.append(Finding(str(path), "in use as swap", f"swapoff {shlex.quote(name)}"))
    return found


def of_group(function: PciFunction) -> list[Finding]:
    """Why VFIO could not open it even if it were bound: no IOMMU, or others in its group."""
    machine, bdf = function.machine, function.bdf
    group = function.iommu_group()
    if group is None:
        if machine.noiommu_allowed():
            return []
        return [
            Finding(
                bdf,
                "no IOMMU translates for it, so VFIO cannot give it away",
                "switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on",
            )
        ]
    return [
        Finding(
            f"{member.bdf} in its IOMMU group {group.number}",
            f"on the driver {member.driver}, and VFIO gives away whole groups only",
            f"echo {member.bdf} > /sys/bus/pci/devices/{member.bdf}/driver/unbind",
        )
        for member in group.blockers()
        if member.bdf != bdf
    ]


def _foreign_driver(function: PciFunction) -> list[Finding]:
    driver = function.driver
    if driver in ("", KERNEL_NVME, VFIO_PCI):
        return []
    unbind = f"echo {function.bdf} > /sys/bus/pci/devices/{function.bdf}/driver/unbind"
    return [Finding(function.bdf, f"on the driver {driver}, which may be using it", unbind)]


# --- one block device and all upon it -------------------------------------------------------------


def _of_block(machine: Machine, users: _Users, namespace: BlockNamespace) -> list[Finding]:
    """A namespace, its partitions, what is stacked on them."""
    own = [namespace.name, *namespace.partitions]
    generic = namespace.name.replace("nvme", "ng", 1)
    found = _using(machine, users, own, [*own, generic])
    held = {finding.where for finding in found}
    for name in reversed(own):
        found += _on_medium(machine, name, unexplained=not held)
    return list(dict.fromkeys(found))


def _using(machine: Machine, users: _Users, own: list[str], nodes: list[str]) -> list[Finding]:
    """What lies on a device (the first of `own`; its partitions follow), and who has `nodes` open."""
    found: list[Finding] = []
    for name, below in reversed(list(_stack(machine, own[0], ""))):
        found += _mounted(machine, users, name)
        found += _swap(users, name)
        if below and name not in own:
            found.append(_holder(machine, name, below))
    return found + _open_by(users, [f"/dev/{name}" for name in nodes])


def _stack(machine: Machine, name: str, below: str) -> Iterator[tuple[str, str]]:
    """`name` and all above it, as (name, what it lies on): partitions, then holders, upwards."""
    yield name, below
    path = machine.block(name)
    for partition in sorted(path.glob("*/partition")):
        yield from _stack(machine, partition.parent.name, name)
    for holder in sorted((path / "holders").glob("*")):
        yield from _stack(machine, holder.name, name)


def _holder(machine: Machine, name: str, below: str) -> Finding:
    """A volume on top of a device, and how it is taken down."""
    path = machine.block(name)
    what, cure = f"{name} is made of it", f"stop {name}"
    if (path / "dm").is_dir():
        title = _text(path / "dm/name")
        kind = _text(path / "dm/uuid").partition("-")[0]
        quoted = shlex.quote(title)
        if kind == "LVM":
            group = re.split(r"(?<!-)-(?!-)", title)[0].replace("--", "-")
            what, cure = f"LVM volume {title}", f"vgchange --activate n {shlex.quote(group)}"
        elif kind == "CRYPT":
            what, cure = f"encrypted volume {title}", f"cryptsetup close {quoted}"
        elif kind == "mpath":
            what, cure = f"multipath device {title}", f"multipath -f {quoted}"
        else:
            what, cure = f"device-mapper volume {title}", f"dmsetup remove {quoted}"
    elif (path / "md").is_dir():
        what, cure = f"md array {name}", f"mdadm --stop /dev/{name}"
    elif (path / "bcache").is_dir():
        what, cure = f"bcache {name}", f"echo 1 > /sys/block/{name}/bcache/stop"
    return Finding(f"/dev/{below}", f"used by the {what}" if "/" not in what else what, cure)


def _mounted(machine: Machine, users: _Users, name: str) -> list[Finding]:
    """Mounts of it in every mount namespace; of a btrfs also where another member is its source."""
    number = _text(machine.block(name) / "dev")
    sources = {f"/dev/{name}"}
    for member in (machine.sys / "fs/btrfs").glob(f"*/devices/{name}"):
        sources |= {f"/dev/{each.name}" for each in member.parent.iterdir()}
    return [
        Finding(
            f"/dev/{name}",
            f"mounted at {each.mountpoint} ({each.type}{_inside(whose)})",
            f"umount {shlex.quote(each.mountpoint)}"
            if not whose
            else "end that process, or unmount it there",
        )
        for each, whose in reversed(users.mounts)
        if each.device == number or each.source in sources
    ]


def _inside(process: str) -> str:
    return f", in the mount namespace of {process}" if process else ""


def _swap(users: _Users, name: str) -> list[Finding]:
    if f"/dev/{name}" not in users.swaps:
        return []
    return [Finding(f"/dev/{name}", "swap is on it", f"swapoff /dev/{name}")]


def _open_by(users: _Users, nodes: list[str]) -> list[Finding]:
    return [
        Finding(node, f"open in {process}", f"kill {process.pid}")
        for node in nodes
        for process in users.open_nodes.get(node, ())
    ]


# --- what is written there ------------------------------------------------------------------------


def _on_medium(machine: Machine, name: str, *, unexplained: bool) -> list[Finding]:
    """Signatures; and an exclusive user whom nothing else has shown (`unexplained`), as ZFS is."""
    node = f"/dev/{name}"
    found: list[Finding] = []
    try:
        answer = signatures.probe(machine.dev / name)
    except TransportError as error:
        answer = {}
        found.append(Finding(node, f"nobody knows what it holds: {error}", "see: dmesg"))
    if unexplained and machine.is_claimed(name):
        pool = answer.get("LABEL", "") if answer.get("TYPE") == "zfs_member" else ""
        cure = f"zpool export {shlex.quote(pool)}" if pool else "see: lsblk, zpool status, dmesg"
        found.append(Finding(node, "something in the kernel holds it exclusively", cure))
    words = signatures.describe(answer)
    if words and not _is_protective(machine.dev / name, answer):
        clear = f"if nothing of it is needed: wipefs --all {node}"
        found.append(Finding(node, f"holds {' and '.join(words)}", clear))
    return found


def contents(machine: Machine, name: str) -> list[str]:
    """What is recognised on a block device, in words; raises TransportError if it cannot be read."""
    answer = signatures.probe(machine.dev / name)
    if _is_protective(machine.dev / name, answer):
        return ["protective partition table, as of nvmefs"]
    return signatures.describe(answer)


def _is_protective(node: Path, answer: dict[str, str]) -> bool:
    """No data of others: a table that only guards what is there, as mkfs.nvmefs writes it."""
    if answer.get("PTTYPE") != "dos" or "TYPE" in answer:
        return False
    with open(node, "rb") as device:
        return signatures.is_protective(device.read(_SECTOR))


def _is_file(name: str, path: Path) -> bool:
    """Whether the kernel's `name` is that file; a name that it has outside of our root is not found."""
    try:
        return os.path.samefile(name, path)
    except OSError:
        return False


def _raw(path: Path) -> str:
    """As it is, for names of files; "" if it is not there, or no longer."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
