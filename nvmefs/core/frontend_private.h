/* What the parts of the front end share; frontend.h names them. */
#ifndef NVMEFS_FRONTEND_PRIVATE_H
#define NVMEFS_FRONTEND_PRIVATE_H

#include <linux/fuse.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>

#include "datamap.h"
#include "deadline.h"
#include "frontend.h"
#include "ledger.h"
#include "ring.h"
#include "wakeup.h"

/* A WRITE's payload begins behind the two structures that precede it: reading the request to here lays the payload
 * on a page boundary, from where the drive takes it. */
enum { FE_HEADER_BYTES = FE_WRITE_HEADER_BYTES, FE_PAGE = 4096 };
_Static_assert(FE_HEADER_BYTES == sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in), "a WRITE's header");
enum { KILL_SUIDGID = 1 << 2 }; /* FUSE_WRITE_KILL_SUIDGID: the writer is no privileged one */
enum { FE_ABORT_REQUESTED = 0x07, FE_DO_NOT_RETRY = 0x4000 }; /* of a command's status */

/* A request on its way through, with its memory. */
struct fe_slot {
    struct fe_slot *next; /* in the backlog, or in line for a Flush */
    uint8_t *message;   /* FE_HEADER_BYTES before a page boundary */
    uint8_t *data;      /* that boundary; NULL: not DMA memory, for forwarding only */
    uint8_t *spare;     /* such memory, to be freed */
    uint64_t data_iova; /* 0: the drive does not reach it */
    struct fe_slot *lender; /* whose `data` it is for now, instead of own_data */
    uint8_t *own_data;
    uint64_t ticket;    /* of an FSYNC: what has to be flushed */
    uint32_t length;    /* of the message */
    uint32_t apart;     /* so many bytes of it, the last ones, are not behind the others but in `data` */
    uint32_t pending;   /* commands under way */
    uint32_t failed;
    uint32_t expired;   /* the time of one of them is over: the request fails, and is not tried again */
    uint32_t skip;      /* a read's first byte within `data` */
    uint32_t lent;      /* to Python, which writes from it */
    uint32_t fua;       /* a write that is durable when it has completed */
    uint32_t bytes;
    struct dm_file *file; /* NULL: no reading or writing under way */
};

struct fe_line {
    struct fe_slot *first, *last;
};

/* FSYNCs that wait for a Flush, and those that the one under way is for. */
struct fe_flush {
    struct fe_slot command; /* stands for it in `owner` */
    struct fe_line waiting, covered;
    uint64_t covers;
    int under_way;
};

struct channel;

/* How requests come from the kernel, and how answers go back. All but `reply` is called by the channel's thread. */
struct fe_transport {
    int holds;                        /* a slot that is passed on is not free before it is answered */
    int free_to_look;                 /* can_take() and take() cost no system call when there is nothing */
    int (*prepare)(struct channel *); /* before the thread starts; -1 with errno set */
    int (*begin)(struct channel *);   /* 0 or an errno; this, end, release, push and pending may be missing */
    void (*end)(struct channel *);
    void (*release)(struct channel *); /* after the thread has ended, or has not been started */
    int (*can_take)(struct channel *);
    /* 1: a request, in a slot that is the caller's; 0: there is none; -1: unmounted. */
    int (*take)(struct channel *, struct fe_slot **);
    void (*push)(struct channel *);   /* answers that have been kept back, to go together, go now; sleep() does that, too */
    int (*pending)(struct channel *); /* whether take() has something to do */
    /* Until there is something to do, bound_ns at most (UINT64_MAX: no bound). 1: there is; 0: none came; -1: the end. */
    int (*sleep)(struct channel *, uint64_t bound_ns);
    /* Returns 0 or an errno. The header says how long the data is. */
    int (*answer)(struct channel *, struct fe_slot *, const struct fuse_out_header *, const void *data);
    /* The same to a request that was passed on, from any thread. */
    int (*reply)(struct channel *, uint32_t place, const struct fuse_out_header *, const void *data);
    /* Of a request that is passed on now: a number below 1024 that its reply will be told. */
    uint32_t (*place_of)(struct channel *, struct fe_slot *);
    /* The request has been answered or passed on. */
    void (*free)(struct channel *, struct fe_slot *);
    /* The drive may still use the memory of a request that was passed on, and must get no other's. From any thread; may be
     * missing: a slot that does not come back is not used. */
    int (*forsake)(struct channel *, struct fe_slot *);
    /* The same after the answer to a request; may be missing as well. */
    void (*replace)(struct channel *, struct fe_slot *);
};

/* A thread with its descriptor of /dev/fuse and its queue pair. Nobody else touches what is not atomic. */
struct channel {
    struct frontend *fe;
    const struct fe_transport *transport;
    uint32_t index;
    pthread_t thread;
    int fuse_fd, wakeup_fd, naps, call_fd;
    atomic_int resting; /* until called */
    int may_rest;
    struct nv_ring *ring;
    struct fe_slot *slots;
    uint32_t slot_count;
    struct fe_slot **lenders; /* slots whose memory is lent to others (borrow.c): those that have it */
    uint32_t lender_count, lenders_left;
    struct fe_line short_of_memory;
    struct fe_entries *entries; /* entries.c's */
    uint8_t *own_memory;        /* of the slots for which nobody gave us any */
    uint64_t own_bytes;
    struct fe_slot **owner; /* by command slot */
    uint32_t *free_slots;
    uint32_t free_count;
    uint32_t busy; /* slots being served here */
    uint32_t lent_count;
    _Atomic uint64_t returned; /* lent slots that Python gives back: a bit for each */
    struct fe_line backlog; /* forwarded when the socket has room; until then nothing is read */
    struct fe_flush flush;
    uint32_t crowd, probe, rounds;
    uint32_t lingered_in_vain, lingers_left_out;
    uint64_t served; /* here, before the last linger */
    uint64_t next_look_ns; /* at deadlines */
    uint64_t nap_ns;
    uint32_t holding; /* the ring is ours: from the first command to the sleep after the last (driver/core/lease.h) */
    uint32_t epoch;
    _Atomic uint64_t requests, forwarded, upcalls, reads, writes, fsyncs, read_bytes, written_bytes, flushes, failed,
        expired, lost, calls, taken, lent, found, vain;
};

