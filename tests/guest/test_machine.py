"""What the tests take for granted of QEMU and of the guest's kernel: faults that show, plugging."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import FREE_PORT, MIB, image
from .guest import Guest
from .machine import Controller, GuestError, Namespace

# A controller without a driver reads its admin queue from an address that nobody has mapped.
STRAY_DMA = """
import mmap, struct, sys
base = f"/sys/bus/pci/devices/{sys.argv[1]}/"
with open(base + "config", "r+b", buffering=0) as config:
    config.seek(4)
    command = config.read(2)
    config.seek(4)
    config.write(struct.pack("<H", 6))
    with open(base + "resource0", "r+b", buffering=0) as bar:
        registers = mmap.mmap(bar.fileno(), 0x2000)
        def write(offset, value):
            registers[offset : offset + 4] = struct.pack("<I", value)
        write(0x14, 0)
        write(0x24, 0x000F000F)
        for offset, value in ((0x28, 0x1000), (0x2C, 0), (0x30, 0x2000), (0x34, 0)):
            write(offset, value)
        write(0x14, 0x00460001)
        while not registers[0x1C] & 3:
            pass
        write(0x1000, 1)
        while not registers[0x1C] & 2:  # it fetches on a thread of its own, and only as bus master
            pass
        print("CSTS", registers[0x1C])
    config.seek(4)
    config.write(command)
"""


def test_stray_dma_is_a_fault(guest: Guest) -> None:
    bdf = guest.bdf("narrow")
    guest.write(f"/sys/bus/pci/devices/{bdf}/driver/unbind", bdf)
    guest.write(f"/sys/bus/pci/devices/{bdf}/enable", "1")
    guest.python(STRAY_DMA, bdf)
    guest.until(guest.complaints, "a DMAR fault")
    with pytest.raises(AssertionError, match=r"DMAR: .*fault"):
        guest.check()
    guest.mark()
    guest.give(bdf, "nvme")
    assert guest.disks(bdf)


def test_plugs_and_unplugs(guest: Guest, tmp_path: Path) -> None:
    plugged = Controller("plugged", [Namespace(image(tmp_path, "plugged.img", 8 * MIB))])
    for _ in range(2):
        guest.machine.add_controller(plugged, FREE_PORT)
        bdf = guest.bdf("plugged")
        guest.until(lambda bdf=bdf: guest.exists(f"/sys/bus/pci/devices/{bdf}"), bdf)
        assert guest.read(f"/sys/class/block/{guest.disks(bdf, 1)[0][5:]}/size") == f"{8 * 2048}\n"
        guest.machine.remove_controller("plugged")
        assert not guest.exists(f"/sys/bus/pci/devices/{bdf}")
        with pytest.raises(GuestError, match="no controller plugged"):
            guest.bdf("plugged")
