/*
 * Submission and completion queues as the controller sees them (section 4.1): rings in DMA memory,
 * doorbells in a page of shared memory, completions with a phase bit, interrupts by eventfd.
 *
 * A command is fetched only when its completion queue has a free slot, so no completion ever waits and
 * no entry that the host has not consumed is overwritten.
 */
#ifndef EMBEDDED_QUEUES_H
#define EMBEDDED_QUEUES_H

#include "controller.h"

/* NULL when no such queue exists. */
struct submission_queue *queue_find_sq(struct controller *c, uint32_t id);
struct completion_queue *queue_find_cq(struct controller *c, uint32_t id);

/* Both return a status; the caller has checked id and size. */
uint16_t queue_create_cq(struct controller *c, uint16_t id, uint64_t iova, uint32_t size, int vector);
uint16_t queue_create_sq(struct controller *c, uint16_t id, uint64_t iova, uint32_t size, uint16_t cq_id);
void queue_delete_sq(struct controller *c, struct submission_queue *sq);
void queue_delete_cq(struct controller *c, struct completion_queue *cq);
void queues_reset(struct controller *c);

/* Looks every queue and shadow buffer up again after the DMA table changed. False: one of them is gone. */
bool queues_relocate(struct controller *c);

/* Switches the I/O queues to the host's shadow doorbells. False: the buffers are not mapped. */
bool queues_use_shadow(struct controller *c, uint64_t shadow_iova, uint64_t event_iova);

/* Takes the tail doorbell in; true when there are commands to fetch. */
bool queue_take_tail(struct controller *c, struct submission_queue *sq);
bool queue_has_room(struct controller *c, struct completion_queue *cq);
uint32_t queue_room(struct controller *c, struct completion_queue *cq); /* free entries */
void queue_post(struct completion_queue *cq, uint16_t sq_head, uint16_t sq_id, uint16_t cid, uint32_t result,
                uint16_t status);
/* As queue_post(), with any phase bit: the wrong one hides the entry. */
void queue_post_phase(struct completion_queue *cq, uint16_t sq_head, uint16_t sq_id, uint16_t cid, uint32_t result,
                      uint16_t status, uint8_t phase);
void queue_signal(struct controller *c, struct completion_queue *cq);
void queues_signal_all(struct controller *c); /* every vector, whether or not anything was posted */
void queues_unmasked(struct controller *c);

/* Is there anything that a service round would act on? Reads doorbells, changes nothing. */
bool queues_pending(const struct controller *c);
/* Tells the host, by event indexes, that doorbell stores need a kick from now on. */
void queues_arm(struct controller *c);
/* Doorbell registers of queues that do not exist must be zero; reports and clears those that are not. */
void queues_find_stray_doorbells(struct controller *c);

#endif
