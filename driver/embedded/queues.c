#include "queues.h"

#include <poll.h>
#include <string.h>
#include <unistd.h>

struct submission_queue *queue_find_sq(struct controller *c, uint32_t id)
{
    return id <= c->options.io_queues && c->sqs[id].entries ? &c->sqs[id] : NULL;
}

struct completion_queue *queue_find_cq(struct controller *c, uint32_t id)
{
    return id <= c->options.io_queues && c->cqs[id].entries ? &c->cqs[id] : NULL;
}

/* ---- where doorbells are ----------------------------------------------------------------------------- */

/* Index of a doorbell in the doorbell page, and equally in the shadow and event index buffers. */
#define TAIL_INDEX(id) (2u * (id))
#define HEAD_INDEX(id) (2u * (id) + 1)

/* Acquire pairs with the host's release: what it wrote before the doorbell (commands, data, a DMA map) is
 * visible after this load. */
static uint32_t doorbell_value(const uint32_t *doorbell)
{
    return __atomic_load_n(doorbell, __ATOMIC_ACQUIRE);
}

static uint32_t *shadow_slot(const struct controller *c, uint64_t buffer_iova, uint32_t index)
{
    uint32_t *buffer = dma_translate(c->dma, buffer_iova, 1ull << c->page_bits);
    return buffer ? buffer + index : NULL;
}

/* The admin queue stays on its registers: hosts are required to write them even with shadow doorbells, and
 * common ones write nothing else. Its event index is kept all the same. */
static bool locate_sq_doorbell(struct controller *c, struct submission_queue *sq)
{
    uint32_t index = TAIL_INDEX(sq->id);
    sq->tail_doorbell = &c->doorbells[index];
    sq->tail_event = NULL;
    if (!c->shadow_enabled)
        return true;
    sq->tail_event = shadow_slot(c, c->event_iova, index);
    uint32_t *shadow = shadow_slot(c, c->shadow_iova, index);
    if (sq->id)
        sq->tail_doorbell = shadow;
    return sq->tail_event && shadow;
}

static bool locate_cq_doorbell(struct controller *c, struct completion_queue *cq)
{
    uint32_t index = HEAD_INDEX(cq->id);
    cq->head_doorbell = &c->doorbells[index];
    cq->head_event = NULL;
    if (!c->shadow_enabled)
        return true;
    cq->head_event = shadow_slot(c, c->event_iova, index);
    uint32_t *shadow = shadow_slot(c, c->shadow_iova, index);
    if (cq->id)
        cq->head_doorbell = shadow;
    return cq->head_event && shadow;
}

/* A new queue starts at zero whatever an earlier queue of the same number left behind. The host may not
 * touch these before it sees the Create command complete. */
static void clear_doorbell(struct controller *c, uint32_t index, uint32_t *doorbell, uint32_t *event)
{
    __atomic_store_n(&c->doorbells[index], 0, __ATOMIC_RELAXED);
    __atomic_store_n(doorbell, 0, __ATOMIC_RELAXED);
    if (event)
        __atomic_store_n(event, 0, __ATOMIC_RELAXED);
}

/* ---- creation and deletion --------------------------------------------------------------------------- */

uint16_t queue_create_cq(struct controller *c, uint16_t id, uint64_t iova, uint32_t size, int vector)
{
    struct completion_queue *cq = &c->cqs[id];
    struct nvme_completion *entries = dma_translate(c->dma, iova, (uint64_t)size * NVME_CQE_BYTES);
    if (!entries)
        return STATUS_DATA_TRANSFER_ERROR;
    *cq = (struct completion_queue){.iova = iova, .size = size, .id = id, .phase = 1, .bad_head = NO_VALUE};
    cq->interrupts = vector >= 0;
    cq->vector = vector >= 0 ? (uint32_t)vector : 0;
    if (!locate_cq_doorbell(c, cq))
        return STATUS_DATA_TRANSFER_ERROR;
    clear_doorbell(c, HEAD_INDEX(id), cq->head_doorbell, cq->head_event);
    cq->entries = entries;
    return STATUS_SUCCESS;
}

