"""The bounded part of the crash campaign, and the proof that it would notice: bugs put in on purpose."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from nvmefs.layout import BLOCK_BYTES
from tests.crash.bugs import BUGS, planted
from tests.crash.campaign import CrashFailure, Tally, campaign, names, record, replay
from tests.crash.drive import moments
from tests.crash.frontend import FrontRecorder
from tests.crash.workloads import ace
from tests.support.images import tiny_allowed
from tests.support.ram import RamNamespace

pytestmark = pytest.mark.timeout(120)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="large socket buffers need root")
SINGLES = [f"ace-{name}" for name in ace(1)]
PAIRS = [f"ace-{name}" for name in ace(2)]
OLD, NEW = b"\1" * BLOCK_BYTES, b"\2" * BLOCK_BYTES


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_allowed():
        yield


async def run(workloads: list[str], mode: str, subsets: int) -> Tally:
    tally = Tally()
    for name in workloads:
        await campaign(await record(name), mode, tally, subsets)
    print(tally.line())
    return tally


# --- the drive --------------------------------------------------------------------------------


async def test_drive_loses_only_what_is_not_flushed() -> None:
    namespace = RamNamespace(8, {0: OLD, 1: OLD, 2: OLD})
    before = dict(namespace.blocks)
    namespace.log = []
    await namespace.write(0, NEW)
    await namespace.write(8, NEW, fua=True)
    await namespace.flush()
    await namespace.write(16, NEW)
    cuts = list(moments(before, namespace.log))
    assert [len(cut.pending) for cut in cuts] == [1, 2, 1, 1, 1]
    assert [cut.durable[0] for cut in cuts] == [OLD, OLD, OLD, NEW, NEW]
    assert [cut.durable[1] for cut in cuts] == [OLD, OLD, NEW, NEW, NEW]
    assert cuts[-1].image(0)[2] == OLD
    assert cuts[-1].image(1)[2] == NEW
    seen = {cuts[-1].image(subset)[2] for subset in range(200)}
    assert len(seen) > 8, "no torn blocks"
    for block in seen:
        for at in range(0, BLOCK_BYTES, 512):
            assert block[at : at + 512] in (OLD[:512], NEW[:512])


async def test_drive_may_keep_an_older_write_and_lose_the_newer() -> None:
    namespace = RamNamespace(8, {0: OLD})
    namespace.log = []
    middle = b"\3" * BLOCK_BYTES
    await namespace.write(0, middle)
    await namespace.write(0, NEW)
    cut = list(moments({0: OLD}, namespace.log))[-1]
    assert {cut.exact(chosen)[0] for chosen in range(4)} == {OLD, middle, NEW}
    await namespace.write(0, b"\4" * BLOCK_BYTES, fua=True)
    cut = list(moments({0: OLD}, namespace.log))[-1]
    assert not cut.pending or cut.image(1)[0] == b"\4" * BLOCK_BYTES


# --- the campaign -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
async def test_one_operation(part: int) -> None:
    tally = await run(SINGLES[part::4], "linear", subsets=2)
    assert tally.states > 500


async def test_two_operations() -> None:
    await run(random.Random(1).sample(PAIRS, 60), "linear", subsets=3)


async def test_long_runs() -> None:
    tally = await run([f"long-{number}" for number in range(6)], "linear", subsets=3)
    assert tally.states > 500


@needs_root
async def test_overwrites_by_the_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    served, lent = [], []
    long_run = FrontRecorder.long_run

    async def counted(self: FrontRecorder, seed: str, operations: int) -> None:
        await long_run(self, seed, operations)
        served.append(self.served)
        lent.append(self.lent)

    monkeypatch.setattr(FrontRecorder, "long_run", counted)
    tally = await run([f"front-{number}" for number in range(3)], "linear", subsets=3)
    assert tally.states > 300
    assert all(served), "the front end was given nothing to do"
    assert any(lent), "nothing was lent"


async def test_cuts_during_the_recovery_too() -> None:
    tally = await run(["ace-1f", "ace-13s", "ace-27f-12s"], "exhaustive", subsets=2)
    assert tally.states > 500


@pytest.mark.parametrize("mode", ["none", "log"])
async def test_sparse_modes(mode: str) -> None:
    await run(["ace-8s", "long-7"], mode, subsets=5)


# --- bugs on purpose --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, marks=needs_root if BUGS[bug][1].startswith("front") else ())
        for bug in BUGS
    ],
)
async def test_bug_is_caught(bug: str) -> None:
    mode = "exhaustive" if "at mount" in bug else "linear"
    workloads = [BUGS[bug][1], *(f"long-{number}" for number in range(25))]
    with planted(bug), pytest.raises(CrashFailure) as caught:
        await run(workloads, mode, subsets=3)
    identity = str(caught.value).split(": ")[0]
    if ":" not in identity:
        return  # caught without a cut
    with planted(bug), pytest.raises(CrashFailure):
        await replay(identity, Tally())
    await replay(identity, Tally())  # without the bug the same cut is survived


async def test_inline_data_that_spilled_and_was_overwritten() -> None:
    """A file grows: its inline data gets a block, then the size changes. With the first step alone committed,
    what was written to that block later may be there already.
    """
    await replay("long-1100:17:1", Tally())


def test_workloads_have_no_end_and_their_own_names() -> None:
    found = [name for name, _ in zip(names(0), range(70000), strict=False)]
    assert len(set(found)) == len(found)
    assert set(SINGLES) | set(PAIRS) <= set(found)
