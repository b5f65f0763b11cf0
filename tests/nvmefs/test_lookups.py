"""Lookup counts, with a dictionary as the oracle."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmefs.lookups import LARGE, PAGE, Lookups

NUMBERS = st.sampled_from([1, 17, PAGE - 1, PAGE, PAGE + 1, 2**56 - 1])
COUNTS = st.sampled_from([0, 1, 2, LARGE - 1, LARGE, LARGE + 1, 2**40])


@given(st.lists(st.tuples(NUMBERS, COUNTS)))
def test_like_a_dictionary(changes: list[tuple[int, int]]) -> None:
    found, expected = Lookups(), dict[int, int]()
    for number, count in changes:
        if count:
            found[number] = expected[number] = count
        else:
            assert found.pop(number, None) == expected.pop(number, None)
        found.add(PAGE)
        expected[PAGE] = expected.get(PAGE, 0) + 1
        assert found == expected
        assert len(found) == len(expected)
        assert (number in found) == (number in expected)
        assert found.get(number) == expected.get(number, 0)
    for number in list(found):
        del found[number]
    assert not found.pages
    assert not found.large


def test_what_is_not_there_and_what_cannot_be() -> None:
    found = Lookups()
    with pytest.raises(KeyError):
        found[17]
    with pytest.raises(KeyError):
        del found[17]
    with pytest.raises(ValueError, match="0 times"):
        found[17] = 0
    assert not found


def test_a_hundred_thousand_take_little() -> None:
    tracemalloc.start()
    try:
        found = Lookups()
        for number in range(16, 100_016):
            found.add(number)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 100_000
    assert used < 3 * 100_000
