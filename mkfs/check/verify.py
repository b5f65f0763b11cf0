"""The third pass: what is only known when all was seen.

Below: inventory.py and space.py, which the scan has filled.  Above: fsck.py.

    for check in PASSES: await check(verification)

Each pass reads the inventory, adds findings, and changes nothing; a repair would go by the findings' names.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mkfs.check import explain
from mkfs.check.findings import SHOWN_PER_NAME, Findings
from mkfs.check.inventory import MASK64, Inventory
from mkfs.check.load import Source
from mkfs.check.space import show_run
from nvmefs.layout import ROOT_INODE, Root

DIRECTORY = stat.S_IFDIR >> 12


@dataclass
class Verification:
    """What the passes share. The arrays run parallel to inventory.inodes."""

    source: Source
    root: Root
    inventory: Inventory
    double: list[tuple[int, int, str]]
    links: array[int] = field(init=False)  # names that lead to the inode
    link_digest: array[int] = field(init=False)
    subdirectories: array[int] = field(init=False)
    named_by: array[int] = field(init=False)  # the directory that names it last

    def __post_init__(self) -> None:
        rows = len(self.inventory.inodes)
        self.links = array("I", bytes(4 * rows))
        self.link_digest = array("Q", bytes(8 * rows))
        self.subdirectories = array("I", bytes(4 * rows))
        self.named_by = array("Q", bytes(8 * rows))

    @property
    def findings(self) -> Findings:
        return self.source.findings


async def check_double_use(check: Verification) -> None:
    """Blocks that two have: both are named."""
    if not check.double:
        return
    wanted = check.double[:SHOWN_PER_NAME]
    owners = await explain.owners_of(
        check.source, check.root, [(start, count) for start, count, _ in wanted]
    )
    for start, count, second in wanted:
        others = [owner for owner in owners[(start, count)] if owner != second]
        first = others[0] if others else "another"
        check.findings.add(
            "block-shared", f"{show_run(start, count)}: used by {first} and by {second}"
        )
    for start, _, second in check.double[SHOWN_PER_NAME:]:
        check.findings.add("block-shared", f"block {start}: used by {second} and by another")


async def check_names(check: Verification) -> None:
    """Every name leads to an inode of its type; count what leads to each inode."""
    names, inodes = check.inventory.names, check.inventory.inodes
    for row in range(len(names)):
        target, directory = names.target[row], names.directory[row]
        at = inodes.find(target)
        if at < 0:
            await report_name(
                check, row, "dirent-dangling", f"inode {target}, which does not exist"
            )
            continue
        check.links[at] += 1
        check.link_digest[at] = check.link_digest[at] + names.digest[row] & MASK64
        check.named_by[at] = directory
        if inodes.type[at] != names.type[row]:
            await report_name(
                check,
                row,
                "dirent-type",
                f"inode {target} as type {names.type[row]}, it has type {inodes.type[at]}",
            )
        if inodes.type[at] == DIRECTORY and (holder := inodes.find(directory)) >= 0:
            check.subdirectories[holder] += 1


async def report_name(check: Verification, row: int, name: str, leads_to: str) -> None:
    """A finding about a directory entry, with the entry's name while findings of its kind are shown."""
    names = check.inventory.names
    directory, target = names.directory[row], names.target[row]
    shown = "a name"
    if check.findings.counts[name] < SHOWN_PER_NAME:
        found = await explain.names_in_leaf(check.source, names.leaf[row], directory, target)
        shown = ", ".join(map(repr, found)) or shown
    check.findings.add(name, f"directory {directory}: {shown} leads to {leads_to}")


async def check_links(check: Verification) -> None:
    """Link counts, names without and inodes without the other."""
    inodes, findings = check.inventory.inodes, check.findings
    orphans = check.inventory.orphans
    listed = set(orphans)
    for row in range(len(inodes)):
        number, nlink, links = inodes.number[row], inodes.nlink[row], check.links[row]
        is_directory = inodes.type[row] == DIRECTORY
        if number == ROOT_INODE:
            check_root(check, row)
            continue
        if not links and number not in listed:
            if nlink:
                findings.add("inode-unreferenced", f"inode {number} has no name and is no orphan")
            else:
                findings.add(
                    "orphan-unlisted", f"inode {number} has link count 0 and is not listed"
                )
            continue
        if is_directory and links > 1:
            findings.add("directory-links", f"directory {number} has {links} names")
        if is_directory and links and inodes.parent[row] != check.named_by[row]:
            findings.add(
                "directory-parent",
                f"directory {number} says its parent is {inodes.parent[row]}, the name is in "
                f"{check.named_by[row]}",
            )
        right = links
        if is_directory:
            right = 2 + check.subdirectories[row] if links else 0
        if nlink != right:
            findings.add("link-count", f"inode {number} has link count {nlink}, right is {right}")


def check_root(check: Verification, row: int) -> None:
    """The root directory: no name leads to it, and it is its own parent."""
    inodes, findings = check.inventory.inodes, check.findings
    if inodes.type[row] != DIRECTORY or inodes.parent[row] != ROOT_INODE:
        findings.add("root", "inode 1 is not a directory that is its own parent")
    if check.links[row]:
        findings.add("root", f"directory {check.named_by[row]} holds a name of the root")
    right = 2 + check.subdirectories[row]
    if inodes.nlink[row] != right:
        findings.add("link-count", f"inode 1 has link count {inodes.nlink[row]}, right is {right}")


