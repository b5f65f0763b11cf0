/* What one command costs in driver/core/ring.h, for tests/bench/instructions.py: work() is what is counted, with
 * everything it calls but device(), which stands in for the controller.
 *
 *     ring COMMANDS DOORBELLS IOVA      -DBATCH=n: n commands for each doorbell
 *
 * DOORBELLS is mapped (registers in memory), shadow (and shadow doorbells, of a controller that sleeps each time), awake
 * (and of one that does not) or message (the owner writes the register itself, which is not counted).
 */
#include <stdio.h>

#include "ring.h"

enum { DEPTH = 256, PAGE = 4096 };

static struct nv_sqe sq[DEPTH];
static struct nv_cqe cq[DEPTH];
static volatile uint32_t doorbells[4], shadow[4], event[4];
static uint32_t awake;
static struct {
    uint32_t head, tail;
    uint16_t phase;
} device_state = {0, 0, 1};

__attribute__((noinline)) void device(const struct nv_ring *r)
{
    while (device_state.head != r->sq_tail) {
        uint16_t cid = sq[device_state.head].cid;
        device_state.head = (device_state.head + 1) % DEPTH;
        struct nv_cqe entry = {.sq_head = (uint16_t)device_state.head, .sq_id = 1, .cid = cid, .status = device_state.phase};
        cq[device_state.tail] = entry;
        device_state.tail = (device_state.tail + 1) % DEPTH;
        if (!device_state.tail)
            device_state.phase ^= 1;
    }
    event[0] = r->sq_tail - awake; /* wants to be told of the next one, or not */
    event[1] = r->cq_head - awake;
}

__attribute__((noinline)) uint32_t work(struct nv_ring *r, const struct nv_sqe *command, uint64_t iova, uint32_t commands)
{
    uint32_t seen = 0;
    for (uint32_t done = 0; done < commands; done += BATCH) {
        for (uint32_t i = 0; i < BATCH; i++)
            nv_ring_push(r, command, iova, PAGE, 1000000000);
        nv_ring_doorbell(r);
        device(r);
        seen += nv_ring_reap(r) & 0x7fffffff;
        r->done_count = 0;
    }
    return seen;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    uint32_t commands = (uint32_t)atoi(argv[1]);
    struct nv_ring *r = nv_ring_new(1, DEPTH, sq, cq, NULL, 0, 0, PAGE);
    struct nv_sqe command = {.opcode = 2, .nsid = 1};
    if (!r)
        return 2;
    const char *mode = argv[2];
    awake = !strcmp(mode, "awake");
    if (strcmp(mode, "message")) {
        r->sq_doorbell = &doorbells[0];
        r->cq_doorbell = &doorbells[1];
    }
    if (awake || !strcmp(mode, "shadow")) {
        r->sq_shadow = &shadow[0];
        r->cq_shadow = &shadow[1];
        r->sq_event = &event[0];
        r->cq_event = &event[1];
    }
    uint32_t seen = work(r, &command, strtoull(argv[3], NULL, 0), commands);
    uint64_t told = 2 * (uint64_t)commands / BATCH;
    int right = seen == commands && r->completed == commands && !r->bad_cid && r->sq_rung == r->sq_tail &&
                (awake ? r->doorbells_saved >= told - 2 : r->doorbells == told);
    nv_ring_free(r);
    return right ? 0 : 1;
}
