"""The bench on the smallest scale: its table, its JSON, and that nothing is left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bench.bench import main
from tests.conftest import mounts_below

pytestmark = pytest.mark.mount


@pytest.mark.skipif(os.geteuid() != 0, reason="a cold read needs root")
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "bench.json"
    scale = ["--rounds=1", "--files=20", "--mib=2", "--peers="]
    assert main([*scale, f"--directory={tmp_path}", f"--json={written}"]) == 0
    assert "read it back, cold" in capsys.readouterr().out
    measures = json.loads(written.read_text())["measures"]
    assert [len(measure["values"]["nvmefs"]) for measure in measures] == [1, 1, 1, 1]
    assert os.listdir(tmp_path) == ["bench.json"]
    assert not mounts_below(tmp_path)
