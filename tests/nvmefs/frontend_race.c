/* The front end's threads, a publisher, a drive and its driver against each other, to be run under -fsanitize=thread.
 *
 *     frontend_race SECONDS
 *
 * The kernel is a socket for each of two channels. The publisher does what Python does: it withdraws a file, waits until
 * it is drained, moves it to other blocks, and publishes it anew. Blocks that are taken away are filled with STALE at
 * once: who reads must never see that, and who writes must never write there, which the publisher looks at before it
 * uses them again. The driver takes a queue pair back and empties it every now and then. What is forwarded is refused,
 * but for large writes: their data is lent, and must be that of the request until it is given back.
 *
 * The drive is not instrumented: what it shares with the rings is ordered by doorbells, of which the sanitizer knows
 * nothing. */
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "frontend_private.h"

#define UNSEEN __attribute__((no_sanitize("thread")))

enum { CHANNELS = 2, SLOTS = 16, DEPTH = 64, FILES = 4, BLOCKS = 4, ASKED = 12, WORDS = FE_PAGE / 4, LENT_WORDS = FE_LEND_FROM / 4 };
static const uint32_t STALE = 0x5a5a5a5a;

struct drive {
    pthread_mutex_t lock; /* against the driver */
    struct nv_ring *ring;
    volatile uint32_t bells[2];
    uint32_t head, tail, phase;
    int vector_fd, wakeup_fd, kernel_fd, fuse_fd;
    uint8_t *memory;
};

static struct drive drives[CHANNELS];
static volatile uint32_t disk[FILES * 2 * BLOCKS][WORDS];
static volatile char in_use[FILES * 2 * BLOCKS]; /* by a drive: a block is written as a whole */
static struct datamap *map;
static struct ledger *ledger;
static struct frontend *fe;
static int drain_fd, python_fd, upcalls_fd;
static atomic_int stop;
static atomic_ulong answered, refused, moves, resets, lent;

static void require(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "frontend_race: %s\n", what);
    exit(1);
}

/* ---- the drive --------------------------------------------------------------------------------------------------- */

UNSEEN static void execute(const struct nv_sqe *command)
{
    volatile uint32_t *data = (volatile uint32_t *)(uintptr_t)command->prp[0];
    while (command->opcode && __atomic_test_and_set(&in_use[command->cdw10[0]], __ATOMIC_ACQUIRE))
        sched_yield();
    for (int i = 0; i < WORDS && command->opcode; i++) {
        if (command->opcode == 1)
            disk[command->cdw10[0]][i] = data[i];
        else
            data[i] = disk[command->cdw10[0]][i];
    }
    if (command->opcode)
        __atomic_clear(&in_use[command->cdw10[0]], __ATOMIC_RELEASE);
}

UNSEEN static int work_off(struct drive *d)
{
    int done = 0;
    for (; d->head != d->bells[0]; d->head = (d->head + 1) % DEPTH, done++) {
        const struct nv_sqe *command = &d->ring->sq[d->head];
        volatile struct nv_cqe *cqe = (volatile struct nv_cqe *)d->ring->cq + d->tail;
        execute(command);
        cqe->cid = command->cid;
        cqe->sq_id = (uint16_t)d->ring->qid;
        cqe->status = (uint16_t)d->phase;
        if (++d->tail == DEPTH) {
            d->tail = 0;
            d->phase ^= 1;
        }
    }
    return done;
}

static void *serve(void *argument)
{
    struct drive *d = argument;
    while (!atomic_load(&stop)) {
        pthread_mutex_lock(&d->lock);
        int done = work_off(d);
        pthread_mutex_unlock(&d->lock);
        if (done)
            fe_signal(d->vector_fd);
        else
            usleep(200); /* meanwhile a crowd gathers */
    }
    return NULL;
}

/* ---- the driver -------------------------------------------------------------------------------------------------- */

static void reset(struct drive *d)
{
    nv_lease_ask(&d->ring->lease, NV_LEASE_PARK);
    fe_signal(d->vector_fd);
    while (nv_lease_used(&d->ring->lease) && !atomic_load(&stop))
        sched_yield();
    if (nv_lease_used(&d->ring->lease))
        return;
    pthread_mutex_lock(&d->lock);
    nv_ring_reset(d->ring);
    d->bells[0] = d->bells[1] = d->head = d->tail = 0;
    d->phase = 1;
    pthread_mutex_unlock(&d->lock);
    nv_lease_ask(&d->ring->lease, NV_LEASE_USE);
    fe_signal(d->vector_fd);
    atomic_fetch_add(&resets, 1);
}

static void *drive_on(void *argument)
{
    (void)argument;
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        usleep(7000);
        reset(&drives[i % CHANNELS]);
    }
    return NULL;
}

/* ---- Python ------------------------------------------------------------------------------------------------------ */

