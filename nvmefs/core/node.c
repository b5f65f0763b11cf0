/* Nodes: the check before a block is believed, and the descent.
 * The contract of each function stands above it; that of all of them in node.h. */
#include "node.h"

#include "node_layout.h"

uint32_t node_items(const uint8_t *node)
{
    return items_of(node);
}

/* The bytes in use by slots and values, of the 4,032 that there are. */
uint32_t node_used(const uint8_t *node)
{
    uint32_t items = items_of(node), used = items * SLOT_BYTES;
    if (is_leaf(node))
        for (uint32_t i = 0; i < items; i++)
            used += length_of(node, i);
    return used;
}

/* The block of child `slot` of an internal node. */
int64_t node_child(const uint8_t *node, uint32_t slot)
{
    if (is_leaf(node) || slot >= items_of(node))
        return NODE_MISUSE;
    return (int64_t)load64(slot_at(node, slot) + CHILD_AT);
}

/* --- checking a block of unknown content ------------------------------------------------------ */

/* Marks bytes [start, start + length) in `taken`, a bit per byte; false if one of them was
 * marked. */
static bool claim(uint64_t taken[BLOCK_BYTES / 64], uint32_t start, uint32_t length)
{
    while (length > 0) {
        uint32_t shift = start % 64, count = 64 - shift;
        if (count > length)
            count = length;
        uint64_t mask = (count == 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1) << shift;
        if (taken[start / 64] & mask)
            return false;
        taken[start / 64] |= mask;
        start += count;
        length -= count;
    }
    return true;
}

static int check_values(const uint8_t *node, uint32_t items)
{
    uint32_t heap = heap_of(node);
    uint64_t taken[BLOCK_BYTES / 64] = {0};
    if (heap < SLOTS_AT + items * SLOT_BYTES || heap > BLOCK_BYTES)
        return NODE_BAD_HEAP;
    for (uint32_t i = 0; i < items; i++) {
        uint32_t value = value_of(node, i), length = length_of(node, i);
        if (length > MAX_VALUE || value < heap || value + length > BLOCK_BYTES)
            return NODE_BAD_VALUE;
        if (load32(slot_at(node, i) + ZERO_AT) != 0)
            return NODE_BAD_VALUE;
        if (!claim(taken, value, length))
            return NODE_BAD_OVERLAP;
    }
    return 0;
}

static int check_children(const uint8_t *node, uint32_t items)
{
    if (items == 0)
        return NODE_BAD_ITEMS;
    if (heap_of(node) != BLOCK_BYTES)
        return NODE_BAD_HEAP;
    for (uint32_t i = 0; i < items; i++) {
        uint64_t child = load64(slot_at(node, i) + CHILD_AT);
        if (child == 0 || child >= MAX_BLOCK)
            return NODE_BAD_CHILD;
    }
    return 0;
}

/* 0 if the 4,096 bytes are a node that the other functions can work on, else a fault. Any bytes
 * will do. The header's checksum, type and address are not looked at, nor whether kinds are
 * known. */
int node_check(const uint8_t *node)
{
    uint32_t items = items_of(node);
    if (node[LEVEL_AT] > MAX_LEVEL)
        return NODE_BAD_LEVEL;
    if (items > MAX_ITEMS)
        return NODE_BAD_ITEMS;
    for (uint32_t i = 1; i < items; i++)
        if (!less(key_at(node, i - 1), key_at(node, i)))
            return NODE_BAD_ORDER;
    if (items > 0 && equal(key_at(node, items - 1), UNBOUNDED))
        return NODE_BAD_ORDER;
    return is_leaf(node) ? check_values(node, items) : check_children(node, items);
}

/* --- descending ------------------------------------------------------------------------------- */

/* Start a descent to a key at the root, a node of `level` of the tree `owner`. */
void node_seek(node_cursor *at, uint64_t owner, uint32_t level, uint64_t inode, uint64_t rest)
{
    *at = (node_cursor){
        .inode = inode, .rest = rest,
        .high_inode = UNBOUNDED.inode, .high_rest = UNBOUNDED.rest,
        .owner = owner, .level = level,
    };
}

/* 0 if `node` is what the step before promised, else a fault. The first key of an internal node is
 * the one under which it hangs; a leaf's keys lie within its bounds. So a stale or misplaced node
 * is noticed. */
int node_arrive(const node_cursor *at, const uint8_t *node)
{
    node_key low = {at->low_inode, at->low_rest}, high = {at->high_inode, at->high_rest};
    uint32_t items = items_of(node);
    if (node[LEVEL_AT] != at->level)
        return NODE_WRONG_LEVEL;
    if (load64(node + OWNER_AT) != at->owner)
        return NODE_WRONG_OWNER;
    if (items == 0) /* only a tree without items has an empty leaf: its root */
        return equal(low, (node_key){0, 0}) && equal(high, UNBOUNDED) ? 0 : NODE_EMPTY;
    if (is_leaf(node) ? less(key_at(node, 0), low) : !equal(key_at(node, 0), low))
        return NODE_WRONG_KEYS;
    return less(key_at(node, items - 1), high) ? 0 : NODE_WRONG_KEYS;
}

/* One step down: the block of the child that holds the key, or a fault. */
int64_t node_descend(node_cursor *at, const uint8_t *node)
{
    node_key key = {at->inode, at->rest};
    int fault = node_arrive(at, node);
    if (fault)
        return fault;
    if (at->level == 0)
        return NODE_MISUSE;
    uint32_t slot = search(node, key);
    if (!holds(node, slot, key))
        slot--; /* slot > 0: the first key is `low`, and low <= key */
    node_key low = key_at(node, slot);
    at->low_inode = low.inode;
    at->low_rest = low.rest;
    if (slot + 1 < items_of(node)) {
        node_key high = key_at(node, slot + 1);
        at->high_inode = high.inode;
        at->high_rest = high.rest;
    }
    at->slot = slot;
    at->level--;
    return (int64_t)load64(slot_at(node, slot) + CHILD_AT);
}

/* Where the value of the key stands: slot << 32 | offset << 16 | length; NODE_ABSENT, or a
 * fault. */
int64_t node_find(node_cursor *at, const uint8_t *leaf)
{
    int slot = node_lower(at, leaf);
    if (slot < 0)
        return slot;
    if (!holds(leaf, at->slot, (node_key){at->inode, at->rest}))
        return NODE_ABSENT;
    uint32_t value = value_of(leaf, at->slot), length = length_of(leaf, at->slot);
    return (int64_t)slot << 32 | (int64_t)value << 16 | length;
}

/* The first slot of the leaf whose key is >= the key, or the number of items; or a fault. */
int node_lower(node_cursor *at, const uint8_t *leaf)
{
    int fault = node_arrive(at, leaf);
    if (fault)
        return fault;
    if (at->level != 0)
        return NODE_MISUSE;
    at->slot = search(leaf, (node_key){at->inode, at->rest});
    return (int)at->slot;
}
