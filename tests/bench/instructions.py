"""How many instructions a 4 KiB command costs in the driver's C core, by callgrind.

    python -m tests.bench.instructions [--json]

Counted are push, doorbell and reap of a read of one page, without trace: ring.c beside this file.
callgrind counts each instruction of user mode; it runs no vDSO, so clock_gettime() counts as a call
of the system (some 20 instructions) where a real run spends about 40 in the vDSO.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("ring.c")
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]  # as driver/_build.py, and strict
COMMANDS = 6400
TARGET = 250
_BOUND_S = 120
CASES = {
    "alone": (1, 0),
    "alone, shadow doorbells": (1, 1),
    "32 at a time": (32, 0),
    "32 at a time, shadow doorbells": (32, 1),
}


def missing() -> str:
    """Why nothing can be measured here, or ""."""
    for program, package in (("valgrind", "valgrind"), ("cc", "gcc")):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    return ""


def measure() -> dict[str, float]:
    """Instructions per command of each case."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "ring"
        core = ROOT / "driver" / "core"
        subprocess.run(
            ["cc", *FLAGS, f"-I{core}", "-o", str(program), str(SOURCE)],
            check=True,
            timeout=_BOUND_S,
        )
        return {name: _count(program, *case) for name, case in CASES.items()}


def _count(program: Path, batch: int, shadow: int) -> float:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += ["--collect-atstart=no", "--toggle-collect=submit", "--toggle-collect=reap"]
    command += [str(program), str(COMMANDS), str(batch), str(shadow)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BOUND_S)
    match = re.search(r"Collected : (\d+)", done.stderr)
    if match is None:
        raise ValueError(f"callgrind says nothing about its count:\n{done.stderr}")
    return int(match.group(1)) / COMMANDS


def main() -> int:
    parser = argparse.ArgumentParser(description="instructions per command in the C core")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    reason = missing()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    found = measure()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for name, count in found.items():
            print(f"{name:32} {count:6.1f}")
    return 0 if max(found.values()) < TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
