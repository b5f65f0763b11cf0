"""The arithmetic of the bench: medians, ratios within a round, what counts as the best peer."""

from __future__ import annotations

import pytest

from tests.bench.figures import Measure, Results, Spread

RATE = Measure("rate", "1/s")
COST = Measure("cost", "us", less_is_better=True)


def results(measure: Measure, **values: list[float | None]) -> Results:
    found = Results()
    for peer, numbers in values.items():
        for number, value in enumerate(numbers):
            if value is not None:
                found.add(measure, peer, number, value)
    return found


def test_a_spread_is_median_least_and_greatest() -> None:
    assert Spread.of([3, 1, 2, 10]) == Spread(2.5, 1, 10)
    assert str(Spread.of([1.0, 2.0, 4.0])) == "2.00 (1.00..4.00)"
    assert Spread.of([]) is None


def test_a_ratio_is_of_numbers_of_the_same_round() -> None:
    assert results(RATE, nvmefs=[10, 30], other=[5, 10]).ratios("rate", "other") == [2, 3]


def test_where_less_is_better_the_ratio_is_turned_round() -> None:
    assert results(COST, nvmefs=[2, 8], other=[4, 4]).ratios("cost", "other") == [2, 0.5]


def test_rounds_without_one_of_the_two_are_left_out() -> None:
    found = results(RATE, nvmefs=[10, None, 30, 40], other=[5, 7, None])
    assert found.ratios("rate", "other") == [2]
    assert found.numbers("rate", "nvmefs") == [10, 30, 40]


def test_there_is_no_ratio_to_nothing() -> None:
    assert results(COST, nvmefs=[0, 1], other=[1, 0]).ratios("cost", "other") == []
    assert Results().ratios("unknown", "other") == []


@pytest.mark.parametrize(("measure", "expected"), [(RATE, [1, 2]), (COST, [0.5, 1])])
def test_the_best_peer_may_be_another_in_each_round(
    measure: Measure, expected: list[float]
) -> None:
    found = results(measure, nvmefs=[10, 10], a=[10, 2.5], b=[5, 5])
    if measure.less_is_better:
        found = results(measure, nvmefs=[10, 10], a=[5, 20], b=[10, 10])
    assert found.ratios_to_best(measure.name, ["a", "b", "absent"]) == expected
    assert found.ratios_to_best(measure.name, []) == []
