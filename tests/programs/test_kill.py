"""SIGKILL in the midst of work: the next mount replays, and all that was durable is there."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import ROOT, Mount, fsck, wait_until
from tests.programs.source_tree import PackedTree
from tests.programs.writer import GONE, WRITERS, problems, read_facts
from tests.support.uring import URING

pytestmark = [pytest.mark.mount, pytest.mark.timeout(240)]

ROUNDS = 4
WRITER_END_BOUND_S = 30


class Crew:
    """One writer of each kind, each in a directory of its own below `top`."""

    def __init__(self, top: Path, facts: Path, seed: int) -> None:
        self.facts = {top / kind: facts / f"{top.name}.{kind}" for kind in WRITERS}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.bystander: subprocess.Popen[bytes] | None = None
        for directory, path in self.facts.items():
            directory.mkdir(parents=True)
            command = [sys.executable, "-m", "tests.programs.writer"]
            arguments = [directory.name, directory, path, seed]
            self.processes.append(subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT))

    def unpack(self, packed: Path, directory: Path) -> None:
        """Work beside the writers that nobody syncs, so that commits and checkpoints are large."""
        directory.mkdir()
        command = ["tar", "--warning=no-unknown-keyword", "-xpf", str(packed), "-C", str(directory)]
        self.bystander = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def count(self) -> int:
        """Facts so far, of the writer that has the fewest."""
        return min(len(read_facts(path)) for path in self.facts.values())

    def total(self) -> int:
        return sum(len(read_facts(path)) for path in self.facts.values())

    def wait_for_end(self) -> None:
        statuses = [process.wait(WRITER_END_BOUND_S) for process in self.processes]
        assert set(statuses) == {GONE}, dict(zip(self.facts, statuses, strict=True))

    def stop(self) -> None:
        for process in [*self.processes, *([self.bystander] if self.bystander else [])]:
            if process.poll() is None:
                process.kill()
                process.wait(WRITER_END_BOUND_S)


@pytest.mark.parametrize("frontend", ["c", URING, "python"])
def test_what_was_durable_survives(
    new_mount: Callable[..., Mount], tmp_path: Path, packed_tree: PackedTree, frontend: str
) -> None:
    """Some rounds on one filesystem, each killed at another moment; later ones find all earlier work."""
    mount = new_mount(size="2G", options=f"commit=1,frontend={frontend}")
    facts: dict[Path, Path] = {}
    for seed in range(ROUNDS):
        crew = Crew(mount.path / f"round{seed}", tmp_path, seed)
        facts |= crew.facts
        moment = random.Random(seed).randrange(100, 1500)
        try:
            crew.unpack(packed_tree.path, mount.path / f"unpacked{seed}")
            wait_until(lambda: crew.count() > 0 and crew.total() >= moment)  # noqa: B023
            mount.kill()
            crew.wait_for_end()
        finally:
            crew.stop()
        require_clean(mount, seed)  # as the crash left it: fsck reads the journal with it
        mount.mount()
        assert "replayed" in mount.logged().rpartition("mounted at")[0].rpartition("mounted at")[2]
        wrong = [
            line
            for directory, path in facts.items()
            for line in problems(directory, read_facts(path))
        ]
        assert not wrong, f"seed {seed}, killed after {moment} facts: " + "\n".join(wrong)
        mount.unmount()
        require_clean(mount, seed)
        mount.mount()


def require_clean(mount: Mount, seed: int) -> None:
    checked = fsck(mount.image)
    assert checked.returncode == 0, f"seed {seed}: {checked.stdout}{checked.stderr}"
