/* Threads, forwarding, FUSE_INIT. Facts about the protocol: <linux/fuse.h> and fs/fuse/dev.c, fs/fuse/inode.c. */
#define _GNU_SOURCE /* ppoll */
#include "frontend_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    REPLY_BYTES = FE_MAX_WRITE + FE_PAGE,
    CROWD = 32,       /* requests that are looked for between commands after one was found there */
    PROBE_EVERY = 16, /* without a crowd, look that often */
    LOOK_EVERY = 4096, /* rounds without a sleep after which deadlines are looked at all the same */
    OP_TMPFILE = 51,  /* newer than some distributions' <linux/fuse.h>: include/uapi/linux/fuse.h of Linux 6.8 */
    OP_STATX = 52,
    OP_SYNCFS = 50,
};

static const uint64_t FIRST_NAP_NS = 50000, LONGEST_NAP_NS = 2000000;

static void signal_fd(int fd)
{
    const uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* 0, or an errno: ENOENT where the request was interrupted, ENODEV after unmounting. Both need no action. */
int fe_answer(struct frontend *fe, uint64_t unique, int error, const void *data, uint32_t bytes)
{
    struct fuse_out_header out = {.len = (uint32_t)sizeof out + bytes, .error = -error, .unique = unique};
    struct iovec part[2] = {{&out, sizeof out}, {(void *)(uintptr_t)data, bytes}};
    return writev(fe->config.fuse_fd, part, bytes ? 2 : 1) < 0 ? errno : 0;
}

/* An answer that Python has made, header included. 0 or an errno. */
int fe_reply(struct frontend *fe, const void *message, uint32_t length)
{
    return write(fe->config.fuse_fd, message, length) < 0 ? errno : 0;
}

/* Waits a moment for the next request: it mostly follows the answer sooner than Python's scheduler comes round.
 * 1: `fd` is readable. 0: it is not, or `other` is, for which somebody else waits. */
int fe_linger(int fd, int other, uint64_t ns)
{
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = other, .events = POLLIN}};
    struct timespec bound = {.tv_nsec = (long)ns};
    return ppoll(fds, 2, &bound, NULL) > 0 && (fds[0].revents & POLLIN) && !(fds[1].revents & POLLIN);
}

static int wants_answer(uint32_t opcode)
{
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

/* ---- forwarding -------------------------------------------------------------------------------------------------- */

/* Whether frontend.py takes the request: pyfuse3 would answer ENOSYS, which the kernel remembers; or it is about names
 * and attributes, and wire.py answers it sooner; or it says what pyfuse3 does not pass on. */
static int is_upcall(const struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    switch (in->opcode) {
    case FUSE_LOOKUP:
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_GETATTR:
    case FUSE_SETATTR:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_UNLINK:
    case FUSE_OPEN:
    case FUSE_RELEASE:
    case FUSE_CREATE:
    case FUSE_GETXATTR:
    case FUSE_OPENDIR:
    case FUSE_RELEASEDIR:
    case FUSE_FALLOCATE:
    case FUSE_LSEEK:
    case FUSE_COPY_FILE_RANGE:
    case FUSE_IOCTL:
    case OP_TMPFILE:
    case OP_STATX:
    case OP_SYNCFS:
        return 1;
    case FUSE_WRITE:
        return slot->length >= FE_HEADER_BYTES && ((const struct fuse_write_in *)(in + 1))->write_flags & KILL_SUIDGID;
    default:
        return 0;
    }
}

static int python_fd(const struct frontend *fe, const struct fe_slot *slot)
{
    return is_upcall(slot) ? fe->config.upcalls_fd : fe->config.requests_fd;
}

/* 0: the socket is full. Else the request is Python's, or has been answered. */
static int try_send(struct frontend *fe, const struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    while (send(python_fd(fe, slot), slot->message, slot->length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN)
            return 0;
        if (wants_answer(in->opcode))
            fe_answer(fe, in->unique, EIO, NULL, 0);
        return 1;
    }
    return 1;
}

/* Never waits for Python: Python may be waiting for the very commands that this thread has to reap. */
void fe_forward(struct frontend *fe, struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    if (in->opcode == FUSE_INTERRUPT) { /* pyfuse3 does not know it; the request it means goes on */
        fe_free_slot(fe, slot);
        return;
    }
    atomic_fetch_add_explicit(is_upcall(slot) ? &fe->upcalls : &fe->forwarded, 1, memory_order_relaxed);
    if (!fe->backlog && try_send(fe, slot)) {
        fe_free_slot(fe, slot);
        return;
    }
    slot->next = NULL;
    if (fe->backlog)
        fe->backlog_last->next = slot;
    else
        fe->backlog = slot;
    fe->backlog_last = slot;
}

/* What has waited for room, in order. Returns how many went. */
static int send_backlog(struct frontend *fe)
{
    int sent = 0;
    while (fe->backlog && try_send(fe, fe->backlog)) {
        struct fe_slot *slot = fe->backlog;
        fe->backlog = slot->next;
        fe_free_slot(fe, slot);
        sent++;
    }
    return sent;
}

static void note_init(struct frontend *fe, const struct fe_slot *slot)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    const uint8_t *body = slot->message + sizeof *in;
    uint32_t word[5] = {0}; /* major, minor, max_readahead, flags, flags2 */
    size_t length = slot->length - sizeof *in;
    memcpy(word, body, length < sizeof word ? length : sizeof word);
    uint64_t offered = word[3];
    if (offered & FUSE_INIT_EXT)
        offered |= (uint64_t)word[4] << 32;
    atomic_store(&fe->init_offered, offered);
    atomic_store(&fe->init_unique, in->unique);
}

