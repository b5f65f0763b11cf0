/* Requests that come, and answers that go, through an io_uring: fuse_uring.h.
 *
 * A slot is an entry of the kernel's queues for as long as the mount lasts. Its first page holds the headers, behind it is
 * the payload: DMA memory, to which the drive writes what a READ asks for, and from which it takes what a WRITE brings. There
 * are more entries, in ordinary memory, so that many requests can be with Python and data still moves (borrow.c).
 *
 *        registered or answered            taken                    passed on
 *     THE_KERNELS  <----------  OURS  <----------  THE_KERNELS        OURS  ---->  PYTHONS
 *                               ANSWERED  <---- reply, from any thread ----------  PYTHONS
 *
 * What Python answers is laid into the entry by whoever brings the answer, and put on a pile that the thread works off:
 * an io_uring belongs to one thread. The queue of each CPU is the thread's that runs there; if there are fewer threads than
 * CPUs each has several queues.
 */
#define _GNU_SOURCE /* affinity */
#include "frontend_private.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuse_uring.h"
#include "uring.h"

enum { THE_KERNELS, OURS, PYTHONS, ANSWERED };
/* What is slept for besides entries. */
enum { FOR_CALLS, FOR_THE_END, FOR_COMPLETIONS, FOR_REQUESTS_ROOM, FOR_UPCALLS_ROOM, POLLS };
enum { MOST_PLACES = 1023 }; /* ten bits carry the number of an entry, and one number is nobody's */
enum { MESSAGE_AT = FUSE_URING_IN_OUT_HEADER_SZ - sizeof(struct fuse_in_header) }; /* right before what follows it */

struct fe_entry {
    struct fe_entry *next; /* on the pile */
    atomic_int state;
    _Atomic uint64_t unique;
    uint64_t commit_id;
    struct iovec memory[2];
};

struct fe_entries {
    struct uring uring;
    struct fe_entry *entry; /* of each slot */
    _Atomic(struct fe_entry *) answered; /* the pile */
    atomic_int asleep;
    uint32_t armed; /* polls: a bit for each */
    int begun, registered, told, ended;
    int refusal; /* of an entry, an errno */
};

static struct fuse_uring_req_header *headers(const struct fe_slot *slot)
{
    return (struct fuse_uring_req_header *)(slot->message - MESSAGE_AT);
}

/* The channel's queues are those of the CPUs index, index + fe_rings(), ... */
static uint32_t queues_of(const struct channel *ch)
{
    return (ch->fe->config.ring_queues - ch->index - 1) / fe_rings(ch->fe) + 1;
}

static uint16_t queue_of(const struct channel *ch, uint32_t slot)
{
    return (uint16_t)(ch->index + slot % queues_of(ch) * fe_rings(ch->fe));
}

