"""Load without an end, to be cut short: run in the guest.

    python -m tests.guest.load ADDRESS DEPTH BYTES

keeps DEPTH writes and reads of 4 KiB in flight in the first BYTES of the namespace, and says "running"
when each has done one. Whatever ends the work is named, once for each that had it, on stdout; a
worker that has no end within BOUND_S of the first one fails the program.
"""

from __future__ import annotations

import random
import sys

import trio

from driver import DriverError, Namespace, open_controller

BLOCK_BYTES = 4096
BOUND_S = 60


class Load:
    """What the workers share."""

    def __init__(self, namespace: Namespace, nbytes: int) -> None:
        self.namespace = namespace
        self.places = nbytes // BLOCK_BYTES
        self.ends: list[str] = []
        self.ended = trio.Event()
        self.idle: set[int] = set()

    async def work(self, number: int) -> None:
        """Writes and reads until that fails."""
        rng = random.Random(number)
        blocks = BLOCK_BYTES // self.namespace.lba_bytes
        out = bytearray(BLOCK_BYTES)
        self.idle.add(number)
        try:
            while True:
                first = rng.randrange(self.places) * blocks
                await self.namespace.write(first, rng.randbytes(BLOCK_BYTES))
                await self.namespace.read(rng.randrange(self.places) * blocks, out)
                if number in self.idle:
                    self.idle.remove(number)
                    if not self.idle:
                        print("running", flush=True)
        except DriverError as error:
            self.ends.append(type(error).__name__)
            print(f"{type(error).__name__}: {error}", flush=True)
            self.ended.set()


async def main(address: str, depth: int, nbytes: int) -> None:
    """The load, and the end of each worker in time once the first has ended."""
    async with await open_controller(address) as controller:
        load = Load(await controller.namespace(), nbytes)
        async with trio.open_nursery() as nursery:
            for number in range(depth):
                nursery.start_soon(load.work, number)
            await load.ended.wait()
            nursery.cancel_scope.deadline = trio.current_time() + BOUND_S
    assert len(load.ends) == depth, f"{len(load.ends)} of {depth} workers have ended by themselves"
    print("all ended", flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
