/* One NVMe queue pair: a submission ring that we fill and a completion ring that the controller fills.
 *
 *       we: SQE at sq_tail, then the tail doorbell            controller: CQE at its tail, phase bit flipped
 *       +---+---+---+---+---+---+                             +---+---+---+---+---+---+
 *   SQ  |   | * | * | * |   |   |                         CQ  | 1 | 1 | 0 | 0 | 0 | 0 |
 *       +---+---+---+---+---+---+                             +---+---+---+---+---+---+
 *           head ^      ^ tail                                        ^ cq_head, expecting phase 1
 *
 * Below: mmio.h (barriers), prp.h and sgl.h (buffers), histogram.h. Above: driver/queues.py, and C threads with a queue pair of
 * their own. A ring belongs to one thread: nothing here locks.
 *
 * Typical sequence:
 *     cid = nv_ring_push(r, sqe, &segment, 1, timeout_ns);   any number of times
 *     nv_ring_doorbell(r);                                   once for all of them
 *     nv_ring_reap(r);                                       fills r->done[0 .. r->done_count)
 *     ... take them, r->done_count = 0 ...
 * or, for a single command,  nv_ring_wait(r, cid).
 *
 * Specification: NVM Express base 2.0, sections 3.3.1 (queues), 4.2 (completions), 5.8 and B.5 (shadow doorbells).
 */
#ifndef NV_RING_H
#define NV_RING_H

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "histogram.h"
#include "mmio.h"
#include "prp.h"
#include "sgl.h"

enum {
    NV_RING_FULL = -1,
    NV_RING_MAX_DEPTH = 4095, /* a command id is 12 bits of slot, 4 bits of generation; 0xFFFF never occurs */
    NV_RING_PENDING = -1,
};

enum nv_kind { NV_READ, NV_WRITE, NV_OTHER, NV_KINDS };

struct nv_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t cdw2_3;
    uint64_t metadata;
    uint64_t prp[2];
    uint32_t cdw10[6];
};

struct nv_cqe {
    uint32_t result;
    uint32_t reserved;
    uint16_t sq_head;
    uint16_t sq_id;
    uint16_t cid;
    uint16_t status; /* bit 0: phase; bits 1-15: the status field */
};

struct nv_slot {
    uint64_t submitted_ns;
    uint64_t expires_ns; /* UINT64_MAX: never */
    uint16_t cid;        /* the id of the command in flight, or of the last one */
    uint8_t busy;
    uint8_t kind;
};

struct nv_done {
    uint16_t cid;
    uint16_t status; /* without the phase bit: SC 0-7, SCT 8-10, CRD 11-12, More 13, DNR 14 */
    uint32_t result;
};

/* How long a command of a kind is worth spinning for: what the device has been taking, doubled; after a failure
 * some commands are not spun for at all. */
struct nv_poll {
    uint32_t estimate_ns;
    uint16_t skip;
    uint16_t backoff;
};

struct nv_ring {
    struct nv_sqe *sq;
    volatile struct nv_cqe *cq;
    struct nv_slot *slots;
    struct nv_done *done;
    uint16_t *free_slots;

    uint32_t depth;
    uint32_t capacity; /* commands in flight at most: depth - 1, so neither ring can overflow */
    uint32_t free_count;
    uint32_t done_count;
    uint16_t qid;
    uint16_t sq_tail;
    uint16_t sq_head; /* as last told by the controller */
    uint16_t cq_head;
    uint16_t sq_rung; /* the tail and head the controller has been told */
    uint16_t cq_rung;
    uint8_t phase;

    /* PRP lists: list_pages pages per slot */
    uint64_t *lists;
    uint64_t lists_iova;
    uint32_t list_pages;
    uint32_t page_bytes;
    uint8_t sgl; /* NV_SGL_*: what the controller takes beside PRPs */

    /* Doorbells. NULL registers: the owner writes them by message when told to. */
    volatile uint32_t *sq_doorbell, *cq_doorbell;
    volatile uint32_t *sq_shadow, *cq_shadow; /* NULL: not configured */
    volatile uint32_t *sq_event, *cq_event;
    int kick_fd; /* -1: none */
    int kick_errno; /* the last failure of a kick, 0 if none */

    uint32_t poll_max_ns;
    struct nv_poll poll[NV_KINDS];

