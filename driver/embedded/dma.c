#include "dma.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct dma_table *table_allocate(uint32_t count)
{
    struct dma_table *table = malloc(sizeof *table + count * sizeof table->regions[0]);
    if (table) {
        table->retired = NULL;
        table->count = count;
    }
    return table;
}

int dma_table_add(const struct dma_table *old, struct dma_region region, struct dma_table **out)
{
    if (region.length == 0 || region.iova + (region.length - 1) < region.iova)
        return -EINVAL;
    if (old->count >= DMA_MAX_REGIONS)
        return -ENOSPC;
    uint32_t at = 0;
    while (at < old->count && old->regions[at].iova < region.iova)
        at++;
    if (at < old->count && old->regions[at].iova - region.iova < region.length)
        return -EEXIST;
    if (at > 0 && region.iova - old->regions[at - 1].iova < old->regions[at - 1].length)
        return -EEXIST;
    struct dma_table *table = table_allocate(old->count + 1);
    if (!table)
        return -ENOMEM;
    memcpy(table->regions, old->regions, at * sizeof region);
    table->regions[at] = region;
    memcpy(table->regions + at + 1, old->regions + at, (old->count - at) * sizeof region);
    *out = table;
    return 0;
}

int dma_table_remove(const struct dma_table *old, uint64_t iova, uint64_t length, struct dma_region *removed,
                     struct dma_table **out)
{
    uint32_t at = 0;
    while (at < old->count && old->regions[at].iova != iova)
        at++;
    if (at == old->count || old->regions[at].length != length)
        return -ENOENT;
    struct dma_table *table = table_allocate(old->count - 1);
    if (!table)
        return -ENOMEM;
    *removed = old->regions[at];
    memcpy(table->regions, old->regions, at * sizeof table->regions[0]);
    memcpy(table->regions + at, old->regions + at + 1, (table->count - at) * sizeof table->regions[0]);
    *out = table;
    return 0;
}
