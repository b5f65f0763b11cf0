"""How many instructions a 4 KiB command costs in the driver's C core, by callgrind.

    python -m tests.bench.instructions [--json]

Counted are push, doorbell and reap of a read of one page, without trace: ring.c beside this file.
callgrind counts each instruction of user mode; it runs no vDSO, so clock_gettime() counts as a call
of the system (some 14 instructions) where a real run spends about 40 in the vDSO. The loop around
the three, some 10 instructions, is counted with them.
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
_BOUND_S = 120
# name: (commands for each doorbell, how they are rung, instructions per command that are too many)
CASES = {
    "alone, mapped doorbells": (1, "mapped", 220),
    "alone, shadow doorbells": (1, "shadow", 235),
    "alone, shadow doorbells, awake": (1, "awake", 235),
    "alone, by message": (1, "message", 220),
    "32 at a time, mapped doorbells": (32, "mapped", 155),
    "32 at a time, shadow doorbells": (32, "shadow", 155),
    "32 at a time, shadow doorbells, awake": (32, "awake", 155),
    "32 at a time, by message": (32, "message", 155),
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
        return {name: _count(Path(directory), *case[:2]) for name, case in CASES.items()}


def too_many(found: dict[str, float]) -> list[str]:
    """The cases that cost more than they may."""
    return [name for name, count in found.items() if count >= CASES[name][2]]


def _count(directory: Path, batch: int, doorbells: str) -> float:
    program = directory / "ring"
    core = ROOT / "driver" / "core"
    build = ["cc", *FLAGS, f"-DBATCH={batch}", f"-I{core}", "-o", str(program), str(SOURCE)]
    subprocess.run(build, check=True, timeout=_BOUND_S)
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += ["--collect-atstart=no", "--toggle-collect=work", "--toggle-collect=device"]
    command += [str(program), str(COMMANDS), doorbells, "0x100000"]
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
            print(f"{name:40} {count:6.1f}")
    return 1 if too_many(found) else 0


if __name__ == "__main__":
    sys.exit(main())
