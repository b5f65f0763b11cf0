"""The pictures, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.bench import plots
from tests.bench.figures import Measure, Results
from tests.bench.peers import Fuse2fs, Nvmefs


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_ratios_and_growth_are_drawn(tmp_path: Path) -> None:
    results = Results()
    for peer, value in (("nvmefs", 2.0), ("fuse2fs", 1.0)):
        results.add(Measure("rate", "1/s"), peer, 0, value)
    rows = {"create": {"1000": 10.0, "10000": 12.0}}
    (tmp_path / "growth.json").write_text(json.dumps({"microseconds": rows, "growth": {}}))
    assert "growth.svg" in plots.draw(results, [Nvmefs(), Fuse2fs()], tmp_path)
    drawn = {"growth.png", "growth.svg", "ratios.png", "ratios.svg"}
    assert {*os.listdir(tmp_path)} == {"growth.json", *drawn}
