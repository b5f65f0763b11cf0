"""The kernel's interface, as driver/transports/vfio_abi.py has it, against the kernel's own headers.

A C program prints numbers, sizes and offsets from the headers. <linux/vfio.h> is there wherever the
project can be built; headers older than Linux 6.6 lack the device nodes and iommufd, and then those
parts are taken from Debian's package of newer headers, kept in $XDG_CACHE_HOME/nvmefs (~/.cache).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from driver.transports import vfio_abi as abi

HEADERS = "linux/vfio.h", "linux/iommufd.h"
DOWNLOAD_BOUND_S = 60
COMPILE_BOUND_S = 30

# ours -> C's. Fields have the same names but where noted.
VFIO_STRUCTURES = {
    abi.GroupStatus: "vfio_group_status",
    abi.Type1Info: "vfio_iommu_type1_info",
    abi.DmaMap: "vfio_iommu_type1_dma_map",
    abi.DmaUnmap: "vfio_iommu_type1_dma_unmap",
    abi.DeviceInfo: "vfio_device_info",
    abi.RegionInfo: "vfio_region_info",
    abi.IrqInfo: "vfio_irq_info",
    abi.IrqSet: "vfio_irq_set",
}
CDEV_STRUCTURES = {
    abi.BindIommufd: "vfio_device_bind_iommufd",
    abi.AttachIommufdPt: "vfio_device_attach_iommufd_pt",
}
IOMMUFD_STRUCTURES = {
    abi.IoasAlloc: "iommu_ioas_alloc",
    abi.IovaRange: "iommu_iova_range",
    abi.IoasIovaRanges: "iommu_ioas_iova_ranges",
    abi.IoasMap: "iommu_ioas_map",
    abi.IoasUnmap: "iommu_ioas_unmap",
}
RENAMED = {"reserved": "__reserved"}
GROWS = {abi.DeviceInfo}  # only its oldest fields are asked for

CDEV_NUMBERS = {"DEVICE_BIND_IOMMUFD", "DEVICE_ATTACH_IOMMUFD_PT"}
IOMMUFD_NUMBERS = {name for name in vars(abi) if name.startswith("IOAS_")}
NUMBERS = {
    name
    for name, value in vars(abi).items()
    if name.isupper() and name[0] != "_" and isinstance(value, int)
}
IRREGULAR = {"TYPE1V2_IOMMU": "TYPE1v2_IOMMU"}
IRREGULAR |= {name: f"IOMMU_{name}" for name in vars(abi) if name.startswith("TYPE1_INFO_")}


def c_name(name: str) -> str:
    prefix = "IOMMU_" if name in IOMMUFD_NUMBERS else "VFIO_"
    return prefix + IRREGULAR.get(name, name)


def probe(
    directory: Path,
    include: Path | None,
    structures: dict[type[ctypes.Structure], str],
    numbers: set[str],
    header: str,
) -> dict[str, int]:
    """What a compiled program says of sizes ("struct x"), offsets ("x.y") and numbers."""
    lines = [
        f'printf("{name} %llu\\n", (unsigned long long)({c_name(name)}));'
        for name in sorted(numbers)
    ]
    for ours, theirs in structures.items():
        lines.append(f'printf("struct {theirs} %zu\\n", sizeof(struct {theirs}));')
        for field, *_ in ours._fields_:
            there = RENAMED.get(field, field)
            lines.append(
                f'printf("{theirs}.{field} %zu\\n", offsetof(struct {theirs}, {there}));'
                f'printf("{theirs}.{field}.size %zu\\n", sizeof(((struct {theirs} *)0)->{there}));'
            )
    source = directory / "probe.c"
    body = "\n    ".join(lines)
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <{header}>\n"
        f"int main(void)\n{{\n    {body}\n    return 0;\n}}\n"
    )
    program = directory / "probe"
    flags = ["-I", str(include), "-D__user="] if include else []  # not made for programs yet
    subprocess.run(
        ["cc", "-Wall", "-Werror", *flags, "-o", program, source],
        check=True,
        timeout=COMPILE_BOUND_S,
    )
    output = subprocess.run(
        [program], check=True, capture_output=True, text=True, timeout=COMPILE_BOUND_S
    ).stdout
    return {
        name: int(value)
        for name, _, value in (line.rpartition(" ") for line in output.splitlines())
    }


def compare(
    said: dict[str, int], structures: dict[type[ctypes.Structure], str], numbers: set[str]
) -> None:
    assert {name: getattr(abi, name) for name in numbers} == {name: said[name] for name in numbers}
    for ours, theirs in structures.items():
        size = ctypes.sizeof(ours)
        real = said[f"struct {theirs}"]
        assert size == real or (ours in GROWS and size < real), theirs
        for field, kind in ours._fields_:  # type: ignore[misc]
            where = f"{theirs}.{field}"
            assert getattr(ours, field).offset == said[where], where
            assert ctypes.sizeof(kind) == said[f"{where}.size"], where


def has(include: Path, header: str, text: str) -> bool:
    try:
        return text in (include / header).read_text()
    except OSError:
        return False


def newest_headers() -> str:
    """The name of Debian's package with the newest kernel headers, "" if there is none."""
    listing = subprocess.run(
        ["apt-cache", "search", "--names-only", "^linux-headers-[0-9.]+[^ ]*-common$"],
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_BOUND_S,
        check=False,
    ).stdout
    names = [line.split(" ")[0] for line in listing.splitlines()]
    return max(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default="")


