"""The initial RAM disk: init.c and the modules of a Debian kernel that a guest needs before its root
is there, and those which it can not find there.

    make_initrd(kernel.modules) -> bytes     a "newc" archive, as the kernel unpacks it

Below: nothing. Above: kernels.py, which keeps the result beside the kernel.
"""

from __future__ import annotations

import lzma
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

# Modules by name; what they need is found. A kernel that has one built in is as good.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtiofs",
    "overlay",
    "vfio-pci",
    "vfio_iommu_type1",
    "fuse",
)
_COMPILE_BOUND_S = 60


class NoInitrd(Exception):
    """It cannot be made here; the words are a reason to skip."""


def make_initrd(modules: Path | None) -> bytes:
    """The archive. modules: a directory lib/modules/VERSION; None for a kernel without.

    Raises NoInitrd.
    """
    found = list(_in_order(modules)) if modules else []
    files = [("init", 0o100755, _compile())]
    files += [("dev", 0o040755, b""), ("root", 0o040755, b"")]
    files += [(f"{number}.ko", 0o100644, data) for number, data in enumerate(found)]
    names = "".join(f"/{number}.ko\n" for number in range(len(found)))
    files += [("modules", 0o100644, names.encode())]
    return _archive(files)


def _compile() -> bytes:
    source = Path(__file__).with_name("init.c")
    with tempfile.TemporaryDirectory(prefix="nvmefs-init-") as directory:
        out = Path(directory, "init")
        command = [
            "cc",
            "-static",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            str(out),
            str(source),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_BOUND_S)
        except OSError as error:
            raise NoInitrd(f"no C compiler: {error}") from error
        except subprocess.CalledProcessError as error:
            raise NoInitrd(f"init.c is not compiled: {error.stderr.decode()}") from error
        return out.read_bytes()


def _in_order(modules: Path) -> Iterator[bytes]:
    """What is to be loaded, each after what it needs."""
    paths = {_plain(path.name.split(".")[0]): path for path in modules.rglob("*.ko*")}
    builtin = {
        _plain(Path(line).stem)
        for line in (modules / "modules.builtin").read_text(encoding="utf-8").split()
    }
    seen: set[str] = set()

    def visit(name: str) -> Iterator[bytes]:
        name = _plain(name)
        if name in seen or name in builtin:
            return
        seen.add(name)
        if name not in paths:
            raise NoInitrd(f"{modules}: no module {name}")
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        needed = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in filter(None, needed[1].decode().split(",") if needed else ()):
            yield from visit(other)
        yield data

    for name in MODULES:
        yield from visit(name)


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _archive(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive of the format "newc" (Documentation/driver-api/early-userspace/buffer-format)."""
    parts: list[bytes] = []
    for number, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)
