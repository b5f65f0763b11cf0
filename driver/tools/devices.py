"""Verbs that change or show drivers of PCI functions: bind, unbind, list, doctor. No controller is opened.

Below: driver/pci. Above: cli.py, which hands over the parsed arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..address import parse_address
from ..errors import AddressError
from ..options import DriverOptions
from ..pci import binding, records
from ..pci.names import find
from ..pci.sysfs import Machine, PciFunction
from ..pci.usage import in_use
from . import doctor, show

Values = dict[str, Any]


def add_verbs(verbs: Any, shared: argparse.ArgumentParser) -> None:
    """Their arguments. `verbs` is what add_subparsers() returned."""
    words = "take a controller from the kernel's nvme driver, for nvmefs"
    bind = verbs.add_parser("bind", parents=[shared], help=words, description=words)
    bind.add_argument("spec", metavar="ADDRESS", help="0000:01:00.0, a serial, /dev/disk/by-id/...")
    bind.add_argument(
        "--force",
        action="store_true",
        help="even if it is in use: what is on it may be lost; ADDRESS in full, with its domain",
    )
    bind.add_argument("--user", metavar="NAME", help="who may use it from now on, without root")
    words = "give a controller back to the kernel's nvme driver"
    unbind = verbs.add_parser("unbind", parents=[shared], help=words, description=words)
    unbind.add_argument("spec", metavar="ADDRESS", help="its PCI address: 0000:01:00.0")
    words = "what would fail on this machine, and what cures it"
    check = verbs.add_parser("doctor", parents=[shared], help=words, description=words)
    check.add_argument("spec", metavar="ADDRESS", nargs="?", help="look at this controller only")


def answers(arguments: argparse.Namespace) -> bool:
    """Whether the verb is one of these: of `list` only the one without SPEC."""
    if arguments.verb == "list":
        return arguments.spec is None
    return arguments.verb == "doctor" or arguments.verb in _VERBS


def answer(arguments: argparse.Namespace, machine: Machine | None = None) -> tuple[Values, str]:
    """A verb's values, and the same as text. Raises DriverError."""
    machine = machine or Machine()
    if arguments.verb == "list":
        values = controllers(machine)
        return values, table(values)
    if arguments.verb == "doctor":
        function = find(machine, arguments.spec) if arguments.spec else None
        values = doctor.examine(machine, function)
        return values, doctor.text(values)
    values = _VERBS[arguments.verb](arguments, machine)
    return values, show.text(values)


# --- bind and unbind ------------------------------------------------------------------------------


def bind(arguments: argparse.Namespace, machine: Machine) -> Values:
    """Raises AddressError, InUse, TransportError, ControllerGone."""
    function = find(machine, arguments.spec)
    if arguments.force and arguments.spec.lower() != function.bdf:
        raise AddressError(
            f"{arguments.spec}: --force wants the address in full, typed by you: {function.bdf}"
        )
    changed = binding.bind(function, force=arguments.force)
    records.keep(function)
    values = {**_state(function), "changed": changed}
    if arguments.user is not None:
        given = binding.give(function, arguments.user)
        need = DriverOptions().dma_bytes
        values["given_to"] = arguments.user
        values["given"] = [str(node) for node in given]
        values["memlock_needed_bytes"] = need
        values["memlock_line"] = f"{arguments.user} - memlock {need >> 10}"
        values["memlock_file"] = "/etc/security/limits.d/nvmefs.conf"
    return values


def unbind(arguments: argparse.Namespace, machine: Machine) -> Values:
    """Raises AddressError, DeviceBusy, TransportError, ControllerGone."""
    function = find(machine, arguments.spec)
    changed = binding.unbind(function)
    names = [namespace.name for namespace in function.namespaces()]
    return {**_state(function), "namespaces": names, "changed": changed}


def _state(function: PciFunction) -> Values:
    group = function.iommu_group()
    return {
        "address": function.bdf,
        "driver": function.driver,
        "iommu_group": group.number if group else None,
        "nodes": [str(node) for node in function.vfio_nodes()],
    }


