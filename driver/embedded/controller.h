/*
 * The embedded controller: what the host's side may call, and below it what its own files share.
 *
 * Files, bottom up: dma, cache, backend, prp and sgl (PRPs and SGLs to host memory), queues (rings, doorbells, interrupts),
 * identify, features, log, events, namespace, admin, io and copy (commands), faults, engine (the thread), registers and
 * controller (host's side), misfortune.
 */
#ifndef EMBEDDED_CONTROLLER_H
#define EMBEDDED_CONTROLLER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backend.h"
#include "dma.h"
#include "faults.h"
#include "nvme.h"

#define MAX_IO_QUEUES 511u        /* queue pairs beside the admin pair whose doorbells fit one page */
#define MAX_VECTORS 2048u         /* MSI-X table limit */
#define DOORBELL_BYTES 4096u
#define MIN_PAGE_BITS 12u         /* CAP.MPSMIN */
#define MAX_PAGE_BITS 16u         /* CAP.MPSMAX */
#define ASYNC_EVENT_LIMIT 4u      /* Asynchronous Event Requests held at a time (AERL + 1) */
#define EVENT_QUEUE 8u
#define ERROR_LOG_ENTRIES 64u     /* ELPE + 1 */
#define BURST_COMMANDS 32u        /* commands of one queue before the next queue's turn */
#define BURST_BYTES (128u * 1024) /* ... and bytes, so that a completion's interrupt never waits for long */
#define BOUNCE_BYTES (64u * 1024)

/* SGLs: not offered, or with data blocks of any length and place, or of whole dwords only. */
enum { SGL_NONE, SGL_BYTE, SGL_DWORD };

/* What one command may ask for beyond MDTS; 0: no limit, but for Copy, which then has limits of its own. */
struct command_limits {
    uint32_t verify_bytes;       /* VSL: 4096 << n */
    uint32_t write_zeroes_bytes; /* WZSL: 4096 << n */
    uint8_t ranges;              /* DMRL */
    uint32_t range_blocks;       /* DMRSL */
    uint64_t deallocate_blocks;  /* DMSL */
    uint16_t copy_range_blocks;  /* MSSRL */
    uint32_t copy_blocks;        /* MCL */
    uint16_t copy_ranges;        /* MSRC + 1, at most 256 */
};

struct controller_options {
    int image_fd;                /* stays the caller's; -1 for the null backend */
    uint64_t image_bytes;
    uint32_t lba_bytes;          /* 512 or 4096 */
    uint32_t queue_entries;      /* CAP.MQES + 1, 2..65536 */
    uint32_t max_transfer_bytes; /* MDTS: 4096 << n with n >= 1, or 0 for no limit */
    uint32_t io_queues;          /* granted at most, 1..511 */
    uint32_t vectors;            /* interrupt vectors, 1..2048 */
    uint32_t poll_ns;            /* longest busy wait for the next doorbell; 0: always sleep at once */
    uint32_t tear_bytes;         /* what a power cut never tears, where there is a volatile cache; 0: there is none */
    bool read_only;
    bool shadow_doorbells;
    uint8_t sgl;                 /* SGL_NONE, SGL_BYTE or SGL_DWORD */
    struct command_limits limits;
    uint8_t uuid[16];            /* stable name of the namespace */
};

/* Counted since creation. Written by the controller's thread alone, readable at any time. */
struct controller_statistics {
    uint64_t commands;
    uint64_t interrupts;
    uint64_t sleeps;       /* times the thread blocked */
    uint64_t polls;        /* busy waits that found work */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t errors;       /* commands completed with an error */
    uint64_t media_errors;
    uint64_t fault_hits;     /* commands and transitions that a rule acted on */
    uint64_t stray_accesses; /* commands that named memory which is not mapped */
};

/* Blocks that were given back. */
struct deallocated {
    uint64_t lba;
    uint64_t blocks;
};

struct controller;