static void fill(uint64_t first, uint32_t word, uint32_t before)
{
    for (int i = 0; i < BLOCKS * WORDS; i++) {
        require(disk[first][i] == before || !before, "a write to blocks that were taken away");
        disk[first][i] = word;
    }
}

static void *publish(void *argument)
{
    (void)argument;
    for (uint32_t round = 0; !atomic_load(&stop); round++) {
        uint64_t file = round % FILES, home = (file * 2 + round / FILES % 2) * BLOCKS, other = home ^ BLOCKS;
        while (dm_withdraw(map, file) && !atomic_load(&stop)) {
            struct pollfd fd = {.fd = drain_fd, .events = POLLIN};
            uint64_t count;
            if (poll(&fd, 1, 10) > 0)
                require(read(drain_fd, &count, sizeof count) > 0, "drain_fd cannot be read");
        }
        if (atomic_load(&stop))
            break;
        if (round >= FILES)
            fill(other, STALE, 0);
        fill(home, round + 1, round >= 2 * FILES ? STALE : 0);
        struct dm_extent extent = {0, home, BLOCKS};
        require(!dm_publish(map, file, BLOCKS * FE_PAGE, &extent, 1), "not published");
        dm_change(map, file, round, round);
        dm_commit(map, round);
        atomic_fetch_add(&moves, 1);
        usleep(300);
    }
    return NULL;
}

static void *refuse(void *argument)
{
    (void)argument;
    static uint8_t message[FE_HEADER_BYTES + FE_PAGE];
    while (recv(python_fd, message, sizeof message, 0) > 0) {
        struct fuse_out_header out = {sizeof out, -5, ((struct fuse_in_header *)message)->unique};
        fe_reply(fe, &out, sizeof out);
    }
    return NULL;
}

UNSEEN static void look_at_loan(const struct fe_lent *loan, uint32_t word)
{
    const volatile uint32_t *data =
        (const volatile uint32_t *)(drives[loan->channel].memory + (size_t)loan->slot * FE_SLOT_BYTES + FE_PAGE);
    for (int i = 0; i < LENT_WORDS; i++)
        require(data[i] == word, "lent data has changed");
}

static void *answer_writes(void *argument)
{
    (void)argument;
    static uint8_t message[FE_HEADER_BYTES + FE_LEND_FROM];
    ssize_t length;
    while ((length = recv(upcalls_fd, message, sizeof message, 0)) > 0) {
        struct fuse_in_header *in = (struct fuse_in_header *)message;
        struct fuse_out_header out = {sizeof out, -5, in->unique};
        if (in->len > length) {
            struct fe_lent loan;
            memcpy(&loan, message + FE_HEADER_BYTES, sizeof loan);
            for (int i = 0; i < 3; i++) {
                look_at_loan(&loan, (uint32_t)in->unique);
                sched_yield();
            }
            fe_give_back(fe, loan);
            atomic_fetch_add(&lent, 1);
        }
        fe_reply(fe, &out, sizeof out);
    }
    return NULL;
}

/* ---- the kernel -------------------------------------------------------------------------------------------------- */

static void ask(struct drive *d, unsigned *seed, uint64_t unique)
{
    static const uint32_t opcodes[] = {FUSE_READ, FUSE_READ, FUSE_WRITE, FUSE_FSYNC};
    struct {
        struct fuse_in_header in;
        struct fuse_write_in body; /* of READ too: the same fields */
        uint32_t data[LENT_WORDS];
    } message = {.in = {.opcode = opcodes[rand_r(seed) % 4], .unique = unique, .nodeid = rand_r(seed) % FILES}};
    uint32_t size = FE_PAGE;
    if (message.in.opcode == FUSE_WRITE && rand_r(seed) % 4 == 0) {
        message.in.nodeid = FILES; /* never published */
        size = FE_LEND_FROM;
    }
    message.in.len = sizeof message.in + sizeof message.body;
    if (message.in.opcode == FUSE_WRITE)
        message.in.len += size;
    if (message.in.opcode != FUSE_FSYNC) {
        message.body.offset = rand_r(seed) % BLOCKS * FE_PAGE;
        message.body.size = size;
        for (uint32_t i = 0; i < size / 4; i++)
            message.data[i] = (uint32_t)unique;
    }
    require(send(d->kernel_fd, &message, message.in.len, 0) > 0, "not asked");
}

static int take_answer(struct drive *d)
{
    struct {
        struct fuse_out_header out;
        uint32_t data[WORDS];
    } message;
    struct pollfd fd = {.fd = d->kernel_fd, .events = POLLIN};
    if (poll(&fd, 1, 5) <= 0)
        return 0;
    ssize_t length = recv(d->kernel_fd, &message, sizeof message, 0);
    require(length >= (ssize_t)sizeof message.out && message.out.len == length, "a malformed answer");
    require(message.out.unique >> 32 == (uint64_t)(d - drives) + 1, "the answer to another channel's request");
    if (length == sizeof message)
        for (int i = 0; i < WORDS; i++)
            require(message.data[i] == message.data[0] && message.data[i] != STALE, "blocks of nobody were read");
    atomic_fetch_add(message.out.error ? &refused : &answered, 1);
    return 1;
}

