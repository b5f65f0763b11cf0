/* Commands that do not come back, and a ring that the driver wants for itself: driver/core/lease.h has the protocol.
 *
 * The thread holds the ring while commands are under way. A command past its deadline is reported; the driver has it
 * aborted, or resets the controller. After a reset what was under way is sent again, request by request: reads and
 * writes have the same effect twice, and the maps they use are held. Only a request whose command has missed two
 * deadlines fails, with EIO. If the controller is given up all fail, and their memory is left to the drive.
 */
#include "frontend_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t SHORTEST_TICK_NS = 5000000, LONGEST_TICK_NS = 1000000000;

static int under_way(const struct fe_slot *slot)
{
    return slot->file != NULL;
}

void fe_fail(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    atomic_fetch_add_explicit(&fe->expired, 1, memory_order_relaxed);
    dm_release(fe->config.map, slot->file);
    slot->file = NULL;
    fe_answer(fe, in->unique, EIO, NULL, 0);
    fe_free_slot(fe, slot);
}

/* The ring was emptied: nothing of what was under way is known to the drive any more. */
static void start_over(struct frontend *fe)
{
    memset(fe->owner, 0, (NV_RING_MAX_DEPTH + 1) * sizeof *fe->owner);
    for (uint32_t i = 0; i < fe->config.slots; i++) {
        struct fe_slot *slot = &fe->slots[i];
        if (!under_way(slot))
            continue;
        fe->busy--;
        if (slot->expired)
            fe_fail(fe, slot);
        else if (!fe_submit(fe, slot))
            fe_forward(fe, slot);
    }
}

int fe_enter(struct frontend *fe)
{
    struct nv_lease *lease = &fe->ring->lease;
    if (!nv_lease_enter(lease))
        return 0;
    fe->holding = 1;
    if (fe->epoch != lease->epoch) {
        fe->epoch = lease->epoch;
        if (fe->busy)
            start_over(fe);
    }
    return 1;
}

void fe_leave(struct frontend *fe)
{
    fe->holding = 0;
    nv_lease_leave(&fe->ring->lease);
}

/* Before a reset: a last look, and a mark on requests that are not to be sent again. */
static void park(struct frontend *fe)
{
    fe_reap(fe);
    for (uint32_t i = 0; i < fe->ring->capacity; i++)
        if (fe->owner[i] && nv_slot_missed(&fe->ring->slots[i]) > 1)
            fe->owner[i]->expired = 1;
    fe_leave(fe);
}

/* The drive may still read or write the request's memory and its blocks, at any time. The memory is left to the drive;
 * Python is told before the file is given back, so that its blocks are not used again. */
static void give_up(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    atomic_fetch_add(&fe->lost, slot->pending);
    dm_wake(fe->config.map);
    dm_release(fe->config.map, slot->file);
    slot->file = NULL;
    fe->busy--;
    fe_answer(fe, in->unique, EIO, NULL, 0);
    slot->spare = malloc(FE_HEADER_BYTES + FE_MAX_WRITE);
    slot->message = slot->spare;
    slot->data = NULL;
    if (slot->spare)
        fe_free_slot(fe, slot);
}

static void give_up_all(struct frontend *fe)
{
    dm_withdraw_all(fe->config.map);
    for (uint32_t i = 0; i < fe->config.slots; i++)
        if (under_way(&fe->slots[i]))
            give_up(fe, &fe->slots[i]);
    if (fe->holding)
        fe_leave(fe);
}

void fe_heed(struct frontend *fe)
{
    uint32_t wish = nv_lease_wish(&fe->ring->lease);
    if (wish == NV_LEASE_END)
        give_up_all(fe);
    else if (wish == NV_LEASE_PARK && fe->holding)
        park(fe);
    else if (wish == NV_LEASE_USE && !fe->holding)
        fe_enter(fe);
}

/* How often deadlines are looked at. */
uint64_t fe_tick_ns(const struct frontend *fe)
{
    uint64_t tick = fe->config.timeout_ns ? fe->config.timeout_ns / 8 : LONGEST_TICK_NS;
    return tick < SHORTEST_TICK_NS ? SHORTEST_TICK_NS : tick > LONGEST_TICK_NS ? LONGEST_TICK_NS : tick;
}

void fe_look(struct frontend *fe, int silent)
{
    struct nv_ring *ring = fe->ring;
    uint64_t now = nv_now_ns();
    if (now < fe->next_look_ns || !fe->holding)
        return;
    fe->next_look_ns = now + fe_tick_ns(fe);
    if (nv_ring_due(ring, now)) {
        ring->lost_interrupts += fe_reap(fe) > 0;
        silent |= nv_ring_overdue(ring, now, fe->config.grace_ns) > 0;
    }
    if (silent)
        nv_lease_report(&ring->lease);
}
