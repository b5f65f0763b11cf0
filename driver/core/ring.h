/* Commands in and completions out of a queue pair.
 *
 * Typical sequence:
 *     cid = nv_ring_push(r, sqe, iova, nbytes, timeout_ns);  any number of times
 *     nv_ring_doorbell(r);                                   once for all of them
 *     nv_ring_reap(r);                                       fills r->done[0 .. r->done_count)
 *     ... take them, r->done_count = 0 ...
 * or, for a single command,  nv_ring_wait(r, cid)  of spin.h.
 *
 * Below: queue.h (the memory), doorbell.h, prp.h and sgl.h (buffers), histogram.h. Above: spin.h, deadline.h; driver/queues.py, and
 * C threads with a queue pair of their own.
 *
 * What a command costs here is counted in instructions: tests/bench/instructions.py.
 *
 * Specification: NVM Express base 2.0, sections 3.3.1 (queues), 4.2 (completions).
 */
#ifndef NV_RING_H
#define NV_RING_H

#include "doorbell.h"
#include "prp.h"
#include "queue.h"
#include "sgl.h"

enum { NV_RING_FULL = -1 };

/* ---- submission ----------------------------------------------------------------------------------------------- */

/* The PRPs, or the SGL, of what is not inside one page, with the list pages of a slot. Returns the SQE's flags or
 * NV_PRP_*. */
static NV_COLD int nv_ring_list(struct nv_ring *r, uint32_t index, const struct nv_segment *segments, uint32_t count,
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

/* The command goes into the ring, with the id of the slot on top of the free ones. */
static inline int nv_ring_put(struct nv_ring *r, const struct nv_sqe *command, uint32_t flags, uint64_t prp1,
                              uint64_t prp2, uint64_t timeout_ns, uint64_t now)
{
    uint32_t left = r->free_count - 1;
    struct nv_slot *slot = &r->slots[r->free_slots[left]];
    uint32_t cid = (slot->id + 0x1000) & 0xffff; /* next generation: a late answer is told apart */
    uint32_t kind = command->opcode;
    if (kind > r->last_kind)
        kind = NV_OTHER;
    r->free_count = left;
    slot->submitted_ns = now;
    __atomic_store_n(&slot->expires_ns, timeout_ns ? now + timeout_ns : UINT64_MAX, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->tag, kind, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->id, cid | NV_SLOT_BUSY, __ATOMIC_RELEASE);

    uint32_t tail = r->sq_tail;
    struct nv_sqe *sqe = &r->sq[tail];
    memcpy(sqe, command, sizeof *sqe);
    sqe->flags = (uint8_t)flags; /* fused commands are not sent */
    sqe->cid = (uint16_t)cid;
    sqe->prp[0] = prp1;
    sqe->prp[1] = prp2;
    r->sq_tail = ++tail == r->depth ? 0 : tail;
    r->submitted++;
    return (int)cid;
}

/* Copies a 64-byte command into the ring with an id, PRPs (or an SGL) and flags of its own. The controller does not see it
 * before nv_ring_doorbell(). segments may be NULL (count 0) for a command without data. timeout_ns 0: none.
 * Returns the command id, NV_RING_FULL or NV_PRP_*; on an error nothing has changed. */
static inline int nv_ring_push_segments(struct nv_ring *r, const void *command, const struct nv_segment *segments,
                                        uint32_t count, uint64_t timeout_ns)
{
    uint64_t prp[2] = {0, 0};
    if (NV_UNLIKELY(r->free_count == 0))
        return NV_RING_FULL;
    int flags = count ? nv_ring_list(r, r->free_slots[r->free_count - 1], segments, count, prp) : 0;
    return flags < 0 ? flags : nv_ring_put(r, command, (uint32_t)flags, prp[0], prp[1], timeout_ns, nv_now_ns());
}

/* What is not inside one page. */
static NV_COLD int nv_ring_push_long(struct nv_ring *r, const void *command, uint64_t iova, uint64_t nbytes, uint64_t timeout_ns)
{
    struct nv_segment segment = {iova, nbytes};
    return nv_ring_push_segments(r, command, &segment, nbytes ? 1 : 0, timeout_ns);
}

/* The same for a buffer that is contiguous for the device; nbytes 0: no data. */
static inline int nv_ring_push(struct nv_ring *r, const void *command, uint64_t iova, uint64_t nbytes, uint64_t timeout_ns)
{
    const uint64_t now = nv_now_ns(); /* first: what is looked at before a call has to be looked at again */
    if (NV_UNLIKELY((iova & 3) || !nbytes || (iova & (r->page_bytes - 1)) + nbytes > r->page_bytes || !r->free_count))
        return nv_ring_push_long(r, command, iova, nbytes, timeout_ns);
    return nv_ring_put(r, command, 0, iova, 0, timeout_ns, now);
}

/* ---- completion ------------------------------------------------------------------------------------------------ */

/* Out of range, duplicate, stale, or of another queue: nobody waits for it, and nobody is woken by it. */
static NV_COLD void nv_ring_refuse(struct nv_ring *r, uint32_t cid, uint32_t sq_id)
{
    if (sq_id != r->qid)
        r->bad_sq_id++;
    r->bad_cid++;
    r->last_bad_cid = cid;
}

/* Accepts one entry if it answers a command that is in flight. Everything in it comes from the controller. */
static inline void nv_ring_accept(struct nv_ring *r, uint32_t cid, uint32_t sq_id, uint32_t status, uint32_t result,
                                  uint64_t now)
{
    size_t index = cid & 0xfff;
    struct nv_slot *slot = r->slots + index; /* not looked at before the index has been checked */
    if (NV_UNLIKELY(index >= r->capacity || sq_id != r->qid || slot->id != (cid | NV_SLOT_BUSY))) {
        nv_ring_refuse(r, cid, sq_id);
        return;
    }
    __atomic_store_n(&slot->id, cid, __ATOMIC_RELAXED);
    r->free_slots[r->free_count++] = (uint32_t)index;
    nv_histogram_add(&r->latency_ns[slot->tag & NV_SLOT_KIND], now - slot->submitted_ns);
    if (NV_UNLIKELY(status))
        r->failed++;
    r->completed++;
    r->done[r->done_count++] = (struct nv_done){(uint16_t)cid, (uint16_t)status, result};
}

/* Moves what has completed to done[], of one round of the ring at most. Returns whether there was anything, good or bad.
 * The completion doorbell is not rung: nv_ring_cq_doorbell(). */
static inline int nv_ring_take(struct nv_ring *r)
{
    uint32_t head = r->cq_head;
    volatile struct nv_cqe *cqe = &r->cq[head];
    uint32_t status = cqe->status;
    if ((status & 1) != r->phase || r->done_count >= r->depth)
        return 0; /* by far the most frequent while polling */

    const uint64_t now = nv_now_ns();
    do {
        /* The phase bit says that the rest is written: the rest must not be read before it. */
        nv_rmb();
        uint32_t cid = cqe->cid, sq_id = cqe->sq_id, result = cqe->result, answer = status >> 1;
        cqe++;
        if (NV_UNLIKELY(++head == r->depth)) {
            head = 0;
            r->phase ^= 1;
            cqe = r->cq;
        }
        nv_ring_accept(r, cid, sq_id, answer, result, now);
        status = cqe->status;
    } while ((status & 1) == r->phase && head != r->cq_rung);
    r->cq_head = head;
    return 1;
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

#endif
