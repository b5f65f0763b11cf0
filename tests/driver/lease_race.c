/* A queue pair that a thread uses and the driver takes back, looks at and empties, again and again: for ThreadSanitizer.
 * The thread is its own controller, so that the rings are touched by nobody else.
 *
 *     lease_race PARKS
 *
 * Ends with 1 when the driver gets a ring that is still used, or when the thread gets one that is not empty. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>

#include "deadline.h"
#include "ring.h"

enum { DEPTH = 8, BATCH = 5, PAGE = 4096 };

struct shared {
    struct nv_ring *ring;
    int inside; /* the thread is; nothing atomic, as nothing in the ring is */
    atomic_uint batches; /* relaxed: it orders nothing that the lease has to order */
};

static void fail(const char *what)
{
    fprintf(stderr, "lease_race: %s\n", what);
    exit(1);
}

/* Answers what is in the submission queue, all but the last command, which stays late. */
static void answer(struct nv_ring *r, uint32_t *head, uint32_t *tail, uint32_t *phase)
{
    while (*head != r->sq_tail && (*head + 1) % r->depth != r->sq_tail) {
        struct nv_cqe *cqe = (struct nv_cqe *)r->cq + *tail;
        cqe->cid = r->sq[*head].cid;
        cqe->sq_id = (uint16_t)r->qid;
        cqe->status = (uint16_t)*phase;
        *head = (*head + 1) % r->depth;
        if (++*tail == r->depth) {
            *tail = 0;
            *phase ^= 1;
        }
    }
}

static void use(struct shared *s, struct nv_ring *r)
{
    struct nv_sqe command = {.opcode = 2};
    uint32_t head = 0, tail = 0, phase = 1;
    s->inside++;
    if (nv_ring_inflight(r) || r->sq_tail)
        fail("commands of an earlier epoch are in flight");
    while (nv_lease_wish(&r->lease) == NV_LEASE_USE) {
        for (int i = 0; i < BATCH; i++)
            nv_ring_push(r, &command, PAGE, 512, 1000);
        answer(r, &head, &tail, &phase);
        nv_ring_take(r);
        r->done_count = 0;
        atomic_fetch_add_explicit(&s->batches, 1, memory_order_relaxed);
        if (nv_ring_due(r, nv_now_ns()) && nv_ring_overdue(r, nv_now_ns(), 1000))
            nv_lease_report(&r->lease);
    }
    s->inside--;
}

static void *thread(void *argument)
{
    struct shared *s = argument;
    for (uint32_t wish; (wish = nv_lease_wish(&s->ring->lease)) != NV_LEASE_END; sched_yield())
        if (wish == NV_LEASE_USE && nv_lease_enter(&s->ring->lease)) {
            use(s, s->ring);
            nv_lease_leave(&s->ring->lease);
        }
    return NULL;
}

/* Returns when the thread has worked in the ring since the last call. */
static void let_work(struct shared *s)
{
    static unsigned before;
    unsigned now;
    while ((now = atomic_load_explicit(&s->batches, memory_order_relaxed)) == before)
        sched_yield();
    before = now;
}

/* What recovery.py does, from looking at late commands to the emptied ring. */
static void take_back(struct shared *s, uint32_t wish)
{
    struct nv_late late[DEPTH];
    struct nv_ring *r = s->ring;
    uint64_t signs;
    nv_ring_late(r, late, DEPTH);
    nv_ring_extend(r, nv_now_ns(), 2000);
    nv_lease_ask(&r->lease, NV_LEASE_PARK);
    while (nv_lease_used(&r->lease))
        if (read(r->lease.attention_fd, &signs, sizeof signs) < 0)
            sched_yield();
    if (s->inside)
        fail("parked, and the thread is in the ring");
    nv_ring_reset(r);
    nv_lease_ask(&r->lease, wish);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    const size_t bytes = (sizeof(struct nv_sqe) + sizeof(struct nv_cqe)) * DEPTH;
    struct nv_sqe *sq = calloc(1, bytes);
    struct shared s = {.ring = nv_ring_new(1, DEPTH, sq, sq + DEPTH, NULL, 0, 0, PAGE)};
    pthread_t other;
    if (!sq || !s.ring || (s.ring->lease.attention_fd = eventfd(0, EFD_NONBLOCK)) < 0 ||
        pthread_create(&other, NULL, thread, &s))
        return 2;
    for (int left = atoi(argv[1]); left-- > 0; sched_yield()) {
        if (left % 4 == 3) /* at other times it may be on its way in */
            let_work(&s);
        take_back(&s, left ? NV_LEASE_USE : NV_LEASE_END);
    }
    pthread_join(other, NULL);
    printf("%llu commands\n", (unsigned long long)s.ring->submitted);
    close(s.ring->lease.attention_fd);
    nv_ring_free(s.ring);
    free(sq);
    return 0;
}
