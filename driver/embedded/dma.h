/*
 * DMA memory: which IOVAs the host has opened to the controller, and where they are in this process.
 *
 * The table is an immutable snapshot. A host thread publishes a new one; the controller's thread picks it
 * up before it reads a queue, so a map that happened before a doorbell is always seen after it. Old
 * snapshots, and memory that was unmapped, are released only when the controller's thread has been seen
 * outside of command execution (controller.c, engine_call).
 */
#ifndef EMBEDDED_DMA_H
#define EMBEDDED_DMA_H

#include <stddef.h>
#include <stdint.h>

#define DMA_MAX_REGIONS 4096u

struct dma_region {
    uint64_t iova;
    uint64_t length; /* bytes, at least one page */
    uint8_t *host;
};

struct dma_table {
    struct dma_table *retired; /* next older snapshot that waits to be freed */
    uint32_t count;
    struct dma_region regions[]; /* sorted by iova, none overlapping */
};

/* Both return a new snapshot in *out, or -EEXIST, -EINVAL, -ENOENT, -ENOMEM, -ENOSPC. */
int dma_table_add(const struct dma_table *old, struct dma_region region, struct dma_table **out);
int dma_table_remove(const struct dma_table *old, uint64_t iova, uint64_t length, struct dma_region *removed,
                     struct dma_table **out);

/* Host address of [iova, iova + length), which must lie inside one region, or NULL. */
static inline void *dma_translate(const struct dma_table *table, uint64_t iova, uint64_t length)
{
    uint32_t low = 0, high = table->count;
    while (low < high) { /* the first region that starts above iova */
        uint32_t middle = (low + high) / 2;
        if (table->regions[middle].iova <= iova)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    const struct dma_region *region = &table->regions[low - 1];
    uint64_t offset = iova - region->iova;
    if (offset >= region->length || length > region->length - offset)
        return NULL;
    return region->host + offset;
}

#endif
