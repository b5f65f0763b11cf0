/*
 * The embedded controller: an NVMe controller in software (NVM Express 1.4, I/O controller, one namespace).
 *
 * What this device does to you, its fault model:
 *   - It executes each submission queue in order, and every command once. Completions come in that order.
 *   - A Write that completed is in the host's page cache: it survives the death of this process, and the
 *     loss of power only after a Flush, with FUA, or with the write cache turned off (fdatasync, RWF_DSYNC).
 *   - Errors of the host's file (I/O error, a file cut short) are Write Fault and Unrecovered Read Error, no space
 *     is Capacity Exceeded; the blocks that a failed write was to change are old, new or a mixture of both.
 *   - Nothing that a host stores in registers, doorbells, queues or PRPs makes it touch memory that was not
 *     mapped for it. It answers with the status the specification names, with an asynchronous
 *     event (doorbells), or with CSTS.CFS when it cannot answer: admin queues that cannot be, queue
 *     memory unmapped under a live queue.
 *   - A full completion queue stops the submission queues behind it; nothing is overwritten or dropped.
 *   - It never loses, delays, repeats or corrupts a command by itself: faults.c says what it does when told to,
 *     cache.c what becomes of writes when it has a volatile cache and its power is cut.
 *
 * This file: creation, DMA mappings, interrupts, and how the host's threads get the controller's thread to act.
 */
#define _GNU_SOURCE
#include "controller.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "queues.h"

#define LEAST_VECTORS 512u

/* ---- creation ---------------------------------------------------------------------------------------- */

static bool options_valid(const struct controller_options *o)
{
    uint32_t transfer = o->max_transfer_bytes;
    bool transfer_valid = transfer == 0 || (transfer >= 8192 && transfer <= 1u << 30 && !(transfer & (transfer - 1)));
    return (o->lba_bytes == 512 || o->lba_bytes == 4096) && o->image_bytes >= o->lba_bytes && o->queue_entries >= 2 &&
           o->queue_entries <= 65536 && transfer_valid && o->io_queues >= 1 && o->io_queues <= MAX_IO_QUEUES &&
           o->vectors >= 1 && o->vectors <= MAX_VECTORS && o->sgl <= SGL_DWORD && o->limits.copy_ranges <= 256 &&
           (o->tear_bytes == 0 || ((o->tear_bytes == 512 || o->tear_bytes == o->lba_bytes) && o->image_fd >= 0));
}

static bool one_cpu(void)
{
    cpu_set_t cpus;
    return sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) < 2;
}

/* The largest transfer, in pages: MDTS, or 65,536 blocks of 4 KiB where there is none; one more when it starts inside
 * one. An SGL may cut a small one to more pieces than pages. */
static uint32_t most_vectors(const struct controller_options *o)
{
    uint64_t bytes = o->max_transfer_bytes ? o->max_transfer_bytes : 65536ull * 4096;
    uint32_t pages = (uint32_t)(bytes >> MIN_PAGE_BITS) + 2;
    return pages < LEAST_VECTORS ? LEAST_VECTORS : pages;
}

static int allocate(struct controller *c)
{
    c->doorbell_fd = memfd_create("nvme-doorbells", MFD_CLOEXEC);
    c->kick_fd = eventfd(0, EFD_CLOEXEC);
    if (c->doorbell_fd < 0 || c->kick_fd < 0 || ftruncate(c->doorbell_fd, REG_END))
        return -errno;
    c->doorbells = mmap(NULL, DOORBELL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, c->doorbell_fd, REG_DOORBELLS);
    if (c->doorbells == MAP_FAILED) {
        c->doorbells = NULL;
        return -errno;
    }
    c->iov_limit = most_vectors(&c->options);
    c->iov = calloc(c->iov_limit, sizeof c->iov[0]);
    c->bounce = malloc(BOUNCE_BYTES);
    c->sqs = calloc(c->options.io_queues + 1, sizeof c->sqs[0]);
    c->cqs = calloc(c->options.io_queues + 1, sizeof c->cqs[0]);
    c->interrupt_fds = malloc(c->options.vectors * sizeof c->interrupt_fds[0]);
    c->dma_published = calloc(1, sizeof *c->dma_published);
    c->dma = c->dma_published;
    c->backend.cache = c->options.tear_bytes ? cache_new(c->options.tear_bytes) : NULL;
    if (c->options.tear_bytes && !c->backend.cache)
        return -ENOMEM;
    if (!c->iov || !c->bounce || !c->sqs || !c->cqs || !c->interrupt_fds || !c->dma)
        return -ENOMEM;
    for (uint32_t i = 0; i < c->options.vectors; i++)
        c->interrupt_fds[i] = -1;
    return 0;
}

