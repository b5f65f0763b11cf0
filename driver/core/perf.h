/* The measuring loop of `nvmefs perf`: keeps a number of commands in flight on a queue pair that belongs to the calling
 * thread, and does nothing else. What it measures is the ring (ring.h) and the device behind it.
 *
 * Below: ring.h. Above: driver/tools/perf.py, which makes the queue pair and calls nv_perf_run() again and again, a
 * tenth of a second each; commands stay in flight between two calls. Latencies are in the ring's histograms. Commands
 * have deadlines as others do; after a reset what was in flight is not sent again, for nobody wants its data, and what was
 * the reason of the reset counts as failed.
 */
#ifndef NV_PERF_H
#define NV_PERF_H

#include <linux/perf_event.h>
#include <sched.h>
#include <sys/syscall.h>

#include "deadline.h"
#include "ring.h"
#include "wakeup.h"

enum { NV_PERF_ADAPTIVE, NV_PERF_POLL, NV_PERF_INTERRUPT };
enum { NV_PERF_SPIN_NS = 60000, NV_PERF_NAP_NS = 100000000, NV_PERF_LOOK_NS = 20000000, NV_PERF_LOST_NS = 2000000000 };
enum { NV_PERF_LOST_STATUS = 0x371 }; /* Command Aborted By Host */

struct nv_perf {
    uint32_t nsid;
    uint32_t blocks;      /* of a command */
    uint32_t depth;       /* commands in flight */
    uint32_t block_bytes;
    uint64_t lba_count;
    uint64_t data_iova;   /* depth buffers, one after the other, each at a page */
    uint64_t buffer_bytes;
    uint64_t timeout_ns;  /* deadline of a command, 0: none; and what it gets when that has passed */
    uint64_t grace_ns;
    uint8_t opcode;       /* 1 write, 2 read */
    uint8_t random;
    uint8_t wait;         /* NV_PERF_ADAPTIVE, ... */
    int wakeup_fd;        /* see wakeup.h */
    int instructions_fd;  /* -1: the system does not count them */
    uint64_t state;       /* of the random numbers, not 0; or the next sequential place */
    /* results */
    uint64_t completed, failed, sleeps, cpu_ns, instructions;
    uint16_t last_status;
};

