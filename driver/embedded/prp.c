/*
 * PRP entries to host memory (section 4.3). Only the first entry may point into a page; PRP2 is a second
 * page or, from three pages on, a list; a list goes on in a further page through its last entry.
 */
#include <string.h>

#include "controller.h"

uint16_t prp_append(struct controller *c, uint64_t iova, uint64_t length)
{
    uint8_t *host = dma_translate(c->dma, iova, length);
    if (!host)
        return STATUS_DATA_TRANSFER_ERROR;
    if (c->iov_count) {
        struct iovec *last = &c->iov[c->iov_count - 1];
        if ((uint8_t *)last->iov_base + last->iov_len == host) {
            last->iov_len += length;
            return STATUS_SUCCESS;
        }
    }
    if (c->iov_count == c->iov_limit)
        return STATUS_SGL_COUNT_INVALID; /* PRPs never need so many */
    c->iov[c->iov_count++] = (struct iovec){host, length};
    return STATUS_SUCCESS;
}

static uint16_t resolve_list(struct controller *c, uint64_t list, uint64_t length)
{
    uint64_t page = 1ull << c->page_bits;
    if (list & 7)
        return STATUS_PRP_OFFSET_INVALID;
    while (length) {
        uint64_t needed = (length + page - 1) >> c->page_bits;
        uint64_t slots = (page - (list & (page - 1))) / sizeof(uint64_t);
        uint64_t used = needed <= slots ? needed : slots - 1; /* else the last slot is the chain pointer */
        uint64_t loaded = needed <= slots ? needed : slots;
        const uint64_t *entries = dma_translate(c->dma, list, loaded * sizeof(uint64_t));
        if (!entries)
            return STATUS_DATA_TRANSFER_ERROR;
        for (uint64_t i = 0; i < used; i++) {
            /* Read once: the host may change it at any time, and must not slip a checked value past us. */
            uint64_t entry = __atomic_load_n(&entries[i], __ATOMIC_RELAXED);
            if (entry & (page - 1))
                return STATUS_PRP_OFFSET_INVALID;
            uint64_t bytes = length < page ? length : page;
            uint16_t status = prp_append(c, entry, bytes);
            if (status)
                return status;
            length -= bytes;
        }
        if (needed > slots) {
            list = __atomic_load_n(&entries[slots - 1], __ATOMIC_RELAXED);
            if (list & (page - 1))
                return STATUS_PRP_OFFSET_INVALID;
        }
    }
    return STATUS_SUCCESS;
}

uint16_t prp_resolve(struct controller *c, uint64_t prp1, uint64_t prp2, uint64_t length)
{
    uint64_t page = 1ull << c->page_bits;
    c->iov_count = 0;
    if (prp1 & 3)
        return STATUS_PRP_OFFSET_INVALID;
    uint64_t first = page - (prp1 & (page - 1));
    if (first >= length)
        return prp_append(c, prp1, length);
    uint16_t status = prp_append(c, prp1, first);
    if (status)
        return status;
    length -= first;
    if (length > page)
        return resolve_list(c, prp2, length);
    if (prp2 & (page - 1))
        return STATUS_PRP_OFFSET_INVALID;
    return prp_append(c, prp2, length);
}

uint16_t data_resolve(struct controller *c, const struct nvme_command *cmd, uint64_t length)
{
    return COMMAND_HAS_SGL(cmd) ? sgl_resolve(c, cmd, length) : prp_resolve(c, cmd->prp1, cmd->prp2, length);
}

uint16_t data_copy_out(struct controller *c, const struct nvme_command *cmd, const void *data, uint64_t length)
{
    uint16_t status = data_resolve(c, cmd, length);
    if (status)
        return status;
    const uint8_t *from = data;
    for (uint32_t i = 0; i < c->iov_count; i++) {
        memcpy(c->iov[i].iov_base, from, c->iov[i].iov_len);
        from += c->iov[i].iov_len;
    }
    return STATUS_SUCCESS;
}

uint16_t data_copy_in(struct controller *c, const struct nvme_command *cmd, void *data, uint64_t length)
{
    uint16_t status = data_resolve(c, cmd, length);
    if (status)
        return status;
    uint8_t *to = data;
    for (uint32_t i = 0; i < c->iov_count; i++) {
        memcpy(to, c->iov[i].iov_base, c->iov[i].iov_len);
        to += c->iov[i].iov_len;
    }
    return STATUS_SUCCESS;
}
