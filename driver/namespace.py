"""A namespace: blocks that can be read, written, flushed, deallocated, zeroed and compared.

    await namespace.write(lba, buffer, fua=True)

`buffer` is one of
    DmaBuffer               used as it is; a slice of one too
    a list or tuple of them used as it is when the seams lie on page boundaries
    bytes-like, contiguous  copied through the DMA pool

Requests beyond the controller's limits (MDTS, 65,536 blocks, 256 ranges) or across its preferred
boundary (NOIOB) become several commands, sent together and waited for together. Nothing is
promised about the order or atomicity of the parts, nor of requests that overlap in time.

What makes no sense (a length that is no multiple of the block size, blocks beyond the end) raises
InvalidRequest and is never sent. All other errors: CommandError (the controller's own status),
CommandTimeout, ControllerFailed, ControllerGone, ControllerClosed.

When the caller is cancelled the method raises at once; commands in flight go on, and keep the DMA
buffers they use: such a buffer may be released, and must not be reused while its `busy` is true.

Below: queues.py, commands.py, memory.py. Above: nvmefs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from . import commands, trace
from .errors import ControllerError, InvalidRequest, Unsupported, WriteProtected
from .memory import DmaBuffer
from .requests import Piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from .controller import Controller
    from .identify import IdentifyNamespace
    from .memory import DmaPool

Buffer: TypeAlias = (
    DmaBuffer | list[DmaBuffer] | tuple[DmaBuffer, ...] | bytes | bytearray | memoryview
)

MAX_BLOCKS = 65536
MAX_RANGES = 256
_MAX_RANGE_BLOCKS = 0xFFFFFFFF
_BOUNCE_BYTES = 4 << 20
_ZEROES_BYTES = 128 << 10


class Namespace:
    """One namespace of a controller; made by Controller.namespace().

    lba_bytes, lba_count, size_bytes volatile_write_cache         a write cache is on: only
    flush() and fua make writes durable read_only                    the namespace is write
    protected max_transfer_bytes           the controller's limit for one command; 0: none
    (requests may be larger) write_granularity_bytes, write_alignment_bytes     what writes should
    be multiples of; 0: not said deallocate_granularity_bytes, deallocate_alignment_bytes      the
    same for deallocate boundary_bytes               requests better not cross multiples of this
    (NOIOB); 0: not said deallocated_reads_zeroes     deallocated blocks read as zeroes
    """

    def __init__(
        self,
        controller: Controller,
        nsid: int,
        identify: IdentifyNamespace,
        *,
        volatile_write_cache: bool,
    ) -> None:
        self.controller = controller
        self.nsid = nsid
        self.where = f"{controller.where}: namespace {nsid}"
        self.dma: DmaPool = controller.dma
        self.volatile_write_cache = volatile_write_cache
        self.on_change: list[Callable[[Namespace], None]] = []
        self._queue = controller.io
        self._gone = ""
        self._take_over(identify)

    def _take_over(self, identify: IdentifyNamespace) -> None:
        size = identify.lba_bytes
        limits, who = self.controller.limits, self.controller.identify
        self.identify = identify
        self.lba_bytes = size
        self.lba_count = identify.lba_count
        self.size_bytes = identify.lba_count * size
        self.read_only = identify.write_protected
        self.max_transfer_bytes = who.max_transfer_bytes
        self.write_granularity_bytes = identify.write_granularity_blocks * size
        self.write_alignment_bytes = identify.write_alignment_blocks * size
        self.deallocate_granularity_bytes = identify.deallocate_granularity_blocks * size
        self.deallocate_alignment_bytes = identify.deallocate_alignment_blocks * size
        self.boundary_bytes = identify.boundary_blocks * size
        self.deallocated_reads_zeroes = identify.reads_zeroes_after_deallocate
        limit = self.controller.options.max_transfer_bytes
        limit = min(limit, who.max_transfer_bytes or limit)
        if limit < size:
            raise ControllerError(
                f"{self.where}: blocks of {size} bytes, but a command may move only {limit} (MDTS)"
            )
        self._max_blocks = min(MAX_BLOCKS, limit // size)
        self._boundary = identify.boundary_blocks
        self._zero_blocks = min(MAX_BLOCKS, max(limits.max_write_zeroes_bytes // size, 1))
        if not limits.max_write_zeroes_bytes:
            self._zero_blocks = MAX_BLOCKS
        self._page_mask = self.controller.hardware.page_bytes - 1

    @property
    def model(self) -> str:
        """The controller's model, for messages."""
        return self.controller.identify.model

    @property
    def serial(self) -> str:
        """The controller's serial number, for messages."""
        return self.controller.identify.serial

    @property
    def eui(self) -> str:
        """NGUID, else EUI-64, as hexadecimal digits; "" when it has neither."""
        for raw in (self.identify.nguid, self.identify.eui64):
            if any(raw):
                return raw.hex()
        return ""

    @property
    def supports_deallocate(self) -> bool:
        """Whether deallocate() does anything."""
        return self.controller.identify.dataset_management

    @property
    def supports_compare(self) -> bool:
        """Whether compare() can be used."""
        return self.controller.identify.compare

    # ---- data ----------------------------------------------------------------------------------

    async def read(self, lba: int, buffer: Buffer) -> None:
        """Fills `buffer` from block `lba` on."""
        if trace.enabled:
            trace.hop("namespace.read", nsid=self.nsid, lba=lba)
        if type(buffer) is DmaBuffer:
            nbytes = buffer.nbytes
            blocks = self._blocks(lba, nbytes)
            if self._single(lba, blocks, buffer.iova):
                command = commands.read(self.nsid, lba, blocks)
                await self._queue.submit(command, buffer.iova, nbytes, (buffer,))
                return
        parts = self._parts(buffer)
        if parts is not None:
            await self._transfer(commands.read, lba, parts)
            return
        target = _Bytes(buffer, writable=True)
        self._blocks(lba, target.nbytes)
        for first, bounce in self._windows(target.nbytes):
            with await self.dma.allocate_wait(bounce) as window:
                await self._transfer(commands.read, lba + first // self.lba_bytes, [window])
                target.fill(first, window.view)

    async def write(self, lba: int, data: Buffer, *, fua: bool = False) -> None:
        """Writes `data` from block `lba` on; fua: on the medium before this returns."""
        if trace.enabled:
            trace.hop("namespace.write", nsid=self.nsid, lba=lba, fua=fua)
        if self.read_only:
            self._refuse_write("write")
        if type(data) is DmaBuffer:
            nbytes = data.nbytes
            blocks = self._blocks(lba, nbytes)
            if self._single(lba, blocks, data.iova):
                command = commands.write(self.nsid, lba, blocks, fua)
                await self._queue.submit(command, data.iova, nbytes, (data,))
                return
        await self._send(
            lambda nsid, first, blocks: commands.write(nsid, first, blocks, fua), lba, data
        )

    async def compare(self, lba: int, data: Buffer) -> None:
        """Compares blocks with `data`; CommandError "Compare Failure" (type 2, code 0x85) if they
        differ.

        Raises Unsupported when the controller has no Compare.
        """
        if trace.enabled:
            trace.hop("namespace.compare", nsid=self.nsid, lba=lba)
        if not self.supports_compare:
            raise Unsupported(f"{self.where}: the controller has no Compare command (ONCS)")
        await self._send(commands.compare, lba, data)

    async def flush(self) -> None:
        """All writes that have completed are on the medium when this returns."""
        if trace.enabled:
            trace.hop("namespace.flush", nsid=self.nsid)
        if self._gone:
            self._blocks(0, self.lba_bytes)
        if self.volatile_write_cache:
            await self._queue.submit(commands.flush(self.nsid))

    # ---- space ---------------------------------------------------------------------------------

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Tells the controller that these (lba, count) ranges hold nothing of interest: a hint.

        Without Dataset Management it does nothing.
        """
        if trace.enabled:
            trace.hop("namespace.deallocate", nsid=self.nsid, ranges=len(ranges))
        if self.read_only:
            self._refuse_write("deallocate")
        for lba, count in ranges:
            self._check_blocks(lba, count)
        if not ranges or not self.supports_deallocate:
            return
        buffers: list[DmaBuffer] = []
        try:
            pieces = []
            for batch in self._batches(ranges):
                raw = commands.pack_ranges(batch)
                buffer = await self.dma.allocate_wait(len(raw))
                buffers.append(buffer)
                buffer.view[:] = raw
                command = commands.dataset_management(self.nsid, len(batch))
                pieces.append(Piece(command, buffer.iova, len(raw), (buffer,)))
            await self._queue.submit_all(pieces)
        finally:
            for buffer in buffers:
                buffer.release()

    async def write_zeroes(self, lba: int, count: int, *, deallocate: bool = True) -> None:
        """`count` blocks read as zeroes afterwards; deallocate: the controller may free them.

        Without the Write Zeroes command zeroes are written.
        """
        if trace.enabled:
            trace.hop("namespace.write_zeroes", nsid=self.nsid, lba=lba, count=count)
        if self.read_only:
            self._refuse_write("write zeroes")
        self._check_blocks(lba, count)
        if self.controller.identify.write_zeroes:
            pieces = [
                Piece(commands.write_zeroes(self.nsid, first, blocks, deallocate))
                for first, blocks in _cut(lba, count, self._zero_blocks, 0)
            ]
            await self._queue.submit_all(pieces)
            return
        blocks_each = min(max(_ZEROES_BYTES // self.lba_bytes, 1), self._max_blocks)
        with await self.dma.allocate_wait(blocks_each * self.lba_bytes) as zeroes:
            zeroes.view[:] = bytes(len(zeroes))
            pieces = [
                Piece(
                    commands.write(self.nsid, first, blocks),
                    zeroes.iova,
                    blocks * self.lba_bytes,
                    (zeroes,),
                )
                for first, blocks in _cut(lba, count, blocks_each, self._boundary)
            ]
            await self._queue.submit_all(pieces)

    # ---- changes -------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Identifies the namespace again: it may have grown. Raises when it is unusable now."""
        identify = await self.controller.query.namespace(self.nsid)
        if identify.lba_bytes != self.lba_bytes:
            raise ControllerError(
                f"{self.where}: was formatted to blocks of {identify.lba_bytes} bytes meanwhile"
            )
        changed = identify != self.identify
        self._take_over(identify)
        if changed:
            for told in self.on_change:
                told(self)

    def lose(self, reason: str) -> None:
        """The namespace is gone: every further request raises InvalidRequest with this reason."""
        self._gone = reason
        for told in self.on_change:
            told(self)

    # ---- checks and cuts -----------------------------------------------------------------------

    def _blocks(self, lba: int, nbytes: int) -> int:
        """Length in blocks of a valid request; InvalidRequest otherwise."""
        blocks, rest = divmod(nbytes, self.lba_bytes)
        if rest:
            raise InvalidRequest(
                f"{self.where}: a transfer of {nbytes} bytes is not a multiple of {self.lba_bytes}"
            )
        if lba < 0 or blocks <= 0 or lba + blocks > self.lba_count or self._gone:
            self._check_blocks(lba, blocks)
        return blocks

    def _check_blocks(self, lba: int, count: int) -> None:
        if self._gone:
            raise InvalidRequest(f"{self.where}: the namespace is gone: {self._gone}")
        if count <= 0:
            raise InvalidRequest(f"{self.where}: a request for {count} blocks at {lba}")
        if lba < 0 or lba + count > self.lba_count:
            raise InvalidRequest(
                f"{self.where}: blocks {lba} to {lba + count - 1} are outside: the last one is "
                f"{self.lba_count - 1}"
            )

    def _refuse_write(self, what: str) -> None:
        raise WriteProtected(f"{self.where}: {what} refused: the namespace is write protected")

    def _single(self, lba: int, blocks: int, iova: int) -> bool:
        """Whether one command can do it."""
        if blocks > self._max_blocks or iova & 3:
            return False
        boundary = self._boundary
        return not boundary or lba // boundary == (lba + blocks - 1) // boundary

    def _parts(self, buffer: Buffer) -> list[DmaBuffer] | None:
        """The DMA buffers that can be used as they are, or None: they have to be copied."""
        if isinstance(buffer, DmaBuffer):
            return None if buffer.iova & 3 else [buffer]
        if not isinstance(buffer, (list, tuple)):
            return None
        mask, last = self._page_mask, len(buffer) - 1
        for i, part in enumerate(buffer):
            end = part.iova + part.nbytes
            if not part.nbytes or part.iova & (mask if i else 3) or (i < last and end & mask):
                return None
        return list(buffer) or None

    def _windows(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """(first byte, length) of the bounce buffers, one after the other."""
        size = min(_BOUNCE_BYTES, self.dma.limit_bytes // 4)
        size -= size % self.lba_bytes
        for first in range(0, nbytes, size):
            yield first, min(size, nbytes - first)

    async def _send(
        self, command: Callable[[int, int, int], bytes], lba: int, data: Buffer
    ) -> None:
        """A command that takes data, in as many parts and copies as it needs."""
        parts = self._parts(data)
        if parts is not None:
            await self._transfer(command, lba, parts)
            return
        source = _Bytes(data, writable=False)
        self._blocks(lba, source.nbytes)
        for first, bounce in self._windows(source.nbytes):
            with await self.dma.allocate_wait(bounce) as window:
                source.drain(first, window.view)
                await self._transfer(command, lba + first // self.lba_bytes, [window])

    async def _transfer(
        self, command: Callable[[int, int, int], bytes], lba: int, parts: list[DmaBuffer]
    ) -> None:
        nbytes = sum([part.nbytes for part in parts])
        blocks = self._blocks(lba, nbytes)
        pieces = []
        at = 0
        for first, count in _cut(lba, blocks, self._max_blocks, self._boundary):
            length = count * self.lba_bytes
            sqe = command(self.nsid, first, count)
            if len(parts) == 1:
                pieces.append(Piece(sqe, parts[0].iova + at, length, (parts[0],)))
            else:
                segments, holds = _slice(parts, at, length)
                pieces.append(Piece.scattered(sqe, segments, holds))
            at += length
        if len(pieces) == 1 and pieces[0].segments is None:
            piece = pieces[0]
            await self._queue.submit(piece.command, piece.iova, piece.nbytes, piece.holds)
        else:
            await self._queue.submit_all(pieces)

    def _batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Ranges in groups that one command may carry: number, length of each, length of all."""
        limits = self.controller.limits
        most = min(limits.max_ranges or MAX_RANGES, MAX_RANGES)
        longest = min(limits.max_range_blocks or _MAX_RANGE_BLOCKS, _MAX_RANGE_BLOCKS)
        total = limits.max_deallocate_blocks or most * longest
        longest = min(longest, total)
        batch: list[tuple[int, int]] = []
        room = total
        for lba, count in ranges:
            for first, blocks in _cut(lba, count, longest, 0):
                if len(batch) == most or blocks > room:
                    yield batch
                    batch, room = [], total
                batch.append((first, blocks))
                room -= blocks
        if batch:
            yield batch


def _cut(lba: int, blocks: int, most: int, boundary: int) -> Iterator[tuple[int, int]]:
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


def _slice(
    parts: list[DmaBuffer], at: int, length: int
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


class _Bytes:
    """Memory that is not usable for DMA as it lies, seen as one run of bytes."""

    def __init__(self, buffer: Buffer, *, writable: bool) -> None:
        if isinstance(buffer, DmaBuffer):
            views = [buffer.view]
        elif isinstance(buffer, (list, tuple)):
            views = [part.view for part in buffer]
        else:
            views = [self._flat(buffer, writable)]
        self._views = views
        self.nbytes = sum([len(view) for view in views])

    @staticmethod
    def _flat(buffer: bytes | bytearray | memoryview, writable: bool) -> memoryview:
        view = memoryview(buffer)
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
