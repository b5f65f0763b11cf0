/* READ and WRITE of published files, from the request straight to the drive.
 *
 * A request's memory is DMA memory: a WRITE's payload goes to the drive from where the kernel put it, a READ's reply
 * leaves from where the drive put it. Whatever is out of the ordinary is forwarded. */
#include "frontend_private.h"

#include <string.h>

enum { OPCODE_WRITE = 1, OPCODE_READ = 2, WRITE_SIZE_LIMIT = FE_MAX_WRITE };
enum { CDW12_FUA = 1 << 30 };

/* One run of device blocks, to or from data + at * 4096. 0 when the ring does not take it. */
static int submit_run(struct channel *ch, struct fe_slot *slot, uint8_t opcode, uint64_t start, uint64_t at, uint64_t count)
{
    struct fe_config *c = &ch->fe->config;
    while (count) {
        uint64_t part = count < c->max_transfer_blocks ? count : c->max_transfer_blocks;
        uint64_t lba = start * c->lbas_per_block;
        struct nv_sqe command = {.opcode = opcode, .nsid = c->nsid};
        command.cdw10[0] = (uint32_t)lba;
        command.cdw10[1] = (uint32_t)(lba >> 32);
        command.cdw10[2] = (uint32_t)(part * c->lbas_per_block - 1) | (slot->fua ? CDW12_FUA : 0);
        int cid = nv_ring_push(ch->ring, &command, slot->data_iova + at * FE_PAGE, part * FE_PAGE, c->timeout_ns);
        if (cid < 0)
            return 0;
        ch->owner[cid & 0xfff] = slot;
        slot->pending++;
        start += part;
        at += part;
        count -= part;
    }
    return 1;
}

/* Commands that blocks first..first+count-1 take, at most. */
static uint32_t commands_needed(const struct channel *ch, const struct dm_file *file, uint64_t first, uint64_t count)
{
    uint64_t needed = 0, end = first + count;
    for (uint32_t i = dm_find(file, first); i < file->count && file->extents[i].file_block < end; i++)
        needed += 1 + file->extents[i].count / ch->fe->config.max_transfer_blocks;
    return needed < UINT32_MAX ? (uint32_t)needed : UINT32_MAX;
}

/* Submits what is mapped of first..first+count-1. Room has been checked; should the ring refuse all the same, the
 * request fails when what was submitted has completed, and is forwarded. */
