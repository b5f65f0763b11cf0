"""The test bed itself: programs, files, time, devices, the kernel's log."""

from __future__ import annotations

import signal
import time

import pytest

from .guest import ROOT, Guest
from .machine import GuestError


def test_runs_programs(guest: Guest) -> None:
    result = guest.run(["sh", "-c", "echo out; echo err >&2; cat; exit 3"], input="in")
    assert (result.status, result.stdout, result.stderr) == (3, "out\nin", "err\n")
    assert guest.run(["sh", "-c", "kill -TERM $$"]).status == -signal.SIGTERM
    with pytest.raises(FileNotFoundError):
        guest.run(["/nowhere"])
    with pytest.raises(GuestError, match="status 1"):
        guest.run(["false"], check=True)
    assert guest.python("import driver, sys; print(driver.__file__)").strip() == str(
        ROOT / "driver/__init__.py"
    )


def test_time_is_bounded(guest: Guest) -> None:
    begin = time.monotonic()
    with pytest.raises(GuestError, match=r"killed after its time was over.*\nbefore"):
        guest.run(["sh", "-c", "echo before; sleep 1000"], timeout_s=0.5)
    assert time.monotonic() - begin < 20


def test_programs_run_beside_one_another(guest: Guest) -> None:
    with guest.start(["sh", "-c", "echo ready; exec sleep 1000"]) as job:
        job.wait_for("ready")
        assert guest.run(["true"]).status == 0
        with pytest.raises(GuestError, match="no 'never'"):
            job.wait_for("never", bound_s=0.2)
        job.kill()
        assert job.wait().status == -signal.SIGKILL


def test_the_hosts_files_stay(guest: Guest) -> None:
    here = ROOT / "tests/guest/written-in-the-guest"
    guest.write(str(here), "text")
    assert guest.read(str(here)) == "text"
    guest.run(["rm", here], check=True)
    assert not here.exists()


def test_controllers_change_drivers(guest: Guest) -> None:
    with guest.bound("mdts7") as bdf:
        assert guest.driver(bdf) == "vfio-pci"
    assert guest.driver(bdf) == "nvme"
    assert len(guest.disks(bdf)) == 2


@pytest.mark.parametrize(
    "line",
    [
        "DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0x1000 [fault reason 0x06]",
        "BUG: kernel NULL pointer dereference",
        "WARNING: CPU: 0 PID: 1 at drivers/vfio/vfio_main.c:1",
    ],
)
def test_a_complaint_fails_a_test(guest: Guest, line: str) -> None:
    guest.say(line)
    with pytest.raises(AssertionError, match="has complained"):
        guest.check()
    guest.mark()
