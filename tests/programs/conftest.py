"""What the tests of programs share: the packed source tree, and mounts as in tests/mount."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import new_mount
from tests.programs.source_tree import PackedTree, pack

__all__ = ["new_mount"]

SOURCE_FILES = 20_000


@pytest.fixture(scope="session")
def packed_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackedTree]:
    """A tar file of at least 20,000 source files, on the host's disk."""
    path: Path = tmp_path_factory.mktemp("packed") / "source.tar"
    yield pack(path, SOURCE_FILES)
    path.unlink()
