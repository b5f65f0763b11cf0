"""The PCI configuration space of an NVMe function: what a virtual machine monitor looks for.

    0x00  header type 0: class 010802, BAR0 64-bit memory, no pin interrupt
    0x40  power management      0x48  MSI-X, table and PBA in BAR0
    0x60  PCI Express endpoint, with function level reset
    0x100 no extended capability

Stores change the bits that are writable and nothing else. PCI Local Bus 3.0, chapter 6; PCI Express
Base 3.0, section 7.8; NVM Express 1.4, section 2.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

CONFIG_BYTES = 4096
VENDOR_ID = 0x1234  # as Identify says: unassigned
DEVICE_ID = 0x0001
CLASS_NVME = 0x010802

COMMAND, STATUS, CAPABILITIES = 0x04, 0x06, 0x34
MEMORY_SPACE, BUS_MASTER, INTX_DISABLE = 0x0002, 0x0004, 0x0400
CAP_POWER, CAP_EXPRESS, CAP_MSIX = 0x01, 0x10, 0x11
MSIX_ENABLE = 0x8000

_POWER_AT, _MSIX_AT, _EXPRESS_AT = 0x40, 0x48, 0x60
_DEVICE_CONTROL = _EXPRESS_AT + 8
_INITIATE_RESET = 0x8000


def _header(bar_bytes: int) -> tuple[bytes, bytes]:
    values, writable = bytearray(0x40), bytearray(0x40)
    struct.pack_into("<HHHHI", values, 0, VENDOR_ID, DEVICE_ID, 0, 0x0010, CLASS_NVME << 8)
    struct.pack_into("<H", writable, COMMAND, 0x0546)
    writable[0x0C] = 0xFF  # cache line size
    struct.pack_into("<Q", values, 0x10, 0x4)  # BAR0: memory, anywhere in 64 bits
    struct.pack_into("<Q", writable, 0x10, 0xFFFFFFFFFFFFFFFF ^ (bar_bytes - 1))
    struct.pack_into("<HH", values, 0x2C, VENDOR_ID, DEVICE_ID)
    values[CAPABILITIES] = _POWER_AT
    writable[0x3C] = 0xFF  # interrupt line: a note of the firmware's
    return bytes(values), bytes(writable)


def _power() -> tuple[bytes, bytes]:
    """Version 3, D0 and D3hot, no state lost between them."""
    return struct.pack("<BBHHH", CAP_POWER, _MSIX_AT, 0x0003, 0x0008, 0), struct.pack(
        "<IHH", 0, 3, 0
    )


def _msix(vectors: int, table: int, pba: int) -> tuple[bytes, bytes]:
    return (
        struct.pack("<BBHII", CAP_MSIX, _EXPRESS_AT, vectors - 1, table, pba),
        struct.pack("<BBHII", 0, 0, 0xC000, 0, 0),
    )


def _express() -> tuple[bytes, bytes]:
    """Version 2, an endpoint with function level reset on a link of 8 GT/s, four lanes."""
    values = struct.pack(
        "<BBHIHHIHHIHHIHHIHHIHHIHH",
        *(CAP_EXPRESS, 0, 0x0002, 0x10008000, 0x2810, 0, 0x00000043, 0, 0x0043, 0, 0, 0, 0, 0, 0),
        *(0x0000001F, 0, 0, 0x0000000E, 0x0003, 0, 0, 0, 0),
    )
    writable = bytearray(len(values))
    struct.pack_into("<H", writable, 8, 0x7FFF)
    struct.pack_into("<H", writable, 16, 0x01FB)
    struct.pack_into("<H", writable, 40, 0x001F)
    return values, bytes(writable)


class ConfigSpace:
    """4 KiB of registers. `on_reset` is called when a store initiates a function level reset."""

    def __init__(
        self, vectors: int, bar_bytes: int, table: int, pba: int, on_reset: Callable[[], None]
    ) -> None:
        self._initial = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        parts = ((0, _header(bar_bytes)), (_POWER_AT, _power()), (_EXPRESS_AT, _express()))
        for at, (values, writable) in (*parts, (_MSIX_AT, _msix(vectors, table, pba))):
            self._initial[at : at + len(values)] = values
            self._writable[at : at + len(writable)] = writable
        self._on_reset = on_reset
        self._values = bytearray(self._initial)

    def reset(self) -> None:
        """All registers as after power-up."""
        self._values[:] = self._initial

    def read(self, offset: int, count: int) -> bytes:
        """Any bytes inside."""
        return bytes(self._values[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Any bytes inside."""
        for at, value in enumerate(data, offset):
            mask = self._writable[at]
            self._values[at] = (self._values[at] & ~mask) | (value & mask)
        high = _DEVICE_CONTROL + 1
        if offset <= high < offset + len(data) and data[high - offset] & _INITIATE_RESET >> 8:
            self._on_reset()