/* Adds to libfuse's answer what it did not ask for. */
static void complete_init(struct frontend *fe, uint8_t *reply, uint32_t length)
{
    struct fuse_out_header *header = (struct fuse_out_header *)reply;
    struct fuse_init_out *out = (struct fuse_init_out *)(reply + sizeof *header);
    if (header->error || length < sizeof *header + sizeof *out)
        return;
    uint64_t wanted = fe->config.want_flags & atomic_load(&fe->init_offered);
    if (wanted >> 32)
        wanted |= FUSE_INIT_EXT;
    out->flags |= (uint32_t)wanted;
    if (out->flags & FUSE_INIT_EXT)
        out->flags2 |= (uint32_t)(wanted >> 32);
    if (fe->config.max_background) {
        out->max_background = (uint16_t)fe->config.max_background;
        out->congestion_threshold = (uint16_t)fe->config.congestion_threshold;
    }
}

/* ---- the thread that carries pyfuse3's answers back ---------------------------------------------------------------- */

static void *reply_thread(void *argument)
{
    struct frontend *fe = argument;
    uint8_t *buffer = malloc(REPLY_BYTES);
    while (buffer) {
        ssize_t length = recv(fe->config.requests_fd, buffer, REPLY_BYTES, 0);
        if (length < 0 && errno == EINTR)
            continue;
        if (length < (ssize_t)sizeof(struct fuse_out_header))
            break; /* the other end is closed */
        uint64_t unique = ((struct fuse_out_header *)buffer)->unique;
        if (unique && unique == atomic_load(&fe->init_unique)) {
            complete_init(fe, buffer, (uint32_t)length);
            atomic_store(&fe->init_unique, 0);
        }
        fe_reply(fe, buffer, (uint32_t)length);
    }
    free(buffer);
    return NULL;
}

/* ---- the thread on /dev/fuse ----------------------------------------------------------------------------------------- */

void fe_free_slot(struct frontend *fe, struct fe_slot *slot)
{
    fe->free_slots[fe->free_count++] = (uint32_t)(slot - fe->slots);
}

