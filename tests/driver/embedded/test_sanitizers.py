"""The C code under AddressSanitizer, UBSan and ThreadSanitizer, driven by stress.c."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SECONDS = "2"
# ThreadSanitizer does not model fences and says so; what they order is atomic all the same.
SANITIZERS = {
    "address": ["-fsanitize=address,undefined"],
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
}


@pytest.mark.parametrize("name", SANITIZERS)
def test_stress(name: str, image: Path, tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    base = [compiler, "-std=gnu11", "-g", "-O1", "-pthread", "-fno-sanitize-recover=all"]
    flags = [*base, *SANITIZERS[name]]
    source, binary = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text("int main(void) { return 0; }\n")
    steps = [[*flags, str(source), "-o", str(binary)], [str(binary)]]
    if any(
        subprocess.run(step, capture_output=True, timeout=30, check=False).returncode
        for step in steps
    ):
        pytest.skip(f"gcc here has no working {name} sanitizer")
    sources = [
        str(path)
        for path in sorted((ROOT / "driver" / "embedded").glob("*.c"))
        if path.name != "_controller.c"
    ]
    program = tmp_path / "stress"
    stress = str(Path(__file__).with_name("stress.c"))
    flags += ["-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]
    subprocess.run([*flags, stress, *sources, "-o", str(program)], check=True, timeout=50)
    done = subprocess.run(
        [str(program), str(image), SECONDS], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout.split()[0]) > 100
