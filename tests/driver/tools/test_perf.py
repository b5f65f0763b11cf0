"""driver.tools.perf: that it measures what it says, writes nowhere it should not, and ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from driver import (
    ControllerError,
    ControllerGone,
    DriverOptions,
    InvalidRequest,
    Unsupported,
    open_controller,
)
from driver.tools.perf import PATTERNS, Job, measure
from driver.transports import Transport
from driver.transports.embedded import open_embedded

from ..fake import FakeController

KIB, MIB = 1 << 10, 1 << 20
OPTIONS = DriverOptions(io_queues=2, queue_depth=256, shutdown_timeout_s=0.2)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 8 * MIB)
    return path


async def measured(transport: Transport, job: Job) -> dict[str, Any]:
    with trio.fail_after(30):
        async with await open_controller(transport, options=OPTIONS) as controller:
            result = await measure(controller, 1, job)
            taken = controller.statistics().queues[-1]
            assert taken.qid == 2
            assert taken.inflight == taken.bad_completions == 0
            assert controller.dma.statistics().held_buffers == 0
            return result


@pytest.mark.parametrize("wait", ["interrupt", "poll"])
async def test_the_thread_runs_where_its_interrupts_arrive(
    wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = open_embedded("null:1G", queues=2)
    cpu, allowed = max(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    seen: list[tuple[int, set[int]]] = []
    asked: list[int] = []

    def vector_cpus(vector: int) -> set[int]:
        asked.append(vector)
        return {cpu, 1 << 20}

    def set_affinity(pid: int, cpus: set[int]) -> None:
        seen.append((pid, cpus))

    monkeypatch.setattr(transport, "vector_cpus", vector_cpus, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", set_affinity)
    await measured(transport, Job("randread", 4 * KIB, 1, 0.05, wait))
    assert seen[:2] == [(0, {cpu} if wait == "interrupt" else allowed), (0, allowed)]
    assert set(asked) == ({2} if wait == "interrupt" else set())


@pytest.mark.parametrize("wait", ["adaptive", "poll", "interrupt"])
@pytest.mark.parametrize("depth", [1, 7, 128])
@pytest.mark.parametrize("pattern", PATTERNS)
async def test_counts_and_times(pattern: str, depth: int, wait: str) -> None:
    transport = open_embedded("null:1G", queues=2, queue_entries=256)
    result = await measured(transport, Job(pattern, 4 * KIB, depth, 0.15, wait))
    latency = result["latency_us"]
    assert result["commands"] > depth
    assert result["failed"] == 0
    assert 0.1 < result["seconds"] < 5
    assert result["iops"] == pytest.approx(result["commands"] / result["seconds"])
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    assert latency["mean"] <= latency["max"]
    assert (result["sleeps"] == 0) if wait == "poll" else True
    assert (result["sleeps"] > 0) if wait == "interrupt" else True


@pytest.mark.parametrize("pattern", ["randwrite", "write"])
async def test_writes_stay_on_the_disk_and_reads_change_nothing(pattern: str, image: Path) -> None:
    job = Job(pattern, 16 * KIB, 8, 0.2)
    assert (await measured(open_embedded(image, queues=2), job))["commands"] > 0
    before = image.read_bytes()
    assert len(before) == 8 * MIB
    assert any(before)
    await measured(open_embedded(image, queues=2), Job("randread", 16 * KIB, 8, 0.1))
    assert image.read_bytes() == before


@pytest.mark.parametrize("at", [0, 1080, 65600, MIB - 1, 7 * MIB, 8 * MIB - 1])
async def test_a_disk_with_something_on_it_is_not_written(at: int, image: Path) -> None:
    """Superblocks, partition tables and labels are in the first or last MiB of a disk."""
    with image.open("r+b") as file:
        file.seek(at)
        file.write(b"\x53")
    before = image.read_bytes()
    with pytest.raises(InvalidRequest, match=f"byte {at} is not zero.*--force"):
        await measured(open_embedded(image, queues=2), Job("randwrite", 4 * KIB, 1, 0.1))
    assert image.read_bytes() == before
    job = Job("randwrite", 4 * KIB, 1, 0.1, force=True)
    assert (await measured(open_embedded(image, queues=2), job))["commands"] > 0


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job("read", 1000, 1, 0.1), "not a multiple of 512"),
        (Job("read", 256 * KIB, 1, 0.1), "at most 131072 bytes"),
        (Job("read", 4 * KIB, 256, 0.1), "--qd is at most 255"),
    ],
)
async def test_jobs_that_do_not_fit(job: Job, words: str, image: Path) -> None:
    transport = open_embedded(image, queues=2, queue_entries=256, mdts=128 * KIB)
    with pytest.raises(InvalidRequest, match=words):
        await measured(transport, job)


async def test_a_read_only_disk(image: Path) -> None:
    """The controller's refusals are counted, and named by their status."""
    transport = open_embedded(image, queues=2, read_only=True)
    result = await measured(transport, Job("write", 4 * KIB, 1, 0.1))
    assert result["failed"] == result["commands"] > 0
    assert result["last_failure"] == "Namespace is Write Protected"


