"""docs/driver.md: its program runs, and its table names what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from driver import Controller, Namespace
from driver.commands import Io
from driver.management import Management
from driver.tools.verbs import VERBS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/driver.md").read_text()
MANUAL = (ROOT / "docs/man/nvmefs-device.8").read_text().replace("\\-", "-")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_program_runs(tmp_path: Path) -> None:
    lines = re.findall(r"(?:^    .*\n|^\n)+", section("Using the driver alone"), re.M)
    program = textwrap.dedent(max(lines, key=len))
    (tmp_path / "disk.img").touch()
    os.truncate(tmp_path / "disk.img", 16 << 20)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nvmefs embedded controller [1]\n16777216 512 True\n")
    assert (tmp_path / "disk.img").read_bytes()[:5] == b"hello"


def test_what_it_names_is_there() -> None:
    text = section("Using the driver alone")
    for name, kind in (("Namespace", Namespace), ("Management", Management)):
        row = next(line for line in text.splitlines() if f"| `{name}`" in line)
        for method in re.findall(r"`([a-z_]+)`", row.split("|")[3]):
            assert hasattr(kind, method) or method == "on_change", method
    assert hasattr(Controller, "take_queue")


def test_every_io_command_is_in_the_table() -> None:
    table = section("What it speaks").lower()
    for command in Io:
        assert command.name.replace("_", " ").lower() in table, command


def test_the_manual_names_every_verb() -> None:
    assert [verb for verb in VERBS - {"controller"} if verb not in MANUAL] == []
