"""The driver over VFIO on QEMU's controllers: transfers of every length around every limit, on each
MDTS and block size, with interrupts and by polling.

What the guest has written is compared with the image files on the host.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from . import transfers
from .conftest import MIB
from .guest import PYTHON, Guest
from .transfers import Report

KIB = 1 << 10
# The largest transfer: MDTS in pages of 4096 bytes; without one it is the driver's own bound.
LIMITS = {"mdts0": 2 * MIB, "mdts1": 8 * KIB, "mdts5": 128 * KIB, "mdts7": 512 * KIB}
TIME_BOUND_S = 280


def perform(guest: Guest, seed: int, mode: str, names: Sequence[str]) -> list[Report]:
    """Runs transfers.py in the guest on these controllers; their images are as they should be."""
    with ExitStack() as stack:
        addresses = [stack.enter_context(guest.bound(name)) for name in names]
        command = [PYTHON, "-m", "tests.guest.transfers", str(seed), mode, *addresses]
        result = guest.run(command, check=True, timeout_s=TIME_BOUND_S)
    reports = [Report(**fields) for fields in json.loads(result.stdout)]
    assert len(reports) == 2 * len(names)
    for report in reports:
        name = names[addresses.index(report.address)]
        image = guest.machine.controllers[name].namespaces[report.nsid - 1].image
        with open(image, "rb") as file:
            found = file.read(transfers.REGION_BYTES)
        assert found == transfers.expected(seed, report), f"{name}: the image of {report}"
        assert report.lba_bytes == {1: 512, 2: 4096}[report.nsid]
        assert report.limit_bytes == LIMITS.get(name, 512 * KIB)
        assert report.timeouts == report.lost_interrupts == 0
        assert report.interrupts > 0
    return reports


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("mdts0", "interrupt"),
        ("mdts0", "poll"),
        ("mdts1", "interrupt"),
        pytest.param("mdts1", "poll", marks=pytest.mark.quick),
        ("mdts5", "interrupt"),
        ("mdts5", "poll"),
        ("mdts7", "interrupt"),
        ("mdts7", "poll"),
    ],
)
def test_every_length_around_every_limit(guest: Guest, name: str, mode: str) -> None:
    perform(guest, 1, mode, [name])


@pytest.mark.quick
def test_one_queue_pair_and_two_vectors(guest: Guest) -> None:
    for report in perform(guest, 2, "interrupt", ["narrow"]):
        assert (report.io_queues, report.vectors) == (1, 2)


def test_two_controllers(guest: Guest) -> None:
    perform(guest, 3, "interrupt", ["mdts5", "mdts7"])
