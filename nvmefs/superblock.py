"""Finding the superblock of a device, and deciding whether this program may mount it.

Below: the device, layout.py.  Above: filesystem.py and the offline tools.
"""

from __future__ import annotations

import logging
import struct

from nvmefs.device import Device
from nvmefs.errors import Corrupted, DeviceFailed, MountRefused
from nvmefs.layout import (
    BLOCK_BYTES,
    INCOMPAT_KNOWN,
    MAGIC,
    RO_COMPAT_KNOWN,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    Superblock,
    unknown_features,
    usable_blocks,
)

log = logging.getLogger("nvmefs")

MBR_TYPE = 0xDA  # "non-filesystem data": no tool mounts or formats it unasked


def places(device: Device) -> list[int]:
    """Where a superblock may stand on a device whose filesystem size is not known yet."""
    last = usable_blocks(device.block_count) - 1
    return [place for place in (SUPERBLOCK, SUPERBLOCK_COPY, last) if place < device.block_count]


async def read(device: Device) -> Superblock:
    """The superblock, or a copy when the first is bad (with a warning). Raises MountRefused."""
    if device.block_count <= SUPERBLOCK:
        raise MountRefused(
            f"{device.description}: {device.block_count} blocks of 4 KiB are too few for a filesystem"
        )
    faults = []
    looks_like_ours = False
    for place in places(device):
        try:
            block = await device.read(place)
            looks_like_ours |= block[4:8] == MAGIC.to_bytes(4, "little")
            found = Superblock.decode(block, place)
        except (Corrupted, DeviceFailed) as error:
            faults.append(str(error))
            continue
        if place != SUPERBLOCK:
            log.warning(
                "%s: using the superblock copy in block %d (%s): run fsck.nvmefs",
                device.description, place, faults[0],
            )  # fmt: skip
        return found
    if not looks_like_ours:
        raise MountRefused(f"{device.description}: holds no nvmefs (no superblock found)")
    raise MountRefused(
        f"{device.description}: no superblock is valid ({'; '.join(faults)}): run fsck.nvmefs"
    )


def require_mountable(superblock: Superblock, device: Device, *, read_only: bool) -> None:
    """Raise MountRefused when this program must not mount the filesystem."""
    if superblock.block_count > device.block_count:
        raise MountRefused(
            f"{device.description}: the filesystem has {superblock.block_count} blocks, the device "
            f"only {device.block_count}: it was truncated, or the size is wrong"
        )
    unknown = unknown_features(superblock.incompat, INCOMPAT_KNOWN)
    if unknown:
        raise MountRefused(
            f"{device.description}: unknown incompat feature bits {unknown}: a newer nvmefs made it"
        )
    unknown = unknown_features(superblock.ro_compat, RO_COMPAT_KNOWN)
    if unknown and not read_only:
        raise MountRefused(
            f"{device.description}: unknown ro_compat feature bits {unknown}: mount it with -o ro"
        )


def protective_mbr(block_count: int, lba_bytes: int) -> bytes:
    """Block 0: one partition over the whole disk, so that other tools see that it is in use."""
    lbas = block_count * (BLOCK_BYTES // lba_bytes)
    chs = b"\xfe\xff\xff"  # not addressable by cylinder, head and sector
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", MBR_TYPE, chs, 1, min(lbas - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + bytes(BLOCK_BYTES - 512)