struct frontend {
    struct fe_config config;
    struct channel *channels;
    pthread_t replies;
    int stop_fd;
    sem_t begun; /* by each channel */
    atomic_int begin_error;
    atomic_int rings_wanted;    /* 1: the kernel has agreed to them; -1: it has not */
    atomic_uint rings_left;     /* which have not said what has become of them */
    atomic_int rings_error;
    atomic_uint running; /* channels */
    uint64_t served_before; /* take.c's */
    _Atomic uint64_t init_unique;
    _Atomic uint64_t init_offered;
    _Atomic uint64_t init_flags;
};

static inline void fe_count(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_fetch_add_explicit(counter, more, memory_order_relaxed);
}

static inline const struct fuse_in_header *fe_header(const struct fe_slot *slot)
{
    return (const struct fuse_in_header *)slot->message;
}

static inline void fe_line_add(struct fe_line *line, struct fe_slot *slot)
{
    slot->next = NULL;
    if (line->first)
        line->last->next = slot;
    else
        line->first = slot;
    line->last = slot;
}

static inline struct fe_slot *fe_line_take(struct fe_line *line)
{
    struct fe_slot *slot = line->first;
    if (slot)
        line->first = slot->next;
    return slot;
}

/* device.c */
extern const struct fe_transport fe_device;

/* entries.c */
extern const struct fe_transport fe_entries;

/* frontend.c */
/* How many channels have an io_uring: all but the last, or none. */
uint32_t fe_rings(const struct frontend *fe);
/* The kernel waits for the rings from now on, or did not agree to them. */
void fe_begin_rings(struct frontend *fe, int agreed);
/* One of them is in use, or will not be: an errno. */
void fe_ring_is(struct frontend *fe, int error);

/* channel.c */
void *fe_channel_thread(void *channel);
void fe_signal(int fd);
void fe_free_slot(struct channel *ch, struct fe_slot *slot);

/* hot.c */
/* 1: the request is being served (or has been answered); 0: it must be forwarded. */
int fe_serve(struct channel *ch, struct fe_slot *slot);
/* Sends the request's commands; its file is held. 1: it is being served, or has been answered; 0: nothing was done. */
int fe_submit(struct channel *ch, struct fe_slot *slot);
/* Takes completions and finishes requests. Returns how many commands completed. */
uint32_t fe_reap(struct channel *ch);

/* borrow.c */
void fe_may_lend(struct channel *ch, struct fe_slot *lender);
int fe_borrow(struct channel *ch, struct fe_slot *slot);
void fe_return(struct channel *ch, struct fe_slot *slot);
int fe_never_return(struct channel *ch, struct fe_slot *slot);
void fe_serve_waiting(struct channel *ch);

/* sync.c */
int fe_serve_fsync(struct channel *ch, struct fe_slot *slot);
void fe_flush_next(struct channel *ch);
void fe_flush_done(struct channel *ch, uint32_t status);
/* After a reset. */
void fe_flush_again(struct channel *ch);
void fe_flush_forward(struct channel *ch);

/* recovery.c */
/* 1: the ring is ours. */
int fe_enter(struct channel *ch);
void fe_leave(struct channel *ch);
/* To be called again and again while commands are under way: does what the driver wants. */
void fe_heed(struct channel *ch);
/* Looks at deadlines, if it is time to, and tells the driver of those that are over, or that nothing completes. */
void fe_look(struct channel *ch, int silent);
uint64_t fe_tick_ns(const struct channel *ch);
/* Answers EIO; none of the request's commands is under way. */
void fe_fail(struct channel *ch, struct fe_slot *slot);

/* forward.c */
/* Hands the request to Python, now or as soon as the socket has room. The slot is no longer the caller's. */
void fe_forward(struct channel *ch, struct fe_slot *slot);
int fe_pass(struct channel *ch, struct fe_slot *slot);
int fe_send_backlog(struct channel *ch);
/* Slots that were lent and have come back are free. */
void fe_collect(struct channel *ch);
int fe_python_fd(const struct channel *ch, const struct fe_slot *slot);
/* 0, or an errno: ENOENT where the request was interrupted, ENODEV after unmounting. Both need no action. */
int fe_answer(struct channel *ch, struct fe_slot *slot, int error, const void *data, uint32_t bytes);
void *fe_reply_thread(void *frontend);

/* init.c */
void fe_note_init(struct frontend *fe, const struct fe_slot *slot);
/* Not 0: it was the answer to FUSE_INIT. 1: with it the kernel waits for the rings; -1: it does not know them. */
int fe_complete_init(struct frontend *fe, uint8_t *reply, uint32_t length);

#endif