    /* Counters */
    uint64_t submitted, completed, failed;
    uint64_t doorbells, doorbells_saved, kicks;
    uint64_t polled, poll_misses;
    uint64_t bad_cid, bad_sq_head, bad_sq_id; /* completions that no honest controller sends */
    uint16_t last_bad_cid;
    struct nv_histogram latency_ns[NV_KINDS];
};

/* ---- life ---------------------------------------------------------------------------------------------------- */

/* To be called again after a controller reset, with the same memory: all commands are forgotten. */
static inline void nv_ring_reset(struct nv_ring *r)
{
    memset((void *)r->cq, 0, sizeof(struct nv_cqe) * r->depth); /* phase 0 everywhere: the first pass is phase 1 */
    r->sq_tail = r->sq_head = r->cq_head = r->sq_rung = r->cq_rung = 0;
    r->phase = 1;
    r->done_count = 0;
    r->free_count = 0;
    for (uint32_t i = r->capacity; i-- > 0;) {
        r->slots[i].busy = 0;
        r->free_slots[r->free_count++] = (uint16_t)i;
    }
}

static inline void nv_ring_free(struct nv_ring *r)
{
    if (!r)
        return;
    free(r->slots);
    free(r->done);
    free(r->free_slots);
    free(r);
}

/* NULL: out of memory or a depth outside 2..NV_RING_MAX_DEPTH. `sq`, `cq` and `lists` stay the caller's. */
static inline struct nv_ring *nv_ring_new(uint16_t qid, uint32_t depth, void *sq, void *cq, void *lists, uint64_t lists_iova,
                                          uint32_t list_pages, uint32_t page_bytes)
{
    if (depth < 2 || depth > NV_RING_MAX_DEPTH)
        return NULL;
    struct nv_ring *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->slots = calloc(depth, sizeof *r->slots);
    r->done = calloc(depth, sizeof *r->done);
    r->free_slots = calloc(depth, sizeof *r->free_slots);
    if (!r->slots || !r->done || !r->free_slots) {
        nv_ring_free(r);
        return NULL;
    }
    r->qid = qid;
    r->depth = depth;
    r->capacity = depth - 1;
    r->sq = sq;
    r->cq = cq;
    r->lists = lists;
    r->lists_iova = lists_iova;
    r->list_pages = list_pages;
    r->page_bytes = page_bytes;
    r->kick_fd = -1;
    for (uint32_t i = 0; i < depth; i++)
        r->slots[i].cid = (uint16_t)i;
    nv_ring_reset(r);
    return r;
}

static inline uint32_t nv_ring_inflight(const struct nv_ring *r)
{
    return r->capacity - r->free_count;
}

/* ---- doorbells ------------------------------------------------------------------------------------------------ */

/* Out of line, as all that is not on the shortest way of a command: it would only cost registers there. */
static NV_COLD void nv_ring_write_kick(struct nv_ring *r)
{
    const uint64_t one = 1;
    r->kicks++;
    while (write(r->kick_fd, &one, sizeof one) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN) /* EAGAIN: the counter is full, so the other side is woken as it is */
            r->kick_errno = errno;
        break;
    }
}

static inline void nv_ring_kick(struct nv_ring *r)
{
    if (r->kick_fd >= 0)
        nv_ring_write_kick(r);
}

/* Did the move from old to fresh pass the index at which the controller asked to be told? (B.5) */
static inline int nv_ring_need_event(uint16_t event, uint16_t fresh, uint16_t old)
{
    return (uint16_t)(fresh - event - 1) < (uint16_t)(fresh - old);
}

/* Tells the controller a new tail or head. Returns 1 when the caller has to write the register by message. */
static inline int nv_ring_tell(struct nv_ring *r, volatile uint32_t *reg, volatile uint32_t *shadow,
                               const volatile uint32_t *event, uint16_t fresh, uint16_t old)
{
    if (shadow) {
        *shadow = fresh;
        /* The controller stores its event index and then looks at the shadow once more before it sleeps; we store
         * the shadow and then look at the event index. Without a full barrier both could see the old value: it
         * would sleep and we would not ring. The admin queue has no event index: it keeps the shadow right, for
         * controllers that read it, and always rings, for those that do not. */
        nv_mb();
        if (event && !nv_ring_need_event((uint16_t)*event, fresh, old)) {
            r->doorbells_saved++;
            return 0;
        }
    }
    r->doorbells++;
    if (!reg)
        return 1;
    *reg = fresh;
    nv_ring_kick(r);
    return 0;
}

