"""What the bench reads: fio's JSON, /proc, pgbench's words, its own arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench import bench, fio
from tests.bench.machine import Ticks, cpu_model
from tests.bench.peers import BenchError
from tests.bench.rows.programs import transactions
from tests.bench.site import process_cpu_s


def output(*jobs: dict[str, Any]) -> str:
    nothing = {"total_ios": 0, "runtime": 0}
    return json.dumps(
        {"jobs": [{"error": 0, "read": nothing, "write": nothing, **j} for j in jobs]}
    )


def test_the_rate_counts_the_requests_of_all_jobs() -> None:
    jobs = [
        {"write": {"total_ios": 300, "runtime": 2000}},
        {"write": {"total_ios": 100, "runtime": 1900}},
    ]
    assert fio.parse("fio: a warning\n" + output(*jobs)).rate == 200


@pytest.mark.parametrize(
    "text",
    [
        "", "fio: failed", "{}", '{"jobs": [{}]}', "[]", output(),
        output({"error": 5}), output({"read": {"total_ios": 0, "runtime": 100}}),
        output({"read": {"total_ios": "1", "runtime": 100}}),
    ],
)  # fmt: skip
def test_anything_else_from_fio_is_an_error(text: str) -> None:
    with pytest.raises(BenchError, match="fio"):
        fio.parse(text)


def test_the_command_says_all_that_is_fixed() -> None:
    words = fio.Job("randread", depth=32, cpu=1).command(Path("/mnt/data"), 0.6)
    assert words[:4] == ["taskset", "-c", "1", "fio"]
    assert {"--rw=randread", "--bs=4096", "--direct=1", "--iodepth=32", "--runtime=600ms"} <= {
        *words
    }


def test_ticks_are_shares_of_all_cpus() -> None:
    before = Ticks.parse("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2\n")
    after = Ticks.parse("cpu  150 0 150 780 110 0 0 10 0 0\n")
    assert (after - before).busy_percent == 55
    assert (after - before).stolen_percent == 5


def test_the_cpu_time_of_a_process_is_what_the_kernel_says() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        says = float(child.stdout.readline())
        assert says <= process_cpu_s(child.pid) < says + 0.2
        child.communicate("\n")
    assert process_cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_cpu_model() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU\n") == "Some CPU"
    assert cpu_model("") == "unknown"


def test_pgbench() -> None:
    assert transactions("latency = 1\ntps = 512.25 (without initial connection time)\n") == 512.25
    with pytest.raises(BenchError, match="no tps"):
        transactions("nothing")


def test_an_unknown_name_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.parse(["--rows", "random,nonsense"])
    assert ended.value.code == 2
    assert "unknown: nonsense; there are random, " in capsys.readouterr().err


def test_without_root_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert bench.main([]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
