/* The contract of each function stands above it; that of all of them in bitmap.h. */
#include "bitmap.h"

#include <stdbool.h>
#include <stddef.h>

#include "bytes.h"

#define MAX_BITS ((uint32_t)1 << 30)

/* Two bitmaps read as one. */
typedef struct {
    const uint8_t *bits, *held;
    uint32_t nbits;
} bitmap;

/* Word `index`; bits past the end read as used. */
static inline uint64_t word_at(const bitmap *map, uint32_t index)
{
    uint32_t first = index * 64;
    if (map->nbits - first >= 64) {
        uint64_t word = load64(map->bits + first / 8);
        return map->held ? word | load64(map->held + first / 8) : word;
    }
    uint64_t word = 0;
    for (uint32_t at = first; at < map->nbits; at += 8) {
        uint64_t byte = map->bits[at / 8];
        if (map->held)
            byte |= map->held[at / 8];
        word |= byte << (at - first);
    }
    return word | UINT64_MAX << (map->nbits - first);
}

/* The first bit at or after `at` that is used (or free, with flip = all ones); nbits if there is
 * none. */
static uint32_t next(const bitmap *map, uint32_t at, uint64_t flip)
{
    if (at >= map->nbits)
        return map->nbits;
    uint32_t index = at / 64, words = (map->nbits + 63) / 64;
    uint64_t word = (word_at(map, index) ^ flip) & UINT64_MAX << (at % 64);
    while (word == 0) {
        if (++index == words)
            return map->nbits;
        word = word_at(map, index) ^ flip;
    }
    uint32_t found = index * 64 + (uint32_t)__builtin_ctzll(word);
    return found < map->nbits ? found : map->nbits;
}

static inline uint32_t next_used(const bitmap *map, uint32_t at)
{
    return next(map, at, 0);
}

static inline uint32_t next_free(const bitmap *map, uint32_t at)
{
    return next(map, at, UINT64_MAX);
}

typedef struct {
    uint32_t start, length;
} run;

/* Look for a run that starts in [from, to), at a multiple of `align`, and has `max` bits; `best`
 * becomes the longest that was met. True when one of `max` bits was found. */
static bool look(const bitmap *map, uint32_t from, uint32_t to, uint32_t max, uint32_t align,
                 run *best)
{
    for (uint32_t at = next_free(map, from); at < to;) {
        uint32_t end = next_used(map, at);
        uint32_t start = (at + align - 1) & ~(align - 1);
        if (start < end && start < to && end - start > best->length)
            *best = (run){start, end - start};
        if (best->length >= max)
            return true;
        at = next_free(map, end);
    }
    return false;
}

/* The first free run of `max` bits from `goal` on, else (the search goes on at bit 0) the first
 * before it; else the longest, if it has `min` bits. `align` is a power of two to which starts are
 * aligned, 1 for any. Answers the length, at most `max`; 0 if there is none or if the arguments
 * make no sense. */
uint32_t bitmap_find_run(const uint8_t *bits, const uint8_t *held, uint32_t nbits, uint32_t goal,
                         uint32_t min, uint32_t max, uint32_t align, uint32_t *start)
{
    bitmap map = {bits, held, nbits};
    run best = {0, 0};
    if (min == 0 || min > max || align == 0 || (align & (align - 1)) != 0 || nbits > MAX_BITS ||
        align > MAX_BITS)
        return 0;
    if (goal > nbits)
        goal = nbits;
    if (!look(&map, goal, nbits, max, align, &best))
        look(&map, 0, goal, max, align, &best);
    if (best.length < min)
        return 0;
    *start = best.start;
    return best.length < max ? best.length : max;
}

/* How many bits are free from `at` on, at most `max`; 0 if `at` is used or outside. */
uint32_t bitmap_run_at(const uint8_t *bits, const uint8_t *held, uint32_t nbits, uint32_t at,
                       uint32_t max)
{
    bitmap map = {bits, held, nbits};
    if (at >= nbits)
        return 0;
    uint32_t length = next_used(&map, at) - at;
    return length < max ? length : max;
}

/* The longest free run, the first of several. */
uint32_t bitmap_longest_run(const uint8_t *bits, const uint8_t *held, uint32_t nbits,
                            uint32_t *start)
{
    bitmap map = {bits, held, nbits};
    run best = {0, 0};
    look(&map, 0, nbits, UINT32_MAX, 1, &best);
    if (best.length > 0)
        *start = best.start;
    return best.length;
}

uint32_t bitmap_count_free(const uint8_t *bits, uint32_t nbits)
{
    bitmap map = {bits, NULL, nbits};
    uint32_t free_bits = 0;
    for (uint32_t index = 0; index < (nbits + 63) / 64; index++)
        free_bits += (uint32_t)__builtin_popcountll(~word_at(&map, index));
    return free_bits;
}

/* Change bits [start, end) to `used`. */
static void change(uint8_t *bits, uint32_t start, uint32_t end, bool used)
{
    for (uint32_t at = start; at < end;) {
        if (at % 64 == 0 && end - at >= 64) {
            store64(bits + at / 8, used ? UINT64_MAX : 0);
            at += 64;
        } else {
            uint32_t count = 8 - at % 8 < end - at ? 8 - at % 8 : end - at;
            uint8_t mask = (uint8_t)(((1u << count) - 1) << at % 8);
            bits[at / 8] = used ? bits[at / 8] | mask : bits[at / 8] & (uint8_t)~mask;
            at += count;
        }
    }
}

static int32_t change_run(uint8_t *bits, uint32_t nbits, uint32_t start, uint32_t count, bool used)
{
    bitmap map = {bits, NULL, nbits};
    if (start > nbits || count > nbits - start)
        return BITMAP_OUTSIDE;
    uint32_t other = used ? next_used(&map, start) : next_free(&map, start);
    if (other < start + count)
        return 1 + (int32_t)other;
    change(bits, start, start + count, used);
    return BITMAP_DONE;
}

/* Mark `count` free bits as used: BITMAP_DONE; or, with nothing changed, 1 + the first bit that was
 * used already, or BITMAP_OUTSIDE. */
int32_t bitmap_set_run(uint8_t *bits, uint32_t nbits, uint32_t start, uint32_t count)
{
    return change_run(bits, nbits, start, count, true);
}

/* Mark `count` used bits as free: BITMAP_DONE; or, with nothing changed, 1 + the first bit that was
 * free already, or BITMAP_OUTSIDE. */
int32_t bitmap_clear_run(uint8_t *bits, uint32_t nbits, uint32_t start, uint32_t count)
{
    return change_run(bits, nbits, start, count, false);
}
