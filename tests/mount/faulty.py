"""The mount command on a controller that misbehaves: python -m tests.mount.faulty IMAGE DIR [-o options]

$FAULTS    rules as driver/embedded/faults.py has them, separated by ";", that count once it is brought up
$DEADLINE  seconds of an I/O command
SIGUSR2    cuts the power: of the volatile cache some blocks are lost, and the daemon ends at once
$EMBEDDED  options of open_embedded(), as JSON; "vectors" may be 0
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import driver
from driver.transports.embedded import open_embedded
from nvmefs.cli import main

_honest = driver.open_controller


async def _open_controller(spec: str, *, options: driver.DriverOptions) -> driver.Controller:
    chosen = json.loads(os.environ.get("EMBEDDED", "{}"))
    without = chosen.get("vectors") == 0
    transport = open_embedded(spec, **(chosen | {"vectors": 1} if without else chosen))
    if without:
        transport.vectors = 0  # everybody looks by himself

    def cut_power(*_: object) -> None:
        transport.power_cut(1)
        os._exit(1)

    signal.signal(signal.SIGUSR2, cut_power)
    deadline_s = float(os.environ["DEADLINE"])
    options = replace(options, command_timeout_s=deadline_s, admin_timeout_s=10 * deadline_s)
    controller = await _honest(transport, options=options)
    rules = [rule for rule in os.environ.get("FAULTS", "").split(";") if rule.strip()]
    transport.set_faults(rules, seed=1)
    return controller


if __name__ == "__main__":
    opener: Any = _open_controller
    driver.open_controller = opener
    sys.exit(main())
