"""The third pass: what is only known when all was seen.

Below: inventory.py and space.py, which the scan has filled.  Above: fsck.py.

    for check in PASSES: await check(verification)

Each pass reads the inventory, adds findings, and changes nothing; the repairs go by the findings' names.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from mkfs.check import explain
from mkfs.check.findings import SHOWN_PER_NAME, Findings
from mkfs.check.inventory import MASK64, Inventory
from mkfs.check.load import Source
from mkfs.check.space import Double, show_run
from nvmefs.layout import ROOT_INODE, Root

DIRECTORY = stat.S_IFDIR >> 12


@dataclass
class Verification:
    """What the passes share. The arrays run parallel to inventory.inodes."""

    source: Source
    root: Root
    inventory: Inventory
    double: list[Double]
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
    wanted = [(each.start, each.count) for each in check.double[:SHOWN_PER_NAME]]
    owners = await explain.owners_of(check.source, check.root, wanted)
    for second in check.double:
        others = [each for each in owners.get(second.start, []) if not each.covers(second)]
        check.findings.add(
            "block-shared",
            f"{show_run(second.start, second.count)}: used by {others[0] if others else 'another'} "
            f"and by {second}",
            start=second.start,
            count=second.count,
            inode=second.inode,
            block=second.file_block,
        )


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
        if target == ROOT_INODE:
            await report_name(check, row, "root-name", "the root")
        if inodes.type[at] == DIRECTORY and (holder := inodes.find(directory)) >= 0:
            check.subdirectories[holder] += 1


async def report_name(check: Verification, row: int, name: str, leads_to: str) -> None:
    """A finding about a directory entry, with the entry's name while findings of its kind are kept."""
    names, findings = check.inventory.names, check.findings
    directory, target = names.directory[row], names.target[row]
    entry = None
    if findings.room(name):
        entry = await explain.name_of(check.source, names, row)
    shown = "a name" if entry is None else repr(entry)
    findings.add(
        name,
        f"directory {directory}: {shown} leads to {leads_to}",
        directory=directory,
        name=entry,
        inode=target,
    )


async def check_links(check: Verification) -> None:
    """Link counts, names without and inodes without the other."""
    inodes, findings = check.inventory.inodes, check.findings
    listed = set(check.inventory.orphans)
    for row in range(len(inodes)):
        number, links = inodes.number[row], check.links[row]
        is_directory = inodes.type[row] == DIRECTORY
        if number == ROOT_INODE:
            check_root(check, row)
            continue
        if not links:
            check_nameless(check, row, number in listed)
            continue
        if is_directory and links > 1:
            findings.add(
                "directory-links",
                f"directory {number} has {links} names",
                found=links,
                inode=number,
            )
        if is_directory and inodes.parent[row] != check.named_by[row]:
            findings.add(
                "directory-parent",
                f"directory {number} says its parent is {inodes.parent[row]}, the name is in "
                f"{check.named_by[row]}",
                found=inodes.parent[row],
                expected=check.named_by[row],
                inode=number,
            )
        check_count(check, row, 2 + check.subdirectories[row] if is_directory else links)


def check_count(check: Verification, row: int, right: int) -> None:
    """The link count of an inode that has names."""
    number, nlink = check.inventory.inodes.number[row], check.inventory.inodes.nlink[row]
    if nlink != right:
        check.findings.add(
            "link-count",
            f"inode {number} has link count {nlink}, right is {right}",
            found=nlink,
            expected=right,
            inode=number,
        )


def check_nameless(check: Verification, row: int, listed: bool) -> None:
    """An inode that no name leads to: it is an orphan, has link count 0, and nothing is in it."""
    inodes, findings = check.inventory.inodes, check.findings
    number = inodes.number[row]
    if inodes.nlink[row]:
        what = "is an orphan with a link count" if listed else "has no name and is no orphan"
        findings.add("inode-unreferenced", f"inode {number} {what}", inode=number)
    elif inodes.own_names[row]:
        findings.add(
            "orphan-names", f"directory {number} has link count 0, and names in it", inode=number
        )
    elif not listed:
        findings.add(
            "orphan-unlisted", f"inode {number} has link count 0 and is not listed", inode=number
        )


def check_root(check: Verification, row: int) -> None:
    """The root directory is its own parent."""
    inodes = check.inventory.inodes
    if inodes.type[row] != DIRECTORY or inodes.parent[row] != ROOT_INODE:
        check.findings.add("root", "inode 1 is not a directory that is its own parent")
    check_count(check, row, 2 + check.subdirectories[row])


