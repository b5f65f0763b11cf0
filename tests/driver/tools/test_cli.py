"""driver.tools: each verb on the embedded controller, as text and as JSON, and how refusals read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from driver import Controller, DriverOptions, open_controller
from driver.tools import cli, manage
from driver.tools.verbs import VERBS
from driver.transports.qemu import missing
from nvmefs import cli as nvmefs_cli

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 8 * MIB)
    return str(path)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a verb says with -o json."""
    assert cli.main([*words, "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    values: dict[str, Any] = json.loads(out)
    assert values.pop("schema_version") == 1
    return values


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a verb that fails."""
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_id_ctrl(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = answer(capsys, "id-ctrl", image)
    assert values["model"] == "nvmefs embedded controller"
    assert values["version"] == "1.4.0"
    assert values["capabilities"]["max_queue_entries"] == 1024
    assert values["volatile_write_cache"] is True


def test_id_ns(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = answer(capsys, "id-ns", image)
    assert (values["nsid"], values["lba_bytes"], values["size_bytes"]) == (1, 512, 8 * MIB)
    assert values["write_protected"] is False
    assert len(values["nguid"]) == 32


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_id_ns_of_what_cannot_be_written(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.chmod(image, 0o444)
    assert answer(capsys, "id-ns", image)["write_protected"] is True


def test_list_of_a_controller(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = answer(capsys, "list", image)
    assert [each["nsid"] for each in values["namespaces"]] == [1]
    assert values["namespaces"][0]["size_bytes"] == 8 * MIB


def test_smart_log_counts(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = answer(capsys, "smart-log", image)
    assert values["critical_warnings"] == []
    assert -50 < values["temperature_c"] < 100


def test_error_log(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "error-log", image)["entries"] == []


def test_reset_keeps_the_data(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = os.urandom(MIB)
    with open(image, "r+b") as file:
        file.write(data)
    assert answer(capsys, "reset", image)["reset_ms"] > 0
    assert Path(image).read_bytes()[:MIB] == data


ELSEWHERE = {"bind", "unbind", "doctor", "controller", "ebs-stats", "get-feature", *manage.VERBS}


@pytest.mark.parametrize("verb", sorted(VERBS - ELSEWHERE))
def test_text_has_a_line_for_each_value(
    verb: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--time", "0.1"] if verb == "perf" else []
    assert cli.main([verb, image, *extra]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line == line.rstrip() and line for line in lines)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["id-ns", "absent.img"], "no such image"),
        (["id-ns", "nvme:x"], "unknown kind of address"),
        (["perf", "null:much"], "a size is missing"),
    ],
)
def test_refusals(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason in refusal(capsys, *words)


def test_a_namespace_that_is_not_there(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such namespace" in refusal(capsys, "id-ns", "-n", "9", image)


@pytest.mark.parametrize(
    "words",
    [
        ["id-ctrl"],
        ["perf", "x", "--qd", "0"],
        ["perf", "x", "--qd", "many"],
        ["perf", "x", "--bs", "4q"],
        ["perf", "x", "--rw", "sideways"],
        ["perf", "x", "--poll", "--interrupt"],
        ["smart-log", "x", "-o", "xml"],
        ["frobnicate"],
    ],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: nvmefs")


# ---- beside the mount command --------------------------------------------------------------------


def test_nvmefs_hands_verbs_over(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert nvmefs_cli.main(["list", image]) == 0
    assert "nvmefs embedded controller" in capsys.readouterr().out


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been mounted."""
    mounted: list[str] = []

    def mount(spec: str, *_: object) -> int:
        mounted.append(spec)
        return 0

    monkeypatch.setattr(nvmefs_cli, "mount", mount)
    return mounted


@pytest.mark.parametrize("spec", ["./list", "file:list", "lists"])
def test_a_file_named_like_a_verb_can_be_mounted(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = recorded(monkeypatch)
    assert nvmefs_cli.main([spec, str(tmp_path)]) == 0
    assert mounted == [spec]


def test_the_helper_of_mount_has_no_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = recorded(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.nvmefs", "list", str(tmp_path)])
    assert nvmefs_cli.main() == 0
    assert mounted == ["list"]


# ---- a controller of somebody else's -------------------------------------------------------------


@pytest.mark.skipif(bool(missing()), reason=missing() or "QEMU is there")
def test_every_query_on_qemu(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"qtest:{image}?mdts=2&logical_block_size=4096&physical_block_size=4096"
    assert answer(capsys, "id-ctrl", spec)["model"] == "QEMU NVMe Ctrl"
    assert answer(capsys, "id-ns", spec)["lba_bytes"] == 4096
    assert answer(capsys, "smart-log", spec)["temperature_c"] == 50
    assert answer(capsys, "error-log", spec)["entries"] == []
    assert answer(capsys, "list", spec)["namespaces"][0]["nsid"] == 1
    assert answer(capsys, "reset", spec)["model"] == "QEMU NVMe Ctrl"
    assert "doorbells are messages" in refusal(capsys, "perf", spec, "--time", "0.1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "auto"), (["--command-timeout", "2.5"], 2.5), (["--command-timeout", "0"], None)],
)
def test_a_deadline_of_ones_own(
    words: list[str], expected: object, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[DriverOptions] = []

    async def noted(spec: str, *, options: DriverOptions) -> Controller:
        chosen.append(options)
        return await open_controller(spec, options=options)

    monkeypatch.setattr(cli, "open_controller", noted)
    assert cli.main(["id-ctrl", image, *words]) == 0
    assert [options.command_timeout_s for options in chosen] == [expected]
