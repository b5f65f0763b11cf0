/* An io_uring of one thread's, by its three system calls.
 *
 *     uring_open(&r, 128, fd)                   the thread that calls this is the only one that may use it
 *     sqe = uring_sqe(&r); ... fill it in ...   any number of times
 *     uring_enter(&r, 1, bound_ns)              submits them, and waits for a completion
 *     while ((cqe = uring_cqe(&r))) ... uring_seen(&r)
 *     uring_close(&r)
 *
 * Not liburing: it would be a dependency for what is 120 lines here, and of its functions inlined code would be all that
 * is used. The kernel works for the thread only while that is in uring_enter() (IORING_SETUP_DEFER_TASKRUN): nothing is
 * interrupted, and no memory changes under the thread's hands.
 *
 * Below: nothing. Above: entries.c. io_uring(7), io_uring_setup(2), io_uring_enter(2).
 */
#ifndef NVMEFS_URING_H
#define NVMEFS_URING_H

#include <linux/io_uring.h>
#include <stdint.h>

enum { URING_SQE_BYTES = 128, URING_CMD_AT = 48 }; /* where the command of IORING_OP_URING_CMD begins */

struct uring {
    int fd;
    uint8_t *sqes;
    const struct io_uring_cqe *cqes;
    uint32_t *sq_tail, *sq_flags, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask;
    uint32_t tail;        /* of the submissions, ours */
    uint32_t unsubmitted; /* up to there */
    void *rings;
    uint64_t rings_bytes, sqes_bytes;
};

/* Room for `entries` submissions (a power of two); `file` becomes its file 0. 0 or an errno, with nothing left behind. */
int uring_open(struct uring *r, uint32_t entries, int file);
void uring_close(struct uring *r);
/* The next submission, zeroed. There is room: the caller has no more under way than it asked for. */
struct io_uring_sqe *uring_sqe(struct uring *r);
/* Submits, and waits until there are `wait` completions, bound_ns at most (UINT64_MAX: no bound). 0; ETIME; EINTR; or what
 * is wrong. */
int uring_enter(struct uring *r, uint32_t wait, uint64_t bound_ns);
/* Whether the kernel has completions that only uring_enter() brings. */
int uring_pending(const struct uring *r);
const struct io_uring_cqe *uring_cqe(const struct uring *r);
void uring_seen(struct uring *r);

#endif
