/*
 * The admin command set (section 5): queues, aborts, doorbell buffers here; the rest is passed on.
 */
#include "queues.h"

#define CREATE_CONTIGUOUS 0x1u
#define CREATE_INTERRUPTS 0x2u

static uint64_t page_offset(const struct controller *c, uint64_t iova)
{
    return iova & ((1ull << c->page_bits) - 1);
}

/* Highest queue identifier of a kind: what Set Features granted, or all there are before it was asked. */
static uint32_t queue_limit(const struct controller *c, bool completion)
{
    uint32_t granted = c->features.granted_queues;
    if (!granted)
        return c->options.io_queues;
    return completion ? granted >> 16 : granted & 0xffff;
}

static uint32_t current_cc(struct controller *c)
{
    pthread_mutex_lock(&c->lock);
    uint32_t cc = c->regs.cc;
    pthread_mutex_unlock(&c->lock);
    return cc;
}

/* What Create I/O Submission and Completion Queue have in common (Figures 152 and 156). */
static uint16_t check_create(struct controller *c, const struct nvme_command *cmd, bool entry_size_set)
{
    uint32_t size = (cmd->cdw10 >> 16) + 1;
    if (size < 2 || size > c->options.queue_entries || !entry_size_set)
        return STATUS_INVALID_QUEUE_SIZE;
    if (!(cmd->cdw11 & CREATE_CONTIGUOUS)) /* CAP.CQR */
        return STATUS_INVALID_FIELD;
    return page_offset(c, cmd->prp1) ? STATUS_PRP_OFFSET_INVALID : STATUS_SUCCESS;
}

static uint16_t create_cq(struct controller *c, const struct nvme_command *cmd)
{
    uint16_t id = (uint16_t)cmd->cdw10;
    uint32_t vector = cmd->cdw11 >> 16;
    bool interrupts = cmd->cdw11 & CREATE_INTERRUPTS;
    if (id == 0 || id > queue_limit(c, true) || queue_find_cq(c, id))
        return STATUS_INVALID_QUEUE_ID;
    uint16_t status = check_create(c, cmd, CC_IOCQES(current_cc(c)) == 4);
    if (status)
        return status;
    if (interrupts && vector >= c->options.vectors)
        return STATUS_INVALID_VECTOR;
    return queue_create_cq(c, id, cmd->prp1, (cmd->cdw10 >> 16) + 1, interrupts ? (int)vector : -1);
}

static uint16_t create_sq(struct controller *c, const struct nvme_command *cmd)
{
    uint16_t id = (uint16_t)cmd->cdw10;
    uint32_t cq_id = cmd->cdw11 >> 16;
    if (id == 0 || id > queue_limit(c, false) || queue_find_sq(c, id))
        return STATUS_INVALID_QUEUE_ID;
    if (cq_id == 0 || cq_id > queue_limit(c, true))
        return STATUS_INVALID_QUEUE_ID;
    if (!queue_find_cq(c, cq_id))
        return STATUS_CQ_INVALID;
    uint16_t status = check_create(c, cmd, CC_IOSQES(current_cc(c)) == 6);
    if (status)
        return status;
    return queue_create_sq(c, id, cmd->prp1, (cmd->cdw10 >> 16) + 1, (uint16_t)cq_id);
}

/* Commands that were not fetched yet go with their queue; none is in execution now. */
static uint16_t delete_sq(struct controller *c, const struct nvme_command *cmd)
{
    uint32_t id = cmd->cdw10 & 0xffff;
    struct submission_queue *sq = queue_find_sq(c, id);
    if (id == 0 || !sq)
        return STATUS_INVALID_QUEUE_ID;
    queue_delete_sq(c, sq);
    return STATUS_SUCCESS;
}

static uint16_t delete_cq(struct controller *c, const struct nvme_command *cmd)
{
    uint32_t id = cmd->cdw10 & 0xffff;
    struct completion_queue *cq = queue_find_cq(c, id);
    if (id == 0 || !cq)
        return STATUS_INVALID_QUEUE_ID;
    if (cq->submission_queues)
        return STATUS_INVALID_QUEUE_DELETION;
    queue_delete_cq(c, cq);
    return STATUS_SUCCESS;
}

/* Only Asynchronous Event Requests wait here for long; any other command is done or about to be. Result bit 0
 * set says "not aborted". The aborted command's completion comes first. */
static uint16_t abort_command(struct controller *c, const struct nvme_command *cmd, uint32_t *result)
{
    uint32_t sq_id = cmd->cdw10 & 0xffff;
    uint16_t cid = (uint16_t)(cmd->cdw10 >> 16);
    *result = 1;
    if (!queue_find_sq(c, sq_id))
        return STATUS_INVALID_FIELD;
    struct completion_queue *admin = &c->cqs[0];
    if (c->faults && faults_abort(c, sq_id, cid)) {
        *result = 0;
        return STATUS_SUCCESS;
    }
    if (sq_id || queue_room(c, admin) < 2 || !events_abort(c, cid))
        return STATUS_SUCCESS;
    queue_post(admin, (uint16_t)c->sqs[0].head, 0, cid, 0, STATUS_ABORT_REQUESTED);
    *result = 0;
    return STATUS_SUCCESS;
}

/* Section 5.7. */
static uint16_t doorbell_buffer(struct controller *c, const struct nvme_command *cmd)
{
    if (!c->options.shadow_doorbells)
        return STATUS_INVALID_OPCODE;
    if (page_offset(c, cmd->prp1) || page_offset(c, cmd->prp2))
        return STATUS_INVALID_FIELD;
    return queues_use_shadow(c, cmd->prp1, cmd->prp2) ? STATUS_SUCCESS : STATUS_DATA_TRANSFER_ERROR;
}

uint16_t admin_execute(struct controller *c, const struct nvme_command *cmd, uint32_t *result)
{
    /* No fused commands, no SGLs. */
    if (cmd->flags && (cmd->opcode <= ADMIN_ASYNC_EVENT || cmd->opcode == ADMIN_FORMAT))
        return STATUS_INVALID_FIELD;
    switch (cmd->opcode) {
    case ADMIN_DELETE_SQ: return delete_sq(c, cmd);
    case ADMIN_CREATE_SQ: return create_sq(c, cmd);
    case ADMIN_GET_LOG_PAGE: return log_execute(c, cmd);
    case ADMIN_DELETE_CQ: return delete_cq(c, cmd);
    case ADMIN_CREATE_CQ: return create_cq(c, cmd);
    case ADMIN_IDENTIFY: return identify_execute(c, cmd);
    case ADMIN_ABORT: return abort_command(c, cmd, result);
    case ADMIN_SET_FEATURES: return features_set(c, cmd, result);
    case ADMIN_GET_FEATURES: return features_get(c, cmd, result);
    case ADMIN_ASYNC_EVENT: return events_request(c, cmd);
    case ADMIN_DOORBELL_BUFFER: return doorbell_buffer(c, cmd);
    case ADMIN_FORMAT: return namespace_format(c, cmd);
    default: return STATUS_INVALID_OPCODE;
    }
}