/* Makes all pushed commands visible. Returns 1 when the owner must write sq_tail to the tail register by message. */
static inline int nv_ring_doorbell(struct nv_ring *r)
{
    uint16_t old = r->sq_rung;
    if (old == r->sq_tail)
        return 0;
    r->sq_rung = r->sq_tail;
    /* The entries (and PRP lists) must be in memory before the controller can learn of the tail. */
    nv_wmb();
    return nv_ring_tell(r, r->sq_doorbell, r->sq_shadow, r->sq_event, r->sq_tail, old);
}

/* The same for completion entries taken. */
static inline int nv_ring_cq_doorbell(struct nv_ring *r)
{
    uint16_t old = r->cq_rung;
    if (old == r->cq_head)
        return 0;
    r->cq_rung = r->cq_head;
    /* The entries must have been read before the controller may overwrite them. x86 never moves a store before an
     * earlier load; elsewhere a full barrier is the one that orders loads before a device-visible store. */
#if defined(__x86_64__)
    nv_wmb();
#else
    nv_mb();
#endif
    return nv_ring_tell(r, r->cq_doorbell, r->cq_shadow, r->cq_event, r->cq_head, old);
}

/* ---- submission ----------------------------------------------------------------------------------------------- */

static inline uint8_t nv_kind_of(const struct nv_ring *r, uint8_t opcode)
{
    if (r->qid == 0 || opcode > 2 || opcode == 0)
        return NV_OTHER;
    return opcode == 2 ? NV_READ : NV_WRITE;
}

/* The PRPs, or the SGL, of what is not inside one page, with the list pages of a slot. Returns the SQE's flags or
 * NV_PRP_*. */
static NV_COLD int nv_ring_list(struct nv_ring *r, uint16_t index, const struct nv_segment *segments, uint32_t count,
                                uint64_t *prp)
{
    uint64_t offset = (uint64_t)index * r->list_pages * r->page_bytes;
    uint64_t *list = r->lists ? r->lists + offset / 8 : NULL, iova = r->lists_iova + offset;
    struct nv_sgl_descriptor *sgl = (struct nv_sgl_descriptor *)list;
    uint32_t most = list ? NV_SGL_MOST : 0;

    if (r->sgl && nv_sgl_better(segments, count) && nv_sgl_build(segments, count, r->sgl, sgl, iova, most, prp) > 0)
        return NV_SGL_FLAG;
    int64_t built = nv_prp_build(segments, count, r->page_bytes, list, iova, list ? r->list_pages : 0, prp);
    if (built >= 0 || !r->sgl)
        return built < 0 ? (int)built : 0;
    built = nv_sgl_build(segments, count, r->sgl, sgl, iova, most, prp);
    return built < 0 ? (int)built : NV_SGL_FLAG;
}

/* The slot on top of the stack is the command's. Returns its id. */
static inline int nv_ring_put(struct nv_ring *r, const void *command, uint8_t flags, uint64_t prp1, uint64_t prp2,
                              uint64_t timeout_ns)
{
    uint16_t index = r->free_slots[--r->free_count];
    struct nv_slot *slot = &r->slots[index];
    uint16_t cid = (uint16_t)((slot->cid + 0x1000) & 0xf000) | index; /* next generation: a late answer is told apart */
    uint64_t now = nv_now_ns();
    slot->cid = cid;
    slot->busy = 1;
    slot->submitted_ns = now;
    slot->expires_ns = timeout_ns ? now + timeout_ns : UINT64_MAX;

    uint32_t tail = r->sq_tail;
    struct nv_sqe *sqe = &r->sq[tail++];
    memcpy(sqe, command, sizeof *sqe);
    sqe->flags = flags; /* fused commands are not sent */
    sqe->cid = cid;
    sqe->prp[0] = prp1;
    sqe->prp[1] = prp2;
    slot->kind = nv_kind_of(r, sqe->opcode);
    r->sq_tail = (uint16_t)(tail == r->depth ? 0 : tail);
    r->submitted++;
    return cid;
}

