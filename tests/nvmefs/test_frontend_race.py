"""The front end under the thread sanitizer: frontend_race.c says what it does; mutants show what it notices."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nvmefs._build import CORE, FRONT_SOURCES, RING, ROOT

SOURCES = (*FRONT_SOURCES, "datamap.c", "ledger.c")
PROGRAM = Path(__file__).with_name("frontend_race.c")
SECONDS = 1
ATTEMPTS = 8  # a mutant is noticed when threads meet where they must not
BOUND_S = 60

MUTANTS = {
    "a file in use is no reason to wait": ("datamap.c", "users = (*place)->users;", "users = 0;"),
    "users are counted without the lock": (
        "datamap.c",
        "    pthread_mutex_lock(&map->lock);\n    if (!--file->users",
        "    if (!--file->users",
    ),
    "a file is given back when its commands are sent": (
        "hot.c",
        "    ch->busy++;\n    nv_ring_doorbell",
        "    ch->busy++;\n    dm_release(ch->fe->config.map, slot->file);\n    nv_ring_doorbell",
    ),
    "what is lent is free at once": (
        "forward.c",
        "        ch->lent_count++;\n        return;",
        "        ch->lent_count++;\n        fe_free_slot(ch, slot);\n        return;",
    ),
    "an answer goes through the first descriptor": (
        "forward.c",
        "struct channel *ch = &fe->channels[index];",
        "struct channel *ch = &fe->channels[0];",
    ),
}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=BOUND_S)


def race(
    directory: Path,
    program: Path = PROGRAM,
    sources: tuple[str, ...] = SOURCES,
    sanitizer: str = "thread",
) -> subprocess.CompletedProcess[str]:
    """A program with the sources in `directory`, run to its end."""
    sanitize = [f"-fsanitize={sanitizer}", "-pthread"]
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if run(compiler, *sanitize, "-o", directory / "probe", probe).returncode:
        pytest.skip("the compiler has no sanitizer")
    if run(directory / "probe").returncode:
        pytest.skip("the thread sanitizer does not run here")
    warnings = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    done = run(
        compiler, *warnings, *sanitize, f"-I{directory}", f"-I{ROOT / RING}",
        "-o", directory / "race", program,
        *(directory / name for name in sources),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run(directory / "race", SECONDS)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A copy of the C sources."""
    return Path(shutil.copytree(ROOT / CORE, tmp_path / "core"))


def test_no_race_between_threads_publisher_drive_and_driver(core: Path) -> None:
    done = race(core)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"answered \d{3,}", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_notices(core: Path, mutant: str) -> None:
    name, good, bad = MUTANTS[mutant]
    source = (core / name).read_text()
    assert source.count(good) == 1
    (core / name).write_text(source.replace(good, bad))
    assert any(race(core).returncode for _ in range(ATTEMPTS)), mutant
