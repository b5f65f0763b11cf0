"""The state block: what changes with every transaction.

Below: header.py, places.py, superblock.py.  Above: transactions, mount and fsck.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntFlag

from nvmefs.errors import Corrupted
from nvmefs.layout.header import HEADER_BYTES, BlockType, Buffer, Header, seal, verify
from nvmefs.layout.places import (
    BLOCK_BYTES,
    FIRST_FREE_INODE,
    JOURNAL_START,
    MAX_INODE,
    STATE_BLOCK,
)
from nvmefs.layout.superblock import Superblock

_STATE = struct.Struct("<IIQQQQqqqII")
_ROOT = struct.Struct("<IIQ")
_ERROR = struct.Struct("<qQII48s")
ROOTS = 8
TREE_MAIN = 1  # the id of the item tree
MAX_LEVEL = 12


class StateFlag(IntFlag):
    """Flags of the state block."""

    CLEAN = 1  # unmounted in order: nothing to replay, no orphan left
    ERRORS = 2  # an error was found: fsck should look


@dataclass(slots=True)
class Root:
    """Where a tree starts: its id, the level of its root node (0 = a leaf) and the node's block."""

    id: int
    level: int
    block: int


@dataclass(slots=True)
class ErrorRecord:
    """The first or the last error met: when (s), errno, how many so far, the block and a short text."""

    time_s: int = 0
    block: int = 0
    errno: int = 0
    count: int = 0
    what: bytes = b""


@dataclass(slots=True)
class State:
    """What changes with every transaction: counters and tree roots. Journaled as block 17."""

    next_inode: int
    free_blocks: int
    inode_count: int
    roots: list[Root]
    flags: int = 0
    mount_time_s: int = 0
    write_time_s: int = 0
    check_time_s: int = 0
    mount_count: int = 0
    first_error: ErrorRecord = field(default_factory=ErrorRecord)
    last_error: ErrorRecord = field(default_factory=ErrorRecord)

    def encode(self, superblock: Superblock, seq: int) -> bytearray:
        """The sealed state block as written by transaction `seq`."""
        block = bytearray(BLOCK_BYTES)
        _STATE.pack_into(
            block, HEADER_BYTES, self.flags, len(self.roots), self.next_inode, self.free_blocks,
            self.inode_count, superblock.group_count, self.mount_time_s, self.write_time_s,
            self.check_time_s, self.mount_count, 0,
        )  # fmt: skip
        at = HEADER_BYTES + _STATE.size
        for root in self.roots:
            _ROOT.pack_into(block, at, root.id, root.level, root.block)
            at += _ROOT.size
        at = HEADER_BYTES + _STATE.size + ROOTS * _ROOT.size
        for error in (self.first_error, self.last_error):
            _ERROR.pack_into(
                block, at, error.time_s, error.block, error.errno, error.count, error.what
            )
            at += _ERROR.size
        header = Header(BlockType.STATE, STATE_BLOCK, superblock.meta_uuid, seq=seq)
        seal(block, header, superblock.checksum_seed)
        return block

    @classmethod
    def decode(cls, block: Buffer, superblock: Superblock) -> State:
        """The state in `block`, checked against the superblock. Raises Corrupted."""
        verify(
            block, STATE_BLOCK, BlockType.STATE,
            seed=superblock.checksum_seed, uuid=superblock.meta_uuid,
        )  # fmt: skip
        (
            flags, roots_len, next_inode, free, inodes, groups, mounted_s, written_s, checked_s,
            mounts, _,
        ) = _STATE.unpack_from(block, HEADER_BYTES)  # fmt: skip
        if not 1 <= roots_len <= ROOTS:
            raise Corrupted(STATE_BLOCK, f"state: impossible number of tree roots {roots_len}")
        if groups != superblock.group_count:
            raise Corrupted(
                STATE_BLOCK, f"state: {groups} groups, the superblock says {superblock.group_count}"
            )
        if not FIRST_FREE_INODE <= next_inode <= MAX_INODE:
            raise Corrupted(STATE_BLOCK, f"state: impossible next inode {next_inode}")
        if inodes > MAX_INODE:
            raise Corrupted(STATE_BLOCK, f"state: impossible number of inodes {inodes}")
        if free > superblock.block_count:
            raise Corrupted(STATE_BLOCK, f"state: impossible number of free blocks {free}")
        at = HEADER_BYTES + _STATE.size
        roots = []
        for index in range(roots_len):
            root = Root(*_ROOT.unpack_from(block, at + index * _ROOT.size))
            if root.level > MAX_LEVEL or not JOURNAL_START <= root.block < superblock.block_count:
                raise Corrupted(
                    STATE_BLOCK, f"state: root {root.id} at block {root.block}, level {root.level}"
                )
            roots.append(root)
        if roots[0].id != TREE_MAIN:
            raise Corrupted(STATE_BLOCK, f"state: the first tree has id {roots[0].id}")
        at += ROOTS * _ROOT.size
        errors = []
        for index in range(2):
            time_s, where, number, count, what = _ERROR.unpack_from(block, at + index * _ERROR.size)
            errors.append(ErrorRecord(time_s, where, number, count, what.rstrip(b"\0")))
        return cls(
            next_inode, free, inodes, roots, flags, mounted_s, written_s, checked_s, mounts, *errors
        )
