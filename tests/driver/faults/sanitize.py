"""The fault campaign with the driver's C code and the embedded controller under AddressSanitizer and UBSan.

    make faults SANITIZE=1 [SECONDS=600] [SEED=0] [ID=...]

Compiled in build/sanitize, beside the extensions in use. The first finding ends the process and the campaign.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.driver.faults.variant import ROOT, variant

DIRECTORY = ROOT / "build" / "sanitize"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"


def environment() -> dict[str, str]:
    """What a Python that is not built for sanitizers needs to load such extensions."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        # The interpreter itself leaks by design.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    }


def main(arguments: list[str]) -> int:
    """The command line is the campaign's."""
    variant(DIRECTORY, flags=FLAGS)
    command = [sys.executable, "-m", "tests.driver.faults.campaign", *arguments]
    os.chdir(DIRECTORY)
    changed = {**os.environ, "PYTHONPATH": str(DIRECTORY), **environment()}
    os.execve(sys.executable, command, changed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
