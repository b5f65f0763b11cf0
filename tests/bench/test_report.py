"""The tables, the targets and the JSON of made-up numbers."""

from __future__ import annotations

import json

from tests.bench import report
from tests.bench.figures import Measure, Results
from tests.bench.machine import Noise
from tests.bench.peers import Bindfs, Fuse2fs, Nvmefs, NvmefsPython, Peer
from tests.bench.targets import targets

PEERS: list[Peer] = [Nvmefs(), NvmefsPython(), Fuse2fs(), Bindfs()]
QD32 = Measure("4 KiB random read, QD32", "1/s", data=True)


def made_up() -> Results:
    results = Results()
    rounds = [
        {"nvmefs": 100, "nvmefs-python": 20, "fuse2fs": 40, "bindfs": 80},
        {"nvmefs": 90, "nvmefs-python": 30, "fuse2fs": 100, "bindfs": 80},
        {"nvmefs": 120, "nvmefs-python": 20, "fuse2fs": 40, "bindfs": 80},
    ]
    for number, values in enumerate(rounds):
        for peer, value in values.items():
            results.add(QD32, peer, number, value)
    cpu = Measure("4 KiB random read, QD32: daemon's CPU", "us", less_is_better=True)
    for peer, value in {"nvmefs": 3, "null-c": 2}.items():
        results.add(cpu, peer, 0, value)
    names = Measure("one lookup: daemon's CPU", "us", less_is_better=True)
    for peer, value in {"nvmefs": 30, "null-python": 20}.items():
        results.add(names, peer, 0, value)
    results.left_out["tree", "bindfs"] = "it says no"
    return results


def test_targets() -> None:
    found = {target.what: target for target in targets(made_up(), ["fuse2fs", "bindfs"])}
    best = found["4 KiB random read, QD32: of the best C FUSE peer"]
    assert (best.bound, best.met) == (1.0, True)
    assert (best.measured.least, best.measured.median, best.measured.greatest) == (0.9, 1.25, 1.5)
    python = found["4 KiB random read, QD32: of nvmefs-python"]
    assert (python.bound, python.measured.median, python.met) == (4.0, 5.0, True)
    cpu = found["4 KiB random read, QD32: daemon's CPU: times null-c"]
    assert (cpu.measured.median, cpu.met) == (1.5, False)
    lookup = found["one lookup: daemon's CPU: nvmefs above pyfuse3, us"]
    assert (lookup.measured.median, lookup.met) == (10, True)
    assert len(found) == 4


def test_tables_say_everything() -> None:
    noise = Noise(load=[0.5], busy_percent=[3.0], work_ms=[9.0])
    told = report.tables(made_up(), PEERS, noise, {"ext4": "no loop device"})
    assert "1.25 (0.90..1.50)" in told
    assert "MISSED 4 KiB random read, QD32: daemon's CPU: times null-c" in told
    assert "tree, bindfs: it says no" in told
    assert "ext4: no loop device" in told
    assert "0.50 (0.50..0.50)" in told


def test_json_has_every_number() -> None:
    noise = Noise(load=[0.5], busy_percent=[3.0], work_ms=[9.0])
    written = json.loads(json.dumps(report.as_json(made_up(), PEERS, noise, {}, {"rounds": 3})))
    assert written["measures"][0]["values"]["fuse2fs"] == [40, 100, 40]
    assert written["peers"]["bindfs"]["kind"] == "fuse"
    assert [target["met"] for target in written["targets"]] == [True, True, False, True]
    assert written["noise"]["load_average"] == [0.5]


def test_numbers_have_three_digits_that_count() -> None:
    assert [report.number(value) for value in (12345.6, 12.34, 1.234)] == ["12,346", "12.3", "1.23"]