/* Reads and handles one request. 1: done; 0: there is none; -1: unmounted. */
static int handle_one(struct frontend *fe)
{
    struct fe_slot *slot = &fe->slots[fe->free_slots[fe->free_count - 1]];
    ssize_t length = read(fe->config.fuse_fd, slot->message, FE_HEADER_BYTES + FE_MAX_WRITE);
    if (length < 0)
        return errno == ENODEV || errno == ECONNABORTED ? -1 : 0; /* ENOENT: interrupted before we read it */
    const struct fuse_in_header *in = (const struct fuse_in_header *)slot->message;
    if (length < (ssize_t)sizeof *in || in->len != length)
        return 0;
    slot->length = (uint32_t)length;
    fe->free_count--;
    atomic_fetch_add_explicit(&fe->requests, 1, memory_order_relaxed);
    if (in->opcode == FUSE_INIT)
        note_init(fe, slot);
    if (!fe_serve(fe, slot))
        fe_forward(fe, slot);
    return 1;
}

/* Whether to look for another request while commands are under way: often when there were some lately. */
static int look_for_more(struct frontend *fe)
{
    if (!fe->free_count || fe->backlog)
        return 0;
    return !fe->busy || fe->crowd || !(++fe->probe % PROBE_EVERY);
}

/* Spins for a completion, as long as that may be sooner than a sleep and a wake-up. */
static int spin(struct frontend *fe)
{
    uint64_t end = nv_now_ns() + fe->config.spin_ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (fe_reap(fe))
                return 1;
            nv_relax();
        }
    } while (nv_now_ns() < end);
    return 0;
}

/* How long to sleep at most while commands are under way. */
static uint64_t sleep_bound_ns(struct frontend *fe)
{
    if (!fe->holding || !(fe->config.naps || fe->config.restless))
        return fe_tick_ns(fe);
    fe->nap_ns = fe->nap_ns < LONGEST_NAP_NS ? fe->nap_ns + fe->nap_ns / 2 : LONGEST_NAP_NS;
    return fe->config.restless ? 0 : fe->nap_ns;
}

/* Sleeps until there is a request, a completion, or the end. 0: the end. */
static int sleep_for_more(struct frontend *fe)
{
    struct pollfd fds[4] = {
        {.fd = fe->config.fuse_fd, .events = fe->free_count && !fe->backlog ? POLLIN : 0},
        {.fd = fe->stop_fd, .events = POLLIN},
        {.fd = fe->busy ? fe->config.wakeup_fd : -1, .events = POLLIN},
        {.fd = fe->backlog ? python_fd(fe, fe->backlog) : -1, .events = POLLOUT},
    };
    uint64_t bound = sleep_bound_ns(fe);
    struct timespec bounded = {.tv_sec = (time_t)(bound / 1000000000u), .tv_nsec = (long)(bound % 1000000000u)};
    if (!fe->busy && fe->holding)
        fe_leave(fe); /* the driver need not wait for one who sleeps */
    int ready = ppoll(fds, 4, fe->busy ? &bounded : NULL, NULL);
    if (ready < 0)
        return errno == EINTR;
    if (fds[0].revents & (POLLERR | POLLHUP))
        return 0; /* unmounted; told even when no request is wanted */
    if (fds[2].revents & POLLIN)
        nv_wakeup_clear(fe->config.wakeup_fd);
    if (fe->busy)
        fe_look(fe, !ready);
    return !(fds[1].revents & POLLIN);
}

/* Commands under way move on. 1: some have completed. */
static int tend(struct frontend *fe)
{
    fe_heed(fe);
    if (!fe->holding || !fe_reap(fe))
        return 0;
    fe->nap_ns = FIRST_NAP_NS;
    if (!(++fe->rounds % LOOK_EVERY))
        fe_look(fe, 0);
    return 1;
}

/* Unmounted or stopped: nobody wants the answers, but memory and blocks are the drive's until they have completed. */
static void finish_all(struct frontend *fe)
{
    for (uint64_t start = nv_now_ns(); fe->busy && nv_now_ns() - start < fe->config.last_wait_ns;) {
        if (tend(fe))
            continue;
        nv_wakeup_wait(fe->config.wakeup_fd, LONGEST_NAP_NS);
        fe_look(fe, 1);
    }
    if (fe->holding)
        fe_leave(fe);
}