static int start_thread(struct controller *c)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the host's threads, but for what we touch */
    int error = pthread_create(&c->thread, NULL, engine_main, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    c->thread_started = error == 0;
    if (!error)
        pthread_setname_np(c->thread, "nvme-controller");
    return -error;
}

int controller_create(const struct controller_options *options, struct controller **out)
{
    if (!options_valid(options))
        return -EINVAL;
    struct controller *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    c->options = *options;
    c->block_bits = options->lba_bytes == 512 ? 9 : 12;
    c->block_count = options->image_bytes >> c->block_bits;
    c->page_bits = MIN_PAGE_BITS;
    c->poll_limit_ns = one_cpu() ? 0 : options->poll_ns;
    c->poll_window_ns = c->poll_limit_ns / 2;
    c->kick_fd = c->doorbell_fd = -1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->host_lock, NULL);
    pthread_cond_init(&c->call_done, NULL);
    backend_open(&c->backend, options->image_fd, options->image_bytes, options->read_only);
    features_reset(c);
    int error = allocate(c);
    if (!error)
        error = start_thread(c);
    if (error) {
        controller_destroy(c);
        return error;
    }
    *out = c;
    return 0;
}

/* ---- requests to the controller's thread --------------------------------------------------------------- */

void controller_request_attention(struct controller *c)
{
    __atomic_store_n(&c->attention, 1, __ATOMIC_RELEASE);
    engine_kick(c);
}

/* When this returns, nothing that was taken away before is in use any more. */
void engine_call(struct controller *c, void (*call)(struct controller *, void *), void *argument)
{
    pthread_mutex_lock(&c->lock);
    c->call = call;
    c->call_argument = argument;
    controller_request_attention(c);
    while (c->call)
        pthread_cond_wait(&c->call_done, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static void free_retired(struct controller *c)
{
    struct dma_table *table = c->dma_published->retired;
    c->dma_published->retired = NULL;
    while (table) {
        struct dma_table *older = table->retired;
        free(table);
        table = older;
    }
}

void controller_destroy(struct controller *c)
{
    if (c->thread_started) {
        pthread_mutex_lock(&c->lock);
        c->stop = true;
        pthread_mutex_unlock(&c->lock);
        controller_request_attention(c);
        pthread_join(c->thread, NULL);
    }
    if (c->dma_published) {
        for (uint32_t i = 0; i < c->dma_published->count; i++)
            munmap(c->dma_published->regions[i].host, c->dma_published->regions[i].length);
        free_retired(c);
        free(c->dma_published);
    }
    for (uint32_t i = 0; c->interrupt_fds && i < c->options.vectors; i++) {
        if (c->interrupt_fds[i] >= 0)
            close(c->interrupt_fds[i]);
    }
    if (c->doorbells)
        munmap(c->doorbells, DOORBELL_BYTES);
    if (c->doorbell_fd >= 0)
        close(c->doorbell_fd);
    if (c->kick_fd >= 0)
        close(c->kick_fd);
    faults_free(c->faults);
    cache_free(c->backend.cache); /* without a shutdown its content is lost */
    free(c->iov);
    free(c->bounce);
    free(c->sqs);
    free(c->cqs);
    free(c->interrupt_fds);
    free(c->deallocated.entries);
    pthread_cond_destroy(&c->call_done);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->host_lock);
    free(c);
}

void controller_fail(struct controller *c)
{
    c->running = false;
    pthread_mutex_lock(&c->lock);
    c->regs.csts |= CSTS_CFS;
    pthread_mutex_unlock(&c->lock);
}

/* ---- DMA memory and interrupts ------------------------------------------------------------------------- */

/* Queues that lose their memory for good are gone, and the controller with them; after a shutdown that is no
 * failure. */
static void forget_memory(struct controller *c, void *argument)
{
    (void)argument;
    bool complete = queues_relocate(c);
    __atomic_store_n(&c->stranded, !complete && c->serves_others, __ATOMIC_RELEASE);
    if (!complete && c->running && !c->serves_others)
        controller_fail(c);
}

/* The thread goes on meanwhile; it finds the new table with the first doorbell that follows. */
int controller_map(struct controller *c, int fd, uint64_t offset, uint64_t length, uint64_t iova)
{
    struct stat status;
    if ((offset | length | iova) & 4095 || length == 0)
        return -EINVAL;
    if (fstat(fd, &status))
        return -errno;
    /* Pages behind the end of the file would kill the process at the first touch. */
    if (offset + length < offset || offset + length > (uint64_t)status.st_size)
        return -EINVAL;
    void *host = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (host == MAP_FAILED)
        return -errno;
    pthread_mutex_lock(&c->host_lock);
    struct dma_table *table, *old = c->dma_published;
    int error = dma_table_add(old, (struct dma_region){iova, length, host}, &table);
    if (!error) {
        table->retired = old;
        __atomic_store_n(&c->dma_published, table, __ATOMIC_RELEASE);
        if (__atomic_load_n(&c->stranded, __ATOMIC_ACQUIRE))
            engine_call(c, forget_memory, NULL);
    }
    pthread_mutex_unlock(&c->host_lock);
    if (error)
        munmap(host, length);
    return error;
}

static void set_serves_others(struct controller *c, void *serve)
{
    c->serves_others = serve != NULL;
}

void controller_serve_others(struct controller *c, bool serve)
{
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, set_serves_others, serve ? c : NULL);
    pthread_mutex_unlock(&c->host_lock);
}

