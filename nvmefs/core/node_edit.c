/* Nodes: inserting, replacing, removing, splitting and merging.
 * The contract of each function stands above it; that of all of them in node.h. */
#include <string.h>

#include "node.h"
#include "node_layout.h"

/* --- changing: slots and the heap ------------------------------------------------------------- */

static void set_key(uint8_t *node, uint32_t slot, node_key key)
{
    store64(slot_of(node, slot), key.inode);
    store64(slot_of(node, slot) + 8, key.rest);
}

static void set_value(uint8_t *node, uint32_t slot, uint32_t value, uint32_t length)
{
    uint8_t *p = slot_of(node, slot);
    store16(p + VALUE_AT, value);
    store16(p + LENGTH_AT, length);
    store32(p + ZERO_AT, 0);
}

/* Room for one more slot; its bytes are for the caller to fill. */
static void open_slot(uint8_t *node, uint32_t slot, node_key key)
{
    uint32_t items = items_of(node);
    memmove(slot_of(node, slot + 1), slot_of(node, slot), (items - slot) * SLOT_BYTES);
    store16(node + ITEMS_AT, items + 1);
    set_key(node, slot, key);
}

/* Push the values of a leaf together at the end of the block; the gap is zeroed. */
static void compact(uint8_t *leaf)
{
    uint8_t heap[BLOCK_BYTES];
    uint32_t items = items_of(leaf), end = SLOTS_AT + items * SLOT_BYTES, top = BLOCK_BYTES;
    for (uint32_t i = 0; i < items; i++) {
        uint32_t length = length_of(leaf, i);
        top -= length;
        memcpy(heap + top, leaf + value_of(leaf, i), length);
        set_value(leaf, i, length ? top : BLOCK_BYTES, length);
    }
    memset(leaf + end, 0, top - end);
    memcpy(leaf + top, heap + top, BLOCK_BYTES - top);
    store16(leaf + HEAP_AT, top);
}

/* Copy a value to the heap and point `slot` at it. The caller knows that it fits after compaction.
 * An empty value stands at the block's end, wherever the heap is. */
static void place(uint8_t *leaf, uint32_t slot, const uint8_t *value, uint32_t length)
{
    set_value(leaf, slot, BLOCK_BYTES, 0);
    if (length == 0)
        return;
    if (heap_of(leaf) < SLOTS_AT + items_of(leaf) * SLOT_BYTES + length)
        compact(leaf);
    uint32_t top = heap_of(leaf) - length;
    memcpy(leaf + top, value, length);
    set_value(leaf, slot, top, length);
    store16(leaf + HEAP_AT, top);
}

/* Insert an item before `slot`; false if there is no room. */
static bool insert(uint8_t *leaf, uint32_t slot, node_key key, const uint8_t *value,
                   uint32_t length)
{
    if (node_used(leaf) + SLOT_BYTES + length > ROOM)
        return false;
    if (heap_of(leaf) < SLOTS_AT + (items_of(leaf) + 1) * SLOT_BYTES)
        compact(leaf); /* the slot itself must not run into the heap */
    open_slot(leaf, slot, key);
    place(leaf, slot, value, length);
    return true;
}

/* Give the item at `slot` another value; false if there is no room. */
static bool replace_value(uint8_t *leaf, uint32_t slot, const uint8_t *value, uint32_t length)
{
    uint32_t old = value_of(leaf, slot), old_length = length_of(leaf, slot);
    if (length > old_length) {
        if (node_used(leaf) - old_length + length > ROOM)
            return false;
        memset(leaf + old, 0, old_length);
        place(leaf, slot, value, length);
        return true;
    }
    memcpy(leaf + old, value, length);
    memset(leaf + old + length, 0, old_length - length);
    set_value(leaf, slot, length ? old : BLOCK_BYTES, length);
    return true;
}

/* --- changing: items -------------------------------------------------------------------------- */

/* Insert an item at the cursor's key, or replace its value if `replace`. 0 inserted, 1 replaced,
 * NODE_FULL, NODE_EXISTS, NODE_MISUSE, or a fault. */
