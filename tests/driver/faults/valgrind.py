"""The fault campaign under valgrind: what the C code costs, function by function, or what memory it touches.

    make faults VALGRIND=callgrind [SECONDS=600] [SEED=0] [ID=...]
    make faults VALGRIND=memcheck  ...

valgrind runs one thread at a time and much slower: deadlines pass that would not pass, and the ladder is
climbed more often. callgrind's counts are left in build/callgrind.out, for callgrind_annotate(1). memcheck
looks for what is read or written outside of what was allocated, or after it was freed; undefined values are
not looked for, of which Python itself has some.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from tests.driver.faults.variant import ROOT

OUT = ROOT / "build/callgrind.out"
TOOLS = {
    "callgrind": [f"--callgrind-out-file={OUT}"],
    "memcheck": ["--undef-value-errors=no", "--error-exitcode=99"],
}
SHOWN = 30
_OURS = re.compile(r"^ *([\d,]+) .*?:(\S+) \[.*/(_core|_controller)\.abi3\.so\]$", re.MULTILINE)


def functions(annotated: str) -> list[tuple[int, str, str]]:
    """(instructions, function, extension) of our own, from callgrind_annotate."""
    found = _OURS.findall(annotated)
    return [(int(count.replace(",", "")), name, whose) for count, name, whose in found]


def report() -> None:
    """Prints what the functions of each extension have cost."""
    command = ["callgrind_annotate", "--threshold=100", "--show-percs=no", str(OUT)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    ours = functions(done.stdout)
    for whose in ("_core", "_controller"):
        mine = [(count, name) for count, name, extension in ours if extension == whose]
        total = sum(count for count, _ in mine)
        print(f"{total:13,} instructions in {whose}, {len(mine)} functions")
        for count, name in mine[:SHOWN]:
            print(f"{count:13,} {name}")


def main(tool: str, arguments: list[str]) -> int:
    """The rest of the command line is the campaign's."""
    if tool not in TOOLS:
        sys.exit(f"VALGRIND={tool}: one of {', '.join(TOOLS)}")
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    OUT.parent.mkdir(exist_ok=True)
    campaign = [sys.executable, "-m", "tests.driver.faults.campaign", "--processes", "1"]
    options = ["-q", f"--tool={tool}", *TOOLS[tool]]
    environment = ["env", "PYTHONMALLOC=malloc"]  # one block for each object, that memcheck knows
    done = subprocess.run(
        [*environment, "valgrind", *options, *campaign, *arguments], check=False, cwd=ROOT
    )
    if tool == "callgrind" and OUT.exists():
        report()
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