static uint32_t power_of_two(uint32_t least)
{
    uint32_t power = 1;
    while (power < least)
        power *= 2;
    return power;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

/* A quarter of the slots in DMA memory are no entries: they lend it to entries that have none. */
static uint32_t first_lender(const struct channel *ch)
{
    uint32_t slots = ch->fe->config.slots;
    return ch->fe->config.spare_slots ? slots - (slots + 3) / 4 : slots;
}

static int is_entry(const struct channel *ch, uint32_t slot)
{
    return slot < first_lender(ch) || slot >= ch->fe->config.slots;
}

static int prepare(struct channel *ch)
{
    uint32_t slots = ch->slot_count;
    if (slots < queues_of(ch) || slots >= MOST_PLACES) { /* the kernel waits until each queue has an entry */
        errno = EINVAL;
        return -1;
    }
    struct fe_entries *all = ch->entries = calloc(1, sizeof *all);
    if (!all)
        return -1;
    all->entry = calloc(slots, sizeof *all->entry);
    if (!all->entry)
        return -1;
    for (uint32_t i = first_lender(ch); i < ch->fe->config.slots; i++)
        fe_may_lend(ch, &ch->slots[i]);
    for (uint32_t i = 0; i < slots; i++) {
        struct fe_slot *slot = &ch->slots[i];
        slot->message = slot->data - FE_PAGE + MESSAGE_AT;
        all->entry[i].memory[0] = (struct iovec){headers(slot), sizeof(struct fuse_uring_req_header)};
        all->entry[i].memory[1] = (struct iovec){slot->data, FE_MAX_WRITE};
    }
    return 0;
}

/* Where the requests are made, if we may run there. */
static void settle(const struct channel *ch)
{
    cpu_set_t allowed, own;
    CPU_ZERO(&own);
    if (sched_getaffinity(0, sizeof allowed, &allowed))
        return;
    for (uint32_t i = 0; i < queues_of(ch); i++)
        if (queue_of(ch, i) < CPU_SETSIZE && CPU_ISSET(queue_of(ch, i), &allowed))
            CPU_SET(queue_of(ch, i), &own);
    if (CPU_COUNT(&own))
        sched_setaffinity(0, sizeof own, &own);
}

static int begin(struct channel *ch)
{
    settle(ch);
    int error = uring_open(&ch->entries->uring, power_of_two(ch->slot_count + POLLS), ch->fuse_fd);
    ch->entries->begun = !error;
    return error;
}

/* Entries that the kernel still has are cancelled, and nothing is copied to them any more: that is done by this thread. */
static void end(struct channel *ch)
{
    struct fe_entries *all = ch->entries;
    if (!all->begun)
        return;
    if (!all->told)
        fe_ring_is(ch->fe, all->refusal ? all->refusal : ENOTCONN);
    if (all->uring.unsubmitted)
        uring_enter(&all->uring, 0, 0);
    uring_close(&all->uring);
}

static void release(struct channel *ch)
{
    if (ch->entries)
        free(ch->entries->entry);
    free(ch->entries);
}

/* ---- to the kernel ----------------------------------------------------------------------------------------------- */

static void submit(struct channel *ch, struct fe_entry *entry, uint32_t command)
{
    struct fe_entries *all = ch->entries;
    uint32_t index = (uint32_t)(entry - all->entry);
    struct fuse_uring_cmd_req request = {.commit_id = entry->commit_id, .qid = queue_of(ch, index)};
    struct io_uring_sqe *sqe = uring_sqe(&all->uring);
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->cmd_op = command;
    sqe->user_data = index;
    if (command == FUSE_IO_URING_CMD_REGISTER) {
        sqe->addr = (uint64_t)(uintptr_t)entry->memory;
        sqe->len = 2;
    }
    memcpy((uint8_t *)sqe + URING_CMD_AT, &request, sizeof request);
    atomic_store_explicit(&entry->state, THE_KERNELS, memory_order_relaxed);
}

/* From now on the kernel has requests wait for the queues: all of them, or none if one entry is refused. */
static void register_all(struct channel *ch)
{
    struct fe_entries *all = ch->entries;
    int wanted = atomic_load_explicit(&ch->fe->rings_wanted, memory_order_acquire);
    all->registered = wanted != 0;
    if (wanted < 0)
        all->refusal = EOPNOTSUPP;
    if (wanted <= 0)
        return;
    for (uint32_t i = ch->slot_count; i-- > 0;) /* what is registered last is used first: DMA memory */
        if (is_entry(ch, i))
            submit(ch, &all->entry[i], FUSE_IO_URING_CMD_REGISTER);
    int error = 0;
    while (all->uring.unsubmitted && (!error || error == EINTR))
        error = uring_enter(&all->uring, 0, 0);
    if (error && error != EINTR)
        all->refusal = error;
}

/* What has become of that: a refusal comes at once, before anything else. */
static void tell(struct channel *ch)
{
    struct fe_entries *all = ch->entries;
    if (!all->registered || all->told)
        return;
    all->told = 1;
    fe_ring_is(ch->fe, all->refusal);
}

/* Lays an answer into the entry: the kernel finds it there when the entry is submitted. */
static void lay(const struct fe_entry *entry, const struct fuse_out_header *out, const void *data)
{
    struct fuse_uring_req_header *h = entry->memory[0].iov_base;
    uint32_t bytes = out->len - (uint32_t)sizeof *out;
    if (bytes && data != entry->memory[1].iov_base)
        memmove(entry->memory[1].iov_base, data, bytes);
    memcpy(h->in_out, out, sizeof *out);
    h->ring_ent_in_out.payload_sz = bytes;
}

static int answer(struct channel *ch, struct fe_slot *slot, const struct fuse_out_header *out, const void *data)
{
    struct fe_entry *entry = &ch->entries->entry[slot - ch->slots];
    lay(entry, out, data);
    fe_return(ch, slot);
    submit(ch, entry, FUSE_IO_URING_CMD_COMMIT_AND_FETCH);
    return 0;
}

/* An error of ours, for a request or an answer that makes no sense. */
static struct fuse_out_header refusal(uint64_t unique, int error)
{
    return (struct fuse_out_header){.len = sizeof(struct fuse_out_header), .error = -error, .unique = unique};
}

static int reply(struct channel *ch, uint32_t place, const struct fuse_out_header *out, const void *data)
{
    struct fe_entries *all = ch->entries;
    if (place >= ch->slot_count)
        return EINVAL;
    struct fe_entry *entry = &all->entry[place];
    int state = PYTHONS;
    if (!atomic_compare_exchange_strong(&entry->state, &state, ANSWERED))
        return ENOENT; /* it has been answered before */
    if (entry->unique != out->unique) {
        atomic_store(&entry->state, PYTHONS);
        return ENOENT;
    }
    if (out->len - sizeof *out <= FE_MAX_WRITE) {
        lay(entry, out, data);
    } else {
        struct fuse_out_header error = refusal(out->unique, EIO);
        lay(entry, &error, NULL);
    }
    entry->next = atomic_load_explicit(&all->answered, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&all->answered, &entry->next, entry)) {
    }
    if (atomic_exchange(&all->asleep, 0))
        fe_signal(ch->call_fd);
    return 0;
}

