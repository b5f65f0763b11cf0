"""A namespace: blocks that can be read, written, flushed, compared, verified, copied, zeroed and
deallocated.

    await namespace.write(lba, buffer, fua=True)

`buffer` is one of
    DmaBuffer               used as it is; a slice of one too
    bytes-like, contiguous  copied through the DMA pool
    a list or tuple of them one after the other; DmaBuffers are used as they are where the seams lie
                            on page boundaries, or the controller takes SGLs (transfer.py)

Requests beyond the controller's limits (MDTS, 65,536 blocks, those of the command set) or across its
preferred boundary (NOIOB) become several commands, sent together and waited for together. Nothing is
promised about the order or atomicity of the parts, nor of requests that overlap in time.

What makes no sense (a length that is no multiple of the block size, blocks beyond the end) raises
InvalidRequest and is never sent. All other errors: CommandError (the controller's own status),
CommandTimeout, ControllerFailed, ControllerGone, ControllerClosed.

When the caller is cancelled the method raises at once; commands in flight go on, and keep the DMA
buffers they use: such a buffer may be released, and must not be reused while its `busy` is true.

Below: transfer.py, queues.py, commands.py, memory.py. Above: nvmefs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import commands, trace
from ._core import lib
from .errors import ControllerError, InvalidRequest, Unsupported, WriteProtected
from .memory import DmaBuffer
from .requests import Piece
from .transfer import MAX_BLOCKS, Buffer, Bytes, Command, batches, blocks_of, build, cut, usable
from .transports import Resizable

if TYPE_CHECKING:
    from collections.abc import Callable

    from .controller import Controller
    from .identify_namespace import IdentifyNamespace
    from .memory import DmaPool

_log = logging.getLogger("nvmefs.driver")

MAX_RANGES = 256
_MAX_RANGE_BLOCKS = 0xFFFFFFFF
_BOUNCE_BYTES = 4 << 20
_ZEROES_BYTES = 128 << 10
_WAVE = 64  # commands of one request that are in flight at a time
_RANGES_BYTES = 8192  # what descriptors of 256 ranges take


class Namespace:
    """One namespace of a controller; made by Controller.namespace().

    lba_bytes, lba_count, size_bytes
    volatile_write_cache        a write cache is on: only flush() and fua make writes durable
    read_only                   the namespace is write protected
    max_transfer_bytes          the controller's limit for one command; 0: none (requests may be
                                larger)
    write_granularity_bytes, write_alignment_bytes
                                what writes should be multiples of; 0: not said
    deallocate_granularity_bytes, deallocate_alignment_bytes
                                the same for deallocate
    boundary_bytes              requests better not cross multiples of this (NOIOB); 0: not said
    deallocated_reads_zeroes    deallocated blocks read as zeroes
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
        for hint in identify.ignored:
            _log.debug("%s: Identify Namespace: ignored: %s", self.where, hint)

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
        self._zero_blocks = blocks_of(limits.max_write_zeroes_bytes, size)
        self._verify_blocks = blocks_of(limits.max_verify_bytes, size)
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
        """NGUID, else EUI-64, else UUID, as hexadecimal digits; "" when it has none."""
        for raw in (self.identify.nguid, self.identify.eui64, self.identify.uuid):
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

    @property
    def supports_verify(self) -> bool:
        """Whether verify() can be used."""
        return self.controller.identify.verify

    @property
    def supports_copy(self) -> bool:
        """Whether copy() can be used."""
        return not self._why_no_copy()

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
        if await self._in_place(commands.read, lba, buffer):
            return
        target = Bytes(buffer, writable=True)
        self._blocks(lba, target.nbytes)
        for first, bounce in self._windows(target.nbytes):
            with await self.dma.allocate_wait(bounce) as window:
                await self._in_place(commands.read, lba + first // self.lba_bytes, window)
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

    async def verify(self, lba: int, count: int) -> None:
        """The controller reads `count` blocks and checks them, without a transfer; CommandError (type
        2) where it cannot.

        Raises Unsupported when the controller has no Verify: read() finds the same errors.
        """
        if trace.enabled:
            trace.hop("namespace.verify", nsid=self.nsid, lba=lba, count=count)
        if not self.supports_verify:
            raise Unsupported(
                f"{self.where}: the controller has no Verify command (ONCS): read the blocks instead"
            )
        self._check_blocks(lba, count)
        await self._submit(
            Piece(commands.verify(self.nsid, first, blocks))
            for first, blocks in cut(lba, count, self._verify_blocks, 0)
        )

    async def copy(self, ranges: Sequence[tuple[int, int]], destination: int) -> None:
        """The blocks of these (lba, count) ranges, one after the other, are at `destination` too; the
        data does not travel. Like a write, it needs flush() to be durable.

        Raises Unsupported when the controller cannot (read and write instead), and InvalidRequest
        when a range overlaps the destination, which the specification leaves undefined.
        """
        if trace.enabled:
            trace.hop("namespace.copy", nsid=self.nsid, lba=destination, ranges=len(ranges))
        if self.read_only:
            self._refuse_write("copy")
        reason = self._why_no_copy()
        if reason:
            raise Unsupported(f"{self.where}: {reason}: read and write the blocks instead")
        total = sum(count for _, count in ranges)
        self._check_blocks(destination, total)
        for lba, count in ranges:
            self._check_blocks(lba, count)
            if lba < destination + total and destination < lba + count:
                raise InvalidRequest(
                    f"{self.where}: blocks {lba} to {lba + count - 1} cannot be copied onto "
                    f"themselves (to {destination} and on)"
                )
        it, sent = self.identify, []
        for batch in batches(ranges, it.copy_ranges, it.copy_range_blocks, it.copy_blocks):
            command = commands.copy(self.nsid, destination, len(batch))
            sent.append((command, commands.pack_copy_ranges(batch)))
            destination += sum(count for _, count in batch)
        await self._with_ranges(sent)

    def _why_no_copy(self) -> str:
        who, it = self.controller.identify, self.identify
        if not who.copy:
            return "the controller has no Copy command (ONCS)"
        if not who.copy_formats & 1:
            return "the controller's Copy command has no descriptor format 0 (OCFS)"
        if not it.copy_range_blocks or not it.copy_blocks:
            return "the namespace allows copies of no blocks (MSSRL, MCL)"
        return ""

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
        limits = self.controller.limits
        most = min(limits.max_ranges or MAX_RANGES, MAX_RANGES)
        longest = limits.max_range_blocks or _MAX_RANGE_BLOCKS
        total = limits.max_deallocate_blocks or most * longest
        await self._with_ranges(
            (commands.dataset_management(self.nsid, len(batch)), commands.pack_ranges(batch))
            for batch in batches(ranges, most, longest, total)
        )

    async def _with_ranges(self, sent: Iterable[tuple[bytes, bytes]]) -> None:
        """Commands that take descriptors of ranges."""
        rest = iter(sent)
        while wave := list(itertools.islice(rest, _WAVE)):
            with await self.dma.allocate_wait(_RANGES_BYTES * len(wave)) as buffer:
                pieces = []
                for i, (command, raw) in enumerate(wave):
                    part = buffer[_RANGES_BYTES * i : _RANGES_BYTES * i + len(raw)]
                    part.view[:] = raw
                    pieces.append(Piece(command, part.iova, len(raw), (part,)))
                await self._queue.submit_all(pieces)

    async def _submit(self, pieces: Iterable[Piece]) -> None:
        """Sends them a wave at a time: a disk may be a billion times what one command covers."""
        rest = iter(pieces)
        while wave := list(itertools.islice(rest, _WAVE)):
            await self._queue.submit_all(wave)

    async def write_zeroes(self, lba: int, count: int, *, deallocate: bool = True) -> None:
        """`count` blocks read as zeroes afterwards; deallocate: the controller may free them, which
        it is told only where blocks that were freed read as zeroes.

        Without the Write Zeroes command zeroes are written.
        """
        if trace.enabled:
            trace.hop("namespace.write_zeroes", nsid=self.nsid, lba=lba, count=count)
        if self.read_only:
            self._refuse_write("write zeroes")
        self._check_blocks(lba, count)
        if self.controller.identify.write_zeroes:
            free = deallocate and self.identify.write_zeroes_deallocates
            await self._submit(
                Piece(commands.write_zeroes(self.nsid, first, blocks, free))
                for first, blocks in cut(lba, count, self._zero_blocks, 0)
            )
            return
        blocks_each = min(max(_ZEROES_BYTES // self.lba_bytes, 1), self._max_blocks)
        with await self.dma.allocate_wait(blocks_each * self.lba_bytes) as zeroes:
            zeroes.view[:] = bytes(len(zeroes))
            await self._submit(
                Piece(
                    commands.write(self.nsid, first, blocks),
                    zeroes.iova,
                    blocks * self.lba_bytes,
                    (zeroes,),
                )
                for first, blocks in cut(lba, count, blocks_each, self._boundary)
            )

    # ---- changes -------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Identifies the namespace again: it may have grown. Raises ControllerError or CommandError
        when it is unusable now.
        """
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

    async def rescan(self) -> None:
        """Has the transport look at what it stands on, an image file that may have grown, and refreshes."""
        transport = self.controller.transport
        if isinstance(transport, Resizable):
            transport.resize()
        await self.refresh()

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
        if blocks > self._max_blocks or (iova & 3 and self._queue.sgl != lib.NV_SGL_BYTE):
            return False
        boundary = self._boundary
        return not boundary or lba // boundary == (lba + blocks - 1) // boundary

    def _windows(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """(first byte, length) of the bounce buffers, one after the other."""
        size = min(_BOUNCE_BYTES, self.dma.limit_bytes // 4)
        size -= size % self.lba_bytes
        for first in range(0, nbytes, size):
            yield first, min(size, nbytes - first)

    async def _send(self, command: Command, lba: int, data: Buffer) -> None:
        """A command that takes data, in as many parts and copies as it needs."""
        if await self._in_place(command, lba, data):
            return
        source = Bytes(data, writable=False)
        self._blocks(lba, source.nbytes)
        for first, bounce in self._windows(source.nbytes):
            with await self.dma.allocate_wait(bounce) as window:
                source.drain(first, window.view)
                await self._in_place(command, lba + first // self.lba_bytes, window)

    async def _in_place(self, command: Command, lba: int, buffer: Buffer) -> bool:
        """The whole transfer, from or to the caller's own memory. False: that cannot be used."""
        parts = usable(buffer, self._page_mask, self._queue.sgl)
        if parts is None:
            return False
        blocks = self._blocks(lba, sum([part.nbytes for part in parts]))
        extents = cut(lba, blocks, self._max_blocks, self._boundary)
        pieces = build(command, self.nsid, extents, parts, self.lba_bytes, self._page_mask)
        if pieces is None:
            return False
        if len(pieces) == 1 and pieces[0].segments is None:
            piece = pieces[0]
            await self._queue.submit(piece.command, piece.iova, piece.nbytes, piece.holds)
        else:
            await self._queue.submit_all(pieces)
        return True
