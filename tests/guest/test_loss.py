"""The controller goes away under load, and the program goes away under load."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import FREE_PORT, MIB, image
from .guest import PYTHON, ROOT, Guest
from .machine import Controller, Namespace
from .test_filesystem import BIN, DIRECTORY

DEPTH = 32
LOAD_BYTES = 32 * MIB
PATTERN_BYTES = 8 * MIB
ENDS_WITHIN_S = 30.0
QUIET_S = 1.0


def load(address: str) -> list[str]:
    """The program of load.py."""
    return [PYTHON, "-m", "tests.guest.load", address, str(DEPTH), str(LOAD_BYTES)]


@contextmanager
def plugged(guest: Guest, directory: Path, nbytes: int = 64 * MIB) -> Iterator[str]:
    """The address of a controller that can be unplugged, on vfio-pci."""
    namespace = Namespace(image(directory, "plugged.img", nbytes))
    guest.machine.add_controller(Controller("plugged", [namespace]), FREE_PORT)
    bdf = guest.bdf("plugged")
    device = f"/sys/bus/pci/devices/{bdf}"
    guest.until(lambda: guest.exists(device) and guest.driver(bdf) == "nvme", bdf)
    guest.give(bdf, "vfio-pci")
    try:
        yield bdf
    finally:
        if guest.exists(device):
            guest.machine.remove_controller("plugged")


@pytest.mark.quick
def test_unplugged_under_load(guest: Guest, tmp_path: Path) -> None:
    with plugged(guest, tmp_path) as bdf, guest.start(load(bdf)) as job:
        job.wait_for("running")
        begin = time.monotonic()
        guest.machine.remove_controller("plugged", ENDS_WITHIN_S)
        result = job.wait()
        assert time.monotonic() - begin < ENDS_WITHIN_S
    assert result.status == 0, str(result)
    assert result.stdout.count("ControllerGone: ") == DEPTH, str(result)
    assert not guest.exists(f"/sys/bus/pci/devices/{bdf}")


def test_unplugged_under_the_c_core(guest: Guest, tmp_path: Path) -> None:
    """A thread that polls in C ends, and the last line says why."""
    with plugged(guest, tmp_path) as bdf:
        perf: list[str | Path] = [
            BIN / "nvmefs",
            "perf",
            bdf,
            "--qd",
            "32",
            "--time",
            "100",
            "--poll",
        ]
        with guest.start(perf) as job:
            guest.until(lambda: guest.machine.reads("plugged") > 1000 or job.ended(), "perf to run")
            guest.machine.remove_controller("plugged", ENDS_WITHIN_S)
            result = job.wait()
    assert result.status == 1, str(result)
    assert re.fullmatch(r"nvmefs perf: .*gone.*", result.stderr.rstrip().split("\n")[-1]), str(
        result
    )
    assert "Traceback" not in result.stderr


def test_unplugged_under_a_mount(guest: Guest, tmp_path: Path) -> None:
    """Programs get errors, the mountpoint can be unmounted, the daemon ends."""
    with plugged(guest, tmp_path) as bdf:
        made = guest.run([BIN / "mkfs.nvmefs", "--force", bdf])
        assert made.status == 0, str(made)
        guest.run(["mkdir", "-p", DIRECTORY], check=True)
        daemon = guest.start([BIN / "nvmefs", "-f", bdf, DIRECTORY], timeout_s=200)
        with daemon:
            guest.until(lambda: DIRECTORY in guest.read("/proc/mounts") or daemon.ended(), bdf)
            write = f"n=0; while dd if=/dev/urandom of={DIRECTORY}/$n bs=64k count=4 conv=fsync; "
            with guest.start(["sh", "-c", f"{write} do n=$((n+1)); echo $n; done"]) as writer:
                writer.wait_for("3")
                guest.machine.remove_controller("plugged", ENDS_WITHIN_S)
                result = writer.wait()
            assert "Input/output error" in result.stderr or "Read-only" in result.stderr
            assert guest.run(["umount", DIRECTORY], timeout_s=ENDS_WITHIN_S).status == 0
            daemon.wait()


@pytest.mark.quick
def test_killed_under_load(guest: Guest) -> None:
    """The device is quiet at once, goes back to the kernel's driver, and its other data are as before."""
    files = "/run/killed"
    bdf = guest.bdf("mdts7")
    _, second = guest.disks(bdf)
    guest.run(["mkfs.ext4", "-q", "-F", second], check=True)
    guest.run(["mkdir", "-p", files], check=True)
    guest.run(["mount", second, files], check=True)
    guest.run(["cp", "-r", ROOT / "driver", files], check=True)
    guest.run(["umount", files], check=True)
    one = guest.machine.controllers["mdts7"].namespaces[0].image
    pattern = random.Random(7).randbytes(PATTERN_BYTES)
    with open(one, "r+b") as out:
        out.seek(LOAD_BYTES)
        out.write(pattern)
    with guest.bound("mdts7"), guest.start(load(bdf)) as job:
        job.wait_for("running")
        job.kill()
        assert job.wait().status == -signal.SIGKILL
        before = os.stat(one).st_mtime_ns
        time.sleep(QUIET_S)  # what is to be seen is that nothing happens
        assert os.stat(one).st_mtime_ns == before, "the device still writes"
    first, second = guest.disks(bdf)
    guest.run(["e2fsck", "-fn", second], check=True)
    guest.run(["mount", second, files], check=True)
    try:
        guest.run(["diff", "-r", ROOT / "driver", f"{files}/driver"], check=True)
    finally:
        guest.run(["umount", files], check=True)
    read = f"dd if={first} iflag=direct bs=1M skip={LOAD_BYTES >> 20} count={PATTERN_BYTES >> 20}"
    digest = guest.run(["sh", "-c", f"{read} status=none | sha256sum"], check=True).stdout.split()[
        0
    ]
    assert digest == hashlib.sha256(pattern).hexdigest()
