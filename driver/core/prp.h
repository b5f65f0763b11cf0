/* Physical Region Pages: how a command names its data buffer (NVM Express base specification, section 4.1.1).
 *
 *   PRP1  the first byte, at any DWORD-aligned offset inside its page
 *   PRP2  nothing, or the second page, or a list of all pages after the first
 *
 * Every entry after PRP1 has offset 0. A list lives in page-aligned memory of its own; when it is longer than a
 * page, the last entry of each page names the next page of the list ("chained"). Some controllers do not follow
 * chains, so the driver splits its transfers to keep each list inside a page unless told otherwise.
 */
#ifndef NV_PRP_H
#define NV_PRP_H

#include <stdint.h>

struct nv_segment {
    uint64_t iova;
    uint64_t nbytes;
};

enum {
    NV_PRP_UNALIGNED = -2, /* not DWORD-aligned, or a seam between segments inside a page */
    NV_PRP_TOO_LONG = -3,  /* the list does not fit the memory it was given */
    NV_PRP_EMPTY = -4,     /* no bytes */
};

/* Pages of list memory that `entries` entries take when a page holds `per_page` of them. */
static inline uint64_t nv_prp_list_pages(uint64_t entries, uint32_t per_page)
{
    if (entries <= per_page)
        return 1;
    /* Each page but the last gives one entry to the chain. */
    return (entries - 1 + per_page - 2) / (per_page - 1);
}

/* Fills prp[0..1] and, for three pages or more, the list. Returns the number of pages described, or NV_PRP_*. */
static inline int64_t nv_prp_build(const struct nv_segment *segments, uint32_t count, uint32_t page_bytes, uint64_t *list,
                                   uint64_t list_iova, uint32_t list_pages, uint64_t prp[2])
{
    const uint64_t mask = page_bytes - 1;
    const uint32_t per_page = page_bytes / 8;
    uint64_t pages = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t first = segments[i].iova, n = segments[i].nbytes;
        if (n == 0)
            return NV_PRP_EMPTY;
        if ((first & 3) || (i > 0 && (first & mask)) || (i + 1 < count && ((first + n) & mask)))
            return NV_PRP_UNALIGNED;
        pages += ((first & mask) + n + mask) / page_bytes;
    }
    if (pages == 0)
        return NV_PRP_EMPTY;

    prp[0] = segments[0].iova;
    prp[1] = 0;
    if (pages > 2) {
        if (nv_prp_list_pages(pages - 1, per_page) > list_pages)
            return NV_PRP_TOO_LONG;
        prp[1] = list_iova;
    }

    uint64_t left = pages - 1, at = 0; /* entries still to write; index into the list memory */
    for (uint32_t i = 0; i < count; i++) {
        uint64_t page = segments[i].iova & ~mask;
        uint64_t end = segments[i].iova + segments[i].nbytes;
        if (i == 0)
            page += page_bytes;
        for (; page < end; page += page_bytes, left--) {
            if (pages == 2) {
                prp[1] = page;
                continue;
            }
            if (at % per_page == per_page - 1 && left > 1) {
                list[at] = list_iova + (at + 1) * 8;
                at++;
            }
            list[at++] = page;
        }
    }
    return (int64_t)pages;
}

#endif