def refusal(error: binding.InUse) -> tuple[list[str], Values]:
    """A refusal with several reasons, a line for each; and as values."""
    findings = [
        {"where": each.where, "what": each.what, "cure": each.cure} for each in error.findings
    ]
    lines = [f"{error.bdf}: not taken, nothing was changed:"]
    lines += [f"  {each.where}: {each.what}\n      {each.cure}" for each in error.findings]
    lines.append(f"at your own risk: nvmefs bind {error.bdf} --force")
    return lines, {"address": error.bdf, "error": "in use", "findings": findings}


def give_back(spec: str, machine: Machine | None = None) -> Values:
    """After a reset: what a mount had borrowed, and could not give back for a crash, goes back.

    Raises DeviceBusy, TransportError, ControllerGone.
    """
    address = parse_address(spec)
    if address.kind != "pci":
        return {}
    function = (machine or Machine()).function(address.endpoint)
    if records.is_borrowed(function):
        binding.unbind(function)
    return {"driver": function.driver}


_VERBS = {"bind": bind, "unbind": unbind}


# --- list -----------------------------------------------------------------------------------------


def controllers(machine: Machine) -> Values:
    """All NVMe controllers here, whatever driver has them; nothing is opened."""
    return {"controllers": [_controller(function) for function in machine.functions()]}


def _controller(function: PciFunction) -> Values:
    group = function.iommu_group()
    values: Values = {
        "address": function.bdf,
        "vendor": f"{function.vendor:#06x}",
        "device": f"{function.device:#06x}",
        "driver": function.driver,
        "iommu_group": group.number if group else None,
        "numa_node": function.numa_node,
    }
    if function.controller_name:
        told, source = records.describe(function), "kernel"
    else:
        recalled = records.recall(function)
        told, source = (recalled, "record") if recalled else ({}, "")
    namespaces: list[Values] = told.get("namespaces", [])
    values |= {name: told.get(name, "") for name in ("model", "serial", "firmware")}
    values["known_from"] = source
    values["size_bytes"] = sum(each["size_bytes"] for each in namespaces)
    values["namespaces"] = namespaces
    values["in_use"] = [str(finding) for finding in in_use(function)] if source == "kernel" else []
    values["held_by"] = [
        {"pid": each.pid, "command": each.command} for each in binding.vfio_users(function)
    ]
    values["mounted_at"] = binding.mountpoints(function.machine, function.bdf)
    return values


def table(values: Values) -> str:
    """`controllers()` for reading: a line for each, and lines below it for what is on it."""
    rows: list[Sequence[str]] = [
        ("ADDRESS", "DRIVER", "GROUP", "MODEL", "SERIAL", "FIRMWARE", "SIZE")
    ]
    below: list[list[str]] = [[]]
    for each in values["controllers"]:
        group = each["iommu_group"]
        rows.append(
            (
                each["address"],
                each["driver"] or "-",
                "-" if group is None else str(group),
                each["model"] or "-",
                each["serial"] or "-",
                each["firmware"] or "-",
                _size(each["size_bytes"]) if each["namespaces"] else "-",
            )
        )
        below.append(_details(each))
    if len(rows) == 1:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, details in zip(rows, below, strict=True):
        lines.append("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)))
        lines += [f"  {line}" for line in details]
    return "\n".join(line.rstrip() for line in lines)


def _details(controller: Values) -> list[str]:
    lines = []
    was = "" if controller["known_from"] == "kernel" else ", was"
    for namespace in controller["namespaces"]:
        head = f"namespace {namespace['nsid']}{was} {namespace['name']}"
        for name, contents in namespace["contents"].items():
            held = ", ".join(contents) or "nothing recognised"
            lines.append(f"{head}: {held}" if name == namespace["name"] else f"  {name}: {held}")
        if namespace["name"] not in namespace["contents"]:
            lines.append(head)
    lines += [f"in use: {use}" for use in controller["in_use"]]
    if controller["held_by"]:
        processes = [f"{each['command']} (pid {each['pid']})" for each in controller["held_by"]]
        lines.append(f"held by {', '.join(processes)}")
    lines += [f"mounted at {where}" for where in controller["mounted_at"]]
    return lines


def _size(size_bytes: int) -> str:
    for power, unit in ((5, "PB"), (4, "TB"), (3, "GB"), (2, "MB")):
        if size_bytes >= 1000**power:
            return f"{size_bytes / 1000**power:.1f} {unit}"
    return f"{size_bytes} B"
