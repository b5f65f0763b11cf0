"""The three places: the host's filesystem, and a mount with each front end, made once for all tests."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount.conftest import Mount, make_mount, new_mount, run
from tests.posix.checks import Checks
from tests.support.uring import URING

__all__ = ["new_mount"]  # the fixture, for tests that want a filesystem of their own

PLACES = ("host", "c", URING, "python")
BOUND_S = 300
ORACLES = {"ext2/ext3", "xfs"}  # as stat(1) names them


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without --slow only what is marked quick runs, and on mounts alone."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.mount)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(BOUND_S))  # the last one unmounts
            if not item.get_closest_marker("quick") or _params(item).get("where") == "host":
                item.add_marker(pytest.mark.slow)
            if os.geteuid():
                item.add_marker(pytest.mark.skip(reason="only root can act as several users"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that collects assertions fails with all of them at its end."""
    result = yield
    collected = pyfuncitem.funcargs.get("checks")
    if isinstance(collected, Checks):
        collected.judge()
    return result


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """A directory for each place, made when it is first asked for."""
    made: dict[str, Path] = {}
    mounts: list[Mount] = []

    def find(where: str) -> Path:
        if where not in made:
            base = tmp_path_factory.mktemp(f"posix-{where}")
            if where == "host":
                kind = run("stat", "-f", "-c", "%T", base).stdout.strip()
                if kind not in ORACLES:
                    pytest.skip(f"{base} is on {kind}: no measure for another filesystem")
                made[where] = base
            else:
                mount = make_mount(base, size="2G", options=f"frontend={where}")
                mounts.append(mount)
                made[where] = mount.path
        return made[where]

    with ExitStack() as stack:
        yield find
        for mount in mounts:
            stack.callback(mount.tidy)


def _params(item: pytest.Item) -> dict[str, object]:
    return (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )


@pytest.fixture(params=PLACES)
def where(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def place(
    where: str,
    places: Callable[[str], Path],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A fresh directory, open to all users, and the working directory; gone afterwards."""
    base = places(where)
    name = re.sub(r"\W+", "_", request.node.name)[:80]
    path = base / f"{name}-{len(os.listdir(base))}"
    path.mkdir()
    path.chmod(0o777)
    monkeypatch.chdir(path)
    umask = os.umask(0)
    yield path
    os.umask(umask)
    monkeypatch.chdir(base)
    run("rm", "-rf", "--one-file-system", path)


@pytest.fixture
def checks(where: str, place: Path) -> Checks:
    """Collects a test's assertions; see checks.py."""
    return Checks(where)