static NV_COLD int nv_ring_push_scattered(struct nv_ring *r, const void *command, const struct nv_segment *segments,
                                          uint32_t count, uint64_t timeout_ns)
{
    uint64_t prp[2] = {0, 0};
    int flags = nv_ring_list(r, r->free_slots[r->free_count - 1], segments, count, prp);
    return flags < 0 ? flags : nv_ring_put(r, command, (uint8_t)flags, prp[0], prp[1], timeout_ns);
}

/* Copies a 64-byte command into the ring with an id, PRPs (or an SGL) and flags of its own. The controller does not see it
 * before nv_ring_doorbell(). segments may be NULL (count 0) for a command without data. timeout_ns 0: none.
 * Returns the command id, NV_RING_FULL or NV_PRP_*; on an error nothing has changed. */
static inline int nv_ring_push_segments(struct nv_ring *r, const void *command, const struct nv_segment *segments,
                                        uint32_t count, uint64_t timeout_ns)
{
    if (r->free_count == 0)
        return NV_RING_FULL;
    if (count == 1 && !(segments->iova & 3) && segments->nbytes &&
        (segments->iova & (r->page_bytes - 1)) + segments->nbytes <= r->page_bytes) /* by far the most frequent */
        return nv_ring_put(r, command, 0, segments->iova, 0, timeout_ns);
    if (count)
        return nv_ring_push_scattered(r, command, segments, count, timeout_ns);
    return nv_ring_put(r, command, 0, 0, 0, timeout_ns);
}

/* The same for a buffer that is contiguous for the device; nbytes 0: no data. */
static inline int nv_ring_push(struct nv_ring *r, const void *command, uint64_t iova, uint64_t nbytes, uint64_t timeout_ns)
{
    struct nv_segment segment = {iova, nbytes};
    return nv_ring_push_segments(r, command, &segment, nbytes ? 1 : 0, timeout_ns);
}

/* ---- completion ------------------------------------------------------------------------------------------------ */

/* Accepts one entry if it answers a command that is in flight. Everything in it comes from the controller. */
static inline void nv_ring_accept(struct nv_ring *r, struct nv_cqe entry, uint64_t now)
{
    uint16_t index = entry.cid & 0xfff;
    struct nv_slot *slot = r->slots + index; /* not looked at before the index has been checked */
    if (NV_LIKELY(entry.sq_head < r->depth))
        r->sq_head = entry.sq_head;
    else
        r->bad_sq_head++;
    if (NV_UNLIKELY(entry.sq_id != r->qid))
        r->bad_sq_id++;
    else if (NV_LIKELY(index < r->capacity && slot->cid == entry.cid && slot->busy)) {
        uint16_t status = entry.status >> 1;
        slot->busy = 0;
        r->free_slots[r->free_count++] = index;
        nv_histogram_add(&r->latency_ns[slot->kind], now - slot->submitted_ns);
        r->failed += status != 0;
        r->done[r->done_count++] = (struct nv_done){entry.cid, status, entry.result};
        return;
    }
    r->bad_cid++; /* out of range, duplicate, or stale: nobody waits for it, and nobody is woken by it */
    r->last_bad_cid = entry.cid;
}

/* Moves what has completed to done[]. Returns the number of entries taken from the ring, good or bad.
 * The completion doorbell is not rung: nv_ring_cq_doorbell(). */
static inline uint32_t nv_ring_take(struct nv_ring *r)
{
    volatile struct nv_cqe *cqe = &r->cq[r->cq_head];
    uint16_t status = cqe->status;
    if ((status & 1) != r->phase || r->done_count >= r->depth)
        return 0; /* by far the most frequent while polling */

    const uint64_t now = nv_now_ns();
    const uint32_t before = r->done_count;
    uint32_t taken = 0;
    do {
        /* The phase bit says that the rest is written: the rest must not be read before it. */
        nv_rmb();
        struct nv_cqe entry = {.result = cqe->result, .sq_head = cqe->sq_head, .sq_id = cqe->sq_id, .cid = cqe->cid,
                               .status = status};
        cqe++;
        if (NV_UNLIKELY(++r->cq_head == r->depth)) {
            r->cq_head = 0;
            r->phase ^= 1;
            cqe = r->cq;
        }
        nv_ring_accept(r, entry, now);
        taken++;
        status = cqe->status;
    } while ((status & 1) == r->phase && taken < r->depth && r->done_count < r->depth);
    r->completed += r->done_count - before;
    return taken;
}

