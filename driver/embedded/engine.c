/*
 * The controller's thread: fetches commands, executes them, posts completions; polls while busy, sleeps when idle.
 *
 * No lost wake-up. The thread sleeps in read() on the kick eventfd, whose counter keeps every kick until it is
 * read: a kick is never lost, the question is only whether the host gives one.
 *   - Without shadow doorbells each doorbell store is followed by a kick: nothing to prove.
 *   - With them the host kicks when its store passes the event index. Before it sleeps, the thread
 *         (1) stores the event indexes     (2) full fence     (3) looks at the doorbells again,
 *     and the host
 *         (a) stores its doorbell          (b) full fence     (c) reads the event index, kicks if passed.
 *     Both fences are sequentially consistent, so of (1)->(c) and (a)->(3) at least one is seen: either the
 *     thread finds the doorbell in (3) and does not sleep, or the host finds the index in (c) and kicks.
 *   - Requests of the host's other threads (CC, unmap, stop) set `attention` before they kick.
 *   - Hosts that may store doorbells without a kick are known (controller_look_at_doorbells): no sleep without an end.
 *
 * While it polls the event indexes stay behind, so that hosts do not kick.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "queues.h"

#define POLL_LEAST_NS 4000u
#define SPINS_PER_LOOK_AT_CLOCK 8
#define NAP_LEAST_NS 50000u       /* between two looks at the doorbells of a host that may not kick */
#define NAP_UNKICKED_NS 1000000u  /* ... at most, when it does not */
#define NAP_KICKED_NS 100000000u  /* ... and when it does */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void engine_kick(struct controller *c)
{
    uint64_t one = 1;
    while (write(c->kick_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

/* ---- CC ---------------------------------------------------------------------------------------------- */

static void set_csts(struct controller *c, uint32_t clear, uint32_t set)
{
    pthread_mutex_lock(&c->lock);
    c->regs.csts = (c->regs.csts & ~clear) | set;
    pthread_mutex_unlock(&c->lock);
}

void engine_reset(struct controller *c)
{
    queues_reset(c);
    __atomic_store_n(&c->stranded, false, __ATOMIC_RELEASE);
    features_reset(c);
    c->enabled = c->running = false;
    c->async_request_count = c->event_count = c->event_masked = 0;
    if (c->faults)
        faults_reset(c);
    set_csts(c, ~0u, 0);
}

/* Sections 3.1.5 and 7.6.1: takes the admin queues in, or reports CFS. */
static void enable(struct controller *c, const struct registers *regs)
{
    uint32_t page_bits = MIN_PAGE_BITS + CC_MPS(regs->cc);
    uint32_t sq_size = (regs->aqa & 0xfff) + 1, cq_size = (regs->aqa >> 16 & 0xfff) + 1;
    uint64_t unaligned = (regs->asq | regs->acq) & ((1ull << page_bits) - 1);
    c->enabled = true;
    if (page_bits > MAX_PAGE_BITS || CC_CSS(regs->cc) || CC_AMS(regs->cc) || sq_size < 2 || cq_size < 2 || unaligned) {
        controller_fail(c);
        return;
    }
    c->page_bits = page_bits;
    if (queue_create_cq(c, 0, regs->acq, cq_size, 0) || queue_create_sq(c, 0, regs->asq, sq_size, 0)) {
        controller_fail(c);
        return;
    }
    c->running = true;
    set_csts(c, 0, CSTS_RDY);
}

/* Section 7.6.2: what the cache holds goes to the medium, then SHST says so. */
static void shut_down(struct controller *c)
{
    c->running = false;
    set_csts(c, CSTS_SHST_MASK, CSTS_SHST_OCCURRING);
    if (!c->options.read_only && backend_flush(&c->backend))
        COUNT(c, media_errors, 1);
    set_csts(c, CSTS_SHST_MASK, CSTS_SHST_COMPLETE);
}

static bool held(struct controller *c, int transition)
{
    return c->faults && faults_hold(c, transition);
}

/* Acts on CC, as far as no rule puts it off: then it is looked at again when the time has come. */
static void follow_cc(struct controller *c, struct registers *regs, bool reset_first)
{
    if (reset_first && held(c, FAULT_RESET)) {
        pthread_mutex_lock(&c->lock);
        c->reset_requested = true;
        pthread_mutex_unlock(&c->lock);
    } else if (reset_first) {
        if (c->faults)
            faults_unhold(c, FAULT_ENABLE);
        engine_reset(c);
        regs->csts = 0;
    }
    if (regs->cc & CC_EN && !c->enabled && !held(c, FAULT_ENABLE))
        enable(c, regs);
    if (CC_SHN(regs->cc) && !(regs->csts & CSTS_SHST_MASK) && !held(c, FAULT_SHUTDOWN))
        shut_down(c);
}

/* Picks up everything that other threads asked for. False: stop. */
static bool attend(struct controller *c)
{
    __atomic_store_n(&c->attention, 0, __ATOMIC_RELAXED); /* before the look: what comes later sets it again */
    c->dma = __atomic_load_n(&c->dma_published, __ATOMIC_ACQUIRE);
    pthread_mutex_lock(&c->lock);
    void (*call)(struct controller *, void *) = c->call;
    pthread_mutex_unlock(&c->lock);
    if (call) {
        call(c, c->call_argument);
        pthread_mutex_lock(&c->lock);
        c->call = NULL;
        pthread_cond_broadcast(&c->call_done);
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_lock(&c->lock); /* after the call, which may have reset the registers */
    struct registers regs = c->regs;
    bool stop = c->stop, reset_first = c->reset_requested;
    c->reset_requested = false;
    pthread_mutex_unlock(&c->lock);
    /* Once more: what was mapped before CC was written, perhaps since the call, is in this table. */
    c->dma = __atomic_load_n(&c->dma_published, __ATOMIC_ACQUIRE);
    follow_cc(c, &regs, reset_first);
    queues_unmasked(c);
    return !stop;
}

/* ---- commands ---------------------------------------------------------------------------------------- */

uint16_t engine_run(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd, uint32_t *result)
{
    uint16_t status = sq->id ? io_execute(c, cmd) : admin_execute(c, cmd, result);
    COUNT(c, commands, 1);
    if (status == STATUS_DATA_TRANSFER_ERROR)
        COUNT(c, stray_accesses, 1);
    return status;
}

void engine_count_error(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd,
                        uint16_t status)
{
    COUNT(c, errors, 1);
    log_error(c, sq->id, cmd, status);
}

/* The one place that every command passes, admin and I/O alike: faults.c acts here, and nowhere else. */
static void execute(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd)
{
    uint32_t result = 0;
    if (c->faults && faults_execute(c, sq, cmd))
        return;
    uint16_t status = engine_run(c, sq, cmd, &result);
    if (status == STATUS_HELD)
        return;
    if (status)
        engine_count_error(c, sq, cmd, status);
    queue_post(sq->cq, (uint16_t)sq->head, sq->id, cmd->cid, result, status);
    if (c->faults)
        faults_completed(c, sq->id, cmd->cid);
}

/* One burst of one queue. The command is copied first: the host may reuse its slot once the head is told, and
 * must not change under our hands what was checked. */
static bool service_queue(struct controller *c, struct submission_queue *sq)
{
    struct completion_queue *cq = sq->cq;
    uint32_t commands = 0;
    if (!queue_take_tail(c, sq))
        return false;
    /* After the doorbell's acquire: memory that was mapped before the doorbell was rung is in this table. */
    c->dma = __atomic_load_n(&c->dma_published, __ATOMIC_ACQUIRE);
    c->burst_bytes = 0;
    while (c->running && sq->head != sq->tail && queue_has_room(c, cq)) {
        struct nvme_command cmd = sq->entries[sq->head];
        sq->head = sq->head + 1 == sq->size ? 0 : sq->head + 1;
        execute(c, sq, &cmd);
        if (++commands == BURST_COMMANDS || c->burst_bytes >= BURST_BYTES)
            break;
    }
    if (cq->signal_due)
        queue_signal(c, cq);
    return commands > 0;
}

/* A round over all queues (round robin, CAP.AMS = 0). The admin queue is first, and may change the list. */
static bool service(struct controller *c)
{
    bool busy = false;
    for (uint32_t i = 0; i < c->active_count; i++)
        busy |= service_queue(c, &c->sqs[c->active[i]]);
    if (c->faults && c->running)
        busy |= faults_service(c);
    if (c->event_count && c->running)
        events_deliver(c);
    return busy;
}

/* ---- idleness ---------------------------------------------------------------------------------------- */

/* Are there queues to look at, and are they where they were? */
static bool serving(const struct controller *c)
{
    return c->running && !c->stranded;
}

static bool work_waits(const struct controller *c)
{
    return __atomic_load_n(&c->attention, __ATOMIC_RELAXED) || (serving(c) && queues_pending(c));
}

/* Busy wait, bounded by the present window. True: there is work. */
static bool poll_for_work(struct controller *c, uint64_t start)
{
    if (!serving(c) || c->poll_window_ns == 0)
        return false;
    do {
        for (int i = 0; i < SPINS_PER_LOOK_AT_CLOCK; i++) {
            if (work_waits(c)) {
                COUNT(c, polls, 1);
                return true;
            }
            cpu_relax();
        }
        sched_yield(); /* the host may want this very CPU to give us work */
    } while (now_ns() - start < c->poll_window_ns);
    return false;
}

/* The window follows what idleness lasts: it grows when work came soon after we gave up, and shrinks to nothing
 * when it did not, so that a host with long pauses pays no busy waiting at all. */
static void adapt_window(struct controller *c, uint64_t idle_ns)
{
    uint32_t window = c->poll_window_ns;
    if (idle_ns <= c->poll_limit_ns)
        window = window ? 2 * window : POLL_LEAST_NS;
    else
        window = window / 2 < POLL_LEAST_NS ? 0 : window / 2;
    c->poll_window_ns = window < c->poll_limit_ns ? window : c->poll_limit_ns;
}

/*
 * A host that has the doorbells mapped, but nothing to kick with, is noticed by looking: the naps between two looks
 * double. Which kind of host it is shows by how work is found, so that one that kicks is hardly looked at.
 */
static bool nap_until_kicked(struct controller *c, uint64_t *nap_ns)
{
    struct pollfd kick = {.fd = c->kick_fd, .events = POLLIN};
    struct timespec nap = {.tv_nsec = (long)*nap_ns};
    uint64_t longest = c->host_kicks ? NAP_KICKED_NS : NAP_UNKICKED_NS;
    *nap_ns = 2 * *nap_ns < longest ? 2 * *nap_ns : longest;
    int kicked = ppoll(&kick, 1, &nap, NULL);
    if (kicked >= 0 && queues_pending(c))
        c->host_kicks = kicked > 0;
    return kicked > 0;
}

/* The same with a bound: something that a rule has put off is due then. */
static bool kicked_before(struct controller *c, uint64_t due_ns)
{
    struct pollfd kick = {.fd = c->kick_fd, .events = POLLIN};
    uint64_t now = now_ns(), wait_ns = due_ns > now ? due_ns - now : 0;
    if (c->look_at_doorbells && wait_ns > NAP_UNKICKED_NS)
        wait_ns = NAP_UNKICKED_NS;
    struct timespec nap = {(time_t)(wait_ns / 1000000000u), (long)(wait_ns % 1000000000u)};
    if (ppoll(&kick, 1, &nap, NULL) > 0)
        return true;
    if (now_ns() >= due_ns)
        __atomic_store_n(&c->attention, 1, __ATOMIC_RELAXED);
    return false;
}

/* False: the kick eventfd cannot be read. */
static bool sleep_until_kicked(struct controller *c, uint64_t *nap_ns)
{
    uint64_t kicks, due_ns = c->faults ? faults_deadline(c) : FAULT_NEVER;
    if (due_ns != FAULT_NEVER && !kicked_before(c, due_ns))
        return true;
    if (due_ns == FAULT_NEVER && c->look_at_doorbells && serving(c) && !nap_until_kicked(c, nap_ns))
        return true;
    return read(c->kick_fd, &kicks, sizeof kicks) >= 0 || errno == EINTR;
}

static void wait_for_work(struct controller *c)
{
    uint64_t start = now_ns();
    if (poll_for_work(c, start))
        return;
    if (serving(c)) {
        queues_find_stray_doorbells(c);
        queues_arm(c);                           /* (1) */
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);     /* (2) */
    uint64_t nap_ns = NAP_LEAST_NS;
    while (!work_waits(c)) {                     /* (3) */
        COUNT(c, sleeps, 1);
        if (!sleep_until_kicked(c, &nap_ns))
            break;
        /* Acquire side of a kick: the eventfd orders the host's stores before our next look. */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (serving(c))
            queues_find_stray_doorbells(c);
        if (c->event_count)
            break; /* to be delivered, should a request be held */
    }
    adapt_window(c, now_ns() - start);
}

void *engine_main(void *argument)
{
    struct controller *c = argument;
    guard_thread(c);
    for (;;) {
        if (guard_tripped() && c->running)
            controller_fail(c);
        if (__atomic_load_n(&c->attention, __ATOMIC_ACQUIRE) && !attend(c))
            return NULL;
        if (!serving(c) || !service(c))
            wait_for_work(c);
    }
}
