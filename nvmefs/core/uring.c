#include "uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SETUP = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
};

static uint32_t load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void *map(int fd, uint64_t bytes, uint64_t what)
{
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)what);
}

/* Both rings are one mapping (IORING_FEAT_SINGLE_MMAP, as old as Linux 5.4). */
static int map_rings(struct uring *r, const struct io_uring_params *p)
{
    uint64_t sq = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    uint64_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    r->rings_bytes = sq > cq ? sq : cq;
    r->sqes_bytes = (uint64_t)p->sq_entries * URING_SQE_BYTES;
    r->rings = map(r->fd, r->rings_bytes, IORING_OFF_SQ_RING);
    r->sqes = map(r->fd, r->sqes_bytes, IORING_OFF_SQES);
    return r->rings == MAP_FAILED || r->sqes == MAP_FAILED ? -1 : 0;
}

static void lay_out(struct uring *r, const struct io_uring_params *p)
{
    uint8_t *base = r->rings;
    r->sq_tail = (uint32_t *)(base + p->sq_off.tail);
    r->sq_flags = (uint32_t *)(base + p->sq_off.flags);
    r->cq_head = (uint32_t *)(base + p->cq_off.head);
    r->cq_tail = (uint32_t *)(base + p->cq_off.tail);
    r->cqes = (const struct io_uring_cqe *)(base + p->cq_off.cqes);
    r->sq_mask = p->sq_entries - 1;
    r->cq_mask = p->cq_entries - 1;
    uint32_t *array = (uint32_t *)(base + p->sq_off.array);
    for (uint32_t i = 0; i < p->sq_entries; i++)
        array[i] = i; /* submissions are made in order */
}

int uring_open(struct uring *r, uint32_t entries, int file)
{
    struct io_uring_params p = {.flags = SETUP};
    *r = (struct uring){.rings = MAP_FAILED, .sqes = MAP_FAILED};
    r->fd = (int)syscall(SYS_io_uring_setup, entries, &p);
    if (r->fd < 0)
        return errno;
    if (map_rings(r, &p) || syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES, &file, 1)) {
        int error = errno;
        uring_close(r);
        return error;
    }
    lay_out(r, &p);
    return 0;
}

void uring_close(struct uring *r)
{
    if (r->rings != MAP_FAILED)
        munmap(r->rings, r->rings_bytes);
    if (r->sqes != MAP_FAILED)
        munmap(r->sqes, r->sqes_bytes);
    close(r->fd);
}

struct io_uring_sqe *uring_sqe(struct uring *r)
{
    struct io_uring_sqe *sqe = (struct io_uring_sqe *)(r->sqes + (uint64_t)(r->tail & r->sq_mask) * URING_SQE_BYTES);
    memset(sqe, 0, URING_SQE_BYTES);
    r->tail++;
    r->unsubmitted++;
    return sqe;
}

int uring_enter(struct uring *r, uint32_t wait, uint64_t bound_ns)
{
    struct __kernel_timespec bound = {
        .tv_sec = (int64_t)(bound_ns / 1000000000u), .tv_nsec = (long long)(bound_ns % 1000000000u)};
    struct io_uring_getevents_arg more = {.ts = bound_ns < UINT64_MAX ? (uint64_t)(uintptr_t)&bound : 0};
    __atomic_store_n(r->sq_tail, r->tail, __ATOMIC_RELEASE);
    long done = syscall(SYS_io_uring_enter, r->fd, r->unsubmitted, wait, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &more,
                        sizeof more);
    if (done >= 0) {
        r->unsubmitted -= (uint32_t)done;
        return 0;
    }
    return errno; /* nothing was submitted */
}

int uring_pending(const struct uring *r)
{
    return (load(r->sq_flags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

const struct io_uring_cqe *uring_cqe(const struct uring *r)
{
    uint32_t head = *r->cq_head;
    return head == load(r->cq_tail) ? NULL : &r->cqes[head & r->cq_mask];
}

void uring_seen(struct uring *r)
{
    __atomic_store_n(r->cq_head, *r->cq_head + 1, __ATOMIC_RELEASE);
}
