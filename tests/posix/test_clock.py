"""Times that the kernel gives and times that the filesystem gives are of one clock: none goes back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.posix.calls import utimensat
from tests.posix.checks import Checks, make, times

CLOCK_REALTIME_COARSE = 5  # <linux/time.h>, of which time(2) tells the seconds

pytestmark = pytest.mark.quick


def test_times_do_not_go_back(checks: Checks) -> None:
    for number in range(60):
        name = f"f{number}"
        steps = [int(time.time())]
        make("file", name)
        steps.append(times(name)[2])
        utimensat(name, None)
        steps.append(times(name)[1])
        os.chmod(name, 0o600)
        steps.append(times(name)[2])
        Path(name).write_bytes(b"x")
        steps.append(times(name)[1])
        os.link(name, f"{name}-link")
        steps.append(times(".")[1])
        os.truncate(name, 0)
        steps.append(times(name)[2])
        os.mkdir(f"{name}-dir")
        steps.append(times(f"{name}-dir")[1])
        checks.true(steps == sorted(steps), f"round {number}: {steps}")


def test_within_a_tick_of_the_clock(checks: Checks) -> None:
    for number in range(200):
        before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        make("file", f"f{number}")
        found, now = times(f"f{number}")[2], time.time_ns()
        checks.true(before <= found <= now, f"{found} is not from {before} to {now}")
