/* Memory that the drive reaches, for requests that have come in memory that it does not.
 *
 * An entry of the kernel's queues is taken for as long as Python works at its request; so there are many of them, most in
 * ordinary memory, which costs nothing before it is used (entries.c). A READ or WRITE that comes in one of those borrows
 * memory from a slot that is there for that, and is copied. Who finds none waits for one: they come back with completions.
 */
#include "frontend_private.h"

#include <string.h>

void fe_may_lend(struct channel *ch, struct fe_slot *lender)
{
    ch->lenders[ch->lender_count++] = lender;
    ch->lenders_left++;
}

/* 1: the drive reaches the slot's data; 0: there is no such memory now; -1: nor will there be. */
int fe_borrow(struct channel *ch, struct fe_slot *slot)
{
    if (slot->data_iova)
        return 1;
    if (!ch->lender_count)
        return ch->lenders_left ? 0 : -1;
    slot->lender = ch->lenders[--ch->lender_count];
    slot->own_data = slot->data;
    slot->data = slot->lender->data;
    slot->data_iova = slot->lender->data_iova;
    memcpy(slot->data, slot->own_data, slot->apart);
    return 1;
}

static void have_own(struct fe_slot *slot)
{
    slot->lender = NULL;
    slot->data = slot->own_data;
    slot->data_iova = 0;
}

/* What was borrowed, if anything was, goes back. */
void fe_return(struct channel *ch, struct fe_slot *slot)
{
    if (!slot->lender)
        return;
    ch->lenders[ch->lender_count++] = slot->lender;
    have_own(slot);
}

/* 1: what was borrowed is left to the drive for ever; 0: nothing was. */
int fe_never_return(struct channel *ch, struct fe_slot *slot)
{
    if (!slot->lender)
        return 0;
    ch->lenders_left--;
    have_own(slot);
    return 1;
}

/* Those who have waited for memory go on. */
void fe_serve_waiting(struct channel *ch)
{
    while (ch->short_of_memory.first && (ch->lender_count || !ch->lenders_left)) {
        struct fe_slot *slot = fe_line_take(&ch->short_of_memory);
        if (!fe_serve(ch, slot))
            fe_forward(ch, slot);
    }
}
