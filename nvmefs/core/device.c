/* Requests read from /dev/fuse and answers written to it: one read(2), one write(2) each.
 *
 * The request lies in one piece, from `message` on. Its slot is free again as soon as it has been passed on: the kernel
 * finds the request of an answer by its `unique` alone, on the descriptor that it was read from. */
#define _GNU_SOURCE /* ppoll */
#include "frontend_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

static void free_slot(struct channel *ch, struct fe_slot *slot)
{
    ch->free_slots[ch->free_count++] = (uint32_t)(slot - ch->slots);
}

static int prepare(struct channel *ch)
{
    for (uint32_t i = ch->fe->config.slots; i-- > 0;) {
        ch->slots[i].message = ch->slots[i].data - FE_HEADER_BYTES;
        free_slot(ch, &ch->slots[i]);
    }
    int flags = fcntl(ch->fuse_fd, F_GETFL);
    return flags < 0 ? -1 : fcntl(ch->fuse_fd, F_SETFL, flags | O_NONBLOCK);
}

static int can_take(struct channel *ch)
{
    return ch->free_count && !ch->backlog.first && !atomic_load_explicit(&ch->resting, memory_order_relaxed);
}

static int take(struct channel *ch, struct fe_slot **taken)
{
    struct fe_slot *slot = &ch->slots[ch->free_slots[ch->free_count - 1]];
    ssize_t length = read(ch->fuse_fd, slot->message, FE_HEADER_BYTES + FE_MAX_WRITE);
    if (length < 0)
        return errno == ENODEV || errno == ECONNABORTED ? -1 : 0; /* ENOENT: interrupted before we read it */
    if (length < (ssize_t)sizeof(struct fuse_in_header) || fe_header(slot)->len != length)
        return 0;
    slot->length = (uint32_t)length;
    ch->free_count--;
    *taken = slot;
    return 1;
}

static void forget_calls(struct channel *ch)
{
    uint64_t count;
    while (read(ch->call_fd, &count, sizeof count) < 0 && errno == EINTR) {
    }
}

static int sleep_for_more(struct channel *ch, uint64_t bound_ns)
{
    struct pollfd fds[5] = {
        {.fd = atomic_load(&ch->resting) ? -1 : ch->fuse_fd, .events = can_take(ch) ? POLLIN : 0},
        {.fd = ch->fe->stop_fd, .events = POLLIN},
        {.fd = ch->busy ? ch->wakeup_fd : -1, .events = POLLIN},
        {.fd = ch->backlog.first ? fe_python_fd(ch, ch->backlog.first) : -1, .events = POLLOUT},
        {.fd = ch->call_fd, .events = POLLIN},
    };
    struct timespec bound = {.tv_sec = (time_t)(bound_ns / 1000000000u), .tv_nsec = (long)(bound_ns % 1000000000u)};
    int ready = ppoll(fds, 5, bound_ns < UINT64_MAX ? &bound : NULL, NULL);
    if (ready < 0)
        return errno == EINTR ? 1 : -1;
    if (fds[0].revents & (POLLERR | POLLHUP))
        return -1; /* unmounted; told even when no request is wanted */
    if (fds[2].revents & POLLIN)
        nv_wakeup_clear(ch->wakeup_fd);
    if (fds[4].revents & POLLIN)
        forget_calls(ch);
    return fds[1].revents & POLLIN ? -1 : ready > 0;
}

static int write_answer(struct channel *ch, const struct fuse_out_header *out, const void *data)
{
    struct iovec part[2] = {{(void *)(uintptr_t)out, sizeof *out}, {(void *)(uintptr_t)data, out->len - sizeof *out}};
    return writev(ch->fuse_fd, part, part[1].iov_len ? 2 : 1) < 0 ? errno : 0;
}

static int answer(struct channel *ch, struct fe_slot *slot, const struct fuse_out_header *out, const void *data)
{
    (void)slot;
    return write_answer(ch, out, data);
}

static int reply(struct channel *ch, uint32_t place, const struct fuse_out_header *out, const void *data)
{
    return place ? EINVAL : write_answer(ch, out, data);
}

static uint32_t place_of(struct channel *ch, struct fe_slot *slot)
{
    (void)ch, (void)slot;
    return 0;
}

static void replace(struct channel *ch, struct fe_slot *slot)
{
    slot->spare = malloc(FE_HEADER_BYTES + FE_MAX_WRITE);
    slot->message = slot->spare;
    slot->data = NULL;
    if (slot->spare)
        free_slot(ch, slot);
}

const struct fe_transport fe_device = {
    .prepare = prepare,
    .can_take = can_take,
    .take = take,
    .sleep = sleep_for_more,
    .answer = answer,
    .reply = reply,
    .place_of = place_of,
    .free = free_slot,
    .replace = replace,
};