uint16_t queue_create_sq(struct controller *c, uint16_t id, uint64_t iova, uint32_t size, uint16_t cq_id)
{
    struct submission_queue *sq = &c->sqs[id];
    const struct nvme_command *entries = dma_translate(c->dma, iova, (uint64_t)size * NVME_SQE_BYTES);
    if (!entries)
        return STATUS_DATA_TRANSFER_ERROR;
    *sq = (struct submission_queue){.iova = iova, .size = size, .id = id, .bad_tail = NO_VALUE};
    sq->cq = &c->cqs[cq_id];
    if (!locate_sq_doorbell(c, sq))
        return STATUS_DATA_TRANSFER_ERROR;
    clear_doorbell(c, TAIL_INDEX(id), sq->tail_doorbell, sq->tail_event);
    sq->entries = entries;
    sq->cq->submission_queues++;
    c->active[c->active_count++] = id;
    return STATUS_SUCCESS;
}

void queue_delete_sq(struct controller *c, struct submission_queue *sq)
{
    uint32_t at = 0;
    while (c->active[at] != sq->id)
        at++;
    c->active_count--;
    memmove(&c->active[at], &c->active[at + 1], (c->active_count - at) * sizeof c->active[0]);
    sq->cq->submission_queues--;
    sq->entries = NULL;
    if (c->faults)
        faults_forget_queue(c, sq->id);
    __atomic_store_n(&c->doorbells[TAIL_INDEX(sq->id)], 0, __ATOMIC_RELAXED);
}

void queue_delete_cq(struct controller *c, struct completion_queue *cq)
{
    cq->entries = NULL;
    __atomic_store_n(&c->doorbells[HEAD_INDEX(cq->id)], 0, __ATOMIC_RELAXED);
}

void queues_reset(struct controller *c)
{
    for (uint32_t id = 0; id <= c->options.io_queues; id++) {
        c->sqs[id].entries = NULL;
        c->cqs[id].entries = NULL;
    }
    c->active_count = 0;
    c->shadow_enabled = false;
    c->interrupt_pending = 0;
    for (uint32_t i = 0; i < DOORBELL_BYTES / sizeof(uint32_t); i++)
        __atomic_store_n(&c->doorbells[i], 0, __ATOMIC_RELAXED);
}

/* Where a queue is whose memory has been taken away, perhaps for a moment: it exists, and nobody looks there. */
static struct nvme_command nowhere[1];

bool queues_relocate(struct controller *c)
{
    bool all = true;
    for (uint32_t id = 0; id <= c->options.io_queues; id++) {
        struct submission_queue *sq = &c->sqs[id];
        if (sq->entries) {
            const struct nvme_command *entries = dma_translate(c->dma, sq->iova, (uint64_t)sq->size * NVME_SQE_BYTES);
            sq->entries = entries ? entries : nowhere;
            all = locate_sq_doorbell(c, sq) && entries && all;
        }
        struct completion_queue *cq = &c->cqs[id];
        if (cq->entries) {
            struct nvme_completion *entries = dma_translate(c->dma, cq->iova, (uint64_t)cq->size * NVME_CQE_BYTES);
            cq->entries = entries ? entries : (struct nvme_completion *)nowhere;
            all = locate_cq_doorbell(c, cq) && entries && all;
        }
    }
    return all;
}

bool queues_use_shadow(struct controller *c, uint64_t shadow_iova, uint64_t event_iova)
{
    uint32_t *shadow = shadow_slot(c, shadow_iova, 0), *event = shadow_slot(c, event_iova, 0);
    if (!shadow || !event)
        return false;
    /* Queues that exist already go on from the value of their register. */
    for (uint32_t index = 0; index < HEAD_INDEX(c->options.io_queues) + 1; index++) {
        uint32_t value = doorbell_value(&c->doorbells[index]);
        __atomic_store_n(&shadow[index], value, __ATOMIC_RELAXED);
        __atomic_store_n(&event[index], value, __ATOMIC_RELAXED);
    }
    c->shadow_iova = shadow_iova;
    c->event_iova = event_iova;
    c->shadow_enabled = true;
    return queues_relocate(c);
}

