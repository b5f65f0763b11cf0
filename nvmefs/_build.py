"""Builds nvmefs._core, the C part of the filesystem, against Python's stable interface.

The declarations are those of the headers in core/, between the marks `cffi: begin` and `cffi: end`:
they are written down once. `python nvmefs/_build.py` builds in place, setup.py for installation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CORE = "nvmefs/core"  # setuptools wants sources relative to setup.py
HEADERS = ("node.h", "bitmap.h", "siphash.h", "ledger.h", "datamap.h", "frontend.h")
BLOCK_SOURCES = ("node.c", "node_edit.c", "bitmap.c", "siphash.c")
FRONT_SOURCES = (
    "frontend.c",
    "channel.c",
    "device.c",
    "entries.c",
    "borrow.c",
    "uring.c",
    "init.c",
    "forward.c",
    "take.c",
    "hot.c",
    "sync.c",
    "recovery.c",
)
SOURCES = (*BLOCK_SOURCES, "ledger.c", "datamap.c", *FRONT_SOURCES)
PRIVATE = ("bytes.h", "node_layout.h", "frontend_private.h", "fuse_uring.h", "uring.h")
RING = "driver/core"  # the front end drives a queue pair of its own

_MARKED = re.compile(r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", re.DOTALL)


def declarations(header: str) -> str:
    """What `header` declares between its marks."""
    return "".join(_MARKED.findall((ROOT / CORE / header).read_text()))


ffi = FFI()
ffi.cdef("".join(map(declarations, HEADERS)))
ffi.set_source(
    "nvmefs._core",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=[f"{CORE}/{name}" for name in SOURCES],
    include_dirs=[CORE, RING],
    depends=[
        *(f"{CORE}/{name}" for name in (*HEADERS, *PRIVATE)),
        *sorted(f"{RING}/{path.name}" for path in (ROOT / RING).glob("*.h")),
    ],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffi.compile(tmpdir=".", verbose=True)
