"""Nodes, superblocks, journal, state and bitmaps are broken; they are repaired, and no file has changed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from mkfs.check.run import check
from mkfs.nodes import encode_internal, encode_leaf
from mkfs.repair.engine import repair
from mkfs.repair.policy import everything
from nvmefs.filesystem import Filesystem, Options
from nvmefs.items import (
    Dirent,
    decode_extent,
    encode_dirents,
)
from nvmefs.layout import (
    BLOCK_BYTES,
    GROUP_BLOCKS,
    JOURNAL_SUPER_A,
    JOURNAL_SUPER_B,
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
from tests.mkfs.repairing import (
    contents,
    intact,
    mend,
    names_of,
    with_data,
)
from tests.mkfs.test_fsck import BIG, EMPTY, SUB, VALUE, patch
from tests.mkfs.test_together import fill
from tests.support.images import fresh
from tests.support.model import differences

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


async def test_a_used_filesystem_without_its_nodes() -> None:
    """Hundreds of files, some removed, leaves split and merged and reused: every one comes back."""
    namespace = await fresh(8192)
    filesystem = await Filesystem.open(namespace.device(), Options())
    await fill(filesystem, 400)
    await filesystem.close()
    expected = await contents(namespace)
    assert len(expected) > 300
    root = filesystem.state.roots[0]
    assert root.level
    namespace.blocks[root.block] = bytes(BLOCK_BYTES)
    namespace.blocks[STATE_BLOCK] = bytes(BLOCK_BYTES)
    await mend(namespace)
    assert differences(expected, await contents(namespace)) == []
