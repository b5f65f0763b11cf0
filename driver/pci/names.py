"""Names of controllers that stay with a drive, and those that do not.

    function = find(machine, "0000:01:00.0")     or a serial number, or /dev/disk/by-id/NAME

nvme0 may be another drive tomorrow, so it is refused, with the address that the drive has today. What
bind() took from the kernel's driver is still found by serial and by-id name: records.py has them.
"""

from __future__ import annotations

import os
import re

from ..errors import AddressError
from . import records
from .sysfs import BDF, Machine, PciFunction

BY_ID = "/dev/disk/by-id/"
_MOVING = re.compile(r"(?:/dev/)?((?:nvme|ng)([0-9]+)(?:n[0-9]+(?:p[0-9]+)?)?)")


def find(machine: Machine, text: str) -> PciFunction:
    """The controller of that address, serial number or by-id name. Raises AddressError."""
    if BDF.fullmatch(text):
        return machine.function(text)
    refuse_moving(machine, text)
    functions = machine.functions()
    if text.startswith(BY_ID):
        name = text.removeprefix(BY_ID)
        same = [function for function in functions if name in _by_id_names(function)]
    else:
        same = [function for function in functions if text and _serial(function) == text]
    if len(same) == 1:
        return same[0]
    if same:
        addresses = ", ".join(function.bdf for function in same)
        raise AddressError(f"{text}: {len(same)} controllers have this name: {addresses}")
    raise AddressError(
        f"{text}: no address, serial number or {BY_ID} name of a controller; {machine.known()}"
    )


def refuse_moving(machine: Machine, text: str) -> None:
    """Raises AddressError for nvme0, /dev/nvme0n1, /dev/ng0n1p1, with the address to give instead.

    A file that happens to have such a name elsewhere than in /dev is no device.
    """
    match = _MOVING.fullmatch(text)
    if match is None or (not text.startswith("/dev/") and os.path.exists(text)):
        return
    owner = owner_of(machine, match[1]) or owner_of(machine, f"nvme{match[2]}")
    cure = f"give its address, {owner.bdf}" if owner else machine.known()
    raise AddressError(f"{text}: such names change from boot to boot, so none is taken; {cure}")


def owner_of(machine: Machine, name: str) -> PciFunction | None:
    """The controller that the kernel reaches nvme0n1, nvme0n1p1, ng0n1 or nvme0 through."""
    block = name.replace("ng", "nvme", 1) if name.startswith("ng") else name
    for function in machine.functions():
        if block in function.block_names():
            return function
    return None


def _by_id_names(function: PciFunction) -> list[str]:
    record = records.recall(function) if not function.controller_name else None
    return list(record.get("by_id", ())) if record else function.by_id_names()


def _serial(function: PciFunction) -> str:
    record = records.recall(function) if not function.controller_name else None
    return str(record.get("serial", "")) if record else function.serial
