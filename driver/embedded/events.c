/*
 * Asynchronous events (section 5.2). The host leaves requests with the controller; an event completes one.
 * After an event its type stays quiet until the host reads the log page named in it.
 */
#include <string.h>

#include "queues.h"

uint16_t events_request(struct controller *c, const struct nvme_command *cmd)
{
    if (c->async_request_count == ASYNC_EVENT_LIMIT)
        return STATUS_ASYNC_EVENT_LIMIT;
    c->async_requests[c->async_request_count++] = cmd->cid;
    return STATUS_HELD; /* delivered, if something waits already, by the engine's next events_deliver */
}

/* Takes a held request back; the caller completes it. */
bool events_abort(struct controller *c, uint16_t cid)
{
    for (uint32_t i = 0; i < c->async_request_count; i++) {
        if (c->async_requests[i] == cid) {
            c->async_requests[i] = c->async_requests[--c->async_request_count];
            return true;
        }
    }
    return false;
}

void events_raise(struct controller *c, struct async_event event)
{
    for (uint32_t i = 0; i < c->event_count; i++) {
        if (!memcmp(&c->events[i], &event, sizeof event))
            return; /* the same thing is waiting to be told already */
    }
    if (c->event_count < EVENT_QUEUE)
        c->events[c->event_count++] = event;
}

static uint32_t next_event(const struct controller *c)
{
    uint32_t i = 0;
    while (i < c->event_count && c->event_masked >> (c->events[i].type & 7) & 1)
        i++;
    return i;
}

bool events_deliverable(const struct controller *c)
{
    return c->event_count && c->async_request_count && next_event(c) < c->event_count;
}

void events_deliver(struct controller *c)
{
    struct completion_queue *admin = &c->cqs[0];
    while (events_deliverable(c) && queue_has_room(c, admin)) {
        uint32_t at = next_event(c);
        struct async_event event = c->events[at];
        c->event_count--;
        memmove(&c->events[at], &c->events[at + 1], (c->event_count - at) * sizeof event);
        c->event_masked |= 1u << (event.type & 7);
        uint16_t cid = c->async_requests[0];
        c->async_request_count--;
        memmove(c->async_requests, c->async_requests + 1, c->async_request_count * sizeof cid);
        uint32_t result = event.type | (uint32_t)event.info << 8 | (uint32_t)event.page << 16;
        queue_post(admin, (uint16_t)c->sqs[0].head, 0, cid, result, STATUS_SUCCESS);
    }
    if (admin->signal_due)
        queue_signal(c, admin);
}

void events_log_read(struct controller *c, uint8_t page)
{
    if (page == LOG_ERROR)
        c->event_masked &= ~(1u << EVENT_ERROR);
    if (page == LOG_SMART)
        c->event_masked &= ~(1u << EVENT_SMART);
    if (page == LOG_CHANGED_NAMESPACES)
        c->event_masked &= ~(1u << EVENT_NOTICE);
}
