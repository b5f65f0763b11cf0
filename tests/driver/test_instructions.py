"""The cost of a command in driver/core/ring.h, counted in instructions: the same on every machine."""

from __future__ import annotations

import pytest

from tests.bench.instructions import CASES, measure, missing, too_many


@pytest.mark.skipif(bool(missing()), reason=missing() or "valgrind is there")
def test_a_command_stays_below_its_target() -> None:
    found = measure()
    assert found.keys() == CASES.keys()
    assert min(found.values()) > 20
    assert too_many(found) == [], found
