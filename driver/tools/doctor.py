"""`nvmefs doctor`: what would fail here, before it does, and what cures it.

Below: driver/pci. Above: devices.py. Each check is a function that gives Checks; nothing is changed
and no controller is opened.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..options import DriverOptions
from ..pci.kernel import program
from ..pci.sysfs import KERNEL_NVME, VFIO_PCI, Machine, PciFunction
from ..pci.usage import in_use, of_group

OK, NOTE, FAILS = "ok", "note", "fails"
CDEV_KERNEL = (6, 6)
CAP_IPC_LOCK = 14
HUGE_BYTES = 2 << 20
MODPROBE_BOUND_S = 30
FUSERMOUNT_ANYWHERE = (
    "mount below your home, /mnt, /media or /tmp, or allow the place in "
    "/etc/apparmor.d/local/fusermount3 and reload: apparmor_parser -r /etc/apparmor.d/fusermount3"
)


@dataclass(frozen=True)
class Check:
    """`status` is ok, note (nothing fails, but know it) or fails; `cure` is empty when ok."""

    check: str
    status: str
    what: str
    cure: str = ""


def examine(machine: Machine, function: PciFunction | None) -> dict[str, Any]:
    """All checks, of one controller or of every one here. `failed`: whether any fails."""
    checks = [check for each in _MACHINE_CHECKS for check in each(machine)]
    functions = machine.functions() if function is None else [function]
    for each in functions:
        checks += _function(each)
    if not functions:
        checks.append(Check("controllers", NOTE, "no NVMe controller on a PCI bus here"))
    return {
        "checks": [asdict(check) for check in checks],
        "failed": any(check.status == FAILS for check in checks),
    }


def text(values: dict[str, Any]) -> str:
    """`examine()` for reading: what fails first."""
    order = {FAILS: 0, NOTE: 1, OK: 2}
    lines = []
    for each in sorted(values["checks"], key=lambda check: order[check["status"]]):
        lines.append(f"{each['status']:5}  {each['check']}: {each['what']}")
        if each["cure"]:
            lines.append(f"       {each['cure']}")
    return "\n".join(lines)


# --- the machine ----------------------------------------------------------------------------------


def _iommu(machine: Machine) -> Iterator[Check]:
    if machine.has_iommu():
        yield Check("IOMMU", OK, "at work")
    elif machine.noiommu_allowed():
        yield Check(
            "IOMMU",
            NOTE,
            "none, and vfio may be used without: a drive then reaches all of this machine's memory",
            "switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on",
        )
    else:
        yield Check(
            "IOMMU",
            FAILS,
            "none at work, so no controller on PCI can be given away; image files can be used",
            "switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on",
        )


def _vfio(machine: Machine) -> Iterator[Check]:
    if machine.has_driver(VFIO_PCI):
        yield Check("vfio-pci", OK, "loaded")
    elif _loadable(VFIO_PCI):
        yield Check("vfio-pci", OK, "not loaded; nvmefs bind loads it")
    else:
        yield Check(
            "vfio-pci",
            FAILS,
            "this kernel has no such module",
            "install the kernel's extra modules, or one built with CONFIG_VFIO_PCI=m",
        )


def _loadable(module: str) -> bool:
    modprobe = program("modprobe")
    if modprobe is None:
        return False
    done = subprocess.run(
        [modprobe, "--dry-run", "--quiet", module],
        capture_output=True,
        timeout=MODPROBE_BOUND_S,
        check=False,
    )
    return done.returncode == 0


def _iommufd(machine: Machine) -> Iterator[Check]:
    version = machine.kernel_version()
    name = ".".join(map(str, version))
    if version < CDEV_KERNEL:
        what = (
            f"kernel {name} is older than 6.6: VFIO's group interface is used, which does as well"
        )
    elif not (machine.dev / "iommu").exists():
        what = (
            f"kernel {name} has no /dev/iommu: VFIO's group interface is used, which does as well"
        )
    else:
        what = "there"
    yield Check("iommufd", OK, what)


def _memlock(machine: Machine) -> Iterator[Check]:
    need = DriverOptions().dma_bytes
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if _may_lock_anything(machine) or limit == resource.RLIM_INFINITY:
        yield Check("memlock", OK, "no limit for you")
    elif limit >= need:
        yield Check("memlock", OK, f"{limit >> 10} KiB, and {need >> 10} are needed")
    else:
        yield Check(
            "memlock",
            FAILS,
            f"you may lock {limit >> 10} KiB, and a controller on PCI needs {need >> 10}",
            f"in /etc/security/limits.d/nvmefs.conf: USER - memlock {need >> 10}; then log in "
            f"again (in a systemd unit: LimitMEMLOCK={need >> 10}K)",
        )


def _may_lock_anything(machine: Machine) -> bool:
    for line in (machine.proc / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    return False


def _hugepages(machine: Machine) -> Iterator[Check]:
    if machine.has_iommu() or not machine.noiommu_allowed():
        yield Check("hugepages", OK, "not needed")
        return
    need = DriverOptions().dma_bytes // HUGE_BYTES
    pool = machine.sys / f"kernel/mm/hugepages/hugepages-{HUGE_BYTES >> 10}kB"
    path = pool / "free_hugepages"
    free = int(path.read_text()) if path.exists() else 0
    if free >= need:
        yield Check("hugepages", OK, f"{free} are free: enough for noiommu")
    else:
        what = f"{free} are free, and a mount without an IOMMU needs {need}"
        yield Check("hugepages", NOTE, what, f"echo {need} > {pool / 'nr_hugepages'}")


# --- FUSE -----------------------------------------------------------------------------------------


def _fuse(machine: Machine) -> Iterator[Check]:
    node = machine.dev / "fuse"
    if not node.exists():
        yield Check(
            "/dev/fuse", FAILS, "not there", "modprobe fuse (a container: --device /dev/fuse)"
        )
    elif not os.access(node, os.R_OK | os.W_OK):
        yield Check("/dev/fuse", FAILS, "you may not open it", "chmod 666 /dev/fuse, as root")
    else:
        yield Check("/dev/fuse", OK, "there")


def _fusermount(machine: Machine) -> Iterator[Check]:
    if program("fusermount3"):
        yield Check("fusermount3", OK, "there")
    elif os.geteuid() == 0:
        yield Check("fusermount3", NOTE, "missing: only root can mount", "install fuse3")
    else:
        yield Check("fusermount3", FAILS, "missing: only root can mount", "install fuse3")


def _fuse_conf(machine: Machine) -> Iterator[Check]:
    path = machine.root / "etc/fuse.conf"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    if "user_allow_other" in map(str.strip, lines):
        yield Check("fuse.conf", OK, "user_allow_other is set")
    else:
        yield Check(
            "fuse.conf",
            OK if os.geteuid() == 0 else NOTE,
            "without user_allow_other only root may mount for others (-o allow_other)",
            "" if os.geteuid() == 0 else "echo user_allow_other >> /etc/fuse.conf, as root",
        )


def _apparmor(machine: Machine) -> Iterator[Check]:
    """Ubuntu 24.10 and later confine fusermount3 to some directories; root does not need it."""
    enabled = machine.sys / "module/apparmor/parameters/enabled"
    on = enabled.exists() and enabled.read_text().strip() == "Y"
    if on and (machine.root / "etc/apparmor.d/fusermount3").exists():
        status = OK if os.geteuid() == 0 else NOTE
        what = "its profile lets users mount in some places only"
        yield Check(
            "AppArmor on fusermount3", status, what, "" if status == OK else FUSERMOUNT_ANYWHERE
        )
    else:
        yield Check("AppArmor on fusermount3", OK, "does not confine it")


_MACHINE_CHECKS: tuple[Callable[[Machine], Iterator[Check]], ...] = (
    _iommu,
    _vfio,
    _iommufd,
    _memlock,
    _hugepages,
    _fuse,
    _fusermount,
    _fuse_conf,
    _apparmor,
)


# --- a controller ---------------------------------------------------------------------------------


def _function(function: PciFunction) -> list[Check]:
    bdf, driver = function.bdf, function.driver
    if driver == KERNEL_NVME:
        uses = in_use(function)
        if not uses:
            return [Check(bdf, OK, f"free; take it with: nvmefs bind {bdf}")]
        fatal = set(of_group(function))
        return [
            Check(bdf, FAILS if each in fatal else NOTE, f"{each.where}: {each.what}", each.cure)
            for each in uses
        ]
    if "vfio" not in driver:
        what = f"on the driver {driver}" if driver else "without a driver"
        return [Check(bdf, FAILS, what, f"nvmefs bind {bdf}")]
    blocked = [
        Check(bdf, FAILS, f"{each.where}: {each.what}", each.cure) for each in of_group(function)
    ]
    return blocked or [_access(function)]


def _access(function: PciFunction) -> Check:
    nodes = function.vfio_nodes()
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if not nodes or len(closed) == len(nodes):
        what = f"you may not open {closed[0]}" if closed else "no node of it is in /dev/vfio"
        return Check(function.bdf, FAILS, what, f"sudo nvmefs bind {function.bdf} --user $USER")
    return Check(function.bdf, OK, f"ready on {function.driver}")
