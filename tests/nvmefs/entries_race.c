/* entries.c with a kernel of its own: this file stands in for uring.c.
 *
 * Programs put requests into the queues of two rings. Two threads are Python: they answer what is passed on, in any order,
 * with what the request brought, and now and then twice, too long, or to nobody. Some requests make no sense. In the end the
 * kernel unmounts while all are at work.
 *
 * As the true one the kernel works for a ring only while its thread is in uring_enter(). */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "frontend_private.h"
#include "fuse_uring.h"
#include "uring.h"

enum { RINGS = 2, QUEUES = 3, SLOTS = 8, SPARES = 3, ALL = SLOTS + SPARES, PROGRAMS = 12, PYTHONS = 2, MOST_BYTES = 3000, RING_ENTRIES = 64 };
enum { WELL, TOO_SHORT, OP_TOO_LONG, PAYLOAD_TOO_LONG, KINDS };
enum { WAITING, TAKEN, DONE };

struct request {
    struct request *next;
    uint64_t unique;
    uint32_t kind, bytes, op_bytes, queue;
    int state, error;
    uint32_t answer_bytes;
    uint8_t answer[MOST_BYTES];
};

struct entry {
    struct fuse_uring_req_header *headers;
    uint8_t *payload;
    uint16_t queue;
    int registered;
    struct request *request;
};

struct kernel {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    struct request *waiting; /* the newest first: any order will do */
    atomic_int pending;
    int file, kick_fd, dead, refuses;
    struct entry entry[ALL];
    struct io_uring_cqe cqes[4 * RING_ENTRIES];
    uint32_t head, tail;
    struct pollfd polls[16];
    uint64_t poll_data[16];
    uint32_t poll_count, submitted;
    uint8_t sqes[RING_ENTRIES][URING_SQE_BYTES];
};

static struct kernel kernels[RINGS];
static struct request asked[PROGRAMS];
static struct datamap *map;
static struct ledger *ledger;
static struct frontend *fe;
static int python_fd, rings_fd;
static atomic_ulong served, refused_again, made_no_sense;

static void require(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "entries_race: %s\n", what);
    exit(1);
}

static uint8_t content(uint64_t unique, uint32_t at)
{
    return (uint8_t)(unique * 31 + at * 7);
}

/* The sanitizer does not know that a message has left its memory before it is received: it does not see this one. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return syscall(SYS_sendmsg, fd, message, flags);
}

/* ---- uring.h ------------------------------------------------------------------------------------------------------ */

int uring_open(struct uring *r, uint32_t entries, int file)
{
    require(entries <= RING_ENTRIES, "more submissions than are needed");
    *r = (struct uring){.fd = 0};
    while (kernels[r->fd].file != file)
        r->fd++;
    return 0;
}

void uring_close(struct uring *r)
{
    (void)r;
}

struct io_uring_sqe *uring_sqe(struct uring *r)
{
    uint8_t *sqe = kernels[r->fd].sqes[r->tail++ % RING_ENTRIES];
    require(++r->unsubmitted <= RING_ENTRIES, "no room for a submission");
    return memset(sqe, 0, URING_SQE_BYTES);
}

static void complete(struct kernel *k, uint64_t user_data, int result)
{
    require(k->tail - k->head < 4 * RING_ENTRIES, "completions overflow");
    k->cqes[k->tail++ % (4 * RING_ENTRIES)] = (struct io_uring_cqe){.user_data = user_data, .res = result};
}

/* With the lock held. */
static void take_answer(struct kernel *k, struct entry *e, uint64_t commit_id)
{
    struct request *request = e->request;
    struct fuse_out_header out;
    memcpy(&out, e->headers->in_out, sizeof out);
    require(request && commit_id == ~request->unique, "an answer to a request that the entry does not have");
    require(out.error || out.unique == request->unique, "another request's answer");
    require(out.len == sizeof out + e->headers->ring_ent_in_out.payload_sz, "an answer's length is not that of its data");
    e->request = NULL;
    request->error = out.error;
    request->answer_bytes = out.len - (uint32_t)sizeof out;
    require(request->answer_bytes <= MOST_BYTES, "a long answer");
    memcpy(request->answer, e->payload, request->answer_bytes);
    request->state = DONE;
    pthread_cond_broadcast(&k->answered);
}

