/* Python reads /dev/fuse itself for as long as its requests follow one another.
 *
 * A request that a channel passes on wakes two threads, one after the other, and crosses a socket: more than most
 * answers about names and attributes cost. So while Python waits a moment for its next request, it takes it from
 * /dev/fuse, and channel 0 rests (channel.c). It does so in calm alone: no other channel is awake, and none has served
 * anything lately. Data that a channel would serve sooner ends that; Python answers it this once.
 */
#define _GNU_SOURCE /* ppoll */
#include "frontend_private.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint64_t NOT_CALM = UINT64_MAX;

/* Whether a channel would serve the request, or pass it on without copying its data. */
static int is_a_channels(struct frontend *fe, const struct fe_slot *slot)
{
    const struct fuse_in_header *in = fe_header(slot);
    const struct fuse_read_in *read_in = (const struct fuse_read_in *)(slot->message + sizeof *in);
    switch (in->opcode) {
    case FUSE_READ: /* how much comes in, or is to go out, is said in the same place */
    case FUSE_WRITE:
        if (slot->length >= sizeof *in + sizeof *read_in && read_in->size >= FE_LEND_FROM)
            return 1;
        return dm_is_published(fe->config.map, in->nodeid);
    case FUSE_FSYNC:
        return dm_is_published(fe->config.map, in->nodeid);
    default:
        return 0;
    }
}

/* Whether no channel has served anything since the last call, and all but the first rest. */
static int is_calm(struct frontend *fe)
{
    uint64_t served = 0, before = fe->served_before;
    int awake = 0;
    for (uint32_t i = 0; i < fe->config.channel_count; i++) {
        struct channel *ch = &fe->channels[i];
        served += atomic_load_explicit(&ch->reads, memory_order_relaxed) +
                  atomic_load_explicit(&ch->writes, memory_order_relaxed) +
                  atomic_load_explicit(&ch->fsyncs, memory_order_relaxed) +
                  atomic_load_explicit(&ch->lent, memory_order_relaxed);
        awake |= i && !atomic_load(&ch->resting);
    }
    fe->served_before = served;
    return !awake && served == before;
}

/* A request for Python, read into `buffer`: its length. 0: there is none after all. -1: unmounted, or it was pyfuse3's,
 * and that must have its turn. */
static int take(struct frontend *fe, uint8_t *buffer, uint32_t size)
{
    struct channel *ch = &fe->channels[0];
    ssize_t length = read(ch->fuse_fd, buffer, size);
    if (length <= 0)
        return !length || errno == ENODEV || errno == ECONNABORTED ? -1 : 0;
    struct fe_slot slot = {.message = buffer, .length = (uint32_t)length};
    if (length < (ssize_t)sizeof(struct fuse_in_header) || fe_header(&slot)->len != length)
        return 0;
    fe_count(&ch->requests, 1);
    if (fe_header(&slot)->opcode == FUSE_INTERRUPT)
        return 0;
    if (is_a_channels(fe, &slot))
        fe->served_before = NOT_CALM;
    if (!fe_pass(ch, &slot)) {
        fe_count(&ch->taken, 1);
        return (int)length;
    }
    return -1;
}

/* The next request for Python, at most `size` bytes (FE_MAX_WRITE and a page): from `upcalls`, Python's end of
 * config.upcalls_fd, or from /dev/fuse. Waits for it for `ns`, unless `other` is readable, for which somebody else waits.
 * Its length; 0: none came; -1: the other end of `upcalls` is closed. To be followed by fe_taken(). */
int fe_take(struct frontend *fe, int upcalls, int other, uint64_t ns, uint8_t *buffer, uint32_t size)
{
    int calm = is_calm(fe);
    if (calm)
        atomic_store(&fe->channels[0].resting, 1);
    else
        fe_taken(fe);
    struct timespec bound = {.tv_nsec = (long)ns};
    for (;;) {
        struct pollfd fds[3] = {
            {.fd = upcalls, .events = POLLIN},
            {.fd = other, .events = POLLIN},
            {.fd = calm ? fe->channels[0].fuse_fd : -1, .events = POLLIN},
        };
        if (ppoll(fds, 3, &bound, NULL) <= 0 || fds[1].revents)
            return 0;
        if (fds[0].revents) {
            ssize_t length = recv(upcalls, buffer, size, MSG_DONTWAIT);
            return length > 0 ? (int)length : length < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
        }
        int length = take(fe, buffer, size);
        if (length)
            return length > 0 ? length : 0;
    }
}

/* Python looks elsewhere: the channel reads again. */
void fe_taken(struct frontend *fe)
{
    struct channel *first = &fe->channels[0];
    if (atomic_exchange(&first->resting, 0))
        fe_signal(first->call_fd);
}
