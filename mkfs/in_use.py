"""Image files and device nodes that the kernel uses: nothing is made on them, with or without --force.

Below: driver.pci (who uses a block device, whose it is).  Above: image.py.

    in_use.refuse(path)         ToolError: what holds it, and the command that ends that

Processes that have an image open are found by its lock; the kernel takes none for loop and swap.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from driver.pci.names import owner_of, refuse_moving
from driver.pci.sysfs import Machine
from driver.pci.usage import of_block, of_file
from mkfs.cli import ToolError

_HERE = Machine()


def refuse(path: Path, machine: Machine = _HERE) -> None:
    """Raises ToolError or AddressError if the kernel has `path`; a file that is not there is free."""
    try:
        status = path.stat()
    except FileNotFoundError:
        refuse_moving(machine, str(path))
        return
    if stat.S_ISREG(status.st_mode):
        refuse_file(path, machine)
    elif stat.S_ISBLK(status.st_mode):
        refuse_block(path, name_of(status, machine), machine)
    elif stat.S_ISCHR(status.st_mode):
        refuse_moving(machine, str(path.resolve()))


def refuse_file(path: Path, machine: Machine) -> None:
    """An image behind /dev/loop0, and what is mounted or made of that; a file that the kernel swaps to."""
    users = of_file(machine, path)
    if users:
        *upon_it, itself = users
        what = "".join(f", {user.where} {user.what}" for user in upon_it)
        cures = ", then ".join(user.cure for user in users)
        raise ToolError(f"{path} is {itself.what}{what}: {cures}")


def refuse_block(path: Path, name: str, machine: Machine) -> None:
    """Every block device: an NVMe drive is taken by its address, other drives not at all."""
    for user in of_block(machine, name):
        raise ToolError(f"{path} is in use, {user.where} {user.what}: {user.cure}")
    owner = owner_of(machine, name)
    if owner is None:
        raise ToolError(
            f"{path} is a block device of the kernel, and of no NVMe controller: give a "
            "controller's address (see nvmefs list) or an image file"
        )
    bdf = owner.bdf
    raise ToolError(
        f"{path} belongs to the kernel's driver: nvmefs bind {bdf}, then mkfs.nvmefs {bdf}"
    )


def name_of(status: os.stat_result, machine: Machine) -> str:
    """What the kernel calls a block device; its numbers, if it does not know it."""
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        return os.readlink(machine.sys / "dev/block" / number).rpartition("/")[2]
    except FileNotFoundError:
        return number
