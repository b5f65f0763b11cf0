"""A tar of a real source tree, the same on every machine: Python's standard library and headers.

The library is packed several times over under different top directories until there are enough
files. Modes, owners and times (to the nanosecond) vary from file to file; symbolic links, hard links,
empty directories, long names and names that are not UTF-8 are among them.

    tree = pack(Path("source.tar"), at_least=20_000)
    unpack(tree.path, directory)
"""

from __future__ import annotations

import io
import os
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.demo.programs import call

LARGEST_FILE_BYTES = 128 << 10
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}
MODES = (0o644, 0o600, 0o755, 0o444, 0o4711, 0o2755, 0o664, 0o640)
EPOCH_S = 1_500_000_000
ODD_NAMES = (b"n" * 255, b"not utf-8 \xff\xfe", b"new\nline", "Straße 文".encode())


@dataclass(frozen=True)
class PackedTree:
    """A tar file and what is in it: regular files (hard links not counted), and their bytes."""

    path: Path
    files: int
    size_bytes: int


@dataclass(frozen=True)
class _Source:
    name: str
    path: Path
    size_bytes: int


def library_files() -> list[_Source]:
    """The files of the standard library and the headers, small ones first to last by name."""
    found = []
    for part in ("stdlib", "include"):
        top = Path(sysconfig.get_path(part))
        for directory, subdirectories, names in os.walk(top):
            subdirectories[:] = sorted(set(subdirectories) - LEFT_OUT)
            for name in sorted(names):
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    size = path.stat().st_size
                    if size <= LARGEST_FILE_BYTES:
                        found.append(_Source(f"{part}/{path.relative_to(top)}", path, size))
    return found


def pack(path: Path, at_least: int, *, odd: bool = True) -> PackedTree:
    """Write the tar file at `path`, of whole copies of the library, with `at_least` files.

    `odd` names are those that not every filesystem takes.
    """
    sources = library_files()
    contents = {source.path: source.path.read_bytes() for source in sources}
    files = size_bytes = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for copy in range(-(-at_least // len(sources))):
            top = f"copy{copy}"
            for member, data in _members(sources, contents, top, ODD_NAMES if odd else ()):
                archive.addfile(member, io.BytesIO(data))
                files += member.isreg()
                size_bytes += len(data)
    return PackedTree(path, files, size_bytes)


def _members(
    sources: list[_Source], contents: dict[Path, bytes], top: str, odd_names: tuple[bytes, ...]
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """One copy of the library below `top`: directories before what is in them."""
    directories = {""}
    for index, source in enumerate(sources):
        for parent in [str(p) for p in reversed(Path(source.name).parents)]:
            if parent not in directories:
                directories.add(parent)
                yield _member(f"{top}/{parent}", tarfile.DIRTYPE, len(directories)), b""
        data = contents[source.path]
        name = f"{top}/{source.name}"
        member = _member(name, tarfile.REGTYPE, index)
        member.size = len(data)
        yield member, data
        if index % 50 == 0:
            link = _member(f"{name}.symlink", tarfile.SYMTYPE, index)
            link.linkname = Path(name).name if index % 100 else "x/" * (index % 400) + "nowhere"
            yield link, b""
        if index % 70 == 0:
            hard = _member(f"{name}.hardlink", tarfile.LNKTYPE, index)
            hard.linkname = name
            yield hard, b""
    for index, odd in enumerate(odd_names):
        name = f"{top}/" + os.fsdecode(odd)
        member = _member(name, tarfile.REGTYPE, index)
        member.size = index * 1000
        yield member, odd[:1] * member.size
    yield _member(f"{top}/empty", tarfile.DIRTYPE, 3), b""


def _member(name: str, kind: bytes, number: int) -> tarfile.TarInfo:
    """The header of a member whose mode, owner and times depend on its number."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o2750 | number % 8 if kind == tarfile.DIRTYPE else MODES[number % len(MODES)]
    member.uid = 1000 + number % 3
    member.gid = 100 + number % 5
    # As text: a float has no room for nanoseconds.
    seconds, nanoseconds = EPOCH_S + number * 7919, number * 123_456_789 % 1_000_000_000
    member.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
    return member


def unpack(packed: Path, directory: Path) -> float:
    """Unpack with GNU tar; gives the seconds it took. Raises DemoError if tar complains."""
    directory.mkdir()
    # Python marks names that are not UTF-8 with a keyword that GNU tar does not know and not need.
    quiet = "--warning=no-unknown-keyword"
    seconds, output = call("tar", quiet, "-xpf", packed, "-C", directory)
    assert not output, output
    os.utime(directory, ns=(EPOCH_S * 10**9, EPOCH_S * 10**9))
    return seconds
