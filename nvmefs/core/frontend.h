/* The front end: C threads on /dev/fuse. What they can serve from published maps they serve; all else is forwarded.
 *
 * Below: datamap.h, ledger.h, driver/core/ring.h (an NVMe queue pair for each thread).  Above: nvmefs/frontend.py.
 *
 *     kernel --read--> channels ------+-- READ, WRITE, FSYNC of a published file --> queue pair --> reply
 *                                     +-- what `upcalls` says ------------> upcalls_fd  --> frontend.py --> fe_reply()
 *                                     +-- all else, unchanged ---------------> requests_fd --> pyfuse3
 *     kernel <-write-- reply thread <----------------------------------------- requests_fd <-- replies, notifications
 *
 * pyfuse3 takes the other end of requests_fd (SOCK_SEQPACKET: one message, one request) for /dev/fuse. The kernel wants
 * the answer to a request where it was taken from: the channel's number travels in the top bits of `unique` (forward.c).
 * The data of a large WRITE stays in its slot meanwhile, lent to Python.
 *
 *     frontend.c  life                    channel.c  a thread: when it looks, when it sleeps
 *     init.c      FUSE_INIT completed     device.c   requests from /dev/fuse
 *     take.c      Python as the reader    entries.c  requests from the kernel's queues (uring.c: through an io_uring)
 *     hot.c       READ, WRITE             borrow.c   memory for those that come in none that the drive reaches
 *     sync.c      FSYNC                   forward.c  to Python and back
 *     recovery.c  commands that do not come back, and controllers that are reset
 *
 * A request that a command fails for is forwarded too: Python tries again, and says what is wrong.
 */
#ifndef NVMEFS_FRONTEND_H
#define NVMEFS_FRONTEND_H

#include <stdint.h>

/* cffi: begin */
enum {
    FE_MAX_WRITE = 1048576,
    FE_SLOT_BYTES = 1052672, /* one page for the request's header, then its data, page aligned */
    FE_MAX_CHANNELS = 64,
    FE_LEND_FROM = 16384, /* bytes of a forwarded WRITE that are lent, not copied */
    FE_FUA_STREAK = 3,     /* fsyncs in succession, one write before each, after which writes are made durable by themselves */
    FE_FUA_BYTES = 65536,  /* of such a write, at most */
    FE_WRITE_HEADER_BYTES = 80, /* struct fuse_in_header and struct fuse_write_in */
};

/* Follows the header of a forwarded WRITE whose data stays where it is, in the memory of this channel behind the first page
 * of this slot, until fe_give_back(). */
struct fe_lent {
    uint32_t channel, slot;
};

/* What one thread has for itself. */
struct fe_channel_config {
    int fuse_fd; /* what was mounted, or a clone of it (FUSE_DEV_IOC_CLONE) */
    void *ring;  /* struct nv_ring; NULL: nothing is served here */
    int wakeup_fd; /* driver/core/wakeup.h */
    int naps;      /* no interrupt wakes us: look again and again while commands are under way */
    uint8_t *memory; /* slots * FE_SLOT_BYTES of DMA memory; NULL without a ring: ordinary memory of its own */
    uint64_t memory_iova;
};

struct fe_config {
    int requests_fd; /* pyfuse3 has the other end */
    int upcalls_fd;  /* frontend.py has the other end */
    uint64_t upcalls; /* which requests go there: a bit for each opcode */
    int ended_fd;    /* eventfd, written when the kernel has unmounted and all threads have ended */
    uint64_t want_flags; /* FUSE_INIT flags to ask for where the kernel offers them */
    uint64_t refuse_flags; /* and those that libfuse asks for and we do not want */
    uint32_t max_background;
    uint32_t congestion_threshold;
    const struct fe_channel_config *channels;
    uint32_t channel_count;
    uint32_t slots; /* of each channel */
    uint32_t spare_slots; /* of each channel with an io_uring, in ordinary memory of its own */
    uint32_t ring_queues; /* of the kernel, one for each possible CPU: all channels but the last have an io_uring for their
                             share of them. 0: none has one */
    int rings_fd;         /* eventfd, written when it is known what has become of them */
    struct datamap *map;
    struct ledger *ledger;
    uint64_t unmarked_handles; /* reads by a handle with one of these bits leave the file's access time alone */
    int volatile_cache; /* of the drive: without one nothing is flushed */
    int fua;            /* the drive honours Force Unit Access */
    int restless; /* looks without sleeping while commands are under way */
    uint32_t nsid;
    uint32_t lbas_per_block;
    uint32_t max_transfer_blocks;
    uint64_t timeout_ns; /* deadline of a command; 0: none */
    uint64_t grace_ns;   /* and what it gets when that has passed */
    uint64_t last_wait_ns; /* for commands under way when the mount has ended */
    uint32_t spin_ns; /* how long a completion is spun for before sleeping; twice that the next request */
};

struct fe_statistics {
    uint64_t requests, forwarded, upcalls;
    uint64_t reads, writes, fsyncs; /* served here */
    uint64_t read_bytes, written_bytes;
    uint64_t flushes; /* Flush commands, for all those fsyncs */
    uint64_t failed; /* served here at first, then forwarded because a command failed */
    uint64_t expired; /* failed: the time of a command was over */
    uint64_t lost;    /* commands of a controller that was given up: their memory is not used again */
    uint64_t calls;   /* of a further thread, because there was a crowd */
    uint64_t taken;   /* upcalls that Python has read itself */
    uint64_t lent;    /* upcalls whose data was not copied */
    uint64_t found;   /* requests that came while a thread looked about before it slept, */
    uint64_t vain;    /* and how often none came */
    uint64_t init_flags; /* what was agreed upon */
};

struct frontend *fe_start(const struct fe_config *config);
int fe_take(struct frontend *fe, int upcalls, int other, uint64_t ns, uint8_t *buffer, uint32_t size);
void fe_taken(struct frontend *fe);
int fe_reply(struct frontend *fe, const void *message, uint32_t length);
void fe_give_back(struct frontend *fe, struct fe_lent lent);
int fe_forsake(struct frontend *fe, struct fe_lent lent);
int fe_rings_error(struct frontend *fe);
void fe_statistics(struct frontend *fe, struct fe_statistics *out);
uint64_t fe_lost(struct frontend *fe);
void fe_end(struct frontend *fe);
int fe_stop(struct frontend *fe);
/* cffi: end */

#endif
