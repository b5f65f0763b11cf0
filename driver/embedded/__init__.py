"""A software NVMe controller in this process: registers, queues and DMA, with its own C thread.

`Controller` is its socket: what a PCI slot would offer a driver. Below it is the C code
(controller.c says what the device does, and what it may do to you); above it stands
driver.transports.embedded, and nothing else in the driver knows this package.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from driver.embedded._controller import ffi, lib
from driver.embedded.faults import FaultPlan, FaultSyntaxError, parse_faults

__all__ = [
    "REGISTER_SPACE_BYTES",
    "Controller",
    "FaultPlan",
    "FaultSyntaxError",
    "guard_memory",
    "parse_faults",
]

REGISTER_SPACE_BYTES = 0x2000
_DOORBELL_BYTES = 0x1000
_SGLS = {"none": lib.SGL_NONE, "byte": lib.SGL_BYTE, "dword": lib.SGL_DWORD}


class Controller:
    """One controller with one namespace.

    `image_fd` is an open file or block device of which `image_bytes` bytes are served (the tail
    behind the last whole block is not reachable), or -1 for blocks that read as zeroes and forget
    writes. It stays the caller's and must outlive the controller. `max_transfer_bytes` is a power
    of two from 8 KiB on, or 0 for no limit (MDTS). `sgl`: "none", or "byte" or "dword" as what
    data blocks of an SGL have to be aligned to. `limits`: fields of struct command_limits
    (controller.h). With `tear_bytes` (512, or the LBA size) there is a volatile write cache, of
    which a power cut leaves units of that size. Raises OSError when the options are not valid
    (EINVAL) or the system has no room for it. After close() every method but close() raises
    OSError (ESHUTDOWN). All methods may be called from any thread.
    """

    def __init__(
        self,
        image_fd: int,
        image_bytes: int,
        *,
        uuid: bytes,
        lba_bytes: int = 512,
        queue_entries: int = 1024,
        max_transfer_bytes: int = 1 << 20,
        io_queues: int = 16,
        vectors: int = 17,
        read_only: bool = False,
        shadow_doorbells: bool = True,
        sgl: str = "byte",
        limits: Mapping[str, int] | None = None,
        poll_ns: int = 50_000,
        tear_bytes: int = 0,
    ) -> None:
        options = ffi.new("struct controller_options *")
        options.image_fd = image_fd
        options.image_bytes = image_bytes
        options.lba_bytes = lba_bytes
        options.queue_entries = queue_entries
        options.max_transfer_bytes = max_transfer_bytes
        options.io_queues = io_queues
        options.vectors = vectors
        options.poll_ns = poll_ns
        options.tear_bytes = tear_bytes
        options.read_only = read_only
        options.shadow_doorbells = shadow_doorbells
        options.sgl = _SGLS[sgl]
        for name, value in (limits or {}).items():
            setattr(options.limits, name, value)
        ffi.memmove(options.uuid, uuid, 16)
        out = ffi.new("struct controller **")
        self._lock = threading.Lock()
        self._controller: Any = ffi.NULL
        _check(lib.controller_create(options, out))
        self._controller = out[0]
        self.vectors = vectors
        self.kick_fd: int = lib.controller_kick_fd(self._controller)
        """Eventfd to write 8 bytes to after a doorbell was stored to memory."""
        self.doorbell_address = int(ffi.cast("uintptr_t", lib.controller_doorbells(out[0])))
        """Address of the page that is BAR0 + 0x1000; valid until close()."""
        self.doorbell_fd: int = lib.controller_doorbell_fd(self._controller)
        """The memfd behind that page, laid out as BAR0: the page is at 0x1000 of it."""
        self.doorbell_bytes = _DOORBELL_BYTES

    def read(self, offset: int, size: int) -> int:
        """Register at `offset`; `size` 4 or 8 bytes, aligned to 4. Reserved ones are zero."""
        _check_register(offset, size)
        with self._lock:
            value: int = lib.controller_read(self._alive(), offset, size)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Register at `offset`; returns before the controller has acted: CSTS tells when it has."""
        _check_register(offset, size)
        with self._lock:
            lib.controller_write(self._alive(), offset, value, size)

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Opens [offset, offset + length) of `fd` to DMA at `iova`; all multiples of 4096.

        OSError: EINVAL (alignment, behind the end of the file), EEXIST (overlaps), ENOSPC (more
        than 4096 regions).
        """
        with self._lock:
            _check(lib.controller_map(self._alive(), fd, offset, length, iova))

    def unmap(self, iova: int, length: int) -> None:
        """Takes one region back, exactly as it was mapped; the controller is out of it on return.

        A queue that lives there is lost and the controller reports a fatal status (CSTS.CFS).
        OSError ENOENT: there is no such region.
        """
        with self._lock:
            _check(lib.controller_unmap(self._alive(), iova, length))

    def resize(self, image_bytes: int) -> None:
        """The image has that size now; the host is told by an asynchronous event."""
        with self._lock:
            _check(lib.controller_resize(self._alive(), image_bytes))

    def set_interrupts(self, eventfds: Sequence[int]) -> None:
        """Vector i signals eventfds[i] from now on, vectors beyond none; -1 is none as well.

        The descriptors are duplicated.
        """
        with self._lock:
            _check(
                lib.controller_set_interrupts(self._alive(), list(eventfds), len(eventfds)),
            )

    def reset(self) -> None:
        """Function level reset: registers and queues as after power-up. DMA, interrupts stay."""
        with self._lock:
            lib.controller_reset(self._alive())

    def look_at_doorbells(self, look: bool) -> None:
        """Whether doorbells may be stored without a kick: then an idle controller looks at them.

        At intervals of 1 ms at most while that is how work is found, else of 100 ms.
        """
        with self._lock:
            lib.controller_look_at_doorbells(self._alive(), look)

    def set_faults(self, plan: FaultPlan) -> None:
        """Misbehaves by this plan from the next command on; its counts begin at zero."""
        rules = [
            {**vars(rule), "patch": list(rule.patch), "patch_bytes": len(rule.patch)}
            for rule in plan.rules
        ]
        array = ffi.new("struct fault_rule[]", rules)
        fields = [array, len(rules), plan.seed, plan.cap_mask, plan.cap_value]
        with self._lock:
            _check(lib.controller_set_faults(self._alive(), ffi.new("struct fault_plan *", fields)))

    def power_cut(self, seed: int) -> None:
        """The power fails: registers read all-ones from now on, nothing is executed any more.

        Of what the volatile write cache holds the seed chooses what reaches the image. Raises
        OSError when the image cannot be written.
        """
        with self._lock:
            _check(lib.controller_power_cut(self._alive(), seed & 0xFFFFFFFFFFFFFFFF))

    def serve_others(self, serve: bool) -> None:
        """Whether the host is another process: nothing that it does may hold the controller up.

        Queues whose memory is unmapped wait until it is mapped again: virtual machine monitors do
        that while the map of their guest's memory changes. Without it the controller reports a
        fatal status. An eventfd whose counter is full is left alone.
        """
        with self._lock:
            lib.controller_serve_others(self._alive(), serve)

    def cpu_ns(self) -> int:
        """CPU time that the controller's thread has used, in nanoseconds."""
        with self._lock:
            used: int = lib.controller_cpu_ns(self._alive())
        return used

    def statistics(self) -> dict[str, int]:
        """Counters since creation: commands, interrupts, sleeps, polls (that found work), ..."""
        out = ffi.new("struct controller_statistics *")
        with self._lock:
            lib.controller_get_statistics(self._alive(), out)
        return {name: getattr(out, name) for name, _ in ffi.typeof(out).item.fields}

    def take_deallocated(self) -> list[tuple[int, int]]:
        """(lba, blocks) that were given back by Dataset Management since the last call, in order, for tests.

        The first call begins the log. Raises OSError (EOVERFLOW) when there were more than 2^20.
        """
        found: list[tuple[int, int]] = []
        out = ffi.new("struct deallocated[]", 4096)
        with self._lock:
            while count := lib.controller_take_deallocated(self._alive(), out, len(out)):
                _check(count)
                found += [(each.lba, each.blocks) for each in out[0:count]]
        return found

    def close(self) -> None:
        """Power off: stops the thread after the command in hand, frees all memory. Idempotent."""
        with self._lock:
            controller, self._controller = self._controller, ffi.NULL
            if controller != ffi.NULL:
                lib.controller_destroy(controller)

    def _alive(self) -> Any:
        if self._controller == ffi.NULL:
            raise OSError(errno.ESHUTDOWN, "the embedded controller is closed")
        return self._controller


def guard_memory() -> None:
    """From now on a host that cuts its DMA memory short has a failed controller (CSTS.CFS), where
    else the whole process would end by SIGBUS. For good, and for every controller of the process.
    """
    _check(lib.guard_install())


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _check_register(offset: int, size: int) -> None:
    if size not in (4, 8) or offset % 4 or not 0 <= offset <= REGISTER_SPACE_BYTES - size:
        raise ValueError(f"no {size}-byte register at offset {offset:#x}")