static void *be_kernel(void *argument)
{
    struct drive *d = argument;
    unsigned seed = (unsigned)(d - drives) + 1, under_way = 0;
    for (uint64_t i = 2; !atomic_load(&stop) || under_way; i += 2) {
        if (!atomic_load(&stop) && under_way < ASKED) {
            ask(d, &seed, ((uint64_t)(d - drives) + 1) << 32 | i);
            under_way++;
        }
        if (under_way == ASKED || atomic_load(&stop)) {
            int taken = take_answer(d);
            under_way -= (unsigned)taken;
            if (!taken && atomic_load(&stop))
                break; /* a thread at rest was not called for these */
        }
    }
    return NULL;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static void set_up(struct drive *d, struct fe_channel_config *config)
{
    int pair[2];
    pthread_mutex_init(&d->lock, NULL);
    require(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), "no sockets");
    d->kernel_fd = pair[0];
    d->fuse_fd = pair[1];
    d->vector_fd = eventfd(0, EFD_NONBLOCK);
    d->wakeup_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    require(!epoll_ctl(d->wakeup_fd, EPOLL_CTL_ADD, d->vector_fd, &event), "no epoll");
    d->memory = aligned_alloc(FE_PAGE, (size_t)SLOTS * FE_SLOT_BYTES);
    d->ring = nv_ring_new((uint16_t)(d - drives + 2), DEPTH, aligned_alloc(FE_PAGE, FE_PAGE), aligned_alloc(FE_PAGE, FE_PAGE),
                          NULL, 0, 0, FE_PAGE);
    require(d->memory && d->ring, "no memory");
    d->ring->sq_doorbell = &d->bells[0];
    d->ring->cq_doorbell = &d->bells[1];
    d->ring->lease.attention_fd = -1;
    d->phase = 1;
    *config = (struct fe_channel_config){
        .fuse_fd = d->fuse_fd, .ring = d->ring, .wakeup_fd = d->wakeup_fd, .memory = d->memory,
        .memory_iova = (uintptr_t)d->memory};
}

int main(int argc, char **argv)
{
    unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    int requests[2], upcalls[2];
    struct fe_channel_config channels[CHANNELS];
    require(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, requests) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, upcalls), "sockets");
    drain_fd = eventfd(0, EFD_NONBLOCK);
    map = dm_new(drain_fd);
    ledger = ledger_new();
    python_fd = requests[1];
    upcalls_fd = upcalls[1];
    for (int i = 0; i < CHANNELS; i++)
        set_up(&drives[i], &channels[i]);
    struct fe_config config = {
        .requests_fd = requests[0], .upcalls_fd = upcalls[0], .upcalls = 1ull << FUSE_WRITE, .ended_fd = eventfd(0, 0), .channels = channels,
        .channel_count = CHANNELS, .slots = SLOTS, .map = map, .ledger = ledger, .volatile_cache = 1, .nsid = 1,
        .lbas_per_block = 1, .max_transfer_blocks = 1, .last_wait_ns = 1000000000, .spin_ns = 1000};
    fe = fe_start(&config);
    require(fe != NULL, "not started");

    pthread_t threads[4 + 2 * CHANNELS];
    int count = 0;
    require(!pthread_create(&threads[count++], NULL, refuse, NULL), "no thread");
    require(!pthread_create(&threads[count++], NULL, answer_writes, NULL), "no thread");
    require(!pthread_create(&threads[count++], NULL, publish, NULL), "no thread");
    require(!pthread_create(&threads[count++], NULL, drive_on, NULL), "no thread");
    for (int i = 0; i < CHANNELS; i++) {
        require(!pthread_create(&threads[count++], NULL, be_kernel, &drives[i]), "no thread");
        require(!pthread_create(&threads[count++], NULL, serve, &drives[i]), "no thread");
    }
    sleep(seconds);
    struct fe_statistics s;
    fe_statistics(fe, &s);
    atomic_store(&stop, 1);
    for (int i = 2; i < count; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CHANNELS; i++)
        nv_lease_ask(&drives[i].ring->lease, NV_LEASE_END);
    shutdown(python_fd, SHUT_RDWR);
    shutdown(upcalls_fd, SHUT_RDWR);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    fe_stop(fe);
    printf("answered %lu refused %lu moves %lu resets %lu fsyncs %lu flushes %lu calls %lu lent %lu\n", atomic_load(&answered),
           atomic_load(&refused), atomic_load(&moves), atomic_load(&resets), s.fsyncs, s.flushes, s.calls, s.lent);
    require(s.reads && s.writes && s.flushes && s.calls && moves && resets && refused && lent, "something did not happen");
    dm_free(map);
    ledger_free(ledger);
    return 0;
}