static void submit_mapped(struct channel *ch, struct fe_slot *slot, uint8_t opcode, uint64_t first, uint64_t count)
{
    const struct dm_file *file = slot->file;
    uint64_t end = first + count;
    for (uint32_t i = dm_find(file, first); i < file->count && file->extents[i].file_block < end; i++) {
        const struct dm_extent *e = &file->extents[i];
        uint64_t from = e->file_block > first ? e->file_block : first;
        uint64_t to = e->file_block + e->count < end ? e->file_block + e->count : end;
        if (!submit_run(ch, slot, opcode, e->start + from - e->file_block, from - first, to - from)) {
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
static int start(struct channel *ch, const struct fe_slot *slot)
{
    if (!slot->pending)
        return 0;
    ch->busy++;
    nv_ring_doorbell(ch->ring);
    return 1;
}

static void finish_read(struct channel *ch, struct fe_slot *slot)
{
    fe_count(&ch->reads, 1);
    fe_count(&ch->read_bytes, slot->bytes);
    fe_answer(ch, slot, 0, slot->data + slot->skip, slot->bytes);
}

static int serve_read(struct channel *ch, struct fe_slot *slot)
{
    const struct fuse_read_in *in = (const struct fuse_read_in *)(slot->message + sizeof(struct fuse_in_header));
    struct dm_file *file = slot->file;
    if (slot->length < sizeof(struct fuse_in_header) + sizeof *in || in->offset > INT64_MAX)
        return 0;
    if (!(in->fh & ch->fe->config.unmarked_handles))
        dm_mark_read(file);
    uint64_t end = in->offset + in->size;
    if (end > file->size_bytes)
        end = file->size_bytes;
    slot->bytes = end > in->offset ? (uint32_t)(end - in->offset) : 0;
    slot->skip = in->offset % FE_PAGE;
    if (!slot->bytes) {
        finish_read(ch, slot);
        return 1;
    }
    uint64_t first = in->offset / FE_PAGE, count = (end - 1) / FE_PAGE + 1 - first;
    if (count * FE_PAGE > FE_MAX_WRITE || commands_needed(ch, file, first, count) > ch->ring->free_count)
        return 0;
    if (mapped_blocks(file, first, count) < count)
        memset(slot->data, 0, count * FE_PAGE); /* holes; the drive fills the rest */
    submit_mapped(ch, slot, OPCODE_READ, first, count);
    if (!slot->pending && !slot->failed) {
        finish_read(ch, slot);
        return 1;
    }
    return start(ch, slot);
}

/* Whether an fsync will follow before the next write, as it did lately: then the write is made durable by itself, which
 * spares the Flush (decision 0022). With others under way a Flush for all of them is cheaper. */
static uint32_t wants_fua(const struct channel *ch, const struct fe_slot *slot)
{
    const struct fe_config *c = &ch->fe->config;
    return c->fua && c->volatile_cache && !ch->busy && slot->bytes <= FE_FUA_BYTES &&
           atomic_load_explicit(&slot->file->streak, memory_order_relaxed) >= FE_FUA_STREAK;
}

static int serve_write(struct channel *ch, struct fe_slot *slot)
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
        commands_needed(ch, slot->file, first, count) > ch->ring->free_count)
        return 0;
    slot->bytes = in->size;
    slot->fua = wants_fua(ch, slot);
    atomic_fetch_add_explicit(&slot->file->unsynced, 1, memory_order_relaxed);
    submit_mapped(ch, slot, OPCODE_WRITE, first, count);
    return start(ch, slot);
}

int fe_submit(struct channel *ch, struct fe_slot *slot)
{
    const struct fuse_in_header *in = fe_header(slot);
    slot->pending = slot->failed = slot->expired = slot->fua = 0;
    int served = in->opcode == FUSE_READ ? serve_read(ch, slot) : serve_write(ch, slot);
    if (!slot->pending) { /* answered already, or not served */
        dm_release(ch->fe->config.map, slot->file);
        slot->file = NULL;
        if (served)
            fe_free_slot(ch, slot);
    }
    return served;
}

/* 0: the driver has it. */
static int has_ring(struct channel *ch)
{
    return ch->holding || (!ch->busy && fe_enter(ch));
}

int fe_serve(struct channel *ch, struct fe_slot *slot)
{
    const struct fuse_in_header *in = fe_header(slot);
    if (!ch->ring)
        return 0;
    if (in->opcode == FUSE_FSYNC)
        return has_ring(ch) && fe_serve_fsync(ch, slot);
    if (in->opcode != FUSE_READ && in->opcode != FUSE_WRITE)
        return 0;
    slot->file = dm_acquire(ch->fe->config.map, in->nodeid);
    if (!slot->file)
        return 0;
    int within_reach = has_ring(ch) ? fe_borrow(ch, slot) : -1;
    if (within_reach == 1)
        return fe_submit(ch, slot);
    dm_release(ch->fe->config.map, slot->file);
    slot->file = NULL;
    if (within_reach == 0)
        fe_line_add(&ch->short_of_memory, slot);
    return within_reach == 0;
}

/* The last command of a request has completed. */
static void finish(struct channel *ch, struct fe_slot *slot)
{
    const struct fuse_in_header *in = fe_header(slot);
    int write = in->opcode == FUSE_WRITE;
    ch->busy--;
    if (slot->expired) {
        fe_fail(ch, slot);
        return;
    }
    if (write && !slot->failed) {
        /* Counted before the file is given back: who drains it must see that there is data to flush. */
        if (!slot->fua)
            ledger_wrote(ch->fe->config.ledger);
        fe_count(&ch->writes, 1);
        fe_count(&ch->written_bytes, slot->bytes);
    }
    dm_release(ch->fe->config.map, slot->file);
    slot->file = NULL;
    if (slot->failed) {
        fe_count(&ch->failed, 1);
        fe_forward(ch, slot);
        return;
    }
    if (write) {
        struct fuse_write_out out = {.size = slot->bytes};
        fe_answer(ch, slot, 0, &out, sizeof out);
    } else {
        finish_read(ch, slot);
    }
    fe_free_slot(ch, slot);
}

uint32_t fe_reap(struct channel *ch)
{
    struct nv_ring *ring = ch->ring;
    nv_ring_reap(ring);
    uint32_t count = ring->done_count;
    ring->done_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct fe_slot *slot = ch->owner[ring->done[i].cid & 0xfff];
        if (!slot)
            continue;
        ch->owner[ring->done[i].cid & 0xfff] = NULL;
        uint16_t status = ring->done[i].status;
        if (slot == &ch->flush.command) {
            fe_flush_done(ch, status);
            continue;
        }
        slot->failed |= status != 0;
        slot->expired |= (status & 0x7ff) == FE_ABORT_REQUESTED; /* by the driver, when its deadline had passed */
        if (!--slot->pending)
            finish(ch, slot);
    }
    if (count)
        fe_flush_next(ch);
    return count;
}
