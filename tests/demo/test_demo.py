"""The demo's programs on a plain directory, and its waiting and undoing without a filesystem."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo import demo
from tests.demo.programs import DemoError, Line, Scale, call, run_programs

SMALL = Scale(
    sequential_mib=2, synced_files=3, transactions=3, rows_per_transaction=5, tree_files=20
)
HOLD = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def place(tmp_path: Path) -> demo.Place:
    return demo.Place(tmp_path / "demo")


def test_programs_on_a_plain_directory(tmp_path: Path) -> None:
    lines: list[str] = []
    run_programs(tmp_path, SMALL, lines.append)
    assert any("git fsck" in line for line in lines)
    assert not (tmp_path / "copy").exists()


def test_a_line_shows_its_rate() -> None:
    line = str(Line("write", 2.0, 4 << 20, 1, 4, "MiB/s"))
    assert line.split() == ["write", "4.0", "MiB", "1", "2.000", "s", "2", "MiB/s"]


def test_a_failing_program_is_named_with_its_last_words() -> None:
    with pytest.raises(DemoError, match=r"exit status 3\nwhy"):
        call("sh", "-c", "echo why >&2; exit 3")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(DemoError, match=r"no-such-program: No such file"):
        call("no-such-program")


def test_stop_without_a_demo_does_nothing(place: demo.Place) -> None:
    demo.stop(place)


def test_stop_removes_what_start_left(place: demo.Place) -> None:
    place.mountpoint.mkdir(parents=True)
    place.image.touch()
    demo.stop(place)
    assert not place.directory.exists()


def test_stop_waits_for_the_daemon_and_keeps_the_image(
    place: demo.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DAEMON_END_BOUND_S", 0.2)
    place.directory.mkdir()
    place.image.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, place.image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdin
        assert daemon.stdout
        daemon.stdout.readline()
        assert demo.holders(place.image) == [daemon.pid]
        with pytest.raises(DemoError, match=f"process {daemon.pid} still has"):
            demo.stop(place)
        assert place.image.exists()
        daemon.stdin.close()
        daemon.wait(timeout=20)
    demo.stop(place)
    assert not place.directory.exists()


def test_without_fuse_it_says_what_to_do(
    place: demo.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/fuse" and exists(path))
    with pytest.raises(DemoError, match="modprobe fuse"):
        demo.check_machine(place)


def test_a_mountpoint_is_told_from_a_directory() -> None:
    assert demo.is_mounted(Path("/proc"))
    assert not demo.is_mounted(Path("/proc/self"))


@pytest.fixture
def mounted(place: demo.Place) -> Iterator[demo.Place]:
    try:
        demo.start(place, SMALL)
        yield place
    finally:
        demo.stop(place)


@pytest.mark.mount
@pytest.mark.timeout(180)
def test_start_leaves_it_mounted_and_both_can_be_repeated(mounted: demo.Place) -> None:
    assert demo.is_mounted(mounted.mountpoint)
    assert (mounted.mountpoint / "clone" / ".git").is_dir()
    demo.start(mounted, SMALL)
    assert demo.is_mounted(mounted.mountpoint)
    demo.stop(mounted)
    assert not mounted.directory.exists()


@pytest.mark.mount
@pytest.mark.timeout(180)
def test_a_busy_mount_is_left_and_its_user_named(mounted: demo.Place) -> None:
    with open(mounted.mountpoint / "large", "rb"):
        with pytest.raises(DemoError, match=rf"in use by {os.getpid()} \("):
            demo.stop(mounted)
        assert demo.is_mounted(mounted.mountpoint)


@pytest.mark.mount
@pytest.mark.timeout(180)
def test_stop_after_the_daemon_was_killed(mounted: demo.Place) -> None:
    for pid in demo.holders(mounted.image):
        os.kill(pid, signal.SIGKILL)
    demo.stop(mounted)
    assert not mounted.directory.exists()
