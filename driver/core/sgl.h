/* Scatter Gather Lists: the other way in which a command names its data buffer (NVM Express base specification 2.0,
 * section 4.1.2). One descriptor of 16 bytes stands where PRP1 and PRP2 do: the data block itself, or, for more than one
 * of them, the "last segment": where an array of data block descriptors lies. One segment is enough for all that a slot's
 * list memory holds, so none is chained.
 *
 * PRPs are the rule, and cost less for what lies inside two pages. An SGL is used
 *   - where PRPs cannot: a seam inside a page, or an address that is no multiple of 4 (unless the controller asks for
 *     whole dwords);
 *   - from NV_SGL_LARGE bytes a piece: one descriptor then stands for eight PRPs and more, and a single piece needs no
 *     list that the controller has to fetch.
 */
#ifndef NV_SGL_H
#define NV_SGL_H

#include <stdint.h>

#include "prp.h"

/* What the controller takes (SGLS bits 1:0, and its I/O queues only). */
enum { NV_SGL_NONE = 0, NV_SGL_BYTE = 1, NV_SGL_DWORD = 2 };

enum {
    NV_SGL_LARGE = 32768,
    NV_SGL_MOST = 256,        /* descriptors: a page of 4 KiB holds them */
    NV_SGL_FLAG = 0x40,       /* PSDT 01b */
    NV_SGL_LAST_SEGMENT = 3,
};

struct nv_sgl_descriptor {
    uint64_t address;
    uint32_t length; /* bytes */
    uint32_t type;   /* bits 31:28; 0: data block */
};

/* Is it worth an SGL where PRPs would do? */
static inline int nv_sgl_better(const struct nv_segment *segments, uint32_t count)
{
    uint64_t nbytes = 0;
    for (uint32_t i = 0; i < count; i++)
        nbytes += segments[i].nbytes;
    return nbytes >= (uint64_t)count * NV_SGL_LARGE;
}

/* Fills prp[0..1] with one descriptor and, if need be, the list. Returns the number of data blocks, or NV_PRP_*. */
static inline int64_t nv_sgl_build(const struct nv_segment *segments, uint32_t count, int mode,
                                   struct nv_sgl_descriptor *list, uint64_t list_iova, uint32_t most, uint64_t prp[2])
{
    if (count == 0)
        return NV_PRP_EMPTY;
    if (count > 1 && count > most)
        return NV_PRP_TOO_LONG;
    for (uint32_t i = 0; i < count; i++) {
        if (segments[i].nbytes == 0)
            return NV_PRP_EMPTY;
        if (segments[i].nbytes > UINT32_MAX)
            return NV_PRP_TOO_LONG;
        if (mode == NV_SGL_DWORD && ((segments[i].iova | segments[i].nbytes) & 3))
            return NV_PRP_UNALIGNED;
    }
    if (count == 1) {
        prp[0] = segments->iova;
        prp[1] = segments->nbytes;
        return 1;
    }
    for (uint32_t i = 0; i < count; i++)
        list[i] = (struct nv_sgl_descriptor){segments[i].iova, (uint32_t)segments[i].nbytes, 0};
    prp[0] = list_iova;
    prp[1] = (uint64_t)count * sizeof *list | (uint64_t)NV_SGL_LAST_SEGMENT << 60;
    return count;
}

#endif