static void submit(struct kernel *k, uint32_t ring, const struct io_uring_sqe *sqe)
{
    struct fuse_uring_cmd_req command;
    memcpy(&command, (const uint8_t *)sqe + URING_CMD_AT, sizeof command);
    if (sqe->opcode == IORING_OP_POLL_ADD) {
        require(k->poll_count < 15, "too many polls");
        k->polls[k->poll_count] = (struct pollfd){.fd = sqe->fd, .events = (short)sqe->poll32_events};
        k->poll_data[k->poll_count++] = sqe->user_data;
        return;
    }
    require(sqe->opcode == IORING_OP_URING_CMD && sqe->user_data < ALL, "an unknown submission");
    require(command.qid < QUEUES && command.qid % RINGS == ring, "another ring's queue");
    struct entry *e = &k->entry[sqe->user_data];
    if (sqe->cmd_op == FUSE_IO_URING_CMD_REGISTER) {
        const struct iovec *memory = (const struct iovec *)(uintptr_t)sqe->addr;
        if (k->refuses) {
            complete(k, sqe->user_data, -EINVAL);
            return;
        }
        require(sqe->len == 2 && memory[0].iov_len >= sizeof *e->headers && memory[1].iov_len >= FE_MAX_WRITE, "memory");
        *e = (struct entry){memory[0].iov_base, memory[1].iov_base, command.qid, 1, NULL};
    } else if (k->dead) {
        complete(k, sqe->user_data, -ENOTCONN);
    } else {
        require(command.qid == e->queue, "the entry has changed its queue");
        take_answer(k, e, command.commit_id);
    }
}

/* Lays the request into the entry, as it is or as it never should be. */
static void give(struct kernel *k, uint32_t index, struct request *request)
{
    struct entry *e = &k->entry[index];
    struct fuse_uring_req_header *h = e->headers;
    struct fuse_in_header in = {.opcode = 1 + request->unique % 60, .unique = request->unique};
    uint32_t payload = request->bytes;
    in.len = (uint32_t)sizeof in + request->op_bytes + payload;
    if (request->kind == TOO_SHORT)
        in.len = (uint32_t)sizeof in + payload - 1;
    if (request->kind == OP_TOO_LONG)
        in.len = (uint32_t)sizeof in + FUSE_URING_OP_IN_OUT_SZ + 1 + payload;
    if (request->kind == PAYLOAD_TOO_LONG) {
        payload = FE_MAX_WRITE + 1;
        in.len = (uint32_t)sizeof in + request->op_bytes + payload;
    }
    if (in.opcode == FUSE_FORGET || in.opcode == FUSE_BATCH_FORGET || in.opcode == FUSE_INTERRUPT || in.opcode == FUSE_INIT)
        in.opcode = 60; /* these come through /dev/fuse */
    for (uint32_t i = 0; i < request->op_bytes; i++)
        h->op_in[i] = content(request->unique, i);
    for (uint32_t i = 0; i < request->bytes; i++)
        e->payload[i] = content(request->unique, request->op_bytes + i);
    memcpy(h->in_out, &in, sizeof in);
    h->ring_ent_in_out = (struct fuse_uring_ent_in_out){.commit_id = ~request->unique, .payload_sz = payload};
    e->request = request;
    request->state = TAKEN;
    complete(k, index, 0);
}

static void give_all(struct kernel *k)
{
    for (uint32_t i = 0; i < ALL && k->waiting; i++) {
        if (!k->entry[i].registered || k->entry[i].request)
            continue;
        struct request *request = k->waiting;
        k->waiting = request->next;
        give(k, i, request);
    }
    atomic_store(&k->pending, 0);
}

static void unmount(struct kernel *k)
{
    for (uint32_t i = 0; i < ALL; i++) {
        if (k->entry[i].registered && !k->entry[i].request)
            complete(k, i, -ENOTCONN);
        k->entry[i].registered = 0;
    }
}

int uring_enter(struct uring *r, uint32_t wait, uint64_t bound_ns)
{
    struct kernel *k = &kernels[r->fd];
    for (int slept = 0;; slept = 1) {
        pthread_mutex_lock(&k->lock);
        for (; r->unsubmitted; r->unsubmitted--, k->submitted++)
            submit(k, (uint32_t)r->fd, (const struct io_uring_sqe *)k->sqes[k->submitted % RING_ENTRIES]);
        if (k->dead)
            unmount(k);
        else
            give_all(k);
        pthread_mutex_unlock(&k->lock);
        k->polls[k->poll_count] = (struct pollfd){.fd = k->kick_fd, .events = POLLIN};
        int bound_ms = !wait || k->tail != k->head ? 0 : bound_ns == UINT64_MAX ? -1 : (int)(bound_ns / 1000000 + 1);
        if (poll(k->polls, k->poll_count + 1, bound_ms) <= 0)
            return 0;
        uint64_t count;
        if (k->polls[k->poll_count].revents)
            require(read(k->kick_fd, &count, sizeof count) > 0, "no kick");
        for (uint32_t i = k->poll_count; i-- > 0;) {
            if (!k->polls[i].revents)
                continue;
            complete(k, k->poll_data[i], k->polls[i].revents);
            k->polls[i] = k->polls[--k->poll_count];
            k->poll_data[i] = k->poll_data[k->poll_count];
        }
        if (slept || !wait)
            return 0;
    }
}

