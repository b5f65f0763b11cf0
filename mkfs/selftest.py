"""Known answers, asked before anything is written: a wrong checksum makes every block unreadable.

Below: the C functions and their twins in Python.  Above: mkfs.py.
"""

from __future__ import annotations

from driver import crc32c
from mkfs.cli import ToolError
from nvmefs.hashing import name_hash, parent_hash

_SIPHASH_ANSWER = 0xA129CA6149BE45E5  # key 00..0f, message 00..0e: the vector of SipHash's paper
_POLYNOMIAL = 0x82F63B78  # CRC32C, reflected
CRC_VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
]


def crc32c_slowly(data: bytes, seed: int = 0) -> int:
    """CRC32C bit by bit, from its definition (RFC 3720, B.4)."""
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def self_test() -> None:
    """Raise ToolError unless the C code computes what it must."""
    for data, expected in CRC_VECTORS:
        check("crc32c", crc32c(data), expected)
    pattern = bytes((n * n + 7 * n) & 0xFF for n in range(1021))  # odd length: every tail is passed
    for start in range(9):
        check("crc32c", crc32c(pattern[start:], 77), crc32c_slowly(pattern[start:], 77))
    seed = bytes(range(16))
    check("siphash", name_hash(seed, bytes(range(15))), _SIPHASH_ANSWER >> 8)
    joined = name_hash(seed, (77).to_bytes(8, "little") + b"name")
    check("siphash of a parent", parent_hash(seed, 77, b"name"), joined)


def check(what: str, computed: int, expected: int) -> None:
    """Raise ToolError if a computed value is not the expected one."""
    if computed != expected:
        raise ToolError(
            f"self-test: {what} gives {computed:#x} where {expected:#x} is right: "
            "the build is broken, nothing was written; rebuild with `make build`"
        )
