/*
 * Scatter Gather Lists to host memory (base specification 2.0, section 4.1.2): the other way in which an I/O command
 * may name its data. PRP1 and PRP2 are then one descriptor of 16 bytes: the data block itself, or a segment of further
 * descriptors, of which the last one may name the next segment.
 *
 * Supported are Data Block, Segment and Last Segment with addresses of memory. Everything comes from the host and may
 * be changed by it meanwhile: each descriptor is copied before it is looked at, and SGL_MOST_DESCRIPTORS bounds what a
 * loop of segments costs.
 */
#include <string.h>

#include "controller.h"

enum { SGL_DATA_BLOCK = 0x0, SGL_SEGMENT = 0x2, SGL_LAST_SEGMENT = 0x3 };
#define SGL_MOST_DESCRIPTORS 65536u

struct sgl_descriptor {
    uint64_t address;
    uint32_t length; /* bytes */
    uint8_t reserved[3];
    uint8_t identifier; /* type in bits 7:4, sub type in 3:0 (0: address) */
};
_Static_assert(sizeof(struct sgl_descriptor) == 16, "section 4.1.2.1");

struct walk {
    uint64_t missing; /* bytes that no data block has covered yet */
    uint32_t descriptors;
};

static bool is_segment(const struct sgl_descriptor *d)
{
    return d->identifier == SGL_SEGMENT << 4 || d->identifier == SGL_LAST_SEGMENT << 4;
}

static uint16_t data_block(struct controller *c, struct walk *walk, const struct sgl_descriptor *d)
{
    if (d->identifier != SGL_DATA_BLOCK << 4)
        return STATUS_SGL_TYPE_INVALID; /* a type or a sub type that Identify does not offer */
    if (c->options.sgl == SGL_DWORD && (d->address & 3 || d->length & 3))
        return STATUS_SGL_GRANULARITY;
    if (d->length > walk->missing)
        return STATUS_SGL_DATA_LENGTH; /* more than the command transfers: not offered either */
    if (d->length == 0)
        return STATUS_SUCCESS;
    walk->missing -= d->length;
    return prp_append(c, d->address, d->length);
}

/* All descriptors of a segment. *next is set to the segment that follows; its length is 0 where none does. */
static uint16_t segment(struct controller *c, struct walk *walk, struct sgl_descriptor *next)
{
    struct sgl_descriptor here = *next;
    uint32_t count = here.length / sizeof here;
    bool last = here.identifier == SGL_LAST_SEGMENT << 4;
    next->length = 0;
    if (!count || here.length % sizeof here || here.address & 7)
        return STATUS_SGL_SEGMENT_INVALID;
    const uint8_t *from = dma_translate(c->dma, here.address, here.length);
    if (!from)
        return STATUS_DATA_TRANSFER_ERROR;
    for (uint32_t i = 0; i < count; i++) {
        struct sgl_descriptor d;
        memcpy(&d, from + i * sizeof d, sizeof d);
        __asm__ volatile("" ::: "memory"); /* what is checked is this copy, not the host's memory read again */
        if (++walk->descriptors > SGL_MOST_DESCRIPTORS)
            return STATUS_SGL_COUNT_INVALID;
        if (is_segment(&d)) {
            if (last)
                return STATUS_SGL_SEGMENT_INVALID;
            if (i + 1 < count)
                return STATUS_SGL_COUNT_INVALID;
            *next = d;
            return STATUS_SUCCESS;
        }
        uint16_t status = data_block(c, walk, &d);
        if (status)
            return status;
    }
    /* A Segment that is not the last one has to name the next. */
    return last ? STATUS_SUCCESS : STATUS_SGL_SEGMENT_INVALID;
}

uint16_t sgl_resolve(struct controller *c, const struct nvme_command *cmd, uint64_t length)
{
    struct walk walk = {.missing = length};
    struct sgl_descriptor at;
    memcpy(&at, &cmd->prp1, sizeof at);
    c->iov_count = 0;
    uint16_t status = STATUS_SUCCESS;
    if (is_segment(&at)) {
        do
            status = segment(c, &walk, &at);
        while (!status && at.length);
    } else {
        status = data_block(c, &walk, &at);
    }
    if (status)
        return status;
    return walk.missing ? STATUS_SGL_DATA_LENGTH : STATUS_SUCCESS;
}
