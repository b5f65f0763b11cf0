"""Bring-up by every way to VFIO that a kernel has, and what a real kernel refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import kernels
from .conftest import FREE_PORT, image, start
from .guest import PYTHON, ROOT, Guest, Result
from .machine import Controller, Namespace

NVMEFS = str(ROOT / ".venv/bin/nvmefs")
MODULE = "tests.guest.bringup"
NOBODY = 65534
MEMLOCK_BYTES = 8 << 20  # what Linux and systemd allow where nobody has set a limit
DEVICES = "/sys/bus/pci/devices"


def has_iommufd(guest: Guest) -> bool:
    return guest.exists("/dev/iommu")


def brought_up(guest: Guest, bdf: str, *words: str) -> dict[str, Any]:
    """What bringup.py reports."""
    result = guest.run([PYTHON, "-m", MODULE, bdf, *words])
    assert result.status == 0, str(result)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def as_nobody(guest: Guest, memlock_bytes: int, *words: str) -> Result:
    """A program with neither capabilities nor groups."""
    limit = ["prlimit", f"--memlock={memlock_bytes}:{memlock_bytes}"]
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return guest.run([*limit, *user, *words])


def refusal(guest: Guest, bdf: str, *words: str) -> str:
    """The one line of a query that must fail."""
    result = guest.nvmefs("id-ctrl", bdf, *words)
    assert result.status == 1, str(result)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@contextmanager
def hidden(guest: Guest, node: str) -> Iterator[None]:
    """As if the kernel had no such node."""
    guest.run(["mv", node, f"{node}.hidden"], check=True)
    try:
        yield
    finally:
        guest.run(["mv", f"{node}.hidden", node], check=True)


# ---- ways ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [pytest.param("interrupt", marks=pytest.mark.quick), "poll"])
def test_bring_up(guest: Guest, mode: str) -> None:
    with guest.bound("mdts5") as bdf:
        report = brought_up(guest, bdf, mode)
        assert report["way"] == ("iommufd" if has_iommufd(guest) else "group")
        assert report["vectors"] == 3
        assert report["doorbells"] == 0x3000, "QEMU's BAR 0 can be mapped as a whole"
        assert (report["polled"] > 0) == (mode == "poll")
        assert report["interrupts"] > 5, "of the admin queue at least"
        assert report["ranges"][0] == [0, 0xFEDFFFFF], "up to the window for interrupts"
        assert report["ranges"][-1][1] <= (1 << 48) - 1
        assert guest.driver(bdf) == "vfio-pci", "it stays there"
        assert brought_up(guest, bdf, mode)["way"] == report["way"], "and can be opened again"


def test_the_group_of_a_kernel_with_iommufd(guest: Guest) -> None:
    if not has_iommufd(guest):
        pytest.skip("this kernel has no iommufd: every other test goes by the group")
    with guest.bound("mdts5") as bdf, hidden(guest, "/dev/iommu"):
        report = brought_up(guest, bdf, "interrupt")
        assert report["way"] == "group"
        assert "/dev/vfio/vfio" in report["nodes"]


def test_by_an_ordinary_user(guest: Guest) -> None:
    """Refused with the command that gives a node away, until all are; then it just works."""
    guest.run(["chmod", "o+x", "/root"], check=True)  # the guest's own: Python may lie below it
    with guest.bound("mdts5") as bdf:
        query = (NVMEFS, "id-ctrl", bdf)
        given = []
        for _ in range(4):
            result = as_nobody(guest, MEMLOCK_BYTES, *query)
            if result.status == 0:
                break
            cure = re.fullmatch(
                r".*Permission denied; as root: (chown \w+ (/dev/\S+))\n", result.stderr
            )
            assert cure, str(result)
            guest.run(cure[1].split(), check=True)
            given.append(cure[2])
        else:
            pytest.fail(f"refused after {given} had been given away")
        nodes = 2 if has_iommufd(guest) else 1
        assert len(given) == nodes, given
        report = as_nobody(guest, MEMLOCK_BYTES, PYTHON, "-m", MODULE, bdf, "interrupt")
        assert report.status == 0, str(report)

        low = as_nobody(guest, 1 << 20, *query)
        assert low.status == 1
        assert "DMA memory needs 8192 KiB of locked memory, 1024 KiB are allowed" in low.stderr
        assert "ulimit -l 8192" in low.stderr


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.quick
def test_refusals(guest: Guest) -> None:
    bdf = guest.bdf("mdts5")
    assert f"bound to the driver nvme, not to vfio-pci; give it away with: nvmefs bind {bdf}" in (
        refusal(guest, bdf)
    )
    assert "0000:00:00.0: not an NVMe controller (PCI class 060000" in refusal(guest, "00:00.0")
    assert "0000:ff:00.0: no such PCI device" in refusal(guest, "0000:ff:00.0")


def test_a_device_in_use(guest: Guest) -> None:
    with guest.bound("mdts5") as bdf:
        code = (
            "import sys, time; from driver import parse_address, DriverOptions\n"
            "from driver.transports.vfio import open_vfio\n"
            "t = open_vfio(parse_address(sys.argv[1]), DriverOptions())\n"
            "print('open', flush=True); time.sleep(100)"
        )
        with guest.start([PYTHON, "-c", code, bdf]) as job:
            job.wait_for("open")
            assert re.search(
                r"/dev/vfio/\S+ is in use by process \d+ \(python", refusal(guest, bdf)
            )
        guest.nvmefs("id-ctrl", bdf)


def test_unbound_while_open(guest: Guest) -> None:
    """The kernel asks for the device and waits until it has it: that must not take long."""
    with guest.bound("mdts5") as bdf:
        code = (
            "import sys, trio; from driver import open_controller, ControllerGone\n"
            "async def main():\n"
            "    async with await open_controller(sys.argv[1]) as controller:\n"
            "        namespace = await controller.namespace()\n"
            "        print('open', flush=True)\n"
            "        while True:\n"
            "            await namespace.read(0, bytearray(4096))\n"
            "try:\n"
            "    trio.run(main)\n"
            "except ControllerGone as error:\n"
            "    print(error)\n"
        )
        with guest.start([PYTHON, "-c", code, bdf]) as job:
            job.wait_for("open")
            guest.write(f"{DEVICES}/{bdf}/driver/unbind", bdf)
            result = job.wait()
            assert "the kernel has taken it back" in result.stdout, str(result)
        assert guest.driver(bdf) == ""


def test_a_group_that_is_not_viable(guest: Guest, tmp_path: Path) -> None:
    """Two functions behind one root port are one group; the kernel's driver has the other one."""
    machine = guest.machine
    for function in (1, 0):
        properties: dict[str, str | int] = {"addr": f"0.{function}", "multifunction": "on"}
        namespace = Namespace(image(tmp_path, f"function{function}.img"))
        machine.add_controller(
            Controller(f"function{function}", [namespace], properties), FREE_PORT
        )
    first = guest.bdf("function0")
    second = first[:-1] + "1"
    try:
        for bdf in (first, second):
            guest.until(
                lambda bdf=bdf: guest.exists(f"{DEVICES}/{bdf}") and guest.driver(bdf) == "nvme",
                bdf,
            )
        guest.give(first, "vfio-pci")
        text = refusal(guest, first)
        assert "is not viable" in text
        assert f"the kernel still uses {second} (driver nvme)" in text
        guest.give(second, "vfio-pci")
        assert guest.nvmefs("id-ctrl", first).status == 0
    finally:
        machine.qmp("device_del", id="function0")
        for name in ("function0", "function1"):
            machine.wait_unplugged(name)