/* nv_ring_take() and the completion doorbell. Returns the number of entries in done[], with bit 31 set when the owner
 * must write cq_head to the head register by message. */
static inline uint32_t nv_ring_reap(struct nv_ring *r)
{
    uint32_t by_message = 0;
    if (nv_ring_take(r) && nv_ring_cq_doorbell(r))
        by_message = 0x80000000u;
    return r->done_count | by_message;
}

/* ---- polling ---------------------------------------------------------------------------------------------------- */

static inline uint64_t nv_poll_bound(struct nv_ring *r, struct nv_poll *p)
{
    if (r->poll_max_ns == 0)
        return 0;
    if (p->skip) {
        p->skip--;
        return 0;
    }
    uint64_t bound = 2ull * p->estimate_ns + 8000u;
    return bound < r->poll_max_ns ? bound : r->poll_max_ns;
}

static inline void nv_poll_learn(struct nv_ring *r, struct nv_poll *p, int hit, uint64_t took_ns)
{
    if (hit) {
        p->estimate_ns += (uint32_t)(((int64_t)took_ns - (int64_t)p->estimate_ns) / 8);
        p->backoff = 0;
        r->polled++;
        return;
    }
    p->estimate_ns = p->estimate_ns * 2 + 1000;
    if (p->estimate_ns > r->poll_max_ns)
        p->estimate_ns = r->poll_max_ns;
    p->backoff = p->backoff < 63 ? (uint16_t)(p->backoff * 2 + 1) : 63;
    p->skip = p->backoff;
    r->poll_misses++;
}

/* Takes the completion of one command out of done[]. Returns status | result << 16, or NV_RING_PENDING. */
static inline int64_t nv_ring_pick(struct nv_ring *r, uint16_t cid)
{
    for (uint32_t i = r->done_count; i-- > 0;) {
        if (r->done[i].cid == cid) {
            int64_t packed = (int64_t)r->done[i].status | (int64_t)r->done[i].result << 16;
            r->done[i] = r->done[--r->done_count];
            return packed;
        }
    }
    return NV_RING_PENDING;
}

/* Waits for one command, as long as is worth it. Returns status | result << 16, or NV_RING_PENDING when the caller
 * should sleep. What else completed meanwhile is in done[]. *by_message is set to 1 when the owner has to write cq_head
 * by message. Runs without Python's lock. */
static inline int64_t nv_ring_wait(struct nv_ring *r, uint16_t cid, int *by_message)
{
    uint32_t index = cid & 0xfff;
    *by_message = 0;
    if (index >= r->capacity)
        return NV_RING_PENDING;
    struct nv_slot *slot = &r->slots[index];
    struct nv_poll *p = &r->poll[slot->kind];
    uint64_t bound = nv_poll_bound(r, p), start = slot->submitted_ns, now = start;
    for (uint32_t spin = 1;; spin++) {
        if (nv_ring_take(r)) {
            *by_message |= nv_ring_cq_doorbell(r);
            int64_t packed = nv_ring_pick(r, cid);
            if (packed != NV_RING_PENDING) {
                if (bound)
                    nv_poll_learn(r, p, 1, nv_now_ns() - start);
                return packed;
            }
        }
        if (!bound)
            return NV_RING_PENDING;
        nv_relax();
        if (spin % 16 == 0) {
            now = nv_now_ns();
            if (now - start >= bound)
                break;
            if (spin % 64 == 0)
                sched_yield(); /* the controller may be a thread that wants this very CPU */
        }
    }
    nv_poll_learn(r, p, 0, 0);
    return NV_RING_PENDING;
}

/* ---- deadlines ---------------------------------------------------------------------------------------------------- */

/* Fills cids with at most max commands whose deadline has passed. Returns how many. */
static inline uint32_t nv_ring_expired(const struct nv_ring *r, uint64_t now_ns, uint16_t *cids, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->capacity && n < max; i++)
        if (r->slots[i].busy && r->slots[i].expires_ns <= now_ns)
            cids[n++] = r->slots[i].cid;
    return n;
}

/* Gives a command in flight a new deadline. */
static inline void nv_ring_extend(struct nv_ring *r, uint16_t cid, uint64_t expires_ns)
{
    uint32_t index = cid & 0xfff;
    if (index < r->capacity && r->slots[index].busy && r->slots[index].cid == cid)
        r->slots[index].expires_ns = expires_ns;
}

#endif
