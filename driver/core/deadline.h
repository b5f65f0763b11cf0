/* Deadlines of commands in flight. A command that misses one gets another, shorter one: the driver asks the controller to
 * abort it meanwhile. One that misses that too is lost, and takes a reset with it (driver/recovery.py).
 *
 * Below: ring.h. Above: driver/rings.py, and threads with a queue pair of their own.
 *
 *     whose ring it is: nv_ring_due(r, now)              then looks at the completions once more, then
 *                       nv_ring_overdue(r, now, grace)   marks; a thread tells the driver: nv_lease_report(&r->lease)
 *     the driver, from any thread: nv_ring_late(r, late, max)   what is marked
 */
#ifndef NV_DEADLINE_H
#define NV_DEADLINE_H

#include "ring.h"

struct nv_late {
    uint16_t cid;
    uint16_t kind;
    uint32_t missed; /* deadlines */
};

/* How many deadlines the command in flight in a slot has missed. */
static inline uint32_t nv_slot_missed(const struct nv_slot *slot)
{
    return slot->id & NV_SLOT_BUSY ? slot->tag / NV_SLOT_MISSED : 0;
}

/* The driver may be moving it. */
static inline uint64_t nv_slot_expires(const struct nv_slot *slot)
{
    return __atomic_load_n(&slot->expires_ns, __ATOMIC_RELAXED);
}

/* Has a command in flight passed its deadline? */
static inline int nv_ring_due(const struct nv_ring *r, uint64_t now_ns)
{
    for (uint32_t i = 0; i < r->capacity; i++)
        if (r->slots[i].id & NV_SLOT_BUSY && nv_slot_expires(&r->slots[i]) <= now_ns)
            return 1;
    return 0;
}

/* Marks each command whose deadline has passed, and gives it grace_ns more (0: no more deadlines). Returns how many
 * were marked. */
static inline uint32_t nv_ring_overdue(struct nv_ring *r, uint64_t now_ns, uint64_t grace_ns)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->capacity; i++) {
        struct nv_slot *slot = &r->slots[i];
        if (!(slot->id & NV_SLOT_BUSY) || nv_slot_expires(slot) > now_ns)
            continue;
        __atomic_store_n(&slot->tag, slot->tag + NV_SLOT_MISSED, __ATOMIC_RELAXED);
        __atomic_store_n(&slot->expires_ns, grace_ns ? now_ns + grace_ns : UINT64_MAX, __ATOMIC_RELAXED);
        n++;
    }
    r->timeouts += n;
    return n;
}

/* Gives each command in flight that has a deadline timeout_ns from now. From any thread: a command that is sent at this
 * moment gets what it would have had. */
static inline void nv_ring_extend(struct nv_ring *r, uint64_t now_ns, uint64_t timeout_ns)
{
    for (uint32_t i = 0; i < r->capacity; i++) {
        struct nv_slot *slot = &r->slots[i];
        uint32_t busy = __atomic_load_n(&slot->id, __ATOMIC_RELAXED) & NV_SLOT_BUSY;
        if (busy && nv_slot_expires(slot) != UINT64_MAX)
            __atomic_store_n(&slot->expires_ns, now_ns + timeout_ns, __ATOMIC_RELAXED);
    }
}

/* Fills late with at most max commands in flight that have missed a deadline. Returns how many. */
static inline uint32_t nv_ring_late(const struct nv_ring *r, struct nv_late *late, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->capacity && n < max; i++) {
        const struct nv_slot *slot = &r->slots[i];
        /* A tag is written before its id: under an id that stays the same it is that command's. */
        uint32_t id = __atomic_load_n(&slot->id, __ATOMIC_ACQUIRE);
        uint32_t tag = __atomic_load_n(&slot->tag, __ATOMIC_ACQUIRE);
        uint32_t missed = tag / NV_SLOT_MISSED;
        if (missed && id & NV_SLOT_BUSY && __atomic_load_n(&slot->id, __ATOMIC_RELAXED) == id)
            late[n++] = (struct nv_late){(uint16_t)id, (uint16_t)(tag & NV_SLOT_KIND), missed};
    }
    return n;
}

#endif
