"""driver/core/histogram.h: buckets cover everything once, and percentiles are within an eighth."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from driver._core import ffi, lib


@given(st.integers(0, (1 << 63) - 1))
def test_a_value_lies_in_its_bucket(value: int) -> None:
    index = lib.nv_histogram_index(value)
    low = lib.nv_histogram_floor(index)
    assert low <= value < lib.nv_histogram_floor(index + 1)
    assert value - low <= max(value / 8, 0)


def test_the_largest_value_has_a_bucket() -> None:
    assert lib.nv_histogram_index((1 << 64) - 1) < lib.NV_HISTOGRAM_BUCKETS


@given(st.lists(st.integers(0, 1 << 39), min_size=1, max_size=200))
def test_percentiles(values: list[int]) -> None:
    histogram = ffi.new("struct nv_histogram *")
    for value in values:
        lib.nv_histogram_add(histogram, value)
    assert (lib.nv_histogram_count(histogram), histogram.sum, histogram.max) == (
        len(values),
        sum(values),
        max(values),
    )
    values.sort()
    for share in (1, 50_000, 99_000, 100_000):
        exact = values[max(-(-len(values) * share // 100_000) - 1, 0)]
        found = lib.nv_histogram_percentile(histogram, share)
        assert exact <= found <= exact + exact / 8 + 1


def test_no_values() -> None:
    assert lib.nv_histogram_percentile(ffi.new("struct nv_histogram *"), 50_000) == 0
