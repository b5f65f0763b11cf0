#include "ledger.h"

#include <stdatomic.h>
#include <stdlib.h>

struct ledger {
    _Atomic uint64_t written, flushed; /* writes, in the order of their completion */
    atomic_int failed;
};

struct ledger *ledger_new(void)
{
    return calloc(1, sizeof(struct ledger));
}

void ledger_free(struct ledger *l)
{
    free(l);
}

void ledger_wrote(struct ledger *l)
{
    atomic_fetch_add(&l->written, 1);
}

uint64_t ledger_written(struct ledger *l)
{
    return atomic_load(&l->written);
}

void ledger_cover(struct ledger *l, uint64_t covers)
{
    uint64_t before = atomic_load(&l->flushed);
    while (before < covers && !atomic_load(&l->failed) && !atomic_compare_exchange_weak(&l->flushed, &before, covers)) {
    }
}

uint64_t ledger_flushed(struct ledger *l)
{
    return atomic_load(&l->flushed);
}

void ledger_fail(struct ledger *l)
{
    atomic_store(&l->failed, 1);
}

int ledger_failed(struct ledger *l)
{
    return atomic_load(&l->failed);
}
