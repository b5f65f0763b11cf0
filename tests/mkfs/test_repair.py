"""One test an invariant: break it, repair it; the second check is clean, and no other file has changed."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from mkfs.check.findings import Finding
from mkfs.check.run import check
from mkfs.nodes import encode_internal, encode_leaf
from mkfs.repair.engine import Outcome, repair
from mkfs.repair.fixes import BITMAPS, FIXES, SAFE, SUPERBLOCKS
from mkfs.repair.policy import everything, only_safe
from nvmefs.errors import Corrupted
from nvmefs.filesystem import Filesystem, Options
from nvmefs.hashing import name_hash
from nvmefs.items import (
    EXTENT_UNWRITTEN,
    INODE_INLINE,
    OVERFLOWED,
    Dirent,
    Xattr,
    decode_extent,
    encode_dirents,
)
from nvmefs.items import encode_xattrs as encode_xattr_list
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    OFFSET_MASK,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    TREE_MAIN,
    ErrorRecord,
    Kind,
    StateFlag,
    bitmap_block,
    encode_bitmap,
    fixed_bits,
    key,
    superblock_places,
)
from nvmefs.node import leaf_items
from tests.mkfs import test_fsck as broken
from tests.mkfs.builder import ITEMS_PER_LEAF, Builder, edit, small_tree
from tests.mkfs.ramdevice import RamDevice
from tests.mkfs.test_fsck import BIG, DEEPER, EMPTY, IN_ITEMS, LINK, SMALL, SUB, VALUE, Break, patch
from tests.support.checker import check as second_opinion
from tests.support.model import Tree, differences, read_back
from tests.support.ram import RamNamespace

LOST = b"lost+found"

# The inodes that a break, by its name, may cost something; all others are as before, byte for byte.
DAMAGED: dict[str, set[int]] = {
    "inline-pieces": {LINK},
    "xattr-twice": {BIG},
    "xattr-missing": {BIG},
    "xattr-size": {BIG},
    "extent-behind": {BIG},
    "block-shared": {BIG, EMPTY},
}


# --- helpers --------------------------------------------------------------------------------------------


def with_data(builder: Builder, device: RamDevice) -> RamNamespace:
    """A namespace with what was built, and bytes of their own in the blocks of files."""
    namespace = RamNamespace(device.block_count, dict(device.blocks))
    for (number, rest), value in builder.items.items():
        if rest >> 56 != Kind.EXTENT:
            continue
        try:
            extent = decode_extent(number, rest & OFFSET_MASK, value, device.block_count)
        except Corrupted:
            continue
        if builder.superblock.is_allocatable(extent.start, extent.count):
            for block in range(extent.start, extent.start + extent.count):
                namespace.blocks.setdefault(block, struct.pack("<Q", block) * (BLOCK_BYTES // 8))
    return namespace


async def contents(namespace: RamNamespace) -> Tree:
    """Every file, read through the filesystem."""
    return await read_back(await Filesystem.open(namespace.device(), Options(read_only=True)))


async def intact() -> Tree:
    builder = small_tree()
    return await contents(with_data(builder, builder.build()))


async def mend(namespace: RamNamespace, *, clean_twice: bool = True) -> Outcome:
    """Repair everything; what comes out is clean, for both checkers, and at the second run untouched."""
    outcome = await repair(namespace.device(), everything)
    assert outcome.failures == []
    assert [str(finding) for finding in outcome.left] == []
    assert all(finding.repaired for finding in outcome.found.values())
    report = await check(namespace.device())
    assert (report.findings.lines(), report.findings.remarks) == ([], [])
    assert second_opinion(namespace.blocks) == []
    before = dict(namespace.blocks)
    again = await repair(namespace.device(), everything)
    assert (again.found, again.rounds) == ({}, 0)
    assert namespace.blocks == before, "what is clean was written to"
    return outcome


def names_of(outcome: Outcome) -> set[str]:
    return {finding.name for finding in outcome.found.values()}


def only_found(expected: Tree, found: Tree, damaged: set[int]) -> None:
    """All is as it was, but for what is damaged, and what stands in lost+found."""
    places = dict(found[ROOT_INODE].names)
    new = {number for number in found if number not in expected}
    changed = {line.split(":")[0] for line in differences(expected, found)}
    allowed = {f"inode {number}" for number in damaged | new}
    if LOST in places or damaged:
        allowed.add(f"inode {ROOT_INODE}")
    assert changed <= allowed, differences(expected, found)
    kept = {name: number for name, number in places.items() if name != LOST}
    before = expected[ROOT_INODE].names
    assert {name: before.get(name) for name in kept} == kept
    assert {n for name, n in before.items() if name not in kept} <= damaged | {SUB}


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
    with open(broken.__file__) as file, open(__file__) as own:
        tests = file.read() + own.read()
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
    for number, name in (
        (BIG, b"system.posix_acl_access"),
        (BIG, b"system.posix_acl_default"),
        (SUB, b"system.posix_acl_default"),
    ):
        builder = small_tree()
        builder.xattr(number, name, b"\2\0\0\0nonsense")
        namespace = with_data(builder, builder.build())
        assert names_of(await mend(namespace)) == {"xattr-acl"}
        assert differences(await intact(), await contents(namespace)) == []


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


# --- nodes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "offset", "data"), broken.NODE_FAULTS)
async def test_any_leaf_lost(name: str, offset: int, data: bytes) -> None:
    """Whichever leaf is lost: what others hold is kept, and files that have lost their names have others."""
    builder = small_tree()
    builder.build()
    for leaf in builder.leaves:
        builder = small_tree()
        device = builder.build()
        if device.get(leaf)[offset : offset + len(data)] == data:
            continue
        edit(device, builder.superblock, leaf, patch(offset, data))
        lost = {place[0] for place, block in items_by_leaf(builder) if block == leaf}
        namespace = with_data(builder, device)
        assert name in names_of(await mend(namespace))
        found = await contents(namespace)
        before = await intact()
        for number, node in before.items():
            if (
                number in lost
                or set(node.names.values()) & lost
                or (number == BIG and VALUE in lost)
            ):
                continue
            assert found[number].seen()[:1] == node.seen()[:1]
            assert found[number].content == node.content
            assert found[number].xattrs == node.xattrs
            assert number == ROOT_INODE or found[number].names == node.names


def items_by_leaf(builder: Builder) -> list[tuple[tuple[int, int], int]]:
    """Each key of the tree, and the leaf that holds it."""

    places = sorted({*builder.items, *(key(number, Kind.INODE) for number in builder.records)})
    return [(place, builder.leaves[at // ITEMS_PER_LEAF]) for at, place in enumerate(places)]


@pytest.mark.parametrize("which", range(4))
async def test_any_inner_node_lost(which: int) -> None:
    """All leaves are found again: not a byte is lost."""
    builder = small_tree()
    device = builder.build()
    nodes = [builder.nodes[-1], *builder.nodes[: which or None]]
    for node in nodes:
        device.put_bytes(node * BLOCK_BYTES + 70, b"\x55")
    namespace = with_data(builder, device)
    assert names_of(await mend(namespace)) >= {"node-damaged"}
    assert differences(await intact(), await contents(namespace)) == []


async def test_state_and_root_lost() -> None:
    builder = small_tree()
    device = builder.build()
    device.put_bytes(STATE_BLOCK * BLOCK_BYTES + 200, b"\x01")
    device.put(builder.nodes[-1], bytes(BLOCK_BYTES))
    namespace = with_data(builder, device)
    assert "state" in names_of(await mend(namespace))
    assert differences(await intact(), await contents(namespace)) == []


async def test_old_leaves_stay_buried() -> None:
    """Leaves that were given back, in free blocks and in the space of a file, are not taken for the tree."""
    builder = small_tree()
    device = builder.build()
    superblock = builder.superblock
    stale = [(key(SUB, Kind.DIRENT, 5), encode_dirents(0, [Dirent(EMPTY, 8, 0, b"zombie")]))]
    in_file = decode_extent(BIG, 0, builder.items[key(BIG, Kind.EXTENT)], 1 << 40).start + 3
    free = GROUP_BLOCKS + 500
    for block in (in_file, free):
        device.put(block, bytes(encode_leaf(block, stale, superblock, owner=TREE_MAIN, seq=0)))
    for leaf in builder.leaves:
        edit(device, superblock, leaf, patch(48, struct.pack("<Q", 7)))
    for node in builder.nodes:
        device.put(node, bytes(BLOCK_BYTES))
    namespace = with_data(builder, device)
    before = await contents(with_data(builder, builder.build()))
    await mend(namespace)
    found = await contents(namespace)
    assert b"zombie" not in found[SUB].names
    before[BIG] = found[BIG]  # its data is that leaf
    assert differences(before, found) == []


async def test_of_two_leaves_with_the_same_keys_the_newer_counts() -> None:
    builder = small_tree()
    device = builder.build()
    superblock = builder.superblock
    block = builder.take_blocks(1)
    items = list(leaf_items(device.get(builder.leaves[2])))
    stale = encode_leaf(block, items[:-1], superblock, owner=TREE_MAIN, seq=3)
    device.put(block, bytes(stale))
    edit(device, superblock, builder.leaves[2], patch(48, struct.pack("<Q", 4)))
    bits = fixed_bits(0, superblock) | builder.used[0]
    for number in builder.leaves + builder.nodes:
        bits |= 1 << number
    device.put(bitmap_block(0), bytes(encode_bitmap(0, bits, superblock)))
    device.put(builder.nodes[-1], bytes(BLOCK_BYTES))
    namespace = with_data(builder, device)
    await mend(namespace)
    assert differences(await intact(), await contents(namespace)) == []


async def test_inner_nodes_that_lead_astray() -> None:
    """A loop, a node outside, one of another level, wrong keys: with all checksums right."""
    for child in (None, 5, bitmap_block(1), SUPERBLOCK_COPY, 10**9):
        builder = small_tree()
        device = builder.build()
        place = builder.nodes[-1] if child is None else child
        edit(device, builder.superblock, builder.nodes[0], patch(80, struct.pack("<Q", place)))
        namespace = with_data(builder, device)
        found = names_of(await mend(namespace))
        assert found & {"node-shared", "node-forbidden"}
        assert differences(await intact(), await contents(namespace)) == []


async def test_a_leaf_with_keys_of_another() -> None:
    """node-keys: its items are sound, and come to their place."""
    builder = small_tree()
    device = builder.build()
    copy = builder.build()
    one, other = builder.leaves[2], builder.leaves[3]
    for place, source in ((one, other), (other, one)):
        items = list(leaf_items(copy.get(source)))
        leaf = encode_leaf(place, items, builder.superblock, owner=TREE_MAIN)
        device.put(place, bytes(leaf))
    namespace = with_data(builder, device)
    assert "node-keys" in names_of(await mend(namespace))
    assert differences(await intact(), await contents(namespace)) == []


async def test_an_empty_leaf_and_a_node_for_a_leaf() -> None:
    for block_of, name in ((-1, "node-empty"), (3, "node-level")):
        builder = small_tree()
        device = builder.build()
        block = builder.leaves[block_of]
        node = (
            encode_leaf(block, [], builder.superblock, owner=TREE_MAIN)
            if name == "node-empty"
            else encode_internal(block, 1, [((0, 0), 9000)], builder.superblock, owner=TREE_MAIN)
        )
        device.put(block, bytes(node))
        assert name in names_of(await mend(with_data(builder, device)))


async def test_a_leaf_that_cannot_be_read() -> None:
    builder = small_tree()
    device = builder.build()
    bad = builder.leaves[3]
    namespace = with_data(builder, device)

    async def unreadable(kind: str, block: int, count: int) -> None:
        if kind == "read" and block <= bad < block + count:
            from tests.support.ram import InjectedError

            raise InjectedError(f"block {bad}: unrecovered read error")

    namespace.before = unreadable
    outcome = await repair(namespace.device(), everything)
    assert "node-unreadable" in names_of(outcome)
    assert outcome.left == []


# --- superblocks, journal, state, bitmaps ------------------------------------------------------------------


async def test_superblocks() -> None:
    builder = small_tree()
    for place in superblock_places(builder.superblock.block_count):
        for name in ("superblock-damaged", "superblock-differs"):
            device = builder.build()
            if name == "superblock-damaged":
                device.put_bytes(place * BLOCK_BYTES + 300, b"\xff")
            else:
                other = replace(builder.superblock, label=b"another")
                device.put(place, bytes(other.encode(place)))
            good = builder.superblock.encode(place)
            namespace = with_data(builder, device)
            assert names_of(await mend(namespace)) == {name}
            assert namespace.blocks[place] == good


async def test_superblock_from_a_copy_by_option() -> None:
    builder = small_tree()
    device = builder.build()
    for place in (SUPERBLOCK, builder.superblock.block_count - 1):
        device.put(place, bytes(BLOCK_BYTES))
    namespace = with_data(builder, device)
    await repair(namespace.device(), everything, SUPERBLOCK_COPY)
    assert (await check(namespace.device())).findings.lines() == []


async def test_journal() -> None:
    for places in ((JOURNAL_SUPER_A,), (JOURNAL_SUPER_B,), (JOURNAL_SUPER_A, JOURNAL_SUPER_B)):
        builder = small_tree()
        device = builder.build()
        for place in places:
            device.put(place, bytes(BLOCK_BYTES))
        namespace = with_data(builder, device)
        await mend(namespace)
        assert differences(await intact(), await contents(namespace)) == []


async def test_bitmaps_and_counters() -> None:
    def leak(builder: Builder, device: RamDevice) -> None:
        bits = fixed_bits(1, builder.superblock) | 0b111 << 100
        device.put(bitmap_block(1), bytes(encode_bitmap(1, bits, builder.superblock)))

    def missing(builder: Builder, device: RamDevice) -> None:
        bits = fixed_bits(0, builder.superblock)
        device.put(bitmap_block(0), bytes(encode_bitmap(0, bits, builder.superblock)))

    def zeroed(builder: Builder, device: RamDevice) -> None:
        device.put(bitmap_block(0), bytes(BLOCK_BYTES))

    def header(offset: int, data: bytes) -> Callable[[Builder, RamDevice], None]:
        return lambda builder, device: edit(
            device, builder.superblock, bitmap_block(1), patch(offset, data)
        )

    def counter(**changes: int) -> Callable[[Builder, RamDevice], None]:
        return lambda builder, device: builder.write_state(device, **changes)

    for name, break_it in (
        ("bitmap-leak", leak),
        ("bitmap-missing", missing),
        ("bitmap-missing", zeroed),
        ("bitmap-count", header(56, b"\7\0")),
        ("bitmap-hint", header(58, b"\7\0")),
        ("bitmap-damaged", header(40, b"\2")),
        ("bitmap-damaged", header(4, b"XXXX")),
        ("state-inodes", counter(inode_count=6)),
        ("state-next", counter(next_inode=18)),
        ("state-free", counter(free_blocks=5)),
    ):
        builder = small_tree()
        device = builder.build()
        break_it(builder, device)
        namespace = with_data(builder, device)
        assert name in names_of(await mend(namespace))
        assert differences(await intact(), await contents(namespace)) == []


async def test_recorded_errors_are_forgotten() -> None:
    builder = small_tree()
    device = builder.build()
    assert builder.state is not None
    builder.state.last_error = ErrorRecord(1, 77, 5, 1, b"broke")
    builder.write_state(device, flags=StateFlag.CLEAN | StateFlag.ERRORS)
    assert names_of(await mend(with_data(builder, device))) == {"error-recorded"}


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
