/*
 * The fault controller: what it may do to you when it is given rules.
 *
 * A rule says which commands it is about (queue, opcode, low byte of dword 10, blocks), which of those it hits (the n-th,
 * every k-th, by chance, at most so many), and what happens to them. Of several rules that would hit a command the first
 * one does; all of them count it. Chance is a hash of the plan's seed, the rule's place and the number of the match: the
 * same plan and the same commands meet the same faults.
 *
 *   to a command        dropped; executed and never completed; completed and never executed; executed later, by time or
 *                       after further commands (and so out of order, from memory that the host may have taken back);
 *                       failed with any status, executed or not
 *   to a completion     repeated; with another command id, queue id, queue head, result or phase bit; without an interrupt
 *   beside a command    interrupts for nothing; asynchronous events that say anything
 *   to the controller   CSTS.CFS, or all-ones in every register, from a command on; enable, reset and shutdown late or
 *                       never; any capabilities
 *   to what it says     bytes of Identify, of log pages and of data replaced or flipped
 *   to the medium       bits rot, writes are acknowledged and lost, reads and writes go to other blocks
 *   to the cache        cache.c
 *
 * A completion queue is never overrun, and no memory is touched that is not mapped: those would be faults of this
 * program, not of a device. A command that waits can be aborted; one that was dropped is not known any more.
 */
#include "faults.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mix.h"
#include "queues.h"

#define RETRY_NS 1000000u /* a command whose time has come finds its completion queue full */
#define TRANSITIONS 3u

struct counter {
    uint64_t matches, hits;
};

struct pending {
    struct nvme_command cmd;
    struct fault_rule rule;
    uint16_t sq_id;
    uint64_t chance;
    uint64_t due_ns, due_commands; /* whichever comes first */
};

