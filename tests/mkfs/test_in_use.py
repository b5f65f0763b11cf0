"""mkfs.nvmefs on what the kernel uses: refused in one line with the cure, and left as it was."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.errors import AddressError
from mkfs import in_use
from mkfs.cli import ToolError
from mkfs.mkfs import main as mkfs
from tests.driver.pci.fake import FakeMachine, put

BDF = "0000:01:00.0"
CONTENTS = b"precious" * (4 << 20)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENTS)
    return path


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    fake = FakeMachine(tmp_path / "machine")
    put(fake.proc / "swaps", "Filename Type Size Used Priority\n")
    return fake


@pytest.fixture
def loop(image: Path) -> Iterator[str]:
    """The image behind a real loop device."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    made = subprocess.run(
        ["losetup", "--find", "--show", image],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True, timeout=30)


@pytest.mark.parametrize("options", [["-f"], ["-f", "--size", "64M"], []])
def test_real_loop_device(
    image: Path, loop: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mkfs([str(image), *options]) == 1
    wanted = f"mkfs.nvmefs: {image} is attached to {loop}: losetup -d {loop}\n"
    assert capsys.readouterr().err == wanted
    assert image.read_bytes() == CONTENTS


def test_real_block_device(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mkfs([loop, "-f"]) == 1
    error = capsys.readouterr().err
    assert f"{loop} is a block device of the kernel, and of no NVMe controller" in error
    assert error.count("\n") == 1


def test_loop_that_is_mounted(image: Path, machine: FakeMachine) -> None:
    machine.add_block("loop3")
    put(machine.sys / "block/loop3/loop/backing_file", f"{image}\n")
    machine.mount("loop3", "/mnt/a")
    with pytest.raises(ToolError) as refused:
        in_use.refuse(image, machine)
    assert str(refused.value) == (
        f"{image} is attached to /dev/loop3, /dev/loop3 mounted at /mnt/a (ext4): "
        "umount /mnt/a, then losetup -d /dev/loop3"
    )


def test_other_files_behind_loop_and_swap(image: Path, machine: FakeMachine) -> None:
    other = image.with_name("other")
    other.touch()
    machine.add_block("loop3")
    put(machine.sys / "block/loop3/loop/backing_file", f"{other}\n")
    put(machine.sys / "block/loop4/loop/backing_file", f"{image} (deleted)\n")
    put(machine.proc / "swaps", f"Filename Type Size Used Priority\n{other} file 1 0 -2\n")
    in_use.refuse(image, machine)


def test_kernel_without_swap(image: Path, machine: FakeMachine) -> None:
    (machine.proc / "swaps").unlink()
    in_use.refuse(image, machine)


def test_swap_file(image: Path, machine: FakeMachine) -> None:
    swap = image.rename(image.with_name("swap file"))
    escaped = str(swap).replace(" ", "\\040")
    put(machine.proc / "swaps", f"Filename Type Size Used Priority\n{escaped} file 1 0 -2\n")
    with pytest.raises(ToolError) as refused:
        in_use.refuse(swap, machine)
    assert str(refused.value) == f"{swap} is in use as swap: swapoff '{swap}'"


@pytest.mark.parametrize("name", ["nvme0n1", "nvme0n1p1"])
def test_drive_of_the_kernel(machine: FakeMachine, name: str) -> None:
    machine.add_drive(BDF, partitions=1)
    node = Path("/dev") / name
    with pytest.raises(ToolError) as refused:
        in_use.refuse_block(node, name, machine)
    assert str(refused.value) == (
        f"{node} belongs to the kernel's driver: nvmefs bind {BDF}, then mkfs.nvmefs {BDF}"
    )


def test_drive_with_a_mounted_partition(machine: FakeMachine) -> None:
    machine.add_drive(BDF, partitions=2)
    machine.mount("nvme0n1p2", "/srv")
    with pytest.raises(ToolError) as refused:
        in_use.refuse_block(Path("/dev/nvme0n1"), "nvme0n1", machine)
    assert str(refused.value) == (
        "/dev/nvme0n1 is in use, /dev/nvme0n1p2 mounted at /srv (ext4): umount /srv"
    )


def test_volume_on_a_drive(machine: FakeMachine) -> None:
    machine.add_drive(BDF)
    path = machine.add_block("dm-0", holds="nvme0n1")
    put(path / "dm/name", "vg-data")
    put(path / "dm/uuid", "LVM-abc")
    with pytest.raises(ToolError, match=r"LVM volume vg-data: vgchange --activate n vg$"):
        in_use.refuse_block(Path("/dev/nvme0n1"), "nvme0n1", machine)


def test_md_member(machine: FakeMachine) -> None:
    machine.add_drive(BDF, partitions=1)
    path = machine.add_block("md127", holds="nvme0n1p1")
    put(path / "md/level", "raid1")
    with pytest.raises(ToolError, match=r"md array md127: mdadm --stop /dev/md127$"):
        in_use.refuse_block(Path("/dev/nvme0n1"), "nvme0n1", machine)


def test_name_that_moves(machine: FakeMachine) -> None:
    machine.add_drive(BDF)
    with pytest.raises(AddressError, match=f"give its address, {BDF}"):
        in_use.refuse(Path("/dev/nvme0n99"), machine)


def test_name_of_a_device(machine: FakeMachine) -> None:
    status = os.stat("/dev/null")
    assert stat.S_ISCHR(status.st_mode)
    assert in_use.name_of(status, machine) == "1:3"
    in_use.refuse(Path("/dev/null"), machine)
