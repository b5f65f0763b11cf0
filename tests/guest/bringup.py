"""Runs in the guest: opens a controller by whatever way there is, writes, reads back, reports.

    python -m tests.guest.bringup 0000:01:00.0 interrupt|poll [noiommu]

One line of JSON: the way ("iommufd", "group", "noiommu"), interrupt vectors, interrupts that came,
commands whose end was seen by polling, bytes of doorbells that are mapped, IOVA ranges, and what is
open while it is in use. The namespace's first blocks are overwritten.
"""

from __future__ import annotations

import json
import os
import random
import sys

import trio

from driver import DriverOptions, open_controller
from driver.transports.vfio import VfioTransport

NBYTES = 300_000 // 4096 * 4096
COMMANDS = 40
MOST_COMMANDS = 4000  # how long a completion takes has to be learnt first, on a busy host from many
BOUND_S = 60.0
POLL_NS = {"poll": 1_000_000_000, "interrupt": 0}


async def main(address: str, mode: str, noiommu: bool) -> dict[str, object]:
    options = DriverOptions(
        io_queues=2, queue_depth=64, dma_bytes=8 << 20, poll_ns=POLL_NS[mode], noiommu=noiommu
    )
    data = random.Random(address).randbytes(NBYTES)
    async with await open_controller(address, options=options) as controller:
        transport = controller.transport
        assert isinstance(transport, VfioTransport)
        namespace = await controller.namespace()
        await namespace.write(0, data)
        found = bytearray(NBYTES)
        await namespace.read(0, found)
        assert found == data
        one = bytearray(namespace.lba_bytes)
        for block in range(COMMANDS):
            await namespace.read(block, one)
            assert one == data[block * len(one) : (block + 1) * len(one)]
        for block in range(MOST_COMMANDS):
            if mode == "interrupt" or controller.statistics().queues[1].polled:
                break
            await namespace.read(block % COMMANDS, one)
        nodes = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]}
        return {
            "way": transport.way,
            "vectors": transport.vectors,
            "interrupts": controller.statistics().interrupts,
            "polled": controller.statistics().queues[1].polled,
            "doorbells": transport.doorbells.length if transport.doorbells else 0,
            "ranges": list(transport.iova_ranges),
            "nodes": sorted(name for name in nodes if name.startswith("/dev/")),
        }


async def bounded() -> dict[str, object]:
    with trio.fail_after(BOUND_S):
        return await main(sys.argv[1], sys.argv[2], sys.argv[3:] == ["noiommu"])


if __name__ == "__main__":
    print(json.dumps(trio.run(bounded)))
