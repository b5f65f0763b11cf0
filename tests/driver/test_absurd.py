"""A controller may say anything: bring-up and use end well, or with a DriverError in one line."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from driver import DriverError, DriverOptions, open_controller

from .fake import FakeController, Fate, identify_controller, identify_namespace

# Shadow doorbells and SGLs would be used where a spoilt byte offers them, and the fake has neither.
FAST = DriverOptions(
    shutdown_timeout_s=0.1, identify_patience_s=0, shadow_doorbells=False, sgls=False
)
IDENTIFY = 0x06
NAMESPACE, CONTROLLER, ACTIVE, DESCRIPTORS, LIMITS = 0, 1, 2, 3, 6


def descriptors() -> bytearray:
    raw = bytearray(4096)
    raw[0:4] = bytes([1, 8, 0, 0])
    raw[12:16] = bytes([3, 16, 0, 0])
    return raw


def answering(pages: dict[int, bytes | bytearray]) -> FakeController:
    """Identify says these; all else is as usual."""
    transport = FakeController()
    transport.fate = lambda _qid, c: (
        Fate(data=bytes(pages[c[40]]))
        if _qid == 0 and c[0] == IDENTIFY and c[40] in pages
        else None
    )
    return transport


async def used(transport: FakeController) -> str:
    """Everything that looks at what Identify says; "" or the DriverError's line."""
    try:
        with trio.fail_after(30):
            async with await open_controller(transport, options=FAST) as controller:
                await controller.namespaces()
                namespace = await controller.namespace()
                data = bytearray(namespace.lba_bytes)
                await namespace.write(0, data)
                await namespace.read(0, data)
                if namespace.lba_count > 300:
                    await namespace.write_zeroes(0, 3)
                    await namespace.deallocate([(i, 1) for i in range(300)])
                if namespace.supports_copy:
                    await namespace.copy([(0, 1)], min(1, namespace.lba_count - 1))
                await namespace.flush()
    except DriverError as error:
        return str(error)
    return ""


SANE: dict[int, Callable[[], bytearray]] = {
    NAMESPACE: identify_namespace,
    CONTROLLER: lambda: identify_controller(oncs=0x1DF, oacs=0x0A),
    ACTIVE: lambda: bytearray(struct.pack("<I", 1).ljust(4096, b"\0")),
    DESCRIPTORS: descriptors,
    LIMITS: lambda: bytearray(4096),
}
# Where fields lie that the driver looks at, so that a spoilt byte is likely to matter.
PLACES = st.one_of(
    st.integers(0, 140), st.integers(256, 330), st.integers(512, 560), st.integers(0, 4095)
)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(SANE)),
    st.dictionaries(
        PLACES,
        st.one_of(st.sampled_from([0, 1, 8, 63, 64, 0x7F, 0xFF]), st.integers(0, 255)),
        max_size=6,
    ),
)
def test_a_few_wrong_bytes(page: int, spoilt: dict[int, int]) -> None:
    pages: dict[int, bytes | bytearray] = {cns: make() for cns, make in SANE.items()}
    raw = bytearray(pages[page])
    for at, value in spoilt.items():
        raw[at] = value
    pages[page] = raw
    assert "\n" not in trio.run(used, answering(pages))


@settings(max_examples=20)
@given(st.sampled_from(sorted(SANE)), st.integers(0, 1 << 32))
def test_noise(page: int, seed: int) -> None:
    pages: dict[int, bytes | bytearray] = {cns: make() for cns, make in SANE.items()}
    pages[page] = random.Random(seed).randbytes(4096)
    assert "\n" not in trio.run(used, answering(pages))


