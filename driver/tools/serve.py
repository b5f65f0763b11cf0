"""`nvmefs controller IMAGE --socket PATH`: an image file becomes an NVMe controller for others.

Runs in the foreground until SIGTERM or SIGINT; then what the drive caches is made durable, the
socket is removed and the image unlocked. After SIGUSR1 it ends too, but as if the power had failed:
of a volatile write cache --seed decides what is left. Clients that come and go are logged to
stderr. The rules of --fault are those of driver/embedded/faults.py.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DriverError, TransportError
from ..transports.embedded import guard_memory, open_embedded
from ..vfio_user.function import NvmeFunction
from ..vfio_user.server import ListeningSocket, serve

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("nvmefs.vfio_user")

_SHUTDOWN_BOUND_S = 60.0
DESCRIPTION = "Serve an image file as an NVMe controller over vfio-user."


def add_arguments(
    verb: argparse.ArgumentParser, size: Callable[[str], int], number: Callable[[str], float]
) -> None:
    """size and number convert arguments: 4k, and an integer from 1 on."""
    verb.add_argument("image", metavar="IMAGE", help="a file or block device, or null:SIZE")
    verb.add_argument("--socket", metavar="PATH", required=True, help="the socket to make")
    verb.add_argument("--lba-size", type=int, choices=(512, 4096), default=512, help="bytes (512)")
    verb.add_argument("--queues", type=number, default=16, metavar="N", help="I/O queue pairs (16)")
    verb.add_argument("--vectors", type=number, metavar="N", help="interrupts (queues + 1)")
    verb.add_argument(
        "--queue-entries", type=number, default=1024, metavar="N", help="longest queue (1024)"
    )
    verb.add_argument(
        "--mdts",
        type=lambda text: 0 if text == "0" else size(text),
        default=1 << 20,
        metavar="SIZE",
        help="largest transfer (1M); 0: no limit",
    )
    verb.add_argument("--read-only", action="store_true", help="a write-protected namespace")
    verb.add_argument(
        "--no-doorbell-mmap", action="store_true", help="doorbells by messages alone (slow)"
    )
    verb.add_argument(
        "--no-shadow-doorbells", action="store_true", help="do not offer Doorbell Buffer Config"
    )
    verb.add_argument(
        "--write-cache",
        choices=("host", "volatile"),
        default="host",
        help="where unflushed writes are: the page cache (host), or memory that dies with us",
    )
    verb.add_argument(
        "--fault", action="append", default=[], metavar="RULE", help="misbehave; may be repeated"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of all chance in rules (0)")
    verb.add_argument("-v", "--verbose", action="store_true", help="log refused messages too")


def main(arguments: argparse.Namespace) -> int:
    """Serves until told to end; the exit status."""
    _log.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        _run(arguments)
    except DriverError as error:
        print(f"nvmefs controller: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    guard_memory()  # clients are strangers: what they map they may also take away
    transport = open_embedded(
        arguments.image,
        lba_size=arguments.lba_size,
        queues=int(arguments.queues),
        vectors=None if arguments.vectors is None else int(arguments.vectors),
        queue_entries=int(arguments.queue_entries),
        mdts=arguments.mdts,
        read_only=arguments.read_only,
        shadow_doorbells=not arguments.no_shadow_doorbells,
        write_cache=arguments.write_cache,
        faults=arguments.fault,
        seed=arguments.seed,
    )
    try:
        function = NvmeFunction(
            transport,
            queues=int(arguments.queues),
            map_doorbells=not arguments.no_doorbell_mmap,
        )
        with _stop_signals() as stop, ListeningSocket(arguments.socket) as listening:
            _log.info("%s: serves %s", arguments.socket, arguments.image)
            serve(listening, function, stop.fd)
        if stop.power_failed:
            transport.power_cut(arguments.seed)
            _log.info("%s: the power of %s was cut", arguments.socket, arguments.image)
            return
        if not function.shut_down(_SHUTDOWN_BOUND_S):
            raise TransportError(
                f"{arguments.image}: not flushed within {_SHUTDOWN_BOUND_S:g} s: "
                "what was written last may be lost with the power; run sync"
            )
    finally:
        transport.close()


@dataclass
class _Stop:
    """`fd`: an eventfd that can be read once a signal to end has come."""

    fd: int
    power_failed: bool = False

    def note(self, number: int, _frame: object) -> None:
        """The signal handler."""
        self.power_failed |= number == signal.SIGUSR1
        os.eventfd_write(self.fd, 1)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGTERM, SIGINT, SIGHUP and SIGUSR1 are noted in what is yielded."""
    stop = _Stop(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, stop.note) for number in wanted]
    try:
        yield stop
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)
        os.close(stop.fd)
