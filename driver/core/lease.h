/* Whose a queue pair is at the moment: a thread's that does I/O on it, or the driver's, which has to have it to itself
 * while it resets the controller. Nothing is locked: the thread looks at one word between two commands.
 *
 *     the thread                                        the driver (driver/leases.py)
 *       nv_lease_enter()      1: the ring is ours          nv_lease_ask(PARK), wake the thread
 *       ... push, reap ...    nv_lease_wish() each round
 *       nv_lease_leave()      as soon as it is not USE     attention_fd is readable, nv_lease_used() is 0: disable the
 *       ... wait, look again ...                           controller, nv_ring_reset(), create the queues again
 *       nv_lease_enter()      a new epoch: all that was    nv_lease_ask(USE), wake the thread
 *                             in flight has to be sent again
 *
 * END instead of USE: the controller was given up or is being closed. Whoever had commands in flight fails them, and
 * touches neither the ring nor its doorbells any more; the device may still touch the memory of those commands.
 *
 * Below: nothing. Above: queue.h, which has one in each queue pair; the thread reports overdue commands through the same
 * attention_fd (deadline.h).
 */
#ifndef NV_LEASE_H
#define NV_LEASE_H

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

enum { NV_LEASE_USE, NV_LEASE_PARK, NV_LEASE_END };

struct nv_lease {
    uint32_t wish;    /* the driver's */
    uint32_t used;    /* by the thread */
    uint32_t epoch;   /* how often the ring was emptied; changes only while it is not used */
    int attention_fd; /* eventfd of the driver; -1: nobody has to be told */
};

static inline void nv_lease_report(struct nv_lease *l)
{
    const uint64_t one = 1;
    while (l->attention_fd >= 0 && write(l->attention_fd, &one, sizeof one) < 0 && errno == EINTR) {
    } /* EAGAIN: the counter is full, so the driver is awake as it is */
}

static inline uint32_t nv_lease_wish(const struct nv_lease *l)
{
    return __atomic_load_n(&l->wish, __ATOMIC_ACQUIRE);
}

static inline void nv_lease_leave(struct nv_lease *l)
{
    __atomic_store_n(&l->used, 0, __ATOMIC_SEQ_CST);
    if (nv_lease_wish(l) != NV_LEASE_USE)
        nv_lease_report(l);
}

/* 1: the ring is the caller's until nv_lease_leave(). */
static inline int nv_lease_enter(struct nv_lease *l)
{
    /* Each side stores its own word and then looks at the other's, in one order that both agree on: either the thread
     * sees the wish, or the driver sees that the ring is used. */
    __atomic_store_n(&l->used, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&l->wish, __ATOMIC_SEQ_CST) == NV_LEASE_USE)
        return 1;
    nv_lease_leave(l);
    return 0;
}

/* END is for ever. */
static inline void nv_lease_ask(struct nv_lease *l, uint32_t wish)
{
    if (nv_lease_wish(l) != NV_LEASE_END)
        __atomic_store_n(&l->wish, wish, __ATOMIC_SEQ_CST);
}

static inline int nv_lease_used(const struct nv_lease *l)
{
    return (int)__atomic_load_n(&l->used, __ATOMIC_SEQ_CST);
}

#endif
