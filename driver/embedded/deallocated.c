/* For tests: which blocks the host has given back by Dataset Management, in order. Kept from the first call on that
 * asks for it, by the controller's thread; the host's thread takes it between two commands. */
#include "controller.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1 << 20 }; /* kept at once */

void deallocated_note(struct controller *c, uint64_t lba, uint64_t blocks)
{
    struct deallocated_log *log = &c->deallocated;
    if (!log->on || !blocks)
        return;
    if (log->count == log->room) {
        uint32_t room = log->room ? 2 * log->room : 256;
        struct deallocated *entries = room <= MOST ? realloc(log->entries, room * sizeof *entries) : NULL;
        if (!entries) {
            log->lost = true;
            return;
        }
        log->entries = entries;
        log->room = room;
    }
    log->entries[log->count++] = (struct deallocated){lba, blocks};
}

struct taking {
    struct deallocated *out;
    uint32_t most;
    int result;
};

static void take(struct controller *c, void *argument)
{
    struct deallocated_log *log = &c->deallocated;
    struct taking *taking = argument;
    uint32_t count = log->count < taking->most ? log->count : taking->most;
    if (count)
        memcpy(taking->out, log->entries, count * sizeof *taking->out);
    log->count -= count;
    if (log->count)
        memmove(log->entries, log->entries + count, log->count * sizeof *taking->out);
    log->on = true;
    taking->result = log->lost ? -EOVERFLOW : (int)count;
}

int controller_take_deallocated(struct controller *c, struct deallocated *out, uint32_t most)
{
    struct taking taking = {.out = out, .most = most};
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, take, &taking);
    pthread_mutex_unlock(&c->host_lock);
    return taking.result;
}