/* The host's side. Every function may be called from any thread, except that destroy is called once and last.
 * Errors are negative errno values. */
int controller_create(const struct controller_options *options, struct controller **out);
void controller_destroy(struct controller *c); /* joins the thread; nothing of the host is touched afterwards */
uint64_t controller_read(struct controller *c, uint32_t offset, uint32_t bytes);
void controller_write(struct controller *c, uint32_t offset, uint64_t value, uint32_t bytes);
int controller_map(struct controller *c, int fd, uint64_t offset, uint64_t length, uint64_t iova);
int controller_unmap(struct controller *c, uint64_t iova, uint64_t length);
int controller_set_interrupts(struct controller *c, const int *eventfds, uint32_t count); /* duplicated; -1: none */
void controller_reset(struct controller *c); /* function level: registers as after power-up; DMA and interrupts stay */
/* A host that maps the doorbells may have nothing to kick with: then they are looked at, at growing intervals. */
void controller_look_at_doorbells(struct controller *c, bool look);
/* The host is another process. A monitor takes memory away for a moment when its guest's map changes: queues that
 * lose theirs wait until it is mapped again, which otherwise is a fatal error. Its eventfds may block. */
void controller_serve_others(struct controller *c, bool serve);
/* The image has now so many bytes (whole blocks count): the host is told by an asynchronous event. */
int controller_resize(struct controller *c, uint64_t image_bytes);
int controller_set_faults(struct controller *c, const struct fault_plan *plan); /* takes the place of the last one */
/* Everything stops and the registers read all-ones; of what the volatile cache holds some reaches the image. */
int controller_power_cut(struct controller *c, uint64_t seed);
void *controller_doorbells(struct controller *c);
int controller_doorbell_fd(struct controller *c); /* a memfd laid out as BAR0: the doorbells are at 0x1000 */
int controller_kick_fd(struct controller *c);
uint64_t controller_cpu_ns(struct controller *c); /* CPU time of the controller's thread */
void controller_get_statistics(struct controller *c, struct controller_statistics *out);
/* The ranges of Dataset Management that were carried out since the last call, in order, at most `most` of them. The
 * first call begins the log. -EOVERFLOW: there were more than it can keep. */
int controller_take_deallocated(struct controller *c, struct deallocated *out, uint32_t most);

/* ---- shared by the controller's own files ------------------------------------------------------------ */

struct completion_queue {
    struct nvme_completion *entries; /* NULL: no such queue */
    uint32_t *head_doorbell;         /* in the doorbell page or in the shadow buffer */
    uint32_t *head_event;            /* event index, NULL without shadow doorbells */
    uint64_t iova;
    uint32_t size; /* entries */
    uint32_t tail; /* where the next completion goes */
    uint32_t head; /* as last taken from the doorbell: entries before it are the host's no more */
    uint32_t bad_head; /* invalid doorbell value already reported, or NO_VALUE */
    uint32_t vector;
    uint32_t submission_queues; /* that complete here */
    uint16_t id;
    uint8_t phase;
    bool interrupts;
    bool signal_due; /* completions were posted since the last interrupt */
};

struct submission_queue {
    const struct nvme_command *entries; /* NULL: no such queue */
    uint32_t *tail_doorbell;
    uint32_t *tail_event;
    struct completion_queue *cq;
    uint64_t iova;
    uint32_t size;
    uint32_t head; /* next command to fetch */
    uint32_t tail; /* as last taken from the doorbell */
    uint32_t bad_tail;
    uint16_t id;
};

#define NO_VALUE 0xffffffffu

struct async_event {
    uint8_t type, info, page;
};

enum { EVENT_ERROR = 0, EVENT_SMART = 1, EVENT_NOTICE = 2 };
enum { EVENT_INVALID_DOORBELL = 0x00, EVENT_INVALID_DOORBELL_VALUE = 0x01 };
enum { EVENT_SMART_TEMPERATURE = 0x01 };
enum { EVENT_NAMESPACE_CHANGED = 0x00 };
enum { LOG_ERROR = 1, LOG_SMART = 2, LOG_FIRMWARE = 3, LOG_CHANGED_NAMESPACES = 4, LOG_EFFECTS = 5 };