int node_put(node_cursor *at, uint8_t *leaf, const uint8_t *value, uint32_t length, int replace)
{
    node_key key = {at->inode, at->rest};
    if (length > MAX_VALUE || equal(key, UNBOUNDED))
        return NODE_MISUSE;
    int slot = node_lower(at, leaf);
    if (slot < 0)
        return slot;
    if (!holds(leaf, at->slot, key))
        return insert(leaf, at->slot, key, value, length) ? 0 : NODE_FULL;
    if (!replace)
        return NODE_EXISTS;
    return replace_value(leaf, at->slot, value, length) ? 1 : NODE_FULL;
}

/* Add a child to an internal node: 0, NODE_FULL, NODE_EXISTS or NODE_MISUSE. */
int node_add(uint8_t *node, uint64_t inode, uint64_t rest, uint64_t child)
{
    node_key key = {inode, rest};
    if (is_leaf(node) || child == 0 || child >= MAX_BLOCK || equal(key, UNBOUNDED))
        return NODE_MISUSE;
    uint32_t slot = search(node, key);
    if (holds(node, slot, key))
        return NODE_EXISTS;
    if (items_of(node) == MAX_ITEMS)
        return NODE_FULL;
    open_slot(node, slot, key);
    store64(slot_of(node, slot) + CHILD_AT, child);
    return 0;
}

/* Remove `count` items from `slot` on: the bytes still in use, or NODE_MISUSE. In an internal node
 * the one that comes to be first takes over the first key, as that is the node's lower bound. */
int node_remove(uint8_t *node, uint32_t slot, uint32_t count)
{
    uint32_t items = items_of(node), heap = BLOCK_BYTES, used = 0;
    if (slot > items || count > items - slot)
        return NODE_MISUSE;
    node_key first = key_at(node, 0);
    for (uint32_t i = slot; is_leaf(node) && i < slot + count; i++)
        memset(node + value_of(node, i), 0, length_of(node, i));
    uint32_t left = items - count;
    memmove(slot_of(node, slot), slot_of(node, slot + count), (left - slot) * SLOT_BYTES);
    memset(slot_of(node, left), 0, count * SLOT_BYTES);
    store16(node + ITEMS_AT, left);
    if (!is_leaf(node)) {
        if (slot == 0 && count > 0 && left > 0)
            set_key(node, 0, first);
        return (int)(left * SLOT_BYTES);
    }
    for (uint32_t i = 0; i < left; i++) {
        used += size_of(node, i);
        if (value_of(node, i) < heap)
            heap = value_of(node, i);
    }
    store16(node + HEAP_AT, heap);
    return (int)used;
}

/* Lower the first key of an internal node, after its lower bound went down: 0 or NODE_MISUSE. */
int node_lower_first(uint8_t *node, uint64_t inode, uint64_t rest)
{
    node_key key = {inode, rest};
    if (is_leaf(node) || items_of(node) == 0 || less(key_at(node, 0), key))
        return NODE_MISUSE;
    set_key(node, 0, key);
    return 0;
}

/* --- two nodes -------------------------------------------------------------------------------- */

/* Append items [slot, end) of `from` to `to`, which has room for them. */
static void append(uint8_t *to, const uint8_t *from, uint32_t slot, uint32_t end)
{
    for (uint32_t i = slot; i < end; i++) {
        uint32_t last = items_of(to);
        if (is_leaf(from)) {
            insert(to, last, key_at(from, i), from + value_of(from, i), length_of(from, i));
        } else {
            open_slot(to, last, key_at(from, i));
            memcpy(slot_of(to, last) + CHILD_AT, slot_at(from, i) + CHILD_AT, 8);
        }
    }
}

/* Append all items of `right`, which stays as it is: 0, NODE_FULL, or NODE_MISUSE if the nodes are
 * not neighbours of one level. */
int node_merge(uint8_t *left, const uint8_t *right)
{
    uint32_t items = items_of(left);
    if (left == right || left[LEVEL_AT] != right[LEVEL_AT])
        return NODE_MISUSE;
    if (items > 0 && items_of(right) > 0 && !less(key_at(left, items - 1), key_at(right, 0)))
        return NODE_MISUSE;
    if (node_used(left) + node_used(right) > ROOM)
        return NODE_FULL;
    append(left, right, 0, items_of(right));
    return 0;
}

static inline bool same_run(node_key a, node_key b)
{
    return a.inode == b.inode && a.rest >> 56 == b.rest >> 56;
}

