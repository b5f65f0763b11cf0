"""The guest that tests share, one for each kernel and session; what is asked of it after each test."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from . import kernels
from .guest import Guest
from .machine import Controller, GuestError, Machine, Namespace, missing

MIB = 1 << 20
TEST_BOUND_S = 300
_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it is slow, which leaves it out of `make test`; no test needs an own bound for that."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(TEST_BOUND_S))


def image(directory: Path, name: str, nbytes: int = 64 * MIB) -> Path:
    """A sparse image."""
    path = directory / name
    path.touch()
    os.truncate(path, nbytes)
    return path


def fleet(directory: Path) -> list[Controller]:
    """The controllers that the shared guest has from the beginning.

    mdts0, mdts1, mdts5, mdts7: the largest transfer is unlimited, 8, 128, 512 KiB; namespace 1 has
    blocks of 512 bytes, namespace 2 of 4096. narrow: one I/O queue pair and two vectors.
    """

    def namespaces(name: str) -> list[Namespace]:
        blocks = [{"logical_block_size": size, "physical_block_size": size} for size in (512, 4096)]
        return [
            Namespace(image(directory, f"{name}-{number}.img"), dict(properties))
            for number, properties in enumerate(blocks, 1)
        ]

    controllers = [
        Controller(f"mdts{mdts}", namespaces(f"mdts{mdts}"), {"mdts": mdts})
        for mdts in (0, 1, 5, 7)
    ]
    narrow: dict[str, str | int] = {"max_ioqpairs": 1, "msix_qsize": 2}
    return [*controllers, Controller("narrow", namespaces("narrow"), narrow)]


FREE_PORT, SECOND_FREE_PORT = 7, 6
"""The root ports of the shared guest that tests may plug something into, and unplug."""


def start(
    name: str,
    directory: Path,
    controllers: list[Controller],
    *,
    iommu: bool = True,
    append: str = "",
) -> Machine:
    """A guest with the kernel of that name; a skipped test, with the reason, where there is none."""
    if reason := missing():
        pytest.skip(reason)
    try:
        kernel = kernels.find(name)
    except kernels.NoKernel as error:
        pytest.skip(f"no kernel for the guest: {error}")
    return Machine(kernel, directory / "console", controllers, iommu=iommu, append=append)


def kernel_names() -> list[str]:
    """The kernels that $GUEST_KERNELS names; Debian's without it, and a built one if there is one."""
    names = os.environ.get("GUEST_KERNELS", "").split()
    return names or [*kernels.DEBIAN, kernels.BUILT]


@pytest.fixture(scope="session", params=kernel_names())
def shared_guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp(f"guest-{request.param}")
    with start(request.param, directory, fleet(directory)) as machine:
        yield Guest(machine)


@pytest.fixture
def guest(shared_guest: Guest, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The shared guest. After the test its kernel has said nothing of a fault, a bug, a warning."""
    if any(not os.path.exists(f"/proc/{pid}") for pid in shared_guest.machine.pids):
        raise GuestError(f"an earlier test has ended it\n{shared_guest.machine.last_words()}")
    shared_guest.mark()
    yield shared_guest
    shared_guest.check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The end of the guest's console, where a test with a guest has failed."""
    report = yield
    shared = getattr(item, "funcargs", {}).get("shared_guest")
    if report.failed and shared is not None:
        report.sections.append(("guest", shared.machine.last_words()))
    return report
