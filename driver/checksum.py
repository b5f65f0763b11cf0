"""CRC-32C for everybody above: the CPU's own instruction where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._core import ffi, lib

if TYPE_CHECKING:
    import mmap


def crc32c(data: bytes | bytearray | memoryview | mmap.mmap, seed: int = 0) -> int:
    """CRC-32C (Castagnoli) of any C-contiguous buffer; crc32c(b, crc32c(a)) == crc32c(a + b)."""
    view = ffi.from_buffer(data)
    return int(lib.nv_crc32c(seed, view, len(view)))


def crc32c_method() -> str:
    """How it is computed on this machine: "sse4.2", "armv8-crc" or "table"."""
    return str(ffi.string(lib.nv_crc32c_method()).decode())
