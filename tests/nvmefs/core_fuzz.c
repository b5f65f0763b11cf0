/* Random bytes and random calls for core/: built with sanitizers and run by test_core_fuzz.py.
 *
 * Usage: core_fuzz SEED ROUNDS. Blocks are allocated to the byte, so that any access outside of one
 * is seen. Whatever node_check accepts must stay acceptable under every function.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "node.h"
#include "siphash.h"

static uint64_t state;

static uint32_t pick(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 16) % below);
}

static void demand(int holds, const char *what, int64_t value)
{
    if (holds)
        return;
    fprintf(stderr, "core_fuzz: %s (%lld)\n", what, (long long)value);
    exit(1);
}

static uint8_t *fresh(uint8_t level)
{
    uint8_t *node = calloc(1, 4096);
    demand(node != NULL, "no memory", 4096);
    node[11] = level;
    node[40] = 1;
    node[59] = 16; /* heap = 4096 */
    return node;
}

static uint64_t pick_rest(void)
{
    return (uint64_t)pick(7) << 56 | pick(60);
}

/* A cursor that the node answers to, whatever stands in its header. */
static node_cursor cursor_for(const uint8_t *node)
{
    node_cursor at;
    uint64_t owner = 0;
    memcpy(&owner, node + 40, 8);
    node_seek(&at, owner, node[11], pick(6), pick_rest());
    if (node[11] > 0 && node_items(node) > 0) {
        memcpy(&at.low_inode, node + 64, 8);
        memcpy(&at.low_rest, node + 72, 8);
        at.inode = pick(4) ? at.low_inode + pick(6) : UINT64_MAX;
        if (at.inode == at.low_inode || at.inode < at.low_inode)
            at.rest = UINT64_MAX - pick(2);
    }
    return at;
}

static void check_again(const uint8_t *node)
{
    int fault = node_check(node);
    if (node[11] > 0 && node_items(node) == 0)
        return;
    demand(fault == 0, "a node that was accepted no longer is", fault);
}

/* One random call; `right` is another accepted node. */
static void call(uint8_t *node, uint8_t *right, const uint8_t *value)
{
    node_cursor at = cursor_for(node);
    uint32_t length = pick(3) ? pick(60) : pick(1010), items = node_items(node);
    uint64_t inode = pick(6), rest = pick_rest(), child = pick(9);
    uint8_t *empty;
    switch (pick(12)) {
    case 0:
        (void)node_find(&at, node);
        (void)node_lower(&at, node);
        break;
    case 1:
        (void)node_descend(&at, node);
        (void)node_child(node, pick(200));
        break;
    case 2:
    case 3:
    case 4:
        (void)node_put(&at, node, value, length, (int)pick(2));
        break;
    case 5:
    case 6:
        (void)node_add(node, inode, rest, child);
        break;
    case 7:
        (void)node_remove(node, pick(items + 2), pick(3));
        break;
    case 8:
    case 9:
        empty = fresh(node[11]);
        if (pick(2))
            (void)node_split_put(node, empty, inode, rest, value, length);
        else
            (void)node_split_add(node, empty, inode, rest, child);
        check_again(empty);
        free(empty);
        break;
    case 10:
        (void)node_merge(node, right);
        break;
    default:
        (void)node_lower_first(node, inode, rest);
        demand(node_used(node) <= 4032, "more bytes in use than there are", node_used(node));
    }
    check_again(node);
}

static void mutate(uint8_t *node)
{
    for (uint32_t n = pick(6); n > 0; n--) {
        uint32_t at = pick(3) ? 56 + pick(600) : pick(4096);
        node[at] = (uint8_t)(pick(2) ? pick(256) : node[at] + 1u);
    }
    if (pick(8) == 0)
        node[56] = (uint8_t)pick(256);
    if (pick(8) == 0)
        node[58] = (uint8_t)pick(256);
    if (pick(8) == 0)
        node[11] = (uint8_t)pick(3);
}

static int fuzz_nodes(const uint8_t *value)
{
    int accepted = 0;
    uint8_t *node = fresh((uint8_t)pick(2)), *right = fresh(node[11]);
    if (node[11] > 0) {
        (void)node_add(node, 0, 0, 7);
        (void)node_add(right, 9, 0, 8);
    }
    for (uint32_t n = pick(200); n > 0 && node_check(node) == 0; n--)
        call(node, right, value);
    for (int turn = 0; turn < 20; turn++) {
        uint8_t *copy = fresh(0);
        memcpy(copy, node, 4096);
        mutate(copy);
        for (uint32_t n = pick(30); node_check(copy) == 0; n--) {
            accepted++;
            call(copy, right, value);
            if (n == 0)
                break;
        }
        free(copy);
    }
    for (int i = 0; i < 4096; i++)
        node[i] = (uint8_t)pick(256);
    (void)node_check(node);
    free(node);
    free(right);
    return accepted;
}

static void fuzz_bitmaps(void)
{
    uint32_t nbits = 1 + pick(300), bytes = (nbits + 7) / 8, start = 0;
    uint8_t *bits = malloc(bytes), *held = malloc(bytes);
    demand(bits != NULL && held != NULL, "no memory", bytes);
    for (uint32_t i = 0; i < bytes; i++) {
        bits[i] = pick(3) ? 0 : (uint8_t)pick(256);
        held[i] = pick(3) ? 0 : (uint8_t)pick(256);
    }
    for (int i = 0; i < 20; i++) {
        uint32_t max = 1 + pick(nbits + 2), min = 1 + pick(max), align = 1u << pick(4);
        uint32_t length = bitmap_find_run(bits, pick(2) ? held : NULL, nbits, pick(nbits + 2), min,
                                          max, align, &start);
        demand(length == 0 || (length >= min && length <= max && start % align == 0 &&
                               start + length <= nbits),
               "an impossible run", start);
        if (length > 0)
            demand(bitmap_set_run(bits, nbits, start, length) == BITMAP_DONE, "not free", start);
        (void)bitmap_clear_run(bits, nbits, pick(nbits + 2), pick(nbits + 2));
        (void)bitmap_run_at(bits, held, nbits, pick(nbits + 2), max);
        (void)bitmap_longest_run(bits, held, nbits, &start);
        demand(bitmap_count_free(bits, nbits) <= nbits, "too many free", nbits);
    }
    free(bits);
    free(held);
}

static void fuzz_siphash(void)
{
    uint32_t length = pick(300);
    uint8_t *key = calloc(1, 16), *data = malloc(length ? length : 1);
    demand(key != NULL && data != NULL, "no memory", length);
    memset(data, (int)pick(256), length ? length : 1);
    state ^= siphash(key, data, length) & 1;
    state ^= siphash_prefixed(key, length, data, length) & 1;
    free(key);
    free(data);
}

int main(int count, char **words)
{
    uint8_t value[1024];
    long accepted = 0, rounds = count > 2 ? atol(words[2]) : 1000;
    state = 88172645463325252u ^ (count > 1 ? strtoull(words[1], NULL, 10) << 20 : 0);
    memset(value, 0xa5, sizeof value);
    for (long i = 0; i < rounds; i++) {
        accepted += fuzz_nodes(value);
        fuzz_bitmaps();
        fuzz_siphash();
    }
    printf("%ld rounds, %ld calls on mutated nodes that were accepted\n", rounds, accepted);
    return accepted > rounds ? 0 : 1;
}
