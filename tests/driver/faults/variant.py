"""A copy of the driver in another directory, compiled otherwise: with sanitizers, or with a bug in C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD_BOUND_S = 300
_COMPILED = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "_core.c", "_controller.c")


def variant(
    directory: Path,
    *,
    flags: str = "",
    edits: Iterable[tuple[str, str, str]] = (),
    extensions: Iterable[str] = ("driver/_build.py", "driver/embedded/_build.py"),
) -> None:
    """Makes it. edits: (file, text, what takes its place). The extensions not named are copied.

    Raises subprocess.CalledProcessError when it does not compile.
    """
    extensions = list(extensions)
    for part in ("driver", "tests/driver", "tests/support"):
        shutil.rmtree(directory / part, ignore_errors=True)
        shutil.copytree(ROOT / part, directory / part, ignore=_COMPILED)
    shutil.copy(ROOT / "tests" / "__init__.py", directory / "tests")
    for file, text, replacement in edits:
        path = directory / file
        source = path.read_text()
        assert source.count(text) == 1, f"{file}: {text!r} is there {source.count(text)} times"
        path.write_text(source.replace(text, replacement))
    for build in ("driver/_build.py", "driver/embedded/_build.py"):
        if build in extensions:
            environment = {
                **os.environ,
                "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags}",
                "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} {flags}",
                "PYTHONPATH": str(directory),
            }
            subprocess.run(
                [sys.executable, build],
                cwd=directory,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=BUILD_BOUND_S,
            )
        else:
            for library in (ROOT / build).parent.glob("*.so"):
                shutil.copy(library, (directory / build).parent)


def run(
    directory: Path, arguments: Iterable[str], environment: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """The campaign of the variant; its output is text."""
    return subprocess.run(
        [sys.executable, "-m", "tests.driver.faults.campaign", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
