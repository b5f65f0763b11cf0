/* A thread that takes requests: when it looks for them, when it looks at its queue pair, and when it sleeps.
 *
 * Further threads rest until there is a crowd: a request that a sleeping thread is woken for takes longer than one that
 * waits a moment for a thread that is awake, and is cheaper there too. */
#include "frontend_private.h"

#include <sched.h>

#include <errno.h>
#include <unistd.h>

enum {
    CROWD = 32,       /* requests that are looked for between commands after one was found there */
    PROBE_EVERY = 16, /* without a crowd, look that often */
    LOOK_EVERY = 4096, /* rounds without a sleep after which deadlines are looked at all the same */
    LEFT_OUT = 63,     /* sleeps without looking about first, at most, after looks in vain */
    CALL_AT = 6,       /* requests being served by one thread when it calls the next */
};

static const uint64_t FIRST_NAP_NS = 50000, LONGEST_NAP_NS = 2000000, REST_AFTER_NS = 2000000;

void fe_signal(int fd)
{
    const uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void fe_free_slot(struct channel *ch, struct fe_slot *slot)
{
    ch->transport->free(ch, slot);
}

/* Wakes the next thread, if it rests. */
static void call_next(struct channel *ch)
{
    if (ch->index + 1 >= ch->fe->config.channel_count)
        return;
    struct channel *next = ch + 1;
    if (atomic_load_explicit(&next->resting, memory_order_relaxed) && atomic_exchange(&next->resting, 0)) {
        fe_count(&ch->calls, 1);
        fe_signal(next->call_fd);
    }
}

/* Takes and handles one request. 1: done; 0: there is none; -1: unmounted. */
static int handle_one(struct channel *ch)
{
    struct fe_slot *slot;
    int taken = ch->transport->take(ch, &slot);
    if (taken <= 0)
        return taken;
    fe_count(&ch->requests, 1);
    if (!fe_serve(ch, slot))
        fe_forward(ch, slot);
    if (ch->busy >= CALL_AT)
        call_next(ch);
    return 1;
}

/* Whether to look for another request while commands are under way: often when there were some lately. */
static int look_for_more(struct channel *ch)
{
    if (!ch->transport->can_take(ch))
        return 0;
    return ch->transport->free_to_look || !ch->busy || ch->crowd || !(++ch->probe % PROBE_EVERY);
}

static void push(struct channel *ch)
{
    if (ch->transport->push)
        ch->transport->push(ch);
}

/* Spins for a completion, as long as that may be sooner than a sleep and a wake-up. */
static int spin(struct channel *ch)
{
    push(ch);
    uint64_t end = nv_now_ns() + ch->fe->config.spin_ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (fe_reap(ch) || (ch->transport->pending && ch->transport->pending(ch)))
                return 1;
            nv_relax();
        }
        sched_yield();
    } while (nv_now_ns() < end);
    return 0;
}

/* Whether a request has been served here since this was asked last. */
static int has_served(struct channel *ch)
{
    uint64_t before = ch->served;
    ch->served = ch->reads + ch->writes + ch->fsyncs;
    return ch->served != before;
}

/* Looks for the next request for a while, unless that was in vain lately: who asks for one thing at a time asks for the next
 * sooner than a thread falls asleep and wakes. Not after what Python answers: it needs the CPU. As handle_one(). */
static int linger(struct channel *ch)
{
    if (!ch->fe->config.spin_ns || !has_served(ch))
        return 0;
    if (ch->lingers_left_out) {
        ch->lingers_left_out--;
        return 0;
    }
    push(ch);
    for (uint64_t end = nv_now_ns() + 2ull * ch->fe->config.spin_ns; ch->transport->can_take(ch);) {
        int handled = handle_one(ch);
        if (handled) {
            ch->lingered_in_vain = 0;
            fe_count(&ch->found, handled > 0);
            return handled;
        }
        if (nv_now_ns() >= end)
            break;
        sched_yield(); /* who asks may want this very CPU */
    }
    ch->lingered_in_vain = ch->lingered_in_vain < LEFT_OUT ? 2 * ch->lingered_in_vain + 1 : LEFT_OUT;
    ch->lingers_left_out = ch->lingered_in_vain;
    fe_count(&ch->vain, 1);
    return 0;
}

