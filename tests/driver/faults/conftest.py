"""Controllers that obey rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.embedded.harness import Host
from tests.driver.faults.hosts import Make


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Hosts of controllers that obey these rules, with queue pair 1 and a page of data each."""
    hosts: list[Host] = []
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))

    def host(*rules: str, seed: int = 0, **options: object) -> Host:
        made = Host(str(image), faults=rules, seed=seed, **options)  # type: ignore[arg-type]
        hosts.append(made)
        return made

    yield host
    for made in hosts:
        made.close()
