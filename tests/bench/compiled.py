"""What the bench compiles: a filesystem that stores nothing, and a counter of flushes. Once in a process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from tests.demo.programs import call

SOURCE = Path(__file__).with_name("null_libfuse.c")
FLUSHES = Path(__file__).with_name("flushes.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


@functools.cache
def build_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="nvmefs-bench-build-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


@functools.cache
def build_null() -> Path:
    """The program; takes libfuse's own options and a mountpoint."""
    program = build_directory() / "null_libfuse"
    flags = call("pkg-config", "--cflags", "--libs", "fuse3")[1].split()
    call("cc", *FLAGS, "-o", program, SOURCE, *flags)
    return program


@functools.cache
def build_flushes() -> Path:
    """The library that counts flushes of the process it is loaded into."""
    library = build_directory() / "flushes.so"
    call("cc", *FLAGS, "-shared", "-fPIC", "-o", library, FLUSHES)
    return library
