/* The bytes of a node, as node.c (reading) and node_edit.c (changing) see them. */
#ifndef NVMEFS_NODE_LAYOUT_H
#define NVMEFS_NODE_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "bytes.h"
#include "node.h"

enum {
    BLOCK_BYTES = 4096,
    LEVEL_AT = 11, /* places in the header of every block */
    OWNER_AT = 40,
    ITEMS_AT = 56,
    HEAP_AT = 58,
    SLOTS_AT = 64,
    SLOT_BYTES = 24,
    VALUE_AT = 16, /* places in a slot */
    LENGTH_AT = 18,
    ZERO_AT = 20,
    CHILD_AT = 16,
    ROOM = BLOCK_BYTES - SLOTS_AT, /* what slots and values share */
    MAX_ITEMS = ROOM / SLOT_BYTES,
    MAX_VALUE = 1000,
    MAX_LEVEL = 12,
};

#define MAX_BLOCK ((uint64_t)1 << 48)

typedef struct {
    uint64_t inode, rest;
} node_key;

/* Above every key; as an upper bound it says that there is none. */
#define UNBOUNDED ((node_key){UINT64_MAX, UINT64_MAX})

static inline bool less(node_key a, node_key b)
{
    return a.inode < b.inode || (a.inode == b.inode && a.rest < b.rest);
}

static inline bool equal(node_key a, node_key b)
{
    return a.inode == b.inode && a.rest == b.rest;
}

static inline uint32_t items_of(const uint8_t *node)
{
    return load16(node + ITEMS_AT);
}

static inline uint32_t heap_of(const uint8_t *node)
{
    return load16(node + HEAP_AT);
}

static inline bool is_leaf(const uint8_t *node)
{
    return node[LEVEL_AT] == 0;
}

static inline const uint8_t *slot_at(const uint8_t *node, uint32_t slot)
{
    return node + SLOTS_AT + slot * SLOT_BYTES;
}

static inline uint8_t *slot_of(uint8_t *node, uint32_t slot)
{
    return node + SLOTS_AT + slot * SLOT_BYTES;
}

static inline node_key key_at(const uint8_t *node, uint32_t slot)
{
    const uint8_t *p = slot_at(node, slot);
    return (node_key){load64(p), load64(p + 8)};
}

static inline uint32_t value_of(const uint8_t *node, uint32_t slot)
{
    return load16(slot_at(node, slot) + VALUE_AT);
}

static inline uint32_t length_of(const uint8_t *node, uint32_t slot)
{
    return load16(slot_at(node, slot) + LENGTH_AT);
}

/* The bytes that an item takes, its slot included. */
static inline uint32_t size_of(const uint8_t *node, uint32_t slot)
{
    return SLOT_BYTES + (is_leaf(node) ? length_of(node, slot) : 0);
}

/* The first slot whose key is >= `key`, or the number of items. */
static inline uint32_t search(const uint8_t *node, node_key key)
{
    uint32_t low = 0, high = items_of(node);
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (less(key_at(node, middle), key))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static inline bool holds(const uint8_t *node, uint32_t slot, node_key key)
{
    return slot < items_of(node) && equal(key_at(node, slot), key);
}

#endif
