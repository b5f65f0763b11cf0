"""SipHash-2-4 against the vectors of its authors and against a twin; the hashes of names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmefs._core import lib
from nvmefs.hashing import name_hash, parent_hash
from tests.nvmefs import twins

KEY = bytes(range(16))

# vectors_sip64 of the reference implementation: the hash of the bytes 0, 1, ..., n-1 under KEY.
VECTORS = {
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    2: "5a4fa9d909806c0d",
    3: "2d7efbd796666785",
    4: "b7877127e09427cf",
    5: "8da699cd64557618",
    6: "cee3fe586e46c9cb",
    7: "37d1018bf50002ab",
    8: "6224939a79f5f593",
    15: "e545be4961ca29a1",  # the example in the paper's appendix: a129ca6149be45e5
}


@pytest.mark.parametrize(("length", "expected"), VECTORS.items())
def test_official_vectors(length: int, expected: str) -> None:
    data = bytes(range(length))
    assert lib.siphash(KEY, data, length).to_bytes(8, "little").hex() == expected
    assert twins.siphash(KEY, data).to_bytes(8, "little").hex() == expected


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=300))
def test_twin(key: bytes, data: bytes) -> None:
    assert lib.siphash(key, data, len(data)) == twins.siphash(key, data)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_prefix_is_eight_bytes_in_front(key: bytes, prefix: int, data: bytes) -> None:
    whole = prefix.to_bytes(8, "little") + data
    assert lib.siphash_prefixed(key, prefix, data, len(data)) == twins.siphash(key, whole)


@given(st.binary(max_size=255), st.integers(0, 2**56 - 1))
def test_hashes_of_names_have_56_bits(name: bytes, parent: int) -> None:
    assert name_hash(KEY, name) == twins.siphash(KEY, name) >> 8
    expected = twins.siphash(KEY, parent.to_bytes(8, "little") + name) >> 8
    assert parent_hash(KEY, parent, name) == expected
    assert 0 < name_hash(KEY, name) < 2**56


def test_a_hash_of_zero_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        @staticmethod
        def siphash(_key: bytes, _data: bytes, _length: int) -> int:
            return 0xFF

        @staticmethod
        def siphash_prefixed(_key: bytes, _prefix: int, _data: bytes, _length: int) -> int:
            return 0

    monkeypatch.setattr("nvmefs.hashing.lib", Zero)
    assert name_hash(KEY, b"x") == 1
    assert parent_hash(KEY, 1, b"x") == 1


def test_a_seed_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        name_hash(bytes(15), b"x")
    with pytest.raises(ValueError, match="17 bytes"):
        parent_hash(bytes(17), 1, b"x")
