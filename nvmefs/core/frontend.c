/* The life of the front end: its channels, the thread that carries answers back, their end, and what they counted. */
#include "frontend_private.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static void release_channel(struct channel *ch)
{
    if (ch->call_fd >= 0)
        close(ch->call_fd);
    for (uint32_t i = 0; ch->slots && i < ch->slot_count; i++)
        free(ch->slots[i].spare);
    if (ch->transport && ch->transport->release)
        ch->transport->release(ch);
    if (ch->own_memory)
        munmap(ch->own_memory, ch->own_bytes);
    free(ch->slots);
    free(ch->owner);
    free(ch->lenders);
    free(ch->free_slots);
}

static void release(struct frontend *fe)
{
    for (uint32_t i = 0; fe->channels && i < fe->config.channel_count; i++)
        release_channel(&fe->channels[i]);
    if (fe->stop_fd >= 0)
        close(fe->stop_fd);
    sem_destroy(&fe->begun);
    free(fe->channels);
    free(fe);
}

/* For `count` slots, of ordinary memory; pages that are not used cost nothing. */
static int make_memory(struct channel *ch, uint32_t count)
{
    if (!count)
        return 0;
    ch->own_bytes = (uint64_t)count * FE_SLOT_BYTES;
    void *memory =
        mmap(NULL, ch->own_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    ch->own_memory = memory;
    return 0;
}

/* First those in memory that was given, if any was, then those in our own. */
static void lay_out_slots(struct channel *ch, const struct fe_channel_config *config)
{
    uint32_t given = config->memory ? ch->fe->config.slots : 0;
    for (uint32_t i = 0; i < ch->slot_count; i++) {
        struct fe_slot *slot = &ch->slots[i];
        uint64_t at = (uint64_t)(i < given ? i : i - given) * FE_SLOT_BYTES + FE_PAGE;
        slot->data = (i < given ? config->memory : ch->own_memory) + at;
        slot->data_iova = i < given ? config->memory_iova + at : 0;
    }
}

static int prepare_channel(struct channel *ch, const struct fe_channel_config *config)
{
    const struct fe_config *c = &ch->fe->config;
    uint32_t slots = c->slots + (ch->index < fe_rings(ch->fe) ? c->spare_slots : 0);
    ch->transport = ch->index < fe_rings(ch->fe) ? &fe_entries : &fe_device;
    ch->fuse_fd = config->fuse_fd;
    ch->wakeup_fd = config->wakeup_fd;
    ch->naps = config->naps;
    ch->ring = config->ring;
    ch->may_rest = ch->index > 0 && !fe_rings(ch->fe);
    ch->resting = ch->may_rest;
    ch->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ch->slot_count = slots;
    ch->slots = calloc(slots, sizeof *ch->slots);
    ch->free_slots = calloc(slots, sizeof *ch->free_slots);
    ch->owner = calloc(NV_RING_MAX_DEPTH + 1, sizeof *ch->owner);
    ch->lenders = calloc(slots, sizeof *ch->lenders);
    if (ch->call_fd < 0 || !ch->slots || !ch->owner || !ch->free_slots || !ch->lenders ||
        make_memory(ch, config->memory ? slots - c->slots : slots))
        return -1;
    lay_out_slots(ch, config);
    return ch->transport->prepare(ch);
}

static int prepare(struct frontend *fe)
{
    struct fe_config *c = &fe->config;
    if (!c->slots || !c->channel_count || c->channel_count > FE_MAX_CHANNELS || fe_rings(fe) > c->ring_queues) {
        errno = EINVAL;
        return -1;
    }
    fe->rings_left = fe_rings(fe);
    fe->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fe->channels = calloc(c->channel_count, sizeof *fe->channels);
    if (fe->stop_fd < 0 || !fe->channels)
        return -1;
    for (uint32_t i = 0; i < c->channel_count; i++) {
        fe->channels[i].fe = fe;
        fe->channels[i].index = i;
        fe->channels[i].call_fd = -1;
    }
    for (uint32_t i = 0; i < c->channel_count; i++)
        if (prepare_channel(&fe->channels[i], &c->channels[i]))
            return -1;
    c->channels = NULL; /* the caller's */
    return 0;
}

/* Ends `count` channels and the thread that carries answers back. */
static void join(struct frontend *fe, uint32_t count)
{
    fe_end(fe);
    for (uint32_t i = 0; i < count; i++)
        pthread_join(fe->channels[i].thread, NULL);
    shutdown(fe->config.requests_fd, SHUT_RDWR);
    shutdown(fe->config.upcalls_fd, SHUT_RDWR);
    pthread_join(fe->replies, NULL);
}

static int start(struct frontend *fe)
{
    int error = pthread_create(&fe->replies, NULL, fe_reply_thread, fe);
    if (error)
        return error;
    fe->running = fe->config.channel_count;
    for (uint32_t i = 0; i < fe->config.channel_count; i++) {
        error = pthread_create(&fe->channels[i].thread, NULL, fe_channel_thread, &fe->channels[i]);
        if (error) {
            join(fe, i);
            return error;
        }
    }
    for (uint32_t i = 0; i < fe->config.channel_count; i++)
        while (sem_wait(&fe->begun) && errno == EINTR) {
        }
    error = fe->begin_error;
    if (error)
        join(fe, fe->config.channel_count);
    return error;
}

/* NULL with errno set. The descriptors stay the caller's; rings and memory must outlive fe_stop(). */
struct frontend *fe_start(const struct fe_config *config)
{
    struct frontend *fe = calloc(1, sizeof *fe);
    if (!fe)
        return NULL;
    fe->config = *config;
    fe->stop_fd = -1;
    sem_init(&fe->begun, 0, 0);
    int error = prepare(fe) ? errno : start(fe);
    if (!error)
        return fe;
    release(fe);
    errno = error;
    return NULL;
}

uint32_t fe_rings(const struct frontend *fe)
{
    return fe->config.ring_queues ? fe->config.channel_count - 1 : 0;
}

void fe_begin_rings(struct frontend *fe, int agreed)
{
    atomic_store(&fe->rings_wanted, agreed ? 1 : -1);
    for (uint32_t i = 0; i < fe_rings(fe); i++)
        fe_signal(fe->channels[i].call_fd);
}

void fe_ring_is(struct frontend *fe, int error)
{
    if (error)
        atomic_store(&fe->rings_error, error);
    if (atomic_fetch_sub(&fe->rings_left, 1) == 1)
        fe_signal(fe->config.rings_fd);
}

/* What has become of the rings: 0, they carry the requests; an errno, the kernel goes on with /dev/fuse, which the last
 * channel reads; -1: it has not been told yet, or has not asked. */
int fe_rings_error(struct frontend *fe)
{
    return atomic_load(&fe->rings_left) ? -1 : atomic_load(&fe->rings_error);
}

/* Asks the channels to end; ended_fd says when they have. */
void fe_end(struct frontend *fe)
{
    fe_signal(fe->stop_fd);
}

/* Ends all threads and frees the front end. Returns how many commands the drive still owns (0 in health). */
int fe_stop(struct frontend *fe)
{
    join(fe, fe->config.channel_count);
    int left = (int)fe_lost(fe);
    for (uint32_t i = 0; i < fe->config.channel_count; i++)
        left += (int)fe->channels[i].busy;
    release(fe);
    return left;
}

uint64_t fe_lost(struct frontend *fe)
{
    uint64_t lost = 0;
    for (uint32_t i = 0; i < fe->config.channel_count; i++)
        lost += atomic_load(&fe->channels[i].lost);
    return lost;
}

void fe_statistics(struct frontend *fe, struct fe_statistics *out)
{
    *out = (struct fe_statistics){.init_flags = fe->init_flags};
    for (uint32_t i = 0; i < fe->config.channel_count; i++) {
        struct channel *ch = &fe->channels[i];
        out->requests += ch->requests;
        out->forwarded += ch->forwarded;
        out->upcalls += ch->upcalls;
        out->reads += ch->reads;
        out->writes += ch->writes;
        out->fsyncs += ch->fsyncs;
        out->read_bytes += ch->read_bytes;
        out->written_bytes += ch->written_bytes;
        out->flushes += ch->flushes;
        out->failed += ch->failed;
        out->expired += ch->expired;
        out->lost += ch->lost;
        out->calls += ch->calls;
        out->taken += ch->taken;
        out->lent += ch->lent;
        out->found += ch->found;
        out->vain += ch->vain;
    }
}
