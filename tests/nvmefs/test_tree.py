"""The tree against a sorted dict, with every invariant asserted; and what it says of broken ones."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmefs.errors import Corrupted, FsError, NoSpace
from nvmefs.layout import MAX_LEVEL, BlockType, Key, Kind, Root
from nvmefs.layout import key as make_key
from nvmefs.tree import Tree
from tests.nvmefs.twins import (
    ROOM_BYTES,
    MemoryStore,
    build_node,
    check_tree,
    empty_tree,
    size_of,
)

FIRST, LAST = (0, 0), (2**64 - 1, 2**64 - 1)
INODES, OFFSETS = 12, 20
KEYS = st.builds(make_key, st.integers(0, INODES), st.sampled_from(Kind), st.integers(0, OFFSETS))
LENGTHS = st.integers(0, 60) | st.integers(0, 1000) | st.just(1000)


def model_range(model: dict[Key, bytes], first: Key, last: Key) -> list[tuple[Key, bytes]]:
    return [(key, model[key]) for key in sorted(model) if first <= key <= last]


class TreeMachine(RuleBasedStateMachine):
    """Random operations on a tree and on a dict; each is atomic, and changes only what it announced."""

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.store = empty_tree()
        self.model: dict[Key, bytes] = {}
        self.images = self.store.images()

    @rule(keys=st.lists(KEYS, min_size=1, max_size=40), length=LENGTHS)
    def put_some(self, keys: list[Key], length: int) -> None:
        for at, key in enumerate(keys):
            value = bytes((at,)) * length
            self.tree.put(self.store, key, value)
            self.model[key] = value

    @rule(
        inode=st.integers(0, INODES), kind=st.sampled_from(Kind), length=LENGTHS, down=st.booleans()
    )
    def put_a_run(self, inode: int, kind: Kind, length: int, down: bool) -> None:
        offsets = range(OFFSETS, -1, -1) if down else range(OFFSETS + 1)
        for offset in offsets:
            key = make_key(inode, kind, offset)
            self.tree.put(self.store, key, b"r" * length)
            self.model[key] = b"r" * length

    @rule(key=KEYS, length=LENGTHS)
    def insert(self, key: Key, length: int) -> None:
        if key in self.model:
            with pytest.raises(FsError) as raised:
                self.tree.insert(self.store, key, b"i" * length)
            assert raised.value.errno == errno.EEXIST
            self.store.roll_back()
        else:
            self.tree.insert(self.store, key, b"i" * length)
            self.model[key] = b"i" * length

    @rule(key=KEYS)
    def delete(self, key: Key) -> None:
        assert self.tree.delete(self.store, key) == (key in self.model)
        self.model.pop(key, None)

    @rule(first=KEYS, last=KEYS, limit=st.integers(0, 200))
    def delete_range(self, first: Key, last: Key, limit: int) -> None:
        expected = model_range(self.model, first, last)[:limit]
        assert self.tree.delete_range(self.store, first, last, limit) == expected
        for key, _ in expected:
            del self.model[key]

    @rule(key=KEYS, length=LENGTHS)
    def roll_back(self, key: Key, length: int) -> None:
        """An operation that failed at its end leaves no trace."""
        self.tree.put(self.store, key, b"z" * length)
        self.tree.delete_range(self.store, FIRST, key, 30)
        self.store.roll_back()
        assert self.store.images() == self.images

    @rule(first=KEYS, last=KEYS)
    def read(self, first: Key, last: Key) -> None:
        assert list(self.tree.scan(self.store, first, last)) == model_range(self.model, first, last)
        assert self.tree.get(self.store, first) == self.model.get(first)
        below = model_range(self.model, FIRST, first)
        assert self.tree.floor(self.store, first) == (below[-1] if below else None)
        assert not self.store.before, "reading announced a change"

    @invariant()
    def same_items_and_no_change_unannounced(self) -> None:
        images = self.store.images()
        changed = {number for number in images if images[number] != self.images.get(number)}
        assert changed <= set(self.store.before)
        self.images = images
        self.store.commit()
        assert check_tree(self.tree, self.store) == sorted(self.model.items())


TreeMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestTreeMachine = TreeMachine.TestCase


# --- large trees -----------------------------------------------------------------------------------


def orders(keys: list[Key], order: str) -> Iterator[Key]:
    if order == "random":
        random.Random(7).shuffle(keys)
    return iter(keys[::-1] if order == "descending" else keys)


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("longest", [12, 160, 1000])
def test_thousands_of_items_come_and_go(order: str, longest: int) -> None:
    count = 600_000 // (longest + 30) if longest < 1000 else 2000
    rng = random.Random(longest)
    keys = [make_key(n // 3, Kind(n % 3 + 1), 0) for n in range(count)]
    tree, store = empty_tree()
    model = {}
    for key in orders(keys, order):
        model[key] = rng.randbytes(rng.randrange(longest + 1))
        tree.put(store, key, model[key])
    assert check_tree(tree, store) == sorted(model.items())
    assert tree.root.level >= 1
    for at, key in enumerate(orders(list(model), order)):
        assert tree.delete(store, key)
        del model[key]
        if at % (count // 8) == 0:
            assert check_tree(tree, store) == sorted(model.items())
    assert check_tree(tree, store) == []
    assert tree.root.level == 0


def test_a_tree_of_three_levels_shrinks_from_either_side() -> None:
    """Freeing the leftmost internal nodes hands their lowest key on, level by level."""
    keys = [make_key(n, Kind.INODE) for n in range(12000)]
    for from_left in (True, False):
        tree, store = empty_tree()
        for key in keys:
            tree.put(store, key, bytes(950))
        assert tree.root.level == 2
        store.commit()
        rest = list(keys)
        while rest:
            gone = rest[:2500] if from_left else rest[-2500:]
            removed = tree.delete_range(store, gone[0], gone[-1], 2500)
            assert [key for key, _ in removed] == gone
            rest = rest[2500:] if from_left else rest[:-2500]
            assert [key for key, _ in check_tree(tree, store)] == rest
        assert tree.root.level == 0


def fill(tree: Tree, store: MemoryStore) -> float:
    used = size_of(check_tree(tree, store))
    leaves = sum(1 for block in store.blocks.values() if block.data[11] == 0)
    return used / leaves / ROOM_BYTES


def test_fill_after_ascending_inserts() -> None:
    """A file that grows fills its leaves; inodes leave room for what comes later."""
    tree, store = empty_tree()
    for inode in (5, 9, 7):  # the last one grows between two others
        for offset in range(3000):
            tree.put(store, make_key(inode, Kind.EXTENT, offset), bytes(12))
    assert fill(tree, store) > 0.95
    tree, store = empty_tree()
    for inode in range(3000):
        tree.put(store, make_key(inode, Kind.INODE), bytes(136))
    assert 0.66 < fill(tree, store) < 0.76


def test_fill_after_random_inserts_and_deletes() -> None:
    rng = random.Random(3)
    tree, store = empty_tree()
    keys = [make_key(rng.randrange(2**40), Kind.DIRENT, rng.randrange(2**50)) for _ in range(8000)]
    for key in keys:
        tree.put(store, key, bytes(rng.randrange(20, 60)))
    assert fill(tree, store) > 0.6
    for key in rng.sample(keys, 6000):
        tree.delete(store, key)
    assert fill(tree, store) > 0.25


# --- cost ------------------------------------------------------------------------------------------


def test_an_operation_reads_one_block_a_level() -> None:
    tree, store = empty_tree()
    for n in range(3000):
        tree.put(store, make_key(n, Kind.INODE), bytes(950))
    assert tree.root.level == 2
    key = make_key(1500, Kind.INODE)
    for call, least in (
        (lambda: tree.get(store, key), 3),
        (lambda: tree.put(store, key, bytes(950)), 3),
        (lambda: tree.delete(store, key), 3),
        (lambda: tree.insert(store, key, bytes(10)), 3),
        (lambda: next(tree.scan(store, key, LAST)), 3),
        (lambda: tree.floor(store, key), 3),
    ):
        store.gets = 0
        call()
        assert store.gets == least


def test_a_scan_reads_leaves_as_it_comes_to_them() -> None:
    tree, store = empty_tree()
    for n in range(3000):
        tree.put(store, make_key(n, Kind.INODE), bytes(950))
    store.gets = 0
    scan = tree.scan(store, FIRST, LAST)
    for _ in range(3):
        next(scan)
    assert store.gets <= 3
    assert sum(1 for _ in scan) == 2997


# --- errors ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=20)
def test_no_space_in_the_midst_of_a_split_is_rolled_back(limit: int, seed: int) -> None:
    rng = random.Random(seed)
    tree, store = empty_tree(limit)
    model: dict[Key, bytes] = {}
    for n in range(100 * limit):
        key, value = make_key(rng.randrange(10**6), Kind.DIRENT, n), bytes(rng.randrange(1001))
        before = (store.images(), tree.root.level, tree.root.block)
        try:
            tree.put(store, key, value)
        except NoSpace:
            store.roll_back()
            assert (store.images(), tree.root.level, tree.root.block) == before
            break
        model[key] = value
        store.commit()
    else:
        pytest.fail("a bounded store never became full")
    assert check_tree(tree, store) == sorted(model.items())


def test_values_too_long_are_an_error_of_the_program() -> None:
    tree, store = empty_tree()
    with pytest.raises(ValueError, match="1001 bytes"):
        tree.put(store, (1, 1), bytes(1001))
    with pytest.raises(ValueError, match="no item"):
        tree.insert(store, LAST, b"")
    assert not store.before


def small_tree() -> tuple[Tree, MemoryStore]:
    """Two levels, three leaves or more."""
    tree, store = empty_tree()
    for n in range(20):
        tree.put(store, make_key(n, Kind.INODE), bytes(900))
    store.commit()
    assert tree.root.level == 1
    return tree, store


def child_of_root(tree: Tree, store: MemoryStore, slot: int) -> int:
    data = store.blocks[tree.root.block].data
    return int(struct.unpack_from("<Q", data, 64 + 24 * slot + 16)[0])


def set_child(tree: Tree, store: MemoryStore, slot: int, child: int) -> None:
    data = store.blocks[tree.root.block].data
    struct.pack_into("<Q", data, 64 + 24 * slot + 16, child)


BREAKS: list[tuple[str, Callable[[Tree, MemoryStore], object]]] = [
    ("level", lambda tree, store: set_child(tree, store, 1, tree.root.block)),
    ("level", lambda tree, store: setattr(tree.root, "level", MAX_LEVEL)),
    ("level", lambda tree, store: setattr(tree.root, "level", 0)),
    ("keys", lambda tree, store: set_child(tree, store, 1, child_of_root(tree, store, 2))),
    ("another tree", lambda tree, store: setattr(tree.root, "id", 2)),
    ("no such block", lambda tree, store: set_child(tree, store, 1, 12345)),
    (
        "empty",
        lambda tree, store: struct.pack_into(
            "<H", store.blocks[child_of_root(tree, store, 1)].data, 56, 0
        ),
    ),
]


@pytest.mark.parametrize(
    ("what", "change"), BREAKS, ids=[f"{n}-{b[0]}" for n, b in enumerate(BREAKS)]
)
def test_a_broken_tree_is_noticed_by_every_operation(
    what: str, change: Callable[[Tree, MemoryStore], object]
) -> None:
    tree, store = small_tree()
    data = store.blocks[tree.root.block].data
    key: Key = struct.unpack_from("<QQ", data, 64 + 24)  # the first in the second leaf
    change(tree, store)
    calls: list[Callable[[], object]] = [
        lambda: tree.get(store, key),
        lambda: tree.floor(store, key),
        lambda: list(tree.scan(store, FIRST, LAST)),
        lambda: tree.put(store, key, b"x"),
        lambda: tree.insert(store, key, b"x"),
        lambda: tree.delete(store, key),
        lambda: tree.delete_range(store, key, LAST, 100),
    ]
    for call in calls:
        with pytest.raises(Corrupted, match=what):
            call()
        store.roll_back()


def test_a_misplaced_neighbour_is_noticed_before_it_is_merged() -> None:
    tree, store = small_tree()
    set_child(tree, store, 0, child_of_root(tree, store, 2))
    data = store.blocks[tree.root.block].data
    first, end = struct.unpack_from("<Q", data, 88)[0], struct.unpack_from("<Q", data, 112)[0]
    with pytest.raises(Corrupted, match="keys"):
        tree.delete_range(store, make_key(first, Kind.INODE), make_key(end - 2, Kind.INODE), 100)


def test_a_full_tree_of_the_highest_level_cannot_grow() -> None:
    """Nobody fills twelve levels; an image may say so, with one node a level."""
    store = MemoryStore()
    number = 101
    for level in range(MAX_LEVEL, 0, -1):
        node = store.new_node(1, level, 1)
        for slot in range(168):
            key = divmod(slot * 200**level, 2**64)
            struct.pack_into("<QQQ", node.data, 64 + 24 * slot, *key, number + 1)
        struct.pack_into("<H", node.data, 56, 168)
        number += 1
    leaf = store.new_node(1, 0, 1)
    tree = Tree(Root(1, 0, leaf.number))
    for n in range(4):
        tree.put(store, (0, n), bytes(900))
    tree.root.level, tree.root.block = MAX_LEVEL, 101
    with pytest.raises(Corrupted, match="levels"):
        tree.put(store, (0, 9), bytes(900))


def test_single_children_left_by_another_program_are_cleared_away() -> None:
    store = MemoryStore()
    top, middle, leaf = (store.new_node(1, level, 1) for level in (2, 1, 0))
    for node, child in ((top, middle), (middle, leaf)):
        struct.pack_into("<QQQ", node.data, 64, 0, 0, child.number)
        struct.pack_into("<H", node.data, 56, 1)
    tree = Tree(Root(1, 2, top.number))
    assert tree.get(store, (1, 1)) is None
    tree.put(store, (1, 1), b"x")
    assert tree.floor(store, (7, 7)) == ((1, 1), b"x")
    assert tree.delete(store, (1, 1))
    assert (tree.root.level, tree.root.block) == (0, leaf.number)
    assert check_tree(tree, store) == []


def test_floor_over_an_empty_tree_and_the_ends() -> None:
    tree, store = empty_tree()
    assert tree.floor(store, (5, 5)) is None
    assert list(tree.scan(store, FIRST, LAST)) == []
    assert list(tree.scan(store, (2, 0), (1, 0))) == []
    assert tree.delete_range(store, FIRST, LAST, 10) == []
    assert tree.delete(store, (1, 1)) is False
    tree.put(store, (5, 5), b"")
    assert tree.floor(store, (5, 4)) is None
    assert tree.floor(store, (5, 5)) == ((5, 5), b"")
    assert store.get(tree.root.block, BlockType.NODE).data[11] == build_node().data[11]
