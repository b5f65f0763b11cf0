"""`nvmefs controller` as the drive of a virtual machine: QEMU is the client of vfio-user, and the guest's
kernel drives the controller with its own nvme driver. It takes a QEMU that has vfio-user-pci (vmm.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.vfio_user.conftest import Server

from . import kernels, vmm
from .conftest import MIB, image
from .guest import ROOT, Guest
from .machine import Machine, missing

NBYTES = 256 * MIB
PATTERN_BYTES = 8 * MIB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A controller in a process of its own."""
    server = Server(
        image(tmp_path, "served.img", NBYTES),
        str(tmp_path / "cntrl"),
        tmp_path / "server.log",
        "--queues",
        "2",
        "--write-cache",
        "volatile",
    )
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.kill()


@pytest.fixture
def virtual(server: Server, tmp_path: Path) -> Iterator[Guest]:
    """A guest whose only drive it is."""
    if reason := missing():
        pytest.skip(reason)
    try:
        kernel, qemu = kernels.find("6.12"), vmm.find()
    except kernels.NoKernel as error:
        pytest.skip(str(error))
    device = {
        "driver": vmm.DEVICE,
        "id": "served",
        "socket": {"type": "unix", "path": server.path},
    }
    more = ["-device", json.dumps(device)]
    with Machine(kernel, tmp_path / "console", iommu=False, program=qemu, more=more) as machine:
        guest = Guest(machine)
        guest.mark()
        yield guest
        guest.check()


def digest(path: Path, first: int, nbytes: int) -> str:
    with path.open("rb") as file:
        file.seek(first)
        return hashlib.sha256(file.read(nbytes)).hexdigest()


def test_the_kernels_driver_on_our_controller(virtual: Guest, server: Server) -> None:
    """What it writes is in the image, what is in the image it reads, and a filesystem lives there."""
    virtual.until(lambda: virtual.exists("/sys/class/block/nvme0n1"), "the namespace")
    assert int(virtual.read("/sys/class/block/nvme0n1/size")) * 512 == NBYTES
    assert virtual.read("/sys/class/nvme/nvme0/state").strip() == "live"
    assert "write back" in virtual.read("/sys/block/nvme0n1/queue/write_cache")

    pattern = random.Random(3).randbytes(PATTERN_BYTES)
    descriptor = os.open(server.image, os.O_WRONLY)
    os.pwrite(descriptor, pattern, NBYTES - PATTERN_BYTES)
    os.close(descriptor)
    last = (NBYTES - PATTERN_BYTES) // MIB
    copy = (
        f"dd if=/dev/nvme0n1 of=/dev/nvme0n1 bs=1M skip={last} count=8 iflag=direct oflag=direct "
        "conv=fsync status=none"
    )
    virtual.run(["sh", "-c", copy], check=True)
    assert digest(server.image, 0, PATTERN_BYTES) == hashlib.sha256(pattern).hexdigest()

    tree = "mkfs.ext4 -q -F /dev/nvme0n1 && mkdir -p /run/there && mount /dev/nvme0n1 /run/there"
    virtual.run(["sh", "-c", tree], check=True)
    virtual.run(["cp", "-r", ROOT / "driver", "/run/there"], check=True)
    virtual.run(["sh", "-c", "sync; fstrim /run/there; umount /run/there"], check=True)
    virtual.run(["sh", "-c", "mount /dev/nvme0n1 /run/there"], check=True)
    virtual.run(["diff", "-r", ROOT / "driver", "/run/there/driver"], check=True)
    virtual.run(["umount", "/run/there"], check=True)
    virtual.run(["e2fsck", "-fn", "/dev/nvme0n1"], check=True)

    virtual.write("/sys/class/nvme/nvme0/reset_controller", "1")
    virtual.until(lambda: virtual.read("/sys/class/nvme/nvme0/state").strip() == "live", "reset")
    read = "dd if=/dev/nvme0n1 bs=1M iflag=direct status=none | sha256sum"
    said = virtual.run(["sh", "-c", read], check=True).stdout.split()[0]
    assert said == digest(server.image, 0, NBYTES)
