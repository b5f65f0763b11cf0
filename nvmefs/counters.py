"""What a mount counts, as plain values: what `nvmefs stat` shows.

Below: the statistics() of what counts.  Above: controls.py.

    values = snapshot(filesystem, frontend)        nested dictionaries, ready for JSON
"""

from __future__ import annotations

import uuid as uuids
from dataclasses import asdict
from typing import Any

from nvmefs.filesystem import Filesystem
from nvmefs.frontend import Frontend
from nvmefs.layout import BLOCK_BYTES

SCHEMA_VERSION = 1


def snapshot(filesystem: Filesystem, frontend: Frontend | None) -> dict[str, Any]:
    """All of it. Sizes are in blocks unless their name says otherwise."""
    superblock, controller = filesystem.superblock, filesystem.device.controller
    return {
        "schema_version": SCHEMA_VERSION,
        "device": filesystem.device.description,
        "label": superblock.label.decode(errors="backslashreplace"),
        "uuid": str(uuids.UUID(bytes=superblock.uuid)),
        "state": state_of(filesystem),
        "space": space(filesystem),
        "journal": filesystem.journal.statistics(),
        "cache": filesystem.cache.statistics(),
        "inodes": {"in_memory": len(filesystem.inodes.known)},
        "front_end": frontend.statistics() if frontend is not None else None,
        "device_commands": {
            "writes": filesystem.device.written,
            "flushes": filesystem.device.flush_commands,
        },
        "driver": asdict(controller.statistics()) if controller is not None else None,
    }


def state_of(filesystem: Filesystem) -> str:
    """ "read-write", "read-only", or why it writes no more."""
    return filesystem.journal.refusal or "read-write"


def space(filesystem: Filesystem) -> dict[str, int]:
    """Where the blocks are. `freed` wait for a commit or checkpoint; `held` are being written to."""
    superblock, allocator, usage = filesystem.superblock, filesystem.allocator, filesystem.statfs()
    return {
        "block_bytes": BLOCK_BYTES,
        "filesystem": superblock.block_count,
        "device": filesystem.device.block_count,
        "total": usage.blocks,
        "free": usage.free_blocks,
        "available": usage.available_blocks,
        "reserved": superblock.reserved_blocks,
        "kept_for_metadata": allocator.metadata_reserve_blocks,
        "freed": allocator.held_freed_blocks,
        "held": allocator.held_blocks - allocator.held_freed_blocks,
        "inodes": filesystem.state.inode_count,
    }
