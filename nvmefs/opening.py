"""What a mount begins with: the superblock, what the journal holds, the state.

Below: superblock.py, recovery.py, the state block.  Above: filesystem.py.

    journal = await load(device, read_only=False, discard=False)      with its superblock, state and allocator

Nothing is written; the journal's records are brought home by Journal.recover().
"""

from __future__ import annotations

import logging

from nvmefs import superblock
from nvmefs.allocator import Allocator
from nvmefs.device import Device
from nvmefs.errors import MountRefused
from nvmefs.journal import Journal
from nvmefs.layout import STATE_BLOCK, State, StateFlag
from nvmefs.recovery import newest_journal_super, read_journal

log = logging.getLogger("nvmefs")


async def load(device: Device, *, read_only: bool, discard: bool) -> Journal:
    """Read and verify them. Raises MountRefused with the reason, Corrupted, DeviceFailed."""
    sb = await superblock.read(device)
    superblock.require_mountable(sb, device, read_only=read_only)
    journal_super = await newest_journal_super(device, sb)
    replay = await read_journal(device, sb, journal_super)
    sb = replay.superblock
    superblock.require_mountable(sb, device, read_only=read_only)
    if replay.records and sb.incompat_log:
        raise MountRefused(
            f"the journal uses unknown features {sb.incompat_log:#x}: a newer nvmefs must replay it"
        )
    place = replay.places.get(STATE_BLOCK, STATE_BLOCK)
    state = State.decode(await device.read(place), sb)
    if replay.records:
        log.info("%s: replayed %d transactions", device.description, replay.records)
    if state.flags & StateFlag.ERRORS:
        log.warning("%s: has known errors: run fsck.nvmefs", device.description)
    return Journal(
        device, sb, state, Allocator(sb, state), journal_super, replay,
        read_only=read_only, discard=discard,
    )  # fmt: skip