static inline uint64_t nv_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A counter of the calling thread's instructions in user mode, or -1 where the system has none for us. */
static inline int nv_perf_count_instructions(void)
{
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_HARDWARE, .size = sizeof attributes, .config = PERF_COUNT_HW_INSTRUCTIONS,
        .exclude_kernel = 1, .exclude_hv = 1};
    return (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static inline uint64_t nv_perf_instructions(const struct nv_perf *p)
{
    uint64_t count = 0;
    if (p->instructions_fd < 0 || read(p->instructions_fd, &count, sizeof count) != sizeof count)
        return 0;
    return count;
}

static inline uint64_t nv_perf_lba(struct nv_perf *p)
{
    uint64_t places = p->lba_count / p->blocks;
    if (!p->random) {
        uint64_t place = p->state % places;
        p->state = place + 1;
        return place * p->blocks;
    }
    p->state ^= p->state >> 12; /* xorshift64* */
    p->state ^= p->state << 25;
    p->state ^= p->state >> 27;
    return (uint64_t)(((unsigned __int128)(p->state * 0x2545F4914F6CDD1Dull) * places) >> 64) * p->blocks;
}

static inline int nv_perf_fill(struct nv_perf *p, struct nv_ring *r)
{
    while (nv_ring_inflight(r) < p->depth) {
        uint64_t lba = nv_perf_lba(p);
        struct nv_sqe sqe = {.opcode = p->opcode, .nsid = p->nsid};
        sqe.cdw10[0] = (uint32_t)lba;
        sqe.cdw10[1] = (uint32_t)(lba >> 32);
        sqe.cdw10[2] = p->blocks - 1;
        /* Free slots are a stack, so the next one is below depth: each has a buffer of its own. */
        uint64_t slot = r->free_slots[r->free_count - 1];
        int cid = nv_ring_push(r, &sqe, p->data_iova + slot * p->buffer_bytes, (uint64_t)p->blocks * p->block_bytes,
                               p->timeout_ns);
        if (cid < 0)
            return -EINVAL;
    }
    nv_ring_doorbell(r);
    return 0;
}

static inline int nv_perf_take(struct nv_perf *p, struct nv_ring *r)
{
    if (!nv_ring_take(r))
        return 0;
    nv_ring_cq_doorbell(r);
    for (uint32_t i = 0; i < r->done_count; i++) {
        if (r->done[i].status) {
            p->failed++;
            p->last_status = r->done[i].status;
        }
    }
    p->completed += r->done_count;
    r->done_count = 0;
    return 1;
}

/* The driver is told of commands that are late, and when nothing completes. */
static inline void nv_perf_look(const struct nv_perf *p, struct nv_ring *r, uint64_t now, int silent)
{
    if (nv_ring_due(r, now))
        silent |= nv_ring_overdue(r, now, p->grace_ns) > 0;
    if (silent)
        nv_lease_report(&r->lease);
}

static inline void nv_perf_count_lost(struct nv_perf *p, const struct nv_ring *r)
{
    for (uint32_t i = 0; i < r->capacity; i++) {
        if (nv_slot_missed(&r->slots[i]) > 1) {
            p->failed++;
            p->last_status = NV_PERF_LOST_STATUS;
        }
    }
}

static inline int nv_perf_loop(struct nv_perf *p, struct nv_ring *r, uint64_t until_ns, int refill)
{
    uint64_t now = nv_now_ns(), progress = now, look = now + NV_PERF_LOOK_NS;
    int result = 0;
    for (uint32_t turn = 1;; turn++) {
        if (nv_lease_wish(&r->lease) != NV_LEASE_USE) {
            nv_perf_count_lost(p, r);
            return -EAGAIN;
        }
        if (now > look) {
            nv_perf_look(p, r, now, progress + NV_PERF_LOOK_NS < look);
            look = now + NV_PERF_LOOK_NS;
        }
        if (refill && nv_ring_inflight(r) < p->depth && (result = nv_perf_fill(p, r)))
            break;
        if (!nv_ring_inflight(r) || r->kick_errno) {
            result = r->kick_errno ? -EIO : 0;
            break;
        }
        if (turn % 16 == 0)
            now = nv_now_ns();
        if (refill && now >= until_ns)
            break;
        if (nv_perf_take(p, r)) {
            progress = now;
            continue;
        }
        if (now > progress + NV_PERF_LOST_NS) {
            result = -ETIMEDOUT;
            break;
        }
        if (p->wait == NV_PERF_INTERRUPT || (p->wait == NV_PERF_ADAPTIVE && now > progress + NV_PERF_SPIN_NS)) {
            p->sleeps++;
            nv_wakeup_wait(p->wakeup_fd, NV_PERF_LOOK_NS);
            now = nv_now_ns();
            continue;
        }
        nv_relax();
        if (turn % 64 == 0)
            sched_yield(); /* the controller may be a thread that wants this very CPU */
    }
    return result;
}

/* Works until until_ns, or with refill 0 until nothing is in flight. Returns 0, -EAGAIN (the driver wants the queue pair
 * for a moment: call again), -ENODEV (it was taken away), -EOPNOTSUPP (the doorbells are not mapped), -EINVAL (the
 * transfer does not fit), -EIO (a doorbell cannot be rung), -ETIMEDOUT (nothing completed for two seconds).
 * Runs without Python's lock. */
static inline int nv_perf_run(struct nv_perf *p, struct nv_ring *r, uint64_t until_ns, int refill)
{
    if (!r->sq_doorbell || !r->cq_doorbell)
        return -EOPNOTSUPP;
    if (!p->depth || p->depth > r->capacity || !p->blocks || p->lba_count < p->blocks)
        return -EINVAL;
    if (!nv_lease_enter(&r->lease)) {
        nv_wakeup_wait(p->wakeup_fd, NV_PERF_NAP_NS);
        return nv_lease_wish(&r->lease) == NV_LEASE_END ? -ENODEV : -EAGAIN;
    }
    uint64_t cpu = nv_cpu_ns(), instructions = nv_perf_instructions(p);
    int result = nv_perf_loop(p, r, until_ns, refill);
    nv_lease_leave(&r->lease);
    p->cpu_ns += nv_cpu_ns() - cpu;
    p->instructions += nv_perf_instructions(p) - instructions;
    return result;
}

#endif