/* ---- doorbells --------------------------------------------------------------------------------------- */

static void report_bad_value(struct controller *c, uint32_t *reported, uint32_t value, uint16_t queue_id)
{
    if (*reported == value)
        return;
    *reported = value;
    log_error(c, queue_id, NULL, 0);
    events_raise(c, (struct async_event){EVENT_ERROR, EVENT_INVALID_DOORBELL_VALUE, 1});
}

bool queue_take_tail(struct controller *c, struct submission_queue *sq)
{
    uint32_t tail = doorbell_value(sq->tail_doorbell);
    if (tail != sq->tail) {
        if (tail < sq->size) {
            sq->tail = tail;
            sq->bad_tail = NO_VALUE;
        } else {
            report_bad_value(c, &sq->bad_tail, tail, sq->id);
        }
    }
    return sq->head != sq->tail;
}

static uint32_t ring_distance(uint32_t from, uint32_t to, uint32_t size)
{
    return to >= from ? to - from : to + size - from;
}

/* Head values outside of what was posted would free entries that hold nothing: refused and reported. */
static void take_head(struct controller *c, struct completion_queue *cq)
{
    uint32_t head = doorbell_value(cq->head_doorbell);
    if (head == cq->head)
        return;
    if (head < cq->size && ring_distance(cq->head, head, cq->size) <= ring_distance(cq->head, cq->tail, cq->size)) {
        cq->head = head;
        cq->bad_head = NO_VALUE;
    } else {
        report_bad_value(c, &cq->bad_head, head, cq->id);
    }
}

static bool cq_full(const struct completion_queue *cq)
{
    uint32_t next = cq->tail + 1 == cq->size ? 0 : cq->tail + 1;
    return next == cq->head;
}

bool queue_has_room(struct controller *c, struct completion_queue *cq)
{
    if (!cq_full(cq))
        return true;
    take_head(c, cq); /* the doorbell is read only when the ring seems full: it lives in the host's cache */
    return !cq_full(cq);
}

uint32_t queue_room(struct controller *c, struct completion_queue *cq)
{
    take_head(c, cq);
    return cq->size - 1 - ring_distance(cq->head, cq->tail, cq->size);
}

void queue_post_phase(struct completion_queue *cq, uint16_t sq_head, uint16_t sq_id, uint16_t cid, uint32_t result,
                      uint16_t status, uint8_t phase)
{
    struct nvme_completion *entry = &cq->entries[cq->tail];
    entry->dw[0] = result;
    entry->dw[1] = 0;
    entry->dw[2] = sq_head | (uint32_t)sq_id << 16;
    /* Release: data that the command moved and the dwords above are visible before the phase bit flips. */
    __atomic_store_n(&entry->dw[3], cid | (uint32_t)(uint16_t)(status << 1 | phase) << 16, __ATOMIC_RELEASE);
    if (++cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase ^= 1;
    }
    cq->signal_due = true;
}

void queue_post(struct completion_queue *cq, uint16_t sq_head, uint16_t sq_id, uint16_t cid, uint32_t result,
                uint16_t status)
{
    queue_post_phase(cq, sq_head, sq_id, cid, result, status, cq->phase);
}

/* ---- interrupts -------------------------------------------------------------------------------------- */

/* A counter at its maximum has a signal waiting already. Our own host's eventfds refuse then; others' may block. */
static bool has_room(int eventfd)
{
    struct pollfd room = {.fd = eventfd, .events = POLLOUT};
    return poll(&room, 1, 0) == 1 && room.revents & POLLOUT;
}

