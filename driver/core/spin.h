/* Waiting for one command by looking, as long as that is worth it: as long as such commands have been taking, and not at
 * all for a while after that was in vain.
 *
 * Below: ring.h. Above: driver/queues.py.
 */
#ifndef NV_SPIN_H
#define NV_SPIN_H

#include <sched.h>

#include "ring.h"

enum { NV_RING_PENDING = -1 };

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
    struct nv_poll *p = &r->poll[slot->tag & NV_SLOT_KIND];
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

#endif
