/* One node of the item tree: a 4,096-byte block with slots growing up and, in leaves, values
 * growing down.
 *
 * Below: bytes.h.  Above: nvmefs/node.py and nvmefs/tree.py, which keep the order of calls:
 *
 *     node_check(block)                         once, when a block was read; nothing before it
 *     node_seek(&at, tree, level, inode, rest)  a descent starts at the root ...
 *     child = node_descend(&at, block)          ... takes one step per level ...
 *     place = node_find(&at, leaf)              ... and ends in a leaf
 *
 * No function allocates or keeps state. On a block that node_check accepted none reads or writes
 * outside of the block, and each leaves a block that node_check accepts again, but for an internal
 * node that lost its last child: that one is to be freed.
 * docs/format.md describes the bytes.
 */
#ifndef NVMEFS_NODE_H
#define NVMEFS_NODE_H

#include <stdint.h>

/* cffi: begin */
enum {
    /* answers */
    NODE_ABSENT = -1,  /* no item has this key */
    NODE_FULL = -2,    /* no room: nothing was changed */
    NODE_EXISTS = -3,  /* an item has this key already: nothing was changed */
    NODE_MISUSE = -4,  /* impossible arguments: an error of the caller */
    /* faults of a block by itself (node_check) */
    NODE_BAD_LEVEL = -16,
    NODE_BAD_ITEMS = -17,
    NODE_BAD_HEAP = -18,
    NODE_BAD_ORDER = -19,
    NODE_BAD_VALUE = -20,
    NODE_BAD_OVERLAP = -21,
    NODE_BAD_CHILD = -22,
    /* faults of a block at its place in the tree (a descent) */
    NODE_WRONG_LEVEL = -32,
    NODE_WRONG_OWNER = -33,
    NODE_WRONG_KEYS = -34,
    NODE_EMPTY = -35,
};

/* A descent: the key looked for, and what is known of the node that comes next. The caller's
 * memory. */
typedef struct {
    uint64_t inode, rest;           /* the key; rest is kind << 56 | offset */
    uint64_t low_inode, low_rest;   /* keys of the next node are >= low ... */
    uint64_t high_inode, high_rest; /* ... and < high; all ones where nothing bounds them */
    uint64_t owner;                 /* the tree's id */
    uint32_t level;                 /* of the next node */
    uint32_t slot;                  /* the slot that the last step took or found */
} node_cursor;

int node_check(const uint8_t *node);

void node_seek(node_cursor *at, uint64_t owner, uint32_t level, uint64_t inode, uint64_t rest);
int node_arrive(const node_cursor *at, const uint8_t *node);
int64_t node_descend(node_cursor *at, const uint8_t *node);
int64_t node_find(node_cursor *at, const uint8_t *leaf);
int node_lower(node_cursor *at, const uint8_t *leaf);

int node_put(node_cursor *at, uint8_t *leaf, const uint8_t *value, uint32_t length, int replace);
int node_add(uint8_t *node, uint64_t inode, uint64_t rest, uint64_t child);
int node_split_put(uint8_t *leaf, uint8_t *right, uint64_t inode, uint64_t rest,
                   const uint8_t *value, uint32_t length);
int node_split_add(uint8_t *node, uint8_t *right, uint64_t inode, uint64_t rest, uint64_t child);
int node_remove(uint8_t *node, uint32_t slot, uint32_t count);
int node_merge(uint8_t *left, const uint8_t *right);
int node_lower_first(uint8_t *node, uint64_t inode, uint64_t rest);

uint32_t node_items(const uint8_t *node);
uint32_t node_used(const uint8_t *node);
int64_t node_child(const uint8_t *node, uint32_t slot);
/* cffi: end */

#endif