@pytest.mark.parametrize(
    ("page", "at", "value", "words"),
    [
        (CONTROLLER, 77, b"\xff", "MDTS is 255"),
        (CONTROLLER, 512, b"\x00", "SQES is 0x00"),
        (CONTROLLER, 512, b"\x77", "SQES is 0x77"),
        (CONTROLLER, 513, b"\x33", "CQES is 0x33"),
        (CONTROLLER, 516, b"\xff" * 4, ""),  # NN
        (CONTROLLER, 516, bytes(4), "NN is 0"),
        (CONTROLLER, 540, b"\xff" * 4, ""),  # MNAN
        (CONTROLLER, 258, b"\xff\xff", ""),  # ACL, AERL
        (CONTROLLER, 128, b"\xff" * 6, ""),  # CRDT1-3
        (CONTROLLER, 536, b"\xff" * 4, ""),  # SGLS 3: reserved
        (NAMESPACE, 0, bytes(8), "NSZE is 0"),
        (NAMESPACE, 0, b"\xff" * 8, "NSZE is 18446744073709551615"),
        (NAMESPACE, 8, b"\xff" * 8, ""),  # NCAP > NSZE
        (NAMESPACE, 25, b"\x40", "NLBAF is 64"),
        (NAMESPACE, 26, b"\x0f", "FLBAS names format 15"),
        (NAMESPACE, 46, b"\x01\x00", ""),  # NOIOB of a block
        (NAMESPACE, 46, b"\xff\xff", ""),
        (NAMESPACE, 130, b"\x00", "LBADS of format 0"),
        (NAMESPACE, 130, b"\x3f", "LBADS of format 0"),
        (NAMESPACE, 130, b"\x08", "LBADS of format 0"),
        (NAMESPACE, 128, b"\x08", "8 bytes of metadata"),
        (NAMESPACE, 29, b"\x03", "end-to-end protection"),
        (NAMESPACE, 24, b"\x10" + bytes(39) + b"\xff" * 10, ""),  # NPWG to NOWS
        (NAMESPACE, 74, bytes(7), "no blocks"),  # MSSRL and MCL of 0, although Copy is there
        (DESCRIPTORS, 1, b"\xff", "namespace descriptor of type 1"),
        (DESCRIPTORS, 0, b"\x04\x01\0\0\x02", "I/O command set 2"),
        (ACTIVE, 0, b"\xff" * 4, "not ascending"),
        (LIMITS, 0, b"\xff", "VSL is 255"),
        (LIMITS, 1, b"\xff", "WZSL is 255"),
        (LIMITS, 3, b"\x01\x01\0\0\0\x01", ""),  # one range, of one block
    ],
)
async def test_absurd_values(page: int, at: int, value: bytes, words: str) -> None:
    pages: dict[int, bytes | bytearray] = {cns: make() for cns, make in SANE.items()}
    raw = bytearray(pages[page])
    raw[74:81] = struct.pack("<HIB", 8, 8, 0) if page == NAMESPACE else raw[74:81]
    raw[at : at + len(value)] = value
    pages[page] = raw
    if page != NAMESPACE:
        pages[NAMESPACE][74:81] = struct.pack("<HIB", 8, 8, 0)  # type: ignore[index]
    pages[CONTROLLER][534] = 1  # type: ignore[index]
    said = await used(answering(pages))
    if words == "no blocks":
        assert said == "", "Copy is not used then"
    elif words:
        assert words in said
    else:
        assert said == ""


# ---- lists of more than 1,024 --------------------------------------------------------------------


def listing(ids: list[int]) -> FakeController:
    """A controller with these namespaces, 1,024 of them a list, from the id in the command on."""
    raw = identify_controller()
    struct.pack_into("<I", raw, 516, 0xFFFFFFFE)
    transport = FakeController(controller=raw)

    def fate(qid: int, command: bytes) -> Fate | None:
        if qid or command[0] != IDENTIFY or command[40] != ACTIVE:
            return None
        after = struct.unpack_from("<I", command, 4)[0]
        found = [nsid for nsid in ids if nsid > after][:1024]
        return Fate(data=struct.pack(f"<{len(found)}I", *found).ljust(4096, b"\0"))

    transport.fate = fate
    return transport


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 2048, 5000])
async def test_all_namespaces_are_listed(count: int) -> None:
    ids = [3 * i + 1 for i in range(count)]
    async with await open_controller(listing(ids), options=FAST) as controller:
        assert await controller.namespaces() == ids


async def test_the_highest_id_ends_a_list() -> None:
    ids = [*range(1, 1024), 0xFFFFFFFE]
    async with await open_controller(listing(ids), options=FAST) as controller:
        assert await controller.namespaces() == ids


async def test_a_list_that_repeats_itself_is_refused() -> None:
    page = struct.pack("<1024I", *range(1, 1025))
    transport = answering({ACTIVE: page})
    async with await open_controller(transport, options=FAST) as controller:
        with pytest.raises(DriverError, match="not ascending at 0x1"):
            await controller.namespaces()