async def test_doorbells_by_message() -> None:
    with pytest.raises(Unsupported, match="doorbells are messages"):
        await measured(FakeController(), Job("read", 4 * KIB, 1, 0.1))


async def test_one_queue_is_not_enough(image: Path) -> None:
    with pytest.raises(ControllerError, match="1 I/O queues were granted"):
        await measured(open_embedded(image, queues=1), Job("read", 4 * KIB, 1, 0.1))


async def test_one_vector_is_enough_for_polling(image: Path) -> None:
    result = await measured(
        open_embedded(image, queues=2, vectors=1), Job("read", 4 * KIB, 4, 0.1, "poll")
    )
    assert result["commands"] > 0


async def test_cancelled_while_it_runs(image: Path) -> None:
    """What is in flight is waited for, so that no buffer is written after it was given back."""
    with trio.fail_after(20):
        transport = open_embedded(image, queues=2)
        async with await open_controller(transport, options=OPTIONS) as controller:
            with trio.move_on_after(0.3) as scope:
                await measure(controller, 1, Job("read", 64 * KIB, 64, 60))
            assert scope.cancelled_caught
            assert controller.statistics().queues[-1].inflight == 0
            assert controller.dma.statistics().held_buffers == 0


@pytest.mark.parametrize("wait", ["adaptive", "poll"])
async def test_commands_that_never_complete(wait: str) -> None:
    """Two seconds without one are the end, though no call of the C loop is as long."""
    transport = open_embedded("null:1G", queues=2, faults=["q2:read drop"])
    begin = trio.current_time()
    with pytest.raises(ControllerError, match="no command completed for two seconds"):
        await measured(transport, Job("randread", 4 * KIB, 4, 20, wait))
    assert trio.current_time() - begin < 10


async def test_a_controller_that_goes_away() -> None:
    """Its own reason is given, at once."""
    async with await open_controller(open_embedded("null:1G", queues=2), options=OPTIONS) as gone:

        async def pull_out() -> None:
            await trio.sleep(0.3)
            gone.fail(ControllerGone("pulled out"))

        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull_out)
            with pytest.raises(ControllerGone, match="pulled out"):
                await measure(gone, 1, Job("randread", 4 * KIB, 4, 20))
        assert trio.current_time() - begin < 5


@pytest.mark.parametrize(
    ("rule", "resets"),
    [("q2:read every=5003 limit=3 drop", 1), ("q2:read every=5003 limit=3 delay=60s", 0)],
    ids=["lost", "late"],
)
async def test_commands_that_do_not_come_back(rule: str, resets: int, image: Path) -> None:
    """The ladder is climbed for them, and the measurement goes on."""
    transport = open_embedded(image)
    options = DriverOptions(io_queues=2, command_timeout_s=0.8, shutdown_timeout_s=0.5)
    with trio.fail_after(40):
        async with await open_controller(transport, options=options) as controller:
            transport.set_faults([rule])
            found = await measure(controller, None, Job("randread", 4 * KIB, 8, 3.0))
            stats = controller.statistics()
            assert stats.aborts >= 1
            assert (stats.resets >= 1) == (resets > 0)
            assert found["failed"] >= 1
            assert found["commands"] > 1000


@pytest.mark.parametrize("rule", ["q2:read nth=300 fatal", "q2:read nth=300 gone"])
async def test_a_controller_that_ends_ends_the_measurement(rule: str, image: Path) -> None:
    transport = open_embedded(image)
    options = DriverOptions(io_queues=2, command_timeout_s=0.2, shutdown_timeout_s=0.5)
    with trio.fail_after(40):
        async with await open_controller(transport, options=options) as controller:
            transport.set_faults([rule])
            with pytest.raises((ControllerError, ControllerGone), match=r"CFS|all-ones|given up"):
                await measure(controller, None, Job("randread", 4 * KIB, 8, 1.5))
