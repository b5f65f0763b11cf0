"""The repair for each finding's name, and in which order.

Below: items.py, names.py, space.py.  Above: engine.py.

A stage is repaired when nothing is found of those before it: what is missing in a directory is known when
all its names can be read, and link counts when all names are in their place. Within a stage the order is this
table's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum

from mkfs.check.findings import Finding
from mkfs.repair import items, names, space
from mkfs.repair.writer import Writer

Fix = Callable[[Writer, Finding], Awaitable[None]]


class Stage(IntEnum):
    """What is repaired together, the most basic first."""

    STRUCTURE = 0  # superblocks, journal, state, nodes: structure.py
    BITMAPS = 1  # before the allocator is asked for a block
    ITEMS = 2
    NAMES = 3
    COUNTS = 4


async def by_opening(writer: Writer, finding: Finding) -> None:
    """What the writer has put right when it was opened, or does when it ends."""


async def forget_error(writer: Writer, finding: Finding) -> None:
    writer.clear_errors()


FIXES: dict[Stage, dict[str, Fix]] = {
    Stage.ITEMS: {
        "item-kind": items.drop_item,
        "item-place": items.drop_item,
        "item-value": items.fix_value,
        "list-empty": items.drop_item,
        "inode-missing": items.fix_missing_record,
        "inline-pieces": items.settle,
        "inline-flag": items.settle,
        "inode-size": items.settle,
        "inode-type": items.settle,
        "extent-forbidden": items.drop_item,
        "extent-overlap": items.fix_overlap,
        "extent-behind": items.set_field("size_bytes"),
        "block-shared": space.unshare,
        "dirent-hash": items.fix_place,
        "dirent-twice": items.fix_twice,
        "dirent-index": items.fix_index,
        "parent-hash": items.fix_place,
        "parent-twice": items.fix_twice,
        "xattr-hash": items.fix_place,
        "xattr-twice": items.fix_twice,
        "xattr-acl": items.drop_attribute,
        "xattr-missing": items.drop_attribute_of_value,
        "xattr-shared": items.drop_attribute_of_value,
        "xattr-size": items.drop_attribute_of_value,
        "xattr-unreferenced": items.drop_value,
    },
    Stage.NAMES: {
        "root": names.fix_root,
        "root-name": names.drop_name,
        "dirent-dangling": names.drop_name,
        "dirent-type": names.fix_type,
        "parent-missing": names.add_back_reference,
        "parent-stale": names.fix_stale_reference,
        "directory-links": names.fix_directory_links,
        "directory-cycle": names.break_cycle,
        "orphan-dangling": names.unlist_orphan,
        "orphan-unlisted": names.list_orphan,
        "orphan-names": names.keep_orphan,
        "inode-unreferenced": names.attach,
    },
    Stage.COUNTS: {
        "inode-blocks": items.set_field("blocks"),
        "directory-entries": items.set_field("entries"),
        "directory-parent": items.set_field("parent"),
        "link-count": items.set_field("nlink"),
        "state-inodes": by_opening,
        "state-next": by_opening,
        "state-free": by_opening,
        "orphan-left": by_opening,
        "error-recorded": forget_error,
    },
}

BITMAPS = frozenset(
    ("bitmap-damaged", "bitmap-count", "bitmap-hint", "bitmap-leak", "bitmap-missing")
)
SUPERBLOCKS = frozenset(("superblock-damaged", "superblock-differs"))

SAFE = frozenset(
    (
        "superblock-damaged",
        "journal-superblock",
        "bitmap-count",
        "bitmap-hint",
        "bitmap-leak",
        "inode-blocks",
        "directory-entries",
        "link-count",
        "state-inodes",
        "state-next",
        "state-free",
        "orphan-left",
        "orphan-dangling",
        "error-recorded",
    )
)
"""What -a and -p repair: counters and the list of orphans, where everything else is as it must be."""

_STAGES = {name: stage for stage, fixes in FIXES.items() for name in fixes}
_ORDER = {name: place for place, name in enumerate(_STAGES)}


def stage_of(finding: Finding) -> Stage:
    """When a finding is repaired."""
    if finding.name in BITMAPS:
        return Stage.BITMAPS
    return _STAGES.get(finding.name, Stage.STRUCTURE)


def in_order(findings: list[Finding]) -> list[Finding]:
    """The findings of one stage as they are to be repaired."""
    return sorted(findings, key=lambda each: _ORDER[each.name])