struct faults {
    uint64_t seed;
    uint64_t commands; /* seen */
    uint64_t held_until[TRANSITIONS]; /* 0: not held */
    struct pending pending[FAULT_PENDING];
    uint32_t pending_count;
    uint16_t last_cid[MAX_IO_QUEUES + 1];
    uint32_t count;
    struct counter *counters;
    struct fault_rule rules[];
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* ---- the plan ------------------------------------------------------------------------------------------ */

struct faults *faults_new(const struct fault_plan *plan)
{
    struct faults *f = calloc(1, sizeof *f + plan->count * sizeof f->rules[0]);
    struct counter *counters = calloc(plan->count + 1, sizeof *counters);
    if (!f || !counters) {
        free(f);
        free(counters);
        return NULL;
    }
    f->seed = plan->seed;
    f->count = plan->count;
    f->counters = counters;
    if (plan->count)
        memcpy(f->rules, plan->rules, plan->count * sizeof f->rules[0]);
    memset(f->last_cid, 0xff, sizeof f->last_cid);
    return f;
}

void faults_free(struct faults *f)
{
    if (f)
        free(f->counters);
    free(f);
}

void faults_replace(struct controller *c, struct faults *fresh)
{
    struct faults *old = c->faults;
    if (old) {
        memcpy(fresh->pending, old->pending, sizeof old->pending);
        memcpy(fresh->last_cid, old->last_cid, sizeof old->last_cid);
        memcpy(fresh->held_until, old->held_until, sizeof old->held_until);
        fresh->pending_count = old->pending_count;
        fresh->commands = old->commands;
        faults_free(old);
    }
    c->faults = fresh;
}

/* ---- which rule ---------------------------------------------------------------------------------------- */

static bool names_blocks(uint16_t sq_id, uint8_t opcode)
{
    return sq_id && (opcode == IO_WRITE || opcode == IO_READ || opcode == IO_COMPARE || opcode == IO_WRITE_ZEROES ||
                     opcode == IO_VERIFY);
}

static uint64_t first_lba(const struct nvme_command *cmd)
{
    return cmd->cdw10 | (uint64_t)cmd->cdw11 << 32;
}

static uint64_t block_count(const struct nvme_command *cmd)
{
    return (cmd->cdw12 & 0xffff) + 1ull;
}

static bool matches(const struct fault_rule *rule, uint16_t sq_id, const struct nvme_command *cmd)
{
    bool queue = rule->queue == FAULT_ANY_QUEUE || rule->queue == sq_id || (rule->queue == FAULT_IO_QUEUES && sq_id);
    if (!queue || (rule->opcode >= 0 && rule->opcode != cmd->opcode))
        return false;
    if (rule->selector >= 0 && (uint32_t)rule->selector != (cmd->cdw10 & 0xff))
        return false;
    if (rule->first_lba == 0 && rule->last_lba == UINT64_MAX)
        return true;
    return names_blocks(sq_id, cmd->opcode) && first_lba(cmd) <= rule->last_lba &&
           first_lba(cmd) + (block_count(cmd) - 1) >= rule->first_lba;
}

static uint64_t chance_of(const struct faults *f, uint32_t index)
{
    return mix(mix(f->seed, index), f->counters[index].matches);
}

static bool hits(const struct faults *f, uint32_t index)
{
    const struct fault_rule *rule = &f->rules[index];
    const struct counter *counter = &f->counters[index];
    return (!rule->nth || counter->matches == rule->nth) && (!rule->every || counter->matches % rule->every == 0) &&
           (!rule->limit || counter->hits < rule->limit) &&
           (!rule->probability || chance_of(f, index) >> 32 < rule->probability);
}

/* The first rule that hits, or NULL; `cmd` NULL: a transition is matched instead. */
static const struct fault_rule *find_rule(struct controller *c, int what, const struct nvme_command *cmd,
                                          uint64_t *chance)
{
    struct faults *f = c->faults;
    const struct fault_rule *found = NULL;
    for (uint32_t i = 0; i < f->count; i++) {
        const struct fault_rule *rule = &f->rules[i];
        if (cmd ? !matches(rule, (uint16_t)what, cmd) : rule->queue != what)
            continue;
        f->counters[i].matches++;
        if (found || !hits(f, i))
            continue;
        f->counters[i].hits++;
        found = rule;
        *chance = chance_of(f, i);
        COUNT(c, fault_hits, 1);
    }
    return found;
}

/* ---- data ---------------------------------------------------------------------------------------------- */

static bool inside(const struct controller *c, const struct nvme_command *cmd)
{
    return first_lba(cmd) < c->block_count && block_count(cmd) <= c->block_count - first_lba(cmd);
}

/* Durably: it is the medium that has changed. */
static uint16_t rot(struct controller *c, const struct nvme_command *cmd, uint64_t chance)
{
    uint64_t offset = first_lba(cmd) << c->block_bits, bytes = block_count(cmd) << c->block_bits;
    uint8_t byte;
    struct iovec vector = {&byte, 1};
    if (!inside(c, cmd))
        return STATUS_SUCCESS;
    offset += (chance >> 3) % bytes;
    if (backend_read(&c->backend, &vector, 1, offset))
        return STATUS_UNRECOVERED_READ;
    byte ^= (uint8_t)(1u << (chance & 7));
    vector = (struct iovec){&byte, 1};
    return backend_write(&c->backend, &vector, 1, offset, true) ? STATUS_UNRECOVERED_READ : STATUS_SUCCESS;
}

static void misdirect(const struct controller *c, struct nvme_command *cmd, uint64_t blocks)
{
    if (!inside(c, cmd))
        return; /* refused as it stands */
    uint64_t places = c->block_count - block_count(cmd) + 1, lba = (first_lba(cmd) + blocks) % places;
    cmd->cdw10 = (uint32_t)lba;
    cmd->cdw11 = (uint32_t)(lba >> 32);
}

static uint64_t returned_bytes(const struct controller *c, uint16_t sq_id, const struct nvme_command *cmd)
{
    if (sq_id)
        return cmd->opcode == IO_READ ? block_count(cmd) << c->block_bits : 0;
    if (cmd->opcode == ADMIN_GET_LOG_PAGE)
        return (((uint64_t)(cmd->cdw11 & 0xffff) << 16 | cmd->cdw10 >> 16) + 1) * 4;
    return cmd->opcode == ADMIN_IDENTIFY ? NVME_IDENTIFY_BYTES : 0;
}

static void patch(struct controller *c, uint16_t sq_id, const struct nvme_command *cmd, const struct fault_rule *rule)
{
    uint64_t bytes = returned_bytes(c, sq_id, cmd), at = 0;
    if (!bytes || data_resolve(c, cmd, bytes))
        return;
    for (uint32_t i = 0; i < c->iov_count; at += c->iov[i++].iov_len) {
        uint8_t *host = c->iov[i].iov_base;
        for (uint32_t k = 0; k < rule->patch_bytes; k++) {
            uint64_t place = (uint64_t)rule->patch_offset + k;
            if (place < at || place >= at + c->iov[i].iov_len)
                continue;
            host[place - at] = rule->actions & FAULT_FLIP ? host[place - at] ^ rule->patch[k] : rule->patch[k];
        }
    }
}

/* ---- commands ------------------------------------------------------------------------------------------ */

static void complete(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd,
                     const struct fault_rule *rule, uint32_t result, uint16_t status)
{
    struct completion_queue *cq = sq->cq;
    bool signal_due = cq->signal_due;
    uint32_t actions = rule->actions;
    uint16_t cid = cmd->cid, sq_id = actions & FAULT_SQ_ID ? rule->sq_id : sq->id;
    uint16_t sq_head = actions & FAULT_SQ_HEAD ? rule->sq_head : (uint16_t)sq->head;
    if (status)
        engine_count_error(c, sq, cmd, status);
    if (actions & FAULT_CID)
        cid = rule->cid;
    else if (actions & FAULT_CID_FLIP)
        cid ^= rule->cid;
    else if (actions & FAULT_CID_STALE)
        cid = c->faults->last_cid[sq->id];
    for (uint32_t i = 0; i < 1 + (actions & FAULT_DUPLICATE ? rule->copies : 0) && queue_has_room(c, cq); i++)
        queue_post_phase(cq, sq_head, sq_id, cid, actions & FAULT_RESULT ? rule->result : result, status,
                         cq->phase ^ !!(actions & FAULT_STALE_PHASE));
    if (actions & FAULT_QUIET)
        cq->signal_due = signal_due;
    faults_completed(c, sq->id, cmd->cid);
}

/* Everything from execution on. */
static void finish(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd,
                   const struct fault_rule *rule, uint64_t chance)
{
    uint32_t actions = rule->actions, result = 0;
    uint16_t status = STATUS_SUCCESS;
    struct nvme_command altered = *cmd;
    bool execute = !(actions & (FAULT_LOST | FAULT_STATUS)) || actions & FAULT_EXECUTED;
    if (actions & FAULT_MISDIRECT && names_blocks(sq->id, cmd->opcode))
        misdirect(c, &altered, rule->blocks);
    if (actions & FAULT_ROT && sq->id && cmd->opcode == IO_READ)
        status = rot(c, &altered, chance);
    if (execute && !status)
        status = engine_run(c, sq, &altered, &result);
    if (status == STATUS_HELD)
        return;
    if (actions & FAULT_STATUS)
        status = rule->status;
    else if (!status && actions & (FAULT_PATCH | FAULT_FLIP))
        patch(c, sq->id, cmd, rule);
    if (!(actions & FAULT_MUTE))
        complete(c, sq, cmd, rule, result, status);
}

static bool put_off(struct controller *c, uint16_t sq_id, const struct nvme_command *cmd, const struct fault_rule *rule,
                    uint64_t chance)
{
    struct faults *f = c->faults;
    if (!(rule->actions & (FAULT_DELAY | FAULT_BEHIND)) || f->pending_count == FAULT_PENDING)
        return false;
    struct pending *pending = &f->pending[f->pending_count++];
    *pending = (struct pending){*cmd, *rule, sq_id, chance, FAULT_NEVER, UINT64_MAX};
    if (rule->actions & FAULT_DELAY && rule->delay_ns != FAULT_NEVER)
        pending->due_ns = now_ns() + rule->delay_ns;
    if (rule->actions & FAULT_BEHIND)
        pending->due_commands = f->commands + rule->behind;
    return true;
}

static void raise_event(struct controller *c, uint32_t event)
{
    c->event_masked &= ~(1u << (event & 7)); /* whatever was reported before */
    events_raise(c, (struct async_event){(uint8_t)event, (uint8_t)(event >> 8), (uint8_t)(event >> 16)});
}

void faults_vanish(struct controller *c)
{
    c->running = false;
    if (c->faults)
        c->faults->pending_count = 0;
    pthread_mutex_lock(&c->lock);
    c->gone = true;
    pthread_mutex_unlock(&c->lock);
}

bool faults_execute(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd)
{
    uint64_t chance;
    c->faults->commands++;
    const struct fault_rule *rule = find_rule(c, sq->id, cmd, &chance);
    if (!rule)
        return false;
    if (rule->actions & FAULT_SPURIOUS)
        queues_signal_all(c);
    if (rule->actions & FAULT_EVENT)
        raise_event(c, rule->event);
    if (rule->actions & FAULT_GONE)
        faults_vanish(c);
    else if (rule->actions & FAULT_FATAL)
        controller_fail(c);
    else if (!(rule->actions & FAULT_DROP) && !put_off(c, sq->id, cmd, rule, chance))
        finish(c, sq, cmd, rule, chance);
    return true;
}

void faults_completed(struct controller *c, uint16_t sq_id, uint16_t cid)
{
    c->faults->last_cid[sq_id] = cid;
}

/* ---- commands that wait -------------------------------------------------------------------------------- */

static void forget(struct faults *f, uint32_t at)
{
    f->pending_count--;
    memmove(&f->pending[at], &f->pending[at + 1], (f->pending_count - at) * sizeof f->pending[0]);
}

bool faults_service(struct controller *c)
{
    struct faults *f = c->faults;
    bool busy = false;
    uint64_t now = f->pending_count ? now_ns() : 0;
    for (uint32_t i = 0; i < f->pending_count && c->running;) {
        struct pending *pending = &f->pending[i];
        if (pending->due_ns > now && pending->due_commands > f->commands) {
            i++;
            continue;
        }
        struct submission_queue *sq = &c->sqs[pending->sq_id];
        if (!queue_has_room(c, sq->cq)) {
            pending->due_ns = now + RETRY_NS;
            pending->due_commands = UINT64_MAX;
            i++;
            continue;
        }
        struct pending due = *pending; /* what it does may change the list */
        forget(f, i);
        finish(c, sq, &due.cmd, &due.rule, due.chance);
        if (sq->cq->signal_due)
            queue_signal(c, sq->cq);
        busy = true;
    }
    return busy;
}

uint64_t faults_deadline(const struct controller *c)
{
    const struct faults *f = c->faults;
    uint64_t due = FAULT_NEVER;
    for (uint32_t i = 0; i < f->pending_count && c->running; i++)
        due = f->pending[i].due_ns < due ? f->pending[i].due_ns : due;
    for (uint32_t i = 0; i < TRANSITIONS; i++)
        due = f->held_until[i] && f->held_until[i] < due ? f->held_until[i] : due;
    return due;
}

bool faults_abort(struct controller *c, uint32_t sq_id, uint16_t cid)
{
    struct faults *f = c->faults;
    for (uint32_t i = 0; i < f->pending_count; i++) {
        struct submission_queue *sq = &c->sqs[f->pending[i].sq_id];
        /* A command in flight has its place in the completion queue; the Abort's own is in the admin queue. */
        if (sq->id != sq_id || f->pending[i].cmd.cid != cid || queue_room(c, sq->cq) < (sq_id ? 1 : 2))
            continue;
        forget(f, i);
        queue_post(sq->cq, (uint16_t)sq->head, sq->id, cid, 0, STATUS_ABORT_REQUESTED);
        queue_signal(c, sq->cq);
        return true;
    }
    return false;
}

void faults_forget_queue(struct controller *c, uint16_t sq_id)
{
    struct faults *f = c->faults;
    for (uint32_t i = f->pending_count; i-- > 0;) {
        if (f->pending[i].sq_id == sq_id)
            forget(f, i);
    }
    f->last_cid[sq_id] = 0xffff;
}

void faults_reset(struct controller *c)
{
    c->faults->pending_count = 0;
    memset(c->faults->last_cid, 0xff, sizeof c->faults->last_cid);
}

/* ---- registers ----------------------------------------------------------------------------------------- */

bool faults_hold(struct controller *c, int transition)
{
    uint64_t chance, *until = &c->faults->held_until[FAULT_ENABLE - transition];
    if (c->gone)
        return true;
    if (!*until) {
        const struct fault_rule *rule = find_rule(c, transition, NULL, &chance);
        if (!rule)
            return false;
        if (rule->actions & FAULT_GONE)
            faults_vanish(c);
        else if (rule->actions & FAULT_FATAL)
            controller_fail(c);
        bool forever = rule->actions & (FAULT_GONE | FAULT_FATAL) || rule->delay_ns == FAULT_NEVER;
        *until = forever ? FAULT_NEVER : now_ns() + rule->delay_ns;
    }
    if (*until == FAULT_NEVER || now_ns() < *until)
        return true;
    *until = 0;
    return false;
}

void faults_unhold(struct controller *c, int transition)
{
    c->faults->held_until[FAULT_ENABLE - transition] = 0;
}