/* Figure 197, as far as this controller fills it. */
struct error_entry {
    uint64_t count;
    uint16_t sq_id;
    uint16_t cid;
    uint16_t status;
    uint16_t location;
    uint64_t lba;
    uint32_t nsid;
    uint8_t vendor;
    uint8_t transport;
    uint8_t reserved[2];
    uint64_t command_specific;
    uint8_t reserved2[24];
};
_Static_assert(sizeof(struct error_entry) == 64, "Figure 197");

struct features {
    uint32_t arbitration;
    uint32_t over_temperature;  /* kelvin */
    uint32_t under_temperature;
    uint32_t error_recovery;
    uint32_t write_cache; /* bit 0: enabled */
    uint32_t coalescing;
    uint32_t write_atomicity;
    uint32_t async_config;
    uint32_t granted_queues; /* 0: not asked for yet */
    uint8_t vector_config[(MAX_VECTORS + 7) / 8]; /* coalescing disabled, one bit a vector */
};

struct registers {
    uint32_t intms, cc, csts, aqa;
    uint64_t asq, acq;
};

struct controller {
    /* Set at creation, constant afterwards. */
    struct controller_options options;
    struct backend backend;
    uint64_t block_count;
    uint32_t block_bits;
    uint32_t iov_limit;
    int kick_fd;
    int doorbell_fd;
    uint32_t *doorbells; /* one page: SQ y tail at [2y], CQ y head at [2y + 1] */
    pthread_t thread;
    uint32_t poll_limit_ns; /* 0 when only one CPU is ours */
    bool thread_started;

    /* The host's threads and the controller's thread, under lock; never on the path of an I/O command. */
    pthread_mutex_t lock;
    pthread_cond_t call_done;
    struct registers regs;
    uint64_t cap_mask, cap_value; /* bits of CAP that are others than they should be */
    bool gone;            /* registers read all-ones, for good */
    bool reset_requested; /* CC.EN went from 1 to 0 */
    bool stop;
    void (*call)(struct controller *, void *); /* to run on the controller's thread, between commands */
    void *call_argument;
    pthread_mutex_t host_lock; /* one host thread at a time in map, unmap, set_interrupts */

    /* Crossing without the lock, by __atomic operations only. */
    uint32_t attention;            /* something under the lock wants the thread */
    uint32_t interrupt_mask;       /* INTMS/INTMC */
    struct dma_table *dma_published;
    struct controller_statistics statistics;

    /* The controller's thread only. */
    struct faults *faults; /* NULL: none were ever asked for */
    const struct dma_table *dma;
    bool enabled; /* between CC.EN = 1 accepted and reset */
    bool running; /* enabled, not failed, not shut down: commands are fetched */
    uint32_t page_bits;
    struct submission_queue *sqs; /* by queue id, [0] is the admin queue */
    struct completion_queue *cqs;
    uint16_t active[MAX_IO_QUEUES + 1]; /* submission queues that exist; the admin queue first */
    uint32_t active_count;
    uint64_t shadow_iova, event_iova;
    bool shadow_enabled;
    bool look_at_doorbells; /* stores may come without a kick */
    bool host_kicks;        /* the last work found while asleep was kicked for */
    bool serves_others;
    bool stranded; /* memory of a queue is away: nothing is fetched. Written by this thread, read by those that map */
    int *interrupt_fds;
    uint32_t interrupt_pending; /* raised while masked, vectors 0..31 */
    uint32_t poll_window_ns;
    struct iovec *iov; /* of the command being executed */
    uint32_t iov_count;
    uint8_t *bounce;
    uint32_t burst_bytes; /* moved in this burst */
    struct features features;
    uint16_t async_requests[ASYNC_EVENT_LIMIT]; /* command ids held */
    uint32_t async_request_count;
    struct async_event events[EVENT_QUEUE];
    uint32_t event_count;
    uint32_t event_masked; /* one bit a type: reported, log page not read yet */
    struct error_entry errors[ERROR_LOG_ENTRIES];
    uint64_t error_count;
    bool namespace_changed; /* since the log page of changed namespaces was read */
    struct deallocated_log {
        struct deallocated *entries;
        uint32_t count, room;
        bool on, lost;
    } deallocated;
};

