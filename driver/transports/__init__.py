"""What a driver needs of the way to a controller, whatever that way is.

Registers, doorbells, DMA mappings, interrupts, close: nothing of PCI, files or sockets shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Doorbells", "LossNotifier", "MemoryOwner", "Resizable", "Transport"]


@dataclass(frozen=True)
class Doorbells:
    """Doorbell registers mapped into this process (BAR0 + 0x1000 on)."""

    address: int
    """Virtual address of the mapped page."""
    length: int
    """Bytes mapped there."""
    kick_fd: int = -1
    """When >= 0: write 8 bytes to this eventfd after a doorbell store.

    Shadow doorbells may say that the store, and with it the kick, is not needed; they do not cover
    the admin queue, whose doorbell stores are always followed by a kick.
    """


class Transport(Protocol):
    """An open controller. Errors: TransportError, or ControllerGone once it is lost or closed."""

    name: str
    """Kind of transport, for messages: "embedded"."""
    address: str
    """As the user wrote it, for example "file:disk.img"."""
    vectors: int
    """Interrupt vectors offered."""
    iova_ranges: Sequence[tuple[int, int]]
    """Usable IOVAs as inclusive (first, last) pairs."""
    doorbells: Doorbells | None
    """None: doorbells are written through write32 alone."""

    def read32(self, offset: int) -> int:
        """32-bit register at BAR0 + offset."""

    def read64(self, offset: int) -> int:
        """64-bit register at BAR0 + offset."""

    def write32(self, offset: int, value: int) -> None:
        """Writes a 32-bit register at BAR0 + offset."""

    def write64(self, offset: int, value: int) -> None:
        """Writes a 64-bit register at BAR0 + offset."""

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Makes [offset, offset + length) of `fd` DMA memory at `iova`; all page aligned."""

    def unmap(self, iova: int, length: int) -> None:
        """Takes back one region, exactly as it was mapped; no access to it after the return."""

    def enable_interrupts(self, eventfds: Sequence[int]) -> None:
        """Interrupt vector i signals eventfds[i] from now on."""

    def disable_interrupts(self) -> None:
        """No vector signals anything any more."""

    def close(self) -> None:
        """Releases the device and its DMA mappings. Idempotent."""


@runtime_checkable
class MemoryOwner(Protocol):
    """A Transport that has this method too brings the DMA memory along, and map() is not used.

    For controllers that reach certain memory only: there is no IOMMU in between.
    """

    @property
    def largest_dma_bytes(self) -> int:
        """The most that allocate_dma() can give at once at present."""

    def allocate_dma(self, nbytes: int) -> tuple[int, int, int]:
        """(fd, offset, iova) of nbytes (a power of two of pages) that the controller sees already.

        The fd stays the transport's; unmap() takes the memory back. Raises TransportError.
        """


@runtime_checkable
class LossNotifier(Protocol):
    """A Transport that has this too learns of the loss of its controller by itself."""

    @property
    def lost_fd(self) -> int:
        """An eventfd, readable from the moment when every call raises ControllerGone."""


@runtime_checkable
class Resizable(Protocol):
    """A Transport that has this too stands on something that may grow without the controller's notice."""

    def resize(self) -> None:
        """Looks at its size again. Raises TransportError."""
