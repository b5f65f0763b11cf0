"""A QEMU that is a client of vfio-user (the device vfio-user-pci, from QEMU 10.1 on): found, or fetched once.

    qemu = find()                the one in $PATH if it can, else what fetch() has kept. Raises NoKernel
    make guest-qemu              fetch(): Debian's, from trixie-backports, with its libraries

What is fetched is unpacked beside the kernels (kernels.py), not installed, and started by its own
dynamic loader, so that a Debian 12 runs it too. apt brings it, with lists of its own, and checks the
signatures.

Below: apt, kernels.py's cache. Above: test_vfio_user.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from driver.transports.qemu import QEMU

from . import kernels
from .kernels import NoKernel

DEVICE = "vfio-user-pci"
_NAME = "qemu-trixie-backports"
_SUITES = ("trixie", "trixie-backports")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR = "http://deb.debian.org/debian"
_LOOK_BOUND_S = 30
_FETCH_BOUND_S = 600
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def find() -> str:
    """The program. Raises NoKernel with the reason, and what to do."""
    kept = kernels.cache() / _NAME / QEMU
    for program in (shutil.which(QEMU), str(kept)):
        if program and Path(program).exists() and _is_client(program):
            return program
    raise NoKernel(f"no QEMU here has the device {DEVICE}: make guest-qemu (40 MB, once)")


def _is_client(program: str) -> bool:
    command = [program, "-device", f"{DEVICE},help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LOOK_BOUND_S, check=False
    )
    return "socket=" in done.stdout  # an older one succeeds, too: "not found"


def fetch() -> str:
    """Fetches it unless that has been done. Raises NoKernel."""
    return str(kernels.kept(_NAME, _make) / QEMU)


def _make(place: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoKernel("it comes as Debian packages, and there is no apt-get here")
    if not Path(_KEYRING).exists():
        raise NoKernel(f"no {_KEYRING}: apt-get install debian-archive-keyring")
    apt = place.parent / "apt"
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (apt / directory).mkdir(parents=True)
    lines = [f"deb [signed-by={_KEYRING}] {_MIRROR} {suite} main\n" for suite in _SUITES]
    (apt / "sources.list").write_text("".join(lines), encoding="ascii")
    (apt / "status").touch()  # nothing is installed: all that it needs is fetched
    options = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",  # whose directory it is
    }
    base = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    kernels.call([*base, "update"], _FETCH_BOUND_S)
    words = ["-y", "--no-install-recommends", "--download-only", f"-t{_SUITES[-1]}", "install"]
    kernels.call([*base, *words, "qemu-system-x86"], _FETCH_BOUND_S)
    for archive in sorted((apt / "cache/archives").glob("*.deb")):
        kernels.call(["dpkg-deb", "-x", archive, place], _LOOK_BOUND_S)
    _write_program(place)


def _write_program(place: Path) -> None:
    """A script that starts it with the loader, libraries and firmware that lie beside it."""
    program = place / QEMU
    program.write_text(
        "#!/bin/sh\n"
        'here=$(dirname "$(readlink -f "$0")")\n'
        f'libraries="$here/{_LIBRARIES}"\n'
        'export QEMU_MODULE_DIR="$libraries/qemu"\n'
        'exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" '
        f'"$here/usr/bin/{QEMU}" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"\n',
        encoding="ascii",
    )
    program.chmod(0o755)


if __name__ == "__main__":
    try:
        print(fetch())
    except NoKernel as reason:
        sys.exit(f"vmm: {reason}")
