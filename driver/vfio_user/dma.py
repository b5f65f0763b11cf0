"""Which memory a client has opened to the controller.

Memory that comes without a descriptor, or may only be read or only be written, is noted and not
used: a monitor maps its firmware that way, and would take a refusal for a broken device. A command
that points there ends with Data Transfer Error.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol

from .messages import DMA_READABLE, DMA_WRITEABLE, UNMAP_ALL, DmaMap, DmaUnmap, ProtocolError

MAX_REGIONS = 4096
_BOTH = DMA_READABLE | DMA_WRITEABLE


class Memory(Protocol):
    """What the table needs of the controller. Errors: OSError."""

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Opens a part of a file to DMA."""

    def unmap(self, iova: int, length: int) -> None:
        """Takes it back; the controller is out of it on return."""


class DmaTable:
    """The regions of one client."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._starts: list[int] = []
        self._regions: dict[int, tuple[int, bool]] = {}  # IOVA -> size, open to the controller

    def map(self, request: DmaMap, fds: Sequence[int]) -> None:
        """DMA_MAP. Raises ProtocolError, OSError."""
        if request.argsz < DmaMap.SIZE or request.flags & ~_BOTH or len(fds) > 1:
            raise ProtocolError(f"DMA_MAP with flags {request.flags:#x}, {len(fds)} descriptors")
        end = request.address + request.size
        if request.size == 0 or end > 1 << 64:
            raise ProtocolError(f"DMA_MAP of {request.size:#x} bytes at {request.address:#x}")
        if len(self._starts) >= MAX_REGIONS:
            raise ProtocolError(f"more than {MAX_REGIONS} regions", errno.ENOSPC)
        at = bisect_left(self._starts, request.address)
        before = self._starts[at - 1] if at else None
        if (at < len(self._starts) and self._starts[at] < end) or (
            before is not None and before + self._regions[before][0] > request.address
        ):
            raise ProtocolError(f"there is a region at {request.address:#x}", errno.EEXIST)
        usable = bool(fds) and request.flags == _BOTH
        if usable:
            self._memory.map(fds[0], request.offset, request.size, request.address)
        self._regions[request.address] = request.size, usable
        insort(self._starts, request.address)

    def unmap(self, request: DmaUnmap) -> None:
        """DMA_UNMAP: one region exactly as it was mapped, or all. Raises ProtocolError."""
        if request.argsz < DmaUnmap.SIZE or request.flags & ~UNMAP_ALL:
            raise ProtocolError(f"DMA_UNMAP with flags {request.flags:#x}")
        if request.flags == UNMAP_ALL:
            if request.address or request.size:
                raise ProtocolError("DMA_UNMAP of all regions names one of them")
            self.clear()
            return
        size, usable = self._regions.get(request.address, (0, False))
        if size != request.size or not size:
            raise ProtocolError(
                f"no region of {request.size:#x} bytes at {request.address:#x}", errno.ENOENT
            )
        self._remove(request.address, size, usable)

    def clear(self) -> None:
        """Takes everything back."""
        for address, (size, usable) in list(self._regions.items()):
            self._remove(address, size, usable)

    def _remove(self, address: int, size: int, usable: bool) -> None:
        if usable:
            self._memory.unmap(address, size)
        del self._regions[address]
        self._starts.remove(address)