/* How long to sleep at most; UINT64_MAX: until something happens. */
static uint64_t sleep_bound_ns(struct channel *ch)
{
    if (!ch->busy)
        return ch->may_rest && !atomic_load(&ch->resting) ? REST_AFTER_NS : UINT64_MAX;
    if (!ch->holding || !(ch->naps || ch->fe->config.restless))
        return fe_tick_ns(ch);
    ch->nap_ns = ch->nap_ns < LONGEST_NAP_NS ? ch->nap_ns + ch->nap_ns / 2 : LONGEST_NAP_NS;
    return ch->fe->config.restless ? 0 : ch->nap_ns;
}

/* Sleeps until there is a request, a completion, or the end. 0: the end. */
static int sleep_for_more(struct channel *ch)
{
    uint64_t bound = sleep_bound_ns(ch);
    if (!ch->busy && ch->holding)
        fe_leave(ch); /* the driver need not wait for one who sleeps */
    int woken = ch->transport->sleep(ch, bound);
    if (woken < 0)
        return 0;
    if (ch->busy)
        fe_look(ch, !woken);
    else if (!woken && ch->may_rest && !ch->backlog.first)
        atomic_store(&ch->resting, 1); /* a call that comes now is not lost: it takes the mark away again */
    return 1;
}

/* Commands under way move on. 1: some have completed. */
static int tend(struct channel *ch)
{
    fe_heed(ch);
    if (!ch->holding || !fe_reap(ch))
        return 0;
    ch->nap_ns = FIRST_NAP_NS;
    if (!(++ch->rounds % LOOK_EVERY))
        fe_look(ch, 0);
    return 1;
}

/* Unmounted or stopped: nobody wants the answers, but memory and blocks are the drive's until they have completed. */
static void finish_all(struct channel *ch)
{
    for (uint64_t start = nv_now_ns(); ch->busy && nv_now_ns() - start < ch->fe->config.last_wait_ns;) {
        if (tend(ch))
            continue;
        nv_wakeup_wait(ch->wakeup_fd, LONGEST_NAP_NS);
        fe_look(ch, 1);
    }
    if (ch->holding)
        fe_leave(ch);
}

static void serve_until_the_end(struct channel *ch)
{
    ch->nap_ns = FIRST_NAP_NS;
    for (;;) {
        fe_collect(ch);
        fe_serve_waiting(ch);
        int progress = ch->backlog.first && fe_send_backlog(ch);
        if (look_for_more(ch)) {
            int handled = handle_one(ch);
            if (handled < 0)
                return;
            if (ch->busy && handled)
                ch->crowd = CROWD;
            else if (!handled && ch->crowd)
                ch->crowd--;
            progress |= handled;
        }
        if (ch->busy)
            progress |= tend(ch);
        if (!progress && !ch->busy) {
            progress = linger(ch);
            if (progress < 0)
                return;
        }
        if (!progress && !(ch->busy && ch->holding && spin(ch)) && !sleep_for_more(ch))
            return;
    }
}

void *fe_channel_thread(void *argument)
{
    struct channel *ch = argument;
    struct frontend *fe = ch->fe;
    int error = ch->transport->begin ? ch->transport->begin(ch) : 0;
    if (error)
        atomic_store(&fe->begin_error, error);
    sem_post(&fe->begun);
    if (!error)
        serve_until_the_end(ch);
    fe_signal(fe->stop_fd); /* all end together */
    finish_all(ch);
    if (ch->transport->end)
        ch->transport->end(ch);
    if (atomic_fetch_sub(&fe->running, 1) == 1)
        fe_signal(fe->config.ended_fd);
    return NULL;
}
