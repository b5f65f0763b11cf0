"""The control socket: what is asked, by whom, and what goes wrong on the way."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from driver.mountinfo import Mounted
from nvmefs import control, mounted
from nvmefs.control import Handler, NotServed, ask, serve
from nvmefs.controls import Controls
from nvmefs.errors import FsError
from nvmefs.layout import BLOCK_BYTES, SUPERBLOCK, Superblock
from tests.support.images import fresh
from tests.support.images import mounted as opened

MOUNT = Mounted("0:99", "/somewhere", "fuse.nvmefs", "disk.img")


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SYSTEM", tmp_path / "run")
    monkeypatch.setattr(control, "directory", lambda: tmp_path / "run")
    monkeypatch.setattr(control, "mounted_at", lambda path: MOUNT if path == "/somewhere" else None)


@asynccontextmanager
async def serving(verbs: dict[str, Handler]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, MOUNT, verbs)
        yield
        nursery.cancel_scope.cancel()


async def asked(verb: str, **arguments: Any) -> control.Value:
    call: Callable[[], control.Value] = partial(ask, "/somewhere", verb, **arguments)
    return await trio.to_thread.run_sync(call)


async def raw(data: bytes) -> dict[str, Any]:
    """The answer to bytes that need not be a request."""
    stream = await trio.open_unix_socket(control.SYSTEM / MOUNT.device)
    async with stream:
        await stream.send_all(data)
        answer = b""
        while part := await stream.receive_some(4096):
            answer += part
    value: dict[str, Any] = json.loads(answer)
    return value


async def echo(text: str = "") -> control.Value:
    return {"text": text}


async def refuse() -> control.Value:
    raise FsError(errno.EROFS, "no more writes")


async def broken() -> control.Value:
    raise RuntimeError("a fault")


async def test_a_request_and_its_answer() -> None:
    async with serving({"echo": echo}):
        assert await asked("echo", text="schön") == {"text": "schön"}
        assert await asked("echo") == {"text": ""}


async def test_only_its_owner_gets_at_the_socket() -> None:
    async with serving({}):
        path = control.SYSTEM / MOUNT.device
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


async def test_what_the_daemon_refuses_is_raised_here() -> None:
    async with serving({"refuse": refuse}):
        with pytest.raises(FsError, match="/somewhere: no more writes") as caught:
            await asked("refuse")
        assert caught.value.errno == errno.EROFS


async def test_a_fault_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving({"broken": broken, "echo": echo}):
        with pytest.raises(FsError, match="a fault of nvmefs"):
            await asked("broken")
        assert "RuntimeError: a fault" in caplog.text
        assert await asked("echo", text="still there") == {"text": "still there"}


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{\n",
        b"[]\n",
        b"17\n",
        b'"echo"\n',
        b'{"verb": "no such"}\n',
        b'{"verb": ["echo"]}\n',
        b'{"verb": "echo", "arguments": {"other": 1}}\n',
        b'{"verb": "echo", "arguments": [1]}\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
    ],
)
async def test_what_is_no_request(data: bytes) -> None:
    async with serving({"echo": echo}):
        answer = await raw(data)
        assert answer["error"]["errno"] == errno.EINVAL
        assert "\n" not in answer["error"]["message"]


async def test_a_request_without_an_end() -> None:
    async with serving({"echo": echo}):
        stream = await trio.open_unix_socket(control.SYSTEM / MOUNT.device)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * 4_000_000)
        await stream.aclose()
        assert await asked("echo") == {"text": ""}


async def test_who_hangs_up_takes_the_request_back() -> None:
    began, ended = trio.Event(), trio.Event()

    async def endless() -> control.Value:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with serving({"endless": endless}):
        stream = await trio.open_unix_socket(control.SYSTEM / MOUNT.device)
        await stream.send_all(b'{"verb": "endless"}\n')
        await began.wait()
        await stream.aclose()
        with trio.fail_after(5):
            await ended.wait()


async def test_a_socket_that_a_killed_daemon_left() -> None:
    control.SYSTEM.mkdir()
    path = control.SYSTEM / MOUNT.device
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NotServed, match="has ended"):
        await asked("echo")
    async with serving({"echo": echo}):
        assert await asked("echo") == {"text": ""}


async def test_nothing_is_mounted_there() -> None:
    with pytest.raises(NotServed, match="no filesystem of nvmefs is mounted there"):
        ask("/elsewhere", "stat")


async def test_no_socket_where_none_can_be(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.SYSTEM.write_text("a file in the way")
    with caplog.at_level(logging.INFO):
        async with serving({"echo": echo}):
            assert "no control socket" in caplog.text
        monkeypatch.setattr(control, "directory", lambda: Path("/somewhere/run"))
        async with serving({"echo": echo}):
            assert "no place for a control socket" in caplog.text


# --- what a filesystem answers ----------------------------------------------------------------------------


async def test_stat_tells_of_every_part() -> None:
    async with opened(await fresh()) as filesystem:
        value = json.loads(json.dumps(await Controls(filesystem, None).verbs["stat"]()))
        assert value["state"] == "read-write"
        assert value["space"]["filesystem"] == value["space"]["device"] == 4096
        assert value["journal"]["commits"] == filesystem.journal.commits >= 1
        assert value["cache"]["blocks"] == len(filesystem.cache.blocks)
        assert value["front_end"] is None
        assert value["schema_version"] == 1


async def test_labels_and_numbers_are_changed_for_good() -> None:
    namespace = await fresh()
    uuid = "0d1f5a3c-0000-4000-8000-000000000001"
    async with opened(namespace) as filesystem:
        controls = Controls(filesystem, None)
        await controls.tune(label="näme", uuid=uuid, reserved_blocks=7)
    superblock = Superblock.decode(namespace.blocks[SUPERBLOCK], SUPERBLOCK)
    assert superblock.label.decode() == "näme"
    assert superblock.uuid.hex() == uuid.replace("-", "")
    assert superblock.reserved_blocks == 7


@pytest.mark.parametrize(
    "arguments",
    [
        {"label": "x" * 65},
        {"label": "a\0b"},
        {"label": 5},
        {"uuid": "17"},
        {"reserved_blocks": -1},
        {"reserved_blocks": 4096},
        {"reserved_blocks": 2**64},
        {"reserved_blocks": True},
        {"on_error": 17},
    ],
)
async def test_values_that_cannot_be(arguments: dict[str, Any]) -> None:
    namespace = await fresh()
    async with opened(namespace) as filesystem:
        before = Superblock.decode(namespace.blocks[SUPERBLOCK], SUPERBLOCK)
        with pytest.raises(FsError) as caught:
            await Controls(filesystem, None).verbs["tune"](**arguments)
        assert caught.value.errno == errno.EINVAL
        assert filesystem.superblock == before


async def test_resize() -> None:
    namespace = await fresh()
    async with opened(namespace) as filesystem:
        resize = Controls(filesystem, None).verbs["resize"]
        namespace.grow(9000)
        value = await resize(size_bytes=5000 * BLOCK_BYTES + 17)
        assert value == {"before_bytes": 4096 * BLOCK_BYTES, "after_bytes": 5000 * BLOCK_BYTES}
        assert (await resize())["after_bytes"] == 9000 * BLOCK_BYTES
        with pytest.raises(FsError, match="not a number"):
            await resize(size_bytes="9G")


async def test_trim() -> None:
    async with opened(await fresh()) as filesystem:
        trim = Controls(filesystem, None).verbs["trim"]
        free = filesystem.statfs().free_blocks
        assert (await trim())["trimmed_bytes"] == free * BLOCK_BYTES
        assert (await trim(min_length=(free + 1) * BLOCK_BYTES))["trimmed_bytes"] == 0
        with pytest.raises(FsError, match="not a number"):
            await trim(start=-1)


# --- the verbs ----------------------------------------------------------------------------------------------


async def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def trim(**arguments: int) -> control.Value:
        return {"trimmed_bytes": sum(arguments.values())}

    async def command(*words: str) -> int:
        return await trio.to_thread.run_sync(mounted.main, words)

    async with serving({"trim": trim, "stat": echo}):
        assert await command("trim", "/somewhere", "-o", "1M", "-l", "1M", "-m", "2M") == 0
        assert capsys.readouterr().out == "/somewhere: 4 MiB (4194304 bytes) trimmed\n"
        assert await command("trim", "/somewhere", "-q") == 0
        assert capsys.readouterr().out == ""
        assert await command("trim", "/somewhere", "-m", "1K", "--json") == 0
        assert json.loads(capsys.readouterr().out)["trimmed_bytes"] == 1024
        assert await command("stat", "/somewhere") == 0
        assert capsys.readouterr().out == "text\n"
        assert await command("stat", "/elsewhere") == 1
        captured = capsys.readouterr()
        assert captured.err == (
            "nvmefs stat: /elsewhere: no filesystem of nvmefs is mounted there\n"
        )
    assert os.path.exists(control.SYSTEM)
