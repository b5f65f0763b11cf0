/* FSYNC of published files: what a Flush alone makes durable.
 *
 * The file's metadata is durable when the batch that changed it last is committed: any change for fsync, size and block
 * map for fdatasync, which stay as they are while the file is published. Its data is durable when a Flush covers the
 * writes that had completed when the request came (ledger.h); writes under way have not been told to anybody, and writes
 * with Force Unit Access need none (hot.c).
 *
 * One Flush is under way at a time. Who comes meanwhile waits for the next, which is for all of them.
 *
 * A Flush that fails for good is noted before anybody is told; its requests go to Python, which turns the filesystem
 * read-only. What may succeed when sent again Python sends again. */
#include "frontend_private.h"

enum { OPCODE_FLUSH = 0, FSYNC_DATA_ONLY = 1 }; /* FUSE_FSYNC_FDATASYNC */

static void forward_line(struct channel *ch, struct fe_line *line)
{
    struct fe_slot *slot;
    while ((slot = fe_line_take(line))) {
        ch->busy--;
        fe_forward(ch, slot);
    }
}

static void answer_line(struct channel *ch, struct fe_line *line)
{
    struct fe_slot *slot;
    while ((slot = fe_line_take(line))) {
        ch->busy--;
        fe_count(&ch->fsyncs, 1);
        fe_answer(ch, slot, 0, NULL, 0);
        fe_free_slot(ch, slot);
    }
}

/* Submits a Flush for all who wait, unless one is under way. */
void fe_flush_next(struct channel *ch)
{
    struct fe_flush *flush = &ch->flush;
    if (flush->under_way || !flush->waiting.first)
        return;
    struct nv_sqe command = {.opcode = OPCODE_FLUSH, .nsid = ch->fe->config.nsid};
    uint64_t covers = ledger_written(ch->fe->config.ledger); /* before the command is submitted */
    int cid = nv_ring_push(ch->ring, &command, 0, 0, ch->fe->config.timeout_ns);
    if (cid < 0)
        return; /* the ring is full: looked at again when something has completed */
    ch->owner[cid & 0xfff] = &flush->command;
    flush->under_way = 1;
    flush->covers = covers;
    flush->covered = flush->waiting;
    flush->waiting.first = NULL;
    nv_ring_doorbell(ch->ring);
}

/* Sends nothing: the next command might get a slot whose completion is taken, but not looked at yet. */
void fe_flush_done(struct channel *ch, uint32_t status)
{
    struct fe_flush *flush = &ch->flush;
    struct ledger *ledger = ch->fe->config.ledger;
    flush->under_way = 0;
    fe_count(&ch->flushes, 1);
    if (status & FE_DO_NOT_RETRY || (status & 0x7ff) == FE_ABORT_REQUESTED)
        ledger_fail(ledger);
    else if (!status)
        ledger_cover(ledger, flush->covers);
    if (!status && !ledger_failed(ledger))
        answer_line(ch, &flush->covered);
    else
        fe_flush_forward(ch);
}

/* To Python with all of them. */
void fe_flush_forward(struct channel *ch)
{
    fe_count(&ch->failed, ch->flush.covered.first || ch->flush.waiting.first);
    forward_line(ch, &ch->flush.covered);
    forward_line(ch, &ch->flush.waiting);
}

/* The drive knows nothing of the Flush any more. A Flush that covers more is as good. */
void fe_flush_again(struct channel *ch)
{
    struct fe_flush *flush = &ch->flush;
    int lost = flush->command.expired;
    flush->command.expired = 0;
    flush->under_way = 0;
    if (lost) {
        ledger_fail(ch->fe->config.ledger);
        fe_flush_forward(ch);
    }
    while (flush->covered.first)
        fe_line_add(&flush->waiting, fe_line_take(&flush->covered));
    fe_flush_next(ch);
}

/* Whether the file is one of those whose every write is followed by an fsync. */
static void note_sync(struct dm_file *file)
{
    uint32_t writes = atomic_exchange_explicit(&file->unsynced, 0, memory_order_relaxed);
    if (writes == 1)
        atomic_fetch_add_explicit(&file->streak, 1, memory_order_relaxed);
    else if (writes)
        atomic_store_explicit(&file->streak, 0, memory_order_relaxed);
}

/* Whether all that the request asks for is committed; the file's data apart. */
static int is_committed(struct channel *ch, const struct fe_slot *slot)
{
    const struct fuse_fsync_in *in = (const struct fuse_fsync_in *)(slot->message + sizeof(struct fuse_in_header));
    struct dm_file *file = dm_acquire(ch->fe->config.map, fe_header(slot)->nodeid);
    if (!file)
        return 0;
    note_sync(file);
    uint64_t seq = in->fsync_flags & FSYNC_DATA_ONLY ? file->data_seq : file->seq;
    int committed = seq <= dm_committed(ch->fe->config.map);
    dm_release(ch->fe->config.map, file);
    return committed;
}

/* 1: it is being served, or has been answered; 0: it must be forwarded. The ring is ours. */
int fe_serve_fsync(struct channel *ch, struct fe_slot *slot)
{
    struct ledger *ledger = ch->fe->config.ledger;
    if (slot->length < sizeof(struct fuse_in_header) + sizeof(struct fuse_fsync_in) || !is_committed(ch, slot) ||
        ledger_failed(ledger))
        return 0;
    struct fe_line line = {0};
    ch->busy++;
    if (!ch->fe->config.volatile_cache || ledger_flushed(ledger) >= ledger_written(ledger)) {
        fe_line_add(&line, slot);
        answer_line(ch, &line);
        return 1;
    }
    fe_line_add(&ch->flush.waiting, slot);
    fe_flush_next(ch);
    return 1;
}
