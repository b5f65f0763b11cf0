"""One test an invariant: break it, and demand the finding by its name, and no other."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from driver import crc32c
from mkfs.check.findings import SHOWN_PER_NAME, Findings
from mkfs.check.load import Unusable
from mkfs.check.run import Report, check
from mkfs.check.space import Space, runs
from mkfs.nodes import encode_internal, encode_leaf
from nvmefs.device import Device
from nvmefs.hashing import name_hash
from nvmefs.items import (
    EXTENT_UNWRITTEN,
    INODE_INLINE,
    OVERFLOWED,
    Dirent,
    InodeRecord,
    Xattr,
    encode_dirents,
    encode_parents,
    encode_xattrs,
)
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    JOURNAL_START,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
    ROOT_INODE,
    STATE_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    TREE_MAIN,
    ErrorRecord,
    Kind,
    RecordHeader,
    StateFlag,
    bitmap_block,
    encode_bitmap,
    fixed_bits,
    key,
)
from tests.mkfs.builder import Builder, edit, small_tree
from tests.mkfs.ramdevice import RamDevice

SUB, DEEPER, BIG, SMALL, EMPTY, LINK, VALUE = 16, 17, 18, 19, 20, 21, 22


async def run(device: RamDevice, superblock_at: int | None = None) -> Report:
    before = dict(device.blocks)
    report = await check(cast(Device, device), superblock_at)
    assert device.blocks == before, "a check has changed something"
    return report


async def names_found(device: RamDevice) -> set[str]:
    return set((await run(device)).findings.counts)


async def expect(device: RamDevice, *names: str) -> Report:
    report = await run(device)
    assert set(report.findings.counts) == set(names), report.findings.lines()
    return report


async def test_small_tree_is_clean() -> None:
    builder = small_tree()
    report = await expect(builder.build())
    assert report.findings.remarks == []
    assert (report.inodes, report.names) == (7, 7)
    assert builder.state is not None
    assert builder.state.roots[0].level >= 2, "the tests need a tree of several levels"


async def test_bitmap_never_written_is_fresh() -> None:
    builder = small_tree()
    device = builder.build()
    device.put(bitmap_block(2), bytes(BLOCK_BYTES))
    await expect(device)


# --- what single items and records say ---------------------------------------------------------------

Break = Callable[[Builder], Any]


def set_record(number: int, **changes: int) -> Break:
    def change(builder: Builder) -> None:
        for name, value in changes.items():
            setattr(builder.records[number], name, value)

    return change


def set_item(kind: Kind, number: int, offset: int, value: bytes) -> Break:
    def change(builder: Builder) -> None:
        builder.items[key(number, kind, offset)] = value

    return change


def drop_items(number: int, *kinds: Kind) -> Break:
    def change(builder: Builder) -> None:
        for place in list(builder.items):
            if place[0] == number and place[1] >> 56 in kinds:
                del builder.items[place]

    return change


def drop_record(number: int) -> Break:
    def change(builder: Builder) -> None:
        del builder.records[number]

    return change


def rename_dirent(builder: Builder) -> None:
    """The name stands under the hash of another."""
    builder.items[builder.dirent_key(SUB, b"other")] = builder.items.pop(
        builder.dirent_key(SUB, b"empty")
    )


def misplace_parent(builder: Builder) -> None:
    builder.items[builder.parent_key(EMPTY, SUB, b"other")] = builder.items.pop(
        builder.parent_key(EMPTY, SUB, b"empty")
    )


def misplace_xattr(builder: Builder) -> None:
    seed = builder.superblock.hash_seed
    value = builder.items.pop(key(BIG, Kind.XATTR, name_hash(seed, b"user.short")))
    builder.items[key(BIG, Kind.XATTR, name_hash(seed, b"user.short") + 1)] = value


def name_twice(builder: Builder) -> None:
    entries = [Dirent(EMPTY, 8, index, b"empty") for index in (0, 1)]
    builder.items[builder.dirent_key(SUB, b"empty")] = encode_dirents(0, entries)
    builder.records[SUB].entries += 1
    builder.records[EMPTY].nlink = 2


def parent_twice(builder: Builder) -> None:
    place = builder.parent_key(EMPTY, SUB, b"empty")
    builder.items[place] = encode_parents(0, [(SUB, b"empty")] * 2)


def xattr_twice(builder: Builder) -> None:
    place = key(BIG, Kind.XATTR, name_hash(builder.superblock.hash_seed, b"user.short"))
    builder.items[place] = encode_xattrs(0, [Xattr(b"user.short", b"", 0)] * 2)


def zero_in_attribute_name(builder: Builder) -> None:
    name = b"user.a\0b"
    place = key(BIG, Kind.XATTR, name_hash(builder.superblock.hash_seed, name))
    builder.items[place] = encode_xattrs(0, [Xattr(name, b"", 0)])


def share_cookie(builder: Builder) -> None:
    """A second name in the same item: its hash is wrong as well, which is told too."""
    entries = [Dirent(EMPTY, 8, 0, b"empty"), Dirent(EMPTY, 8, 0, b"more")]
    builder.items[builder.dirent_key(SUB, b"empty")] = encode_dirents(0, entries)


def wrong_type(builder: Builder) -> None:
    entry = Dirent(EMPTY, stat.S_IFIFO >> 12, 0, b"empty")
    builder.items[builder.dirent_key(SUB, b"empty")] = encode_dirents(0, [entry])


def dangling(builder: Builder) -> None:
    entry = Dirent(9, 8, 0, b"ghost")
    builder.items[builder.dirent_key(SUB, b"ghost")] = encode_dirents(0, [entry])
    builder.records[SUB].entries += 1


def no_back_reference(builder: Builder) -> None:
    del builder.items[builder.parent_key(BIG, SUB, b"second name of big")]


def stale_back_reference(builder: Builder) -> None:
    place = builder.parent_key(BIG, SUB, b"gone")
    builder.items[place] = encode_parents(0, [(SUB, b"gone")])


def second_name_of_directory(builder: Builder) -> None:
    builder.link(ROOT_INODE, b"again", DEEPER)
    builder.records[ROOT_INODE].nlink += 1


def cycle(builder: Builder) -> None:
    """sub moves into sub/deeper: both lead to each other, nothing leads to them."""
    del builder.items[builder.dirent_key(ROOT_INODE, b"sub")]
    del builder.items[builder.parent_key(SUB, ROOT_INODE, b"sub")]
    builder.records[ROOT_INODE].entries -= 1
    builder.records[ROOT_INODE].nlink -= 1
    builder.link(DEEPER, b"sub", SUB)
    builder.records[DEEPER].nlink += 1
    builder.records[SUB].parent = DEEPER


def name_of_root(builder: Builder) -> None:
    builder.link(SUB, b"up", ROOT_INODE)
    builder.records[SUB].nlink += 1


def unnamed_file(builder: Builder) -> None:
    builder.records[builder.take_number()] = InodeRecord(stat.S_IFREG, 1, 0, 0)


def unlisted_orphan(builder: Builder) -> None:
    builder.records[builder.take_number()] = InodeRecord(stat.S_IFREG, 0, 0, 0)


def listed_orphan(builder: Builder) -> None:
    number = builder.take_number()
    builder.records[number] = InodeRecord(stat.S_IFREG, 0, 0, 0)
    builder.orphan(number)


def overlap(builder: Builder) -> None:
    builder.extent(BIG, 6, builder.take_blocks(1), 1)
    builder.records[BIG].blocks += 1


def extent_over_bitmap(builder: Builder) -> None:
    builder.extent(BIG, 100, GROUP_BLOCKS, 1)
    builder.records[BIG].blocks += 1


def extent_over_journal(builder: Builder) -> None:
    builder.extent(BIG, 100, JOURNAL_START + 5, 1)
    builder.records[BIG].blocks += 1


def extent_over_two_groups(builder: Builder) -> None:
    builder.extent(BIG, 100, 2 * GROUP_BLOCKS - 1, 3)
    builder.records[BIG].blocks += 3


def shared_by_files(builder: Builder) -> None:
    start = builder.take_blocks(3)
    for number in (BIG, EMPTY):
        builder.extent(number, 100, start, 3)
        builder.records[number].blocks += 3
        builder.records[number].size_bytes = 103 * BLOCK_BYTES


def shared_value(builder: Builder) -> None:
    place = key(EMPTY, Kind.XATTR, name_hash(builder.superblock.hash_seed, b"user.x"))
    builder.items[place] = encode_xattrs(0, [Xattr(b"user.x", None, 5000, VALUE)])


def unreferenced_value(builder: Builder) -> None:
    builder.inline(builder.take_number(), b"x")


def hole_in_pieces(builder: Builder) -> None:
    builder.items[key(LINK, Kind.INLINE, 5)] = builder.items.pop(key(LINK, Kind.INLINE, 1))


def data_behind_the_end(builder: Builder) -> None:
    builder.extent(BIG, 1000, builder.take_blocks(4), 4)
    builder.records[BIG].blocks += 4


IN_ITEMS: list[tuple[str, Break]] = [
    ("item-kind", set_item(cast(Kind, 99), SUB, 0, b"")),
    ("item-place", set_item(Kind.INLINE, 0, 3, b"x")),
    ("item-place", set_item(Kind.ORPHAN, SUB, 3, b"")),
    ("item-value", set_item(Kind.INLINE, EMPTY, 0, b"")),
    ("item-value", set_item(Kind.INODE, EMPTY, 1, bytes(152))),
    ("inode-missing", lambda builder: builder.extent(9, 0, builder.take_blocks(1), 1)),
    ("inode-blocks", set_record(BIG, blocks=8)),
    ("inode-size", set_record(SMALL, size_bytes=12)),
    ("inline-pieces", hole_in_pieces),
    ("inline-flag", set_record(SMALL, flags=0)),
    ("inode-type", set_record(SUB, size_bytes=4096)),
    ("inode-type", set_record(EMPTY, parent=SUB)),
    ("inode-type", set_record(EMPTY, entries=1)),
    ("directory-entries", set_record(SUB, entries=5)),
    ("directory-parent", set_record(DEEPER, parent=ROOT_INODE)),
    ("link-count", set_record(BIG, nlink=3)),
    ("link-count", set_record(SUB, nlink=2)),
    ("link-count", set_record(ROOT_INODE, nlink=2)),
    ("link-count", set_record(EMPTY, nlink=0)),
    ("root", set_record(ROOT_INODE, parent=SUB)),
    ("root-name", name_of_root),
    ("dirent-type", wrong_type),
    ("dirent-dangling", dangling),
    ("parent-hash", misplace_parent),
    ("parent-twice", parent_twice),
    ("parent-missing", no_back_reference),
    ("parent-stale", stale_back_reference),
    ("xattr-hash", misplace_xattr),
    ("xattr-twice", xattr_twice),
    ("item-value", zero_in_attribute_name),
    ("xattr-missing", drop_items(VALUE, Kind.INLINE)),
    ("xattr-size", set_item(Kind.INLINE, VALUE, 5, b"short")),
    ("xattr-shared", shared_value),
    ("xattr-unreferenced", unreferenced_value),
    ("list-empty", set_item(Kind.DIRENT, SUB, 77, encode_dirents(0, []))),
    ("directory-links", second_name_of_directory),
    ("directory-cycle", cycle),
    ("inode-unreferenced", unnamed_file),
    ("orphan-unlisted", unlisted_orphan),
    ("orphan-left", listed_orphan),
    ("orphan-dangling", lambda builder: builder.orphan(9)),
    ("extent-overlap", overlap),
    ("extent-forbidden", extent_over_bitmap),
    ("extent-forbidden", extent_over_journal),
    ("extent-forbidden", extent_over_two_groups),
    ("extent-behind", data_behind_the_end),
    ("block-shared", shared_by_files),
    ("dirent-hash", rename_dirent),
]

# What cannot be broken without breaking more.
ALSO = {
    "directory-links": {"directory-parent"},
    "parent-twice": {"parent-missing", "parent-stale"},
    "inode-type": set(),
    "inline-pieces": set(),
}


@pytest.mark.parametrize(
    ("name", "break_it"), IN_ITEMS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(IN_ITEMS)]
)
async def test_items(name: str, break_it: Break) -> None:
    builder = small_tree()
    break_it(builder)
    found = await names_found(builder.build())
    assert name in found
    assert found <= {name} | ALSO.get(name, set())


async def test_record_lost() -> None:
    builder = small_tree()
    drop_record(EMPTY)(builder)
    await expect(builder.build(), "dirent-dangling", "inode-missing")


async def test_root_lost() -> None:
    builder = Builder()
    builder.file(ROOT_INODE, b"x")
    del builder.records[ROOT_INODE]
    assert {"root", "inode-missing"} <= await names_found(builder.build())


async def test_dirent_twice_and_cookie() -> None:
    for break_it, name in ((name_twice, "dirent-twice"), (share_cookie, "dirent-index")):
        builder = small_tree()
        break_it(builder)
        assert name in await names_found(builder.build())


async def test_overflowed_name_is_found_under_the_next_hash() -> None:
    builder = small_tree()
    here = builder.dirent_key(SUB, b"empty")
    entry = builder.items[here]
    builder.items[here] = encode_dirents(OVERFLOWED, [])
    builder.items[(here[0], here[1] + 1)] = entry
    await expect(builder.build())


async def test_symlink_without_target() -> None:
    builder = small_tree()
    drop_items(LINK, Kind.INLINE)(builder)
    set_record(LINK, flags=0)(builder)
    await expect(builder.build(), "inode-type")


async def test_inline_and_extents() -> None:
    builder = small_tree()
    set_record(BIG, flags=INODE_INLINE, size_bytes=0)(builder)
    await expect(builder.build(), "inline-flag")


async def test_double_use_names_both_owners() -> None:
    builder = small_tree()
    shared_by_files(builder)
    report = await expect(builder.build(), "block-shared")
    assert f"inode {BIG} at" in report.findings.lines()[0]
    assert f"inode {EMPTY} at" in report.findings.lines()[0]


async def test_names_are_told() -> None:
    builder = small_tree()
    dangling(builder)
    no_back_reference(builder)
    lines = "\n".join((await run(builder.build())).findings.lines())
    assert "b'ghost'" in lines
    assert "b'second name of big' in directory 16" in lines


async def test_extents_beyond_the_end_may_be() -> None:
    builder = small_tree()
    start = builder.take_blocks(4)
    builder.extent(BIG, 1000, start, 4, EXTENT_UNWRITTEN)
    builder.records[BIG].blocks += 4
    await expect(builder.build())
    builder.extent(BIG, 1000, start, 4)  # but what is written would be seen should the file grow
    await expect(builder.build(), "extent-behind")
    builder.flags = StateFlag(0)
    builder.orphan(BIG)  # being truncated
    await expect(builder.build())


async def test_orphans_after_a_crash_may_be() -> None:
    builder = small_tree()
    builder.flags = StateFlag(0)
    listed_orphan(builder)
    builder.orphan(BIG)
    report = await expect(builder.build())
    assert any("1 unlinked files and 1 truncations" in line for line in report.findings.remarks)


# --- nodes --------------------------------------------------------------------------------------------


def patch(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(block: bytearray) -> None:
        block[offset : offset + len(data)] = data

    return change


NODE_FAULTS: list[tuple[str, int, bytes]] = [
    ("node-damaged", 4, b"XXXX"),  # magic
    ("node-damaged", 10, b"\x02"),  # version
    ("node-damaged", 8, b"\x05\x00"),  # type: a bitmap
    ("node-damaged", 16, bytes(16)),  # uuid
    ("node-damaged", 32, b"\x01"),  # its own address
    ("node-damaged", 56, b"\xff\xff"),  # number of items
    ("node-damaged", 58, b"\x00\x00"),  # heap
    ("node-damaged", 64 + 16, b"\xff\xff"),  # where the first value stands
    ("node-owner", 40, b"\x02"),
]


@pytest.mark.parametrize(("name", "offset", "data"), NODE_FAULTS)
async def test_leaf(name: str, offset: int, data: bytes) -> None:
    builder = small_tree()
    device = builder.build()
    edit(device, builder.superblock, builder.leaves[3], patch(offset, data))
    report = await run(device)
    assert name in report.findings.counts
    assert set(report.findings.counts) <= {name}
    assert any("could not be read" in line for line in report.findings.remarks)


async def test_leaf_checksum() -> None:
    builder = small_tree()
    device = builder.build()
    device.put_bytes(builder.leaves[3] * BLOCK_BYTES + 3000, b"\x01")
    report = await expect(device, "node-damaged")
    assert "checksum" in report.findings.lines()[0]


async def test_leaf_unreadable() -> None:
    builder = small_tree()
    device = builder.build()
    device.unreadable.add(builder.leaves[3])
    await expect(device, "node-unreadable")


async def test_node_in_place_of_a_leaf() -> None:
    builder = small_tree()
    device = builder.build()
    block = builder.leaves[3]
    node = encode_internal(block, 1, [((0, 0), 9000)], builder.superblock, owner=TREE_MAIN)
    device.put(block, bytes(node))
    await expect(device, "node-level")


async def test_leaf_with_keys_of_another() -> None:
    builder = small_tree()
    device = builder.build()
    block = builder.leaves[3]
    items = [((10**6, 1 << 56), b"")]
    leaf = encode_leaf(block, items, builder.superblock, owner=TREE_MAIN)
    device.put(block, bytes(leaf))
    await expect(device, "node-keys")


async def test_leaf_empty() -> None:
    builder = small_tree()
    device = builder.build()
    block = builder.leaves[-1]
    device.put(block, bytes(encode_leaf(block, [], builder.superblock, owner=TREE_MAIN)))
    assert "node-empty" in await names_found(device)


async def test_node_with_a_loop() -> None:
    builder = small_tree()
    device = builder.build()
    root = builder.nodes[-1]
    edit(device, builder.superblock, builder.nodes[0], patch(64 + 16, struct.pack("<Q", root)))
    await expect(device, "node-shared")


async def test_node_outside() -> None:
    for place in (5, bitmap_block(1), SUPERBLOCK_COPY, 10**9):
        builder = small_tree()
        device = builder.build()
        edit(device, builder.superblock, builder.nodes[0], patch(64 + 16, struct.pack("<Q", place)))
        await expect(device, "node-forbidden")


async def test_node_first_key() -> None:
    builder = small_tree()
    device = builder.build()
    block = builder.nodes[1]
    children = [((5, 0), builder.leaves[0])]
    node = encode_internal(block, 1, children, builder.superblock, owner=TREE_MAIN)
    device.put(block, bytes(node))
    await expect(device, "node-keys")


# --- bitmaps, state, journal, superblock ---------------------------------------------------------------


async def test_bitmap_leak_and_missing() -> None:
    builder = small_tree()
    device = builder.build()
    bits = fixed_bits(1, builder.superblock) | 0b111 << 100
    device.put(bitmap_block(1), bytes(encode_bitmap(1, bits, builder.superblock)))
    report = await expect(device, "bitmap-leak")
    first = GROUP_BLOCKS + 100
    assert report.findings.lines() == [
        f"bitmap-leak: group 1: blocks {first}-{first + 2} marked used, belonging to nothing"
    ]
    device = builder.build()
    bits = fixed_bits(0, builder.superblock)
    device.put(bitmap_block(0), bytes(encode_bitmap(0, bits, builder.superblock)))
    await expect(device, "bitmap-missing")


async def test_bitmap_zeroed_though_used() -> None:
    builder = small_tree()
    device = builder.build()
    device.put(bitmap_block(0), bytes(BLOCK_BYTES))
    await expect(device, "bitmap-missing")


@pytest.mark.parametrize(
    ("name", "offset", "data"),
    [
        ("bitmap-count", 56, b"\x07\x00"),
        ("bitmap-hint", 58, b"\x07\x00"),
        ("bitmap-damaged", 40, b"\x02"),
        ("bitmap-damaged", 4, b"XXXX"),
    ],
)
async def test_bitmap_header(name: str, offset: int, data: bytes) -> None:
    builder = small_tree()
    device = builder.build()
    edit(device, builder.superblock, bitmap_block(1), patch(offset, data))
    await expect(device, name)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("state-inodes", "inode_count", 6),
        ("state-next", "next_inode", 18),
        ("state-free", "free_blocks", 5),
    ],
)
async def test_counters(name: str, field: str, value: int) -> None:
    builder = small_tree()
    device = builder.build()
    builder.write_state(device, **{field: value})
    await expect(device, name)


async def test_state_damaged() -> None:
    builder = small_tree()
    device = builder.build()
    device.put_bytes(STATE_BLOCK * BLOCK_BYTES + 200, b"\x01")
    await expect(device, "state")


async def test_error_recorded() -> None:
    builder = small_tree()
    device = builder.build()
    assert builder.state is not None
    builder.state.last_error = ErrorRecord(1, 77, 5, 1, b"broke")
    builder.write_state(device, flags=StateFlag.CLEAN | StateFlag.ERRORS)
    report = await expect(device, "error-recorded")
    assert "block 77: broke" in report.findings.lines()[0]


async def test_journal_superblocks() -> None:
    builder = small_tree()
    device = builder.build()
    device.put(JOURNAL_SUPER_A, bytes(BLOCK_BYTES))
    await expect(device, "journal-superblock")
    builder.write_state(device, flags=0)
    await expect(device)  # it may be torn by a crash
    device.put(JOURNAL_SUPER_B, bytes(BLOCK_BYTES))
    assert "journal" in await names_found(device)


async def test_state_after_replay_is_checked() -> None:
    """On the device the state is wrong; a committed transaction puts it right."""
    builder = small_tree()
    device = builder.build()
    image = device.get(STATE_BLOCK)
    builder.write_state(device, free_blocks=1)
    header = RecordHeader(builder.journal_epoch, 1, 0, 1, 1, [(STATE_BLOCK, crc32c(image))])
    block = bytearray(BLOCK_BYTES)
    header.encode_into(block, JOURNAL_START, builder.superblock)
    device.put(JOURNAL_START, bytes(block))
    device.put(JOURNAL_START + 1, image)
    report = await expect(device)
    assert "1 transactions, 1 blocks" in report.findings.remarks[0]
    device.put_bytes((JOURNAL_START + 1) * BLOCK_BYTES + 9, b"\xff")  # torn: as if never written
    await expect(device, "state-free")


async def test_superblock_damaged() -> None:
    builder = small_tree()
    last = builder.superblock.block_count - 1
    for place in (SUPERBLOCK, SUPERBLOCK_COPY, last):
        device = builder.build()
        device.put_bytes(place * BLOCK_BYTES + 300, b"\xff")
        report = await expect(device, "superblock-damaged")
        assert f"block {place}" in report.findings.lines()[0]


async def test_superblock_differs_and_majority_wins() -> None:
    builder = small_tree()
    device = builder.build()
    other = replace(builder.superblock, label=b"another")
    device.put(SUPERBLOCK, bytes(other.encode(SUPERBLOCK)))
    report = await expect(device, "superblock-differs")
    assert report.source.superblock.label == b"built"
    assert "has another label" in report.findings.lines()[0]


async def test_superblock_chosen_by_option() -> None:
    builder = small_tree()
    device = builder.build()
    for place in (SUPERBLOCK, builder.superblock.block_count - 1):
        device.put(place, bytes(BLOCK_BYTES))
    report = await run(device, SUPERBLOCK_COPY)
    assert report.inodes == 7
    with pytest.raises(Unusable, match="no valid superblock"):
        await run(device, 5)


async def test_no_superblock() -> None:
    with pytest.raises(Unusable, match="none is here"):
        await run(RamDevice(5000))


async def test_device_too_short() -> None:
    device = small_tree().build()
    device.block_count -= 10
    with pytest.raises(Unusable, match="truncated"):
        await run(device)


@pytest.mark.parametrize("name", ["incompat", "ro_compat"])
async def test_unknown_features(name: str) -> None:
    builder = small_tree()
    setattr(builder.superblock, name, 1 << 9)
    with pytest.raises(Unusable, match=rf"{name} feature bits \[9\]"):
        await run(builder.build())


# --- the parts ------------------------------------------------------------------------------------------


def test_findings_are_bounded() -> None:
    findings = Findings()
    for index in range(1000):
        findings.add("some", str(index))
    assert len(findings.kept) == SHOWN_PER_NAME
    assert findings.lines()[-1] == f"some: {1000 - SHOWN_PER_NAME} more of these"


def test_space_tells_what_was_claimed_before() -> None:
    space = Space(Builder().superblock)
    assert space.claim(40000, 10) == []
    assert space.claim(40005, 10) == [(40005, 5)]
    assert space.claim(39999, 3) == [(40000, 2)]
    assert space.claimed_blocks == 16


def test_runs() -> None:
    assert list(runs(0b1100101)) == [(0, 1), (2, 1), (5, 2)]
    assert list(runs(0)) == []
