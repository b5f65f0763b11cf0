"""One node: the C functions against lists of items, and the check against bytes of any kind."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmefs._core import ffi, lib
from nvmefs.cache import Block
from nvmefs.layout import Key
from nvmefs.node import children, leaf_items, node_error, node_items, slot_key
from tests.nvmefs import twins
from tests.nvmefs.twins import ROOM_BYTES, TREE_ID, Item, build_node, read_children, read_leaf

KEYS = st.tuples(st.integers(0, 4), st.integers(0, 30) | st.integers(0, 2**64 - 2))
VALUES = st.binary(max_size=40) | st.integers(0, 1000).map(lambda n: b"v" * n)


def seek(key: Key, *, level: int = 0, owner: int = TREE_ID) -> Any:
    cursor = ffi.new("node_cursor *")
    lib.node_seek(cursor, owner, level, *key)
    return cursor


def put(node: Block, key: Key, value: bytes, *, replace: bool = True) -> int:
    return int(lib.node_put(seek(key), node.ptr, value, len(value), replace))


def make_leaf(items: list[Item], number: int = 100) -> Block:
    node = build_node(number=number)
    for key, value in items:
        assert put(node, key, value) == 0
    return node


def make_internal(keys: list[Key], number: int = 100) -> Block:
    node = build_node(level=1, number=number)
    for child, key in enumerate(keys, start=1):
        assert lib.node_add(node.ptr, *key, child) == 0
    return node


def assert_valid(node: Block, items: list[Item]) -> None:
    assert lib.node_check(node.ptr) == 0
    assert twins.is_node(node.data)
    assert read_leaf(node.data) == items
    assert list(leaf_items(node.data)) == items
    assert lib.node_used(node.ptr) == twins.size_of(items)
    assert lib.node_items(node.ptr) == node_items(node.data) == len(items)


# --- one leaf ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("piid"), KEYS, VALUES), max_size=120))
def test_a_leaf_behaves_like_a_dict_of_bounded_size(calls: list[tuple[str, Key, bytes]]) -> None:
    node = build_node()
    model: dict[Key, bytes] = {}
    for call, key, value in calls:
        items = sorted(model.items())
        if call == "d":
            slot = next((i for i, item in enumerate(items) if item[0] == key), None)
            place = lib.node_find(seek(key), node.ptr)
            assert (place >> 32 if place >= 0 else None) == slot
            if slot is not None:
                del model[key]
                assert lib.node_remove(node.ptr, slot, 1) == twins.size_of(list(model.items()))
        else:
            after = model | {key: value}
            if call == "i" and key in model:
                expected = lib.NODE_EXISTS
            elif twins.size_of(list(after.items())) > ROOM_BYTES:
                expected = lib.NODE_FULL
            else:
                expected, model = int(key in model), after
            assert put(node, key, value, replace=call == "p") == expected
        assert_valid(node, sorted(model.items()))


@given(st.dictionaries(KEYS, st.binary(max_size=20), max_size=60), KEYS)
def test_find_and_lower(model: dict[Key, bytes], key: Key) -> None:
    items = sorted(model.items())
    node = make_leaf(items)
    assert lib.node_lower(seek(key), node.ptr) == sum(other < key for other in model)
    place = lib.node_find(seek(key), node.ptr)
    if key not in model:
        assert place == lib.NODE_ABSENT
    else:
        offset, length = place >> 16 & 0xFFFF, place & 0xFFFF
        assert bytes(node.data[offset : offset + length]) == model[key]
        assert items[place >> 32][0] == key


@given(st.dictionaries(KEYS, VALUES, max_size=20), st.integers(0, 21), st.integers(0, 21))
def test_remove_several(model: dict[Key, bytes], slot: int, count: int) -> None:
    node = build_node()
    items = []
    for key, value in model.items():
        if put(node, key, value) == 0:
            items.append((key, value))
    items.sort()
    used = lib.node_remove(node.ptr, slot, count)
    if slot + count > len(items):
        assert used == lib.NODE_MISUSE
    else:
        del items[slot : slot + count]
        assert used == twins.size_of(items)
    assert_valid(node, items)


def test_what_is_removed_is_wiped() -> None:
    node = make_leaf([((1, 1), b"SECRET" * 20), ((1, 2), b"SECRET" * 20), ((1, 3), b"x")])
    lib.node_remove(node.ptr, 0, 1)
    assert put(node, (1, 2), b"") == 1
    assert b"SECRET" not in node.data


def test_values_too_long_and_impossible_keys_are_refused() -> None:
    node = make_leaf([((1, 1), b"x")])
    before = bytes(node.data)
    assert put(node, (1, 2), bytes(1001)) == lib.NODE_MISUSE
    assert put(node, (2**64 - 1, 2**64 - 1), b"") == lib.NODE_MISUSE
    assert lib.node_add(node.ptr, 1, 2, 3) == lib.NODE_MISUSE
    assert lib.node_child(node.ptr, 0) == lib.NODE_MISUSE
    assert lib.node_lower_first(node.ptr, 0, 0) == lib.NODE_MISUSE
    assert bytes(node.data) == before


# --- internal nodes and the descent ----------------------------------------------------------------


@given(st.sets(KEYS, min_size=1, max_size=168), KEYS)
def test_descend_takes_the_child_that_holds_the_key(keys: set[Key], key: Key) -> None:
    ordered = sorted(keys | {(0, 0)})[:168]
    node = make_internal(ordered)
    assert lib.node_check(node.ptr) == 0
    expected = [(other, child) for child, other in enumerate(ordered, start=1)]
    assert read_children(node.data) == children(node.data) == expected
    cursor = seek(key, level=1)
    child = lib.node_descend(cursor, node.ptr)
    assert child == max(number for other, number in expected if other <= key)
    assert cursor.slot == child - 1
    assert cursor.level == 0
    assert (
        (cursor.low_inode, cursor.low_rest) == ordered[child - 1] == slot_key(node.data, child - 1)
    )
    high = ordered[child] if child < len(ordered) else (2**64 - 1, 2**64 - 1)
    assert (cursor.high_inode, cursor.high_rest) == high


def test_children_are_added_and_removed() -> None:
    node = make_internal([(n, 0) for n in range(168)])
    assert lib.node_add(node.ptr, 5, 0, 9) == lib.NODE_EXISTS
    assert lib.node_add(node.ptr, 5, 1, 9) == lib.NODE_FULL
    assert lib.node_remove(node.ptr, 0, 2) == 166 * 24
    assert read_children(node.data)[:2] == [((0, 0), 3), ((3, 0), 4)], "the first key stays"
    assert lib.node_child(node.ptr, 165) == 168
    assert lib.node_child(node.ptr, 166) == lib.NODE_MISUSE
    assert lib.node_add(node.ptr, 5, 1, 0) == lib.NODE_MISUSE
    assert lib.node_add(node.ptr, 5, 1, 2**48) == lib.NODE_MISUSE
    assert lib.node_check(node.ptr) == 0


def test_the_first_key_can_be_lowered_only() -> None:
    node = make_internal([(3, 0), (4, 0)])
    assert lib.node_lower_first(node.ptr, 3, 1) == lib.NODE_MISUSE
    assert lib.node_lower_first(node.ptr, 2, 7) == 0
    assert slot_key(node.data, 0) == (2, 7)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("level", 1, "NODE_WRONG_LEVEL"),
        ("owner", 2, "NODE_WRONG_OWNER"),
        ("low_inode", 2, "NODE_WRONG_KEYS"),
        ("high_inode", 2, "NODE_WRONG_KEYS"),
    ],
)
def test_a_leaf_in_the_wrong_place(field: str, value: int, fault: str) -> None:
    node = make_leaf([((1, 1), b"x"), ((3, 1), b"y")])
    cursor = seek((1, 1))
    setattr(cursor, field, value)
    assert_refused(cursor, node, getattr(lib, fault))


def test_only_the_root_may_be_an_empty_leaf() -> None:
    cursor = seek((1, 1))
    assert lib.node_find(cursor, build_node().ptr) == lib.NODE_ABSENT
    cursor.high_inode = 9
    assert_refused(cursor, build_node(), lib.NODE_EMPTY)


def assert_refused(cursor: Any, leaf: Block, code: int) -> None:
    assert lib.node_find(cursor, leaf.ptr) == code
    assert lib.node_lower(cursor, leaf.ptr) == code
    assert lib.node_arrive(cursor, leaf.ptr) == code
    assert lib.node_put(cursor, leaf.ptr, b"", 0, 1) == code


def test_an_internal_node_in_the_wrong_place() -> None:
    node = make_internal([(2, 0), (4, 0)])
    assert lib.node_descend(seek((5, 0), level=1), node.ptr) == lib.NODE_WRONG_KEYS
    assert lib.node_descend(seek((5, 0), level=2), node.ptr) == lib.NODE_WRONG_LEVEL
    assert lib.node_descend(seek((5, 0)), make_leaf([]).ptr) == lib.NODE_MISUSE
    assert lib.node_find(seek((5, 0), level=1), make_internal([(0, 0)]).ptr) == lib.NODE_MISUSE


# --- two nodes -------------------------------------------------------------------------------------


def fill_leaf(rng: random.Random, longest: int) -> tuple[Block, list[Item], Item]:
    """A leaf, its items, and one more that has no room in it."""
    node = build_node()
    items: list[Item] = []
    while True:
        key = rng.randrange(5), rng.randrange(3) << 56 | rng.randrange(2**40)
        value = rng.randbytes(rng.randrange(longest + 1))
        if put(node, key, value) == lib.NODE_FULL:
            return node, sorted(items), (key, value)
        items.append((key, value))


@given(st.integers(0, 2**32), st.sampled_from((0, 12, 150, 1000)))
def test_split_keeps_all_items(seed: int, longest: int) -> None:
    node, items, (key, value) = fill_leaf(random.Random(seed), longest)
    right = build_node(number=101)
    assert lib.node_split_put(node.ptr, right.ptr, *key, value, len(value)) == 0
    left_items, right_items = read_leaf(node.data), read_leaf(right.data)
    assert_valid(node, left_items)
    assert_valid(right, right_items)
    assert left_items
    assert right_items
    assert left_items + right_items == sorted([*items, (key, value)])


@given(st.integers(0, 2**32), st.integers(500, 1000))
def test_split_to_replace_by_a_longer_value(seed: int, length: int) -> None:
    node, items, _ = fill_leaf(random.Random(seed), 150)
    key = items[seed % len(items)][0]
    right = build_node(number=101)
    assert put(node, key, bytes(length)) == lib.NODE_FULL
    assert lib.node_split_put(node.ptr, right.ptr, *key, bytes(length), length) == 0
    found = read_leaf(node.data) + read_leaf(right.data)
    assert dict(found) == dict(items) | {key: bytes(length)}
    assert [key for key, _ in found] == sorted(key for key, _ in found)


def test_a_split_in_the_midst_halves_the_bytes() -> None:
    items = [((n, 1 << 56), bytes(100 if n < 20 else 20)) for n in range(35)]
    node, right = make_leaf(items), build_node(number=101)
    assert lib.node_split_put(node.ptr, right.ptr, 10, 2 << 56, bytes(900), 900) == 0
    assert abs(lib.node_used(node.ptr) - lib.node_used(right.ptr)) <= 1000


def test_a_growing_file_leaves_full_leaves_behind() -> None:
    """Extents that are appended: at the end of a leaf, and between two other files."""
    for others in ([], [((9, 6 << 56 | n), bytes(12)) for n in range(30)]):
        node = make_leaf(others)
        n = 0
        while put(node, (5, 6 << 56 | n), bytes(12)) == 0:
            n += 1
        right = build_node(number=101)
        assert lib.node_split_put(node.ptr, right.ptr, 5, 6 << 56 | n, bytes(12), 12) == 0
        assert read_leaf(node.data)[-1][0] >= (5, 6 << 56 | n - 1)
        assert read_leaf(node.data)[-1][0] <= (5, 6 << 56 | n)
        assert lib.node_used(node.ptr) + lib.node_used(right.ptr) > ROOM_BYTES


def test_new_inodes_leave_a_quarter_free() -> None:
    node = build_node()
    n = 0
    while put(node, (n, 1 << 56), bytes(136)) == 0:
        n += 1
    right = build_node(number=101)
    assert lib.node_split_put(node.ptr, right.ptr, n, 1 << 56, bytes(136), 136) == 0
    assert ROOM_BYTES * 2 // 3 < lib.node_used(node.ptr) <= ROOM_BYTES * 3 // 4


@given(st.sets(KEYS, min_size=169, max_size=169), st.integers(0, 168))
def test_internal_nodes_split(keys: set[Key], index: int) -> None:
    ordered = sorted(keys)
    new = ordered.pop(index)
    node, right = make_internal(ordered), build_node(level=1, number=101)
    before = read_children(node.data)
    assert lib.node_split_add(node.ptr, right.ptr, *new, 999) == 0
    assert lib.node_check(node.ptr) == lib.node_check(right.ptr) == 0
    after = read_children(node.data) + read_children(right.data)
    assert after == sorted([*before, (new, 999)])


def test_a_split_that_cannot_be_is_refused() -> None:
    node, right = make_leaf([((1, 1), b"x")]), build_node(number=101)
    arguments = (1, 2, b"", 0)
    assert lib.node_split_put(build_node().ptr, right.ptr, *arguments) == lib.NODE_MISUSE
    assert lib.node_split_put(node.ptr, build_node(level=1).ptr, *arguments) == lib.NODE_MISUSE
    assert (
        lib.node_split_put(node.ptr, make_leaf([((5, 5), b"")]).ptr, *arguments) == lib.NODE_MISUSE
    )
    assert lib.node_split_put(node.ptr, right.ptr, 1, 2, bytes(1001), 1001) == lib.NODE_MISUSE
    assert lib.node_split_add(node.ptr, right.ptr, 1, 2, 3) == lib.NODE_MISUSE
    internal = make_internal([(1, 1)])
    assert lib.node_split_add(internal.ptr, right.ptr, 1, 1, 3) == lib.NODE_EXISTS
    assert_valid(node, [((1, 1), b"x")])


@given(st.lists(VALUES, max_size=12), st.lists(VALUES, max_size=12))
def test_merge(first: list[bytes], second: list[bytes]) -> None:
    left, right = build_node(), build_node(number=101)
    left_items = [((1, n), v) for n, v in enumerate(first) if put(left, (1, n), v) == 0]
    right_items = [((2, n), v) for n, v in enumerate(second) if put(right, (2, n), v) == 0]
    lib.node_remove(left.ptr, 0, len(left_items) // 3)  # leaves holes in the heap
    del left_items[: len(left_items) // 3]
    if twins.size_of(left_items + right_items) > ROOM_BYTES:
        assert lib.node_merge(left.ptr, right.ptr) == lib.NODE_FULL
    else:
        assert lib.node_merge(left.ptr, right.ptr) == 0
        left_items += right_items
    assert_valid(left, left_items)
    assert_valid(right, right_items)


def test_merge_of_internal_nodes_and_of_strangers() -> None:
    left, right = make_internal([(1, 0), (2, 0)]), make_internal([(3, 0)], number=101)
    assert lib.node_merge(right.ptr, left.ptr) == lib.NODE_MISUSE, "not in order"
    assert lib.node_merge(left.ptr, left.ptr) == lib.NODE_MISUSE
    assert lib.node_merge(left.ptr, make_leaf([((9, 9), b"")]).ptr) == lib.NODE_MISUSE
    assert lib.node_merge(left.ptr, right.ptr) == 0
    assert read_children(left.data) == [((1, 0), 1), ((2, 0), 2), ((3, 0), 1)]


# --- the check -------------------------------------------------------------------------------------


def patch(node: Block, at: int, form: str, *values: int) -> None:
    struct.pack_into(form, node.data, at, *values)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda node: patch(node, 11, "<B", 13), "NODE_BAD_LEVEL"),
        (lambda node: patch(node, 56, "<H", 169), "NODE_BAD_ITEMS"),
        (lambda node: patch(node, 56, "<H", 0xFFFF), "NODE_BAD_ITEMS"),
        (lambda node: patch(node, 58, "<H", 64 + 47), "NODE_BAD_HEAP"),
        (lambda node: patch(node, 58, "<H", 4097), "NODE_BAD_HEAP"),
        (lambda node: patch(node, 64, "<Q", 4), "NODE_BAD_ORDER"),
        (lambda node: patch(node, 64, "<QQ", 3, 1), "NODE_BAD_ORDER"),
        (lambda node: patch(node, 88, "<QQ", 2**64 - 1, 2**64 - 1), "NODE_BAD_ORDER"),
        (lambda node: patch(node, 80, "<H", 100), "NODE_BAD_VALUE"),
        (lambda node: patch(node, 80, "<H", 4095), "NODE_BAD_VALUE"),
        (lambda node: patch(node, 82, "<H", 1001), "NODE_BAD_VALUE"),
        (lambda node: patch(node, 84, "<I", 1), "NODE_BAD_VALUE"),
        (lambda node: patch(node, 104, "<H", 4096 - 4), "NODE_BAD_OVERLAP"),
    ],
)
def test_each_fault_of_a_leaf(change: Callable[[Block], None], fault: str) -> None:
    node = make_leaf([((1, 1), b"abc"), ((3, 1), b"defg")])
    assert lib.node_check(node.ptr) == 0
    change(node)
    assert lib.node_check(node.ptr) == getattr(lib, fault)
    assert not twins.is_node(node.data)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda node: patch(node, 56, "<H", 0), "NODE_BAD_ITEMS"),
        (lambda node: patch(node, 58, "<H", 4000), "NODE_BAD_HEAP"),
        (lambda node: patch(node, 80, "<Q", 0), "NODE_BAD_CHILD"),
        (lambda node: patch(node, 80, "<Q", 2**48), "NODE_BAD_CHILD"),
    ],
)
def test_each_fault_of_an_internal_node(change: Callable[[Block], None], fault: str) -> None:
    node = make_internal([(1, 1), (3, 1)])
    assert lib.node_check(node.ptr) == 0
    change(node)
    assert lib.node_check(node.ptr) == getattr(lib, fault)
    assert not twins.is_node(node.data)


@given(st.integers(0, 2**32), st.booleans())
def test_the_check_agrees_with_its_twin_on_mutated_nodes(seed: int, internal: bool) -> None:
    rng = random.Random(seed)
    if internal:
        good = make_internal([(n, n) for n in range(rng.randrange(1, 20))])
    else:
        good = make_leaf([((n, n), bytes(rng.randrange(30))) for n in range(rng.randrange(20))])
    for _ in range(40):
        node = build_node()
        node.data[:] = good.data
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice((11, 56, 57, 58, 59, rng.randrange(64, 400)))
            node.data[at] = rng.choice((0, 1, 255, rng.randrange(256), node.data[at] ^ 1))
        assert (lib.node_check(node.ptr) == 0) == twins.is_node(node.data)


def test_every_answer_has_words() -> None:
    codes = {getattr(lib, name) for name in dir(lib) if name.startswith("NODE_")}
    assert len(codes) > 10
    assert len({node_error(code) for code in codes}) == len(codes)
    assert all("unknown" not in node_error(code) for code in codes)
    assert "unknown" in node_error(-99)
