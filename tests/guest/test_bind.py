"""`nvmefs list`, `bind` and `unbind` on a real kernel: refusals while something is in use, there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .guest import ROOT, Guest, Result

MOUNTPOINT = "/run/kept"


def answer(result: Result, status: int = 0) -> dict[str, Any]:
    assert result.status == status, str(result)
    assert result.stdout, str(result)
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def listed(guest: Guest, bdf: str) -> dict[str, Any]:
    values = answer(guest.nvmefs("list", "-o", "json"))
    found: dict[str, Any] = next(each for each in values["controllers"] if each["address"] == bdf)
    return found


@contextmanager
def held(guest: Guest, node: str) -> Iterator[None]:
    """A program has `node` open."""
    with guest.start(["sh", "-c", f"exec 3<>{node}; echo open; exec sleep 1000"]) as holder:
        holder.wait_for("open")
        yield
        holder.kill()
        holder.wait()


@pytest.mark.quick
def test_there_and_back(guest: Guest) -> None:
    bdf = guest.bdf("mdts1")
    before = listed(guest, bdf)
    assert (before["driver"], before["known_from"], before["in_use"]) == ("nvme", "kernel", [])
    assert [each["size_bytes"] for each in before["namespaces"]] == [64 << 20] * 2
    taken = answer(guest.nvmefs("bind", before["serial"], "-o", "json"))
    try:
        assert (taken["driver"], taken["changed"]) == ("vfio-pci", True)
        assert all(guest.exists(node) for node in taken["nodes"])
        assert taken["nodes"]
        during = listed(guest, bdf)
        assert (during["serial"], during["known_from"]) == (before["serial"], "record")
        with held(guest, taken["nodes"][-1]):
            refused = guest.nvmefs("unbind", bdf)
            assert refused.status == 1
            assert "open in sleep" in refused.stderr
    finally:
        back = answer(guest.nvmefs("unbind", bdf, "-o", "json"))
    assert back["driver"] == "nvme"
    assert len(back["namespaces"]) == 2
    after = listed(guest, bdf)
    assert {**after, "namespaces": 0} == {**before, "namespaces": 0}


def test_what_is_mounted_is_not_taken(guest: Guest) -> None:
    bdf = guest.bdf("mdts0")
    disk = guest.disks(bdf)[0]
    guest.run(["mkfs.ext4", "-q", "-F", disk], check=True)
    guest.run(["mkdir", "-p", MOUNTPOINT], check=True)
    guest.run(["mount", disk, MOUNTPOINT], check=True)
    try:
        refused = guest.nvmefs("bind", bdf, "-o", "json")
        cures = [each["cure"] for each in answer(refused, 1)["findings"]]
    finally:
        guest.run(["umount", MOUNTPOINT], check=True)
    assert cures == [
        f"umount {MOUNTPOINT}",
        f"if nothing of it is needed: wipefs --all {disk}",
    ]
    assert guest.driver(bdf) == "nvme"
    for cure in cures[1:]:
        guest.run(["sh", "-c", cure.partition(": ")[2]], check=True)
    with held(guest, disk):
        refused = guest.nvmefs("bind", bdf)
        assert refused.status == 1
        assert "open in sleep" in refused.stderr
    assert answer(guest.nvmefs("bind", bdf, "-o", "json"))["changed"]
    assert answer(guest.nvmefs("unbind", bdf, "-o", "json"))["changed"]


@pytest.mark.quick
def test_taken_for_a_mount(guest: Guest) -> None:
    """With -o take it is on vfio-pci while it is mounted; after a kill the next mount gives it back."""
    bdf = guest.bdf("mdts7")
    guest.run(["mkdir", "-p", MOUNTPOINT], check=True)
    assert guest.nvmefs("bind", bdf).status == 0
    made = guest.run([ROOT / ".venv/bin/mkfs.nvmefs", "--force", bdf])
    assert made.status == 0, str(made)
    assert guest.nvmefs("unbind", bdf).status == 0
    for killed in (True, False):
        mounted = guest.nvmefs(bdf, MOUNTPOINT, "-o", "take")
        assert mounted.status == 0, str(mounted)
        entry = listed(guest, bdf)
        assert (entry["driver"], entry["mounted_at"]) == ("vfio-pci", [MOUNTPOINT])
        guest.write(f"{MOUNTPOINT}/{killed}", "kept")
        pid = str(entry["held_by"][0]["pid"])
        if killed:
            guest.run(["sync", f"{MOUNTPOINT}/{killed}"], check=True)
            guest.run(["kill", "-9", pid], check=True)
        else:
            assert guest.read(f"{MOUNTPOINT}/True") == "kept"
            guest.run(["umount", MOUNTPOINT], check=True)
        if killed:
            guest.until(lambda: not listed(guest, bdf)["held_by"], "the end of the daemon")
            assert guest.driver(bdf) == "vfio-pci"
        else:
            guest.until(lambda: guest.driver(bdf) == "nvme", "the kernel's driver")
    assert listed(guest, bdf)["in_use"] == []
