/* Telling the controller of new entries: a store to a register, or to a shadow of it in memory that the controller
 * reads by itself while it is awake, or (where registers are not mapped) a message that the owner of the ring sends.
 *
 * The admin queue has no event index. It keeps the shadow right, for controllers that read it, and always rings, for those
 * that do not: the value told last stands in for its event index, which every move passes.
 *
 * Below: queue.h, mmio.h (barriers). Above: ring.h.
 * Specification: NVM Express base 2.0, sections 5.8 and B.5 (shadow doorbells).
 */
#ifndef NV_DOORBELL_H
#define NV_DOORBELL_H

#include <errno.h>
#include <unistd.h>

#include "queue.h"

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

/* Did the move from old to fresh pass the index at which the controller asked to be told? (B.5) */
static inline int nv_ring_need_event(uint16_t event, uint16_t fresh, uint16_t old)
{
    return (uint16_t)(event - old) < (uint16_t)(fresh - old);
}

/* Tells the controller a new tail or head. Returns 1 when the caller has to write the register by message. */
static inline int nv_ring_tell(struct nv_ring *r, volatile uint32_t *reg, volatile uint32_t *shadow,
                               const volatile uint32_t *event, uint32_t fresh, uint32_t old)
{
    if (shadow) {
        *shadow = fresh;
        /* The controller stores its event index and then looks at the shadow once more before it sleeps; we store
         * the shadow and then look at the event index. Without a full barrier both could see the old value: it
         * would sleep and we would not ring. */
        nv_mb();
        if (!nv_ring_need_event((uint16_t)*event, (uint16_t)fresh, (uint16_t)old)) {
            r->doorbells_saved++;
            return 0;
        }
    }
    r->doorbells++;
    if (NV_UNLIKELY(!reg))
        return 1;
    *reg = fresh;
    if (NV_UNLIKELY(r->kick_fd != -1))
        nv_ring_write_kick(r);
    return 0;
}

/* Makes all pushed commands visible. Returns 1 when the owner must write sq_tail to the tail register by message. */
static inline int nv_ring_doorbell(struct nv_ring *r)
{
    uint32_t old = r->sq_rung, tail = r->sq_tail;
    if (old == tail)
        return 0;
    /* The entries (and PRP lists) must be in memory before the controller can learn of the tail. */
    nv_wmb();
    int by_message = nv_ring_tell(r, r->sq_doorbell, r->sq_shadow, r->sq_event, tail, old);
    r->sq_rung = tail;
    return by_message;
}

/* The same for completion entries taken. */
static inline int nv_ring_cq_doorbell(struct nv_ring *r)
{
    uint32_t old = r->cq_rung, head = r->cq_head;
    if (old == head)
        return 0;
    /* The entries must have been read before the controller may overwrite them. x86 never moves a store before an
     * earlier load; elsewhere a full barrier is the one that orders loads before a device-visible store. */
#if defined(__x86_64__)
    nv_wmb();
#else
    nv_mb();
#endif
    int by_message = nv_ring_tell(r, r->cq_doorbell, r->cq_shadow, r->cq_event, head, old);
    r->cq_rung = head;
    return by_message;
}

#endif
