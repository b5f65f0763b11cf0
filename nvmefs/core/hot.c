/* READ and WRITE of published files, from the request straight to the drive.
 *
 * A request's memory is DMA memory: a WRITE's payload goes to the drive from where the kernel put it, a READ's reply
 * leaves from where the drive put it. Whatever is out of the ordinary is forwarded. */
#include "frontend_private.h"

#include <string.h>

enum { OPCODE_WRITE = 1, OPCODE_READ = 2, WRITE_SIZE_LIMIT = FE_MAX_WRITE,
       ABORT_REQUESTED = 0x07 };

/* One run of device blocks, to or from data + at * 4096. 0 when the ring does not take it. */
static int submit_run(struct frontend *fe, struct fe_slot *slot, uint8_t opcode, uint64_t start, uint64_t at, uint64_t count)
{
    struct fe_config *c = &fe->config;
    while (count) {
        uint64_t part = count < c->max_transfer_blocks ? count : c->max_transfer_blocks;
        uint64_t lba = start * c->lbas_per_block;
        struct nv_sqe command = {.opcode = opcode, .nsid = c->nsid};
        command.cdw10[0] = (uint32_t)lba;
        command.cdw10[1] = (uint32_t)(lba >> 32);
        command.cdw10[2] = (uint32_t)(part * c->lbas_per_block - 1);
        int cid = nv_ring_push(fe->ring, &command, slot->data_iova + at * FE_PAGE, part * FE_PAGE, c->timeout_ns);
        if (cid < 0)
            return 0;
        fe->owner[cid & 0xfff] = slot;
        slot->pending++;
        start += part;
        at += part;
        count -= part;
    }
    return 1;
}

/* Commands that blocks first..first+count-1 take, at most. */
static uint32_t commands_needed(const struct frontend *fe, const struct dm_file *file, uint64_t first, uint64_t count)
{
    uint64_t needed = 0, end = first + count;
    for (uint32_t i = dm_find(file, first); i < file->count && file->extents[i].file_block < end; i++)
        needed += 1 + file->extents[i].count / fe->config.max_transfer_blocks;
    return needed < UINT32_MAX ? (uint32_t)needed : UINT32_MAX;
}

/* Submits what is mapped of first..first+count-1. Room has been checked; should the ring refuse all the same, the
 * request fails when what was submitted has completed, and is forwarded. */
static void submit_mapped(struct frontend *fe, struct fe_slot *slot, uint8_t opcode, uint64_t first, uint64_t count)
{
    const struct dm_file *file = slot->file;
    uint64_t end = first + count;
    for (uint32_t i = dm_find(file, first); i < file->count && file->extents[i].file_block < end; i++) {
        const struct dm_extent *e = &file->extents[i];
        uint64_t from = e->file_block > first ? e->file_block : first;
        uint64_t to = e->file_block + e->count < end ? e->file_block + e->count : end;
        if (!submit_run(fe, slot, opcode, e->start + from - e->file_block, from - first, to - from)) {
            slot->failed = 1;
            break;
        }
    }
}

static uint64_t mapped_blocks(const struct dm_file *file, uint64_t first, uint64_t count)
{
    uint64_t end = first + count, mapped = 0;
    for (uint32_t i = dm_find(file, first); i < file->count && file->extents[i].file_block < end; i++) {
        const struct dm_extent *e = &file->extents[i];
        uint64_t from = e->file_block > first ? e->file_block : first;
        uint64_t to = e->file_block + e->count < end ? e->file_block + e->count : end;
        mapped += to - from;
    }
    return mapped;
}

/* 0: nothing was submitted, the request must be forwarded. */
static int start(struct frontend *fe, const struct fe_slot *slot)
{
    if (!slot->pending)
        return 0;
    fe->busy++;
    nv_ring_doorbell(fe->ring);
    return 1;
}

static void finish_read(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    atomic_fetch_add_explicit(&fe->reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&fe->read_bytes, slot->bytes, memory_order_relaxed);
    fe_answer(fe, in->unique, 0, slot->data + slot->skip, slot->bytes);
}