async def check_back_references(check: Verification) -> None:
    """Each name has its back reference and each back reference its name."""
    inodes, names = check.inventory.inodes, check.inventory.names
    room = min(check.findings.room("parent-missing"), check.findings.room("parent-stale"))
    differing: dict[int, list[int]] = {}
    for row in range(len(inodes)):
        if (
            check.links[row] == inodes.back_count[row]
            and check.link_digest[row] == inodes.back_digest[row]
        ):
            continue
        if len(differing) < room:
            differing[row] = []
            continue
        check.findings.add(
            "parent-missing",
            f"inode {inodes.number[row]}: {check.links[row]} names, {inodes.back_count[row]} back "
            "references",
        )
    if not differing:
        return
    rows = {inodes.number[row]: found for row, found in differing.items()}
    for row, target in enumerate(names.target):
        if target in rows:
            rows[target].append(row)
    for row, found in differing.items():
        await explain_back_references(check, row, found)


async def explain_back_references(check: Verification, row: int, names: list[int]) -> None:
    """Tell each link of an inode that is known on one side only. `names`: rows of those leading to it."""
    inodes, inventory = check.inventory.inodes, check.inventory
    number = inodes.number[row]
    forward: set[explain.Link] = set()
    for each in names:
        name = await explain.name_of(check.source, inventory.names, each)
        if name is not None:
            forward.add((inventory.names.directory[each], name))
    told = await explain.back_links(check.source, check.root, number)
    for directory, name in sorted(forward - set(told)):
        check.findings.add(
            "parent-missing",
            f"inode {number}: no back reference to its name {name!r} in directory {directory}",
            inode=number,
            directory=directory,
            name=name,
        )
    # A name that is gone is put back where all else says that it was there.
    lost = not check.links[row]
    if inodes.type[row] != DIRECTORY:
        lost |= inodes.nlink[row] == len(told) > check.links[row]
    for directory, name in sorted(set(told) - forward):
        check.findings.add(
            "parent-stale",
            f"inode {number}: back reference to {name!r} in directory {directory}, where it is not",
            inode=number,
            directory=directory,
            name=name,
            lost=int(lost),
        )


async def check_orphans(check: Verification) -> None:
    """The list of orphans: inodes without names, or being truncated; none after an orderly unmount."""
    inodes, source, findings = check.inventory.inodes, check.source, check.findings
    unlinked = truncated = 0
    for number in check.inventory.orphans:
        row = inodes.find(number)
        if row < 0:
            findings.add(
                "orphan-dangling", f"inode {number} is listed and does not exist", inode=number
            )
        elif source.unmounted_in_order:
            findings.add(
                "orphan-left", f"inode {number} is listed after an orderly unmount", inode=number
            )
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
                inode=inodes.number[row],
            )
        for each in path:
            known[each] = 1


async def check_values(check: Verification) -> None:
    """Long attribute values: each has one attribute, and all its bytes."""
    values = check.inventory.values
    held = dict(zip(values.holder, values.holder_bytes, strict=True))
    seen: set[int] = set()
    for number, length, owner in zip(
        values.claimed, values.claimed_bytes, values.claimed_by, strict=True
    ):
        report = partial(check.findings.add, inode=owner, value=number)
        if number in seen:
            report("xattr-shared", f"inode {owner}: value {number} has two attributes")
        elif number not in held:
            report("xattr-missing", f"inode {owner}: value {number} does not exist")
        elif held[number] != length:
            report(
                "xattr-size",
                f"inode {owner}: value {number} has {held[number]} bytes, {length} are due",
                found=held[number],
                expected=length,
            )
        seen.add(number)
    for number in values.holder:
        if number not in seen:
            check.findings.add(
                "xattr-unreferenced", f"value {number} belongs to no attribute", value=number
            )


async def check_counters(check: Verification) -> None:
    """The state block's counters."""
    state, findings = check.source.state, check.findings
    assert state is not None
    count = len(check.inventory.inodes)
    if state.inode_count != count:
        findings.add(
            "state-inodes",
            f"the state says {state.inode_count} inodes, {count} are",
            found=state.inode_count,
            expected=count,
        )
    highest = check.inventory.highest
    if state.next_inode <= highest:
        findings.add(
            "state-next",
            f"the state says {state.next_inode} is unused, {highest} is in use",
            found=state.next_inode,
            expected=highest + 1,
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
