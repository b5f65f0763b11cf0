"""The bench on the smallest scale: its tables, its JSON, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import bench
from tests.bench.figures import Measure, Results
from tests.bench.peers import Nvmefs
from tests.bench.rows import Row, Scale
from tests.bench.site import Site
from tests.conftest import mounts_below

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="a cold read needs root"),
]

SMALL = Scale(1, 0.05, 2, 2, 20, 1, 2, 1)


def test_a_small_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICK", SMALL)
    written = tmp_path / "bench.json"
    rows = "--rows=sequential,files,sqlite,idle"
    assert (
        bench.main(["--quick", rows, "--peers=", f"--where={tmp_path}", f"--json={written}"]) == 0
    )
    assert "1 MiB sequential read, buffered" in capsys.readouterr().out
    measures = json.loads(written.read_text())["measures"]
    assert len(measures) == 24
    assert all(len(measure["values"]["nvmefs"]) == 1 for measure in measures)
    assert os.listdir(tmp_path) == ["bench.json"]
    assert not mounts_below(tmp_path)


class Hanging(Row):
    """Its daemon answers no more."""

    name = "hanging"
    image_bytes = 64 << 20

    def run(self, site: Site) -> Iterator[tuple[Measure, float]]:
        yield Measure("before", "1/s"), 1.0
        for pid in site.peer.pids:
            os.kill(pid, signal.SIGSTOP)
        yield Measure("never", "1/s"), float(len(os.listdir(site.directory / "nowhere")))


def test_a_daemon_that_hangs_is_killed_and_the_row_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    results = Results()
    peer = Nvmefs()
    bench.run_once(Hanging(SMALL), peer, results, 0, tmp_path, bound_s=4)
    assert results.left_out == {("hanging", "nvmefs"): "nvmefs: not done in 4 s"}
    assert results.numbers("before", "nvmefs") == [1.0]
    assert not results.numbers("never", "nvmefs")
    assert peer.pids == []
    assert not mounts_below(tmp_path)
    assert not (tmp_path / "image").exists()
