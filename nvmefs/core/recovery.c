/* Commands that do not come back, and a ring that the driver wants for itself: driver/core/lease.h has the protocol.
 *
 * The thread holds the ring while commands are under way. A command past its deadline is reported; the driver has it
 * aborted, or resets the controller. After a reset what was under way is sent again, request by request: reads and
 * writes have the same effect twice, and the maps they use are held. Only a request whose command has missed two
 * deadlines fails, with EIO. If the controller is given up all fail, and their memory is left to the drive.
 */
#include "frontend_private.h"

#include <errno.h>
#include <string.h>

static const uint64_t SHORTEST_TICK_NS = 5000000, LONGEST_TICK_NS = 1000000000;

static int under_way(const struct fe_slot *slot)
{
    return slot->file != NULL;
}

void fe_fail(struct channel *ch, struct fe_slot *slot)
{
    fe_count(&ch->expired, 1);
    dm_release(ch->fe->config.map, slot->file);
    slot->file = NULL;
    fe_answer(ch, slot, EIO, NULL, 0);
    fe_free_slot(ch, slot);
}

/* The ring was emptied: nothing of what was under way is known to the drive any more. */
static void start_over(struct channel *ch)
{
    memset(ch->owner, 0, (NV_RING_MAX_DEPTH + 1) * sizeof *ch->owner);
    for (uint32_t i = 0; i < ch->slot_count; i++) {
        struct fe_slot *slot = &ch->slots[i];
        if (!under_way(slot))
            continue;
        ch->busy--;
        if (slot->expired)
            fe_fail(ch, slot);
        else if (!fe_submit(ch, slot))
            fe_forward(ch, slot);
    }
    fe_flush_again(ch);
}

int fe_enter(struct channel *ch)
{
    struct nv_lease *lease = &ch->ring->lease;
    if (!nv_lease_enter(lease))
        return 0;
    ch->holding = 1;
    if (ch->epoch != lease->epoch) {
        ch->epoch = lease->epoch;
        if (ch->busy)
            start_over(ch);
    }
    return 1;
}

void fe_leave(struct channel *ch)
{
    ch->holding = 0;
    nv_lease_leave(&ch->ring->lease);
}

/* Before a reset: a last look, and a mark on requests that are not to be sent again. */
static void park(struct channel *ch)
{
    fe_reap(ch);
    for (uint32_t i = 0; i < ch->ring->capacity; i++)
        if (ch->owner[i] && nv_slot_missed(&ch->ring->slots[i]) > 1)
            ch->owner[i]->expired = 1;
    fe_leave(ch);
}

/* The drive may still read or write the request's memory and its blocks, at any time. The memory is left to the drive;
 * Python is told before the file is given back, so that its blocks are not used again. */
static void give_up(struct channel *ch, struct fe_slot *slot)
{
    atomic_fetch_add(&ch->lost, slot->pending);
    dm_wake(ch->fe->config.map);
    dm_release(ch->fe->config.map, slot->file);
    slot->file = NULL;
    ch->busy--;
    if (!ch->transport->forsake || !ch->transport->forsake(ch, slot))
        fe_answer(ch, slot, EIO, NULL, 0);
    if (ch->transport->replace)
        ch->transport->replace(ch, slot);
}

static void give_up_all(struct channel *ch)
{
    dm_withdraw_all(ch->fe->config.map);
    for (uint32_t i = 0; i < ch->slot_count; i++)
        if (under_way(&ch->slots[i]))
            give_up(ch, &ch->slots[i]);
    ch->flush.under_way = 0;
    fe_flush_forward(ch);
    if (ch->holding)
        fe_leave(ch);
    fe_serve_waiting(ch);
}

void fe_heed(struct channel *ch)
{
    uint32_t wish = nv_lease_wish(&ch->ring->lease);
    if (wish == NV_LEASE_END)
        give_up_all(ch);
    else if (wish == NV_LEASE_PARK && ch->holding)
        park(ch);
    else if (wish == NV_LEASE_USE && !ch->holding)
        fe_enter(ch);
}

/* How often deadlines are looked at. */
uint64_t fe_tick_ns(const struct channel *ch)
{
    uint64_t tick = ch->fe->config.timeout_ns ? ch->fe->config.timeout_ns / 8 : LONGEST_TICK_NS;
    return tick < SHORTEST_TICK_NS ? SHORTEST_TICK_NS : tick > LONGEST_TICK_NS ? LONGEST_TICK_NS : tick;
}

void fe_look(struct channel *ch, int silent)
{
    struct nv_ring *ring = ch->ring;
    uint64_t now = nv_now_ns();
    if (now < ch->next_look_ns || !ch->holding)
        return;
    ch->next_look_ns = now + fe_tick_ns(ch);
    if (nv_ring_due(ring, now)) {
        ring->lost_interrupts += fe_reap(ch) > 0;
        silent |= nv_ring_overdue(ring, now, ch->fe->config.grace_ns) > 0;
    }
    if (silent)
        nv_lease_report(&ring->lease);
}