static int serve_read(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_read_in *in = (const struct fuse_read_in *)(slot->message + sizeof(struct fuse_in_header));
    struct dm_file *file = slot->file;
    if (slot->length < sizeof(struct fuse_in_header) + sizeof *in || in->offset > INT64_MAX)
        return 0;
    uint64_t end = in->offset + in->size;
    if (end > file->size_bytes)
        end = file->size_bytes;
    slot->bytes = end > in->offset ? (uint32_t)(end - in->offset) : 0;
    slot->skip = in->offset % FE_PAGE;
    if (!slot->bytes) {
        finish_read(fe, slot);
        return 1;
    }
    uint64_t first = in->offset / FE_PAGE, count = (end - 1) / FE_PAGE + 1 - first;
    if (count * FE_PAGE > FE_MAX_WRITE || commands_needed(fe, file, first, count) > fe->ring->free_count)
        return 0;
    if (mapped_blocks(file, first, count) < count)
        memset(slot->data, 0, count * FE_PAGE); /* holes; the drive fills the rest */
    submit_mapped(fe, slot, OPCODE_READ, first, count);
    if (!slot->pending && !slot->failed) {
        finish_read(fe, slot);
        return 1;
    }
    return start(fe, slot);
}

static int serve_write(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_write_in *in = (const struct fuse_write_in *)(slot->message + sizeof(struct fuse_in_header));
    if (slot->length < FE_HEADER_BYTES || slot->length - FE_HEADER_BYTES != in->size || in->write_flags & KILL_SUIDGID)
        return 0;
    if (!in->size || in->offset % FE_PAGE || in->size % FE_PAGE || in->size > WRITE_SIZE_LIMIT)
        return 0;
    if (in->offset > slot->file->size_bytes || in->size > slot->file->size_bytes - in->offset)
        return 0;
    uint64_t first = in->offset / FE_PAGE, count = in->size / FE_PAGE;
    if (mapped_blocks(slot->file, first, count) != count ||
        commands_needed(fe, slot->file, first, count) > fe->ring->free_count)
        return 0;
    slot->bytes = in->size;
    submit_mapped(fe, slot, OPCODE_WRITE, first, count);
    return start(fe, slot);
}

int fe_submit(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    slot->pending = slot->failed = slot->expired = 0;
    int served = in->opcode == FUSE_READ ? serve_read(fe, slot) : serve_write(fe, slot);
    if (!slot->pending) { /* answered already, or not served */
        dm_release(fe->config.map, slot->file);
        slot->file = NULL;
        if (served)
            fe_free_slot(fe, slot);
    }
    return served;
}

int fe_serve(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    if (!fe->ring || (in->opcode != FUSE_READ && in->opcode != FUSE_WRITE))
        return 0;
    slot->file = dm_acquire(fe->config.map, in->nodeid);
    if (!slot->file)
        return 0;
    if (!fe->holding && (fe->busy || !fe_enter(fe))) { /* the driver has the ring */
        dm_release(fe->config.map, slot->file);
        slot->file = NULL;
        return 0;
    }
    return fe_submit(fe, slot);
}

/* The last command of a request has completed. */
static void finish(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    int write = in->opcode == FUSE_WRITE;
    fe->busy--;
    if (slot->expired) {
        fe_fail(fe, slot);
        return;
    }
    if (write && !slot->failed) {
        /* Counted before the file is given back: who drains it must see that there is data to flush. */
        atomic_fetch_add_explicit(&fe->writes, 1, memory_order_release);
        atomic_fetch_add_explicit(&fe->written_bytes, slot->bytes, memory_order_relaxed);
    }
    dm_release(fe->config.map, slot->file);
    slot->file = NULL;
    if (slot->failed) {
        atomic_fetch_add_explicit(&fe->failed, 1, memory_order_relaxed);
        fe_forward(fe, slot);
        return;
    }
    if (write) {
        struct fuse_write_out out = {.size = slot->bytes};
        fe_answer(fe, in->unique, 0, &out, sizeof out);
    } else {
        finish_read(fe, slot);
    }
    fe_free_slot(fe, slot);
}

uint32_t fe_reap(struct frontend *fe)
{
    struct nv_ring *ring = fe->ring;
    nv_ring_reap(ring);
    uint32_t count = ring->done_count;
    ring->done_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct fe_slot *slot = fe->owner[ring->done[i].cid & 0xfff];
        if (!slot)
            continue;
        fe->owner[ring->done[i].cid & 0xfff] = NULL;
        uint16_t status = ring->done[i].status;
        slot->failed |= status != 0;
        slot->expired |= (status & 0x7ff) == ABORT_REQUESTED; /* by the driver, when its deadline had passed */
        if (!--slot->pending)
            finish(fe, slot);
    }
    return count;
}
