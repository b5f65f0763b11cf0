"""Bugs put into the driver's C code, which is compiled with each of them: the campaign finds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.driver.faults.variant import run, variant

SECONDS = "4"


class Bug(NamedTuple):
    """A piece of a file of driver/core, what takes its place, and rules under which that shows."""

    file: str
    text: str
    replacement: str
    rules: tuple[str, ...]


BUGS = {
    "no command id is checked": Bug(
        "ring.h",
        "index >= r->capacity || sq_id != r->qid || slot->id != (cid | NV_SLOT_BUSY)",
        "index >= r->capacity || sq_id != r->qid",
        ("io every=3 duplicate",),
    ),
    "a late answer is not told apart": Bug(
        "ring.h",
        "slot->id != (cid | NV_SLOT_BUSY)",
        "!(slot->id & NV_SLOT_BUSY)",
        ("io every=4 cid=stale", "io p=0.4 delay=3ms"),
    ),
    "the phase does not turn with the ring": Bug(
        "ring.h",
        "            r->phase ^= 1;\n",
        "",
        ("io p=0.1 delay=2ms",),
    ),
    "deadlines are never over": Bug(
        "deadline.h",
        "if (r->slots[i].id & NV_SLOT_BUSY && r->slots[i].expires_ns <= now_ns)",
        "if (0)",
        ("io nth=3 drop",),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS, ids=lambda name: name.replace(" ", "-"))
def test_a_bug_in_c_is_found(name: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    bug = BUGS[name]
    edit = (f"driver/core/{bug.file}", bug.text, bug.replacement)
    variant(tmp_path, edits=[edit], extensions=["driver/_build.py"])
    rules = [word for rule in bug.rules for word in ("--rule", rule)]
    done = run(tmp_path, ["--seconds", SECONDS, "--processes", "1", *rules], {}, 200)
    print(done.stdout, done.stderr)
    assert done.returncode == 1 or done.returncode < 0  # found, or the process did not live
    assert "FAILED" in done.stderr or done.returncode < 0
