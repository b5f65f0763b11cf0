"""fio(1): one job on one file for a fixed time, and what its JSON says.

Job("randread", depth=32).run(path, seconds=1.0)      requests a second
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers import BenchError
from tests.demo.programs import call

KIB = 1 << 10


@dataclass(frozen=True)
class Outcome:
    """What one run of fio has done."""

    requests: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Job:
    """Random requests of `block` bytes, `depth` of them in flight by libaio."""

    pattern: str
    """randread or randwrite."""
    depth: int = 1
    block: int = 4 * KIB
    direct: bool = True
    writers: int = 1
    fdatasync: bool = False
    cpu: int | None = None
    """Where fio runs, if it matters."""

    def command(self, path: Path, seconds: float) -> list[str]:
        words = ["fio", "--name=job", f"--filename={path}", f"--rw={self.pattern}"]
        words += [f"--bs={self.block}", f"--direct={int(self.direct)}", f"--iodepth={self.depth}"]
        words += [f"--ioengine={'libaio' if self.direct else 'psync'}", "--norandommap"]
        words += ["--time_based", f"--runtime={round(seconds * 1000)}ms", "--invalidate=0"]
        words += [f"--numjobs={self.writers}", "--group_reporting", "--output-format=json"]
        words += ["--allow_file_create=0", "--randrepeat=0"]
        if self.fdatasync:
            words.append("--fdatasync=1")
        return words if self.cpu is None else ["taskset", "-c", str(self.cpu), *words]

    def run(self, path: Path, seconds: float) -> Outcome:
        return parse(call(*self.command(path, seconds))[1])


def parse(output: str) -> Outcome:
    """The requests of all jobs, and the time of the longest. Raises BenchError on anything else."""
    text = output[max(output.find("{"), 0) :]  # warnings may stand before it
    try:
        jobs = json.loads(text)["jobs"]
        if bad := next((job["error"] for job in jobs if job["error"]), 0):
            raise BenchError(f"fio: error {bad}")
        sides = [job[side] for job in jobs for side in ("read", "write")]
        requests = sum(_number(side, "total_ios") for side in sides)
        milliseconds = max(_number(side, "runtime") for side in sides)
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"fio: not the JSON that was expected ({error!r}): {text[:200]}"
        ) from error
    if not requests or not milliseconds:
        raise BenchError("fio: no request was made")
    return Outcome(int(requests), milliseconds / 1000)


def _number(side: Mapping[str, Any], key: str) -> float:
    value = side[key]
    if not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}")
    return value


def missing() -> str:
    """Why fio cannot run, or ""."""
    return "" if shutil.which("fio") else "fio is not installed (apt-get install fio)"
