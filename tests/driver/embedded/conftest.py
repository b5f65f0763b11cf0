"""Images and hosts for the tests of the embedded controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driver.embedded.harness import Host

IMAGE_BYTES = 16 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    return path


@pytest.fixture
def make_host(image: Path) -> Iterator[Callable[..., Host]]:
    """Opens hosts on the image (or on `path`), and closes them after the test."""
    hosts: list[Host] = []

    def make(path: str | None = None, **options: Any) -> Host:
        hosts.append(Host(str(image) if path is None else path, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """An enabled controller on a 16 MiB image of 512-byte blocks."""
    made = make_host()
    made.enable()
    return made