def fetch(package: str, place: Path) -> None:
    """Unpacks the package's <linux/...> headers to `place`, all of them or none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / "headers.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            return
        work = place.with_suffix(".part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            subprocess.run(
                ["apt-get", "-q", "download", package],
                cwd=work,
                check=True,
                capture_output=True,
                timeout=DOWNLOAD_BOUND_S,
            )
            (file,) = work.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", file, work], check=True, timeout=DOWNLOAD_BOUND_S)
            (found,) = work.glob("usr/src/*/include/uapi")
            kept = work / "kept/linux"
            kept.mkdir(parents=True)
            for header in HEADERS:
                shutil.copy(found / header, kept)
            (work / "kept").rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="session")
def new_headers() -> Path | None:
    """Where <linux/iommufd.h> and a <linux/vfio.h> with device nodes are; None: with the compiler."""
    system = Path("/usr/include")
    if has(system, HEADERS[1], "IOAS_MAP") and has(system, HEADERS[0], "BIND_IOMMUFD"):
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmefs"
    place = cache / "headers"
    if not place.exists():
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("<linux/iommufd.h> is not installed, and only Debian's root can fetch it")
        package = newest_headers()
        if not package:
            pytest.skip("<linux/iommufd.h> is not installed, and Debian's archive offers none")
        try:
            fetch(package, place)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"<linux/iommufd.h> is not installed, and {package} cannot be had: {error}")
    return place


def test_vfio_as_in_the_installed_header(tmp_path: Path) -> None:
    numbers = NUMBERS - CDEV_NUMBERS - IOMMUFD_NUMBERS
    assert len(numbers) > 30
    compare(probe(tmp_path, None, VFIO_STRUCTURES, numbers, HEADERS[0]), VFIO_STRUCTURES, numbers)


def test_vfio_as_in_the_newest_header(tmp_path: Path, new_headers: Path | None) -> None:
    structures = {**VFIO_STRUCTURES, **CDEV_STRUCTURES}
    numbers = NUMBERS - IOMMUFD_NUMBERS
    compare(probe(tmp_path, new_headers, structures, numbers, HEADERS[0]), structures, numbers)


def test_iommufd_as_in_its_header(tmp_path: Path, new_headers: Path | None) -> None:
    said = probe(tmp_path, new_headers, IOMMUFD_STRUCTURES, IOMMUFD_NUMBERS, HEADERS[1])
    compare(said, IOMMUFD_STRUCTURES, IOMMUFD_NUMBERS)


def test_every_structure_is_compared() -> None:
    ours = {value for value in vars(abi).values() if isinstance(value, type)}
    ours = {kind for kind in ours if issubclass(kind, ctypes.Structure)}
    assert ours == {*VFIO_STRUCTURES, *CDEV_STRUCTURES, *IOMMUFD_STRUCTURES}
