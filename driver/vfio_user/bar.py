"""BAR0 of a served controller.

0x0000  registers       by messages: 4 or 8 bytes, aligned
0x1000  doorbells       mapped by clients, or by messages
0x2000  MSI-X table     memory: a client keeps it in order, nothing here looks at it
        MSI-X PBA       pending bits of masked vectors
"""

from __future__ import annotations

import struct
from typing import Protocol

from .interrupts import Vectors
from .messages import ProtocolError

DOORBELLS, TABLE = 0x1000, 0x2000
_PAGE_BYTES = 4096
_LEAST_BYTES = 0x4000


class Registers(Protocol):
    """What BAR0 needs of the controller."""

    def read(self, offset: int, size: int) -> int:
        """Register at `offset`; `size` 4 or 8 bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes one."""


class Bar0:
    """The memory that the function's driver sees. `size` is a power of two."""

    def __init__(self, registers: Registers, vectors: Vectors) -> None:
        self._registers = registers
        self._vectors = vectors
        self._table = bytearray(16 * vectors.count)
        self.pba = TABLE + -(-len(self._table) // _PAGE_BYTES) * _PAGE_BYTES
        self.size = max(_LEAST_BYTES, 1 << (self.pba + _PAGE_BYTES - 1).bit_length())
        self.reset()

    def reset(self) -> None:
        """The table as after power-up: all vectors masked."""
        for at in range(0, len(self._table), 16):
            struct.pack_into("<QII", self._table, at, 0, 0, 1)

    def read(self, offset: int, count: int) -> bytes:
        """Any bytes inside."""
        first = offset & ~3
        words = (self._word(at) for at in range(first, offset + count, 4))
        return b"".join(words)[offset - first : offset - first + count]

    def _word(self, at: int) -> bytes:
        if at < DOORBELLS:
            return self._registers.read(at, 4).to_bytes(4, "little")
        if TABLE <= at < TABLE + len(self._table):
            return bytes(self._table[at - TABLE : at - TABLE + 4])
        first = (at - self.pba) * 8
        if 0 <= first < self._vectors.count:
            bits = range(first, min(first + 32, self._vectors.count))
            pending = sum(1 << (bit - first) for bit in bits if self._vectors.pending(bit))
            return pending.to_bytes(4, "little")
        return bytes(4)

    def write(self, offset: int, data: bytes) -> None:
        """Bytes inside; to registers and doorbells 4 or 8, aligned. Raises ProtocolError."""
        if offset < TABLE:
            if len(data) not in (4, 8) or offset % 4 or offset + len(data) > TABLE:
                raise ProtocolError(f"{len(data)} bytes to the register at {offset:#x}: 4 or 8")
            self._registers.write(offset, len(data), int.from_bytes(data, "little"))
            return
        place = offset - TABLE
        room = max(len(self._table) - place, 0)
        self._table[place : place + min(room, len(data))] = data[:room]
