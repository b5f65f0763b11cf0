"""One test an invariant: break it, repair it; the second check is clean, and no other file has changed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mkfs.check.findings import Finding
from mkfs.check.run import check
from mkfs.repair.engine import repair
from mkfs.repair.fixes import BITMAPS, FIXES, SAFE, SUPERBLOCKS
from mkfs.repair.policy import everything, only_safe
from nvmefs import acl
from nvmefs.errors import Corrupted
from nvmefs.filesystem import Filesystem, Options
from nvmefs.hashing import name_hash
from nvmefs.items import (
    EXTENT_UNWRITTEN,
    INODE_INLINE,
    OVERFLOWED,
    Dirent,
    Xattr,
    encode_dirents,
)
from nvmefs.items import encode_xattrs as encode_xattr_list
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    ROOT_INODE,
    Kind,
    StateFlag,
    key,
)
from tests.mkfs import test_fsck as broken
from tests.mkfs.builder import Builder, small_tree
from tests.mkfs.repairing import (
    DAMAGED,
    LOST,
    contents,
    intact,
    mend,
    names_of,
    only_found,
    with_data,
)
from tests.mkfs.test_fsck import BIG, DEEPER, EMPTY, IN_ITEMS, LINK, SMALL, SUB, VALUE, Break
from tests.support.checker import check as second_opinion
from tests.support.model import differences
from tests.support.ram import RamNamespace

GOOD_ACL = [acl.AclEntry(tag, 7) for tag in (acl.USER_OBJ, acl.GROUP_OBJ, acl.OTHER)]


# --- every invariant of items, names and counts -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "break_it"), IN_ITEMS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(IN_ITEMS)]
)
async def test_items(name: str, break_it: Break) -> None:
    builder = small_tree()
    break_it(builder)
    namespace = with_data(builder, builder.build())
    outcome = await mend(namespace)
    assert name in names_of(outcome)
    only_found(await intact(), await contents(namespace), DAMAGED.get(name, set()))


def test_every_name_has_a_repair_and_a_test() -> None:
    """What a check can find is found by a test of its own and has a repair."""
    here = Path(__file__).parent
    tests = "".join(path.read_text() for path in here.glob("test_*.py"))
    fixed = {name for fixes in FIXES.values() for name in fixes}
    structure = {
        "node-damaged", "node-unreadable", "node-level", "node-owner", "node-keys", "node-empty",
        "node-shared", "node-forbidden", "state", "journal", "journal-superblock",
    }  # fmt: skip
    known = fixed | BITMAPS | SUPERBLOCKS | structure
    assert known >= SAFE
    assert {name for name in known if f'"{name}"' not in tests} == set()


# --- what is kept where something had to go ----------------------------------------------------------------


async def test_a_lost_name_comes_back_from_its_back_reference() -> None:
    builder = small_tree()
    del builder.items[builder.dirent_key(SUB, b"small")]
    namespace = with_data(builder, builder.build())
    outcome = await mend(namespace)
    assert {"inode-unreferenced", "parent-stale"} <= names_of(outcome)
    assert differences(await intact(), await contents(namespace)) == []


async def test_a_lost_second_name_comes_back() -> None:
    builder = small_tree()
    del builder.items[builder.dirent_key(SUB, b"second name of big")]
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    assert differences(await intact(), await contents(namespace)) == []


async def test_a_lost_directory_record_is_made_anew() -> None:
    builder = small_tree()
    broken.drop_record(SUB)(builder)
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    found = await contents(namespace)
    assert found[SUB].names == (await intact())[SUB].names
    assert found[SUB].mode == stat.S_IFDIR | 0o700
    assert found[ROOT_INODE].names[b"sub"] == SUB


async def test_a_lost_file_record_is_made_anew() -> None:
    """Its blocks are still there: only the exact size and the owner are lost."""
    builder = small_tree()
    broken.drop_record(BIG)(builder)
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    before, found = await intact(), await contents(namespace)
    assert found[BIG].content[: len(before[BIG].content)] == before[BIG].content
    assert found[BIG].mode == stat.S_IFREG | 0o600
    assert found[BIG].xattrs == before[BIG].xattrs


async def test_an_impossible_record_is_mended() -> None:
    builder = small_tree()
    record = builder.records[BIG]
    record.mtime_ns, record.size_bytes = 10**9, 2**63
    record.mode = 0o170644
    namespace = with_data(builder, builder.build())
    outcome = await mend(namespace)
    assert "item-value" in names_of(outcome)
    found = (await contents(namespace))[BIG]
    assert (found.mode, len(found.content)) == (stat.S_IFREG | 0o644, 7 * BLOCK_BYTES)


async def test_the_root_is_made_anew() -> None:
    builder = small_tree()
    del builder.records[ROOT_INODE]
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    before, found = await intact(), await contents(namespace)
    assert found[ROOT_INODE].names == before[ROOT_INODE].names
    assert differences(before, found) == []


async def test_the_root_as_a_file() -> None:
    builder = small_tree()
    builder.records[ROOT_INODE].mode = stat.S_IFREG | 0o755
    namespace = with_data(builder, builder.build())
    outcome = await mend(namespace)
    assert "root" in names_of(outcome)
    assert differences(await intact(), await contents(namespace)) == []


async def test_nothing_is_left_of_the_tree() -> None:
    builder = Builder()
    device = builder.build()
    device.put_bytes(builder.leaves[0] * BLOCK_BYTES + 99, b"\xff")
    namespace = with_data(builder, device)
    outcome = await mend(namespace)
    assert {"node-damaged", "root"} <= names_of(outcome)
    assert (await contents(namespace))[ROOT_INODE].names == {}


async def test_shared_blocks_are_copied() -> None:
    """Both files keep their bytes, and afterwards each has blocks of its own."""
    builder = small_tree()
    broken.shared_by_files(builder)
    builder.records[EMPTY].size_bytes = 103 * BLOCK_BYTES
    builder.records[BIG].size_bytes = 103 * BLOCK_BYTES
    namespace = with_data(builder, builder.build())
    before = await contents(namespace)
    assert before[BIG].content[100 * BLOCK_BYTES :] == before[EMPTY].content[100 * BLOCK_BYTES :]
    await mend(namespace)
    assert differences(before, await contents(namespace)) == []


async def test_a_file_over_a_tree_node_gets_a_hole() -> None:
    builder = small_tree()
    builder.build()  # to know where nodes come to stand: the second build puts them in the same places
    for node in (builder.leaves[4], builder.nodes[0]):
        builder = small_tree()
        builder.extent(BIG, 50, node, 1)
        builder.records[BIG].blocks += 1
        builder.records[BIG].size_bytes = 51 * BLOCK_BYTES
        device = builder.build()
        assert node in builder.leaves + builder.nodes
        namespace = with_data(builder, device)
        outcome = await mend(namespace)
        assert "block-shared" in names_of(outcome)
        found = await contents(namespace)
        assert found[BIG].content[50 * BLOCK_BYTES :] == bytes(BLOCK_BYTES)
        only_found(await intact(), found, {BIG})


async def test_a_cycle_moves_to_lost_and_found() -> None:
    builder = small_tree()
    broken.cycle(builder)
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    found = await contents(namespace)
    (name, number), *others = found[found[ROOT_INODE].names[LOST]].names.items()
    assert others == []
    assert (name, number) in ((b"#16", SUB), (b"#17", DEEPER))
    assert set(await intact()) <= set(found)


async def test_names_taken_in_lost_and_found() -> None:
    builder = small_tree()
    builder.file(ROOT_INODE, LOST, inline=b"a file of that name")
    broken.unnamed_file(builder)
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    found = await contents(namespace)
    assert found[ROOT_INODE].names[LOST + b"-1"] in found
    taken = found[found[ROOT_INODE].names[LOST]]
    assert taken.content == b"a file of that name"


async def test_a_removed_directory_with_names_is_kept() -> None:
    builder = small_tree()
    del builder.items[builder.dirent_key(ROOT_INODE, b"sub")]
    del builder.items[builder.parent_key(SUB, ROOT_INODE, b"sub")]
    builder.records[ROOT_INODE].entries -= 1
    builder.records[ROOT_INODE].nlink -= 1
    builder.records[SUB].nlink = 0
    builder.orphan(SUB)
    builder.flags = StateFlag(0)
    namespace = with_data(builder, builder.build())
    outcome = await mend(namespace)
    assert "orphan-names" in names_of(outcome)
    found = await contents(namespace)
    assert found[SUB].names == (await intact())[SUB].names


async def test_orphans_are_finished() -> None:
    builder = small_tree()
    builder.flags = StateFlag(0)
    broken.listed_orphan(builder)
    namespace = with_data(builder, builder.build())
    outcome = await repair(namespace.device(), everything)
    assert (outcome.found, outcome.repaired) == ({}, 0)
    assert second_opinion(namespace.blocks) == []
    assert (await check(namespace.device())).findings.remarks == []
    assert differences(await intact(), await contents(namespace)) == []


async def test_malformed_access_lists_go() -> None:
    short, long = b"\2\0\0\0nonsense", b"\2\0\0\0" + b"nonsense" * 200
    for number, name, value in (
        (BIG, acl.ACCESS, short),
        (BIG, acl.ACCESS, long),
        (BIG, acl.DEFAULT, acl.encode(GOOD_ACL)),
        (SUB, acl.DEFAULT, short),
    ):
        builder = small_tree()
        builder.xattr(number, name, value)
        namespace = with_data(builder, builder.build())
        assert names_of(await mend(namespace)) == {"xattr-acl"}
        assert differences(await intact(), await contents(namespace)) == []


async def test_access_lists_that_make_sense_stay() -> None:
    users = [acl.AclEntry(acl.USER, 5, uid) for uid in range(100)]
    long = [GOOD_ACL[0], *users, GOOD_ACL[1], acl.AclEntry(acl.MASK, 7), GOOD_ACL[2]]
    for entries in (GOOD_ACL, long):
        for number, name in ((BIG, acl.ACCESS), (SUB, acl.ACCESS), (SUB, acl.DEFAULT)):
            builder = small_tree()
            builder.xattr(number, name, acl.encode(entries))
            assert (await check(with_data(builder, builder.build()).device())).findings.clean


async def test_lists_broken_inside() -> None:
    """An entry cut short, two entries with one cookie, and names that lost their chain."""
    builder = small_tree()
    place = builder.dirent_key(SUB, b"empty")
    builder.items[place] = builder.items[place][:-2]
    namespace = with_data(builder, builder.build())
    assert "item-value" in names_of(await mend(namespace))
    assert differences(await intact(), await contents(namespace)) == []

    builder = small_tree()
    broken.share_cookie(builder)
    namespace = with_data(builder, builder.build())
    assert {"dirent-index", "dirent-hash"} <= names_of(await mend(namespace))

    builder = small_tree()
    place = builder.dirent_key(SUB, b"empty")
    builder.items[(place[0], place[1] + 1)] = builder.items.pop(place)
    builder.items[place] = encode_dirents(0, [Dirent(SMALL, 8, 0, b"no such name")])
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    assert (await contents(namespace))[SUB].names[b"empty"] == EMPTY


async def test_twice_the_same_name() -> None:
    builder = small_tree()
    broken.name_twice(builder)
    namespace = with_data(builder, builder.build())
    assert "dirent-twice" in names_of(await mend(namespace))
    assert differences(await intact(), await contents(namespace)) == []


async def test_overflowed_lists_are_left_alone() -> None:
    builder = small_tree()
    here = builder.dirent_key(SUB, b"empty")
    builder.items[(here[0], here[1] + 1)] = builder.items[here]
    builder.items[here] = encode_dirents(OVERFLOWED, [])
    assert (await repair(with_data(builder, builder.build()).device(), everything)).found == {}


async def test_symbolic_links_without_a_whole_target_go() -> None:
    builder = small_tree()
    broken.drop_items(LINK, Kind.INLINE)(builder)
    broken.set_record(LINK, flags=0)(builder)
    namespace = with_data(builder, builder.build())
    await mend(namespace)
    assert LINK not in await contents(namespace)


async def test_inline_data_and_extents() -> None:
    builder = small_tree()
    broken.set_record(BIG, flags=INODE_INLINE)(builder)
    namespace = with_data(builder, builder.build())
    assert "inline-flag" in names_of(await mend(namespace))
    assert differences(await intact(), await contents(namespace)) == []


async def test_values_of_two_attributes() -> None:
    builder = small_tree()
    place = key(BIG, Kind.XATTR, name_hash(builder.superblock.hash_seed, b"user.x"))
    builder.items[place] = encode_xattr_list(0, [Xattr(b"user.x", None, 5000, VALUE)])
    namespace = with_data(builder, builder.build())
    assert "xattr-shared" in names_of(await mend(namespace))
    assert len((await contents(namespace))[BIG].xattrs) == 2


# --- which repairs are done --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "break_it"), IN_ITEMS, ids=[f"{i}" for i in range(len(IN_ITEMS))])
async def test_safe_repairs_only(name: str, break_it: Break) -> None:
    """-p repairs counters, and touches nothing where more is wrong."""
    builder = small_tree()
    break_it(builder)
    namespace = with_data(builder, builder.build())
    before = dict(namespace.blocks)
    first = await check(namespace.device())
    outcome = await repair(namespace.device(), everything, gate=only_safe)
    if set(first.findings.counts) <= SAFE:
        assert outcome.left == []
    else:
        assert outcome.left != []
        assert namespace.blocks == before


async def test_refused_repairs_are_left() -> None:
    builder = small_tree()
    broken.set_record(BIG, nlink=3)(builder)
    broken.set_record(EMPTY, nlink=7)(builder)
    namespace = with_data(builder, builder.build())
    asked: list[str] = []

    def only_big(finding: Finding) -> bool:
        asked.append(finding.text)
        return finding.where["inode"] == BIG

    outcome = await repair(namespace.device(), only_big)
    assert [finding.where["inode"] for finding in outcome.left] == [EMPTY]
    assert len(asked) == 2, "asked again"


async def test_refused_structure_ends_it() -> None:
    builder = small_tree()
    device = builder.build()
    device.put_bytes(builder.leaves[3] * BLOCK_BYTES + 3000, b"\x01")
    namespace = with_data(builder, device)
    before = dict(namespace.blocks)
    outcome = await repair(namespace.device(), lambda finding: False)
    assert outcome.left
    assert namespace.blocks == before


async def test_no_space_for_repairs_is_told() -> None:
    """A full filesystem: what needs no block is repaired, the rest is named and left."""
    builder = small_tree()
    broken.shared_by_files(builder)
    first = builder.next_block + 200
    runs = [(first, GROUP_BLOCKS - first), (GROUP_BLOCKS + 2, GROUP_BLOCKS - 2)]
    runs.append((2 * GROUP_BLOCKS + 1, builder.superblock.block_count - 2 - 2 * GROUP_BLOCKS))
    for start, count in runs:
        builder.extent(BIG, start, start, count, EXTENT_UNWRITTEN)
        builder.mark(start, count)
        builder.records[BIG].blocks += count
    namespace = RamNamespace(builder.superblock.block_count, dict(builder.build().blocks))
    outcome = await repair(namespace.device(), everything)
    assert outcome.left == []
    assert second_opinion(namespace.blocks) == []


async def test_an_orphan_that_does_not_exist() -> None:
    """The mount says that the filesystem is damaged, fsck says how."""
    builder = small_tree()
    builder.flags = StateFlag(0)
    builder.orphan(9)
    namespace = with_data(builder, builder.build())
    with pytest.raises(Corrupted, match="inode 9 is listed as an orphan and does not exist"):
        await Filesystem.open(namespace.copy().device(), Options())
    assert names_of(await mend(namespace)) == {"orphan-dangling"}