static void interrupt_write(struct controller *c, uint32_t vector)
{
    uint64_t one = 1;
    int fd = c->interrupt_fds[vector];
    if (fd >= 0 && ((c->serves_others && !has_room(fd)) || write(fd, &one, sizeof one) < 0))
        return;
    COUNT(c, interrupts, 1);
}

void queue_signal(struct controller *c, struct completion_queue *cq)
{
    cq->signal_due = false;
    if (!cq->interrupts)
        return;
    uint32_t mask = __atomic_load_n(&c->interrupt_mask, __ATOMIC_RELAXED);
    if (mask && cq->vector < 32 && mask >> cq->vector & 1)
        c->interrupt_pending |= 1u << cq->vector;
    else
        interrupt_write(c, cq->vector);
}

void queues_signal_all(struct controller *c)
{
    for (uint32_t vector = 0; vector < c->options.vectors; vector++)
        interrupt_write(c, vector);
}

void queues_unmasked(struct controller *c)
{
    uint32_t due = c->interrupt_pending & ~__atomic_load_n(&c->interrupt_mask, __ATOMIC_RELAXED);
    c->interrupt_pending &= ~due;
    for (uint32_t vector = 0; due; vector++, due >>= 1) {
        if (due & 1)
            interrupt_write(c, vector);
    }
}

/* ---- going to sleep ---------------------------------------------------------------------------------- */

bool queues_pending(const struct controller *c)
{
    for (uint32_t i = 0; i < c->active_count; i++) {
        const struct submission_queue *sq = &c->sqs[c->active[i]];
        uint32_t tail = doorbell_value(sq->tail_doorbell);
        if (tail != sq->tail && tail != sq->bad_tail)
            return true;
        if (sq->head == sq->tail)
            continue;
        /* Commands wait for room in the completion queue: the head doorbell is what we wait for. */
        uint32_t head = doorbell_value(sq->cq->head_doorbell);
        if (!cq_full(sq->cq) || (head != sq->cq->head && head != sq->cq->bad_head))
            return true;
    }
    if (!events_deliverable(c))
        return false;
    const struct completion_queue *admin = &c->cqs[0];
    uint32_t head = doorbell_value(admin->head_doorbell);
    return !cq_full(admin) || (head != admin->head && head != admin->bad_head);
}

void queues_arm(struct controller *c)
{
    if (!c->shadow_enabled)
        return; /* every doorbell store is followed by a kick */
    for (uint32_t i = 0; i < c->active_count; i++) {
        const struct submission_queue *sq = &c->sqs[c->active[i]];
        /* The last value that the host wrote, be it a bad one: the next store then passes the index. */
        uint32_t tail = sq->bad_tail == NO_VALUE ? sq->tail : sq->bad_tail;
        __atomic_store_n(sq->tail_event, tail, __ATOMIC_RELAXED);
        /* The head matters only to commands that wait for room. */
        uint32_t head = sq->cq->bad_head == NO_VALUE ? sq->cq->head : sq->cq->bad_head;
        if (sq->head != sq->tail)
            __atomic_store_n(sq->cq->head_event, head, __ATOMIC_RELAXED);
    }
}

void queues_find_stray_doorbells(struct controller *c)
{
    for (uint32_t id = 0; id <= MAX_IO_QUEUES; id++) {
        uint32_t *tail = &c->doorbells[TAIL_INDEX(id)], *head = &c->doorbells[HEAD_INDEX(id)];
        bool stray_tail = __atomic_load_n(tail, __ATOMIC_RELAXED) && !queue_find_sq(c, id);
        bool stray_head = __atomic_load_n(head, __ATOMIC_RELAXED) && !queue_find_cq(c, id);
        if (!stray_tail && !stray_head)
            continue;
        if (stray_tail)
            __atomic_store_n(tail, 0, __ATOMIC_RELAXED);
        if (stray_head)
            __atomic_store_n(head, 0, __ATOMIC_RELAXED);
        log_error(c, (uint16_t)id, NULL, 0);
        events_raise(c, (struct async_event){EVENT_ERROR, EVENT_INVALID_DOORBELL, 1});
    }
}
