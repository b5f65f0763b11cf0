"""core/datamap.c under the thread sanitizer: datamap_race.c says what it does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nvmefs._build import CORE, ROOT

SANITIZE = ["-fsanitize=thread", "-pthread"]
SECONDS = 2
BOUND_S = 50


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=BOUND_S)


def test_no_race_between_publishers_and_users(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if run(compiler, *SANITIZE, "-o", tmp_path / "probe", probe).returncode:
        pytest.skip("the compiler has no thread sanitizer")
    if run(tmp_path / "probe").returncode:
        pytest.skip("the thread sanitizer does not run here")
    built = tmp_path / "race"
    source = Path(__file__).with_name("datamap_race.c")
    warnings = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    done = run(
        compiler, *warnings, *SANITIZE, f"-I{ROOT / CORE}",
        "-o", built, source, ROOT / CORE / "datamap.c",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(built, SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
