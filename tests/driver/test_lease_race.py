"""core/lease.h and core/deadline.h under ThreadSanitizer (lease_race.c), and with steps of the protocol
left out, each of which it must find.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "driver/core"
SOURCE = Path(__file__).with_name("lease_race.c")
SANITIZE = ["-fsanitize=thread", "-Wno-tsan", "-pthread"]
BOUND_S = 50
ATTEMPTS = 5

_ENTERED = "__atomic_load_n(&l->wish, __ATOMIC_SEQ_CST) == NV_LEASE_USE"
_LEFT = "__atomic_store_n(&l->used, 0, __ATOMIC_SEQ_CST)"
_USED = "__atomic_load_n(&l->used, __ATOMIC_SEQ_CST)"
MUTATIONS = {
    "enters without a look": (_ENTERED, "1"),
    "enters on what it has not seen": (_ENTERED, _ENTERED.replace("SEQ_CST", "RELAXED")),
    "leaves before it has finished": (_LEFT, _LEFT.replace("SEQ_CST", "RELAXED")),
    "takes what it has not seen": (_USED, _USED.replace("SEQ_CST", "RELAXED")),
}


def run(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=BOUND_S, env=env
    )


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("probe")
    (directory / "probe.c").write_text("int main(void) { return 0; }\n")
    found = shutil.which("gcc")
    if found is None:
        pytest.skip("needs gcc")
    done = run(found, *SANITIZE, "-o", directory / "probe", directory / "probe.c")
    if done.returncode or run(directory / "probe").returncode:
        pytest.skip("gcc here has no working thread sanitizer")
    return found


def race(compiler: str, directory: Path, parks: int, **changes: tuple[str, str]) -> str:
    """What the sanitizer says about a copy of the core with changes to a header."""
    core = directory / "core"
    shutil.copytree(CORE, core)
    for name, (old, new) in changes.items():
        text = (core / f"{name}.h").read_text(encoding="ascii")
        assert old in text
        (core / f"{name}.h").write_text(text.replace(old, new, 1), encoding="ascii")
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *SANITIZE]
    built = run(compiler, *flags, f"-I{core}", "-o", directory / "race", SOURCE)
    assert built.returncode == 0, built.stderr
    done = run(directory / "race", parks, env={"TSAN_OPTIONS": "halt_on_error=1"})
    assert (done.returncode == 0) == (not done.stderr)
    if not done.returncode:
        assert int(done.stdout.split()[0]) > parks
    return done.stderr


def test_no_race(compiler: str, tmp_path: Path) -> None:
    assert race(compiler, tmp_path, 3000) == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTATIONS)
def test_each_step_is_needed(name: str, compiler: str, tmp_path: Path) -> None:
    """What is left out is noticed when the two meet just then; so it is tried several times."""
    for attempt in range(ATTEMPTS):
        said = race(compiler, tmp_path / str(attempt), 100_000, lease=MUTATIONS[name])
        if "data race" in said or "lease_race:" in said:
            return
    pytest.fail(f"not noticed: {name}")