static void submit_answered(struct channel *ch)
{
    struct fe_entries *all = ch->entries;
    if (!atomic_load_explicit(&all->answered, memory_order_relaxed))
        return;
    struct fe_entry *next, *entry = atomic_exchange(&all->answered, NULL);
    for (; entry; entry = next) {
        next = entry->next;
        submit(ch, entry, FUSE_IO_URING_CMD_COMMIT_AND_FETCH);
    }
}

static uint32_t place_of(struct channel *ch, struct fe_slot *slot)
{
    uint32_t place = (uint32_t)(slot - ch->slots);
    fe_return(ch, slot);
    atomic_store_explicit(&ch->entries->entry[place].state, PYTHONS, memory_order_release);
    return place;
}

/* The entry goes back with its answer. */
static void keep(struct channel *ch, struct fe_slot *slot)
{
    (void)ch, (void)slot;
}

/* The kernel knows the payload by its address alone: other memory comes to be there, and the drive keeps the old. */
static int forsake(struct channel *ch, struct fe_slot *slot)
{
    if (fe_never_return(ch, slot))
        return 0;
    void *other =
        mmap(slot->data, FE_MAX_WRITE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    slot->data_iova = 0;
    return other == MAP_FAILED ? errno : 0;
}

/* ---- from the kernel --------------------------------------------------------------------------------------------- */

/* 1: the slot has a request, which lies there as if it had been read; 0: it made no sense, and has been refused. */
static int receive(struct channel *ch, uint32_t index)
{
    struct fe_slot *slot = &ch->slots[index];
    struct fe_entry *entry = &ch->entries->entry[index];
    const struct fuse_uring_req_header *h = headers(slot);
    memcpy(slot->message, h->in_out, sizeof(struct fuse_in_header));
    entry->unique = fe_header(slot)->unique;
    entry->commit_id = h->ring_ent_in_out.commit_id;
    slot->length = fe_header(slot)->len;
    slot->apart = h->ring_ent_in_out.payload_sz;
    atomic_store_explicit(&entry->state, OURS, memory_order_relaxed);
    uint64_t least = sizeof(struct fuse_in_header) + (uint64_t)slot->apart;
    if (slot->apart <= FE_MAX_WRITE && slot->length >= least && slot->length - least <= FUSE_URING_OP_IN_OUT_SZ)
        return 1;
    struct fuse_out_header out = refusal(entry->unique, EIO);
    answer(ch, slot, &out, NULL);
    return 0;
}

static int is_unmounted(int error)
{
    return error == ENOTCONN || error == ECONNABORTED || error == ENODEV;
}

/* Something else than an entry was slept for. */
static void come_about(struct channel *ch, uint32_t what)
{
    struct fe_entries *all = ch->entries;
    uint64_t count;
    all->armed &= ~(1u << what);
    if (what == FOR_THE_END)
        all->ended = 1;
    else if (what == FOR_COMPLETIONS)
        nv_wakeup_clear(ch->wakeup_fd);
    else if (what == FOR_CALLS)
        while (read(ch->call_fd, &count, sizeof count) < 0 && errno == EINTR) {
        }
}

/* 1: a request, in slot *index; 0: something else. */
static int look_at(struct channel *ch, const struct io_uring_cqe *cqe, uint32_t *index)
{
    struct fe_entries *all = ch->entries;
    uint32_t slots = ch->slot_count;
    int result = cqe->res;
    *index = (uint32_t)cqe->user_data;
    uring_seen(&all->uring);
    if (*index >= slots) {
        come_about(ch, *index - slots);
        return 0;
    }
    if (result >= 0)
        return receive(ch, *index);
    all->refusal = -result; /* the kernel does not know the entry any more */
    all->ended |= is_unmounted(-result);
    return 0;
}

static int can_take(struct channel *ch)
{
    (void)ch;
    return 1;
}

static int take(struct channel *ch, struct fe_slot **slot)
{
    struct fe_entries *all = ch->entries;
    struct uring *r = &all->uring;
    if (!all->registered)
        register_all(ch);
    submit_answered(ch);
    for (int entered = 0; !all->ended;) {
        const struct io_uring_cqe *cqe = uring_cqe(r);
        uint32_t index;
        if (cqe) {
            if (look_at(ch, cqe, &index)) {
                *slot = &ch->slots[index];
                return 1;
            }
        } else if (!entered++ && uring_pending(r)) {
            uring_enter(r, 0, 0);
        } else {
            tell(ch);
            return 0;
        }
    }
    return -1;
}

/* ---- sleep ------------------------------------------------------------------------------------------------------- */

static int has_work(struct channel *ch)
{
    struct fe_entries *all = ch->entries;
    return uring_pending(&all->uring) || uring_cqe(&all->uring) ||
           atomic_load_explicit(&all->answered, memory_order_relaxed);
}

static void arm(struct channel *ch, uint32_t what, int fd, uint32_t events)
{
    struct fe_entries *all = ch->entries;
    if (all->armed & 1u << what)
        return;
    struct io_uring_sqe *sqe = uring_sqe(&all->uring);
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = fd;
    sqe->poll32_events = events;
    sqe->user_data = ch->slot_count + what;
    all->armed |= 1u << what;
}

static void await_room(struct channel *ch, int fd)
{
    arm(ch, fd == ch->fe->config.requests_fd ? FOR_REQUESTS_ROOM : FOR_UPCALLS_ROOM, fd, POLLOUT);
}

static int sleep_for_more(struct channel *ch, uint64_t bound_ns)
{
    struct fe_entries *all = ch->entries;
    arm(ch, FOR_CALLS, ch->call_fd, POLLIN);
    arm(ch, FOR_THE_END, ch->fe->stop_fd, POLLIN);
    if (ch->busy)
        arm(ch, FOR_COMPLETIONS, ch->wakeup_fd, POLLIN);
    if (ch->backlog.first)
        await_room(ch, fe_python_fd(ch, ch->backlog.first));
    atomic_store(&all->asleep, 1); /* who answers sees this, or we see the answer */
    int awake = atomic_load(&all->answered) != NULL;
    int error = uring_enter(&all->uring, !awake, bound_ns);
    atomic_store(&all->asleep, 0);
    if (error && error != ETIME && error != EINTR && error != EAGAIN && error != EBUSY)
        return -1;
    return awake || error == EINTR || has_work(ch);
}

static void push(struct channel *ch)
{
    if (ch->entries->uring.unsubmitted)
        uring_enter(&ch->entries->uring, 0, 0);
}

static int pending(struct channel *ch)
{
    return has_work(ch);
}

const struct fe_transport fe_entries = {
    .holds = 1,
    .free_to_look = 1,
    .prepare = prepare,
    .begin = begin,
    .end = end,
    .release = release,
    .can_take = can_take,
    .take = take,
    .push = push,
    .pending = pending,
    .sleep = sleep_for_more,
    .answer = answer,
    .reply = reply,
    .place_of = place_of,
    .free = keep,
    .forsake = forsake,
};
