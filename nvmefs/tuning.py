"""Changing what the superblock says of a filesystem that is open: label, uuid, limits.

Below: the journal, which carries the superblock.  Above: controls.py (while mounted), mkfs/tune.py.

    await tune(filesystem, {"label": b"backup"})        durable on return; raises FsError
"""

from __future__ import annotations

import errno
import struct
import uuid as uuids
from dataclasses import replace
from typing import Any

from nvmefs.errors import Corrupted, FsError
from nvmefs.filesystem import Filesystem
from nvmefs.layout import SUPERBLOCK, Superblock

FIELDS = ("label", "uuid", "reserved_blocks", "on_error")


def settings_of(superblock: Superblock) -> dict[str, Any]:
    """What can be changed, and what one must know for that, as plain values."""
    return {
        "label": superblock.label.decode(errors="backslashreplace"),
        "uuid": str(uuids.UUID(bytes=superblock.uuid)),
        "reserved_blocks": superblock.reserved_blocks,
        "on_error": int(superblock.on_error),
        "block_count": superblock.block_count,
    }


async def tune(filesystem: Filesystem, fields: dict[str, Any]) -> None:
    """Give fields of the superblock, of FIELDS, new values. Raises FsError(EINVAL), ReadOnly, DeviceFailed."""
    check(filesystem.superblock, fields)
    await filesystem.transactions.run(lambda tx: tx.change_superblock(**fields))
    await filesystem.transactions.commit()


def check(superblock: Superblock, fields: dict[str, Any]) -> None:
    """Raise FsError(EINVAL) if there cannot be such a superblock: none is written that could not be read."""
    strangers = fields.keys() - FIELDS
    if strangers:
        raise FsError(errno.EINVAL, f"{', '.join(sorted(strangers))} cannot be changed")
    try:
        Superblock.decode(replace(superblock, **fields).encode(SUPERBLOCK), SUPERBLOCK)
    except (Corrupted, struct.error) as error:
        what = error.what if isinstance(error, Corrupted) else f"{fields}: {error}"
        raise FsError(errno.EINVAL, what) from error