static void *channel_thread(void *argument)
{
    struct frontend *fe = argument;
    for (;;) {
        int progress = fe->backlog && send_backlog(fe);
        if (look_for_more(fe)) {
            int handled = handle_one(fe);
            if (handled < 0)
                break;
            if (fe->busy && handled)
                fe->crowd = CROWD;
            else if (!handled && fe->crowd)
                fe->crowd--;
            progress |= handled;
        }
        if (fe->busy)
            progress |= tend(fe);
        if (!progress && !(fe->busy && fe->holding && spin(fe)) && !sleep_for_more(fe))
            break;
    }
    finish_all(fe);
    signal_fd(fe->config.ended_fd);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

static void release(struct frontend *fe)
{
    if (fe->stop_fd >= 0)
        close(fe->stop_fd);
    for (uint32_t i = 0; fe->slots && i < fe->config.slots; i++)
        free(fe->slots[i].spare);
    free(fe->slots);
    free(fe->owner);
    free(fe->free_slots);
    free(fe);
}

static int prepare(struct frontend *fe)
{
    fe->nap_ns = FIRST_NAP_NS;
    fe->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fe->slots = calloc(fe->config.slots, sizeof *fe->slots);
    fe->free_slots = calloc(fe->config.slots, sizeof *fe->free_slots);
    fe->owner = calloc(NV_RING_MAX_DEPTH + 1, sizeof *fe->owner);
    if (fe->stop_fd < 0 || !fe->slots || !fe->owner || !fe->free_slots || !fe->config.slots)
        return -1;
    for (uint32_t i = fe->config.slots; i-- > 0;) {
        struct fe_slot *slot = &fe->slots[i];
        uint64_t at = (uint64_t)i * FE_SLOT_BYTES + FE_PAGE;
        slot->data = fe->config.memory + at;
        slot->data_iova = fe->config.memory_iova + at;
        slot->message = slot->data - FE_HEADER_BYTES;
        fe->free_slots[fe->free_count++] = i;
    }
    int flags = fcntl(fe->config.fuse_fd, F_GETFL);
    return flags < 0 ? -1 : fcntl(fe->config.fuse_fd, F_SETFL, flags | O_NONBLOCK);
}

/* NULL with errno set. The descriptors stay the caller's; the ring and the memory must outlive fe_stop(). */
struct frontend *fe_start(const struct fe_config *config)
{
    struct frontend *fe = calloc(1, sizeof *fe);
    if (!fe)
        return NULL;
    fe->config = *config;
    fe->ring = config->ring;
    fe->stop_fd = -1;
    if (prepare(fe)) {
        release(fe);
        return NULL;
    }
    int error = pthread_create(&fe->replies, NULL, reply_thread, fe);
    if (!error) {
        error = pthread_create(&fe->channel, NULL, channel_thread, fe);
        if (error) {
            shutdown(fe->config.requests_fd, SHUT_RDWR);
            pthread_join(fe->replies, NULL);
        }
    }
    if (error) {
        release(fe);
        errno = error;
        return NULL;
    }
    return fe;
}

/* Asks the thread on /dev/fuse to end; ended_fd says when it has. */
void fe_end(struct frontend *fe)
{
    signal_fd(fe->stop_fd);
}

/* Ends both threads and frees the front end. Returns how many commands the drive still owns (0 in health). */
int fe_stop(struct frontend *fe)
{
    fe_end(fe);
    pthread_join(fe->channel, NULL);
    shutdown(fe->config.requests_fd, SHUT_RDWR);
    shutdown(fe->config.upcalls_fd, SHUT_RDWR);
    pthread_join(fe->replies, NULL);
    int left = (int)(fe->busy + atomic_load(&fe->lost));
    release(fe);
    return left;
}

uint64_t fe_writes(struct frontend *fe)
{
    return atomic_load_explicit(&fe->writes, memory_order_acquire);
}

uint64_t fe_lost(struct frontend *fe)
{
    return atomic_load(&fe->lost);
}

void fe_statistics(struct frontend *fe, struct fe_statistics *out)
{
    *out = (struct fe_statistics){
        .requests = fe->requests, .forwarded = fe->forwarded, .upcalls = fe->upcalls, .reads = fe->reads,
        .writes = fe->writes, .read_bytes = fe->read_bytes, .written_bytes = fe->written_bytes,
        .failed = fe->failed, .expired = fe->expired, .lost = fe->lost,
    };
}
