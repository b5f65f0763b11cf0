/* One NVMe queue pair in memory: a submission ring that we fill and a completion ring that the controller fills.
 *
 *       we: SQE at sq_tail, then the tail doorbell            controller: CQE at its tail, phase bit flipped
 *       +---+---+---+---+---+---+                             +---+---+---+---+---+---+
 *   SQ  |   | * | * | * |   |   |                         CQ  | 1 | 1 | 0 | 0 | 0 | 0 |
 *       +---+---+---+---+---+---+                             +---+---+---+---+---+---+
 *                       ^ tail                                        ^ cq_head, expecting phase 1
 *
 * A ring belongs to one thread at a time (lease.h): nothing here locks.
 *
 * Below: lease.h, histogram.h, mmio.h. Above: doorbell.h, ring.h, which move it.
 * Specification: NVM Express base 2.0, section 3.3.1.
 */
#ifndef NV_QUEUE_H
#define NV_QUEUE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "histogram.h"
#include "lease.h"
#include "mmio.h"

enum {
    NV_RING_MAX_DEPTH = 4095, /* a command id is 12 bits of slot, 4 bits of generation; 0xFFFF never occurs */
};

/* By the opcode of an I/O command; all others, and all admin commands, are NV_OTHER. */
enum nv_kind { NV_OTHER, NV_WRITE, NV_READ, NV_KINDS };

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

/* The driver looks at the slots of a ring that a thread is using: deadline.h. */
struct nv_slot {
    uint64_t submitted_ns;
    uint64_t expires_ns; /* UINT64_MAX: never */
    uint32_t id;         /* of the command in flight, with NV_SLOT_BUSY, or of the last one */
    uint32_t tag;        /* its kind; from NV_SLOT_MISSED on, how many deadlines it has missed */
};

enum { NV_SLOT_BUSY = 0x10000, NV_SLOT_KIND = 0xff, NV_SLOT_MISSED = 0x100 };

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
    uint32_t *free_slots;

    uint32_t depth;
    uint32_t capacity; /* commands in flight at most: depth - 1, so neither ring can overflow */
    uint32_t free_count;
    uint32_t done_count;
    uint32_t qid;
    uint32_t last_kind; /* opcodes up to here are kinds: NV_READ, or NV_OTHER in the admin queue */
    uint32_t sq_tail;
    uint32_t cq_head;
    volatile uint32_t sq_rung, cq_rung; /* the tail and head the controller has been told */
    uint32_t phase;

    /* PRP lists: list_pages pages per slot */
    uint64_t *lists;
    uint64_t lists_iova;
    uint32_t list_pages;
    uint32_t page_bytes;
    uint8_t sgl; /* NV_SGL_*: what the controller takes beside PRPs */

    /* Doorbells. NULL registers: the owner writes them by message when told to. */
    volatile uint32_t *sq_doorbell, *cq_doorbell;
    volatile uint32_t *sq_shadow, *cq_shadow; /* NULL: not configured */
    volatile uint32_t *sq_event, *cq_event;   /* without an event index: sq_rung and cq_rung */
    int kick_fd; /* -1: none */
    int kick_errno; /* the last failure of a kick, 0 if none */

    uint32_t poll_max_ns;
    struct nv_poll poll[NV_KINDS];
    struct nv_lease lease;

    /* Counters */
    uint64_t submitted, completed, failed;
    uint64_t doorbells, doorbells_saved, kicks;
    uint64_t polled, poll_misses;
    uint64_t timeouts, lost_interrupts;
    uint64_t bad_cid, bad_sq_id; /* completions that no honest controller sends */
    uint32_t last_bad_cid;
    struct nv_histogram latency_ns[NV_KINDS];
};

/* To be called again after a controller reset, with the same memory: all commands are forgotten. */
static inline void nv_ring_reset(struct nv_ring *r)
{
    memset((void *)r->cq, 0, sizeof(struct nv_cqe) * r->depth); /* phase 0 everywhere: the first pass is phase 1 */
    r->sq_tail = r->cq_head = r->sq_rung = r->cq_rung = 0;
    r->phase = 1;
    r->done_count = 0;
    r->free_count = 0;
    r->lease.epoch++;
    for (uint32_t i = r->capacity; i-- > 0;) {
        __atomic_store_n(&r->slots[i].id, r->slots[i].id & 0xffff, __ATOMIC_RELAXED);
        r->free_slots[r->free_count++] = i;
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
    r->done = calloc(2 * (size_t)depth, sizeof *r->done); /* what was left there, and all that may complete at once */
    r->free_slots = calloc(depth, sizeof *r->free_slots);
    if (!r->slots || !r->done || !r->free_slots) {
        nv_ring_free(r);
        return NULL;
    }
    r->qid = qid;
    r->last_kind = qid ? NV_READ : NV_OTHER;
    r->depth = depth;
    r->capacity = depth - 1;
    r->sq = sq;
    r->cq = cq;
    r->lists = lists;
    r->lists_iova = lists_iova;
    r->list_pages = list_pages;
    r->page_bytes = page_bytes;
    r->kick_fd = r->lease.attention_fd = -1;
    r->sq_event = &r->sq_rung;
    r->cq_event = &r->cq_rung;
    for (uint32_t i = 0; i < depth; i++)
        r->slots[i].id = i;
    nv_ring_reset(r);
    return r;
}

static inline uint32_t nv_ring_inflight(const struct nv_ring *r)
{
    return r->capacity - r->free_count;
}

#endif