/* The counters have one writer; relaxed atomics keep the readers' view whole. */
#define COUNT(c, field, n) \
    __atomic_store_n(&(c)->statistics.field, (c)->statistics.field + (n), __ATOMIC_RELAXED)

/* controller.c */
void controller_fail(struct controller *c); /* CSTS.CFS: no more commands until a reset */
void controller_request_attention(struct controller *c); /* something under the lock wants the thread */
/* Runs `call` on the controller's thread between two commands, and waits for it. Under host_lock. */
void engine_call(struct controller *c, void (*call)(struct controller *, void *), void *argument);

/* engine.c */
void *engine_main(void *controller);
void engine_kick(struct controller *c);
void engine_reset(struct controller *c);
uint16_t engine_run(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd, uint32_t *result);
void engine_count_error(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd,
                        uint16_t status);

/* prp.c, sgl.c: c->iov becomes the host's memory that a command names, by PRPs or by an SGL. */
uint16_t prp_append(struct controller *c, uint64_t iova, uint64_t length);
uint16_t prp_resolve(struct controller *c, uint64_t prp1, uint64_t prp2, uint64_t length);
uint16_t sgl_resolve(struct controller *c, const struct nvme_command *cmd, uint64_t length);
uint16_t data_resolve(struct controller *c, const struct nvme_command *cmd, uint64_t length);
uint16_t data_copy_out(struct controller *c, const struct nvme_command *cmd, const void *data, uint64_t length);
uint16_t data_copy_in(struct controller *c, const struct nvme_command *cmd, void *data, uint64_t length);

/* admin.c, io.c: execute one command; *result is completion dword 0. */
uint16_t admin_execute(struct controller *c, const struct nvme_command *cmd, uint32_t *result);
uint16_t io_execute(struct controller *c, const struct nvme_command *cmd);
bool io_must_be_durable(const struct controller *c, const struct nvme_command *cmd);
bool io_in_range(const struct controller *c, uint64_t lba, uint64_t blocks);
uint16_t copy_execute(struct controller *c, const struct nvme_command *cmd);
struct command_limits copy_limits(const struct controller *c);

/* deallocated.c */
void deallocated_note(struct controller *c, uint64_t lba, uint64_t blocks);

/* namespace.c */
uint16_t namespace_format(struct controller *c, const struct nvme_command *cmd);
uint32_t namespace_format_index(const struct controller *c);

/* identify.c, log.c, features.c */
uint16_t identify_execute(struct controller *c, const struct nvme_command *cmd);
uint16_t log_execute(struct controller *c, const struct nvme_command *cmd);
void log_error(struct controller *c, uint16_t sq_id, const struct nvme_command *cmd, uint16_t status);
uint16_t features_set(struct controller *c, const struct nvme_command *cmd, uint32_t *result);
uint16_t features_get(struct controller *c, const struct nvme_command *cmd, uint32_t *result);
void features_reset(struct controller *c);
#define TEMPERATURE_KELVIN 313u
#define FIRMWARE_REVISION "1.0"

/* events.c: Asynchronous Event Requests and what they report. */
uint16_t events_request(struct controller *c, const struct nvme_command *cmd);
bool events_abort(struct controller *c, uint16_t cid);
void events_raise(struct controller *c, struct async_event event);
bool events_deliverable(const struct controller *c);
void events_deliver(struct controller *c);
void events_log_read(struct controller *c, uint8_t page);

#endif
