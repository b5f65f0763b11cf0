"""What stood on the device before it was changed, kept in a file so that it can be put back.

Below: the device; an ordinary file.  Above: fsck.py, mkfs.py.

    with UndoFile.create(path, device.block_count) as undo:
        device = Recorded(device, undo)              each block is saved before its first change
    await restore(path, device)                      everything is as it was before

The file: a header of 64 bytes (magic, blocks of the device, zeroes), then for each block that was changed its
number u64, the CRC32C of its old content u32, 0 u32, and the 4,096 bytes. A record is durable before the block
is written; a record that a crash has cut short, at the end, is of a block that was not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from driver import crc32c
from mkfs.cli import ToolError
from nvmefs.device import Device
from nvmefs.layout import BLOCK_BYTES

MAGIC = b"nvmefs undo 1\n"
HEADER = struct.Struct("<16sQ40x")
RECORD = struct.Struct("<QII")


class UndoFile:
    """The file while it is written."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path
        self.saved: set[int] = set()

    @classmethod
    def create(cls, path: Path, block_count: int) -> UndoFile:
        """A new file; one that is there is not overwritten. Raises ToolError, OSError."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ToolError(
                f"{path} exists: an undo file is not overwritten, name another"
            ) from None
        undo = cls(descriptor, path)
        undo.append(HEADER.pack(MAGIC, block_count))
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return undo

    def append(self, data: bytes) -> None:
        """Write it, durably. Raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]
        os.fdatasync(self.descriptor)

    async def save(self, device: Device, first: int, count: int) -> None:
        """Save those of the blocks that were not saved before, as they are now."""
        missing = [number for number in range(first, first + count) if number not in self.saved]
        if not missing:
            return
        records = []
        run = memoryview(await device.read(first, count))
        for number in missing:
            data = run[(number - first) * BLOCK_BYTES :][:BLOCK_BYTES]
            records.append(RECORD.pack(number, crc32c(data), 0) + data)
        self.append(b"".join(records))
        self.saved.update(missing)

    def __enter__(self) -> UndoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)


class Recorded(Device):
    """A device of which each block is saved before it is changed."""

    def __init__(self, device: Device, undo: UndoFile) -> None:
        super().__init__(
            device.namespace, device.description, fua=device.fua, controller=device.controller
        )
        self.undo = undo

    async def write(self, block: int, data: Any, *, fua: bool = False) -> None:
        await self.undo.save(self, block, len(data) // BLOCK_BYTES)
        await super().write(block, data, fua=fua)

    async def discard(self, runs: Sequence[tuple[int, int]]) -> None:
        """Nothing: the drive need not be told, and what it has discarded could not be put back."""


async def restore(path: Path, device: Device) -> int:
    """Put back every block that the file holds; how many. May be repeated. Raises ToolError, OSError."""
    restored = 0
    with path.open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ToolError(f"{path} is not an undo file of mkfs.nvmefs or fsck.nvmefs")
        _, block_count = HEADER.unpack(header)
        if block_count != device.block_count:
            raise ToolError(
                f"{path} is of a device of {block_count} blocks, this one has {device.block_count}"
            )
        while True:
            record = file.read(RECORD.size + BLOCK_BYTES)
            if len(record) < RECORD.size + BLOCK_BYTES:
                break
            number, checksum, _ = RECORD.unpack_from(record)
            data = record[RECORD.size :]
            if crc32c(data) != checksum or number >= block_count:
                break
            await device.write(number, data)
            restored += 1
    await device.flush()
    return restored
