"""Transport to the embedded controller: a disk image behaves as an NVMe drive in this process.

    transport = open_embedded("disk.img", lba_size=4096)

Above: driver.controller, which sees a Transport like any other. Below: driver.embedded, which no
other module of the driver knows. `null:SIZE` instead of a path is a drive that reads zeroes and
forgets what is written, for measuring everything but the medium.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from driver.embedded import Controller, guard_memory, parse_faults
from driver.embedded.image import Image, open_image
from driver.errors import ControllerGone, TransportError
from driver.transports import Doorbells

__all__ = ["EmbeddedTransport", "guard_memory", "open_embedded"]

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def open_embedded(
    path: str | os.PathLike[str],
    *,
    lba_size: int = 512,
    queues: int = 16,
    vectors: int | None = None,
    queue_entries: int = 1024,
    mdts: int = 1 << 20,
    read_only: bool = False,
    shadow_doorbells: bool = True,
    sgl: str = "byte",
    limits: Mapping[str, int] | None = None,
    poll_us: int = 50,
    write_cache: str = "host",
    tear_bytes: int | None = None,
    faults: Sequence[str] = (),
    seed: int = 0,
    address: str | None = None,
) -> EmbeddedTransport:
    """Opens and locks an image, and powers a controller up on it (CC.EN is 0).

    lba_size: 512 or 4096 bytes. queues: I/O queue pairs granted at most. vectors: interrupt
    vectors, by default one for each queue pair and one for the admin queue. queue_entries:
    CAP.MQES + 1. mdts: largest transfer in bytes, a power of two of at least 8 KiB, or 0 for no
    limit. sgl, limits: see driver.embedded.Controller. poll_us: longest busy wait of the
    controller's thread. address: what messages call it,
    by default the path.

    write_cache: "host" (what is written is in the host's page cache) or "volatile" (in memory until
    it is flushed; close() without a shutdown loses it). tear_bytes: what a power cut never tears
    there, 512 or lba_size (the default). faults: rules to misbehave by, see
    driver.embedded.faults; seed: of all chance in them.

    Raises DeviceBusy naming the holder of the image, FaultSyntaxError, or TransportError.
    """
    name = os.fspath(path)
    label = address if address is not None else name
    parse_faults(faults)  # before anything is opened
    if write_cache not in ("host", "volatile"):
        raise TransportError(f"{label}: write_cache={write_cache}: host or volatile is possible")
    tear = (tear_bytes or lba_size) if write_cache == "volatile" else 0
    image = _null_image(name) if name.startswith("null:") else open_image(name, read_only=read_only)
    try:
        if image.size_bytes < lba_size:
            raise TransportError(f"{label}: smaller than one block of {lba_size} bytes")
        vector_count = queues + 1 if vectors is None else vectors
        try:
            controller = Controller(
                image.fd,
                image.size_bytes,
                uuid=image.uuid,
                lba_bytes=lba_size,
                queue_entries=queue_entries,
                max_transfer_bytes=mdts,
                io_queues=queues,
                vectors=vector_count,
                read_only=read_only,
                shadow_doorbells=shadow_doorbells,
                sgl=sgl,
                limits=limits,
                poll_ns=poll_us * 1000,
                tear_bytes=tear,
            )
        except OSError as error:
            raise TransportError(
                f"{label}: no embedded controller with lba_size={lba_size}, queues={queues}, "
                f"vectors={vector_count}, queue_entries={queue_entries}, mdts={mdts}: "
                f"{error.strerror}"
            ) from error
        transport = EmbeddedTransport(controller, image.fd, label)
        if faults:
            transport.set_faults(faults, seed=seed)
        return transport
    except BaseException:
        if image.fd >= 0:
            os.close(image.fd)
        raise


def _null_image(spec: str) -> Image:
    text = spec.removeprefix("null:").upper()
    digits = text.rstrip("KMGT")
    shift = _SUFFIXES.get(text[len(digits) :])
    if not (digits.isascii() and digits.isdigit()) or shift is None:
        raise TransportError(f"{spec}: a size is missing; write it as in null:16G")
    return Image(-1, int(digits) << shift, uuid.uuid5(uuid.NAMESPACE_OID, spec).bytes)


class EmbeddedTransport:
    """An embedded controller as a Transport. All methods may be called from any thread."""

    name = "embedded"
    # Page zero stays out, so that a null pointer is never an address; 48 bits as on common hosts.
    iova_ranges: Sequence[tuple[int, int]] = ((0x10000, (1 << 48) - 1),)

    def __init__(self, controller: Controller, image_fd: int, address: str) -> None:
        self.address = address
        self.vectors = controller.vectors
        self.doorbells: Doorbells | None = Doorbells(
            controller.doorbell_address, controller.doorbell_bytes, controller.kick_fd
        )
        self.controller = controller
        self._image_fd = image_fd

    def read32(self, offset: int) -> int:
        """32-bit register at BAR0 + offset."""
        with self._errors(f"register {offset:#x} cannot be read"):
            return self.controller.read(offset, 4)

    def read64(self, offset: int) -> int:
        """64-bit register at BAR0 + offset."""
        with self._errors(f"register {offset:#x} cannot be read"):
            return self.controller.read(offset, 8)

    def write32(self, offset: int, value: int) -> None:
        """Writes a 32-bit register; the controller acts on it in its own time."""
        with self._errors(f"register {offset:#x} cannot be written"):
            self.controller.write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """Writes a 64-bit register as its two halves, lower one first."""
        with self._errors(f"register {offset:#x} cannot be written"):
            self.controller.write(offset, 8, value)

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Makes [offset, offset + length) of `fd` DMA memory at `iova`; multiples of 4096 bytes."""
        with self._errors(f"cannot map {length} bytes at IOVA {iova:#x}"):
            self.controller.map(fd, offset, length, iova)

    def unmap(self, iova: int, length: int) -> None:
        """Takes one region back as it was mapped; waits for the command in hand, then is done."""
        with self._errors(f"cannot unmap {length} bytes at IOVA {iova:#x}"):
            self.controller.unmap(iova, length)

    def resize(self) -> None:
        """Looks at the size of the image again; the host is told by an asynchronous event."""
        with self._errors("cannot take its new size"):
            size_bytes = os.lseek(self._image_fd, 0, os.SEEK_END)
            self.controller.resize(size_bytes)

    def enable_interrupts(self, eventfds: Sequence[int]) -> None:
        """Vector i signals eventfds[i] from now on. The descriptors are duplicated."""
        with self._errors(f"cannot signal {len(eventfds)} of {self.vectors} interrupt vectors"):
            self.controller.set_interrupts(eventfds)

    def disable_interrupts(self) -> None:
        """No vector signals anything any more."""
        with self._errors("cannot disable interrupts"):
            self.controller.set_interrupts(())

    def set_faults(self, faults: Sequence[str], *, seed: int = 0) -> None:
        """Misbehaves by these rules, and no others, from the next command on.

        Raises FaultSyntaxError.
        """
        plan = parse_faults(faults, seed)
        with self._errors("cannot take faults"):
            self.controller.set_faults(plan)
        self.vectors = self.controller.vectors if plan.vectors is None else plan.vectors

    def power_cut(self, seed: int) -> None:
        """The power fails: the controller is gone; open the image again to see what is left.

        The seed chooses what of the volatile write cache (write_cache="volatile") survives.
        """
        with self._errors("the power cut could not be written to the image"):
            self.controller.power_cut(seed)

    def cpu_ns(self) -> int:
        """CPU time used by the controller's thread, in nanoseconds."""
        with self._errors("cannot read its CPU time"):
            return self.controller.cpu_ns()

    def take_deallocated(self) -> list[tuple[int, int]]:
        """What was given back; see driver.embedded.Controller.take_deallocated."""
        with self._errors("deallocated blocks"):
            return self.controller.take_deallocated()

    def statistics(self) -> dict[str, int]:
        """The controller's own counters; see driver.embedded.Controller.statistics."""
        with self._errors("cannot read its statistics"):
            return self.controller.statistics()

    def close(self) -> None:
        """Powers the controller off and gives the image and its lock back. Idempotent.

        What completed is in the host's page cache, as after the death of the process; a shutdown
        (CC.SHN) before is what makes it durable.
        """
        self.controller.close()
        image_fd, self._image_fd = self._image_fd, -1
        if image_fd >= 0:
            os.close(image_fd)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.ESHUTDOWN:
                raise ControllerGone(f"{self.address}: {what}: the controller is closed") from error
            raise TransportError(f"{self.address}: {what}: {error.strerror}") from error
        except (
            ValueError
        ) as error:  # a register that is not there: a doorbell stride that cannot be
            raise TransportError(f"{self.address}: {what}: {error}") from error
