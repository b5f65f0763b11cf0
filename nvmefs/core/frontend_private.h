/* What the parts of the front end share: frontend.c (threads, forwarding), hot.c (data) and recovery.c. */
#ifndef NVMEFS_FRONTEND_PRIVATE_H
#define NVMEFS_FRONTEND_PRIVATE_H

#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "datamap.h"
#include "deadline.h"
#include "frontend.h"
#include "ring.h"
#include "wakeup.h"

/* A WRITE's payload begins behind the two structures that precede it: reading the request to here lays the payload
 * on a page boundary, from where the drive takes it. */
enum { FE_HEADER_BYTES = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in), FE_PAGE = 4096 };
enum { KILL_SUIDGID = 1 << 2 }; /* FUSE_WRITE_KILL_SUIDGID: the writer is no privileged one */

/* A request on its way through, with its memory. */
struct fe_slot {
    struct fe_slot *next; /* in the backlog */
    uint8_t *message;   /* FE_HEADER_BYTES before a page boundary */
    uint8_t *data;      /* that boundary; NULL: not DMA memory, for forwarding only */
    uint8_t *spare;     /* such memory, to be freed */
    uint64_t data_iova;
    uint32_t length;    /* of the message */
    uint32_t pending;   /* commands under way */
    uint32_t failed;
    uint32_t expired;   /* the time of one of them is over: the request fails, and is not tried again */
    uint32_t skip;      /* a read's first byte within `data` */
    uint32_t bytes;
    struct dm_file *file; /* NULL: not being served here */
};

struct frontend {
    struct fe_config config;
    struct nv_ring *ring;
    struct fe_slot *slots;
    struct fe_slot **owner; /* by command slot */
    uint32_t *free_slots;
    uint32_t free_count;
    uint32_t busy; /* slots with commands under way */
    struct fe_slot *backlog, *backlog_last; /* forwarded when the socket has room; until then nothing is read */
    pthread_t channel, replies;
    int stop_fd;
    uint32_t crowd, probe, rounds;
    uint64_t next_look_ns; /* at deadlines */
    uint64_t nap_ns;
    uint32_t holding; /* the ring is ours: from the first command to the sleep after the last (driver/core/lease.h) */
    uint32_t epoch;
    _Atomic uint64_t init_unique;
    _Atomic uint64_t init_offered;
    _Atomic uint64_t requests, forwarded, upcalls, reads, writes, read_bytes, written_bytes, failed, expired, lost;
};

/* 1: the request is being served (or has been answered); 0: it must be forwarded. */
int fe_serve(struct frontend *fe, struct fe_slot *slot);
/* Sends the request's commands; its file is held. 1: it is being served, or has been answered; 0: nothing was done. */
int fe_submit(struct frontend *fe, struct fe_slot *slot);
/* Takes completions and finishes requests. Returns how many commands completed. */
uint32_t fe_reap(struct frontend *fe);
/* 1: the ring is ours. */
int fe_enter(struct frontend *fe);
void fe_leave(struct frontend *fe);
/* To be called again and again while commands are under way: does what the driver wants. */
void fe_heed(struct frontend *fe);
/* Looks at deadlines, if it is time to, and tells the driver of those that are over, or that nothing completes. */
void fe_look(struct frontend *fe, int silent);
uint64_t fe_tick_ns(const struct frontend *fe);
/* Answers EIO; none of the request's commands is under way. */
void fe_fail(struct frontend *fe, struct fe_slot *slot);
/* Hands the request to Python, now or as soon as the socket has room. The slot is no longer the caller's. */
void fe_forward(struct frontend *fe, struct fe_slot *slot);
void fe_free_slot(struct frontend *fe, struct fe_slot *slot);
int fe_answer(struct frontend *fe, uint64_t unique, int error, const void *data, uint32_t bytes);

#endif
