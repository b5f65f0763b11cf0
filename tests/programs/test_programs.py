"""Ordinary programs on one mount, one after the other; then all they left is there after a remount.

The tests of this file run in order on one filesystem of 8 GiB. Each puts its work into a directory of
its own and a copy of it onto the host's filesystem (`Station.keep`). The last but one unmounts, checks,
mounts again and compares every byte, mode, owner, time, link and attribute with these copies.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.demo.programs import call
from tests.mount.conftest import Mount, fsck, make_mount, wait_until
from tests.programs import workloads
from tests.programs.manifest import differences, manifest
from tests.programs.source_tree import PackedTree, unpack

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

RESIDENT_LIMIT_KB = 200 << 10
IDLE_WINDOW_S = 3.0
IDLE_LIMIT = 0.01
IDLE_BOUND_S = 30.0


@dataclass
class Station:
    """The mount, and what must be found on it: directories of the mount and their copies outside."""

    mount: Mount
    outside: Path
    kept: dict[Path, Path] = field(default_factory=dict)

    def place(self, name: str) -> Path:
        path = self.mount.path / name
        path.mkdir()
        return path

    def keep(self, directory: Path, copy: Path | None = None) -> None:
        """`directory` must look like `copy`, by default one that is made now."""
        if copy is None:
            copy = self.outside / directory.name
            call("cp", "-a", directory, copy)
        self.kept[directory] = copy


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    directory = tmp_path_factory.mktemp("programs")
    mount = make_mount(directory, size="8G")
    outside = directory / "outside"
    outside.mkdir()
    try:
        yield Station(mount, outside)
    finally:
        mount.tidy()
        shutil.rmtree(directory)


def resident_kb(pid: int) -> int:
    """VmRSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_source_tree_is_unpacked(station: Station, packed_tree: PackedTree) -> None:
    assert packed_tree.files >= 20_000
    copy = station.outside / "source"
    unpack(packed_tree.path, copy)
    unpack(packed_tree.path, station.mount.path / "source")
    station.keep(station.mount.path / "source", copy)
    assert resident_kb(station.mount.pid) < RESIDENT_LIMIT_KB


def test_git_clones_repacks_and_checks(station: Station) -> None:
    origin = workloads.make_repository(station.outside)
    place = station.place("git")
    assert workloads.git(origin, place) > 3000
    station.keep(place)


def test_sqlite_with_a_concurrent_reader(station: Station) -> None:
    place = station.place("sqlite")
    workloads.sqlite(place / "wal", "wal", commits=100)
    workloads.sqlite(place / "rollback", "delete", commits=100)
    station.keep(place)


def test_a_c_program_is_compiled_and_run(station: Station) -> None:
    place = station.place("compiled")
    workloads.compile_and_run(place)
    station.keep(place)


def test_a_mapping_is_written_and_read_back(station: Station) -> None:
    place = station.place("mapped")
    workloads.mapped(place / "file", 16 << 20)
    station.keep(place)


def test_a_thousand_files_open_at_once(station: Station) -> None:
    place = station.place("open")
    workloads.many_open_files(place)
    station.keep(place)


def test_attributes_on_hundreds_of_files(station: Station) -> None:
    place = station.place("attributes")
    workloads.attributes(place)
    station.keep(place)


def test_a_tree_is_copied_and_removed(station: Station) -> None:
    """What is removed again must leave nothing behind; fsck and the next test look for it."""
    source = station.mount.path / "source" / "copy0"
    if not source.exists():
        pytest.skip("the source tree was not unpacked")
    copy = station.place("copied") / "copy0"
    call("cp", "-a", source, copy)
    assert differences(manifest(source), manifest(copy)) == []
    call("rm", "-r", copy)
    station.keep(copy.parent)


def test_everything_is_there_after_a_remount(station: Station) -> None:
    station.mount.unmount()
    checked = fsck(station.mount.image)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    station.mount.mount()
    for directory, copy in station.kept.items():
        found = differences(manifest(copy), manifest(directory))
        assert found == [], f"{directory.name}: " + "\n".join(found)
    assert resident_kb(station.mount.pid) < RESIDENT_LIMIT_KB


def test_an_idle_mount_uses_no_cpu(station: Station) -> None:
    """Once the last commit is done. The window moves on while something is still being written."""

    def idle() -> bool:
        used = station.mount.cpu_s()
        started = time.monotonic()
        time.sleep(IDLE_WINDOW_S)  # the window of the measurement
        return station.mount.cpu_s() - used < IDLE_LIMIT * (time.monotonic() - started)

    wait_until(idle, IDLE_BOUND_S)
