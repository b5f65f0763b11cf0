"""The cache of kernels, with an apt that is told what to say; the order of modules; the archive."""

from __future__ import annotations

import lzma
import threading
import time
from pathlib import Path

import pytest

from driver.transports.qemu import QEMU

from . import initrd, kernels, vmm

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nvmefs/guest"


def program(directory: Path, name: str, script: str) -> None:
    """A program that is found before the system's."""
    directory.mkdir(exist_ok=True, parents=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    path.chmod(0o755)


@pytest.fixture
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    program(directory, "apt-get", "echo unreachable >&2; exit 100")
    program(directory, "dpkg-deb", "exit 1")
    return directory


def test_made_once_by_whoever_comes_first(home: Path) -> None:
    made = []

    def make(place: Path) -> None:
        made.append(threading.get_ident())
        (place / "first").touch()
        time.sleep(0.05)  # long enough for the others to look meanwhile
        (place / "last").touch()

    def look() -> None:
        place = kernels.kept("name", make)
        assert (place / "last").exists(), "half of it is seen"
        seen.append(place)

    seen: list[Path] = []
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert seen == [home / "name"] * 4


def test_what_was_not_finished_is_not_used(home: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").touch()
        raise kernels.NoKernel("the line is cut")

    with pytest.raises(kernels.NoKernel, match="the line is cut"):
        kernels.kept("name", fail)
    assert [path.name for path in home.iterdir()] == ["lock-name"]
    (home / "unfinished-name/made/of a killed process").mkdir(parents=True)
    assert not list(kernels.kept("name", lambda place: None).iterdir())
    assert sorted(path.name for path in home.iterdir()) == ["lock-name", "name"]


def test_one_that_takes_long_keeps_nobody_from_another(home: Path) -> None:
    def make(place: Path) -> None:
        thread = threading.Thread(target=kernels.kept, args=("other", lambda place: None))
        thread.start()
        thread.join(10)
        assert (home / "other").is_dir()

    kernels.kept("name", make)


def test_the_newest_package(bin_directory: Path) -> None:
    names = [f"linux-image-6.12.{n}+deb12-cloud-amd64" for n in (9, 117, 20)]
    lines = "\n".join(f"{name} - Linux 6.12 (signed)" for name in names)
    program(bin_directory, "apt-cache", f"cat <<'END'\n{lines}\nEND")
    assert kernels._newest("pattern") == names[1]


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("echo linux-image-6.12.1-cloud-amd64 - Linux", "apt-get download .*: unreachable"),
        ("true", "apt-get update .*: unreachable|apt knows no package"),
        ("echo broken >&2; exit 1", "apt-cache search .*: broken"),
    ],
)
def test_reasons_to_skip(says: str, reason: str, bin_directory: Path, home: Path) -> None:
    program(bin_directory, "apt-cache", says)
    with pytest.raises(kernels.NoKernel, match=reason):
        kernels.find("6.12")
    assert [path.name for path in home.iterdir()] == ["lock-debian-6.12"]


def test_a_download_that_takes_too_long(
    bin_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bin_directory, "apt-cache", "echo linux-image-6.12.1-cloud-amd64 - Linux")
    program(bin_directory, "apt-get", "exec sleep 100")
    monkeypatch.setattr(kernels, "_DOWNLOAD_BOUND_S", 0.2)
    with pytest.raises(kernels.NoKernel, match="timed out"):
        kernels.find("6.12")


def test_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kernels.NoKernel, match="no apt-get"):
        kernels.find("6.12")
    with pytest.raises(kernels.NoKernel, match="make guest-kernel"):
        kernels.find(kernels.BUILT)
    with pytest.raises(kernels.NoKernel, match=r"one of 6.12, 6.1, built"):
        kernels.find("5.10")


def test_a_qemu_without_vfio_user(
    bin_directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bin_directory))
    with pytest.raises(kernels.NoKernel, match="make guest-qemu"):
        vmm.find()
    program(bin_directory, QEMU, "echo \"Device 'vfio-user-pci' not found\" >&2")
    with pytest.raises(kernels.NoKernel, match="make guest-qemu"):
        vmm.find()
    program(home / "qemu-trixie-backports", QEMU, "echo 'socket=<SocketAddress>'")
    assert vmm.find() == str(home / "qemu-trixie-backports" / QEMU)


def test_modules_come_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/fs/fuse/fuse.ko\n", encoding="ascii")
    for name, needs in {"a-b": "c,d", "c": "d", "d": ""}.items():
        data = b"\0name=" + name.encode() + b"\0depends=" + needs.encode() + b"\0"
        packed = name == "c"
        path = tmp_path / f"{name}.ko{'.xz' if packed else ''}"
        path.write_bytes(lzma.compress(data) if packed else data)
    monkeypatch.setattr(initrd, "MODULES", ("fuse", "a_b", "d"))
    names = [data.split(b"\0")[1] for data in initrd._in_order(tmp_path)]
    assert names == [b"name=d", b"name=c", b"name=a-b"]
    monkeypatch.setattr(initrd, "MODULES", ("elsewhere",))
    with pytest.raises(initrd.NoInitrd, match="no module elsewhere"):
        list(initrd._in_order(tmp_path))
