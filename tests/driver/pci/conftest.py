"""A machine of files for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.driver.pci.fake import FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path / "root")
