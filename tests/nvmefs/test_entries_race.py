"""core/entries.c under the sanitizers, with a kernel of the test's: entries_race.c says what it does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nvmefs._build import CORE, FRONT_SOURCES, ROOT
from tests.nvmefs.test_frontend_race import race

SOURCES = (*(name for name in FRONT_SOURCES if name != "uring.c"), "datamap.c", "ledger.c")
PROGRAM = Path(__file__).with_name("entries_race.c")
ATTEMPTS = 4

MUTANTS = {
    "an answer is taken twice": (
        "if (!atomic_compare_exchange_strong(&entry->state, &state, ANSWERED))",
        "atomic_store(&entry->state, ANSWERED);\n    if (state != PYTHONS)",
    ),
    "nobody asks whose answer it is": ("if (entry->unique != out->unique) {", "if (0) {"),
    "who sleeps is not woken": ("if (atomic_exchange(&all->asleep, 0))", "if (0)"),
    "an answer is believed to fit": ("if (out->len - sizeof *out <= FE_MAX_WRITE) {", "if (1) {"),
    "a payload is believed to fit": ("slot->apart <= FE_MAX_WRITE && ", ""),
    "what is not payload is believed to fit": (" && slot->length - least <= FUSE_URING_OP_IN_OUT_SZ", ""),
    "an entry is passed on too late": (
        "    uint32_t place = (uint32_t)(slot - ch->slots);\n    atomic_store",
        "    uint32_t place = (uint32_t)(slot - ch->slots);\n    if (0)\n        atomic_store",
    ),
}  # fmt: skip


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A copy of the C sources."""
    return Path(shutil.copytree(ROOT / CORE, tmp_path / "core"))


def is_well(done: subprocess.CompletedProcess[str]) -> bool:
    return not done.returncode and re.search(r"served \d{3,}", done.stdout) is not None


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_answers_from_all_threads(core: Path, sanitizer: str) -> None:
    done = race(core, PROGRAM, SOURCES, sanitizer)
    assert is_well(done), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_notices(core: Path, mutant: str) -> None:
    good, bad = MUTANTS[mutant]
    source = (core / "entries.c").read_text()
    assert source.count(good) == 1
    (core / "entries.c").write_text(source.replace(good, bad))
    sanitizer = "address,undefined" if "fit" in mutant else "thread"
    assert not all(is_well(race(core, PROGRAM, SOURCES, sanitizer)) for _ in range(ATTEMPTS)), (
        mutant
    )
