"""Garbage: any 64 bytes are answered with a status, and the controller lives on."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.driver.embedded.harness import CFS, CSTS, FLUSH, IOVA, PAGE, Host, Queue, command

KNOWN = {
    0x000, 0x001, 0x002, 0x004, 0x007, 0x00B, 0x00C, 0x013, 0x020, 0x080,
    0x100, 0x101, 0x102, 0x105, 0x108, 0x109, 0x10C, 0x10D, 0x10E, 0x10F,
    0x280, 0x281, 0x285,
    0x00D, 0x00E, 0x00F, 0x011, 0x01E, 0x10A, 0x183,
}  # fmt: skip

# Numbers near what means something, so that commands get past the first checks.
addresses = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(64, 255).map(lambda page: IOVA + page * PAGE),
    st.tuples(st.integers(64, 255), st.integers(0, PAGE)).map(lambda t: IOVA + t[0] * PAGE + t[1]),
)
dwords = st.one_of(st.integers(0, 40), st.integers(0, (1 << 32) - 1))


def commands(opcodes: list[int]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda opcode, flags, nsid, prp1, prp2, cdw: command(
            opcode, flags=flags, cid=7, nsid=nsid, prp1=prp1, prp2=prp2, cdw=cdw
        ),
        st.one_of(st.sampled_from(opcodes), st.integers(0, 255)),
        st.one_of(st.just(0), st.just(0x40), st.integers(0, 255)),
        st.one_of(st.sampled_from([0, 1, 0xFFFFFFFF]), st.integers(0, (1 << 32) - 1)),
        addresses,
        addresses,
        st.lists(dwords, min_size=6, max_size=6),
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    path = tmp_path_factory.mktemp("fuzz") / "disk.img"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    made = Host(str(path), memory_bytes=1 << 20, mdts=64 << 10)
    yield made
    made.close()


def restart(host: Host) -> Queue:
    """A fresh controller; pages 64 and on are the commands' playground, full of pointers."""
    host.disable()
    host.memory.used = 2 * PAGE
    host.enable()
    pointers = [IOVA + (64 + i % 192) * PAGE for i in range(512)]
    for page in range(64, 256, 3):
        struct.pack_into("<512Q", host.memory.map, page * PAGE, *pointers)
    return host.create_queue(1, 64)


def alive(host: Host) -> None:
    assert host.transport.read32(CSTS) & CFS == 0
    assert host.admin.run(command(FLUSH)).status == 0x101  # Delete I/O Submission Queue 0


@settings(max_examples=150)
@given(batch=st.lists(commands([0, 1, 2, 5, 8, 9, 0xC, 0x19]), min_size=1, max_size=40))
def test_io_commands(host: Host, batch: list[bytes]) -> None:
    queue = restart(host)
    for code in batch:
        queue.push(code)
    queue.ring()
    for reply in queue.reap(len(batch)):
        assert reply.status in KNOWN
        assert reply.cid == 7
    alive(host)


@settings(max_examples=150)
@given(batch=st.lists(commands([0, 1, 2, 4, 5, 6, 8, 9, 0xA, 0x7C, 0x80]), min_size=1, max_size=20))
def test_admin_commands(host: Host, batch: list[bytes]) -> None:
    restart(host)
    for code in batch:
        if code[0] == 0xC:
            continue  # Asynchronous Event Request: answered when there is an event
        assert host.admin.run(code).status in KNOWN
    alive(host)


@given(batch=st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=50))
def test_random_bytes(host: Host, batch: list[bytes]) -> None:
    queue = restart(host)
    for code in batch:
        queue.push(code)
    queue.ring()
    assert {reply.status for reply in queue.reap(len(batch))} <= KNOWN
    alive(host)


@given(values=st.lists(st.tuples(st.integers(0, 1023), dwords), max_size=30))
def test_random_doorbells(host: Host, values: list[tuple[int, int]]) -> None:
    """Whatever is stored: no crash, no hang, and a reset brings everything back."""
    restart(host)
    for index, value in values:
        host.doorbells[index] = value
        host.kick()
    queue = restart(host)
    assert queue.run(command(FLUSH, nsid=1)).status == 0


@given(
    writes=st.lists(
        st.tuples(st.integers(0, 0x40).map(lambda n: 4 * (n // 4)), dwords), max_size=20
    )
)
def test_random_registers(host: Host, writes: list[tuple[int, int]]) -> None:
    for offset, value in writes:
        host.transport.write32(offset, value)
    host.transport.write32(0x10, 0xFFFFFFFF)
    queue = restart(host)
    assert queue.run(command(FLUSH, nsid=1)).status == 0