/* The cut for an item that goes behind all others. A run that goes on (a file that grows) leaves a
 * full leaf behind. Otherwise inodes are being made, whose extents and names come later, in
 * between: a quarter is left free for them (an unpacked source tree then fills its leaves to 75 %,
 * instead of 58 %). */
static uint32_t cut_at_end(const uint8_t *node, node_key key)
{
    uint32_t kept = items_of(node), used = node_used(node);
    if (!is_leaf(node) || kept == 0 || same_run(key_at(node, kept - 1), key))
        return kept;
    while (kept > 1 && used > ROOM / 4 * 3)
        used -= size_of(node, --kept);
    return kept;
}

/* How many items the left node keeps, of those in `node` and a new one of `size` bytes before
 * `slot`.
 *
 * Halves by bytes, but for keys that come in ascending order: at the end of the node, or at the end
 * of a run of one inode and kind (a file that grows, between two others), the cut is made where the
 * new item goes, so that what lies behind it stays full. */
static uint32_t choose_cut(const uint8_t *node, uint32_t slot, node_key key, uint32_t size)
{
    uint32_t items = items_of(node), total = node_used(node) + size;
    uint32_t left = 0, best = 0, best_gap = UINT32_MAX;
    if (slot == items)
        return cut_at_end(node, key);
    bool ends_run =
        slot > 0 && same_run(key_at(node, slot - 1), key) && !same_run(key, key_at(node, slot));
    for (uint32_t kept = 1; kept <= items; kept++) {
        uint32_t i = kept - 1;
        left += i == slot ? size : size_of(node, i < slot ? i : i - 1);
        if (left > ROOM)
            break;
        if (total - left > ROOM)
            continue;
        uint32_t gap = 2 * left > total ? 2 * left - total : total - 2 * left;
        if (ends_run && (kept == slot || kept == slot + 1) && 2 * left >= total)
            gap = 0;
        if (gap < best_gap || gap == 0) {
            best = kept;
            best_gap = gap;
        }
    }
    return best;
}

/* Move the upper items of `node` to the empty `right`, with a new item of `size` bytes in mind.
 * Returns the node that takes the new item; NULL if that cannot be. */
static uint8_t *split(uint8_t *node, uint8_t *right, node_key key, uint32_t size)
{
    uint32_t slot = search(node, key), items = items_of(node);
    uint32_t kept = choose_cut(node, slot, key, size);
    if (items_of(right) != 0 || heap_of(right) != BLOCK_BYTES || right[LEVEL_AT] != node[LEVEL_AT])
        return NULL;
    if (kept == 0 || node == right)
        return NULL;
    uint32_t stay = slot < kept ? kept - 1 : kept;
    append(right, node, stay, items);
    node_remove(node, stay, items - stay);
    return slot < kept ? node : right;
}

/* Split a leaf that was too full for an item, and put the item where it belongs. An older value of
 * the key is dropped. `right` is empty and of the same level; its first key then separates the two.
 * 0, or NODE_MISUSE with the leaf still valid. */
int node_split_put(uint8_t *leaf, uint8_t *right, uint64_t inode, uint64_t rest,
                   const uint8_t *value, uint32_t length)
{
    node_key key = {inode, rest};
    if (!is_leaf(leaf) || length > MAX_VALUE || equal(key, UNBOUNDED))
        return NODE_MISUSE;
    uint32_t slot = search(leaf, key);
    if (holds(leaf, slot, key))
        node_remove(leaf, slot, 1);
    uint8_t *home = split(leaf, right, key, SLOT_BYTES + length);
    if (home == NULL)
        return NODE_MISUSE;
    return insert(home, search(home, key), key, value, length) ? 0 : NODE_MISUSE;
}

/* The same for an internal node and a child; a key that is there already is NODE_EXISTS. */
int node_split_add(uint8_t *node, uint8_t *right, uint64_t inode, uint64_t rest, uint64_t child)
{
    node_key key = {inode, rest};
    if (is_leaf(node) || child == 0 || child >= MAX_BLOCK || equal(key, UNBOUNDED))
        return NODE_MISUSE;
    if (holds(node, search(node, key), key))
        return NODE_EXISTS;
    uint8_t *home = split(node, right, key, SLOT_BYTES);
    return home == NULL ? NODE_MISUSE : node_add(home, inode, rest, child);
}
