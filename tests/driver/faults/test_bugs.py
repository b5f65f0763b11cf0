"""The campaign finds bugs that are put into the driver; without them it finds nothing."""

from __future__ import annotations

import logging
import random

import pytest

from tests.driver.faults import bench as benches
from tests.driver.faults.bench import Bench
from tests.driver.faults.bugs import BUGS, Bug
from tests.driver.faults.campaign import explain

DRIVES = 40
SCHEDULES = 4


async def run(bug: Bug, drives: int) -> None:
    """Schedules under the rules of this bug."""
    for seed in range(drives):
        bench = Bench(f"bug:{seed}", cuts=bug.cuts)
        try:
            for number in range(SCHEDULES):
                rng = random.Random(f"{seed}:{number}")
                await bench.schedule(rng, bug.rules, opening=False, lies=False)
            await bench.end()
        except Exception as error:
            await bench.abandon()
            raise AssertionError(explain(error)) from error


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
async def test_a_planted_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.disable(logging.CRITICAL)
    try:
        await run(bug, 2)
        monkeypatch.setattr(benches, "BOUND_S", 0.5)
        bug.plant(monkeypatch.setattr)
        with pytest.raises(AssertionError):
            await run(bug, DRIVES)
    finally:
        logging.disable(logging.NOTSET)