async def check_back_references(check: Verification) -> None:
    """Each name has its back reference and each back reference its name."""
    inodes = check.inventory.inodes
    for row in range(len(inodes)):
        if (
            check.links[row] == inodes.back_count[row]
            and check.link_digest[row] == inodes.back_digest[row]
        ):
            continue
        number = inodes.number[row]
        if (
            check.findings.counts["parent-missing"] + check.findings.counts["parent-stale"]
            >= SHOWN_PER_NAME
        ):
            check.findings.add(
                "parent-missing",
                f"inode {number}: {check.links[row]} names, {inodes.back_count[row]} back references",
            )
            continue
        await explain_back_references(check, number)


async def explain_back_references(check: Verification, number: int) -> None:
    """Name each link of inode `number` that is known on one side only."""
    names = check.inventory.names
    forward: set[explain.Link] = set()
    for row in range(len(names)):
        if names.target[row] == number:
            directory = names.directory[row]
            found = await explain.names_in_leaf(check.source, names.leaf[row], directory, number)
            forward.update((directory, name) for name in found)
    backward = set(await explain.back_links(check.source, check.root, number))
    for directory, name in sorted(forward - backward):
        check.findings.add(
            "parent-missing",
            f"inode {number}: no back reference to its name {name!r} in directory {directory}",
        )
    for directory, name in sorted(backward - forward):
        check.findings.add(
            "parent-stale",
            f"inode {number}: back reference to {name!r} in directory {directory}, where it is not",
        )


async def check_orphans(check: Verification) -> None:
    """The list of orphans: inodes without names, or being truncated; none after an orderly unmount."""
    inodes, source, findings = check.inventory.inodes, check.source, check.findings
    unlinked = truncated = 0
    for number in check.inventory.orphans:
        row = inodes.find(number)
        if row < 0:
            findings.add("orphan-dangling", f"inode {number} is listed and does not exist")
        elif source.unmounted_in_order:
            findings.add("orphan-left", f"inode {number} is listed after an orderly unmount")
        elif check.links[row]:
            truncated += 1
        else:
            unlinked += 1
    if unlinked or truncated:
        findings.remark(
            f"{unlinked} unlinked files and {truncated} truncations are finished by the next mount"
        )


async def check_reachable(check: Verification) -> None:
    """Every directory that has a name leads up to the root: no cycle is cut off."""
    inodes = check.inventory.inodes
    known = bytearray(len(inodes))  # 1: reaches the root, or ends in a fault told already
    root = inodes.find(ROOT_INODE)
    if root < 0:
        check.findings.add("root", "there is no root directory (inode 1)")
        return
    known[root] = 1
    for start in range(len(inodes)):
        path = []
        row = start
        while inodes.type[row] == DIRECTORY and known[row] == 0 and check.links[row]:
            known[row] = 2
            path.append(row)
            row = inodes.find(check.named_by[row])
            if row < 0:
                break
        if path and row >= 0 and known[row] == 2:
            circle = path[path.index(row) :]
            shown = " in ".join(str(inodes.number[each]) for each in circle[:8])
            check.findings.add(
                "directory-cycle",
                f"directories {shown} in {inodes.number[row]}: no way to the root",
            )
        for each in path:
            known[each] = 1


async def check_values(check: Verification) -> None:
    """Long attribute values: each has one attribute, and all its bytes."""
    values, findings = check.inventory.values, check.findings
    held = dict(zip(values.holder, values.holder_bytes, strict=True))
    seen: set[int] = set()
    for number, length, owner in zip(
        values.claimed, values.claimed_bytes, values.claimed_by, strict=True
    ):
        check.inventory.highest = max(check.inventory.highest, number)
        if number in seen:
            findings.add("xattr-shared", f"inode {owner}: value {number} has two attributes")
        elif number not in held:
            findings.add("xattr-missing", f"inode {owner}: value {number} does not exist")
        elif held[number] != length:
            findings.add(
                "xattr-size",
                f"inode {owner}: value {number} has {held[number]} bytes, {length} are due",
            )
        seen.add(number)
    for number in values.holder:
        if number not in seen:
            findings.add("xattr-unreferenced", f"value {number} belongs to no attribute")


async def check_counters(check: Verification) -> None:
    """The state block's counters."""
    state, findings = check.source.state, check.findings
    assert state is not None
    count = len(check.inventory.inodes)
    if state.inode_count != count:
        findings.add("state-inodes", f"the state says {state.inode_count} inodes, {count} are")
    highest = check.inventory.highest
    if state.next_inode <= highest:
        findings.add(
            "state-next", f"the state says {state.next_inode} is unused, {highest} is in use"
        )


Pass = Callable[[Verification], Awaitable[None]]
PASSES: tuple[Pass, ...] = (
    check_double_use,
    check_names,
    check_links,
    check_back_references,
    check_orphans,
    check_reachable,
    check_values,
    check_counters,
)
