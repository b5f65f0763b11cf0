/* Runs of bits in the bitmap of a group: 1 = used, least significant bit first, whole words at a
 * time.
 *
 * Below: bytes.h.  Above: nvmefs/allocator.py, fsck.
 *
 * `bits` holds `nbits` bits in (nbits + 7) / 8 bytes; bits past the last are never looked at.
 * `held` is NULL or a second bitmap of the same size: blocks that are free on the disk and must not
 * be taken yet. Searches answer the length of a run, 0 for none, and put its first bit into
 * `*start`. At most 2^30 bits.
 */
#ifndef NVMEFS_BITMAP_H
#define NVMEFS_BITMAP_H

#include <stdint.h>

/* cffi: begin */
enum {
    BITMAP_DONE = 0,
    BITMAP_OUTSIDE = -1, /* the run is not inside of the bitmap: nothing was changed */
};

uint32_t bitmap_find_run(const uint8_t *bits, const uint8_t *held, uint32_t nbits, uint32_t goal,
                         uint32_t min, uint32_t max, uint32_t align, uint32_t *start);
uint32_t bitmap_run_at(const uint8_t *bits, const uint8_t *held, uint32_t nbits, uint32_t at,
                       uint32_t max);
uint32_t bitmap_longest_run(const uint8_t *bits, const uint8_t *held, uint32_t nbits,
                            uint32_t *start);
uint32_t bitmap_count_free(const uint8_t *bits, uint32_t nbits);
int32_t bitmap_set_run(uint8_t *bits, uint32_t nbits, uint32_t start, uint32_t count);
int32_t bitmap_clear_run(uint8_t *bits, uint32_t nbits, uint32_t start, uint32_t count);
/* cffi: end */

#endif
