"""From a caller's buffers to the commands that move them: what can be used as it lies, what has to be
copied, and where a transfer is cut.

Memory is used in place where the controller can reach it and PRPs can express it (every seam between
two parts on a page boundary), or where the queue pair takes SGLs (core/sgl.h): any seam then, and any
address unless the controller wants whole dwords. All else is copied through the DMA pool.

Below: memory.py, requests.py. Above: namespace.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, cast

from ._core import lib
from .errors import InvalidRequest
from .memory import DmaBuffer
from .requests import Piece

Part: TypeAlias = DmaBuffer | bytes | bytearray | memoryview
Buffer: TypeAlias = Part | Sequence[DmaBuffer] | Sequence[Part]
Command: TypeAlias = Callable[[int, int, int], bytes]  # (nsid, lba, blocks) -> the 64 bytes

MAX_BLOCKS = 65536


def cut(lba: int, blocks: int, most: int, boundary: int) -> Iterator[tuple[int, int]]:
    """(lba, count) pieces of at most `most` blocks that do not cross multiples of `boundary` (0:
    none).
    """
    end = lba + blocks
    while lba < end:
        count = min(most, end - lba)
        if boundary:
            count = min(count, boundary - lba % boundary)
        yield lba, count
        lba += count


def blocks_of(limit_bytes: int, lba_bytes: int) -> int:
    """Blocks that one command without data may name; limit_bytes 0: no limit but the protocol's."""
    return min(MAX_BLOCKS, max(limit_bytes // lba_bytes, 1)) if limit_bytes else MAX_BLOCKS


def batches(
    ranges: Sequence[tuple[int, int]], most: int, longest: int, total: int
) -> Iterator[list[tuple[int, int]]]:
    """Ranges in groups that one command may carry: number, blocks of each, blocks of all."""
    longest = min(longest, total)
    batch: list[tuple[int, int]] = []
    room = total
    for lba, count in ranges:
        for first, blocks in cut(lba, count, longest, 0):
            if len(batch) == most or blocks > room:
                yield batch
                batch, room = [], total
            batch.append((first, blocks))
            room -= blocks
    if batch:
        yield batch


def prps_can(parts: Sequence[DmaBuffer], page_mask: int) -> bool:
    """Whether PRPs can express these buffers, one after the other."""
    last = len(parts) - 1
    for i, part in enumerate(parts):
        if part.iova & (page_mask if i else 3) or (
            i < last and part.iova + part.nbytes & page_mask
        ):
            return False
    return True


def sgls_can(parts: Sequence[DmaBuffer], mode: int) -> bool:
    """Whether the data blocks of an SGL can be these buffers."""
    if mode == lib.NV_SGL_DWORD:
        return not any((part.iova | part.nbytes) & 3 for part in parts)
    return bool(mode == lib.NV_SGL_BYTE)


def usable(buffer: Buffer, page_mask: int, sgl: int) -> list[DmaBuffer] | None:
    """The DMA buffers that can be used as they are, or None: they have to be copied."""
    if isinstance(buffer, DmaBuffer):
        buffer = [buffer]
    elif not isinstance(buffer, (list, tuple)):
        return None
    parts = [part for part in buffer if isinstance(part, DmaBuffer)]
    if not parts or len(parts) < len(buffer) or not all(part.nbytes for part in parts):
        return None
    return parts if prps_can(parts, page_mask) or sgls_can(parts, sgl) else None


def part_of(
    parts: Sequence[DmaBuffer], at: int, length: int
) -> tuple[list[tuple[int, int]], tuple[DmaBuffer, ...]]:
    """`length` bytes from byte `at` of the buffers one after the other: (iova, nbytes) and who
    owns them.
    """
    segments: list[tuple[int, int]] = []
    holds: list[DmaBuffer] = []
    for part in parts:
        if at >= part.nbytes:
            at -= part.nbytes
            continue
        take = min(part.nbytes - at, length)
        segments.append((part.iova + at, take))
        holds.append(part)
        length -= take
        at = 0
        if not length:
            break
    return segments, tuple(holds)


def build(
    command: Command,
    nsid: int,
    extents: Iterator[tuple[int, int]],
    parts: list[DmaBuffer],
    lba_bytes: int,
    page_mask: int,
) -> list[Piece] | None:
    """A piece for each (lba, blocks), with its share of the buffers. An extent that would need more
    descriptors than an SGL may have is cut further; None when even one block has more seams than that.
    """
    whole = prps_can(parts, page_mask)
    pieces: list[Piece] = []
    at = 0
    for first, count in extents:
        lba, end = first, first + count
        while lba < end:
            blocks = end - lba
            segments, holds = part_of(parts, at, blocks * lba_bytes)
            if len(segments) > lib.NV_SGL_MOST and not whole:
                blocks = sum(n for _, n in segments[: lib.NV_SGL_MOST]) // lba_bytes
                if not blocks:
                    return None
                segments, holds = part_of(parts, at, blocks * lba_bytes)
            sqe = command(nsid, lba, blocks)
            if len(segments) == 1:
                pieces.append(Piece(sqe, segments[0][0], segments[0][1], holds))
            else:
                pieces.append(Piece.scattered(sqe, segments, holds))
            at += blocks * lba_bytes
            lba += blocks
    return pieces


class Bytes:
    """Memory that is not usable for DMA as it lies, seen as one run of bytes. Raises InvalidRequest."""

    def __init__(self, buffer: Buffer, *, writable: bool) -> None:
        parts = buffer if isinstance(buffer, (list, tuple)) else [cast(Part, buffer)]
        self._views = [self._flat(part, writable) for part in parts]
        self.nbytes = sum([len(view) for view in self._views])

    @staticmethod
    def _flat(part: Part, writable: bool) -> memoryview:
        if isinstance(part, DmaBuffer):
            return part.view
        view = memoryview(part)
        if not view.c_contiguous:
            raise InvalidRequest("a buffer for I/O must be C-contiguous")
        if writable and view.readonly:
            raise InvalidRequest("a buffer to read into must be writable")
        return view.cast("B")

    def _runs(self, first: int, length: int) -> Iterator[tuple[memoryview, int]]:
        """(a piece of the caller's memory, its first byte relative to `first`)."""
        done = 0
        for view in self._views:
            if first >= len(view):
                first -= len(view)
                continue
            take = min(len(view) - first, length - done)
            if take:
                yield view[first : first + take], done
            done += take
            first = 0

    def fill(self, first: int, source: memoryview) -> None:
        """From the bounce buffer to the caller's memory."""
        for run, at in self._runs(first, len(source)):
            run[:] = source[at : at + len(run)]

    def drain(self, first: int, target: memoryview) -> None:
        """From the caller's memory to the bounce buffer."""
        for run, at in self._runs(first, len(target)):
            target[at : at + len(run)] = run