# ---- without an IOMMU ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest without an IOMMU; only the built kernel lets VFIO do without."""
    directory = tmp_path_factory.mktemp("guest-bare")
    controllers = [Controller("bare", [Namespace(image(directory, "bare.img"))])]
    append = "hugepages=16 vfio.enable_unsafe_noiommu_mode=1"
    with start(kernels.BUILT, directory, controllers, iommu=False, append=append) as machine:
        yield Guest(machine)


@pytest.mark.parametrize("mode", ["interrupt", "poll"])
def test_without_an_iommu(bare: Guest, mode: str) -> None:
    bare.mark()
    with bare.bound("bare") as bdf:
        assert "no IOMMU translates for it" in refusal(bare, bdf)
        report = brought_up(bare, bdf, mode, "noiommu")
        assert report["way"] == "noiommu"
        assert report["vectors"] == 3
        assert (report["polled"] > 0) == (mode == "poll")
        result = bare.nvmefs("id-ctrl", bdf, "--noiommu")
        assert result.status == 0
        assert "nothing keeps the controller from" in result.stderr
    bare.check()


def test_without_an_iommu_and_without_memory(bare: Guest) -> None:
    pages = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    with bare.bound("bare") as bdf:
        bare.write(pages, "1")
        assert (
            f"no 8 MiB of huge pages: Cannot allocate memory; 4 huge pages of 2 MiB are needed: "
            f"echo 4 > {pages}" in refusal(bare, bdf, "--noiommu")
        )
        bare.write(pages, "16")
        bare.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
        assert "enable_unsafe_noiommu_mode=1" in refusal(bare, bdf, "--noiommu")
        bare.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
