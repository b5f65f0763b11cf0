/* A histogram of 64-bit values with 8 buckets per power of two: relative error at most 12.5 %, a dozen
 * instructions per value, no allocation. Values are nanoseconds here; nothing depends on it.
 *
 * Bucket of v: v itself below 8; above, the exponent and the three bits after the leading one.
 */
#ifndef NV_HISTOGRAM_H
#define NV_HISTOGRAM_H

#include <stdint.h>

#define NV_HISTOGRAM_BUCKETS 510 /* 496 for any 64-bit value; with these the size is a power of two */

struct nv_histogram {
    uint64_t sum;
    uint64_t max;
    uint64_t bucket[NV_HISTOGRAM_BUCKETS];
};

static inline uint32_t nv_histogram_index(uint64_t v)
{
    uint32_t exponent = 63u ^ (uint32_t)__builtin_clzll(v | 8); /* values below 8 are as 8: nothing is shifted out */
    return (exponent - 3) * 8 + (uint32_t)(v >> (exponent - 3)); /* 8 to 15 is what the shift leaves of the others */
}

/* The smallest value that falls into a bucket: the inverse of nv_histogram_index(). */
static inline uint64_t nv_histogram_floor(uint32_t index)
{
    if (index < 8)
        return index;
    uint32_t exponent = index / 8 + 2;
    return (8ull + index % 8) << (exponent - 3);
}

static inline void nv_histogram_add(struct nv_histogram *h, uint64_t v)
{
    h->sum += v;
    if (v > h->max)
        h->max = v;
    h->bucket[nv_histogram_index(v)]++;
}

static inline uint64_t nv_histogram_count(const struct nv_histogram *h)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < NV_HISTOGRAM_BUCKETS; i++)
        count += h->bucket[i];
    return count;
}

/* The value below which a share (in 1/100000, so 99990 is p99.99) of the values lies; 0 when there are none. */
static inline uint64_t nv_histogram_percentile(const struct nv_histogram *h, uint32_t share_1e5)
{
    uint64_t want = (nv_histogram_count(h) * share_1e5 + 99999u) / 100000u, seen = 0;
    for (uint32_t i = 0; i < NV_HISTOGRAM_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= want && seen) {
            uint64_t top = i + 1 < NV_HISTOGRAM_BUCKETS ? nv_histogram_floor(i + 1) - 1 : h->max;
            return top < h->max ? top : h->max;
        }
    }
    return 0;
}

#endif
