"""`nvmefs perf` on our driver beside fio on the kernel's, on one controller of one guest.

Code runs slower under TCG by a factor of ten or more, and so does the controller, so that no number of
these means anything: their ratio does. Both take turns, the medians are compared, and the ratios are
printed (pytest -rP).
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator

import pytest

from .conftest import FREE_PORT
from .guest import Guest
from .machine import NULL, Controller, Namespace

TURNS = 3
SECONDS = 2
ENGINES = ("psync", "libaio", "io_uring")


def kernel_iops(guest: Guest, disk: str, depth: int, engine: str) -> float:
    """Random reads of 4 KiB by fio on the kernel's driver."""
    options = f"--direct=1 --rw=randread --bs=4k --iodepth={depth} --ioengine={engine}"
    time = f"--time_based --runtime={SECONDS} --ramp_time=0.2 --norandommap --group_reporting"
    command = f"fio --name=kernel --filename={disk} --output-format=json {options} {time}"
    result = guest.run(command.split(), check=True)
    return float(json.loads(result.stdout)["jobs"][0]["read"]["iops"])


def our_iops(guest: Guest, bdf: str, depth: int, *options: str) -> float:
    """The same by `nvmefs perf`."""
    words = ["perf", bdf, "--qd", str(depth), "--time", str(SECONDS), "-o", "json", *options]
    result = guest.nvmefs(*words)
    assert result.status == 0, str(result)
    return float(json.loads(result.stdout)["iops"])


@pytest.fixture
def bdf(guest: Guest) -> Iterator[str]:
    """A controller without a medium: what takes time is the way to it, and not the host's disk."""
    properties: dict[str, str | int] = {"logical_block_size": 4096, "physical_block_size": 4096}
    guest.machine.add_controller(Controller("null", [Namespace(NULL)], properties), FREE_PORT)
    bdf = guest.bdf("null")
    guest.until(lambda: guest.exists(f"/sys/bus/pci/devices/{bdf}"), bdf)
    yield bdf
    guest.machine.remove_controller("null")


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.parametrize("depth", [1, 32])
def test_beside_the_kernels_driver(guest: Guest, bdf: str, depth: int) -> None:
    engines = ENGINES if depth == 1 else ENGINES[1:]
    theirs: dict[str, list[float]] = {engine: [] for engine in engines}
    ours: dict[str, list[float]] = {"": [], "--poll": [], "--interrupt": []}
    for _ in range(TURNS):
        (disk,) = guest.disks(bdf, 1)
        for engine in theirs:
            theirs[engine].append(kernel_iops(guest, disk, depth, engine))
        with guest.bound("null"):
            for option in ours:
                ours[option].append(our_iops(guest, bdf, depth, *filter(None, [option])))
    print(f"kernel {guest.machine.kernel.name}, {depth} in flight")
    medians = {name: statistics.median(values) for name, values in (theirs | ours).items()}
    best = max(medians[engine] for engine in theirs)
    for name, iops in medians.items():
        values = " ".join(f"{value:.0f}" for value in (theirs | ours)[name])
        print(f"{name or 'adaptive':12} {iops:9.0f}/s   {iops / best:5.2f} of fio   ({values})")
    assert medians[""] >= best