int uring_pending(const struct uring *r)
{
    return atomic_load(&kernels[r->fd].pending);
}

const struct io_uring_cqe *uring_cqe(const struct uring *r)
{
    struct kernel *k = &kernels[r->fd];
    return k->head == k->tail ? NULL : &k->cqes[k->head % (4 * RING_ENTRIES)];
}

void uring_seen(struct uring *r)
{
    kernels[r->fd].head++;
}

/* ---- programs ----------------------------------------------------------------------------------------------------- */

static void check(const struct request *request)
{
    if (request->kind != WELL) {
        require(request->error == -EIO && !request->answer_bytes, "nonsense that was not refused");
        atomic_fetch_add(&made_no_sense, 1);
        return;
    }
    uint32_t bytes = request->op_bytes + request->bytes;
    if (request->unique % 16 == 6) { /* Python's answer was too long */
        require(request->error == -EIO, "an answer longer than its entry");
        return;
    }
    require(!request->error && request->answer_bytes == bytes, "an answer of another length");
    for (uint32_t i = 0; i < bytes; i++)
        require(request->answer[i] == content(request->unique, i), "an answer with other data");
    atomic_fetch_add(&served, 1);
}

static void *ask(void *argument)
{
    uint32_t number = (uint32_t)(uintptr_t)argument;
    struct kernel *k = &kernels[number % RINGS];
    unsigned seed = number + 1;
    struct request *request = &asked[number];
    for (uint64_t i = 1;; i++) {
        *request = (struct request){.unique = 2 * (i * PROGRAMS + number), .bytes = (uint32_t)rand_r(&seed) % (MOST_BYTES - 200) + 1,
                                    .op_bytes = (uint32_t)rand_r(&seed) % 128};
        request->kind = rand_r(&seed) % 16 ? WELL : 1 + (uint32_t)rand_r(&seed) % (KINDS - 1);
        pthread_mutex_lock(&k->lock);
        if (k->dead)
            break;
        request->next = k->waiting;
        k->waiting = request;
        atomic_store(&k->pending, 1);
        fe_signal(k->kick_fd);
        struct timespec end;
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_sec += 10;
        while (request->state != DONE && !k->dead)
            require(!pthread_cond_timedwait(&k->answered, &k->lock, &end), "no answer within ten seconds");
        if (request->state != DONE)
            break;
        pthread_mutex_unlock(&k->lock);
        check(request);
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

/* ---- Python ------------------------------------------------------------------------------------------------------- */

static void answer(const uint8_t *message, uint32_t length)
{
    struct fuse_in_header in;
    static __thread uint8_t reply[sizeof(struct fuse_out_header) + FE_MAX_WRITE + 1];
    memcpy(&in, message, sizeof in);
    uint32_t bytes = length - (uint32_t)sizeof in;
    uint64_t unique = in.unique & 0xffffffffffff;
    require(in.len == length, "a request that is not in one piece");
    for (uint32_t i = 0; i < bytes; i++)
        require(message[sizeof in + i] == content(unique, i), "a request with other data");
    memcpy(reply + sizeof(struct fuse_out_header), message + sizeof in, bytes);
    if (unique % 16 == 6)
        bytes = FE_MAX_WRITE + 1;
    struct fuse_out_header out = {.len = (uint32_t)sizeof out + bytes, .unique = in.unique};
    memcpy(reply, &out, sizeof out);
    if (unique % 10 == 4) {
        struct fuse_out_header other = out;
        other.unique ^= 2;
        memcpy(reply, &other, sizeof other);
        require(fe_reply(fe, reply, out.len) == ENOENT, "an answer to a request that was not asked");
        memcpy(reply, &out, sizeof out);
    }
    require(!fe_reply(fe, reply, out.len), "an answer that is refused");
    if (unique % 10 == 8 && fe_reply(fe, reply, out.len) == ENOENT)
        atomic_fetch_add(&refused_again, 1);
    out.unique = in.unique | 1023ull << 54; /* no such entry */
    memcpy(reply, &out, sizeof out);
    require(fe_reply(fe, reply, out.len) == EINVAL, "an answer to an entry that does not exist");
}

static void *be_python(void *argument)
{
    (void)argument;
    uint8_t *message = malloc(FE_MAX_WRITE);
    for (ssize_t length; (length = recv(python_fd, message, FE_MAX_WRITE, 0)) > 0;)
        answer(message, (uint32_t)length);
    free(message);
    return NULL;
}

/* ---- all of it ---------------------------------------------------------------------------------------------------- */

static struct frontend *start(int *requests)
{
    int upcalls[2], device[2];
    require(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, upcalls) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, device), "sockets");
    struct fe_channel_config channels[RINGS + 1] = {0};
    for (int i = 0; i <= RINGS; i++)
        channels[i] = (struct fe_channel_config){.fuse_fd = dup(device[0]), .wakeup_fd = -1};
    for (int i = 0; i < RINGS; i++)
        kernels[i].file = channels[i].fuse_fd;
    struct fe_config config = {
        .requests_fd = requests[0], .upcalls_fd = upcalls[0], .ended_fd = eventfd(0, 0), .channels = channels,
        .channel_count = RINGS + 1, .slots = SLOTS, .spare_slots = SPARES, .ring_queues = QUEUES, .rings_fd = rings_fd, .map = map,
        .ledger = ledger, .last_wait_ns = 1000000000, .spin_ns = 1000};
    return fe_start(&config);
}

