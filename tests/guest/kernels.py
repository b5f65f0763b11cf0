"""Kernels for the guest: fetched or built once, and kept.

    kernel = find("6.12")        a Debian cloud kernel: `apt-get download`, unpacked, nothing installed
    kernel = find("built")       what build() has made of Debian's linux-source with kernel.config
    kernel.image, kernel.initrd  files for QEMU

They are kept in $XDG_CACHE_HOME/nvmefs/guest (~/.cache), a directory for each; removing it is safe.
A directory appears there complete, by rename, under a lock of its own that the kernel releases with its
holder: neither two processes nor an interrupted download leave something half made that is used, and a
kernel that is being built keeps nobody from the others.

Below: initrd.py. Above: machine.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .initrd import NoInitrd, make_initrd

DEBIAN = ("6.12", "6.1")
BUILT = "built"
CONFIG = Path(__file__).with_name("kernel.config")
BUILD_PACKAGES = "build-essential bc bison flex libelf-dev xz-utils"
_SOURCE = "linux-source-6.12"
_LOOK_BOUND_S = 30
_DOWNLOAD_BOUND_S = 180
_BUILD_BOUND_S = 2 * 3600


class NoKernel(Exception):
    """There is no such kernel here; the words are a reason to skip."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be started."""

    name: str
    image: Path
    initrd: Path


def cache() -> Path:
    """Where they are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "nvmefs", "guest")


def find(name: str) -> Kernel:
    """The kernel of that name, from the cache or from Debian. Raises NoKernel with the reason."""
    if name == BUILT:
        directory = cache() / _built_name()
        if not directory.is_dir():
            raise NoKernel(
                "no kernel has been built: make guest-kernel (once, six minutes on two idle cores)"
            )
        return _initialised(name, directory, None)
    if name not in DEBIAN:
        raise NoKernel(f"no kernel {name!r}: one of {', '.join((*DEBIAN, BUILT))}")
    directory = kept(f"debian-{name}", lambda place: _fetch(name, place))
    (modules,) = directory.glob("lib/modules/*")
    return _initialised(name, directory, modules)


def build() -> Kernel:
    """The kernel of kernel.config, compiled if it has not been. Raises NoKernel."""
    return _initialised(BUILT, kept(_built_name(), _compile), None)


def _initialised(name: str, directory: Path, modules: Path | None) -> Kernel:
    """With an initrd that is as new as the sources it is made of."""
    sources = [Path(__file__).with_name(source) for source in ("init.c", "initrd.py")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]

    def make(place: Path) -> None:
        try:
            Path(place, "initrd").write_bytes(make_initrd(modules))
        except NoInitrd as error:
            raise NoKernel(str(error)) from error

    initrd = kept(f"{directory.name}-initrd-{digest}", make) / "initrd"
    (image,) = directory.glob("boot/vmlinu[xz]-*")
    return Kernel(name, image, initrd)


# ---- the cache ---------------------------------------------------------------------------------


@contextmanager
def _locked(name: str) -> Iterator[Path]:
    """Where it is made: an empty directory, which is nobody else's, and gone afterwards."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"lock-{name}", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unfinished = cache() / f"unfinished-{name}"
        if unfinished.exists():  # of a process that was killed
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            yield unfinished
        finally:
            shutil.rmtree(unfinished)


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The directory of that name; if there is none, make() fills it first."""
    place = cache() / name
    if place.is_dir():
        return place
    with _locked(name) as directory:
        if not place.is_dir():
            made = directory / "made"
            made.mkdir()
            make(made)
            made.rename(place)
    return place


# ---- Debian's ----------------------------------------------------------------------------------


def _fetch(version: str, place: Path) -> None:
    pattern = rf"^linux-image-{re.escape(version)}\.[0-9][0-9a-z.+-]*-cloud-amd64$"
    with tempfile.TemporaryDirectory(dir=place.parent) as directory:
        archive = _download(_newest(pattern), Path(directory))
        call(["dpkg-deb", "-x", archive, place], _LOOK_BOUND_S)
    shutil.rmtree(place / "usr", ignore_errors=True)


def _newest(pattern: str) -> str:
    """The newest package whose name matches."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoKernel("kernels come as Debian packages, and there is no apt-get here")
    find_names = ["apt-cache", "search", "--names-only", pattern]
    names = call(find_names, _LOOK_BOUND_S).split("\n")
    if not any(names) and os.geteuid() == 0:
        call(["apt-get", "update", "-q"], _DOWNLOAD_BOUND_S)
        names = call(find_names, _LOOK_BOUND_S).split("\n")
    packages = [name.split(" ")[0] for name in names if name]
    if not packages:
        raise NoKernel(f"apt knows no package {pattern} (apt-get update?)")
    return max(packages, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _download(package: str, directory: Path) -> Path:
    """The package's file. Debian's servers are asked through apt, which checks the signatures."""
    call(["apt-get", "download", "-q", package], _DOWNLOAD_BOUND_S, directory)
    (archive,) = directory.glob("*.deb")
    return archive


def call(command: Sequence[str | os.PathLike[str]], bound_s: float, cwd: Path | None = None) -> str:
    """What it writes. Raises NoKernel with the end of what it says when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=cwd, text=True, capture_output=True, timeout=bound_s, check=True
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip()[-2000:]
        raise NoKernel(f"{' '.join(map(str, command))}: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernel(str(error)) from error
    return done.stdout


# ---- our own -----------------------------------------------------------------------------------


def _built_name() -> str:
    return f"built-{hashlib.sha256(CONFIG.read_bytes()).hexdigest()[:12]}"


def _compile(place: Path) -> None:
    """Six minutes on two idle cores, with the lowest priority."""
    missing = [tool for tool in ("cc", "make", "bc", "bison", "flex") if shutil.which(tool) is None]
    if missing:
        raise NoKernel(f"{', '.join(missing)} missing: apt-get install {BUILD_PACKAGES}")
    archive = _download(_newest(f"^{_SOURCE}$"), place.parent)
    call(["dpkg-deb", "-x", archive, place.parent], _DOWNLOAD_BOUND_S)
    packed = place.parent / f"usr/src/{_SOURCE}.tar.xz"
    call(["tar", "-xJf", packed, "-C", place.parent], _DOWNLOAD_BOUND_S)
    source = place.parent / _SOURCE
    call(["make", "allnoconfig", f"KCONFIG_ALLCONFIG={CONFIG}"], _DOWNLOAD_BOUND_S, source)
    _check_config(source / ".config")
    jobs = f"-j{os.cpu_count() or 1}"
    call(["nice", "-n", "19", "make", jobs, "vmlinux"], _BUILD_BOUND_S, source)
    boot = place / "boot"
    boot.mkdir()
    call(["strip", "-o", boot / "vmlinux-built", source / "vmlinux"], _LOOK_BOUND_S)


def _check_config(made: Path) -> None:
    """An option whose dependencies are not there is dropped silently: not here."""
    wanted = re.findall(r"^CONFIG_\w+=.*$", CONFIG.read_text(encoding="ascii"), re.MULTILINE)
    dropped = set(wanted) - set(made.read_text(encoding="ascii").split("\n"))
    if dropped:
        raise NoKernel(f"{CONFIG.name}: not accepted: {', '.join(sorted(dropped))}")


if __name__ == "__main__":
    try:
        print(build().image)
    except NoKernel as reason:
        sys.exit(f"kernels: {reason}")