int controller_unmap(struct controller *c, uint64_t iova, uint64_t length)
{
    struct dma_region removed;
    pthread_mutex_lock(&c->host_lock);
    struct dma_table *table, *old = c->dma_published;
    int error = dma_table_remove(old, iova, length, &removed, &table);
    if (!error) {
        table->retired = old;
        __atomic_store_n(&c->dma_published, table, __ATOMIC_RELEASE);
        engine_call(c, forget_memory, NULL);
        free_retired(c);
    }
    pthread_mutex_unlock(&c->host_lock);
    if (!error)
        munmap(removed.host, removed.length);
    return error;
}

static void swap_interrupts(struct controller *c, void *argument)
{
    int *fresh = argument, *old = c->interrupt_fds;
    c->interrupt_fds = fresh;
    for (uint32_t i = 0; i < c->options.vectors; i++) {
        if (old[i] >= 0)
            close(old[i]);
    }
    free(old);
}

int controller_set_interrupts(struct controller *c, const int *eventfds, uint32_t count)
{
    if (count > c->options.vectors)
        return -EINVAL;
    int *fresh = malloc(c->options.vectors * sizeof *fresh), error = fresh ? 0 : -ENOMEM;
    for (uint32_t i = 0; fresh && i < c->options.vectors; i++) {
        bool wanted = i < count && eventfds[i] >= 0 && !error;
        fresh[i] = wanted ? fcntl(eventfds[i], F_DUPFD_CLOEXEC, 3) : -1;
        if (wanted && fresh[i] < 0)
            error = -errno;
    }
    if (!error) {
        pthread_mutex_lock(&c->host_lock);
        engine_call(c, swap_interrupts, fresh);
        pthread_mutex_unlock(&c->host_lock);
        return 0;
    }
    for (uint32_t i = 0; fresh && i < c->options.vectors; i++) {
        if (fresh[i] >= 0)
            close(fresh[i]);
    }
    free(fresh);
    return error;
}

static void reset_function(struct controller *c, void *argument)
{
    (void)argument;
    pthread_mutex_lock(&c->lock);
    c->regs = (struct registers){0};
    c->reset_requested = false;
    pthread_mutex_unlock(&c->lock);
    __atomic_store_n(&c->interrupt_mask, 0, __ATOMIC_RELAXED);
    engine_reset(c);
}

void controller_reset(struct controller *c)
{
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, reset_function, NULL);
    pthread_mutex_unlock(&c->host_lock);
}

static void set_look(struct controller *c, void *look)
{
    c->look_at_doorbells = look != NULL;
    c->host_kicks = false;
}

void controller_look_at_doorbells(struct controller *c, bool look)
{
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, set_look, look ? c : NULL);
    pthread_mutex_unlock(&c->host_lock);
}

void *controller_doorbells(struct controller *c)
{
    return c->doorbells;
}

int controller_doorbell_fd(struct controller *c)
{
    return c->doorbell_fd;
}

int controller_kick_fd(struct controller *c)
{
    return c->kick_fd;
}

uint64_t controller_cpu_ns(struct controller *c)
{
    clockid_t clock;
    struct timespec used;
    if (pthread_getcpuclockid(c->thread, &clock) || clock_gettime(clock, &used))
        return 0;
    return (uint64_t)used.tv_sec * 1000000000ull + (uint64_t)used.tv_nsec;
}

void controller_get_statistics(struct controller *c, struct controller_statistics *out)
{
    const uint64_t *from = (const uint64_t *)&c->statistics;
    uint64_t *to = (uint64_t *)out;
    for (uint32_t i = 0; i < sizeof *out / sizeof *to; i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