static void make_sockets(int *requests)
{
    require(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, requests), "sockets");
    int bytes = 4 << 20; /* the longest message has room, if we are root */
    setsockopt(requests[0], SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
}

/* A kernel that does not know of rings, or refuses their entries; nothing is served, and all ends. */
static void go_without_rings(int agreed, int error)
{
    int requests[2];
    uint64_t count;
    make_sockets(requests);
    fe = start(requests);
    require(fe != NULL, "not started");
    fe_begin_rings(fe, agreed);
    require(read(rings_fd, &count, sizeof count) > 0 && fe_rings_error(fe) == error, "what has become of the rings");
    require(!fe_stop(fe), "something is left");
    for (int i = 0; i < RINGS; i++)
        kernels[i].head = kernels[i].tail = kernels[i].poll_count = kernels[i].submitted = 0;
}

int main(int argc, char **argv)
{
    unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    int requests[2], count = 0;
    for (int i = 0; i < RINGS; i++) {
        pthread_mutex_init(&kernels[i].lock, NULL);
        pthread_cond_init(&kernels[i].answered, NULL);
        kernels[i].kick_fd = eventfd(0, EFD_NONBLOCK);
        kernels[i].refuses = 1;
    }
    map = dm_new(eventfd(0, 0));
    ledger = ledger_new();
    rings_fd = eventfd(0, 0);
    go_without_rings(0, EOPNOTSUPP);
    go_without_rings(1, EINVAL);
    for (int i = 0; i < RINGS; i++)
        kernels[i].refuses = 0;
    make_sockets(requests);
    python_fd = requests[1];
    fe = start(requests);
    require(fe != NULL, "not started");
    require(fe_rings_error(fe) == -1, "rings that nobody has agreed to");
    fe_begin_rings(fe, 1);
    pthread_t threads[PROGRAMS + PYTHONS];
    for (; count < PYTHONS; count++)
        require(!pthread_create(&threads[count], NULL, be_python, NULL), "no thread");
    for (uintptr_t i = 0; i < PROGRAMS; i++)
        require(!pthread_create(&threads[count++], NULL, ask, (void *)i), "no thread");
    sleep(seconds);
    unsigned long before = served;
    for (int i = 0; i < 1000 && served < before + 20; i++)
        usleep(10000);
    require(served >= before + 20, "all wait, and nothing happens");
    require(!fe_rings_error(fe), "the rings are not in use");
    for (int i = 0; i < RINGS; i++) {
        pthread_mutex_lock(&kernels[i].lock);
        kernels[i].dead = 1;
        pthread_cond_broadcast(&kernels[i].answered);
        pthread_mutex_unlock(&kernels[i].lock);
        fe_signal(kernels[i].kick_fd);
    }
    for (int i = PYTHONS; i < count; i++)
        pthread_join(threads[i], NULL);
    shutdown(python_fd, SHUT_RDWR);
    for (int i = 0; i < PYTHONS; i++)
        pthread_join(threads[i], NULL);
    require(!fe_stop(fe), "something is left");
    printf("served %lu again %lu nonsense %lu\n", served, refused_again, made_no_sense);
    require(served && refused_again && made_no_sense, "something did not happen");
    dm_free(map);
    ledger_free(ledger);
    return 0;
}
