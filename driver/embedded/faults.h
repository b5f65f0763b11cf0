/*
 * Rules that make the controller misbehave. faults.c begins with what they can do.
 */
#ifndef EMBEDDED_FAULTS_H
#define EMBEDDED_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

#define FAULT_PATCH_BYTES 64u
#define FAULT_PENDING 64u /* commands that wait at a time; beyond that a delay is none */
#define FAULT_NEVER UINT64_MAX

/* What a rule is about: a queue id, or one of these. */
enum fault_subject { FAULT_ANY_QUEUE = -1, FAULT_IO_QUEUES = -2, FAULT_ENABLE = -3, FAULT_RESET = -4, FAULT_SHUTDOWN = -5 };

enum fault_action {
    FAULT_DROP = 1u << 0,           /* never executed, never completed */
    FAULT_MUTE = 1u << 1,           /* executed, never completed */
    FAULT_LOST = 1u << 2,           /* completed with success, never executed */
    FAULT_DELAY = 1u << 3,          /* executed delay_ns later, or ready that much later */
    FAULT_BEHIND = 1u << 4,         /* executed after `behind` further commands */
    FAULT_STATUS = 1u << 5,         /* completed with `status`, not executed */
    FAULT_EXECUTED = 1u << 6,       /* ... and executed all the same */
    FAULT_DUPLICATE = 1u << 7,      /* completed 1 + `copies` times */
    FAULT_CID = 1u << 8,            /* completed under the command id `cid` */
    FAULT_CID_FLIP = 1u << 9,       /* ... under its own, XOR `cid` */
    FAULT_CID_STALE = 1u << 10,     /* ... under that of the command completed before it */
    FAULT_SQ_ID = 1u << 11,
    FAULT_SQ_HEAD = 1u << 12,
    FAULT_RESULT = 1u << 13,        /* dword 0 of the completion */
    FAULT_STALE_PHASE = 1u << 14,   /* the completion has the phase bit of the round before */
    FAULT_QUIET = 1u << 15,         /* no interrupt for this completion */
    FAULT_SPURIOUS = 1u << 16,      /* every interrupt vector fires first, for nothing */
    FAULT_EVENT = 1u << 17,         /* an asynchronous event is due: dword 0 is `event` */
    FAULT_FATAL = 1u << 18,         /* CSTS.CFS; nothing is executed until a reset */
    FAULT_GONE = 1u << 19,          /* registers read all-ones, nothing is executed ever more */
    FAULT_ROT = 1u << 20,           /* one bit of the blocks that are read has flipped on the medium */
    FAULT_MISDIRECT = 1u << 21,     /* the blocks are others: LBA + `blocks`, modulo the capacity */
    FAULT_PATCH = 1u << 22,         /* bytes of the returned data replaced */
    FAULT_FLIP = 1u << 23,          /* ... or XORed */
};

struct fault_rule {
    /* Which commands match, */
    int32_t queue;
    int32_t opcode;      /* -1: any */
    int32_t selector;    /* low byte of dword 10 (CNS, log page, feature), -1: any */
    uint64_t first_lba;  /* overlaps first..last; commands that name no blocks match 0..UINT64_MAX alone */
    uint64_t last_lba;
    /* which of those are hit (all conditions that are given), */
    uint64_t nth;         /* the n-th from 1 on; 0: any */
    uint64_t every;       /* every k-th; 0: each */
    uint64_t limit;       /* so many in all; 0: no limit */
    uint32_t probability; /* in 2^-32; 0: 1 */
    /* and what happens to them. */
    uint32_t actions;
    uint64_t delay_ns; /* FAULT_NEVER: for ever */
    uint32_t behind;
    uint32_t copies;
    uint16_t status; /* type, code, retry delay, DNR: as in a completion above the phase bit */
    uint16_t cid;
    uint16_t sq_id;
    uint16_t sq_head;
    uint32_t result;
    uint32_t event;
    uint64_t blocks;
    uint32_t patch_offset; /* bytes into the returned data */
    uint32_t patch_bytes;
    uint8_t patch[FAULT_PATCH_BYTES];
};

/* CAP reads as (what it is & ~cap_mask) | cap_value. */
struct fault_plan {
    const struct fault_rule *rules; /* copied */
    uint32_t count;
    uint64_t seed;
    uint64_t cap_mask;
    uint64_t cap_value;
};

struct controller;
struct faults;
struct nvme_command;
struct submission_queue;

/* NULL: no memory. */
struct faults *faults_new(const struct fault_plan *plan);
/* On the controller's thread; commands that wait go on waiting. */
void faults_replace(struct controller *c, struct faults *fresh);
void faults_free(struct faults *faults);

/* The rest belongs to the controller's thread, and is called only while there is a plan (c->faults).
 * Takes the place of execution and completion; false: no rule is hit. */
bool faults_execute(struct controller *c, struct submission_queue *sq, const struct nvme_command *cmd);
void faults_completed(struct controller *c, uint16_t sq_id, uint16_t cid);
/* Executes commands whose time has come. True: there were some. */
bool faults_service(struct controller *c);
/* When the next thing is due (monotonic clock, ns), or FAULT_NEVER. */
uint64_t faults_deadline(const struct controller *c);
/* Is this transition of the registers (FAULT_ENABLE and so on) to be put off still? */
bool faults_hold(struct controller *c, int transition);
void faults_unhold(struct controller *c, int transition);
/* A command that waits is aborted: completed with Command Abort Requested. False: none such waits. */
bool faults_abort(struct controller *c, uint32_t sq_id, uint16_t cid);
void faults_forget_queue(struct controller *c, uint16_t sq_id);
void faults_reset(struct controller *c); /* with the controller; the counts of the rules go on */
void faults_vanish(struct controller *c); /* FAULT_GONE */

#endif
