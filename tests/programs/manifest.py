"""What a tree of files looks like, to the byte and the nanosecond, and how two of them differ.

differences(manifest(host_copy), manifest(mounted_copy)) == []
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 1 << 20
SHOWN_DIFFERENCES = 20


class Entry(NamedTuple):
    """All that is compared of one name. `content` is a digest, a link target, or a device number."""

    mode: int
    owner: tuple[int, int]
    links: int
    mtime_ns: int
    size_bytes: int
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]


Manifest = dict[bytes, Entry]


def manifest(top: Path) -> Manifest:
    """Every name at and below `top`, by its path relative to it."""
    root = os.fsencode(top)
    return {os.path.relpath(path, root): _entry(path) for path in _walk(root)}


def _walk(top: bytes) -> Iterator[bytes]:
    yield top
    for directory, subdirectories, names in os.walk(top, onerror=_raise):
        for name in subdirectories + names:
            yield os.path.join(directory, name)


def _raise(error: OSError) -> None:
    raise error


def _entry(path: bytes) -> Entry:
    seen = os.lstat(path)
    size = seen.st_size
    if stat.S_ISREG(seen.st_mode):
        content = digest(path)
    elif stat.S_ISLNK(seen.st_mode):
        content = os.readlink(path)
    else:
        content = str(seen.st_rdev).encode()
        size = 0  # what a directory's size means is each filesystem's own affair
    return Entry(
        seen.st_mode,
        (seen.st_uid, seen.st_gid),
        0 if stat.S_ISDIR(seen.st_mode) else seen.st_nlink,
        seen.st_mtime_ns,
        size,
        content,
        xattrs(path),
    )


def digest(path: bytes | Path) -> bytes:
    """A digest of the file's bytes, read by read()."""
    hashed = hashlib.blake2b(digest_size=20)
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(CHUNK_BYTES):
            hashed.update(piece)
    return hashed.digest()


def xattrs(path: bytes | Path) -> tuple[tuple[str, bytes], ...]:
    """User attributes, by name; others (security.*) are the machine's."""
    names = os.listxattr(path, follow_symlinks=False)
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(names)
        if name.startswith("user.")
    )


def differences(expected: Manifest, found: Manifest) -> list[str]:
    """What is not the same, one line each, the first twenty; empty if the trees are equal."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"{path!r} is missing")
        elif path not in expected:
            lines.append(f"{path!r} should not be there")
        else:
            for field, want, have in zip(Entry._fields, expected[path], found[path], strict=True):
                if want != have:
                    lines.append(f"{path!r}: {field} is {have!r}, expected {want!r}")
    if len(lines) > SHOWN_DIFFERENCES:
        rest = len(lines) - SHOWN_DIFFERENCES
        lines[SHOWN_DIFFERENCES:] = [f"... and {rest} more"]
    return lines
