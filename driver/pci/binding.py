"""Taking a controller from the kernel's nvme driver for VFIO, and giving it back.

    bind(function)               nvme -> vfio-pci; returns when its nodes are there
    give(function, "jane")       the nodes belong to that user: no root is needed any more
    unbind(function)             vfio-pci -> nvme; returns when its namespaces are there

What uses it is for the caller to ask first (usage.py). Every wait has an end; a bind that fails puts
the kernel's driver back.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
from contextlib import ExitStack
from pathlib import Path

from ..errors import AddressError, DeviceBusy, DriverError, TransportError
from ..mountinfo import mounts
from . import records
from .kernel import wait_until
from .processes import Process, holders
from .sysfs import KERNEL_NVME, VFIO_PCI, BlockNamespace, Machine, PciFunction
from .usage import Finding, in_use

log = logging.getLogger("driver.pci")

BIND_BOUND_S = 20.0
SCAN_BOUND_S = 5.0


class InUse(DeviceBusy):
    """The controller is not taken, for each of `findings`."""

    def __init__(self, function: PciFunction, findings: list[Finding]) -> None:
        self.bdf = function.bdf
        self.findings = findings
        reasons = "; ".join(map(str, findings))
        super().__init__(
            f"{function.bdf}: not taken from the driver {function.driver or '(none)'}: {reasons}; "
            f"or, at your own risk: nvmefs bind {function.bdf} --force"
        )


def bind(function: PciFunction, *, force: bool = False) -> bool:
    """Hand it to vfio-pci; False if that has it already.

    Raises InUse (unless `force`), TransportError, ControllerGone.
    """
    if function.driver == VFIO_PCI:
        return False
    _need_root(function, "bind")
    findings = in_use(function)
    if findings and not force:
        raise InUse(function, findings)
    for finding in findings:
        log.warning("forced: %s", finding)
    machine = function.machine
    if not machine.has_driver(VFIO_PCI):
        machine.load_module(VFIO_PCI)
    with _claimed(function, force=force) as claims:
        records.remember(function)
        try:
            _move(function, VFIO_PCI)
            _wait_for_nodes(function)
        except BaseException:
            claims.close()  # while somebody has the old ones open the kernel counts on from their numbers
            if function.present:
                _put_back(function)
            raise
    return True


def _claimed(function: PciFunction, *, force: bool) -> ExitStack:
    """Claims all its block devices, until closed: nobody mounts one after it was looked whether
    anybody had. Raises InUse when somebody was faster, unless `force`.
    """
    with ExitStack() as claims:
        for namespace in function.namespaces():
            try:
                descriptor = function.machine.claim(namespace.name)
            except OSError as error:  # what cannot be opened cannot be mounted either
                if error.errno == errno.EBUSY and not force:
                    raise InUse(function, in_use(function) or [_taken(namespace)]) from error
            else:
                claims.callback(os.close, descriptor)
        return claims.pop_all()


def _taken(namespace: BlockNamespace) -> Finding:
    return Finding(f"/dev/{namespace.name}", "something has taken it just now", "see: lsblk, dmesg")


def _wait_for_nodes(function: PciFunction) -> None:
    bdf = function.bdf

    def ready() -> bool:
        return function.driver == VFIO_PCI and bool(function.vfio_nodes())

    if not wait_until(ready, BIND_BOUND_S):
        missing = "no node of it is in /dev/vfio" if function.driver == VFIO_PCI else "not bound"
        raise TransportError(
            f"{bdf}: vfio-pci has not taken it within {BIND_BOUND_S:g} s ({missing}); see: dmesg"
        )


def unbind(function: PciFunction) -> bool:
    """Give it back to the kernel's nvme driver; False if that has it already.

    Raises DeviceBusy while a program has it open, TransportError, ControllerGone.
    """
    if function.driver == KERNEL_NVME:
        return False
    _need_root(function, "unbind")
    users = vfio_users(function)
    if users:
        raise DeviceBusy(f"{function.bdf}: open in {', '.join(map(str, users))}; {_end(function)}")
    machine = function.machine
    if not machine.has_driver(KERNEL_NVME):
        machine.load_module(KERNEL_NVME)
    _move(function, KERNEL_NVME)
    bound = wait_until(lambda: function.driver == KERNEL_NVME, BIND_BOUND_S)
    machine.write(function.path / "driver_override", "\n")
    if not bound or not wait_until(lambda: function.state == "live", BIND_BOUND_S):
        raise TransportError(
            f"{function.bdf}: the kernel's nvme driver has not brought it up within "
            f"{BIND_BOUND_S:g} s (driver {function.driver or 'none'}, state "
            f"{function.state or 'none'}); see: dmesg"
        )
    if not wait_until(lambda: bool(function.namespaces()), SCAN_BOUND_S):
        log.warning("%s: the kernel shows no namespace of it", function.bdf)
    records.forget(function)
    return True


def _move(function: PciFunction, driver: str) -> None:
    """From the driver it has to another. The override holds even against `new_id` of others."""
    machine = function.machine
    machine.write(function.path / "driver_override", f"{driver}\n")
    if function.driver:
        machine.write(function.path / "driver/unbind", function.bdf)
    machine.write(machine.pci / "drivers_probe", function.bdf)


def _put_back(function: PciFunction) -> None:
    """After a bind that failed. What fails here is logged: the first failure is the news."""
    try:
        if function.driver != KERNEL_NVME:
            _move(function, KERNEL_NVME)
        function.machine.write(function.path / "driver_override", "\n")
        records.forget(function)
    except DriverError as error:
        log.error("%s: not put back to the kernel's driver: %s", function.bdf, error)


def vfio_users(function: PciFunction) -> list[Process]:
    """The processes that have it open through VFIO."""
    root = function.machine.root
    nodes = [f"/{node.relative_to(root)}" for node in function.vfio_nodes()]
    return holders(function.machine, nodes)


def mountpoints(machine: Machine, bdf: str) -> list[str]:
    """Where a filesystem of nvmefs on this controller is mounted."""
    return [
        each.mountpoint
        for each in mounts(machine.proc / "self/mountinfo")
        if each.type.startswith("fuse") and each.source.partition("/")[0] == bdf
    ]


def _end(function: PciFunction) -> str:
    where = mountpoints(function.machine, function.bdf)
    return f"umount {where[0]}" if where else "end it first"


def _need_root(function: PciFunction, verb: str) -> None:
    if not os.access(function.path / "driver_override", os.W_OK):
        raise TransportError(
            f"{function.bdf}: only root changes drivers: sudo nvmefs {verb} {function.bdf}"
        )


def give(function: PciFunction, user: str) -> list[Path]:
    """Its VFIO nodes, and /dev/iommu where it is used, to a user. Returns what was given.

    Raises AddressError for no such user, TransportError.
    """
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise AddressError(f"{user}: no such user") from None
    nodes = function.vfio_nodes()
    iommu = function.machine.dev / "iommu"
    if function.vfio_cdev() is not None and iommu.exists():
        nodes.append(iommu)
    for node in nodes:
        try:
            os.chown(node, uid, -1)
            node.chmod(0o600 | node.stat().st_mode & 0o777)
        except OSError as error:
            raise TransportError(f"{node}: cannot be given to {user}: {error.strerror}") from None
    return nodes
