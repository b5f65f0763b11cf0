"""driver.tools.manage and the log verbs: what is destroyed, what is not, and how refusals read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driver import Controller, DriverOptions, open_controller
from driver.identify import EBS_VENDOR
from driver.tools import cli, manage
from driver.transports.qemu import missing

from ..fake import FakeController, Fate, identify_controller, identify_namespace
from ..test_logs import ebs_page

MIB = 1 << 20
NEEDS_QEMU = pytest.mark.skipif(bool(missing()), reason=missing() or "QEMU is there")


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 8 * MIB)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs a verb with -o json: (exit status, values, stderr)."""

    def once(*words: str) -> tuple[int, dict[str, Any], str]:
        code = cli.main([*words, "-o", "json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return once


Run = Callable[..., tuple[int, dict[str, Any], str]]


# ---- format --------------------------------------------------------------------------------------


def test_a_blank_disk_is_formatted(run: Run, image: str) -> None:
    code, values, _ = run("format", image, "--lbaf", "1", "--erase", "data")
    assert code == 0
    assert (values["lba_bytes"], values["size_bytes"]) == (4096, 8 * MIB)


@pytest.mark.parametrize("at", [0, 1080, MIB - 1, 7 * MIB, 8 * MIB - 1])
def test_a_disk_with_something_on_it_is_not(run: Run, image: str, at: int) -> None:
    with open(image, "r+b") as file:
        file.seek(at)
        file.write(b"\x53")
    before = Path(image).read_bytes()
    code, _, error = run("format", image, "-l", "1")
    assert (code, error.count("\n")) == (1, 1)
    assert f"not blank (byte {at} is not zero), and format would destroy" in error
    assert Path(image).read_bytes() == before
    assert run("format", image, "-l", "1", "--force")[0] == 0
    assert Path(image).read_bytes() == bytes(8 * MIB)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["format", "-l", "2"], "no format 2: there are 0 to 1"),
        (["format", "--erase", "key"], "cannot erase by its key"),
        (["format", "-n", "9"], "no such namespace"),
        (["create-ns", "--blocks", "100"], "does not manage namespaces"),
        (["delete-ns", "-n", "1"], "does not manage namespaces"),
        (["attach-ns", "-n", "1"], "does not manage namespaces"),
        (["detach-ns", "-n", "1"], "does not manage namespaces"),
        (["ebs-stats"], "not an EBS volume"),
    ],
)
def test_refusals(run: Run, image: str, words: list[str], reason: str) -> None:
    code, _, error = run(words[0], image, *words[1:])
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"nvmefs {words[0]}: ")
    assert reason in error


def arguments(*words: str) -> Any:
    return cli.build_parser().parse_args(words)


async def opened(transport: FakeController) -> Controller:
    return await open_controller(transport, options=DriverOptions(shutdown_timeout_s=0.2))


async def test_force_wants_the_address_in_full() -> None:
    """The short form of a PCI address, from history, is how the wrong drive is hit."""
    transport = FakeController(controller=identify_controller(oacs=2))
    async with await opened(transport) as controller:
        with pytest.raises(Exception, match=r"wants the address in full.*0000:01:00\.0"):
            await manage.run(controller, arguments("format", "01:00.0", "--force"))
        assert not [c for q, c in transport.log if q == 0 and c[0] == 0x80]
        await manage.run(controller, arguments("format", "0000:01:00.0", "--force"))


async def test_a_namespace_that_cannot_be_read_is_not_formatted_unasked() -> None:
    namespace = identify_namespace()
    namespace[25], namespace[26] = 1, 1
    struct.pack_into("<II", namespace, 128, 9 << 16, 9 << 16 | 8)
    transport = FakeController(controller=identify_controller(oacs=2), namespace=namespace)
    async with await opened(transport) as controller:
        with pytest.raises(Exception, match=r"cannot be seen what is on it: --force"):
            await manage.run(controller, arguments("format", "disk", "-l", "0"))
        assert not [c for q, c in transport.log if q == 0 and c[0] == 0x80]


# ---- log pages -----------------------------------------------------------------------------------


def test_logs_of_the_embedded_controller(run: Run, image: str) -> None:
    assert run("fw-log", image)[1]["slots"] == {"1": "1.0"}
    effects = run("effects-log", image)[1]
    assert effects["io"]["copy"] == ["changes user data"]
    assert "changes user data" in effects["admin"]["format_nvm"]
    formats = run("id-ns", image)[1]["formats"]
    assert [(form["index"], form["lba_bytes"]) for form in formats] == [(0, 512), (1, 4096)]


@pytest.mark.parametrize(
    ("feature", "name", "value"),
    [("6", "volatile_write_cache", 1), ("0x7", "number_of_queues", 1 << 16 | 1)],
)
def test_features(run: Run, image: str, feature: str, name: str, value: int) -> None:
    values = run("get-feature", image, "-f", feature)[1]
    assert (values["feature"], values["name"], values["value"]) == (int(feature, 0), name, value)


def test_a_feature_that_is_not_there(run: Run, image: str) -> None:
    assert "Invalid Field in Command" in run("get-feature", image, "-f", "0xd0")[2]
    for wrong in ("0", "256", "x"):
        with pytest.raises(SystemExit):
            cli.main(["get-feature", image, "-f", wrong])


async def test_ebs_statistics() -> None:
    raw = identify_controller()
    raw[0:2] = EBS_VENDOR.to_bytes(2, "little")
    raw[24:64] = b"Amazon Elastic Block Store".ljust(40)
    raw[3072:3080] = b"/dev/sdf"
    page = bytes(ebs_page())
    transport = FakeController(controller=raw)
    transport.fate = lambda _q, c: Fate(data=page) if (c[0], c[40]) == (2, 0xD0) else None
    async with await opened(transport) as controller:
        assert controller.identify.ebs_device == "/dev/sdf"
        values = await cli._QUERIES["ebs-stats"][0](controller, None)
        assert values["total_read_ops"] == 100
        page = bytes(4096)
        with pytest.raises(Exception, match="not the statistics of an EBS volume"):
            await cli._QUERIES["ebs-stats"][0](controller, None)


# ---- a controller of somebody else's -------------------------------------------------------------


@NEEDS_QEMU
def test_format_and_logs_on_qemu(run: Run, image: str) -> None:
    spec = f"qtest:{image}"
    formats = run("id-ns", spec)[1]["formats"]
    wanted = next(f["index"] for f in formats if (f["lba_bytes"], f["metadata_bytes"]) == (4096, 0))
    assert run("format", spec, "--lbaf", str(wanted))[1]["lba_bytes"] == 4096
    with open(image, "r+b") as file:
        file.write(b"x")
    assert "not blank" in run("format", spec)[2]
    assert run("fw-log", spec)[1]["active_slot"] == 1
    assert run("effects-log", spec)[1]["io"]["write"] == ["changes user data"]
