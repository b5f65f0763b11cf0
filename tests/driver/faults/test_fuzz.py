"""Any byte that a controller returns may be anything: errors, no crash, no hang, no touch of freed memory."""

from __future__ import annotations

import logging
import os

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver import DriverError, DriverOptions, open_controller
from driver.transports.embedded import open_embedded
from tests.driver.faults.guard import Guard

OPTIONS = DriverOptions(
    io_queues=2,
    queue_depth=16,
    admin_depth=8,
    command_timeout_s=0.03,
    admin_timeout_s=0.1,
    shutdown_timeout_s=0.1,
    identify_patience_s=0,
    dma_bytes=8 << 20,
)
BOUND_S = 30
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))

places = st.integers(0, 4095) | st.integers(0, 600)
junk = st.binary(min_size=1, max_size=64)
identify = st.builds(
    lambda select, how, place, data: f"admin:identify select={select} {how}={place}:{data.hex()}",
    st.sampled_from([0, 1, 2, 3, 5, 6]),
    st.sampled_from(["patch", "flip"]),
    places,
    junk,
)
log_page = st.builds(
    lambda place, data: f"admin:get_log patch={place}:{data.hex()}", st.integers(0, 511), junk
)
word = st.integers(0, 0xFFFF)
completion = st.builds(
    lambda subject, nth, fields: f"{subject} nth={nth} {fields}",
    st.sampled_from(["admin", "io", "admin:set_features", "admin:get_features", "any"]),
    st.integers(1, 12),
    st.one_of(
        st.builds(lambda n: f"result={n}", st.integers(0, 0xFFFFFFFF)),
        st.builds(lambda n: f"cid={n}", word),
        st.builds(lambda n: f"sqid={n}", word),
        st.builds(lambda n: f"sqhead={n}", word),
        st.builds(lambda n: f"status={n & 0x7FF} crd={n >> 11 & 3}", word),
        st.builds(lambda n: f"event={n}", st.integers(0, 0xFFFFFF)),
    ),
)
capabilities = st.builds(
    lambda mqes, dstrd, css, low, high: (
        f"controller mqes={mqes} dstrd={dstrd} css={css} mpsmin={low} mpsmax={high}"
    ),
    word,
    st.sampled_from([0, 0, 0, 1, 15]),
    st.sampled_from([1, 1, 0x41, 0xFF, 0]),
    st.sampled_from([0, 0, 0, 1, 15]),
    st.sampled_from([4, 4, 0, 15]),
)


async def use(path: str, rules: list[str]) -> None:
    """From the opening to the end, with a little of everything in between."""
    transport = open_embedded(path, faults=["controller to=1", *rules], queues=2)
    try:
        controller = await open_controller(transport, options=OPTIONS)
    except DriverError:
        return
    guard = Guard(controller.dma)
    try:
        ids = await controller.namespaces()
        await controller.log_page(2, 512)
        namespace = await controller.namespace(ids[0] if ids else 1)
        data = bytearray(namespace.lba_bytes)
        await namespace.read(0, data)
        await namespace.write(namespace.lba_count - 1, data)
        await namespace.deallocate([(0, 1)])
        await namespace.refresh()
    except DriverError:
        pass  # which one, depends on what was said
    finally:
        guard.check()
        await controller.close()
    assert "internal error" not in str(controller.failure)


@pytest.mark.parametrize(
    "rules",
    [
        st.lists(identify, min_size=1, max_size=4),
        st.lists(completion, min_size=1, max_size=3),
        st.lists(st.one_of(capabilities, log_page), min_size=1, max_size=2),
    ],
    ids=["identify", "completions", "registers and logs"],
)
def test_anything(rules: st.SearchStrategy[list[str]], tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "disk.img")
    with open(path, "wb") as file:
        file.truncate(1 << 20)

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
    @given(rules)
    def run(chosen: list[str]) -> None:
        async def bounded() -> None:
            with trio.fail_after(BOUND_S):
                await use(path, chosen)

        trio.run(bounded)

    logging.disable(logging.CRITICAL)
    try:
        run()
    finally:
        logging.disable(logging.NOTSET)
