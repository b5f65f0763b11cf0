"""core/ under the sanitizers of the compiler, on random bytes: core_fuzz.c says what it does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nvmefs._build import BLOCK_SOURCES, CORE, ROOT

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BOUND_S = 50


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzzer, built as strictly as our own checks want C to be."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("fuzz")
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = [compiler, *SANITIZE, "-o", str(directory / "probe"), str(probe)]
    tried = subprocess.run(command, check=False, capture_output=True, timeout=BOUND_S)
    if tried.returncode:
        pytest.skip("the compiler has no sanitizers")
    built = directory / "core_fuzz"
    sources = [
        Path(__file__).with_name("core_fuzz.c"),
        *(ROOT / CORE / name for name in BLOCK_SOURCES),
    ]
    warnings = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    options = [*warnings, *SANITIZE, f"-I{ROOT / CORE}", "-o", str(built)]
    subprocess.run([compiler, *options, *map(str, sources)], check=True, timeout=BOUND_S)
    return built


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_access_outside_of_a_block(fuzzer: Path, seed: int) -> None:
    done = subprocess.run(
        [str(fuzzer), str(seed), "1000"],
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert done.returncode == 0, done.stderr
