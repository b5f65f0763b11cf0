"""driver.crc32c against the published vectors, an independent implementation, and itself."""

from __future__ import annotations

import crc32c as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver import crc32c, crc32c_method
from driver._core import ffi, lib


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_vectors(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert lib.nv_crc32c_table(0, data, len(data)) == crc


# Around one, two and three rounds of the three-way interleaved loop (4,032 bytes each).
@pytest.mark.parametrize("length", [1, 7, 8, 9, 1344, 4031, 4032, 4033, 4096, 8064, 8071, 12100])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_lengths(length: int, offset: int) -> None:
    data = bytes((i * 131 + i // 7) & 0xFF for i in range(length + offset))
    view = memoryview(data)[offset:]
    want = oracle.crc32c(bytes(view))
    assert crc32c(view) == want
    assert lib.nv_crc32c_table(0, ffi.from_buffer(view), length) == want


@given(st.binary(max_size=9000), st.integers(0, 9000), st.integers(0, 0xFFFFFFFF))
def test_chaining_and_seeds(data: bytes, cut: int, seed: int) -> None:
    a, b = data[:cut], data[cut:]
    assert crc32c(b, crc32c(a)) == crc32c(data) == oracle.crc32c(data)
    assert crc32c(data, seed) == oracle.crc32c(data, seed)
    assert crc32c(data, seed) == lib.nv_crc32c_table(seed, data, len(data))


def test_any_buffer() -> None:
    assert crc32c(bytearray(b"abc")) == crc32c(b"abc") == crc32c(memoryview(b"xabcx")[1:4])
    assert crc32c_method() in ("sse4.2", "armv8-crc", "table")
