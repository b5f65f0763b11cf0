"""Where everything goes: from a device's size and the user's wishes to a superblock. No I/O.

Below: layout.py.  Above: mkfs.py, which writes it; the dry run, which only shows it.

    plan = calculate(device_blocks, wishes, identity)      raises ToolError
    plan.superblock, plan.root_block, plan.free_blocks
    plan.lines()                                           for people
    plan.as_json()                                         for programs
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import uuid as uuids
from dataclasses import dataclass
from typing import Any

from mkfs.cli import ToolError, show_size
from mkfs.settings import (
    NO_CHANGES,
    NO_RESERVE,
    FeatureChanges,
    Reserve,
    feature_names,
    policy_name,
)
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    INCOMPAT_KNOWN,
    INCOMPAT_LONG_JOURNAL,
    JOURNAL_START,
    MIN_BLOCKS,
    MIN_JOURNAL_BLOCKS,
    SHORT_JOURNAL_BLOCKS,
    ErrorPolicy,
    Superblock,
    free_blocks_when_fresh,
    journal_block,
    longest_journal,
    superblock_places,
    usable_blocks,
)

MAX_BLOCKS = 2**48


@dataclass(frozen=True)
class Wishes:
    """What the user asked for. `journal_bytes` 0: by size."""

    label: bytes = b""
    journal_bytes: int = 0
    lba_bytes: int = 512
    alignment_blocks: int = 1
    creator: bytes = b""
    reserve: Reserve = NO_RESERVE
    on_error: ErrorPolicy = ErrorPolicy.CONTINUE
    features: FeatureChanges = NO_CHANGES


@dataclass(frozen=True)
class Identity:
    """The numbers that tell this filesystem from any other, and its time of birth."""

    uuid: bytes
    meta_uuid: bytes
    hash_seed: bytes
    checksum_seed: int
    epoch: int
    created_s: int
    created_ns: int
    date_is_fixed: bool = False


def make_identity(uuid: bytes | None, seed: str | None) -> Identity:
    """Random numbers; or, with a seed, the same for the same seed.

    SOURCE_DATE_EPOCH (seconds) holds the time still. Raises ToolError if it is no number.
    """

    def draw(name: str, nbytes: int) -> bytes:
        if seed is None:
            return secrets.token_bytes(nbytes)
        return hashlib.sha256(f"nvmefs {name} {seed}".encode()).digest()[:nbytes]

    created_s, created_ns = divmod(time.time_ns(), 10**9)
    fixed_date = os.environ.get("SOURCE_DATE_EPOCH")
    if fixed_date:
        try:
            created_s, created_ns = int(fixed_date), 0
        except ValueError as error:
            raise ToolError(
                f"SOURCE_DATE_EPOCH={fixed_date!r} is not a number of seconds"
            ) from error
    return Identity(
        uuid or uuids.UUID(bytes=draw("uuid", 16), version=4).bytes,
        draw("meta_uuid", 16),
        draw("hash_seed", 16),
        int.from_bytes(draw("checksum_seed", 4), "little"),
        int.from_bytes(draw("epoch", 8), "little") >> 1 | 1,
        created_s,
        created_ns,
        bool(fixed_date),
    )


@dataclass(frozen=True)
class Plan:
    """A filesystem that is not written yet. `unused_blocks` is a tail too short for a group."""

    superblock: Superblock
    identity: Identity
    device_blocks: int
    root_block: int
    free_blocks: int

    @property
    def unused_blocks(self) -> int:
        return self.device_blocks - self.superblock.block_count

    def lines(self) -> list[str]:
        """The layout as a person reads it, one fact a line."""
        sb = self.superblock
        last_group_blocks = sb.block_count - (sb.group_count - 1) * GROUP_BLOCKS
        size = (
            f"{show_size(sb.block_count * BLOCK_BYTES)}, {sb.block_count} blocks of {BLOCK_BYTES}"
        )
        if self.unused_blocks:
            size += f" ({self.unused_blocks} at the end are left unused)"
        groups = f"{sb.group_count} of {GROUP_BLOCKS} blocks (126 MiB)"
        if last_group_blocks != GROUP_BLOCKS:
            groups += f", the last of {last_group_blocks}"
        places = ", ".join(map(str, superblock_places(sb.block_count)))
        runs = sb.journal_runs(0, sb.journal_blocks)
        journal = "blocks " + ", ".join(f"{first}-{first + count - 1}" for first, count in runs)
        rows = [
            ("label", sb.label.decode(errors="backslashreplace") or "none"),
            ("uuid", str(uuids.UUID(bytes=sb.uuid))),
            ("size", size),
            ("free", f"{show_size(self.free_blocks * BLOCK_BYTES)}, {self.free_blocks} blocks"),
            ("groups", groups),
            ("journal", f"{journal}, {show_size(sb.journal_blocks * BLOCK_BYTES)}"),
            ("reserve", f"{show_size(sb.reserved_blocks * BLOCK_BYTES)} for root alone"),
            ("on errors", policy_name(sb.on_error)),
            ("superblocks", f"blocks {places}"),
            ("root node", f"block {self.root_block}"),
            ("LBA", f"{sb.lba_bytes} bytes"),
            ("alignment", show_size(sb.alignment_blocks * BLOCK_BYTES)),
            ("features", ", ".join(feature_names(sb)) or "none"),
        ]
        return [f"{name:12} {value}" for name, value in rows]

    def as_json(self) -> dict[str, Any]:
        """The layout for programs. Sizes are in blocks unless their name says otherwise."""
        sb = self.superblock
        return {
            "schema_version": 1,
            "label": sb.label.decode(errors="backslashreplace"),
            "uuid": str(uuids.UUID(bytes=sb.uuid)),
            "block_bytes": BLOCK_BYTES,
            "device_blocks": self.device_blocks,
            "block_count": sb.block_count,
            "unused_blocks": self.unused_blocks,
            "free_blocks": self.free_blocks,
            "group_blocks": GROUP_BLOCKS,
            "group_count": sb.group_count,
            "journal_start": sb.journal_start,
            "journal_blocks": sb.journal_blocks,
            "reserved_blocks": sb.reserved_blocks,
            "errors": policy_name(sb.on_error),
            "superblocks": superblock_places(sb.block_count),
            "root_block": self.root_block,
            "lba_bytes": sb.lba_bytes,
            "alignment_blocks": sb.alignment_blocks,
            "features": feature_names(sb),
        }


def calculate(device_blocks: int, wishes: Wishes, identity: Identity) -> Plan:
    """Lay a filesystem out on `device_blocks` blocks. Raises ToolError, saying what is possible."""
    block_count = usable_blocks(device_blocks)
    for possible, limit, cure in (
        (
            block_count >= MIN_BLOCKS,
            f"the least is {show_size(MIN_BLOCKS * BLOCK_BYTES)}",
            "larger",
        ),
        (
            block_count <= MAX_BLOCKS,
            f"the most is {show_size(MAX_BLOCKS * BLOCK_BYTES)}",
            "smaller",
        ),
    ):
        if not possible:
            raise ToolError(
                f"a filesystem of {show_size(device_blocks * BLOCK_BYTES)} is not possible, "
                f"{limit}: use a {cure} device, or --size for an image"
            )
    journal, incompat = journal_blocks(block_count, wishes)
    superblock = Superblock(
        block_count=block_count,
        uuid=identity.uuid,
        meta_uuid=identity.meta_uuid,
        hash_seed=identity.hash_seed,
        checksum_seed=identity.checksum_seed,
        journal_start=JOURNAL_START,
        journal_blocks=journal,
        label=wishes.label,
        lba_bytes=wishes.lba_bytes,
        alignment_blocks=wishes.alignment_blocks,
        creator=wishes.creator[:32],
        created_s=identity.created_s,
        created_ns=identity.created_ns,
        incompat=incompat,
        reserved_blocks=wishes.reserve.blocks(block_count),
        on_error=wishes.on_error,
    )
    free_blocks = free_blocks_when_fresh(superblock) - 1
    if superblock.reserved_blocks > free_blocks // 2:
        raise ToolError(
            f"a reserve of {show_size(superblock.reserved_blocks * BLOCK_BYTES)} is more than half of "
            f"the {show_size(free_blocks * BLOCK_BYTES)} there are: -m takes less"
        )
    return Plan(superblock, identity, device_blocks, journal_block(journal), free_blocks)


def journal_blocks(block_count: int, wishes: Wishes) -> tuple[int, int]:
    """The journal's length, what was asked for or by size, and the incompat features. Raises ToolError."""
    bits = sum(bit for bit, name in INCOMPAT_KNOWN.items() if name in wishes.features.on)
    blocks = wishes.journal_bytes // BLOCK_BYTES
    if not blocks and not wishes.journal_bytes:
        return default_journal_blocks(block_count, bits), bits
    if blocks > SHORT_JOURNAL_BLOCKS and "long_journal" not in wishes.features.off:
        bits |= INCOMPAT_LONG_JOURNAL
    most = min(longest_journal(block_count, bits), block_count // 2)
    if not MIN_JOURNAL_BLOCKS <= blocks <= most:
        raise ToolError(
            f"a journal of {show_size(wishes.journal_bytes)} is not possible here: --journal-size takes "
            f"{show_size(MIN_JOURNAL_BLOCKS * BLOCK_BYTES)} to {show_size(most * BLOCK_BYTES)}"
        )
    return blocks, bits


def default_journal_blocks(block_count: int, incompat: int) -> int:
    """max(64 MiB, size/1024) as far as the format goes, and on small devices no more than a sixteenth."""
    wanted = min(max(16384, block_count // 1024), longest_journal(block_count, incompat))
    if not incompat & INCOMPAT_LONG_JOURNAL:
        wanted = min(wanted, GROUP_BLOCKS - 256)
    return max(MIN_JOURNAL_BLOCKS, min(wanted, block_count // 16))
