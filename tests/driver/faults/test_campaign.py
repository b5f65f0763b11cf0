"""A bounded part of the fault campaign; `make faults` is the whole."""

from __future__ import annotations

import itertools
import logging
import time

import pytest
import trio

from tests.driver.faults import valgrind
from tests.driver.faults.campaign import Tally, run_all
from tests.driver.faults.oracle import Area, WrongData
from tests.driver.faults.rules import ACTIONS, SUBJECTS, pairs

SECONDS = 4.0
RANDOM_SEED = 500_000_000


def test_each_rule_meets_each_opcode() -> None:
    listed = {rules[0] for rules in pairs()}
    for subject, action in itertools.product(SUBJECTS, ACTIONS):
        assert f"{subject} nth=1 {action}" in listed


def test_a_part_of_the_campaign() -> None:
    """Every 41st pair, then random schedules."""
    logging.disable(logging.CRITICAL)
    tally = Tally()
    some = (f"pair:{i}" for i in range(0, len(pairs()), 41))
    batches = (f"{seed}:10" for seed in itertools.count(RANDOM_SEED))
    try:
        trio.run(run_all, itertools.chain(some, batches), time.monotonic() + SECONDS, tally)
    finally:
        logging.disable(logging.NOTSET)
    assert not tally.failures
    assert tally.schedules > 20
    assert tally.hits > 10
    assert tally.resets > 2


def test_the_oracle() -> None:
    area = Area(100, 4, 512)
    area.check(100, bytes(2048))
    old, new = area.fresh(2), area.fresh(2)
    area.begin(101, old)
    area.done(101, old)
    with pytest.raises(WrongData, match="block 101 reads as 0x0"):
        area.check(101, bytes(1024))
    area.begin(101, new)
    area.check(101, area.data([old[0], new[1]]))  # in flight, or failed: each block for itself
    with pytest.raises(WrongData, match="block 102"):
        area.check(102, area.data([old[1]]))  # what was read once stays
    torn = area.data([old[0]])[:8] + area.data([new[0]])[8:]
    with pytest.raises(WrongData, match="and others"):
        area.check(101, torn)
    area.power_lost()
    area.check(101, area.data([0, old[1]]))
    area.flushed([set(tags) for tags in area.now])
    area.power_lost()
    assert area.known(101, 2) == [0, old[1]]


def test_what_callgrind_has_counted() -> None:
    text = (
        "52,468 (90.1%)  ???:queues_arm [/x/driver/embedded/_controller.abi3.so]\n"
        "    17  ???:nv_ring_take [/x/driver/_core.abi3.so]\n"
        "   999  ./Objects/longobject.c:long_add [/usr/lib/libpython3.11.so]\n"
    )
    assert valgrind.functions(text) == [
        (52468, "queues_arm", "_controller"),
        (17, "nv_ring_take", "_core"),
    ]
